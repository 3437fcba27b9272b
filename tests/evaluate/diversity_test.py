"""Diversity against nltk's BLEU and by hand."""

import random

import pytest
from nltk.translate import bleu_score

from isara_jax.evaluate import diversity


def test_self_bleu_is_nltks():
    """What is published as self-BLEU is nltk's sentence BLEU with its first smoothing."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdef", k=rng.randrange(3, 12))) for _ in range(12)]
    texts += ["x y z", "a", texts[0]]  # nothing in common, one word, a duplicate
    words = [text.split() for text in texts]
    smooth = bleu_score.SmoothingFunction().method1
    scores = [
        bleu_score.sentence_bleu(
            words[:i] + words[i + 1 :], w, [0.25] * 4, smoothing_function=smooth
        )
        for i, w in enumerate(words)
    ]
    assert diversity.self_bleu(texts) == pytest.approx(sum(scores) / len(scores))


def test_distinct_by_hand():
    """Of a b, b c, a b, b c, c d three are different."""
    assert diversity.distinct(["a b c", "a b c d", ""], 2) == 3 / 5
    assert diversity.distinct(["a b c", "a b c d"], 1) == 4 / 7
    assert diversity.distinct(["a"], 2) is None


def test_the_ends():
    """Texts that are all alike, and too few of them."""
    assert diversity.self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert diversity.self_bleu(["a b"]) is None
