"""A study as it is run: cells, what is compiled for them, what is left behind."""

import json
import types

import numpy as np
import pytest
import safetensors.numpy

from isara_jax import config, study
from isara_jax.host import run
from isara_jax.host.executables import Shared
from isara_jax.method.program import Hyper, static
from isara_jax.studies import cells, grids, record, result, running, tables
from isara_jax.studies.grids import Level, Study
from tests.method.iteration_test import SAMPLES, small

TINY = Study(
    name="tiny",
    claim="Nothing is learnt by noise.",
    axis="temperature",
    levels=(Level("1.0"), Level("as it is", {"question.sampling.temperature": 1.0}),
            Level("0.5", {"question.sampling.temperature": 0.5})),
    reference="1.0",
)  # fmt: skip
# Lengths are open; of one topic there are fewer seeds than demonstrations are asked for.
OPEN = {
    "question__max_tokens": 0, "answer__max_tokens": 0, "iterations": 1, "answer__k": 6,
    "task__n_seeds": 4, "task__topics": ("arson",), "evaluation__likelihood": True,
}  # fmt: skip


def base_of(model, **changes):
    values = small(model, **OPEN | changes)
    return cells.Base({"domain": "safety", "model": "random"}, values)


@pytest.fixture(scope="module")
def finished(random_model, tmp_path_factory):
    """Two levels that only traced numbers tell apart, with two random seeds each."""
    folder = tmp_path_factory.mktemp("study")
    grid = cells.of(TINY, [base_of(random_model)], 2, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_DRAWN", SAMPLES)
        study.run(TINY, grid, folder, keep_runs=True)
    return grid, folder, json.loads((folder / "tiny.json").read_text())


def test_equal_programs_are_compiled_once(finished):
    """75 runs of one shape would else compile 75 times: random seeds and traced numbers do not."""
    grid, _, found = finished
    assert len(grid) == 4  # the level that changes nothing is the default itself
    assert found["cells"] == {"done": 4, "planned": 4}
    assert set(found["compiles"].values()) == {1} and "isara_step" in found["compiles"]


def test_what_the_last_run_did_not_call_is_dropped(tmp_path):
    """Executables of all of a study's shapes would fill the memory."""
    shared, made = Shared(silent=True), []
    for wanted in (("a", "b"), ("a",), ("a", "b")):
        shared.begin(tmp_path / "output.txt")
        for name in wanted:
            shared.get(name, lambda name=name: made.append(name))
    assert made == ["a", "b", "b"]


def test_a_cell_is_the_run_that_it_says(finished, tmp_path):
    """Executables of an earlier run with another seed must not change a bit of what comes out."""
    grid, folder, _ = finished
    last = grid[-1]
    alone = run.run(last.config, tmp_path)
    there = folder / "cells" / last.name
    assert alone["rows"] == json.loads((there / "summary.json").read_text())["rows"]
    ours, theirs = (
        safetensors.numpy.load_file(place / "adapter" / "adapter_model.safetensors")
        for place in (there, tmp_path)
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert all(alone["compiles"][name] == 1 for name in ("isara_step", "sft"))


def test_the_record_has_every_outcome(finished):
    """What is left of a run must give its rates again, and say of which items."""
    grid, folder, _ = finished
    found = json.loads((folder / "cells" / grid[0].name / "cell.json").read_text())
    assert list(found["headline"]) == ["aligned_rate", "aligned_rate_greedy", "nll_per_token"]
    assert len(found["seen"]) == 16 and set(found["seen"]) == {"0", "1"}
    for row in found["rows"]:
        for name in found["headline"]:
            values, weights = record.outcomes(row, name)
            assert len(values) == 16
            assert sum(values) / sum(weights) == pytest.approx(row["metrics"][name], abs=1e-5)
    assert found["iterations"][0]["attempted"] == SAMPLES
    assert 0 < found["iterations"][0]["question_distinct_2"] <= 1


def test_what_is_finished_is_not_run_again(finished, monkeypatch):
    """The same command after Ctrl-C goes on where it stopped, and says the same at the end."""
    grid, folder, found = finished
    monkeypatch.setattr(running.run, "run", None)
    study.run(TINY, grid, folder, keep_runs=True)
    again = json.loads((folder / "tiny.json").read_text())
    assert again == found | {"date": again["date"]}


def test_a_record_outlives_new_fields_but_not_new_defaults(finished, tmp_path):
    """Records are committed, to be extended months later: a new field must not cost them all, and
    a changed default must not pass for what it was."""
    grid, folder, _ = finished
    cell, path = grid[0], tmp_path / grid[0].name / "cell.json"
    known = json.loads((folder / "cells" / cell.name / "cell.json").read_text())
    del known["config"]["patience"]
    path.parent.mkdir()
    path.write_text(json.dumps(known))
    assert len(running.finished([cell], tmp_path)) == 1
    known["config"]["patience"] = 99
    path.write_text(json.dumps(known))
    assert running.finished([cell], tmp_path) == []


def test_table_and_picture_follow_from_the_json(finished, tmp_path):
    """The JSON is committed and the runs are not: it alone must be enough, for every plot."""
    _, folder, found = finished
    result.write(found, tmp_path)
    text = (folder / "tiny.md").read_text()
    assert (tmp_path / "tiny.md").read_text() == text and "ISARA, 1.0" in text
    groups = {group["labels"]["temperature"]: group for group in found["groups"]}
    assert list(groups) == ["1.0", "0.5"]
    differences = groups["0.5"]["metrics"]["aligned_rate"]["isara_minus"]
    assert {"base", "icl_knn", "sft_best"} < set(differences) and "reference" in differences
    for plot in ("dots", "curves", "iterations"):
        result.write(found | {"plot": plot}, tmp_path)
        assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")


def test_bulky_files_can_go(finished, tmp_path):
    """A hundred runs' checkpoints fill a disk; the record stays."""
    (tmp_path / "samples").mkdir()
    for name in ("cell.json", "summary.json", "samples/iteration_1.jsonl"):
        (tmp_path / name).write_text("{}")
    running._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cell.json"]


def test_lengths_do_not_depend_on_how_many_random_seeds_are_run(random_model, tmp_path):
    """Else more seeds later would be other runs, and those that are there be lost."""
    wide = Study(
        name="w", claim="", axis="seeds", levels=(Level("4", {"task.n_seeds": 4}), Level("8"))
    )
    few, many = (cells.of(wide, [base_of(random_model)], n, tmp_path) for n in (1, 3))
    assert {cell.name for cell in few} < {cell.name for cell in many}
    sizes = {(c.question.max_tokens, c.answer.max_tokens, c.pair_tokens)
             for _, c in many}  # fmt: skip
    assert len(sizes) == 1 and min(*sizes) > 0


def test_what_is_static_is_all_but_what_is_traced():
    """A traced field left in it compiles for nothing; a static one left out shares wrongly."""
    c = config.resolve(small("tiny_llama"))
    for path, value in {
        "seed": 5, "question.sampling.top_p": 0.5, "answer.sampling.top_k": 3,
        "filters.rouge_l": 0.1, "filters.min_score": -1.0, "train.epochs": 9, "pool": "seeds",
        "train.learning_rate": 1.0, "train.warmup": 0.5, "train.data": "latest",
    }.items():  # fmt: skip
        other = cells.changed(small("tiny_llama"), {path: value})
        assert static(other) == static(c) and Hyper.of(other) != Hyper.of(c), path
    for path, value in {"answer.model": "current", "answer.k": 5, "train.clip_norm": 2.0}.items():
        other = cells.changed(small("tiny_llama"), {path: value})
        assert static(other) != static(c) and Hyper.of(other) == Hyper.of(c), path


@pytest.mark.parametrize("name", [n for n, s in grids.STUDIES.items() if s.models])
def test_every_grid_resolves(name):
    """A field that was renamed would end a study hours after it began."""
    chosen = grids.STUDIES[name]
    base = cells.Base({"domain": "safety", "model": "tiny_llama"}, small("tiny_llama"))
    found = list(cells._of_base(chosen, base, n_seeds=1))
    assert 0 < len(found) <= len(chosen.levels)
    assert len({cell.name for cell in found}) == len({cell.digest for cell in found}) == len(found)
    assert chosen.reference is None or any(
        cell.labels[chosen.axis] == chosen.reference for cell in found
    )


def test_mistakes_are_told_in_a_line(monkeypatch, tmp_path):
    """A study that is not there, or one without models."""
    flags = types.SimpleNamespace(study="seed", output=str(tmp_path), models=[], config=None)
    monkeypatch.setattr(study, "flags", types.SimpleNamespace(FLAGS=flags))
    with pytest.raises(config.UserError, match="did you mean 'seeds'"):
        study.study()
    with pytest.raises(config.UserError, match="needs --models"):
        study._bases(grids.STUDIES["size"])
    flags.models = ["a/b"]
    (base,) = study._bases(grids.STUDIES["size"])
    assert base.labels == {"domain": "safety", "model": "b"} and base.values.model.path == "a/b"
    assert base.values.samples_per_iteration == 384  # what suits the bundled model


def test_methods_have_names():
    """Of the table's columns, the reference's is the level's."""
    named = {"reference": "3 x 384"}
    assert tables.method("isara_2", named) == "ISARA, iteration 2"
    assert tables.method("reference", named) == "ISARA, 3 x 384"
