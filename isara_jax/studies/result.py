"""A study's result: one JSON file, and the table and the picture that are made of it alone."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from isara_jax.files import storage
from isara_jax.studies import analysis, plots, tables
from isara_jax.studies.grids import Study
from isara_jax.studies.record import Record

_PACKAGES = ("jax", "flax", "numpy")
_WIDTH = 120


def of(study: Study, records: Sequence[Record], planned: int, command: str) -> dict[str, Any]:
    """The content of the study's `.json`.

    Args:
      study: what was asked.
      records: of the cells that are finished.
      planned: how many cells there are.
      command: as it was given.
    """
    levels = [level.label for level in study.levels]
    compiles = sum((Counter(r["compiles"]) for r in records), Counter())
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "study": study.name,
        "claim": study.claim,
        "axis": study.axis,
        "reference": study.reference,
        "plot": study.plot,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | packages,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cells": {"done": len(records), "planned": planned},
        "compiles": dict(sorted(compiles.items())),
        "seconds": round(sum(r["seconds"] for r in records)),
        "groups": analysis.of_cells(records, study.axis, levels, study.reference),
    }


def write(result: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes the result, its table and its picture."""
    text = _json(result, 0) + "\n"
    storage.atomic_write(path(folder, result["study"], "json"), text.encode())
    storage.atomic_write(path(folder, result["study"], "md"), tables.markdown(result).encode())
    storage.atomic_write(path(folder, result["study"], "png"), plots.png(result))


def _json(value: Any, indent: int) -> str:
    """JSON with what is short on one line, since people read it and its changes."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(flat) + indent <= _WIDTH:
        return flat
    inner, keys = indent + 2, isinstance(value, dict)
    parts = [f"{json.dumps(k, ensure_ascii=False)}: " for k in value] if keys else [""] * len(value)
    of = value.values() if keys else value
    lines = [f"{' ' * inner}{key}{_json(v, inner)}" for key, v in zip(parts, of, strict=True)]
    begin, end = "{}" if keys else "[]"
    return begin + "\n" + ",\n".join(lines) + f"\n{' ' * indent}{end}"


def path(folder: pathlib.Path, study: str, suffix: str) -> pathlib.Path:
    """Where a study's result is."""
    return folder / f"{study}.{suffix}"
