"""Supervised fine-tuning: a traced number of steps over batches packed into streams.

Samples of a batch are dealt out to the devices and laid end to end (`packing.streams`), so that no
matrix sees padding and no device waits for another's rows. The gradients of its streams are summed
and divided by all their tokens: it is the batch's own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.method import trouble
from isara_jax.models import decoder, lora
from isara_jax.text import packing

LOGITS_BYTES = 512 << 20  # of f32 logits at once on a device

# Tokens of a stream on a device: matrix products of 4,096 rows fill an accelerator, below 1,024
# they wait for the weights; a CPU's caches prefer fewer.
MOST_TOKENS, FEWEST_TOKENS, CPU_TOKENS = 4096, 1024, 800


_STOP = 1  # of the choices of `config.Train.on_divergence`


class TrainParams(NamedTuple):
    """The traced part of `config.Train`."""

    learning_rate: jax.Array
    warmup: jax.Array
    epochs: jax.Array
    on_divergence: jax.Array


class Sequences(NamedTuple):
    """Training sequences: `ids [C, T]`, `lengths [C]`, `begin [C]` of the answer, `valid [C]`."""

    ids: jax.Array
    lengths: jax.Array
    begin: jax.Array
    valid: jax.Array


class Fit(NamedTuple):
    """The outcome of a fit.

    Attributes:
      trainable: what was trained; as it was before where that was dropped.
      steps: optimiser steps, those held back among them.
      first_loss, last_loss: mean over the first and the last tenth of them, those held back left
        out, in nats a token.
      tokens: read, padding not counted.
      trouble: what was held back.
    """

    trainable: lora.Trainable
    steps: jax.Array
    first_loss: jax.Array
    last_loss: jax.Array
    tokens: jax.Array
    trouble: trouble.Trouble


def steps_for(sequences: Sequences, train: config.Train, params: TrainParams) -> jax.Array:
    """Optimiser steps for the configured epochs over the valid sequences."""
    return params.epochs * _ceil_div(jnp.sum(sequences.valid), train.batch_size)


def _ceil_div(a: jax.Array, b: int) -> jax.Array:
    return (a + b - 1) // b


def answer_losses(
    model: decoder.Decoder, variables: dict, batch: Sequences, span: int
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of what follows `begin`, in nats, `[B, span]`, and its mask.

    Only the answers' positions are projected on the vocabulary.
    """
    hidden, _ = model.apply(variables, batch.ids)
    at = batch.begin[:, None] - 1 + jnp.arange(span)
    inside = at + 1 < batch.lengths[:, None]
    at = jnp.minimum(at, batch.ids.shape[1] - 2)
    answers = jnp.take_along_axis(hidden, at[..., None], axis=1)
    targets = jnp.take_along_axis(batch.ids, at + 1, axis=1)
    return token_losses(model, variables, answers, targets), inside


def token_losses(
    model: decoder.Decoder, variables: dict, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """Cross-entropy `[B, T]` in nats of `targets [B, T]` after `hidden [B, T, E]`.

    A device never holds logits of more than `LOGITS_BYTES`: positions are projected on the
    vocabulary in portions, and again for the gradient (as in Liger Kernel, arXiv 2410.10989).
    """

    def losses(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        logits = model.apply(variables, hidden, method="logits")
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    batch, length = targets.shape
    on_a_device = -(-batch // mesh_lib.batch_devices(model.mesh))
    at_once = max(1, LOGITS_BYTES // (4 * on_a_device * model.config.vocab_size))
    if at_once >= length:
        return losses(hidden, targets)
    portions = -(-length // at_once)

    def split(x: jax.Array) -> jax.Array:
        """`[B, T, ...]` as `[portions, B, at_once, ...]`."""
        filled = [(0, 0), (0, portions * at_once - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, filled).reshape(batch, portions, at_once, *x.shape[2:]).swapaxes(0, 1)

    portion = jax.checkpoint(lambda place: losses(*place))
    result = jax.lax.map(portion, (split(hidden), split(targets)))
    return result.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def stream_loss(model: decoder.Decoder, variables: dict, stream: packing.Streams) -> jax.Array:
    """Sum of the cross-entropy over the answers of P streams and their EOS, in nats.

    Args:
      model: the network.
      variables: its parameters.
      stream: ids and positions in rows `[R, T]`; segments `[P, C]`, answers `[P, M]`.
    """
    hidden, _ = model.apply(variables, stream.ids, stream.positions, segments=stream.segments)
    hidden = hidden.reshape(*stream.segments.shape, -1)
    answers = jnp.take_along_axis(hidden, stream.before[..., None], axis=1)
    losses = token_losses(model, variables, answers, stream.targets)
    return jnp.sum(losses * stream.inside)


def optimizer(train: config.Train) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with betas (0.9, 0.95) and clipping; scaled by the rate outside."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.add_decayed_weights(train.weight_decay),
    )


def learning_rate(params: TrainParams, step: jax.Array, total: jax.Array) -> jax.Array:
    """Linear warm-up over a share of the steps, then cosine to zero."""
    warm = jnp.maximum(params.warmup * total, 1.0)
    progress = jnp.clip((step - warm) / jnp.maximum(total - warm, 1.0), 0.0, 1.0)
    rise = jnp.minimum((step + 1) / warm, 1.0)
    decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return params.learning_rate * jnp.where(step < warm, rise, decay)


class Plan(NamedTuple):
    """How a gradient is computed on the devices there are.

    Attributes:
      rows: of a stream, each as long as the longest sequence.
      remat: blocks are computed again for the gradient.
    """

    rows: int
    remat: bool


def kept_bytes(model: decoder.Decoder, mesh: Mesh, *, remat: bool) -> float:
    """Bytes that a device keeps for the gradient, of a token.

    A block keeps about 10 vectors of its width and 5 of its MLP's (measured at LLaMA-7B's shape:
    47.8 GB for 8,192 tokens; with recomputation, where all but one keep their input alone, 4.1
    GB); along `model` all but 3 are split (compiled for TPUs: 113, 67 and 34 KB over 1, 2 and 8
    devices).
    """
    c = model.config
    block = 3 * c.width + (7 * c.width + 5 * c.hidden) / mesh.shape["model"]
    kept = block + c.n_layers * c.width if remat else c.n_layers * block
    return kept * jnp.dtype(model.dtype).itemsize


def plan(
    model: decoder.Decoder, train: config.Train, row_tokens: int, mesh: Mesh, free: float
) -> Plan:
    """Streams as large as keep the device busy, smaller ones rather than computing blocks again.

    `auto` recomputes where a stream of `FEWEST_TOKENS` would keep more than half of the memory that
    is left.

    Args:
      model: the network.
      train: batch size and policy.
      row_tokens: of the longest training sequence.
      mesh: the devices.
      free: bytes left on each with everything but activations on it; infinite on CPUs, where
        nothing is recomputed.
    """
    devices = mesh_lib.batch_devices(mesh)
    room = free / 2 / kept_bytes(model, mesh, remat=False)
    wanted = CPU_TOKENS if mesh_lib.on_cpu(mesh) else MOST_TOKENS
    remat = train.remat == "blocks" or (train.remat == "auto" and room < FEWEST_TOKENS)
    tokens = wanted if remat else min(wanted, max(room, FEWEST_TOKENS))
    per_device = min(-(-train.batch_size // devices), max(1, int(tokens // row_tokens)))
    return Plan(rows=per_device * devices, remat=remat)


class _Fitting(NamedTuple):
    """What a step changes.

    `before` is the loss before any update; `loss` sums that of the first and the last tenth of the
    steps `[2]`, over `counted [2]` batches.
    """

    step: jax.Array
    trainable: lora.Trainable
    optimizer: optax.OptState
    order: jax.Array
    before: jax.Array
    loss: jax.Array
    counted: jax.Array
    tokens: jax.Array
    trouble: trouble.Trouble


def fit(
    model: decoder.Decoder,
    base: dict,
    trainable: lora.Trainable,
    sequences: Sequences,
    train: config.Train,
    params: TrainParams,
    steps: jax.Array,
    key: jax.Array,
    span: int,
    rows: int,
    mesh: Mesh,
    on_step: Callable[..., None] | None = None,
) -> Fit:
    """Runs `steps` optimiser steps over shuffled passes through the valid sequences.

    Updates that are not finite are held back (`trouble`); under `train.on_divergence="stop"` the
    first of them is the last step. A training that has come to nothing leaves `trainable` as it
    was.

    Args:
      model: the network.
      base: its parameters, constant under the gradient.
      trainable: where to start.
      sequences: C of them, valid ones anywhere.
      train: batch size, optimiser and adapter.
      params: the traced part of it.
      steps: traced, may be 0.
      key: of the shuffling.
      span: the most tokens of an answer with its EOS.
      rows: of a stream, each as long as the longest sequence.
      mesh: the devices they are spread over.
      on_step: called on the host every few steps, with the steps begun, all steps, and the tokens
        read.
    """
    tx, b = optimizer(train), train.batch_size
    count = jnp.sum(sequences.valid)
    steps_a_pass = jnp.maximum(_ceil_div(count, b), 1)
    tenth = jnp.maximum(steps // 10, 1)

    def shuffled(number: jax.Array) -> jax.Array:
        """The valid sequences in the order of a pass, then the others."""
        noise = jax.random.uniform(jax.random.fold_in(key, number), sequences.valid.shape)
        return jnp.argsort(jnp.where(sequences.valid, noise, 2.0))

    def gradient(trainable: lora.Trainable, batch: packing.Streams, used: jax.Array) -> tuple:
        """Summed loss and its gradient."""

        def one(index: jax.Array) -> tuple:
            stream = _laid_out(jax.tree.map(lambda x: x[:, index], batch), rows, mesh)
            return jax.value_and_grad(
                lambda t: stream_loss(model, lora.variables(base, t, train), stream)
            )(trainable)

        if batch.ids.shape[1] == 1:
            return one(jnp.int32(0))
        zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), trainable))
        add = lambda index, total: jax.tree.map(jnp.add, total, one(index))  # noqa: E731
        return jax.lax.fori_loop(0, used, add, zero)

    def body(s: _Fitting) -> _Fitting:
        place = s.step % steps_a_pass
        order = jax.lax.cond(place == 0, lambda: shuffled(s.step // steps_a_pass), lambda: s.order)
        at = place * b + jnp.arange(b)
        picked = order[at % order.shape[0]]
        lengths = jnp.where(at < count, sequences.lengths[picked], 0)
        batch, used = _packed(
            sequences.ids[picked], lengths, sequences.begin[picked], rows, span, mesh
        )
        answered = jnp.maximum(jnp.sum(batch.inside), 1)
        loss, grads = jax.tree.map(lambda x: x / answered, gradient(s.trainable, batch, used))
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, moved = tx.update(grads, s.optimizer, s.trainable)
        rate = learning_rate(params, s.step, steps)
        updated = jax.tree.map(lambda t, u: t - rate * u, s.trainable, updates)
        trained, state = trouble.keep(good, (updated, moved), (s.trainable, s.optimizer))
        before = jnp.where(good & jnp.isnan(s.before), loss, s.before)
        counted = jnp.stack([s.step < tenth, s.step >= steps - tenth]) & good
        tokens = s.tokens + jnp.sum(lengths)
        _tell(on_step, s.step + 1, steps, tokens)
        return _Fitting(
            s.step + 1, trained, state, order, before,
            s.loss + jnp.where(counted, loss, 0.0), s.counted + counted, tokens,
            s.trouble.noted(good, s.step, jnp.where(at < count, picked, -1), loss, norm),
        )  # fmt: skip

    def stopped(s: _Fitting) -> jax.Array:
        return (s.trouble.count > 0) & (params.on_divergence == _STOP)

    order, two = jnp.zeros(sequences.valid.shape, jnp.int32), jnp.zeros(2)
    zero, nothing = jnp.int32(0), trouble.Trouble.none(b)
    begin = _Fitting(
        zero, trainable, tx.init(trainable), order, jnp.float32(jnp.nan), two, two, zero, nothing
    )
    done = jax.lax.while_loop(lambda s: (s.step < steps) & ~stopped(s), body, begin)
    first, last = done.loss / done.counted
    dropped = trouble.diverged(done.before, last, model.config.vocab_size)
    dropped = (steps > 0) & (dropped | stopped(done) | ~trouble.finite(done.trainable))
    return Fit(
        trouble.keep(~dropped, done.trainable, trainable), steps, first, last, done.tokens,
        done.trouble._replace(dropped=dropped),
    )  # fmt: skip


def _tell(
    on_step: Callable[..., None] | None, step: jax.Array, steps: jax.Array, tokens: jax.Array
) -> None:
    """Calls the host every twentieth of the steps: it has more to do than to listen."""
    if on_step is not None:
        every = jnp.maximum(steps // 20, 1)
        jax.lax.cond(
            step % every == 0,
            lambda: jax.debug.callback(on_step, step, steps, tokens),
            lambda: None,
        )


def _packed(
    ids: jax.Array, lengths: jax.Array, begin: jax.Array, rows: int, span: int, mesh: Mesh
) -> tuple[packing.Streams, jax.Array]:
    """The batch dealt out to the devices it is spread over, each with streams of its own.

    So neither a row's keys and values nor what the loss reads of it is another device's.

    Returns:
      The streams, with an axis of devices before all others, and how many the longest of them has.
    """
    devices = mesh_lib.batch_devices(mesh)

    def dealt(x: jax.Array) -> jax.Array:
        return x.reshape(-1, devices, *x.shape[1:]).swapaxes(0, 1)

    pack = functools.partial(packing.streams, rows=rows // devices, span=span)
    streams, used = jax.vmap(pack)(dealt(ids), dealt(lengths), dealt(begin))
    return streams, jnp.max(used)


def _laid_out(streams: packing.Streams, rows: int, mesh: Mesh) -> packing.Streams:
    """One stream a device, where it is to be; ids and positions in rows."""

    def spread(x: jax.Array) -> jax.Array:
        return mesh_lib.constrain(x, mesh, mesh_lib.BATCH, None)

    streams = streams._replace(
        ids=streams.ids.reshape(rows, -1), positions=streams.positions.reshape(rows, -1)
    )
    return jax.tree.map(spread, streams)
