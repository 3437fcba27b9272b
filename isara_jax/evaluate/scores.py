"""Rates and means with their uncertainty, and differences of two methods on the same items."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from isara_jax.tasks import base

_Z = 1.959964  # the normal quantile of a 95 % interval
_NO_INTERVAL = (None, None)


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share k / n (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends rounding may leave the share outside its interval.
    return (middle - half if k else 0.0), (middle + half if k < n else 1.0)


def paired_shares(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares of the same items.

    Tango's score interval (Statistics in Medicine 17, 1998, 891-908): to two shares what Wilson's
    is to one. It leaves out 0 where McNemar's test rejects, and holds for few items too, and where
    none or all of them change.

    Args:
      old: `[N]` outcomes, 0 or 1; N at least 1.
      new: the same items' under the other method.

    Returns:
      The ends of the interval of `mean(new) - mean(old)`.
    """
    n, gained, lost = len(old), int((new > old).sum()), int((new < old).sum())

    def outside(difference: float) -> float:
        """Below 0 where the score test does not reject the difference."""
        b = (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share_lost = (math.sqrt(max(b * b - 8 * n * c, 0)) - b) / (4 * n)
        variance = n * (2 * share_lost + difference * (1 - difference))
        return (gained - lost - n * difference) ** 2 - _Z * _Z * variance

    found, inside = (gained - lost) / n, 1e-9
    ends = []
    for side in (-1, 1):
        near = found + side * inside
        known = abs(near) < 1 and outside(near) < 0
        ends.append(scipy.optimize.brentq(outside, near, side) if known else found)
    return ends[0], ends[1]


def ratio(
    values: np.ndarray, weights: np.ndarray
) -> tuple[float, tuple[float, float] | tuple[None, None]]:
    """`sum(values) / sum(weights)` and its 95 % interval: a mean, where all weights are 1.

    The ratio estimator's linearised variance (Cochran, Sampling Techniques, 1977, chapter 6) with
    Student's t of N - 1 degrees of freedom. None for both ends where it cannot be known: one
    item, or several that are all alike.

    Args:
      values: `[N]`, N at least 1.
      weights: `[N]`.
    """
    n, total = len(values), float(weights.sum())
    value = float(values.sum()) / total
    residuals = values - value * weights
    if n < 2 or np.abs(residuals).max() <= 1e-9 * np.abs(values).max():
        return value, _NO_INTERVAL
    spread = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total
    half = float(scipy.special.stdtrit(n - 1, 0.975)) * spread
    return value, (value - half, value + half)


Row = dict[str, dict[str, Any]]
"""What is measured of a model, by the metrics' names.

| key | holds |
|---|---|
| `metrics` | the value, None where there was nothing to measure |
| `counts` | `[k, n]` of shares |
| `intervals` | `[low, high]`, both None where unknown |
| `sizes` | n of what is no share |
| `items` | `[values, weights]`, a value an item, in the items' order; weights None: all 1 |
"""
_KEYS = ("metrics", "counts", "intervals", "sizes", "items")


def of_outcomes(name: str, outcomes: Sequence[bool]) -> Row:
    """A share, None of nothing.

    Args:
      name: of the metric.
      outcomes: whether it holds, of each item.
    """
    k, n = sum(map(bool, outcomes)), len(outcomes)
    return merge() | {
        "metrics": {name: k / n if n else None},
        "counts": {name: [k, n]},
        "intervals": {name: list(wilson(k, n) if n else _NO_INTERVAL)},
        "items": {name: [[int(x) for x in outcomes], None]},
    }


def of_means(name: str, values: np.ndarray, weights: np.ndarray | None = None) -> Row:
    """The mean of `values [N]`, or `sum(values) / sum(weights)`, as `ratio` has it."""
    values = values.astype(np.float64)
    ones = np.ones(len(values))
    mean, bounds = ratio(values, ones if weights is None else weights.astype(np.float64))
    return merge() | {
        "metrics": {name: mean},
        "intervals": {name: list(bounds)},
        "sizes": {name: len(values)},
        "items": {name: [values.tolist(), None if weights is None else weights.tolist()]},
    }


def of_likelihood(log_likelihood: np.ndarray, tokens: np.ndarray) -> Row:
    """Mean negative log-likelihood in nats a token over the held-out answers `[N]`."""
    return of_means("nll_per_token", -log_likelihood, tokens)


def merge(*rows: Row) -> Row:
    """All metrics of some rows."""
    return {key: {n: v for row in rows for n, v in row[key].items()} for key in _KEYS}


def renamed(row: Row, suffix: str) -> Row:
    """A row with `suffix` behind the name of every metric."""
    return {key: {name + suffix: v for name, v in part.items()} for key, part in row.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """`{metric: [new - old, low, high]}`, of what both measure on the same items, within 95 %.

    What items have in common, that some are hard for every model, falls out of the difference. Of
    shares the interval is that of `paired_shares`, else that of `ratio`.
    """
    found = {}
    for name, (after, weights) in new.get("items", {}).items():
        before, known = old.get("items", {}).get(name, (None, None))
        if not after or before is None or len(before) != len(after) or known != weights:
            continue
        a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
        if name in new["counts"]:
            value, bounds = float(b.mean() - a.mean()), paired_shares(a, b)
        else:
            ones = np.ones(len(a))
            value, bounds = ratio(b - a, ones if weights is None else np.asarray(weights))
        found[name] = [value, *bounds]
    return found


def compared(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table with differences in the place of the items' values.

    `differences` holds, under `base` and `isara`, what `differences` finds between the row and the
    base model, and between it and the last iteration.

    Args:
      rows: in the table's order, each with its `method`.
    """
    known = {row["method"]: row for row in rows}  # the last of each
    found = []
    for row in rows:
        others = {m: known[m] for m in ("base", "isara") if known.get(m, row) is not row}
        kept = {key: value for key, value in row.items() if key != "items"}
        found.append(kept | {"differences": {m: differences(o, row) for m, o in others.items()}})
    return found


def of_labels(
    metrics: Sequence[base.Metric], items: Sequence[base.Item], labels: Sequence[str]
) -> Row:
    """Every metric of a task.

    Args:
      metrics: of the task.
      items: the questions.
      labels: the judge's, in the same order.
    """
    rows = []
    for metric in metrics:
        outcomes = [
            label in metric.labels
            for item, label in zip(items, labels, strict=True)
            if metric.kind in (None, item.kind)
        ]
        rows.append(of_outcomes(metric.name, outcomes))
    return merge(*rows)


def by_topic(
    metric: base.Metric, items: Sequence[base.Item], labels: Sequence[str]
) -> dict[str, list[int]]:
    """`{topic: [k, n]}` of one metric."""
    counts: dict[str, list[int]] = {}
    for item, label in zip(items, labels, strict=True):
        if metric.kind in (None, item.kind):
            entry = counts.setdefault(item.topic, [0, 0])
            entry[0] += label in metric.labels
            entry[1] += 1
    return dict(sorted(counts.items()))
