"""A model's score on the held-out questions: a row of the table."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.evaluate import answers, choices, judges, refusals, scores
from isara_jax.host.executables import Executables
from isara_jax.host.setup import Setup
from isara_jax.method.state import Pool
from isara_jax.models import lora
from isara_jax.sampler import sampling, spelling
from isara_jax.tasks import base
from isara_jax.text import packing, stops

N_EXAMPLES = 5
NLL = "nll_per_token"
HELD_OUT, PROMPTS = "answer", "prompts"  # `Asked.of`
_DECODING = {"": None, "_greedy": 0.0}  # the temperature behind each suffix; None: as configured


class Asked(NamedTuple):
    """Questions that are answered, and who judges the answers.

    Attributes:
      of: what their executable is called.
      items: the questions.
      pairs: the same as tokens.
      judges: none, where answers are only kept.
    """

    of: str
    items: Sequence[base.Item]
    pairs: packing.Pairs
    judges: Sequence[judges.Judge]

    def info(self) -> dict[str, dict[str, Any]]:
        """Titles and directions of the metrics, sampled before greedy of each judge."""
        on = {"on": PROMPTS} if self.of == PROMPTS else {}
        return {
            name + suffix: about | on
            for judge in self.judges
            for suffix in _DECODING
            for name, about in judge.info().items()
        }

    def judged(self, texts: dict[str, list[str]]) -> "Answered":
        """What the judges say of an answer to each item, by the suffix of its decoding."""
        rows, labels = [], {}
        for suffix, found in texts.items():
            said = [judge(self.items, found) for judge in self.judges]
            labels[suffix] = [judgement.labels for judgement in said]
            rows += [scores.renamed(judgement.row, suffix) for judgement in said]
        return Answered(scores.merge(*rows), texts, labels)


class Answered(NamedTuple):
    """Every answer to some questions, by the suffix of its decoding.

    Attributes:
      row: what the judges measure.
      texts: of the questions in turn.
      labels: of each judge, for these texts.
    """

    row: scores.Row
    texts: dict[str, list[str]]
    labels: dict[str, list[list[str]]]


class Scored(NamedTuple):
    """What is found of a model.

    Attributes:
      row: as `scores.Row`, and `by_topic`, of the oracle's first metric, sampled.
      examples: the first sampled answers to `HeldOut.shown` with their labels.
      answers: every answer, as it is written to `answers/`.
      outputs: those to prompts by the suffix of their decoding, as AlpacaEval reads them but for
        who generated them.
    """

    row: dict[str, Any]
    examples: list[list[str]]
    answers: list[dict[str, Any]]
    outputs: dict[str, list[dict[str, str]]]


class HeldOut:
    """The held-out questions of a run and everything to score a model on them.

    Where nobody judges by rule, the likelihood of the reference answers is measured too.
    """

    def __init__(self, setup: Setup, exe: Executables, seeds: Pool) -> None:
        self._setup, self._exe, self._seeds = setup, exe, seeds
        warm = setup.config.evaluation.temperature
        decoding = {
            suffix: config.traced(
                sampling.SamplingParams,
                config.Sampling(temperature=warm if temperature is None else temperature),
            )
            for suffix, temperature in _DECODING.items()
        }
        self._decoding = mesh.place(decoding, setup.program.mesh)
        self._held_out, self._prompts = self._asked()

    def _asked(self) -> tuple[Asked | None, Asked | None]:
        """The items and the prompts, as far as there are any."""
        s = self._setup
        oracle = [judges.Oracle(s.task)] if s.task.judge is not None else []
        held_out, prompts, asked = None, None, s.measured.prompts
        most = max(len(s.task.items), len(asked.items) if asked else 0)
        at_once = min(s.config.slots, most)  # one shape for both

        def models(of: str) -> list[judges.ModelJudge]:
            found, call = s.measured.judges, self._exe.call
            return [judges.ModelJudge(judge, call, at_once, of) for judge in found]

        if s.task.items:  # answered in any case: they may be judged later (`judge_run`)
            held_out = Asked(HELD_OUT, s.task.items, s.measured.held_out, [*oracle, *models("")])
        if asked is not None:
            rule = refusals.Refusals(asked.items)
            prompts = Asked(PROMPTS, asked.items, asked.pairs, [rule, *models(PROMPTS)])
        return held_out, prompts

    @property
    def _scored(self) -> bool:
        """Whether the likelihood of the references is measured."""
        s = self._setup
        asked = s.task.judge is None or s.config.evaluation.likelihood
        return asked and bool(s.task.items)

    @property
    def shown(self) -> Sequence[base.Item]:
        """The questions of the examples: those of the items, else the prompts."""
        asked = self._held_out or self._prompts
        return asked.items if asked else ()

    def score(self, trainable: lora.Trainable, how: int | None = None) -> Scored:
        """Scores a model, shown seeds as `how` says (`answers.NEAREST` and others), or none."""
        s, rows, by_topic = self._setup, [], {}
        found = {
            asked.of: (asked, self._answered(asked, trainable, how))
            for asked in (self._held_out, self._prompts)
            if asked is not None
        }
        if self._held_out is not None:
            answered = found[self._held_out.of][1]
            rows.append(answered.row)
            by_topic = self._by_topic(answered.labels[""])
        if self._scored:
            rows.append(self._likelihood(trainable, how))
        if s.measured.choices is not None:
            rows.append(self._multiple_choice(s.measured.choices, trainable, how))
        if self._prompts is not None:
            rows.append(found[self._prompts.of][1].row)
        examples = next((_examples(answered) for _, answered in found.values()), [])
        said = [line for asked, answered in found.values() for line in _lines(asked, answered)]
        outputs = self._outputs(found[self._prompts.of][1]) if self._prompts else {}
        return Scored(scores.merge(*rows) | {"by_topic": by_topic}, examples, said, outputs)

    def _asked_with(
        self, pairs: packing.Pairs, how: int | None, number: np.ndarray | None = None
    ) -> tuple[answers.Questions, int]:
        """Questions with the seeds that may be shown with them, and how many are.

        Args:
          pairs: N of them.
          how: the seeds are chosen; None: none is shown.
          number: `[N]` of rows of which several are of one question.
        """
        if how is None:
            return answers.Questions(pairs), 0
        if number is None:
            number = np.arange(len(pairs.question.bare.lengths))
        shown = answers.Shown.of(self._seeds, how, number, self._setup.program.mesh)
        return answers.Questions(pairs, shown), self._setup.config.evaluation.k

    def _answered(self, asked: Asked, trainable: lora.Trainable, how: int | None) -> Answered:
        questions, k = self._asked_with(asked.pairs, how)
        vocabulary, texts = self._setup.base.vocabulary, {}
        ended = stops.of_answer(vocabulary.form)
        for suffix, params in self._decoding.items():
            found = jax.device_get(self._exe.answer(trainable, questions, params, k, asked.of))
            texts[suffix] = spelling.texts(vocabulary, found, ended)
        return asked.judged(texts)

    def _outputs(self, answered: Answered) -> dict[str, list[dict[str, str]]]:
        """The answers to prompts, each with its instruction and what data set that is from."""
        asked = self._setup.measured.prompts
        assert asked is not None
        return {
            suffix: [
                ({"dataset": dataset} if dataset else {})
                | {"instruction": item.question, "output": text}
                for item, dataset, text in zip(asked.items, asked.datasets, texts, strict=True)
            ]
            for suffix, texts in answered.texts.items()
        }

    def _by_topic(self, labels: Sequence[Sequence[str]]) -> dict[str, list[int]]:
        task = self._setup.task
        return scores.by_topic(task.metrics[0], task.items, labels[0]) if task.metrics else {}

    def _likelihood(self, trainable: lora.Trainable, how: int | None) -> scores.Row:
        questions, k = self._asked_with(self._setup.measured.held_out, how)
        found = self._exe.log_likelihood("score", trainable, questions, k)
        return scores.of_likelihood(*jax.device_get(found))

    def _multiple_choice(
        self, asked: choices.Choices, trainable: lora.Trainable, how: int | None
    ) -> scores.Row:
        questions, k = self._asked_with(asked.pairs, how, asked.question)
        log_likelihood, _ = self._exe.log_likelihood("choices", trainable, questions, k)
        return choices.measure(asked, np.asarray(jax.device_get(log_likelihood)))

    def metrics_info(self) -> dict[str, Any]:
        """Titles and directions of the metrics, in the table's order."""
        info = self._held_out.info() if self._held_out else {}
        if self._scored:
            title = "held-out loss, nats a token"
            info[NLL] = {"title": title, "higher_is_better": False}
        if self._setup.measured.choices is not None:
            info |= choices.info(self._setup.measured.choices)
        return info | (self._prompts.info() if self._prompts else {})


def _examples(answered: Answered) -> list[list[str]]:
    """The first sampled answers, each with what all judges say."""
    texts, labels = answered.texts[""][:N_EXAMPLES], answered.labels[""]
    return [[text, "; ".join(said[i] for said in labels)] for i, text in enumerate(texts)]


def _lines(asked: Asked, answered: Answered) -> Iterator[dict[str, Any]]:
    """Every answer with its question, the question's label, and the judges' verdicts."""
    for suffix, texts in answered.texts.items():
        for i, (item, text) in enumerate(zip(asked.items, texts, strict=True)):
            verdicts = zip(asked.judges, answered.labels[suffix], strict=True)
            yield {
                "prompt": item.question,
                "answer": text,
                "label": item.kind or None,
                "decoding": suffix.removeprefix("_") or "sampled",
                "verdict": {judge.name: labels[i] for judge, labels in verdicts},
            }
