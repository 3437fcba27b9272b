"""The files of a finished run, read again and checked line by line."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from isara_jax import config
from isara_jax.files import remote, storage
from isara_jax.host import held_out, history
from isara_jax.tasks import base, files, rows

_A_LINE = '{"prompt": "…", "answer": "…", "label": null, "decoding": "greedy", "verdict": {}}'
_OF_PROMPTS = (None, files.SAFE, files.UNSAFE)  # labels; held-out questions have kinds of their own
_SAMPLED = "sampled"


class Part(NamedTuple):
    """The answers of a file to held-out questions, or to prompts.

    Attributes:
      of: `held_out.HELD_OUT` or `held_out.PROMPTS`.
      items: the questions.
      lines: numbers of the lines that answer them in turn, by the suffix of their decoding.
    """

    of: str
    items: list[base.Item]
    lines: dict[str, list[int]]


class File(NamedTuple):
    """The answers of a row of the table."""

    path: pathlib.Path
    row: dict[str, Any]
    lines: list[dict[str, Any]]
    parts: list[Part]


def summary(place: remote.Workdir) -> dict[str, Any]:
    """The summary of a run."""
    if not (place.local / "config.json").exists():
        raise config.UserError(f"{place}: not the folder of a run; it has no config.json")
    if not (place.local / "summary.json").exists():
        raise config.UserError(
            f"{place}: this run is not finished; the command that started it continues it, and "
            "then its answers can be judged"
        )
    return storage.read_json(place.local / "summary.json", ours=True)


def where(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row of the table, and a line of the other files, that of one model."""
    return tuple(row.get(key) for key in ("method", "iteration", "steps"))


def items(place: remote.Workdir, table_rows: Sequence[dict[str, Any]]) -> list[dict]:
    """The lines of `items.jsonl`, one for each row of the table."""
    path, there = place.local / "items.jsonl", place / "items.jsonl"
    if not path.exists():
        raise config.UserError(
            f"{there}: not found; the run is of an older version: judge one file of its answers at "
            f"a time, with --answers={place / 'answers'}/METHOD.jsonl"
        )
    found = []
    for number, line in rows.json_rows(there, '{"method": "base", "items": {}}'):
        if not isinstance(line.get("items"), dict):
            raise config.UserError(
                f"{there}:{number}: items: found {rows.shown(line.get('items'))}, expected an "
                "object; put back the run's own file"
            )
        found.append(line)
    missing = {where(row) for row in table_rows} ^ {where(line) for line in found}
    if missing or len(found) != len(table_rows):
        raise config.UserError(
            f"{there}: its lines are not those of the rows of summary.json; put back the run's own "
            "files"
        )
    return found


def answers(place: remote.Workdir, row: dict[str, Any]) -> File:
    """The answers of a row, checked line by line."""
    name = f"{history.name_of(row)}.jsonl"
    path, there = place.local / "answers" / name, place / f"answers/{name}"
    if not path.exists():
        raise config.UserError(
            f"{there}: not found; put it back, or if there never was one (of older versions, of "
            "runs without held-out questions and prompts), run again into another folder"
        )
    lines = []
    for number, line in rows.json_rows(there, _A_LINE):
        for field, good, expected in _CHECKS:
            if not good(line.get(field)):
                raise config.UserError(
                    f"{there}:{number}: {field}: found {rows.shown(line.get(field))}, expected "
                    f"{expected}; put the line back as the run wrote it"
                )
        if where(line) != where(row):
            raise config.UserError(
                f"{there}:{number}: method, iteration, steps: found {list(where(line))}, expected "
                f"{list(where(row))}, as the file is called; put back the run's own file"
            )
        lines.append(line)
    if not lines:
        raise config.UserError(f"{there}: no answer in it; put back the run's own file")
    return File(path, row, lines, _parts(there, lines))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_verdict(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


_CHECKS = (
    ("prompt", _is_text, "a text"),
    ("answer", _is_text, "a text"),
    ("label", lambda value: value is None or _is_text(value), "a text or null"),
    ("decoding", _is_text, "sampled or greedy"),
    ("verdict", _is_verdict, "an object with a text a judge"),
)


def _parts(there: remote.Path, lines: Sequence[dict[str, Any]]) -> list[Part]:
    """Held-out questions and prompts, as far as there are any."""
    found = []
    for of in (held_out.HELD_OUT, held_out.PROMPTS):
        by_suffix: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            if (line["label"] in _OF_PROMPTS) == (of == held_out.PROMPTS):
                how = line["decoding"]
                by_suffix.setdefault("" if how == _SAMPLED else f"_{how}", []).append(i)
        asked = [_questions(lines, numbers) for numbers in by_suffix.values()]
        if any(questions != asked[0] for questions in asked):
            raise config.UserError(
                f"{there}: the {' and the '.join(by_suffix)} answers are not to the same questions "
                "in the same order; put back the run's own file"
            )
        if asked:
            items = [base.Item(question, "", kind, "all") for question, kind in asked[0]]
            found.append(Part(of, items, by_suffix))
    return found


def _questions(lines: Sequence[dict[str, Any]], numbers: Sequence[int]) -> list[tuple[str, str]]:
    return [(lines[i]["prompt"], lines[i]["label"] or "") for i in numbers]


def check_alike(found: Sequence[File]) -> None:
    """Raises `config.UserError` where methods have answered other questions than the first."""
    first = found[0]
    for file in found[1:]:
        if [part.items for part in file.parts] != [part.items for part in first.parts]:
            raise config.UserError(
                f"{file.path.name}: other questions than in {first.path.name}; put back the run's "
                "own files"
            )
