"""What is kept for a restart: found whole, or found out."""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import remote, storage
from isara_jax.host import checkpoint, integrity


class Tree(NamedTuple):
    """Of all kinds of arrays that a state and a stage have."""

    adapter: dict
    rows: jax.Array
    flags: jax.Array
    missing: None = None


def tree(step):
    x = jnp.arange(4096.0).reshape(64, 64) * step
    return Tree({"a": x, "b": x.astype(jnp.bfloat16)}, jnp.arange(7, dtype=jnp.int32) + step,
                jnp.arange(5) % 2 == step % 2)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two checkpoints; what is said once is said in each test."""
    processes.say_once.cache_clear()
    found = remote.Workdir(tmp_path / "run")
    with checkpoint.Checkpoints(found) as saved:
        for step in (1, 2):
            saved.save(step, tree(step), {"iteration": step})
    return found


def restored(place):
    with checkpoint.Checkpoints(place) as saved:
        return saved.restore(tree(0))


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_the_newest_whole_checkpoint_comes_back(place):
    step, state, host = restored(place)
    assert (step, host) == (2, {"iteration": 2}) and equal(state, tree(2))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    for path in (folder / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def edit(folder):
    """A digit changed in the host's JSON, which stays JSON."""
    for path in (folder / "about").rglob("*"):
        if path.is_file() and b'"iteration"' in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(b'"iteration": 2', b'"iteration": 3'))


def without_json(folder):
    shutil.rmtree(folder / "about")


def without_arrays(folder):
    shutil.rmtree(folder / "arrays")


@pytest.mark.parametrize("damage", [truncate, flip, empty, edit, without_json, without_arrays])
def test_what_is_damaged_is_skipped_and_named(place, tmp_path, capsys, damage):
    """Trained on, it would ruin the run without a word; refused, it would cost all of it."""
    damage(tmp_path / "run" / "checkpoints" / "2")
    step, state, host = restored(place)
    assert (step, host) == (1, {"iteration": 1}) and equal(state, tree(1))
    said = capsys.readouterr().err
    assert "run/checkpoints/2 is damaged (" in said and "goes on from iteration 1" in said
    with checkpoint.Checkpoints(place) as saved:  # the same iteration is kept anew
        saved.save(2, tree(5), {"iteration": 2})
    assert equal(restored(place).state, tree(5))


def test_where_none_is_whole_the_run_begins_anew(place, tmp_path, capsys):
    for step in "12":
        empty(tmp_path / "run" / "checkpoints" / step)
    assert restored(place) is None
    assert "goes on from the beginning" in capsys.readouterr().err


def test_a_newer_format_is_refused_by_name(place, monkeypatch):
    """It may look like ours and mean something else."""
    monkeypatch.setattr(integrity, "FORMAT", 0)
    with pytest.raises(config.UserError, match=r"checkpoints/2: of format 1, .* up to 0; install"):
        restored(place)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": 1, "content": {}}', b"\xff"])
def test_damaged_notes_are_said_and_left(tmp_path, capsys, content):
    processes.say_once.cache_clear()
    path = tmp_path / "history.json"
    assert integrity.read(path, "") is None and not capsys.readouterr().err
    path.write_bytes(content)
    assert integrity.read(path, "it is measured again") is None
    assert "history.json is damaged (" in (said := capsys.readouterr().err)
    assert said.endswith("it is measured again\n") and said.count("\n") == 1
    storage.write_json(path, integrity.sealed({"loss": float("nan"), "rate": 0.1 + 0.2}))
    assert integrity.read(path, "")["rate"] == 0.1 + 0.2


def test_any_changed_bit_changes_the_checksum():
    """And a pool with more free rows has the same one: iterations can be raised."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, jnp.bfloat16, np.int32, np.bool_):
        x = rng.integers(0, 2 if dtype is np.bool_ else 100, (9, 5)).astype(dtype)
        (before,) = integrity.checksum((jnp.asarray(x),))
        raw = x.view(np.uint8)
        for i in rng.integers(0, raw.size, 20):
            raw.flat[i] ^= 1
            (after,) = integrity.checksum((jnp.asarray(x),))
            assert after != before
            raw.flat[i] ^= 1
        rolled, wider = np.roll(x, 1, axis=0), np.concatenate([x, np.zeros((4, 5), dtype)])
        assert integrity.checksum((jnp.asarray(rolled),))[0] != before
        assert integrity.checksum((jnp.asarray(wider),))[0] == before


def test_stages_outlive_the_process_and_not_their_use(tmp_path, monkeypatch):
    """What took long is found again; what was damaged since is computed again."""
    monkeypatch.setattr(checkpoint, "WORTH_SECONDS", 0.0)
    place, calls = remote.Workdir(tmp_path), []

    def compute():
        calls.append(1)
        return tree(3)

    def start():
        with checkpoint.Stages(place) as stages:
            found = stages.under("iteration 2")("train", compute, lambda: tree(0))
        assert equal(found, tree(3))
        return len(calls)

    assert (start(), start()) == (1, 1)
    flip(tmp_path / "stages")
    assert start() == 2
    with checkpoint.Stages(place) as stages:
        stages.clear()
    assert not (tmp_path / "stages").exists()
    monkeypatch.setattr(checkpoint, "WORTH_SECONDS", 1e9)
    with checkpoint.Stages(place) as stages:
        stages("short", compute, lambda: tree(0))
    assert not (tmp_path / "stages").exists()


def test_the_host_json_is_what_was_given(place, tmp_path):
    """People read it, too: it is JSON in the checkpoint, with its format."""
    (path,) = [p for p in (tmp_path / "run" / "checkpoints" / "2" / "about").rglob("*")
               if p.is_file() and b"format" in p.read_bytes()]  # fmt: skip
    found = json.loads(path.read_text())
    assert found["format"] == integrity.FORMAT
    assert found["content"]["about"] == {"iteration": 2}
