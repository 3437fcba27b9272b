"""Lengths in tokens, from the seeds: every array shape follows from them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from isara_jax import config, packing, spelling, tasks, tokens
from isara_jax.tasks import files

# A generated text may be this much longer than the longest seed. Fixed, since shapes follow from it
# before anything is drawn; on a real model at most 2 of 192 answers had not ended within it
# (docs/real_model.md), and where most have not, the run says which field to raise (`advice`).
_MARGIN = 1.25
_TYPICAL_MARGIN = 1.125  # and several demonstrations together than average ones
_MULTIPLE = 8


class Encoded(NamedTuple):
    """Seeds and held-out items as tokens.

    Attributes:
      config: with `question.max_tokens` and `answer.max_tokens` filled in.
      seeds, held_out: on the host.
      typical_pair: tokens of an average seed as a demonstration, with the margin.
    """

    config: config.Config
    seeds: packing.Pairs
    held_out: packing.Pairs
    typical_pair: int


def encode(
    c: config.Config,
    task: tasks.Task,
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
    spelled = _spell(pairs, vocabulary, lambda question: _where(c, question))
    sizes = _sizes(spelled, template)
    capacity = [
        asked or round_up(_MARGIN * longest, _MULTIPLE)
        for asked, longest in zip(
            (c.question.max_tokens, c.answer.max_tokens), sizes.max(axis=0), strict=True
        )
    ]
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
    typical = math.ceil(_TYPICAL_MARGIN * mean)
    seeds, held_out = (_pairs(rows, template, capacity) for rows in (spelled[:n], spelled[n:]))
    return Encoded(c, seeds, held_out, typical)


def encode_pairs(
    pairs: Sequence[tuple[str, str]],
    vocabulary: tokens.Vocabulary,
    template: packing.Template,
    limit: int,
    source: str,
) -> packing.Pairs:
    """Encodes questions and answers that are only scored; as wide as the longest of them.

    Args:
      pairs: texts.
      vocabulary: the tokenizer.
      template: its fixed ids.
      limit: the model's positions.
      source: where the texts are from, for messages.

    Raises:
      ValueError: a pair is longer than the model, or does not survive tokenization.
    """
    spelled = _spell(pairs, vocabulary, lambda question: f"{source}: {question!r}")
    widths = _sizes(spelled, template).max(axis=0).tolist()
    if sum(widths) + template.overhead(0) > limit:
        raise ValueError(
            f"{source}: the longest question has {widths[0]} tokens, the longest answer "
            f"{widths[1]}; with the headers more than the model's {limit} positions"
        )
    return _pairs(spelled, template, widths)


_Spelled = list[tuple[tokens.Spelling, tokens.Spelling]]


def _spell(
    pairs: Sequence[tuple[str, str]], vocabulary: tokens.Vocabulary, where: Callable[[str], str]
) -> _Spelled:
    """Questions and answers as they stand in the template; an error names the pair."""
    places = (tokens.IN_QUESTION, tokens.IN_ANSWER)
    parts = list(zip(*pairs, strict=True)) or [(), ()]
    try:
        found = [vocabulary.spellings(texts, at) for texts, at in zip(parts, places, strict=True)]
    except tokens.UnspellableError as error:
        question = next(pair[0] for pair in pairs if error.text in pair)
        raise ValueError(f"{where(question)}: {error}") from error
    return list(zip(*found, strict=True))


def _sizes(spelled: _Spelled, template: packing.Template) -> np.ndarray:
    """Tokens of each question and answer, `[N, 2]`; of the longer spelling, without its seam."""
    seams = (template.to_answer, template.to_question)
    sizes = [
        [max(len(s.bare), len(s.joined) - seam) for s, seam in zip(pair, seams, strict=True)]
        for pair in spelled
    ]
    return np.asarray(sizes, np.int32).reshape(-1, 2)


def _where(c: config.Config, question: str) -> str:
    if c.task.seeds:
        return files.locate(c.task.seeds, question)
    return f"the bundled question {question!r}"


def _pairs(spelled: _Spelled, template: packing.Template, widths: Sequence[int]) -> packing.Pairs:
    """Questions and answers, each padded to its width."""
    rooms = [
        spelling.Room(width, width + seam)
        for width, seam in zip(widths, (template.to_answer, template.to_question), strict=True)
    ]
    questions, answers = ([pair[part] for pair in spelled] for part in range(2))
    return packing.Pairs(spelling.as_text(questions, rooms[0]), spelling.as_text(answers, rooms[1]))


def round_up(length: float, multiple: int) -> int:
    """The first multiple of `multiple` that is not below `length`."""
    return math.ceil(length / multiple) * multiple
