"""Lengths in tokens, from the seeds: every array shape follows from them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.tasks import files
from isara_jax.tasks.base import Task
from isara_jax.text import encoding, packing, tokens

# A generated text may be this much longer than the longest seed. Fixed, since shapes follow from it
# before anything is drawn; on a real model at most 2 of 192 answers had not ended within it
# (docs/real_model.md), and where most have not, the run says which field to raise (`advice`).
_MARGIN = 1.25
_OUTLIER, _SMALL = 3, 128  # times what nine of ten have; tokens that are no matter
_TYPICAL_MARGIN = 1.125  # and several demonstrations together than average ones
_MULTIPLE = 8


class Encoded(NamedTuple):
    """Seeds and held-out items as tokens.

    Attributes:
      config: with `question.max_tokens` and `answer.max_tokens` filled in.
      seeds, held_out: on the host.
      typical_pair: tokens of a demonstration: `pair_tokens`, else of an average seed, with the
        margin.
    """

    config: config.Config
    seeds: packing.Pairs
    held_out: packing.Pairs
    typical_pair: int


def encode(
    c: config.Config,
    task: Task,
    vocabulary: tokens.Vocabulary,
    template: packing.Template,
    limit: int,
) -> Encoded:
    """Encodes the task; lengths that the configuration leaves open follow from its longest texts.

    Args:
      c: the configuration.
      task: seeds and items.
      vocabulary: the tokenizer.
      template: its fixed ids.
      limit: the model's positions.

    Raises:
      ValueError: a text is too long for its field or for the model, or does not survive
        tokenization; the message names it, by file and line for own seeds.
    """
    pairs = [(s.question, s.answer) for s in task.seeds]
    pairs += [(i.question, i.reference) for i in task.items]
    spelled = encoding.spell_pairs(pairs, vocabulary, lambda question: _where(c, question))
    sizes = encoding.sizes(spelled, template)
    capacity = [
        asked or encoding.round_up(_MARGIN * longest, _MULTIPLE)
        for asked, longest in zip(
            (c.question.max_tokens, c.answer.max_tokens), sizes.max(axis=0), strict=True
        )
    ]
    _tell_of_outliers(c, pairs, sizes)
    overhead = template.overhead(0) + 1  # EOS
    for (question, _), size in zip(pairs, sizes, strict=True):
        for part, name in enumerate(("question", "answer")):
            if size[part] > capacity[part]:
                raise config.ConfigError(
                    f"{_where(c, question)}: the {name} has {size[part]} tokens, more than "
                    f"config.{name}.max_tokens={capacity[part]}; raise it or shorten the text"
                )
        if size.sum() + overhead > limit:
            raise config.ConfigError(
                f"{_where(c, question)}: the pair takes {size.sum() + overhead} tokens, more than "
                f"the model's {limit} positions; shorten it or remove it"
            )
    c = dataclasses.replace(
        c,
        question=dataclasses.replace(c.question, max_tokens=capacity[0]),
        answer=dataclasses.replace(c.answer, max_tokens=capacity[1]),
    )
    n = len(task.seeds)
    mean = sizes[:n].sum(axis=1).mean() + template.pair
    typical = c.pair_tokens or math.ceil(_TYPICAL_MARGIN * mean)
    seeds, held_out = (
        encoding.padded(rows, template, capacity) for rows in (spelled[:n], spelled[n:])
    )
    return Encoded(c, seeds, held_out, typical)


def _tell_of_outliers(
    c: config.Config, pairs: Sequence[tuple[str, str]], sizes: np.ndarray
) -> None:
    """Says once where one text makes everything several times as large as the others need."""
    fields = (("question", c.question.max_tokens), ("answer", c.answer.max_tokens))
    for part, (name, asked) in enumerate(fields):
        longest, most = int(np.argmax(sizes[:, part])), int(np.quantile(sizes[:, part], 0.9))
        found = int(sizes[longest, part])
        if not asked and len(pairs) > 1 and found > max(_OUTLIER * most, _SMALL):
            processes.say_once(
                f"{_where(c, pairs[longest][0])}: the {name} has {found} tokens, nine of ten have "
                f"at most {most}; all arrays are as wide as it, so that without it a run takes "
                "less time and memory"
            )


def _where(c: config.Config, question: str) -> str:
    if c.task.seeds:
        return files.locate(c.task.seeds, question)
    return f"the bundled question {question!r}"
