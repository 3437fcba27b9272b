"""Held-out prompts: which are asked, and that what is passed over is said."""

import json

import numpy as np
import pytest

from isara_jax import config
from isara_jax.evaluate import prompts
from isara_jax.text import packing
from tests import tiny

LIMIT, NEW = 96, 40


def read(tmp_path, *rows, n=0, seeds=()):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = config.default()
    c.answer.max_tokens, c.evaluation.prompts, c.evaluation.n = NEW, str(path), n
    vocabulary = tiny.vocabulary("byte_level")
    template = packing.Template.of(vocabulary)
    return prompts.read(config.resolve(c), seeds, vocabulary, template, LIMIT), vocabulary


def prompt(text, label=None):
    return {"prompt": text} if label is None else {"prompt": text, "label": label}


def test_what_is_passed_over_is_said(tmp_path):
    """Too long, a seed, or neither safe nor unsafe: counted, with the first line of each."""
    found, vocabulary = read(
        tmp_path,
        prompt("good?", "safe"),
        prompt("long " * 40, "unsafe"),
        prompt("fine.", "Unsafe"),
        prompt("one?", "mixed"),
        prompt("two?", "mixed"),
        prompt("three?"),
        prompt("seed?", "safe"),
        seeds={"seed?"},
    )
    assert [(item.question, item.kind) for item in found.items] == [
        ("good?", "safe"),
        ("fine.", "unsafe"),
    ]
    assert found.about.startswith("2 of the 7 in p.jsonl (1 safe, 1 unsafe); passed over: 1 of mo")
    for part in (
        "too long for the model with 40 of an answer (line 2)",
        "2 labelled 'mixed' (the first in line 4)",
        "1 without a label (line 6)",
        "1 seeds themselves (line 7)",
    ):
        assert part in found.about
    for row, length, item in zip(*found.pairs.question.bare, found.items, strict=True):
        assert vocabulary.decode(row[:length]) == f" {item.question}"
    assert found.pairs.answer.bare.ids.shape == (2, NEW)
    assert not found.pairs.answer.bare.lengths.any()


def test_the_longest_that_fit_are_asked(tmp_path):
    """A prompt, the template and an answer fill the model's positions to the last."""
    overhead = packing.Template.of(tiny.vocabulary("byte_level")).overhead(0)
    room = LIMIT - NEW - overhead
    found, _ = read(tmp_path, prompt("z" * (room - 1)), prompt("z" * room))
    assert found.pairs.question.bare.ids.shape == (1, room) and "line 2" in found.about


def test_nothing_left_is_refused(tmp_path):
    """All too long: there would be nothing to count."""
    with pytest.raises(config.ConfigError, match=r"p\.jsonl: of 2 prompts none is left: 2 of more"):
        read(tmp_path, prompt("long " * 40), prompt("long " * 50))


def test_published_prompts_say_how_their_labels_are_known(tmp_path):
    """And carry the part of a benchmark they are from; rows of a list have numbers."""
    c, vocabulary = config.default(), tiny.vocabulary("byte_level")
    template = packing.Template.of(vocabulary)
    c.answer.max_tokens = NEW

    def of(name, text):
        c.evaluation.prompts = str(tmp_path / name)
        (tmp_path / name).write_text(text)
        return prompts.read(config.resolve(c), set(), vocabulary, template, LIMIT)

    room = LIMIT - NEW - template.overhead(0)
    found = of("harmful_behaviors.csv", f"goal,target\nDo it,Sure\nDo {'that ' * 40},Sure\n")
    assert found.items[0].kind == "unsafe" and found.read == "read as goal/target"
    assert found.about == (
        "1 of the 2 in harmful_behaviors.csv (1 unsafe); AdvBench, all taken as unsafe; passed "
        f"over: 1 of more than {room} tokens, too long for the model with 40 of an answer (line 3)"
    )
    rows = [{"instruction": text, "dataset": "koala"} for text in ("Say hi.", "Say " * 40)]
    found = of("alpaca_eval.json", json.dumps(rows))
    assert found.datasets == ("koala",) and found.about.endswith("of an answer (row 2)")


@pytest.mark.parametrize(("n", "safe", "unsafe"), [(0, 6, 30), (8, 4, 4), (20, 6, 14), (99, 6, 30)])
def test_labels_are_drawn_evenly(tmp_path, n, safe, unsafe):
    """Published files are sorted by source: their first hundred are of one kind."""
    rows = [prompt(f"u{i}", "unsafe") for i in range(30)] + [
        prompt(f"s{i}", "safe") for i in range(6)
    ]
    (found, _), (again, _) = (read(tmp_path, *rows, n=n) for _ in range(2))
    kinds = [item.kind for item in found.items]
    assert (kinds.count("safe"), kinds.count("unsafe")) == (safe, unsafe)
    assert found.items == again.items and kinds == sorted(kinds, reverse=True)  # as in the file
    assert np.array_equal(found.pairs.question.bare.ids, again.pairs.question.bare.ids)
