"""Means over random seeds and items with their uncertainty, by the crossed bootstrap."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

DRAWS = 10_000
_LEVEL = 0.95


class Draws(NamedTuple):
    """Values of M methods found on what was resampled: `[DRAWS, M]` each.

    Attributes:
      all: seeds and items resampled.
      parts: one of them resampled alone, and how many of it there are.
    """

    all: np.ndarray
    parts: tuple[tuple[np.ndarray, int], ...]

    def differences(self, method: int) -> "Draws":
        """One method minus each, draw by draw: what they have in common falls out."""
        all_, *parts = (x[:, [method]] - x for x in (self.all, *(part for part, _ in self.parts)))
        return Draws(all_, tuple((x, n) for x, (_, n) in zip(parts, self.parts, strict=True)))


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
) -> Draws:
    """The mean over seeds of `means`, for resampled seeds and items.

    Where all seeds have the same items, seeds and items are drawn with replacement, each for
    itself, the same ones for all methods: the pigeonhole bootstrap (Owen, Annals of Applied
    Statistics 1, 2007, 386-411). It counts what is neither the seed's nor the item's up to three
    times, so that intervals are rather too wide than too narrow. Where each seed has items of its
    own, seeds alone are drawn, whose means have the noise of their items already (Davison and
    Hinkley, Bootstrap Methods, 1997, section 3.8). Of a single seed the items alone are. The draws
    are the same at every call.

    Args:
      values: as for `means`.
      weights: as for `means`.
      same_items: whether column n is the same item for all seeds.
    """
    n_seeds, n_items, found = len(values), len(weights[0]), means(values, weights)
    drawn_seeds = _drawn("seeds", n_seeds) / n_seeds
    of_seeds = (drawn_seeds @ found, n_seeds)
    if not (same_items or n_seeds == 1):
        return Draws(of_seeds[0], (of_seeds,))
    drawn_items = _drawn("items", n_items)
    totals = (drawn_items @ np.concatenate(values).T).reshape(DRAWS, *found.shape)
    rates = totals / (drawn_items @ np.stack(weights).T)[..., None]  # [DRAWS, S, M]
    of_both = np.einsum("ds,dsm->dm", drawn_seeds, rates)
    return Draws(of_both, (of_seeds, (rates.mean(axis=1), n_items)))


@functools.lru_cache(maxsize=4)
def _drawn(what: str, n: int) -> np.ndarray:
    """How often each of n is drawn, `[DRAWS, n]`."""
    rng = np.random.default_rng(list(what.encode()))
    return rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64)


def interval(value: float, draws: Draws, method: int) -> Interval:
    """The 95 % interval of a value by the percentiles of its draws.

    Percentiles of a mean of few are too narrow, by the bias of the variance and by what Student's t
    has beyond the normal distribution: five seeds would be covered 85 %. So they are taken further
    out (Hesterberg, The American Statistician 69, 2015, 371-386: the expanded percentile interval),
    by the degrees of freedom that the variances of seeds and of items have together (Satterthwaite,
    Biometrics Bulletin 2, 1946, 110-114). Simulated with five seeds they cover 93 to 99 %, most
    where seeds and items matter least.

    Args:
      value: as found.
      draws: the same, resampled.
      method: its column.
    """
    variances = [(part[:, method].var(), n) for part, n in draws.parts if n > 1]
    if not variances:
        return Interval(value, -math.inf, math.inf)
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return Interval(value, value, value)
    freedom = total**2 / sum(variance**2 / (n - 1) for variance, n in variances)
    t = float(scipy.special.stdtrit(freedom, (1 + _LEVEL) / 2))
    tail = float(scipy.special.ndtr(-math.sqrt((freedom + 1) / freedom) * t))
    low, high = np.quantile(draws.all[:, method], [tail, 1 - tail])
    return Interval(value, float(low), float(high))
