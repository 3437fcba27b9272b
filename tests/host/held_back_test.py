"""A run in numerical trouble, and one that accepts nothing: what it says, keeps and gives."""

import json

import numpy as np
import pytest

from isara_jax import config
from isara_jax.host import held_back, run, setup
from isara_jax.host.executables import Shared
from isara_jax.method.trouble import Trouble
from isara_jax.report import table
from tests.host.run_test import adapter, lines
from tests.method.iteration_test import small


def test_a_run_that_diverges_stops_or_goes_on(random_model, tmp_path, capsys):
    """A ruinous rate: one line, or base models in place of ruined ones; the same folder goes on."""
    c = small(random_model, iterations=1, train__learning_rate=3e38, train__on_divergence="stop")
    c.evaluation.baselines, c.train.epochs, c.evaluation.n = ("sft",), 2, 4
    shared = Shared()
    with pytest.raises(config.UserError, match=r"on_divergence='stop', and in iteration 1: ") as e:
        run.run(config.resolve(c), tmp_path, shared)
    said = str(e.value)
    assert "updates held back, the first is update 2 (loss nan, gradient norm nan" in said
    assert "\n" not in said and "config.train.learning_rate=3e+38" in said
    assert "on_divergence=skip" in said and not (tmp_path / "adapter").exists()
    (held,) = lines(tmp_path / "trouble" / "iteration_1.jsonl")
    assert (held["update"], held["loss"]) == (2, "nan") and len(held["batch"]) == 8
    written = {s["id"]: s for s in lines(tmp_path / "samples" / "iteration_1.jsonl")}
    for row in held["batch"]:
        known = written.get(row["id"])
        assert known is None or row["question"] == known["question"]
        assert known is not None or row["id"].startswith("seed-")
    c.train.on_divergence = "skip"
    summary = run.run(config.resolve(c), tmp_path, shared)
    (entry,) = summary["iterations"]
    assert entry["train_dropped"] and entry["train_skipped"] == entry["train_steps"] - 1
    sft = next(row for row in summary["rows"] if row["method"] == "sft")
    assert sft["train_dropped"] and table.label(sft).endswith("steps, dropped")
    assert [line for line in table.notes(summary) if line.startswith("Updates held back")]
    assert all(np.isfinite(x).all() for x in adapter(tmp_path).values())
    (last,) = (line for line in lines(tmp_path / "metrics.jsonl") if line["step"] == 1)
    assert last["train_skipped"] == entry["train_skipped"] and last["train_dropped"] == 1
    assert "the training is dropped, the model is as before it" in capsys.readouterr().out
    assert set(summary["compiles"]) == {"sft"}  # all else is what the first run had compiled
    json.dumps(summary, allow_nan=False)


def test_a_run_that_accepts_nothing_ends(random_model, tmp_path, capsys):
    """Two in a row: the reasons by count and what to change; started again it ends so at once."""
    c = small(random_model, iterations=4, patience=2, filters__finished=True)
    c.evaluation.baselines, c.evaluation.n = (), 4
    shared = Shared()
    for _ in range(2):
        with pytest.raises(config.UserError, match="nothing was accepted in 2 iterations") as e:
            run.run(config.resolve(c), tmp_path, shared)
    said = str(e.value)
    assert "(32 question_unfinished)" in said and "config.question.max_tokens=32" in said
    assert "no iteration has a result" in said and "--config.patience=0" in said
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert len(lines(tmp_path / "samples" / "iteration_2.jsonl")) == 16
    assert capsys.readouterr().out.count("the run goes on with what the pool holds") == 2


def test_a_batch_is_told_where_it_is_not_lost():
    """One update of many: the line says which, and the training counts."""
    found = Trouble(
        np.int32(1), np.array([16, -1]), np.full((2, 3), -1), np.array([np.inf, 0.0]),
        np.array([np.nan, 0.0]), np.bool_(False),
    )  # fmt: skip
    fine = held_back.Fine("iteration_2", "iteration 2", 96, found)
    said = held_back._told(fine, config.Config())
    assert said == (
        "1 of 96 updates held back, the first is update 17 (loss inf, gradient norm nan; batches "
        "in trouble/iteration_2.jsonl)"
    )
    assert not held_back.ends(fine, config.Config())


def test_an_adapter_that_is_not_finite_is_no_start(random_model, tmp_path, monkeypatch):
    """Each loss would be NaN, and each update held back."""
    c = config.resolve(small(random_model, train__init_adapter=str(tmp_path)))
    bad = {"layers_0": {"a": np.array([1.0, np.inf])}}
    monkeypatch.setattr(setup.adapters, "load", lambda *_: (bad, c.train.lora))
    with pytest.raises(config.ConfigError, match="init_adapter=.* has numbers that are not finite"):
        setup.prepare(c, tmp_path, None)
