"""The vocabulary of a domain: seeds to start from, items to be scored on, and who judges."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question and its answer, as written in a seed."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Item:
    """One held-out question.

    Attributes:
      question: as it is asked.
      reference: an answer that counts as aligned.
      kind: what the metrics tell apart, such as `harmful` and `benign`.
      topic: a finer division, to report by and to study transfer between.
    """

    question: str
    reference: str
    kind: str
    topic: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with choices; numbers of choices count from 0.

    Attributes:
      question: as it is asked.
      choices: all of them, right ones and wrong ones.
      answer: the right one, of several the best.
      also: further right ones.
      only_mc1, only_mc2: wrong ones that one of the two metrics leaves out (`evaluate.choices`).
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    also: tuple[int, ...] = ()
    only_mc1: tuple[int, ...] = ()
    only_mc2: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """The share of the items of `kind` (None: of all) whose label is one of `labels`.

    `higher_is_better` is None where neither is.
    """

    name: str
    title: str
    kind: str | None
    labels: tuple[str, ...]
    higher_is_better: bool | None


@dataclasses.dataclass(frozen=True)
class Task:
    """A domain: what the model starts from and how it is scored.

    Attributes:
      name: of the domain.
      seeds: the only human-written pairs the method gets.
      items: held out; never seeds.
      metrics: shares of the judge's labels, the most telling first; empty without a judge.
      judge: labels an answer, `judge(question, answer)`. None where nobody can: then a run reports
        the likelihood of the items' references.
      check_question: whether a generated question is a valid one of this domain; None where
        nobody can know.
      about: which file the seeds are from, how it was read and what was left out; empty of bundled
        ones.
    """

    name: str
    seeds: tuple[Pair, ...]
    items: tuple[Item, ...]
    metrics: tuple[Metric, ...]
    judge: Callable[[str, str], str] | None
    check_question: Callable[[str], bool] | None
    about: str = ""
