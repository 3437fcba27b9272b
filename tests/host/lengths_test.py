"""Lengths follow from the seeds, and texts that are too long are named."""

import dataclasses
import json

import numpy as np
import pytest

from isara_jax import config
from isara_jax.formats import pretrained
from isara_jax.host import lengths
from isara_jax.tasks.base import Pair, Task
from isara_jax.text import packing, reading, tokens


@pytest.fixture(scope="module")
def vocabulary():
    folder = pretrained.BUNDLED["tiny_llama"]
    return tokens.Vocabulary(reading.load(folder), 1536, str(folder))


def encode(vocabulary, c, pairs, limit=512):
    task = Task("mine", tuple(Pair(*p) for p in pairs), (), (), None, None)
    return lengths.encode(c, task, vocabulary, packing.Template.of(vocabulary), limit)


def own(tmp_path, pairs, **fields):
    """A configuration whose seeds file holds `pairs` behind a blank line."""
    path = tmp_path / "seeds.jsonl"
    rows = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
    path.write_text("\n" + "\n".join(rows) + "\n")
    c = dataclasses.replace(config.Config(), task=config.Task(seeds=str(path)))
    return dataclasses.replace(c, **fields)


def test_open_lengths_follow_from_the_longest_seed(vocabulary):
    """Capacity is the longest text and a quarter more; rows decode to what was written."""
    pairs = [("How?", "So."), ("Why is the river blue?", "The river is blue. " * 6)]
    found = encode(vocabulary, config.Config(), pairs)
    for index, (capacity, seeds, place) in enumerate(
        (
            (found.config.question.max_tokens, found.seeds.question, tokens.IN_QUESTION),
            (found.config.answer.max_tokens, found.seeds.answer, tokens.IN_ANSWER),
        )
    ):
        longest = max(seeds.bare.lengths)
        assert capacity % 8 == 0 and 1.25 * longest <= capacity < 1.25 * longest + 8
        seam = len(vocabulary.plain([place.seam])[0])
        for part, room, behind in (
            (seeds.bare, capacity, ""), (seeds.joined, capacity + seam, place.seam)
        ):  # fmt: skip
            for row, size, pair in zip(*part, pairs, strict=True):
                assert row.shape == (room,) and not row[size:].any()
                assert vocabulary.decode(row[:size]) == f" {pair[index]}{behind}"
    header = len(vocabulary.plain([tokens.QUESTION])[0])  # the prompt's, not a demonstration's
    shown = [len(ids) - header for ids in vocabulary.plain([tokens.render([p]) for p in pairs])]
    assert np.mean(shown) < found.typical_pair < 1.2 * np.mean(shown)


def test_a_text_longer_than_its_field_is_named_by_line(vocabulary, tmp_path):
    """The message leads to the line in the user's own file, blank lines counted."""
    pairs = [("How?", "So."), ("Why?", "word " * 30)]
    c = own(tmp_path, pairs, answer=config.Answer(max_tokens=20))
    with pytest.raises(config.ConfigError, match=r"seeds.jsonl:3: the answer has \d+ tokens, more"):
        encode(vocabulary, c, pairs)


def test_a_pair_longer_than_the_model_is_named_by_line(vocabulary, tmp_path):
    """A pair that cannot even be trained on is no surprise of the first step."""
    pairs = [("How?", "So."), ("Why?", "word " * 200)]
    with pytest.raises(config.ConfigError, match=r"seeds.jsonl:3: the pair .* model's 128 pos"):
        encode(vocabulary, own(tmp_path, pairs), pairs, limit=128)


def test_one_text_that_makes_all_the_others_wide_is_told(vocabulary, tmp_path, capfd):
    """Arrays are as wide as the longest text: memory and time follow from one seed of 64."""
    pairs = [(f"What is {i}?", "A number.") for i in range(20)]
    encode(vocabulary, own(tmp_path, pairs), pairs)
    assert capfd.readouterr().err == ""
    pairs[3] = ("What is this? " * 60 + "Why?", "A number.")
    c = own(tmp_path, pairs)
    encode(vocabulary, c, pairs, limit=4096)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{c.task.seeds}:5: the question has " in line and "nine of ten have at most" in line
    asked = dataclasses.replace(c, question=dataclasses.replace(c.question, max_tokens=1024))
    encode(vocabulary, asked, pairs, limit=4096)
    assert capfd.readouterr().err == ""  # who gives a length knows it
