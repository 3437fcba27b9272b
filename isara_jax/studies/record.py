"""What a study keeps of a run: `cell.json`, from which everything it says is made.

| key | holds |
|---|---|
| `labels` | of the cell, from the study that reads it |
| `config` | the configuration |
| `n_seeds` | how many seeds there were |
| `items` | a hash of the held-out items: equal ones can be compared item by item |
| `clusters` | a number an item, the same where they ask for the same thing; None of own files |
| `seen` | `1` for each item of a topic that the seeds have, else `0`; None if they have all |
| `headline` | `{metric: {title, higher_is_better, share}}` of what methods are compared by |
| `rows` | `method`, `iteration`, `steps`, what chose them (`chosen_on`), all `metrics`, and \
`outcomes` of the headline's |
| `iterations` | what was attempted, accepted and why not, and how diverse what was drawn was |
| `compiles`, `seconds` | by executable; of the whole run |

The outcomes of a share are a text, `1` or `0` an item; others are `[values, weights]`. What is not
finite is None.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isara_jax import config
from isara_jax.evaluate import diversity, refusals
from isara_jax.files import storage
from isara_jax.host.held_out import NLL
from isara_jax.studies.cells import Cell
from isara_jax.tasks import bundled
from isara_jax.tasks.base import Item

_BUNDLED = "aligned_rate"  # the headline of every bundled domain
_DIGITS = 6
_DRAWN = 100
Record = dict[str, Any]


def of_run(cell: Cell, folder: pathlib.Path, seconds: float) -> Record:
    """The record of a finished run.

    Args:
      cell: what was run.
      folder: of the run.
      seconds: that it took.
    """
    summary = storage.read_json(folder / "summary.json", ours=True)
    data = storage.read_json(folder / "config.json", ours=True)["data"]
    headline = _headline(summary["metrics_info"])
    about = {name: summary["metrics_info"][name] for name in headline}
    rows = _lines(folder / "items.jsonl")
    shares = {name for row in summary["rows"] for name in row["counts"]}
    told = {_where(row): row for row in summary["rows"]}
    return {
        "config": config.to_dict(cell.config),
        "n_seeds": summary["n_seeds"],
        "items": hashlib.sha256(data["held-out items"].encode()).hexdigest()[:8],
        "clusters": _clusters(cell),
        "seen": _seen(cell),
        "headline": {name: a | {"share": name in shares} for name, a in about.items()},
        "rows": [
            {"method": row["method"], "iteration": row["iteration"], "steps": row["steps"]}
            | {"chosen_on": told[_where(row)].get("chosen_on")}
            | {"metrics": {k: _rounded(v) for k, v in told[_where(row)]["metrics"].items()}}
            | {"outcomes": {m: _packed(*row["items"][m], m in shares) for m in headline}}
            for row in rows
        ],
        "iterations": [
            _iteration(entry, _lines(folder / "samples" / f"iteration_{entry['iteration']}.jsonl"))
            for entry in summary["iterations"]
        ],
        "compiles": summary["compiles"],
        "seconds": round(seconds, 1),
    }


def outcomes(row: Mapping[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights `[N]` of a row's items."""
    found = row["outcomes"][metric]
    if isinstance(found, str):
        return bits(found), np.ones(len(found))
    values, weights = found
    known = np.asarray(values, np.float64)  # None: NaN
    return known, np.ones(len(known)) if weights is None else np.asarray(weights)


def bits(text: str) -> np.ndarray:
    """`[0., 1.]` of `"01"`."""
    return np.frombuffer(text.encode(), np.uint8) - float(ord("0"))


def _packed(values: Sequence[float], weights: Sequence[float] | None, share: bool) -> Any:
    if share:
        return "".join(str(int(value)) for value in values)
    return [list(map(_rounded, values)), weights and list(map(_rounded, weights))]


def _headline(known: Mapping[str, Any]) -> list[str]:
    """The metrics that methods are compared by: sampled and greedy rates, and the likelihood."""
    rate = next((name for name in (_BUNDLED, NLL, *known) if name in known), None)
    return [name for name in dict.fromkeys((rate, f"{rate}_greedy", NLL)) if name in known]


def _seen(cell: Cell) -> str | None:
    task = cell.config.task
    if not task.topics:
        return None
    return "".join(str(int(item.topic in task.topics)) for item in _items(cell))


def _clusters(cell: Cell) -> list[int] | None:
    if cell.config.task.seeds:
        return None
    subjects = [bundled.subject(item.question) for item in _items(cell)]
    number = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
    return [number[subject] for subject in subjects]


def _items(cell: Cell) -> tuple[Item, ...]:
    """The held-out items of a cell on the bundled world."""
    task = cell.config.task
    return bundled.bundled_items(task.test or task.name)[: cell.config.evaluation.n or None]


def _iteration(entry: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An iteration's counts, the refusals among what it accepted, and how diverse its texts are.

    Diversity is that of the first `_DRAWN` texts, accepted or not: what is accepted was filtered
    for being diverse, and fewer texts are more diverse than many.
    """
    kept = [sample for sample in samples if sample["accepted"]]
    refused = [refusals.refused(sample["answer"]) for sample in kept]
    drawn = samples[:_DRAWN] if len(samples) >= _DRAWN else []
    texts = {part: [sample[part] for sample in drawn] for part in ("question", "answer")}
    found = {name: value for name, value in entry.items() if name not in ("reasons", "advice")}
    found |= {"duplicates": entry["reasons"]["question_duplicate"] / entry["attempted"]}
    found |= {"refusals": sum(refused) / len(refused) if refused else None}
    for part, of_part in texts.items():
        for n in (1, 2):
            found[f"{part}_distinct_{n}"] = diversity.distinct(of_part, n)
        found[f"{part}_self_bleu"] = diversity.self_bleu(of_part)
    return {name: _rounded(value) for name, value in found.items()}


def _where(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["iteration"], row["steps"]


def _rounded(value: float | None) -> float | None:
    if not isinstance(value, float):
        return value
    return round(value, _DIGITS) if math.isfinite(value) else None


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    # Not splitlines: models write other ends of lines, too.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
