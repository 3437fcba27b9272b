"""Sampling: prefill, decoding over a KV cache, and slots refilled inside one loop.

N requests share B slots. When R slots are free and requests wait, R prompts are prefilled into
them; otherwise every slot decodes one token. A request's tokens depend on its prompt and its
number alone: keys are folded from (request, position), so slots, batch and order do not show.

    slot 0   request 0 ......|request 4 ..........
    slot 1   request 1 ...........|request 3 ...       R = 1: refilled as soon as one is free
    slot 2   request 2 ...|request 5 .............
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from isara_jax.devices import mesh as mesh_lib
from isara_jax.models import attention, decoder
from isara_jax.sampler import sampling, scheduling
from isara_jax.text import packing, stops


class Generation(NamedTuple):
    """What was generated.

    Attributes:
      tokens: `[N, L]` as drawn, EOS or stop string included; padding 0.
      lengths: `[N]`.
      finish: `[N]` int32: `stops.UNFINISHED` (out of room), `AT_EOS`, or `AT_STOP` + the stop's
        index.
      score: `[N]` mean log-probability of the tokens drawn, EOS or stop included, in nats, at
        temperature 1 and before top-k and top-p (tokens that spell nothing stay excluded).
      drawn: int32 scalar, all tokens drawn.
    """

    tokens: jax.Array
    lengths: jax.Array
    finish: jax.Array
    score: jax.Array
    drawn: jax.Array


class _Slots(NamedTuple):
    """The loop's state. Slots `[B]`; results `[N]`, where a free slot's request is N (dropped)."""

    cache: decoder.Cache
    request: jax.Array  # [B]
    last: jax.Array  # [B] the token to be read next
    position: jax.Array  # [B] its position
    count: jax.Array  # [B] tokens drawn for the request
    stop_state: jax.Array  # [B]
    log_prob: jax.Array  # [B] summed
    waiting: jax.Array  # scalar: the first request not yet begun
    tokens: jax.Array  # [N, L]
    lengths: jax.Array
    finish: jax.Array
    score: jax.Array

    @property
    def free(self) -> jax.Array:
        return self.request == self.lengths.shape[0]


class Sampler(NamedTuple):
    """The static part of a generation: everything shapes follow from.

    Attributes:
      model: the network.
      slots: B, sequences decoded at once.
      refill: R, prompts prefilled at once.
      max_tokens: L, the most tokens of one output.
      steps_per_check: decoding steps between two looks for free slots.
      mesh: the devices.
      on_refill: called on the host, each time prompts are read, with the number of requests that
        are finished and of tokens drawn; or None.
    """

    model: decoder.Decoder
    slots: int
    refill: int
    max_tokens: int
    steps_per_check: int
    mesh: Mesh
    on_refill: Callable[..., None] | None = None


def generate(
    sampler: Sampler,
    variables: dict,
    prompts: packing.Prompts,
    key: jax.Array,
    params: sampling.SamplingParams,
    table: stops.StopTable,
) -> Generation:
    """Continues every prompt until EOS, a stop string, or L tokens.

    Args:
      sampler: the static part.
      variables: the model's, with or without adapter.
      prompts: N prompts of at most P tokens.
      key: of this stage; folded with request and position.
      params: how tokens are drawn.
      table: what ends a text.
    """
    n_requests, prompt_length = prompts.tokens.shape
    step = functools.partial(_step, sampler, variables, key, params, table)
    refill = functools.partial(_refill, sampler, variables, prompts)
    reads = read_lengths(sampler, prompt_length)
    enough = scheduling.worth_a_refill(sampler.refill, mesh_lib.batch_devices(sampler.mesh))

    def can_refill(s: _Slots) -> jax.Array:
        readable = jnp.sum(_rows_to_refill(sampler, s)[1])
        return (s.waiting < n_requests) & (readable >= enough)

    def advance(s: _Slots) -> _Slots:
        s = jax.lax.while_loop(can_refill, refill, s)
        return _advance(sampler, step, reads, s)

    def unfinished(s: _Slots) -> jax.Array:
        return (s.waiting < n_requests) | ~jnp.all(s.free)

    done = jax.lax.while_loop(unfinished, advance, _empty_slots(sampler, prompts))
    return Generation(
        tokens=done.tokens,
        lengths=done.lengths,
        finish=done.finish,
        score=done.score,
        drawn=jnp.sum(done.lengths),
    )


def read_lengths(sampler: Sampler, prompt_length: int) -> tuple[int, ...]:
    """The numbers of rows of a cache that a step may read, ascending; the last is all."""
    network = sampler.model.config
    grouped = network.n_kv_heads < network.n_heads
    length = prompt_length + sampler.max_tokens
    return scheduling.read_lengths(length, sampler.mesh, grouped=grouped)


def _advance(
    sampler: Sampler, step: Callable[[int, _Slots], _Slots], reads: tuple[int, ...], s: _Slots
) -> _Slots:
    """Decoding steps until the next look for free slots, over as much of the cache as they need.

    Args:
      sampler: the static part.
      step: one step that reads so many rows of the cache, 0 for all.
      reads: the numbers of rows to choose from, ascending; the last is all.
      s: the state.
    """

    def steps(rows: int, s: _Slots) -> _Slots:
        return jax.lax.fori_loop(0, sampler.steps_per_check, lambda _, s: step(rows, s), s)

    if len(reads) == 1:
        return steps(0, s)
    needed = jnp.max(jnp.where(s.free, 0, s.position)) + sampler.steps_per_check
    chosen = jnp.minimum(jnp.sum(needed > jnp.asarray(reads)), len(reads) - 1)
    # One of these loops runs, the others not at all: where a switch chooses, XLA holds the cache
    # twice.
    for index, rows in enumerate(reads):
        once = (chosen == index).astype(jnp.int32)
        s = jax.lax.fori_loop(0, once, lambda _, s, rows=rows: steps(rows, s), s)
    return s


def _empty_slots(sampler: Sampler, prompts: packing.Prompts) -> _Slots:
    network = sampler.model.config
    n_requests, prompt_length = prompts.tokens.shape
    b = sampler.slots
    how, length = sampler.model.how, prompt_length + sampler.max_tokens
    axes = {"B": mesh_lib.BATCH, "K": "model"}
    spec = [axes.get(axis) for axis in how.order]

    def layer_half(layer: int) -> attention.Half:
        rows = network.rows(layer, length)
        zeros = attention.empty(
            how, rows, b, network.n_kv_heads, network.head_size, sampler.model.dtype
        )
        return jax.tree.map(lambda x: mesh_lib.constrain(x, sampler.mesh, *spec), zeros)

    def per_slot(dtype: jnp.dtype = jnp.int32) -> jax.Array:
        return jnp.zeros(b, dtype)

    return _Slots(
        cache=tuple((layer_half(i), layer_half(i)) for i in range(network.n_layers)),
        request=jnp.full(b, n_requests, jnp.int32),
        last=per_slot(),
        position=per_slot(),
        count=per_slot(),
        stop_state=per_slot(),
        log_prob=per_slot(jnp.float32),
        waiting=jnp.int32(0),
        tokens=jnp.zeros((n_requests, sampler.max_tokens), jnp.int32),
        lengths=jnp.zeros(n_requests, jnp.int32),
        finish=jnp.full(n_requests, stops.UNFINISHED, jnp.int32),
        score=jnp.zeros(n_requests, jnp.float32),
    )


def _rows_to_refill(sampler: Sampler, s: _Slots) -> tuple[jax.Array, jax.Array]:
    """Of each of the G devices that sequences are spread over, R / G of its slots, free ones first.

    What a device reads stays in its own slots, so no keys and values are exchanged.

    Returns:
      `[G, R / G]` slots, counted from a device's first, and whether they are free.
    """
    groups = mesh_lib.batch_devices(sampler.mesh)
    free = s.free.reshape(groups, -1)
    slots = jnp.argsort(~free, axis=1, stable=True)[:, : sampler.refill // groups]
    return slots, jnp.take_along_axis(free, slots, axis=1)


def _insert(
    sampler: Sampler,
    cache: decoder.Cache,
    fresh: decoder.Cache,
    slots: jax.Array,
    lengths: jax.Array,
) -> decoder.Cache:
    """Writes R prompts' caches into `slots [R]`, counted from each device's first."""

    def insert(cache: Any, fresh: Any, slots: jax.Array, lengths: jax.Array) -> decoder.Cache:
        how = sampler.model.how
        pairs = zip(cache, fresh, strict=True)
        return tuple(attention.insert(how, old, new, slots, lengths) for old, new in pairs)

    if mesh_lib.batch_devices(sampler.mesh) == 1:
        return insert(cache, fresh, slots, lengths)
    columns = P(*[None] * sampler.model.how.order.index("B"), mesh_lib.BATCH)
    return jax.shard_map(
        insert, mesh=sampler.mesh, in_specs=(columns, columns, *[P(mesh_lib.BATCH)] * 2),
        out_specs=columns, axis_names=set(mesh_lib.BATCH),
    )(cache, fresh, slots, lengths)  # fmt: skip


def _refill(sampler: Sampler, variables: dict, prompts: packing.Prompts, s: _Slots) -> _Slots:
    """Prefills the next prompts, at most R, into free slots.

    The prompt's last token is read again by the first decoding step, which rewrites the same row
    and so needs no logits here.
    """
    n_requests = prompts.tokens.shape[0]
    local, free = _rows_to_refill(sampler, s)
    requests = s.waiting + jnp.cumsum(free.ravel()) - 1
    real = free.ravel() & (requests < n_requests)
    rows = jnp.clip(requests, 0, n_requests - 1)
    chunk, lengths = prompts.tokens[rows], prompts.lengths[rows]
    chunk = mesh_lib.constrain(chunk, sampler.mesh, mesh_lib.BATCH, None)
    _, fresh = sampler.model.apply(variables, chunk)
    # Out of range, so dropped; each another, since the rows are promised to be unique.
    (groups, each), unused = local.shape, jnp.arange(sampler.refill)
    inside = jnp.where(real, local.ravel(), sampler.slots + unused)
    cache = _insert(sampler, s.cache, fresh, inside, lengths)
    first = jnp.repeat(jnp.arange(groups), each) * (sampler.slots // groups)
    slots = jnp.where(real, first + local.ravel(), sampler.slots + unused)
    waiting = jnp.minimum(s.waiting + jnp.sum(free), n_requests)
    if sampler.on_refill is not None:
        finished = s.waiting - jnp.sum(~s.free)
        drawn = jnp.sum(s.lengths) + jnp.sum(jnp.where(s.free, 0, s.count))
        jax.debug.callback(sampler.on_refill, finished, drawn)
    last = jnp.take_along_axis(chunk, lengths[:, None] - 1, axis=1)[:, 0]

    def put(old: jax.Array, new: jax.Array | int | float) -> jax.Array:
        return old.at[slots].set(new, mode="drop")

    return s._replace(
        cache=cache,
        request=put(s.request, requests),
        last=put(s.last, last),
        position=put(s.position, lengths - 1),
        count=put(s.count, 0),
        stop_state=put(s.stop_state, 0),
        log_prob=put(s.log_prob, 0.0),
        waiting=waiting,
    )


def _draw(
    sampler: Sampler, key: jax.Array, params: sampling.SamplingParams, s: _Slots, logits: jax.Array
) -> jax.Array:
    """A token for every slot, `[B]`, of logits `[B, V]`: each device draws for its own.

    Left to the partitioner, on GPUs all of them draw for all, and exchange their logits for it.
    """

    def for_rows(
        key: jax.Array, params: Any, request: jax.Array, count: jax.Array, logits: jax.Array
    ) -> jax.Array:
        return sampling.sample(logits, sampling.row_keys(key, request, count), params)

    if mesh_lib.batch_devices(sampler.mesh) > 1:
        rows = P(mesh_lib.BATCH)
        for_rows = jax.shard_map(
            for_rows, mesh=sampler.mesh, in_specs=(P(), P(), rows, rows, rows), out_specs=rows,
            axis_names=set(mesh_lib.BATCH), check_vma=False,
        )  # fmt: skip
    return for_rows(key, params, s.request, s.count, logits)


def _step(
    sampler: Sampler,
    variables: dict,
    key: jax.Array,
    params: sampling.SamplingParams,
    table: stops.StopTable,
    rows: int,
    s: _Slots,
) -> _Slots:
    """Draws one token for every occupied slot; reads `rows` of the cache, 0 for all."""
    model = sampler.model.clone(how=dataclasses.replace(sampler.model.how, read=rows))
    hidden, cache = model.apply(variables, s.last[:, None], s.position[:, None], s.cache)
    logits = model.apply(variables, hidden[:, 0], method="logits")
    # What spells nothing (padding, unknown, begin of text) must not be drawn; only an end may.
    logits = jnp.where(jnp.asarray(table.drawable), logits, -jnp.inf)
    token = _draw(sampler, key, params, s, logits)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    log_prob = s.log_prob + chosen - jax.nn.logsumexp(logits, axis=-1)

    stop = jnp.asarray(table.stop)[token, s.stop_state]
    count = s.count + 1
    at_eos, at_stop = jnp.asarray(table.ends)[token], stop >= 0
    finished = at_eos | at_stop | (count == sampler.max_tokens)
    how = jnp.where(at_stop, stops.AT_STOP + stop, stops.UNFINISHED)
    ended = jnp.where(finished, s.request, s.lengths.shape[0])

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[ended].set(new, mode="drop")

    return s._replace(
        cache=cache,
        request=jnp.where(finished, s.lengths.shape[0], s.request),
        last=token,
        position=s.position + ~finished,
        count=count,
        stop_state=jnp.asarray(table.next_state)[token, s.stop_state],
        log_prob=log_prob,
        tokens=s.tokens.at[s.request, s.count].set(token, mode="drop"),
        lengths=put(s.lengths, count),
        finish=put(s.finish, jnp.where(at_eos, stops.AT_EOS, how)),
        score=put(s.score, log_prob / count),
    )
