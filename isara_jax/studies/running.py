"""The runs of a study, one after the other in this process."""

import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from isara_jax import config
from isara_jax.files import storage
from isara_jax.host import run
from isara_jax.host.executables import Shared
from isara_jax.studies import record
from isara_jax.studies.analysis import methods
from isara_jax.studies.cells import Cell
from isara_jax.studies.record import Record

_RECORD = "cell.json"


def finished(cells: Sequence[Cell], folder: pathlib.Path) -> list[Record]:
    """The records of the cells that have been run, in the cells' order."""
    found = [(cell, _known(cell, folder)) for cell in cells]
    return [known | {"labels": cell.labels} for cell, known in found if known is not None]


def _known(cell: Cell, folder: pathlib.Path) -> Record | None:
    """The record of a cell, unless a default has changed since: its name does not tell."""
    path = folder / cell.name / _RECORD
    if not path.exists():
        return None
    found = storage.read_json(path)
    then = config.resolve(ml_collections.ConfigDict(found["config"]))  # newer fields, too
    return found if then == cell.config else None


def run_all(
    cells: Sequence[Cell], folder: pathlib.Path, keep_runs: bool, after: Callable[[], Any],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Runs the cells that have not been run; an interrupted one continues where it stopped.

    Args:
      cells: those of equal programs next to each other, so that each is compiled once.
      folder: holds a folder a cell.
      keep_runs: keeps all of a run's files, not its record alone.
      after: called after each cell.
      say: gets a line a cell.
    """
    shared = Shared(silent=True)
    for number, cell in enumerate(cells, 1):
        place = folder / cell.name
        if _known(cell, folder) is not None:
            continue
        began = time.monotonic()
        run.run(cell.config, place, shared)
        found = record.of_run(cell, place, time.monotonic() - began)
        storage.write_json(place / _RECORD, found)
        if not keep_runs:
            _clear(place)
        say(f"{number}/{len(cells)} {cell.name}: {_told(found)}")
        after()


def _clear(place: pathlib.Path) -> None:
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _RECORD:
            path.unlink()


def _told(found: Record) -> str:
    metric = next(iter(found["headline"]))
    values = {method: row["metrics"][metric] for method, row in methods(found).items()}
    shown = ", ".join(f"{m} {value:.3f}" for m, value in values.items() if value is not None)
    compiled = sum(found["compiles"].values())
    return f"{metric}: {shown}; {compiled} compiled, {found['seconds']:.0f} s"
