"""What the host knows of a run besides the state: the table, iterations, samples, tokens."""

import collections
import functools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from isara_jax import config
from isara_jax.evaluate import diversity, leakage, scores
from isara_jax.files import storage
from isara_jax.formats import pretrained
from isara_jax.host import advice, held_back, validation
from isara_jax.host.held_out import NLL, Scored
from isara_jax.host.setup import Setup
from isara_jax.method import accept
from isara_jax.method.state import Report
from isara_jax.sampler import spelling
from isara_jax.tasks.base import Item
from isara_jax.text import stops

_OURS = ("base", "isara")  # all others are baselines


def name_of(where: Mapping[str, Any]) -> str:
    """What the files of a row of the table are called, without their suffix."""
    parts = (where.get(key) for key in ("method", "iteration", "steps"))
    return "_".join(str(part) for part in parts if part is not None)


class History:
    """The host's record, kept as plain JSON in `data` and saved with every checkpoint.

    `data` holds `rows` (of the table, with the values of all items), `iterations`, `row_ids` (of
    the pool's rows), `before` and `after` (example answers with labels), `seconds` and `tokens`;
    `base` has the base model's `validation_loss` where an iteration is chosen (`config.keep`);
    there is `sft` where SFT's length is, and `one_round` where that is a baseline.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.data: dict[str, Any] = {
            "rows": [],
            "iterations": [],
            "row_ids": seed_ids(setup.n_pool),
            "before": [],
            "after": [],
            "seconds": {},
            "tokens": dict.fromkeys(("questions", "answers", "train", "prompts"), 0),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Takes what was kept of this run; of one with fewer iterations not the baselines.

        Their compute follows from the iterations.
        """
        self.data = data
        if len(data["iterations"]) < self._setup.config.iterations:
            self.data["rows"] = [
                row for row in data["rows"] if row["method"] not in config.BASELINES
            ]
            for name in ("sft", "one_round"):
                self.data.pop(name, None)

    def has(self, method: str, iteration: int | None = None, steps: int | None = None) -> bool:
        """Whether a row of the table is there."""
        wanted = (method, iteration, steps)
        return any(
            (row["method"], row["iteration"], row["steps"]) == wanted for row in self.data["rows"]
        )

    @property
    def measured(self) -> int:
        """The last iteration that has its row; 0: the base model, -1: nothing is measured."""
        return max(
            (row["iteration"] or 0 for row in self.data["rows"] if row["method"] in _OURS),
            default=-1,
        )

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
        samples = self._samples(str(number), report, self.data["row_ids"])
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
        entry = {"iteration": number, "advice": advice.of(report, self._setup.config)}
        entry |= self._entry(samples, report)
        self.data["iterations"].append(entry)
        return entry | {"example": kept[0] if kept else None}

    def record_round(self, reports: Sequence[Report], workdir: pathlib.Path) -> dict[str, Any]:
        """Writes the samples of the one-round baseline, drawn in parts, and returns its entry.

        With the `ids` of what was accepted.
        """
        seeds = seed_ids(len(self._setup.task.seeds))
        parts = (self._samples(f"round-{i}", one, seeds) for i, one in enumerate(reports, 1))
        samples = [sample for part in parts for sample in part]
        storage.write_lines(workdir / "samples" / "one_round.jsonl", samples)
        self.data["one_round"] = self._entry(samples, reports[-1])
        ids = [sample["id"] for sample in samples if sample["accepted"]]
        return self.data["one_round"] | {"ids": ids}

    def _entry(self, samples: Sequence[dict[str, Any]], trained: Report) -> dict[str, Any]:
        """What became of samples, and of the fine-tuning on them."""
        reasons = collections.Counter(sample["reason"] for sample in samples)
        kept = [sample for sample in samples if sample["accepted"]]
        questions = [sample["question"] for sample in samples]
        return (
            {
                "attempted": len(samples),
                "accepted": len(kept),
                "reasons": {reason: reasons[reason] for reason in accept.REASONS},
                "distinct": len({*questions}) / len(questions),
                "distinct_2": diversity.distinct(questions, 2),
                "train_steps": int(trained.train_steps),
                "train_loss_first": _finite(trained.train_first_loss),
                "train_loss_last": _finite(trained.train_last_loss),
            }
            | held_back.counted(trained.trouble)
            | self._quality([(sample["question"], sample["answer"]) for sample in kept])
        )

    def record_row(
        self, where: dict[str, str | int | None], scored: Scored, workdir: pathlib.Path, **more: Any
    ) -> None:
        """Keeps a row of the table and its examples, and writes its answers to their files.

        Answers to prompts are written in the format of AlpacaEval's `model_outputs`, too, one
        decoding a file.

        Args:
          where: `method`, and its `iteration` or `steps`.
          scored: what was found.
          workdir: the run's folder.
          more: fields of the row that are no part of its files' names.
        """
        self.data["rows"].append(where | {"n": len(self._setup.task.items)} | more | scored.row)
        if where["method"] in _OURS:
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
        order = ("base", *config.BASELINES, "isara")
        rows = sorted(self.data["rows"], key=lambda row: order.index(row["method"]))
        return scores.compared(rows)

    def write_items(self, path: pathlib.Path) -> None:
        """Writes the value of every item, a line for each row of the table.

        What rows of several runs on the same items are compared by, item by item: `method`,
        `iteration`, `steps`, and `items`, as `scores.Row` has them.
        """
        kept = ("method", "iteration", "steps", "items")
        storage.write_lines(path, ({key: row[key] for key in kept} for row in self.data["rows"]))

    def _samples(self, name: str, report: Report, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Samples by the ids of the pool's rows, themselves called by `name`."""
        vocabulary = self._setup.base.vocabulary
        form = vocabulary.form
        questions = spelling.texts(vocabulary, report.question, stops.of_question(form))
        answers = spelling.texts(vocabulary, report.answer, stops.of_answer(form))
        return [
            {
                "id": f"{name}-{index + 1}",
                "question": questions[index],
                "answer": answers[index],
                "demonstrations": [ids[row] for row in report.demonstrations[index] if row >= 0],
                "accepted": bool(reason == 0),
                "reason": accept.REASONS[reason],
            }
            for index, reason in enumerate(report.reason)
        ]

    def _quality(self, kept: list[tuple[str, str]]) -> dict[str, float | int | None]:
        """What the judge says of the accepted pairs, and how many are near held-out questions.

        The method sees neither.
        """
        task = self._setup.task
        wanted = {label for m in task.metrics if m.higher_is_better for label in m.labels}
        leaked = self._held_out.count([question for question, _ in kept])
        valid = [task.check_question(q) for q, _ in kept] if task.check_question else []
        aligned = [task.judge(q, a) in wanted for q, a in kept] if task.judge else []
        return {
            "valid_questions": statistics.fmean(valid) if valid else None,
            "aligned_answers": statistics.fmean(aligned) if aligned else None,
            "near_held_out": leaked["near"],
            "identical_to_held_out": leaked["identical"],
        }

    @functools.cached_property
    def _held_out(self) -> leakage.HeldOut:
        """All questions that something is measured on."""
        task, measured = self._setup.task, self._setup.measured
        prompts = measured.prompts.items if measured.prompts else ()
        asked = measured.choices.asked if measured.choices else ()
        questions = [item.question for item in (*task.items, *prompts, *asked)]
        return leakage.HeldOut(questions, self._setup.base.vocabulary)

    def leaked(self) -> dict[str, Any]:
        """How many seeds and accepted samples have a question near a held-out one.

        `held_out` questions are compared with; `near` begins at a ROUGE-L of `rouge_l`. `seeds`,
        each of `accepted` (by `iteration`) and `one_round`, None where that is no baseline, have
        `n`, `near` and `identical`.
        """

        def of(entry: dict[str, Any]) -> dict[str, int | None]:
            near, same = (entry.get(key) for key in ("near_held_out", "identical_to_held_out"))
            return {"n": entry["accepted"], "near": near, "identical": same}

        one_round = self.data.get("one_round")
        return {
            "rouge_l": leakage.NEAR,
            "held_out": len(self._held_out),
            "seeds": self._held_out.count([seed.question for seed in self._setup.task.seeds]),
            "accepted": [
                {"iteration": entry["iteration"]} | of(entry) for entry in self.data["iterations"]
            ],
            "one_round": one_round and of(one_round),
        }

    def collapsed(self) -> str | None:
        """What is to be said of the last iteration, once it is measured; its entry keeps it."""
        entries, rows = self.data["iterations"], self.data["rows"]
        losses = [row["metrics"].get(NLL) for row in rows if row["method"] in ("base", "isara")]
        if self._setup.config.keep == "best":
            losses = [self.data["base"]["validation_loss"], *self.validation_losses]
        said = advice.collapsed(entries, losses if None not in losses else [], self._setup.config)
        entries[-1]["collapse"] = said
        return said

    @property
    def validation_losses(self) -> list[float]:
        """After each iteration, where they are measured."""
        return [entry["validation_loss"] for entry in self.data["iterations"]]

    def kept(self) -> dict[str, Any] | None:
        """Which iteration's model is the result, where that is chosen (`config.keep`).

        `iteration` is the chosen one, `last` the last; `validation` has the loss after each, in
        nats a token on `n` seeds, `base` is that of the base model.
        """
        if self._setup.config.keep == "last":
            return None
        losses = self.validation_losses
        return {
            "iteration": validation.best(losses) + 1,
            "last": len(losses),
            "validation": losses,
            "base": self.data["base"]["validation_loss"],
            "n": self._setup.n_validation,
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


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def seed_ids(n: int) -> list[str]:
    """What the first n seeds are called in files of samples."""
    return [f"seed-{i + 1}" for i in range(n)]
