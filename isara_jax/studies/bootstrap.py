"""Means over random seeds and items with their uncertainty, by the crossed bootstrap."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

DRAWS = 10_000
_LEVEL = 0.95


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def means(values: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Each seed's `sum(values) / sum(weights)`: `[S, M]` of M methods.

    Args:
      values: `[M, N]` of each of the S seeds.
      weights: `[N]` of each.
    """
    return np.stack([v.sum(axis=1) / w.sum() for v, w in zip(values, weights, strict=True)])


def resampled(
    values: Sequence[np.ndarray], weights: Sequence[np.ndarray], same_items: bool
) -> np.ndarray:
    """The mean over seeds of `means`, for resampled seeds and items: `[DRAWS, M]`.

    Where all seeds have the same items, seeds and items are drawn with replacement, each for
    itself, the same ones for all methods: the pigeonhole bootstrap (Owen, Annals of Applied
    Statistics 1, 2007, 386-411), which no crossed design makes too narrow in the limit, and which
    counts what is neither the seed's nor the item's up to three times. Where each seed has items of
    its own, seeds alone are drawn, which carry the noise of their items (Davison and Hinkley,
    Bootstrap Methods, 1997, section 3.8). Of a single seed the items alone are. The draws are the
    same at every call.

    Args:
      values: as for `means`.
      weights: as for `means`.
      same_items: whether column n is the same item for all seeds.
    """
    rng, n_seeds = np.random.default_rng(0), len(values)
    drawn_seeds = _draws(rng, n_seeds) / n_seeds if n_seeds > 1 else np.ones((DRAWS, 1))
    if not (same_items or n_seeds == 1):
        return drawn_seeds @ means(values, weights)
    drawn_items = _draws(rng, len(weights[0]))
    found = np.zeros((DRAWS, len(values[0])))
    for s, (v, w) in enumerate(zip(values, weights, strict=True)):
        found += drawn_seeds[:, s, None] * (drawn_items @ v.T) / (drawn_items @ w)[:, None]
    return found


def _draws(rng: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n is drawn, `[DRAWS, n]`."""
    return rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64)


def interval(value: float, draws: np.ndarray, n: int) -> Interval:
    """The 95 % interval of a value by the percentiles of its `draws [DRAWS]`.

    Percentiles of a mean of few are too narrow, by the bias of the variance and by what Student's t
    has beyond the normal distribution. So they are taken further out (Hesterberg, The American
    Statistician 69, 2015, 371-386: the expanded percentile interval).

    Args:
      value: as found.
      draws: the same, resampled.
      n: how many were resampled, of the few: seeds; of one seed, items.
    """
    if n < 2:
        return Interval(value, -math.inf, math.inf)
    t = float(scipy.special.stdtrit(n - 1, (1 + _LEVEL) / 2))
    tail = float(scipy.special.ndtr(-math.sqrt(n / (n - 1)) * t))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
