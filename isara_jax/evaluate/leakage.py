"""How much of what a model learns from is near what it is measured on.

Questions, of seeds and of accepted samples, are compared with every held-out one by ROUGE-L of
their tokens, as duplicates are (`method.accept`), and by their text. Nothing is filtered by it: it
is counted and told.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse

from isara_jax.text import tokens

NEAR = 0.7  # ROUGE-L from which on Self-Instruct (arXiv 2212.10560) takes questions for the same

Tokens = Sequence[int]


class HeldOut:
    """The questions a run's models are measured on: M of them.

    The work is the host's: 1,000 questions are compared with 1,000 in well under a second, because
    few pairs have enough tokens in common to need their common subsequence.
    """

    def __init__(self, questions: Sequence[str], vocabulary: tokens.Vocabulary) -> None:
        self._vocabulary, self._texts = vocabulary, frozenset(questions)
        self._tokens = self._spelled(sorted(self._texts))
        self._columns: dict[tuple[int, int], int] = {}
        for row in self._tokens:
            for occurrence in _occurrences(row):
                self._columns.setdefault(occurrence, len(self._columns))
        self._bags = self._counted(self._tokens)

    def __len__(self) -> int:
        return len(self._texts)

    def count(self, questions: Sequence[str]) -> dict[str, int]:
        """`n` questions, how many are `near` a held-out one, and how many are `identical` to one.

        An identical one is near, too.
        """
        near = self.near(self._spelled(questions))
        identical = [question in self._texts for question in questions]
        return {
            "n": len(questions),
            "near": int(np.sum(near | np.asarray(identical, bool))),
            "identical": sum(identical),
        }

    def near(self, questions: Sequence[Tokens]) -> np.ndarray:
        """`[N]` whether the ROUGE-L of a question to any held-out one reaches `NEAR`."""
        found = np.zeros(len(questions), bool)
        if not (self._tokens and questions):
            return found
        # The tokens two questions have in common, in whatever order: no subsequence is longer.
        common = (self._counted(questions) @ self._bags.T).tocoo()
        lengths, others = (
            np.array([len(row) for row in rows]) for rows in (questions, self._tokens)
        )
        at_most = 2 * common.data / (lengths[common.row] + others[common.col])
        enough = at_most >= NEAR
        for i, j in zip(common.row[enough], common.col[enough], strict=True):
            if not found[i]:
                found[i] = rouge_l(questions[i], self._tokens[j]) >= NEAR
        return found

    def _spelled(self, questions: Sequence[str]) -> list[Tokens]:
        """Tokens of texts; none of one that the tokenizer changes."""
        spelled = self._vocabulary.try_spellings(list(questions), tokens.IN_QUESTION)
        return [() if one is None else one.bare for one in spelled]

    def _counted(self, questions: Sequence[Tokens]) -> scipy.sparse.csr_matrix:
        """`[N, F]` which occurrences of tokens questions have, of those that held-out ones have.

        The second "the" of a question is another column than the first, so that a product of two
        such matrices counts what bags have in common.
        """
        rows = [[self._columns.get(x, -1) for x in _occurrences(row)] for row in questions]
        known = [[column for column in row if column >= 0] for row in rows]
        ends = np.cumsum([0, *map(len, known)])
        columns = np.fromiter((column for row in known for column in row), np.int64, ends[-1])
        shape = (len(questions), max(len(self._columns), 1))
        return scipy.sparse.csr_matrix((np.ones(ends[-1], np.int32), columns, ends), shape)


def _occurrences(row: Tokens) -> Iterator[tuple[int, int]]:
    """Each token with how often it stood before."""
    seen: collections.Counter[int] = collections.Counter()
    for token in map(int, row):
        yield token, seen[token]
        seen[token] += 1


def rouge_l(a: Tokens, b: Tokens) -> float:
    """ROUGE-L F1 (Lin 2004) of two questions' tokens, as `method.accept.rouge_l`; 0 of nothing."""
    return 2 * longest_common_subsequence(a, b) / max(len(a) + len(b), 1)


def longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    """Its length, by bits: a row of the usual table is an integer (Hyyrö 2004)."""
    places: Mapping[int, int] = collections.defaultdict(int)
    for i, token in enumerate(a):
        places[int(token)] |= 1 << i
    everywhere = (1 << len(a)) - 1
    row = everywhere  # a bit is 0 where the length grows by one
    for token in b:
        matched = row & places[int(token)]
        row = ((row + matched) | (row - matched)) & everywhere
    return len(a) - row.bit_count()
