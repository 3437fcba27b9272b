"""A finished run judged by further judges, as if they had been its own (`evaluation.judges`).

What is kept after each file of answers, in this order, each file whole: the verdicts in it, the
values in `items.jsonl`, and `summary.json`, which says what is done. So whatever interrupts it
costs the file it was at.
"""

from collections.abc import Sequence
from typing import Any

import jax

from isara_jax.evaluate import choices, scores
from isara_jax.files import remote, storage
from isara_jax.host import finished, held_out
from isara_jax.host.finished import File, Part
from isara_jax.host.panel import Make, Member
from isara_jax.report import html, table
from isara_jax.shell import terminal


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
        self._summary = finished.summary(place)
        self._items = finished.items(place, self._summary["rows"])
        self._rows = [
            row | {"items": line["items"]}
            for row, line in zip(self._summary["rows"], self._in_order(), strict=True)
        ]
        self._judged = self._summary.setdefault("judged", {})
        self._files = [finished.answers(place, row) for row in self._rows]
        finished.check_alike(self._files)

    def _in_order(self) -> list[dict[str, Any]]:
        """The lines of `items.jsonl` in the table's order."""
        found = {finished.where(line): line for line in self._items}
        return [found[finished.where(row)] for row in self._summary["rows"]]

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
            terminal.show(f"{member.name} has judged all {len(self._files)} files of answers")
            return
        make = member.load(max(len(part.items) for part in self._files[0].parts))
        if not current:
            about = self._about(make)
            self._forget({*about, *(known or {}).get("metrics", ())}, about)
            self._judged[member.name] = {"version": version, "metrics": [*about]}
        for number, file in enumerate(todo, 1):
            terminal.show(f"{member.name} judges {file.path.name} ({number} of {len(todo)})")
            self._judge_file(file, make)

    def _about(self, make: Make) -> dict[str, dict[str, Any]]:
        """Titles and directions of a judge's metrics."""
        found = {}
        for part in self._files[0].parts:
            found |= _asked(part, make).info()
        return found

    def _forget(self, metrics: set[str], about: dict[str, dict[str, Any]]) -> None:
        """Takes metrics out of all rows; those that come anew are told of in the table's order."""
        for row in self._rows:
            for part in scores.merge():
                row[part] = {name: v for name, v in row[part].items() if name not in metrics}
        told = self._summary["metrics_info"]
        kept = {name: v for name, v in told.items() if name in about or name not in metrics}
        ordered = sorted((kept | about).items(), key=_place_in_table)
        self._summary["metrics_info"] = dict(ordered)

    def _judge_file(self, file: File, make: Make) -> None:
        for part in file.parts:
            asked = _asked(part, make)
            texts = {s: [file.lines[i]["answer"] for i in ns] for s, ns in part.lines.items()}
            with jax.transfer_guard("disallow"):
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
        terminal.show("\n" + table.text(self._summary))
        terminal.show(f"\nReport: {self._place / 'report.html'}")
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
