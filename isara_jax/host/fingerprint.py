"""Whether a run's data are still those it began with: a file may change under its name.

Seeds, held-out items and choices are compared by their content, not by the path they came from.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from isara_jax.tasks.base import Choice, Item, Pair

Data = dict[str, Sequence[Pair | Item | Choice]]  # rows by what they are


def of(data: Data) -> dict[str, str]:
    """A hash of each row, as kept in a run's `config.json`."""
    return {part: " ".join(_hash([row])[:8] for row in rows) for part, rows in data.items()}


def agrees(found: Any, data: Data) -> bool:
    """Whether a fingerprint, also one of an older version, is that of the data."""
    return found in (of(data), _hash([row for rows in data.values() for row in rows])[:16])


def changes(found: Any, data: Data) -> str:
    """What differs from the data of another fingerprint, for a message."""
    if not isinstance(found, dict):
        return "an older version did not note which"
    said = []
    for part, now in of(data).items():
        old, new = str(found.get(part, "")).split(), now.split()
        changed = [row for row, a, b in zip(data[part], old, new, strict=False) if a != b]
        if len(old) != len(new):
            said.append(f"{part}: {len(old)} then, {len(new)} now")
        elif changed:
            first = repr(changed[0].question[:60])
            said.append(f"{part}: {len(changed)} of {len(new)}, the first is now {first}")
    return "; ".join(said)


def _hash(rows: Sequence[Pair | Item | Choice]) -> str:
    content = [_fields(row) for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _fields(row: Pair | Item | Choice) -> list[Any]:
    """A row's values without those at their default: newer fields leave older runs as they are."""
    known = dataclasses.asdict(row)
    return [known[f.name] for f in dataclasses.fields(row) if known[f.name] != f.default]
