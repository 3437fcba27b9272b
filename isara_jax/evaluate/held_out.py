"""A model's score on the held-out questions: a row of the table."""

from typing import Any

import jax
import numpy as np

from isara_jax import config, lora, mesh, sampling
from isara_jax.decode import Generation
from isara_jax.evaluate import answers, scores
from isara_jax.executables import Executables
from isara_jax.setup import Setup

N_EXAMPLES = 5
NLL = "nll_per_token"


class HeldOut:
    """The held-out questions of a run and everything to score a model on them."""

    def __init__(self, setup: Setup, exe: Executables, questions: answers.Questions) -> None:
        self._setup, self._exe, self._questions = setup, exe, questions
        warm = config.Sampling(temperature=setup.config.evaluation.temperature)
        decoding = {
            "": sampling.SamplingParams.of(warm),
            "_greedy": sampling.SamplingParams.of(config.Sampling(temperature=0.0)),
        }
        self._decoding = jax.device_put(decoding, mesh.replicated(setup.program.mesh))

    def score(self, trainable: lora.Trainable, k: int) -> tuple[dict[str, Any], list[list[str]]]:
        """Scores a model with k demonstrations.

        Returns:
          The row's metrics, counts, intervals and `by_topic` (of the first metric, sampled); and
          the first few sampled answers with their labels (none without a judge).
        """
        if self._setup.task.judge is None:
            found = self._exe.log_likelihood(trainable, self._questions, k)
            return scores.of_likelihood(*jax.device_get(found)) | {"by_topic": {}}, []
        task, examples = self._setup.task, []
        row: dict[str, Any] = {"metrics": {}, "counts": {}, "intervals": {}}
        for suffix, params in self._decoding.items():
            generation = jax.device_get(self._exe.answer(trainable, self._questions, params, k))
            texts = [text_of(self._setup, generation, i) for i in range(len(task.items))]
            labels = [task.judge(i.question, a) for i, a in zip(task.items, texts, strict=True)]
            found = scores.of_labels(task.metrics, task.items, labels, suffix)
            row = {key: value | found.get(key, {}) for key, value in row.items()}
            if not suffix:
                row["by_topic"] = scores.by_topic(task.metrics[0], task.items, labels)
                examples = [list(e) for e in zip(texts, labels, strict=True)][:N_EXAMPLES]
        return row, examples

    def metrics_info(self) -> dict[str, Any]:
        """Titles and directions of the metrics, in the table's order."""
        if self._setup.task.judge is None:
            title = "held-out loss, nats a token"
            return {NLL: {"title": title, "higher_is_better": False}}
        return {
            m.name + suffix: {"title": m.title, "higher_is_better": m.higher_is_better}
            for suffix in self._decoding
            for m in self._setup.task.metrics
        }


def text_of(s: Setup, generation: Generation, index: int) -> str:
    """The text of one row of a generation, on the host, without the spaces around it."""
    ids = np.asarray(generation.tokens[index])[: generation.lengths[index]]
    return s.vocabulary.decode(ids).strip()
