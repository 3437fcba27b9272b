"""Somebody's own files, or published ones: seeds, prompts, questions with choices.

They are read strictly: what is wrong is an error that names its line or row. Which formats there
are says `rows`, which fields mean what `shapes`; further fields are ignored.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from isara_jax.files import remote
from isara_jax.tasks import rows, shapes
from isara_jax.tasks.base import Choice, Pair
from isara_jax.tasks.rows import Row, SeedError, shown
from isara_jax.tasks.shapes import SAFE, UNSAFE, Prompt

_A_PAIR = '{"question": "…", "answer": "…"}'
_A_PROMPT = '{"prompt": "…", "label": "unsafe"}'
_AN_ANSWER = '{"prompt": "…", "answer": "…"}'
_A_CHOICE = '{"question": "…", "choices": ["…", "…"], "answer": 0}'
MINIMUM = 2


class Seeds(NamedTuple):
    """Pairs, and how they were read: which fields were taken and which rows left out."""

    pairs: tuple[Pair, ...]
    about: str


class Prompts(NamedTuple):
    """Prompts without references, and how they were read.

    `labels` says how those are known that do not stand in the file, "" where there are none.
    """

    prompts: tuple[Prompt, ...]
    about: str
    labels: str


class Answers(NamedTuple):
    """Answers to prompts, and the rows they stand in."""

    answered: tuple[shapes.Answered, ...]
    rows: tuple[Row, ...]


class Choices(NamedTuple):
    """Questions with choices, and how they were read."""

    asked: tuple[Choice, ...]
    about: str


def read_pairs(path: str | remote.Path) -> tuple[Pair, ...]:
    """The pairs of `read_seeds`."""
    return read_seeds(path).pairs


def read_seeds(path: str | remote.Path) -> Seeds:
    """Reads question–answer pairs, stripped at both ends, in the order of the file.

    Args:
      path: a file of one of the formats of `rows.read` and one of `shapes.SEEDS`, names in capitals
        or not.

    Raises:
      SeedError: the file or one of its pairs is unusable, or there are fewer than two pairs.
    """
    shape, found = _recognised(path, shapes.SEEDS, _A_PAIR)
    pairs: list[Pair] = []
    places: dict[str, str] = {}  # of each question, by what makes two questions the same
    left_out: dict[str, list[str]] = {}
    for row, pair in _read(shape, found):
        if isinstance(pair, str):
            left_out.setdefault(pair, []).append(row.place)
            continue
        first = places.setdefault(" ".join(pair.question.split()).casefold(), row.place)
        if first == row.place:
            pairs.append(pair)
        elif shape.repeats:
            left_out.setdefault("with a prompt that stood there before", []).append(row.place)
        else:
            raise SeedError(
                f"{row.where}: {shape.used(found.names)[0]}: found the question of {first} again "
                f"({shown(pair.question)}); remove one of the two"
            )
    said = f"; left out: {counted(left_out)}" * bool(left_out)
    if len(pairs) < MINIMUM:
        raise SeedError(
            f"{remote.path(path)}: found {len(pairs)} pair(s){said}, expected at least {MINIMUM}; "
            "prompts are made of demonstrations, so add more"
        )
    return Seeds(tuple(pairs), f"{_name(path)}, {shape.said(found.names)}{said}")


def locate(path: str | remote.Path, question: str) -> str:
    """File and line or row of a question that `read_seeds` has read, for messages."""
    shape, found = _recognised(path, shapes.SEEDS, _A_PAIR)
    return next(
        row.where
        for row, pair in _read(shape, found)
        if isinstance(pair, Pair) and pair.question == question
    )


def read_prompts(path: str | remote.Path) -> Prompts:
    """Reads prompts without references, in the order of the file.

    Args:
      path: a file as for `read_seeds`, of one of `shapes.PROMPTS`. Labels are `safe` or `unsafe`,
        in capitals or not; other ones come back as they are.

    Raises:
      SeedError: the file or a prompt is unusable, or it has labels and none is one of the two.
    """
    shape, found = _recognised(path, shapes.PROMPTS, _A_PROMPT)
    prompts = tuple(prompt for _, prompt in _read(shape, found))
    path = remote.path(path)
    if not prompts:
        raise SeedError(f"{path}: no prompt in it; write one {_A_PROMPT} a line")
    odd = next((i for i, prompt in enumerate(prompts) if prompt.label), None)
    if odd is not None and not any(prompt.label in (SAFE, UNSAFE) for prompt in prompts):
        raise SeedError(
            f"{found.rows[odd].where}: label: found {shown(prompts[odd].label)}, and no {SAFE!r} "
            f"or {UNSAFE!r} in the file; write one of the two, or remove the labels"
        )
    return Prompts(prompts, shape.said(found.names), shape.taken(found.names))


def read_answers(path: str | remote.Path) -> Answers:
    """Reads what some program has answered.

    Args:
      path: a file as for `read_seeds`, of one of `shapes.ANSWERS`.

    Raises:
      SeedError: the file or one of its rows is unusable.
    """
    shape, found = _recognised(path, shapes.ANSWERS, _AN_ANSWER)
    answered = tuple(one for _, one in _read(shape, found))
    if not answered:
        raise SeedError(f"{remote.path(path)}: no answer in it; write one {_AN_ANSWER} a line")
    return Answers(answered, found.rows)


def read_choices(path: str | remote.Path) -> Choices:
    """Reads questions with choices.

    Args:
      path: a file as for `read_seeds`, of one of `shapes.CHOICES`. One's own have `question`,
        `choices` (a list of texts) and `answer`, the number of the right one from 0, or a list of
        the right ones' numbers, the best first.

    Raises:
      SeedError: the file or one of its rows is unusable.
    """
    shape, found = _recognised(path, shapes.CHOICES, _A_CHOICE)
    asked = tuple(choice for _, choice in _read(shape, found))
    if not asked:
        raise SeedError(f"{remote.path(path)}: no question in it; write one {_A_CHOICE} a line")
    return Choices(asked, f"{_name(path)}, {shape.said(found.names)}")


def counted(left_out: Mapping[str, Sequence[str]]) -> str:
    """How many were left out for which reason, and where the first of each stands."""
    return ", ".join(
        f"{len(places):,} {reason} ({'the first in ' * (len(places) > 1)}{places[0]})"
        for reason, places in left_out.items()
    )


def _recognised(
    path: str | remote.Path, known: Sequence[shapes.Shape], example: str
) -> tuple[shapes.Shape, rows.Rows]:
    """A file's rows and what their fields mean; an empty one has the first shape."""
    found = rows.read(path, shapes.fit(known), example)
    return (shapes.recognise(found, known) if any(found.names) else known[0]), found


def _read(
    shape: shapes.Shape, found: rows.Rows
) -> Iterator[tuple[Row, Pair | str | Prompt | shapes.Answered | Choice]]:
    for row in found.rows:
        if not found.columns:
            shapes.check_once(row, shape.names)
        yield row, shape.read(row)


def _name(path: str | remote.Path) -> str:
    return remote.path(path).name
