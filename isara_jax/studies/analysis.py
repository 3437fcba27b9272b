"""From cells to what a study says: means over random seeds, and differences on the same items.

Pure arithmetic on records (`record`); nothing here knows of models or files.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isara_jax.studies import bootstrap, record
from isara_jax.studies.record import Record

ISARA, REFERENCE = "isara", "reference"
_DIGITS = 5
_ORDER = (
    "base", "icl_random", "icl_fixed", "icl_knn", "sft", "sft_longest", "sft_best", "one_round",
)  # fmt: skip
Group = dict[str, Any]
Rows = dict[str, Mapping[str, Any]]


def of_cells(
    records: Iterable[Record], axis: str, levels: Sequence[str], reference: str | None
) -> list[Group]:
    """What is said of each domain, model and level.

    Args:
      records: of the cells.
      axis: the label that levels are of, or empty.
      levels: in their order.
      reference: the level with whose ISARA the others' is compared, or None.

    Returns:
      For each group its `labels`, how many seeds and items there are, and

      | key | holds |
      |---|---|
      | `metrics` | `{metric: {..., methods, isara_minus}}`, both `{method: estimate}` |
      | `parts` | `{metric: {method: mean over seeds}}` of all that was measured |
      | `iterations` | means over seeds of what was accepted, and how diverse it was |

      where an estimate is `mean`, `low` and `high` of its 95 % interval, and `per_seed`.
    """
    groups: dict[tuple, dict[int, Record]] = {}
    for r in records:
        others = {name: label for name, label in r["labels"].items() if name != "seed"}
        groups.setdefault(tuple(others.items()), {})[r["labels"]["seed"]] = r
    known = {level: number for number, level in enumerate(levels)}

    def place(key: tuple) -> tuple:
        labels = dict(key)
        return labels["domain"], labels["model"], known.get(labels.get(axis), 0)

    found = []
    for key in sorted(groups, key=place):
        labels = dict(key)
        of_reference = {}
        if reference is not None and labels[axis] != reference:
            of_reference = groups.get(tuple((labels | {axis: reference}).items()), {})
        found.append(_group(labels, groups[key], of_reference))
    return found


def _group(
    labels: Mapping[str, str], by_seed: Mapping[int, Record], reference: Mapping[int, Record]
) -> Group:
    seeds = sorted(by_seed)
    records = [by_seed[seed] for seed in seeds]
    rows = [methods(r) for r in records]
    compared = [_with_reference(r, rows, reference.get(s)) for r, s, rows in zip(
        records, seeds, rows, strict=True
    )]  # fmt: skip
    about = records[0]["headline"]
    return {
        "labels": dict(labels),
        "random_seeds": seeds,
        "seeds": records[0]["n_seeds"],
        "same_items": len({r["items"] for r in records}) == 1,
        "metrics": {name: _metric(name, about[name], records, compared) for name in about}
        | _by_topic(about, records, compared),
        "parts": _parts(rows),
        "iterations": _iterations(records),
    }


def methods(r: Record) -> Rows:
    """A run's rows by method: `isara` is the last iteration, `isara_1` the first of several.

    Of fine-tuning on the seeds `sft_longest` is the longest (with the default lengths as long as
    ISARA), and `sft` the one that validation seeds chose; where they chose none, `sft_best` is the
    best on the held-out questions themselves.
    """
    metric, about = next(iter(r["headline"].items()))
    sign = -1 if about["higher_is_better"] is False else 1
    rows = r["rows"]
    sft = sorted((row for row in rows if row["method"] == "sft"), key=lambda row: row["steps"])
    isara = [row for row in rows if row["method"] == ISARA]
    found = {row["method"]: row for row in rows if row["method"] not in ("sft", ISARA)}
    if sft:
        values = [row["metrics"][metric] for row in sft]
        scores = [-math.inf if value is None else sign * value for value in values]
        chosen = [row for row in sft if row.get("chosen_on")]
        found |= {"sft": chosen[0]} if chosen else {"sft_best": sft[int(np.argmax(scores))]}
        found["sft_longest"] = sft[-1]
    ordered = {name: found[name] for name in _ORDER if name in found} | found
    ordered |= {f"{ISARA}_{row['iteration']}": row for row in isara[:-1]}
    return ordered | {ISARA: isara[-1]}


def _with_reference(r: Record, rows: Rows, reference: Record | None) -> Rows:
    """The rows, and ISARA's of the reference on the same items."""
    if reference is None or reference["items"] != r["items"]:
        return rows
    return rows | {REFERENCE: methods(reference)[ISARA]}


def _metric(
    name: str, about: Mapping[str, Any], records: Sequence[Record], rows: Sequence[Rows],
    kept: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Estimates of a metric, of the items that are `kept` for each seed, or of all."""
    names = [m for m in rows[0] if all(_is_finite(of_seed.get(m), name) for of_seed in rows)]
    values, weights = [], []
    for i, of_seed in enumerate(rows):
        found = [record.outcomes(of_seed[method], name) for method in names]
        columns = slice(None) if kept is None else kept[i]
        values.append(np.stack([v[columns] for v, _ in found]))
        weights.append(found[0][1][columns])
    same_items = len({r["items"] for r in records}) == 1
    per_seed = bootstrap.means(values, weights)
    clusters = _clusters(records[0])
    if kept is not None and clusters is not None:
        clusters = clusters[kept[0]]
    draws = bootstrap.resampled(values, weights, same_items, clusters if same_items else None)
    last = names.index(ISARA)

    low, high = (0, 1) if about["share"] else (-math.inf, math.inf)

    def estimates(per_seed: np.ndarray, draws: bootstrap.Draws, low: float) -> dict[str, Any]:
        return {
            name: _estimate(per_seed[:, m], draws, m, (low, high)) for m, name in enumerate(names)
        }

    differences = estimates(per_seed[:, [last]] - per_seed, draws.differences(last), -high)
    return {
        **about,
        "items": len(weights[0]),
        "methods": estimates(per_seed, draws, low),
        "isara_minus": {method: e for method, e in differences.items() if method != ISARA},
    }


def _clusters(r: Record) -> np.ndarray | None:
    return None if r["clusters"] is None else np.asarray(r["clusters"])


def _is_finite(row: Mapping[str, Any] | None, metric: str) -> bool:
    """Whether there is a row, and all that it measured are numbers: it may have diverged."""
    return row is not None and bool(np.isfinite(record.outcomes(row, metric)[0]).all())


def _estimate(
    per_seed: np.ndarray, draws: bootstrap.Draws, method: int, bounds: tuple[float, float]
) -> dict[str, Any]:
    found = bootstrap.interval(float(per_seed.mean()), draws, method, bounds)
    mean, low, high = (round(x, _DIGITS) if math.isfinite(x) else None for x in found)
    return {"mean": mean, "low": low, "high": high, "per_seed": np.round(per_seed, 5).tolist()}


def _by_topic(
    about: Mapping[str, Any], records: Sequence[Record], rows: Sequence[Rows]
) -> dict[str, Any]:
    """The headline's metrics on items of topics that seeds have, and of the other ones."""
    if any(r["seen"] is None for r in records):
        return {}
    seen = [record.bits(r["seen"]) == 1 for r in records]
    found = {}
    for name, what in about.items():
        for words, kept in (("seen", seen), ("unseen", [~columns for columns in seen])):
            if not all(columns.any() for columns in kept):
                continue
            titled = {**what, "title": f"{what['title']}, {words} topics"}
            found[f"{name}_{words}"] = _metric(name, titled, records, rows, kept)
    return found


def _parts(rows: Sequence[Rows]) -> dict[str, dict[str, float | None]]:
    names = [method for method in rows[0] if all(method in of_seed for of_seed in rows)]
    return {
        metric: {m: _mean(of_seed[m]["metrics"].get(metric) for of_seed in rows) for m in names}
        for metric in rows[0][ISARA]["metrics"]
    }


def _iterations(records: Sequence[Record]) -> list[dict[str, float | None]]:
    """Means over seeds, of as many iterations as all have."""
    return [
        {name: _mean(entry[name] for entry in of_seeds) for name in of_seeds[0]}
        for of_seeds in zip(*(r["iterations"] for r in records), strict=False)
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of what is known."""
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), _DIGITS) if known else None
