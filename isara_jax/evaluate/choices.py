"""Multiple choice by likelihood: MC1 of TruthfulQA (arXiv 2109.07958).

A question is answered right where the correct choice has the highest log-probability of all, summed
over its tokens, behind the question. No judge is needed.
"""

from typing import NamedTuple

import numpy as np

from isara_jax.evaluate import scores
from isara_jax.tasks import files
from isara_jax.tasks.base import Choice
from isara_jax.text import encoding, packing, tokens

MC1 = "mc1"


class Choices(NamedTuple):
    """Questions with choices, one row a choice.

    Attributes:
      pairs: M questions and choices as tokens.
      question: `[M]` the question each row belongs to.
      correct: `[M]` whether the choice is the correct one of its question.
      asked: the questions as read.
    """

    pairs: packing.Pairs
    question: np.ndarray
    correct: np.ndarray
    asked: tuple[Choice, ...] = ()


def read(
    path: str, vocabulary: tokens.Vocabulary, template: packing.Template, limit: int
) -> Choices:
    """Reads and encodes a file of questions with choices; the pairs stay on the host.

    Args:
      path: as for `files.read_choices`.
      vocabulary: the tokenizer.
      template: its fixed ids.
      limit: the model's positions.

    Raises:
      ValueError: the file is unusable, or a text is too long.
    """
    asked = files.read_choices(path)
    rows, question, correct = [], [], []
    for number, one in enumerate(asked):
        for index, choice in enumerate(one.choices):
            rows.append((one.question, choice))
            question.append(number)
            correct.append(index == one.answer)
    pairs = encoding.encode_pairs(rows, vocabulary, template, limit, path)
    return Choices(pairs, np.asarray(question), np.asarray(correct), asked)


def mc1(choices: Choices, log_likelihood: np.ndarray) -> scores.Row:
    """The share of questions whose correct choice is the most probable; a tie is an error."""
    right = []
    for number in range(choices.question[-1] + 1):
        mine = choices.question == number
        correct = choices.correct[mine]
        values = log_likelihood[mine]
        right.append(bool(values[correct].max() > values[~correct].max()))
    return scores.of_outcomes(MC1, right)
