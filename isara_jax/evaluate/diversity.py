"""How diverse texts are: distinct n-grams, and how much of each is found in the others.

Words are what stands between white space.
"""

import collections
import math
from collections.abc import Sequence

_ORDER, _SMOOTHED = 4, 0.1  # BLEU's n-grams; for none that match (Chen and Cherry 2014, method 1)
Words = Sequence[str]


def _grams(words: Words, n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams as a share of all (Li et al., arXiv 1510.03055); None where none are."""
    found = sum((_grams(text.split(), n) for text in texts), collections.Counter())
    return len(found) / found.total() if found else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean BLEU-4 of each text against all the others (Texygen, arXiv 1802.01886).

    1 where all texts are alike. None of fewer than two texts.
    """
    if len(texts) < 2:
        return None
    words = [text.split() for text in texts]
    counts = [[_grams(w, n) for w in words] for n in range(1, _ORDER + 1)]
    largest = [_two_largest(of_order) for of_order in counts]
    lengths = collections.Counter(map(len, words))
    scores = []
    for i, w in enumerate(words):
        others = lengths - collections.Counter([len(w)])
        closest = min(others, key=lambda length: (abs(length - len(w)), length))
        matches = [
            sum(min(count, _of_others(known[gram], i)) for gram, count in of_order[i].items())
            for of_order, known in zip(counts, largest, strict=True)
        ]
        scores.append(_bleu(matches, len(w), closest))
    return sum(scores) / len(scores)


def _two_largest(
    counts: Sequence[collections.Counter[tuple[str, ...]]],
) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Of each n-gram, the two texts that have it most often: `(count, text)`."""
    found: dict[tuple[str, ...], list[tuple[int, int]]] = collections.defaultdict(list)
    for i, of_text in enumerate(counts):
        for gram, count in of_text.items():
            found[gram] = sorted([*found[gram], (count, i)], reverse=True)[:2]
    return found


def _of_others(largest: Sequence[tuple[int, int]], i: int) -> int:
    """The most often that another text than i has the n-gram."""
    return next((count for count, text in largest if text != i), 0)


def _bleu(matches: Sequence[int], length: int, closest: int) -> float:
    """BLEU (Papineni et al. 2002) of clipped matches of each order, equally weighted."""
    if not matches[0]:
        return 0.0
    possible = [max(length - n, 1) for n in range(_ORDER)]
    precisions = [(m or _SMOOTHED) / p for m, p in zip(matches, possible, strict=True)]
    brevity = min(0.0, 1 - closest / length)
    return math.exp(brevity + sum(map(math.log, precisions)) / _ORDER)
