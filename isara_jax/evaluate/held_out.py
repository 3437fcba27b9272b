"""A model's score on the held-out questions: a row of the table."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from isara_jax import config, lora, mesh, sampling, spelling, stops
from isara_jax.evaluate import answers, choices, judges, scores
from isara_jax.executables import Executables
from isara_jax.setup import Setup

N_EXAMPLES = 5
NLL = "nll_per_token"
_DECODING = {"": None, "_greedy": 0.0}  # the temperature behind each suffix; None: as configured


class HeldOut:
    """The held-out questions of a run and everything to score a model on them.

    Where nobody judges by rule, the likelihood of the reference answers is measured too.
    """

    def __init__(self, setup: Setup, exe: Executables, questions: answers.Questions) -> None:
        self._setup, self._exe, self._questions = setup, exe, questions
        warm = setup.config.evaluation.temperature
        decoding = {
            suffix: sampling.SamplingParams.of(
                config.Sampling(temperature=warm if temperature is None else temperature)
            )
            for suffix, temperature in _DECODING.items()
        }
        self._decoding = mesh.place(decoding, setup.program.mesh)
        self._judges: list[judges.Judge] = []
        if setup.task.judge is not None:
            self._judges.append(judges.Oracle(setup.task))
        for loaded in setup.judges:
            self._judges.append(judges.ModelJudge(loaded, exe.call, setup.config.slots))

    def score(self, trainable: lora.Trainable, k: int) -> tuple[dict[str, Any], list[list[str]]]:
        """Scores a model with k demonstrations.

        Returns:
          The row's metrics, counts, intervals and `by_topic` (of the oracle's first metric,
          sampled); and the first few sampled answers with their labels (none without a judge).
        """
        row, examples, by_topic = scores.merge(), [], {}
        items = self._setup.task.items
        for suffix, params in self._decoding.items() if self._judges else ():
            generation = jax.device_get(self._exe.answer(trainable, self._questions, params, k))
            texts = spelling.texts(self._setup.vocabulary, generation, stops.ANSWER_STOPS)
            verdicts = [judge(items, texts) for judge in self._judges]
            row = scores.merge(row, *(scores.renamed(v.row, suffix) for v in verdicts))
            if not suffix:
                by_topic = self._by_topic(verdicts[0].labels)
                labels = zip(*(v.labels for v in verdicts), strict=True)
                said = zip(texts, map("; ".join, labels), strict=True)
                examples = [list(e) for e in said][:N_EXAMPLES]
        if self._setup.task.judge is None and items:
            row = scores.merge(row, self._likelihood(trainable, k))
        if self._setup.choices is not None:
            row = scores.merge(row, self._mc1(self._setup.choices, trainable, k))
        return row | {"by_topic": by_topic}, examples

    def _by_topic(self, labels: Sequence[str]) -> dict[str, list[int]]:
        task = self._setup.task
        return scores.by_topic(task.metrics[0], task.items, labels) if task.metrics else {}

    def _likelihood(self, trainable: lora.Trainable, k: int) -> scores.Row:
        found = self._exe.log_likelihood("score", trainable, self._questions, k)
        return scores.of_likelihood(*jax.device_get(found))

    def _mc1(self, asked: choices.Choices, trainable: lora.Trainable, k: int) -> scores.Row:
        questions = answers.Questions(asked.pairs, self._questions.seeds)
        log_likelihood, _ = self._exe.log_likelihood("choices", trainable, questions, k)
        return choices.mc1(asked, np.asarray(jax.device_get(log_likelihood)))

    def metrics_info(self) -> dict[str, Any]:
        """Titles and directions of the metrics, in the table's order."""
        info = {
            name + suffix: about
            for judge in self._judges
            for suffix in _DECODING
            for name, about in judge.info().items()
        }
        if self._setup.task.judge is None:
            title = "held-out loss, nats a token"
            info[NLL] = {"title": title, "higher_is_better": False}
        if self._setup.choices is not None:
            info[choices.MC1] = {"title": "MC1", "higher_is_better": True}
        return info
