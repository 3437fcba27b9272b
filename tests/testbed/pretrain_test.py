"""How the bundled models are made: stopped at any time, it goes on to the same result."""

import dataclasses
import json
import random

import pytest
from absl import flags
from absl.testing import flagsaver

from isara_jax.testbed import pretrain


class Killed(Exception):
    """As a power cut would, between two steps."""


@pytest.fixture
def small(monkeypatch):
    """A network and steps that take seconds."""
    network = dataclasses.replace(
        pretrain.NETWORKS["tiny_llama"], width=16, n_layers=1, n_heads=2, n_kv_heads=2,
        head_size=8, hidden=16,
    )  # fmt: skip
    monkeypatch.setitem(pretrain.NETWORKS, "tiny_llama", network)
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 512)
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)
    tokenizer = pretrain.train_tokenizer(0)
    monkeypatch.setattr(pretrain, "train_tokenizer", lambda seed: tokenizer)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pretrain"])


def made(folder):
    with flagsaver.flagsaver(output=str(folder), short_steps=3, long_steps=2):
        pretrain.run()
    return (folder / "model.safetensors").read_bytes()


def test_stopped_and_started_again_is_as_if_never_stopped(small, tmp_path, monkeypatch):
    """Hours of training are lost otherwise, or end in another model than the command makes."""
    whole = made(tmp_path / "whole")
    advance = pretrain.Training.advance

    def dies_at_the_fourth(training):
        if training.step == 3:
            raise Killed
        advance(training)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretrain.Training, "advance", dies_at_the_fourth)
        made(tmp_path / "stopped")
    kept = tmp_path / "stopped" / "pretraining.msgpack"
    assert kept.exists() and not (tmp_path / "whole" / "pretraining.msgpack").exists()
    assert made(tmp_path / "stopped") == whole and not kept.exists()
    files = [tmp_path / name / "pretraining.json" for name in ("whole", "stopped")]
    logs = [json.loads(file.read_text()) for file in files]
    told = [[(e["step"], e["tokens"], e["loss"]) for e in log] for log in logs]
    assert told[0] == told[1] and [step for step, *_ in told[0]] == [1, 2, 3, 4, 5]


def test_documents_end_where_their_last_answer_ends(small):
    """A separator behind it would teach that one follows every answer, also the last."""
    tokenizer = pretrain.train_tokenizer(0)
    ids = pretrain.rows(tokenizer, random.Random(0), 40, 512)
    ended = [row[row >= 0].tolist() for row in ids if (row < 0).any()]
    assert ended and all(row[0] == 1 and row[-1] == 2 for row in ended)
    texts = [tokenizer.decode(row, skip_special_tokens=False) for row in ended]
    assert not any(text.removesuffix("</s>").endswith("\n") for text in texts)
