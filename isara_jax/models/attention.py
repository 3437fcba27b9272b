"""Attention: of a chunk or a stream to itself, and of one token to a cache.

Shapes: B batch, T tokens, S cache length, H heads, K key/value heads, h head size, G = H / K.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from isara_jax.devices import mesh as mesh_lib


class Quantised(NamedTuple):
    """One half of a cache in 8 bits: `values` int8, and a `scale` for each token and head."""

    values: jax.Array
    scale: jax.Array


Half = jax.Array | Quantised

LayerCache = tuple[Half, Half]
"""Keys and values of one layer, `[S, B, K, h]` or, by `Settings.order`, `[B, K, S, h]`.

Row s of column b holds position s of sequence b. A column is valid below its own length:

    s=0  s=1  s=2  s=3        lengths
    BOS  How  do   .      b=0   3     (position 3 is free; its content is never attended)
    BOS  .    .    .      b=1   1

A layer that sees a window of W positions keeps no more: position p lies in row p mod W, over that
which has left the window.
"""

QUERY_BLOCKS, SMALLEST_BLOCK = 8, 128  # of a chunk
STREAM_BLOCKS = 4  # of a stream's row


@dataclasses.dataclass(frozen=True)
class Settings:
    """How attention is computed on the devices there are.

    Attributes:
      order: axes of a cache. `SBKh` on accelerators: a decoding step writes one row a sequence, and
        in this order XLA does so in place. `BKSh` on CPUs, whose matrix products want each head's
        rows together; any other order they copy whole, in every step.
      int8: caches hold 8 bits.
      cudnn: chunks attend by cuDNN's fused kernel, which keeps no scores.
      row_by_row: a chunk's rows attend one after the other, so that a CPU's caches hold the scores;
        where rows are spread over devices, each would have to compute all of them.
      read: rows of a cache that a step reads; 0 for all.
    """

    order: str = "SBKh"
    int8: bool = False
    cudnn: bool = False
    row_by_row: bool = False
    read: int = 0


class Scores(NamedTuple):
    """What becomes of the products of queries and keys.

    Attributes:
      scale: their factor; 0 for 1 / sqrt(h).
      cap: c of the soft cap c tanh(x / c), 0 for none.
      window: positions that a query sees, its own among them; 0 for all.
    """

    scale: float = 0.0
    cap: float = 0.0
    window: int = 0

    def of(self, products: jax.Array, size: int) -> jax.Array:
        """The scores, in f32, of heads of `size`."""
        scores = products * (self.scale or size**-0.5)
        return self.cap * jnp.tanh(scores / self.cap) if self.cap else scores


def settings(mesh: Mesh, dtype: Any, head_size: int, kv_cache: str = "auto") -> Settings:
    """The fastest that the devices can do.

    Args:
      mesh: the devices.
      dtype: of activations.
      head_size: h.
      kv_cache: `config.Config.kv_cache`.
    """
    # cuDNN's kernel wants half precision, rows of 16 bytes, and an Ampere GPU or newer.
    fused = mesh_lib.gpu_generation(mesh.devices.flat[0]) >= 8.0 and jnp.dtype(dtype).itemsize == 2
    fused &= head_size % 8 == 0 and head_size <= 128
    on_cpu = mesh_lib.on_cpu(mesh)
    return Settings(
        order="BKSh" if on_cpu else "SBKh",
        int8=kv_cache == "int8",
        cudnn=fused,
        row_by_row=on_cpu and mesh_lib.batch_devices(mesh) == 1,
    )


def attend(
    how: Settings,
    scores: Scores,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    cache: LayerCache | None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, LayerCache]:
    """Attention of a chunk or a stream to itself (no cache), or of one token to its cache.

    Args:
      how: the way it is computed.
      scores: what becomes of products.
      q: `[B, T, H, h]`.
      k: `[B, T, K, h]`.
      v: `[B, T, K, h]`.
      positions: `[B, T]`.
      cache: of S rows, or None for a chunk that starts its sequences.
      segments: `[P, C]` of P streams of which the chunk is the rows, or None.

    Returns:
      `[B, T, H * h]`, and the cache with this token or, without one, of the chunk's T rows.
    """
    if cache is not None:
        ring = positions % _rows(how, cache) if scores.window else positions
        cache = write(how, cache, (k, v), ring)
        y = attend_to_cache(how, scores, q, cache, positions)
    else:
        cache = of_chunk(how, k), of_chunk(how, v)
        if segments is None:
            y = causally(how, scores, q, k, v)
        else:
            y = _in_stream(how, scores)(q, k, v, segments)
    return y.reshape(*y.shape[:2], -1), cache


def causally(how: Settings, scores: Scores, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention of a right-padded chunk to itself: `[B, T, H, h]`.

    Padding stands after the tokens, so causality alone keeps it from being read. Without a fused
    kernel queries are taken in blocks, each with the keys that one of them sees: fewer scores exist
    at once, and most of those that are forbidden are never computed.
    """
    if how.cudnn and not scores.cap:  # its kernel has no cap
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, scale=scores.scale or None, implementation="cudnn",
            local_window_size=(scores.window - 1, 0) if scores.window else None,
        )  # fmt: skip
    length, window = q.shape[1], scores.window
    block = max(SMALLEST_BLOCK, -(-length // QUERY_BLOCKS))

    def in_blocks(heads: Heads) -> jax.Array:
        parts = []
        for start in range(0, length, block):
            end = min(start + block, length)
            first = max(0, start - window + 1) if window else 0
            keys, queries = jnp.arange(first, end), jnp.arange(start, end)[:, None]
            parts.append(_mix(scores, heads.block(first, start, end), _seen(keys, queries, window)))
        return jnp.concatenate(parts, axis=-2)

    heads = Heads.of(q, k, v)
    return _tokens_first(jax.lax.map(in_blocks, heads) if how.row_by_row else in_blocks(heads))


def _seen(keys: jax.Array, queries: jax.Array, window: int) -> jax.Array:
    """Whether a key's position is one that a query sees."""
    seen = keys <= queries
    return seen & (keys > queries - window) if window else seen


def _in_stream(how: Settings, scores: Scores) -> Callable[..., jax.Array]:
    """`in_stream`; on accelerators its scores are computed again for the gradient, not kept.

    They are a third of all that a step keeps, and a hundredth of what it computes.
    """
    attend = functools.partial(in_stream, scores)
    return attend if how.row_by_row else jax.checkpoint(attend)


def in_stream(
    scores: Scores, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> jax.Array:
    """Causal attention inside the segments of streams that are cut into rows of T tokens.

    No segment is longer than a row. So each quarter of a row sees itself and the row's length
    before it, or what is left of that in its window, in the same stream:

        row before   . . . . . . . .
        row          . . . . . . . .
        keys             k k k k k          of the third quarter, q
        queries                  q

    Args:
      scores: what becomes of products.
      q: `[R, T, H, h]`.
      k: `[R, T, K, h]`.
      v: `[R, T, K, h]`.
      segments: `[P, C]` of P streams, C a multiple of T, and T of `STREAM_BLOCKS`.

    Returns:
      `[R, T, H, h]`.
    """
    streams, length = segments.shape[0], q.shape[1]
    block = length // STREAM_BLOCKS
    before = min(length, scores.window - 1) if scores.window else length

    def windows(x: jax.Array, first: int = 0) -> jax.Array:
        """`[R, T, ...]` as `[R * STREAM_BLOCKS, before + block, ...]`."""
        x = x.reshape(streams, -1, *x.shape[1:])
        last = jnp.roll(x, 1, axis=1).at[:, 0].set(first)
        both = jnp.concatenate([last, x], axis=2)
        starts = range(length - before, 2 * length - before, block)
        parts = [both[:, :, start : start + before + block] for start in starts]
        return jnp.stack(parts, axis=2).reshape(-1, before + block, *x.shape[3:])

    own, seen = segments.reshape(-1, block), windows(segments.reshape(-1, length), first=-1)
    keys, queries = jnp.arange(before + block), before + jnp.arange(block)[:, None]
    visible = _seen(keys, queries, scores.window) & (own[:, :, None] == seen[:, None])
    heads = Heads.of(q.reshape(-1, block, *q.shape[2:]), windows(k), windows(v))
    return _tokens_first(_mix(scores, heads, visible[:, None, None])).reshape(q.shape)


class Heads(NamedTuple):
    """Queries `[..., K, G, t, h]`, keys `[..., K, h, T]` and values `[..., K, T, h]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, v: jax.Array) -> "Heads":
        """Of queries `[B, t, H, h]`, keys and values `[B, T, K, h]`."""
        grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3]).transpose(0, 2, 3, 1, 4)
        return cls(grouped, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))

    def block(self, first: int, start: int, end: int) -> "Heads":
        """The queries of a block, and the keys and values from `first` up to its end."""
        return Heads(self.q[..., start:end, :], self.k[..., first:end], self.v[..., first:end, :])


def _tokens_first(y: jax.Array) -> jax.Array:
    """`[B, K, G, T, h]` as `[B, T, H, h]`."""
    return y.transpose(0, 3, 1, 2, 4).reshape(y.shape[0], y.shape[3], -1, y.shape[4])


def _mix(scores: Scores, heads: Heads, visible: jax.Array) -> jax.Array:
    """Attention where `visible [..., t, T]`: `[..., K, G, t, h]`.

    The sum of the exponentials divides the mixed values, which are fewer than the scores: nothing
    the size of the scores is divided, and their gradient needs no sum over them.
    """
    product = jnp.einsum(
        "...KGth,...Khs->...KGts", heads.q, heads.k, preferred_element_type=jnp.float32
    )
    found = jnp.where(visible, scores.of(product, heads.q.shape[-1]), -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(found, axis=-1, keepdims=True))
    weights = jnp.exp(found - largest)
    mixed = jnp.einsum(
        "...KGts,...Ksh->...KGth", weights.astype(heads.v.dtype), heads.v,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(heads.q.dtype)


def attend_to_cache(
    how: Settings, scores: Scores, q: jax.Array, cache: LayerCache, positions: jax.Array
) -> jax.Array:
    """Attention of one new token a sequence to its cache.

    Args:
      how: the way it is computed.
      scores: what becomes of products.
      q: `[B, 1, H, h]`.
      cache: keys and values of S rows, this token's included.
      positions: `[B, 1]`, the new token's position; rows beyond it are not read.

    Returns:
      `[B, 1, H, h]`.
    """
    keys, values = (_rows_read(how, half) for half in cache)
    batch, _, heads, size = q.shape
    kv_heads = _leaf(keys).shape[how.order.index("K")]
    grouped = q.reshape(batch, kv_heads, -1, size)
    products = jnp.einsum(
        f"BKGh,{how.order}->BKGS", grouped, _numbers(keys, q.dtype),
        preferred_element_type=jnp.float32,
    ) * _scale(how, keys)  # fmt: skip
    held, at = jnp.arange(products.shape[-1]), positions[:, :, None, None]
    if scores.window:  # what a row of the ring holds: its last position up to the token's
        held = at - (at - held) % _rows(how, cache)
        visible = (held >= 0) & (held > at - scores.window)
    else:
        visible = held <= at
    weights = jax.nn.softmax(jnp.where(visible, scores.of(products, size), -jnp.inf))
    weights = (weights * _scale(how, values)).astype(q.dtype)
    out = jnp.einsum(f"BKGS,{how.order}->BKGh", weights, _numbers(values, q.dtype))
    return out.reshape(batch, 1, heads, size)


# --- the cache -----------------------------------------------------------------------------------


def empty(how: Settings, length: int, batch: int, kv_heads: int, size: int, dtype: Any) -> Half:
    """One half of a layer's cache, for S = `length` rows of `batch` sequences."""
    extent = {"S": length, "B": batch, "K": kv_heads, "h": size}
    shape = tuple(extent[axis] for axis in how.order)
    if not how.int8:
        return jnp.zeros(shape, dtype)
    return Quantised(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:3], jnp.float32))


def of_chunk(how: Settings, x: jax.Array) -> Half:
    """A chunk's keys or values `[B, T, K, h]` as half a cache of T rows.

    In 8 bits each token and head has its scale, so that its largest value becomes 127.
    """
    x = jnp.einsum(f"BSKh->{how.order}", x)
    if not how.int8:
        return x
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1), 1e-6) / 127
    return Quantised(jnp.round(wide / scale[..., None]).astype(jnp.int8), scale)


def write(how: Settings, cache: LayerCache, new: LayerCache, rows: jax.Array) -> LayerCache:
    """Writes one token's keys and values `[B, 1, K, h]` into `rows [B, 1]`."""
    batch = rows.shape[0]
    at = _index(how, S=rows[:, 0], B=jnp.arange(batch))
    axis = how.order.index("S")

    def put(old: jax.Array, fresh: jax.Array) -> jax.Array:
        row = jnp.squeeze(fresh, axis)
        return old.at[at].set(row, mode="drop", unique_indices=True)

    return jax.tree.map(put, cache, tuple(of_chunk(how, half) for half in new))


def insert(how: Settings, cache: Any, chunk: Any, columns: jax.Array, lengths: jax.Array) -> Any:
    """Writes chunks' caches of P rows into `columns [R]`; those out of range are dropped.

    Where the cache has S < P rows, it takes the last S of each chunk's own `lengths [R]`.

    Args:
      how: the way it is computed.
      cache: halves of S rows and B columns.
      chunk: like halves of P rows and R columns.
      columns: which, all different; those from B on are dropped.
      lengths: tokens of each chunk; behind them is padding.
    """
    rows = min(_rows(how, cache), _rows(how, chunk))
    if rows < _rows(how, chunk):
        chunk = _last(how, chunk, rows, lengths)
    at = _index(how, S=slice(rows), B=columns)
    put = lambda old, new: old.at[at].set(new, mode="drop", unique_indices=True)  # noqa: E731
    return jax.tree.map(put, cache, chunk)


def _last(how: Settings, chunk: Any, rows: int, lengths: jax.Array) -> Any:
    """The last `rows` positions of each column's own `lengths [R]`, as a ring holds them."""
    end, row = lengths[:, None] - 1, jnp.arange(rows)
    positions = jnp.maximum(end - (end - row) % rows, 0)  # [R, rows]; below 0 is never read
    in_order = positions if how.order.index("B") < how.order.index("S") else positions.T

    def taken(x: jax.Array) -> jax.Array:
        others = [i for i, name in enumerate(how.order[: x.ndim]) if name not in "SB"]
        index = jnp.expand_dims(in_order, others)
        return jnp.take_along_axis(x, index, axis=how.order.index("S"))

    return jax.tree.map(taken, chunk)


def _rows(how: Settings, cache: Any) -> int:
    """S of a cache, or of one half of it."""
    return jax.tree.leaves(cache)[0].shape[how.order.index("S")]


def _index(how: Settings, **at: jax.Array | slice) -> tuple:
    """An index of a cache, and of its scales, by the names of axes."""
    return tuple(at.get(axis, slice(None)) for axis in how.order[:3])


def _rows_read(how: Settings, half: Half) -> Half:
    """The rows that a step reads; of a ring all, once it may be full."""
    if not how.read or how.read >= _rows(how, half):
        return half
    axis = how.order.index("S")
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, how.read, axis=axis), half)


def _leaf(half: Half) -> jax.Array:
    return half.values if isinstance(half, Quantised) else half


def _numbers(half: Half, dtype: Any) -> jax.Array:
    return _leaf(half).astype(dtype)


def _scale(how: Settings, half: Half) -> jax.Array | float:
    """`[B, K, 1, S]`, or 1."""
    if not isinstance(half, Quantised):
        return 1.0
    return jnp.einsum(f"{how.order[:3]}->BKS", half.scale)[:, :, None]
