"""The least that a stage must do: operations, and bytes to and from memory.

| stage | operations a token | bytes |
|---|---|---|
| prefill | 2 N, causal attention | weights once |
| decode | 2 (N + head), attention to what came before | weights a step, keys and values |
| train | 4 N and, of an answer's token, 4 head; attention | |

N are the parameters of the blocks' matrices. Where the base has a gradient, 4 is 6. Tokens that are
padding do not count. A decoding step serves all slots.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from isara_jax.models import decoder


class Work(NamedTuple):
    """The least a stage must do."""

    tokens: float
    flops: float
    bytes: float


class Counts(NamedTuple):
    """Parameters of the blocks' matrices and of the head; bytes of an entry of the cache."""

    blocks: int
    head: int
    attention: int  # operations a token and a token it sees, one layer
    cache_bytes: int  # a token, one layer
    itemsize: float  # of a weight; less, where a device has a part of each
    windows: tuple[int, ...]  # of each layer, 0 for all tokens before

    def seen(self, first: np.ndarray, last: np.ndarray) -> float:
        """Tokens that tokens at positions `first [N]` to before `last [N]` see, in all layers."""

        def up_to(length: np.ndarray, window: int) -> np.ndarray:
            within = np.minimum(length, window) if window else length
            return within * (within + 1) / 2 + (length - within) * window

        each = {w: (up_to(last, w) - up_to(first, w)).sum() for w in set(self.windows)}
        return float(sum(each[w] for w in self.windows))

    @classmethod
    def of(cls, model: decoder.Decoder) -> "Counts":
        c, size = model.config, jnp.dtype(model.dtype).itemsize
        h = c.head_size
        return cls(
            blocks=c.n_layers * sum(i * o for i, o in c.linear_shapes.values()),
            head=c.embedding_width * c.vocab_size,
            attention=4 * c.n_heads * c.head_size,
            cache_bytes=2 * c.n_kv_heads * (h + 4 if model.how.int8 else h * size),
            itemsize=size,
            windows=c.windows,
        )


def prefill_work(n: Counts, lengths: np.ndarray) -> Work:
    """Of reading sequences of `lengths [N]`."""
    tokens, seen = lengths.sum(), n.seen(np.zeros_like(lengths), lengths)
    return Work(tokens, 2 * n.blocks * tokens + n.attention * seen, n.blocks * n.itemsize)


def decode_work(n: Counts, prompts: np.ndarray, drawn: np.ndarray, slots: int) -> Work:
    """Of drawing `drawn [N]` tokens after `prompts [N]`, with all slots always busy."""
    tokens, steps = drawn.sum(), drawn.sum() / min(slots, len(drawn))
    seen = n.seen(prompts, prompts + drawn)
    weights = (n.blocks + n.head) * n.itemsize
    return Work(
        tokens,
        2 * (n.blocks + n.head) * tokens + n.attention * seen,
        weights * steps + n.cache_bytes * seen,
    )


def train_work(
    n: Counts, lengths: np.ndarray, begin: np.ndarray, passes: float, *, full: bool
) -> Work:
    """Of `passes` over sequences of `lengths [N]` whose answers begin at `begin [N]`."""
    tokens, seen = lengths.sum(), n.seen(np.zeros_like(lengths), lengths)
    each = 6 if full else 4
    flops = each * (n.blocks * tokens + n.head * (lengths - begin).sum()) + 3 * n.attention * seen
    return Work(tokens * passes, flops * passes, 0.0)
