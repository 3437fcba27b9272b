"""What is counted as near a held-out question, against `rouge-score`."""

import random

import pytest
from rouge_score import rouge_scorer

from isara_jax.evaluate import leakage
from isara_jax.tasks import bundled
from isara_jax.text import tokens


class Words:
    """A vocabulary whose tokens are words; a text with "!" cannot be spelled."""

    def __init__(self):
        self.ids = {}

    def tokenize(self, text):  # for rouge-score
        return text.split()

    def try_spellings(self, texts, place):
        assert place == tokens.IN_QUESTION
        rows = [[self.ids.setdefault(word, len(self.ids)) for word in t.split()] for t in texts]
        spelled = (tokens.Spelling(row, row) for row in rows)
        return [None if "!" in t else s for t, s in zip(texts, spelled, strict=True)]


SCORER = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())


def score(a, b):
    return SCORER.score(a, b)["rougeL"].fmeasure


def written(rng, alphabet, longest):
    return " ".join(rng.choices([f"w{i}" for i in range(alphabet)], k=rng.randrange(longest)))


@pytest.mark.parametrize(("alphabet", "longest"), [(2, 9), (4, 12), (12, 30), (3, 90)])
def test_near_is_what_the_package_says(alphabet, longest):
    """Every pair is compared, whatever is skipped for speed: repeated words, long texts."""
    rng = random.Random(alphabet)
    ours, held_out = ([written(rng, alphabet, longest) for _ in range(40)] for _ in range(2))
    for i in range(0, 40, 2):  # some are near: a word in four or five is another
        words = [rng.choice("xyz") if rng.random() < 0.22 else w for w in held_out[i].split()]
        ours[i] = " ".join(words)
    vocabulary = Words()
    compared = leakage.HeldOut(held_out, vocabulary)
    rows = [one.bare for one in vocabulary.try_spellings(ours, tokens.IN_QUESTION)]
    found = compared.near(rows).tolist()
    expected = [max(score(a, b) for b in held_out) >= leakage.NEAR for a in ours]
    assert found == expected and len({*expected}) == 2
    for a, b in zip(ours, held_out, strict=True):
        ids = [one.bare for one in vocabulary.try_spellings([a, b], tokens.IN_QUESTION)]
        assert leakage.rouge_l(*ids) == pytest.approx(score(a, b))


def test_what_is_counted():
    """An identical question is near, also one that the tokenizer changes."""
    held_out = leakage.HeldOut(["how to bake a cake", "stop !", "how to bake a cake"], Words())
    asked = ["how to bake a cake", "how to bake a loaf", "stop !", "who are you", ""]
    assert held_out.count(asked) == {"n": 5, "near": 3, "identical": 2}
    assert len(held_out) == 2
    assert held_out.count([]) == {"n": 0, "near": 0, "identical": 0}
    assert leakage.HeldOut([], Words()).count(["a"]) == {"n": 1, "near": 0, "identical": 0}


def test_the_threshold_is_reached_by_what_is_equal_to_it():
    """As of duplicates: 7 of 10 words, in their order, are enough; 6 are not."""
    held_out = leakage.HeldOut(["a b c d e f g h i j"], Words())
    assert held_out.count(["a b c d e f g x y z"])["near"] == 1
    assert held_out.count(["a b c d e f x y z g"])["near"] == 1
    assert held_out.count(["b a c d e f g x y z"])["near"] == 0


def test_seeds_of_the_bundled_world_are_never_held_out():
    """The world holds acts out: no seed has the text of an item, of any run."""
    items = leakage.HeldOut([i.question for i in bundled.bundled_items("safety")], Words())
    for seed in range(3):
        seeds = bundled.bundled_seeds("safety", 32, None, seed)
        assert items.count([pair.question for pair in seeds])["identical"] == 0
