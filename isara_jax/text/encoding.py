"""Texts as padded rows of tokens, on the host: as wide as their longest, or as there is room."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from isara_jax.shell.terminal import quoted
from isara_jax.text import packing, stops, tokens


def round_up(length: float, multiple: int) -> int:
    """The first multiple of `multiple` that is not below `length`."""
    return math.ceil(length / multiple) * multiple


class Room(NamedTuple):
    """Columns of a text's two spellings."""

    bare: int
    joined: int


def as_text(spellings: Sequence[tokens.Spelling], room: Room) -> packing.Text:
    """Right-padded rows, on the host.

    Raises:
      ValueError: a row is longer than its room.
    """
    return packing.Text(
        packing.pad([s.bare for s in spellings], room.bare),
        packing.pad([s.joined for s in spellings], room.joined),
    )


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
    spelled = spell_pairs(pairs, vocabulary, lambda question: f"{source}: {question!r}")
    widths = sizes(spelled, template).max(axis=0).tolist()
    if sum(widths) + template.overhead(0) > limit:
        raise ValueError(
            f"{source}: the longest question has {widths[0]} tokens, the longest answer "
            f"{widths[1]}; with the headers more than the model's {limit} positions"
        )
    return padded(spelled, template, widths)


Spelled = list[tuple[tokens.Spelling, tokens.Spelling]]


def spell_pairs(
    pairs: Sequence[tuple[str, str]], vocabulary: tokens.Vocabulary, where: Callable[[str], str]
) -> Spelled:
    """Questions and answers as they stand in the template; an error names the pair."""
    form = vocabulary.form
    _check_headers(pairs, form, where)
    places = (form.question, form.answer)
    parts = list(zip(*pairs, strict=True)) or [(), ()]
    try:
        found = [vocabulary.spellings(texts, at) for texts, at in zip(parts, places, strict=True)]
    except tokens.UnspellableError as error:
        question = next(pair[0] for pair in pairs if error.text in pair)
        raise ValueError(f"{where(question)}: {error}") from error
    return list(zip(*found, strict=True))


def _check_headers(
    pairs: Sequence[tuple[str, str]], form: tokens.Form, where: Callable[[str], str]
) -> None:
    """Raises `ValueError` where a text holds what ends one in a chat's template.

    The plain one's headers are refused where texts are read.
    """
    if form == tokens.PLAIN:
        return
    for pair in pairs:
        for text, ended in zip(pair, (stops.of_question(form), stops.of_answer(form)), strict=True):
            for stop in ended:
                if stop.before(text.encode()) != text.encode():
                    raise ValueError(
                        f"{where(pair[0])}: found {stop.text!r} in {quoted(text)}, which ends a "
                        "text in the model's chat template; write it otherwise"
                    )


def sizes(spelled: Spelled, template: packing.Template) -> np.ndarray:
    """Tokens of each question and answer, `[N, 2]`; of the longer spelling, without its seam."""
    seams = (template.to_answer, template.to_question)
    sizes = [
        [max(len(s.bare), len(s.joined) - seam) for s, seam in zip(pair, seams, strict=True)]
        for pair in spelled
    ]
    return np.asarray(sizes, np.int32).reshape(-1, 2)


def padded(spelled: Spelled, template: packing.Template, widths: Sequence[int]) -> packing.Pairs:
    """Questions and answers, each padded to its width."""
    rooms = [
        Room(width, width + seam)
        for width, seam in zip(widths, (template.to_answer, template.to_question), strict=True)
    ]
    questions, answers = ([pair[part] for pair in spelled] for part in range(2))
    return packing.Pairs(as_text(questions, rooms[0]), as_text(answers, rooms[1]))
