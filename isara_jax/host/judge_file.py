"""Answers of any program judged: a file of prompts and answers, or of AlpacaEval's outputs."""

import json
from collections.abc import Sequence
from typing import Any

import jax

from isara_jax.evaluate import scores
from isara_jax.files import remote, storage
from isara_jax.host.panel import Member
from isara_jax.report import table
from isara_jax.shell import terminal
from isara_jax.tasks import base, files, rows


def judge(name: str, members: Sequence[Member]) -> None:
    """Prints each judge's metrics and writes `FILE.judged.jsonl`: the rows with the verdicts.

    Args:
      name: the file, here or at a URL.
      members: the judges, of which one is loaded at a time.

    Raises:
      ValueError: the file is unusable.
    """
    found = files.read_answers(name)
    path = remote.path(name)
    stem = str(path).removesuffix(path.suffix).removesuffix(".judged")
    target = remote.path(f"{stem}.judged.jsonl")
    by_generator: dict[str, list[int]] = {}
    for i, one in enumerate(found.answered):
        by_generator.setdefault(one.generator or remote.path(stem).name, []).append(i)
    for member in members:
        member.check(one.prompt for one in found.answered)
    lines = [_line(row) for row in found.rows]
    measured = {generator: scores.merge() for generator in by_generator}
    info: dict[str, Any] = {}
    for member in members:
        make = member.load(max(map(len, by_generator.values())))
        for generator, numbers in by_generator.items():
            asked = [found.answered[i] for i in numbers]
            items = [base.Item(one.prompt, "", one.label, "all") for one in asked]
            judge = make(items, "")
            with jax.transfer_guard("disallow"):
                labels, row = judge(items, [one.answer for one in asked])
            measured[generator] = scores.merge(measured[generator], row)
            info |= judge.info()
            for i, label in zip(numbers, labels, strict=True):
                lines[i]["verdict"][member.name] = label
        _write(target, lines)
    summary_rows = [{"method": generator} | row for generator, row in measured.items()]
    terminal.show("\n".join(table.blocks({"rows": summary_rows, "metrics_info": info})))
    terminal.show(f"Verdicts: {target}")


def _line(row: rows.Row) -> dict[str, Any]:
    """A row as it stands in its file, with verdicts, of other judges too if it has some."""
    fields = {name: row.fields[rows.plain(name)] for name in row.names}
    line = json.loads(json.dumps(fields, default=str))  # parquet has dates
    verdict = line.get("verdict")
    return line | {"verdict": dict(verdict) if isinstance(verdict, dict) else {}}


def _write(target: remote.Path, lines: Sequence[dict[str, Any]]) -> None:
    if isinstance(target, remote.Url):
        target.write_bytes(storage.json_lines(lines))
    else:
        storage.atomic_write(target, storage.json_lines(lines))
