"""Whether data and models are still those they were: a file may change under its name.

Seeds, held-out items and choices are compared by their content, not by the path they came from.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from isara_jax.tasks.base import Choice, Item, Pair

_N_PIECES, _PIECE = 256, 4096
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


def of_model(folder: pathlib.Path, *others: Any) -> str:
    """A hash of a model's folder, and of what else its outputs follow from.

    Of weights it takes pieces alone, evenly apart: whatever was trained differs in some of them,
    and reading all would take as long as loading.

    Args:
      folder: a Hugging Face directory.
      others: values that JSON can hold.
    """
    digest = hashlib.sha256(json.dumps(others).encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja", ".model", ".txt", ".safetensors") and file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            for piece in _pieces(file):
                digest.update(piece)
    return digest.hexdigest()[:16]


def _pieces(file: pathlib.Path) -> Iterator[bytes]:
    """A small file as a whole, of weights `_N_PIECES` pieces of `_PIECE` bytes."""
    size = file.stat().st_size
    if file.suffix != ".safetensors" or size <= _N_PIECES * _PIECE:
        yield file.read_bytes()
        return
    with file.open("rb") as stream:
        for i in range(_N_PIECES):
            stream.seek(i * (size - _PIECE) // (_N_PIECES - 1))
            yield stream.read(_PIECE)


def _hash(rows: Sequence[Pair | Item | Choice]) -> str:
    content = [_fields(row) for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _fields(row: Pair | Item | Choice) -> list[Any]:
    """A row's values without those at their default: newer fields leave older runs as they are."""
    known = dataclasses.asdict(row)
    return [known[f.name] for f in dataclasses.fields(row) if known[f.name] != f.default]
