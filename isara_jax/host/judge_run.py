"""A finished run judged by further judges, as if they had been its own (`evaluation.judges`).

What is kept after each file of answers, in this order, each file whole: the verdicts in it, the
values in `items.jsonl`, and `summary.json`, which says what is done. So whatever interrupts it
costs the file it was at.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from isara_jax import config
from isara_jax.evaluate import choices, scores
from isara_jax.files import remote, storage
from isara_jax.host import held_out, history
from isara_jax.host.panel import Make, Member
from isara_jax.report import html, table
from isara_jax.tasks import base, files, rows

_WHERE = ("method", "iteration", "steps")  # what makes a row of the table
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


def judge(place: remote.Workdir, members: Sequence[Member]) -> dict[str, Any]:
    """Judges all answers of a run and keeps what is found where the run keeps its own.

    Args:
      place: the run's folder.
      members: the judges, of which one is loaded at a time.

    Returns:
      The new content of `summary.json`.

    Raises:
      config.UserError: the run is not finished, a file of it is damaged, or a judge cannot be used.
    """
    run = _Run(place)
    for member in members:
        member.check(run.questions)
    if place.url is not None:
        place.url.check_writable()
    for member in members:
        run.judge(member)
    return run.conclude()


class _Run:
    """What is known of the run; `summary["judged"]` has each judge's version and metrics."""

    def __init__(self, place: remote.Workdir) -> None:
        self._place, self._workdir = place, place.local
        self._summary = _finished(place)
        self._items = _read_items(place, self._summary["rows"])
        self._rows = [
            row | {"items": line["items"]}
            for row, line in zip(self._summary["rows"], self._in_order(), strict=True)
        ]
        self._judged = self._summary.setdefault("judged", {})
        self._files = [_read_answers(place, row) for row in self._rows]
        _check_alike(self._files)

    def _in_order(self) -> list[dict[str, Any]]:
        """The lines of `items.jsonl` in the table's order."""
        found = {_where(line): line for line in self._items}
        return [found[_where(row)] for row in self._summary["rows"]]

    @property
    def questions(self) -> list[str]:
        """All that is judged an answer to."""
        return [item.question for part in self._files[0].parts for item in part.items]

    def judge(self, member: Member) -> None:
        """Lets a judge say what it has not said yet; whatever it said as another one is dropped."""
        version = member.version
        known = self._judged.get(member.name)
        current = version is not None and known is not None and known["version"] == version
        todo = [f for f in self._files if not (current and _is_judged(f, member.name, known))]
        if not todo:
            print(f"{member.name} has judged all {len(self._files)} files of answers")
            return
        make = member.load(max(len(part.items) for part in self._files[0].parts))
        if not current:
            about = self._about(make)
            self._forget({*about, *(known or {}).get("metrics", ())})
            info = self._summary["metrics_info"] | about
            self._summary["metrics_info"] = dict(sorted(info.items(), key=_place_in_table))
            self._judged[member.name] = {"version": version, "metrics": [*about]}
        for number, file in enumerate(todo, 1):
            print(f"{member.name} judges {file.path.name} ({number} of {len(todo)})", flush=True)
            self._judge_file(file, make)

    def _about(self, make: Make) -> dict[str, dict[str, Any]]:
        """Titles and directions of a judge's metrics."""
        found = {}
        for part in self._files[0].parts:
            found |= _asked(part, make).info()
        return found

    def _forget(self, metrics: Iterable[str]) -> None:
        for name in metrics:
            self._summary["metrics_info"].pop(name, None)
            for row in self._rows:
                for part in scores.merge():
                    row[part].pop(name, None)

    def _judge_file(self, file: File, make: Make) -> None:
        for part in file.parts:
            asked = _asked(part, make)
            texts = {s: [file.lines[i]["answer"] for i in ns] for s, ns in part.lines.items()}
            answered = asked.judged(texts)
            for suffix, numbers in part.lines.items():
                for i, label in zip(numbers, answered.labels[suffix][0], strict=True):
                    file.lines[i]["verdict"][asked.judges[0].name] = label
            file.row.update(scores.merge(file.row, answered.row))
        storage.write_lines(file.path, file.lines)
        self._save()

    def _save(self) -> None:
        """Keeps what is known; the summary last, which says what is done."""
        for line, row in zip(self._in_order(), self._rows, strict=True):
            line["items"] = row["items"]
        storage.write_lines(self._workdir / "items.jsonl", self._items)
        self._summary["rows"] = scores.compared(self._rows)
        storage.write_json(self._workdir / "summary.json", self._summary)
        self._place.keep()

    def conclude(self) -> dict[str, Any]:
        """Says in the examples what the judges say of them, and shows all that was found."""
        shown = {file.row["method"]: file for file in self._files}  # of each method the last
        for when, method in (("before", "base"), ("after", "isara")):
            if method in shown:
                numbers = next(iter(shown[method].parts)).lines.get("", [])
                for example, i in zip(self._summary["examples"], numbers, strict=False):
                    verdict = shown[method].lines[i]["verdict"]
                    example[f"{when}_label"] = "; ".join(verdict.values())
        html.write(self._summary, self._workdir / "report.html")
        self._save()
        print("\n" + table.text(self._summary))
        print(f"\nReport: {self._place / 'report.html'}")
        return self._summary


def _asked(part: Part, make: Make) -> held_out.Asked:
    """A part's questions as the run asks them, with one judge."""
    of = part.of if part.of == held_out.PROMPTS else ""
    return held_out.Asked(part.of, part.items, None, [make(part.items, of)])


def _is_judged(file: File, judge: str, known: dict[str, Any]) -> bool:
    """Whether a judge has said all that it has to say of a file."""
    return all(judge in line["verdict"] for line in file.lines) and all(
        name in file.row["metrics"] for name in known["metrics"]
    )


def _place_in_table(metric: tuple[str, dict[str, Any]]) -> int:
    """Behind which others a metric stands in a run's table (`HeldOut.metrics_info`)."""
    name, about = metric
    if about.get("on") == held_out.PROMPTS:
        return 2
    return int(name == held_out.NLL or name in choices.METRICS)


# --- a run's files -------------------------------------------------------------------------------


def _finished(place: remote.Workdir) -> dict[str, Any]:
    """The summary of a run."""
    if not (place.local / "config.json").exists():
        raise config.UserError(f"{place}: not the folder of a run; it has no config.json")
    if not (place.local / "summary.json").exists():
        raise config.UserError(
            f"{place}: this run is not finished; the command that started it continues it, and "
            "then its answers can be judged"
        )
    return storage.read_json(place.local / "summary.json", ours=True)


def _where(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _WHERE)


def _read_items(place: remote.Workdir, table_rows: Sequence[dict[str, Any]]) -> list[dict]:
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
    missing = {_where(row) for row in table_rows} ^ {_where(line) for line in found}
    if missing or len(found) != len(table_rows):
        raise config.UserError(
            f"{there}: its lines are not those of the rows of summary.json; put back the run's own "
            "files"
        )
    return found


def _read_answers(place: remote.Workdir, row: dict[str, Any]) -> File:
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
        if _where(line) != _where(row):
            raise config.UserError(
                f"{there}:{number}: method, iteration, steps: found {list(_where(line))}, expected "
                f"{list(_where(row))}, as the file is called; put back the run's own file"
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


def _check_alike(found: Sequence[File]) -> None:
    """Raises `config.UserError` where methods have answered other questions than the first."""
    first = found[0]
    for file in found[1:]:
        if [part.items for part in file.parts] != [part.items for part in first.parts]:
            raise config.UserError(
                f"{file.path.name}: other questions than in {first.path.name}; put back the run's "
                "own files"
            )
