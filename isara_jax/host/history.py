"""What the host knows of a run besides the state: the table, iterations, samples, tokens."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isara_jax.evaluate import scores
from isara_jax.files import storage
from isara_jax.formats import pretrained
from isara_jax.host import advice
from isara_jax.host.held_out import Scored
from isara_jax.host.setup import Setup
from isara_jax.method import accept
from isara_jax.method.state import Report
from isara_jax.sampler import spelling
from isara_jax.tasks.base import Item
from isara_jax.text import stops


def name_of(where: Mapping[str, Any]) -> str:
    """What the files of a row of the table are called, without their suffix."""
    parts = (where.get(key) for key in ("method", "iteration", "steps"))
    return "_".join(str(part) for part in parts if part is not None)


class History:
    """The host's record, kept as plain JSON in `data` and saved with every checkpoint.

    `data` holds `rows` (of the table, with the values of all items), `iterations`, `row_ids` (of
    the pool's rows), `before` and `after` (example answers with labels), `seconds` and `tokens`.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.data: dict[str, Any] = {
            "rows": [],
            "iterations": [],
            "row_ids": [f"seed-{i + 1}" for i in range(len(setup.task.seeds))],
            "before": [],
            "after": [],
            "seconds": {},
            "tokens": dict.fromkeys(("questions", "answers", "train", "prompts"), 0),
        }

    @property
    def train_steps(self) -> int:
        """Optimiser steps of all iterations: the compute of a fair baseline."""
        return sum(entry["train_steps"] for entry in self.data["iterations"])

    @property
    def scaling_ratio(self) -> float:
        """Accepted samples for each seed, as the paper counts them."""
        accepted = sum(entry["accepted"] for entry in self.data["iterations"])
        return accepted / len(self._setup.task.seeds)

    def record(self, number: int, report: Report, workdir: pathlib.Path) -> dict[str, Any]:
        """Writes an iteration's samples to its file, and returns its entry."""
        samples = self._samples(number, report)
        storage.write_lines(workdir / "samples" / f"iteration_{number}.jsonl", samples)
        kept = [sample for sample in samples if sample["accepted"]]
        self.data["row_ids"] += [sample["id"] for sample in kept]
        for name, count in (
            ("questions", report.question.drawn),
            ("answers", report.answer.drawn),
            ("train", report.train_tokens),
            ("prompts", report.prompt_tokens),
        ):
            self.data["tokens"][name] += int(count)
        counts = np.bincount(report.reason, minlength=len(accept.REASONS)).tolist()
        entry = {
            "iteration": number,
            "attempted": len(samples),
            "accepted": len(kept),
            "reasons": dict(zip(accept.REASONS, counts, strict=True)),
            "advice": advice.of(report, self._setup.config),
            "train_steps": int(report.train_steps),
            "train_loss_first": float(report.train_first_loss),
            "train_loss_last": float(report.train_last_loss),
        } | self._quality([(sample["question"], sample["answer"]) for sample in kept])
        self.data["iterations"].append(entry)
        return entry | {"example": kept[0] if kept else None}

    def record_row(
        self, where: dict[str, str | int | None], scored: Scored, workdir: pathlib.Path
    ) -> None:
        """Keeps a row of the table and its examples, and writes its answers to their files.

        Answers to prompts are written in the format of AlpacaEval's `model_outputs`, too, one
        decoding a file.

        Args:
          where: `method`, and its `iteration` or `steps`.
          scored: what was found.
          workdir: the run's folder.
        """
        self.data["rows"].append(where | {"n": len(self._setup.task.items)} | scored.row)
        if where["method"] in ("base", "isara"):
            self.data["before" if where["method"] == "base" else "after"] = scored.examples
        name = name_of(where)
        if scored.answers:
            lines = (line | where for line in scored.answers)
            storage.write_lines(workdir / "answers" / f"{name}.jsonl", lines)
        model = pathlib.PurePath(pretrained.name_of(self._setup.base.path)).name
        for suffix, outputs in scored.outputs.items():
            generator = {"generator": f"{model}-{name}{suffix}"}
            path = workdir / "answers" / f"{name}{suffix}.alpaca_eval.json"
            storage.write_json(path, [output | generator for output in outputs])

    def table(self) -> list[dict[str, Any]]:
        """The rows in the table's order, compared by `scores.compared`."""
        order = ("base", "sft", "icl_knn", "isara")
        rows = sorted(self.data["rows"], key=lambda row: order.index(row["method"]))
        return scores.compared(rows)

    def write_items(self, path: pathlib.Path) -> None:
        """Writes the value of every item, a line for each row of the table.

        What rows of several runs on the same items are compared by, item by item: `method`,
        `iteration`, `steps`, and `items`, as `scores.Row` has them.
        """
        kept = ("method", "iteration", "steps", "items")
        storage.write_lines(path, ({key: row[key] for key in kept} for row in self.data["rows"]))

    def _samples(self, number: int, report: Report) -> list[dict[str, Any]]:
        ids, vocabulary = self.data["row_ids"], self._setup.base.vocabulary
        questions = spelling.texts(vocabulary, report.question, stops.QUESTION_STOPS)
        answers = spelling.texts(vocabulary, report.answer, stops.ANSWER_STOPS)
        return [
            {
                "id": f"{number}-{index + 1}",
                "question": questions[index],
                "answer": answers[index],
                "demonstrations": [ids[row] for row in report.demonstrations[index] if row >= 0],
                "accepted": bool(reason == 0),
                "reason": accept.REASONS[reason],
            }
            for index, reason in enumerate(report.reason)
        ]

    def _quality(self, kept: list[tuple[str, str]]) -> dict[str, float | int | None]:
        """What the judge, which the method never sees, says of the accepted pairs."""
        task = self._setup.task
        wanted = {label for m in task.metrics if m.higher_is_better for label in m.labels}
        prompts = self._setup.measured.prompts.items if self._setup.measured.prompts else ()
        held_out = {item.question for item in (*task.items, *prompts)}
        valid = [task.check_question(q) for q, _ in kept] if task.check_question else []
        aligned = [task.judge(q, a) in wanted for q, a in kept] if task.judge else []
        return {
            "valid_questions": statistics.fmean(valid) if valid else None,
            "aligned_answers": statistics.fmean(aligned) if aligned else None,
            "held_out_questions": sum(q in held_out for q, _ in kept),
        }

    def examples(self, items: Sequence[Item]) -> list[dict[str, str]]:
        """The first of the questions that are shown, with the answers before and after."""
        return [
            {
                "question": item.question,
                "before": before,
                "before_label": before_label,
                "after": after,
                "after_label": after_label,
            }
            for item, (before, before_label), (after, after_label) in zip(
                items, self.data["before"], self.data["after"], strict=False
            )
        ]
