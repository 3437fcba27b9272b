"""Pickled checkpoints to safetensors, against the torch models that were pickled."""

import ast
import collections
import gc
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
import transformers
from torch.multiprocessing import reductions

from isara_jax import config, convert
from isara_jax.formats import from_pickle, weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
IDS = np.random.default_rng(0).integers(3, 320, (2, 9))
SINGLE, WRITTEN = "pytorch_model.bin", "model.safetensors"
LAST = "pytorch_model-00002-of-00002.bin"
INDEX, WRITTEN_INDEX = f"{SINGLE}.index.json", f"{WRITTEN}.index.json"


def pickled(folder, theirs, state=None, **how):
    """A folder as old ones on the hubs are: a config and one pickle."""
    folder.mkdir(exist_ok=True)
    theirs.config.save_pretrained(folder)
    torch.save(theirs.state_dict() if state is None else state, folder / SINGLE, **how)
    return folder


def pickled_in_shards(folder, theirs, n=2):
    """The same in `n` pickles with an index."""
    state = list(theirs.state_dict().items())
    theirs.config.save_pretrained(folder)
    files = [f"pytorch_model-{i + 1:05}-of-{n:05}.bin" for i in range(n)]
    for i, file in enumerate(files):
        torch.save(dict(state[i::n]), folder / file)
    weight_map = {name: files[i % n] for i, (name, _) in enumerate(state)}
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(content))
    return folder


def same_logits(folder, theirs):
    got = tiny.logits(*tiny.load(folder), IDS)
    assert tiny.difference(got, tiny.torch_logits(theirs, IDS)) < 1e-4


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- what is written ---------------------------------------------------------------------------


def test_tied_opt_is_the_pickled_model(tmp_path):
    """The head shares the embedding's memory: it is left out, and the logits are torch's."""
    theirs = tiny.torch_opt()
    before = contents(pickled(tmp_path, theirs))
    assert from_pickle.convert(tmp_path) == [tmp_path / WRITTEN]
    same_logits(tmp_path, theirs)
    written = safetensors.torch.load_file(tmp_path / WRITTEN)
    assert set(theirs.state_dict()) - set(written) == {"lm_head.weight"}
    after = contents(tmp_path)
    assert after.pop(WRITTEN) and after == before  # nothing else changed, nothing left behind
    assert (tmp_path / WRITTEN).stat().st_mode == (tmp_path / SINGLE).stat().st_mode
    # transformers, which we did not write, reads the same model from it.
    (tmp_path / SINGLE).unlink()
    again = transformers.OPTForCausalLM.from_pretrained(tmp_path).state_dict()
    assert {n: bits(t) for n, t in again.items()} == {
        n: bits(t) for n, t in theirs.state_dict().items()
    }


def test_old_names_and_the_old_format(tmp_path):
    """The first OPT pickles say "decoder." where later ones say "model.decoder."."""
    theirs = tiny.torch_opt()
    state = theirs.model.state_dict()
    assert all(name.startswith("decoder.") for name in state)
    from_pickle.convert(pickled(tmp_path, theirs, state, _use_new_zipfile_serialization=False))
    assert set(safetensors.torch.load_file(tmp_path / WRITTEN)) == set(state)
    same_logits(tmp_path, theirs)


def test_shards_stay_shards(tmp_path):
    """Each pickle becomes one file, and the index says of each tensor where it is now."""
    theirs = tiny.torch_llama(tie_word_embeddings=False)
    pickled_in_shards(tmp_path, theirs, 3)
    before = contents(tmp_path)
    names = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    assert from_pickle.convert(tmp_path) == [tmp_path / name for name in names]
    index = json.loads((tmp_path / WRITTEN_INDEX).read_text())
    state, found = theirs.state_dict(), collections.Counter()
    for name in names:
        for key, tensor in safetensors.torch.load_file(tmp_path / name).items():
            assert bits(tensor) == bits(state[key]) and index["weight_map"][key] == name
            found[key] += 1
    assert (
        found == collections.Counter(list(state)) == collections.Counter(list(index["weight_map"]))
    )
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    assert set(contents(tmp_path)) - set(before) == {*names, WRITTEN_INDEX}
    same_logits(tmp_path, theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_a_shared_head_is_dropped_only_where_the_config_ties_it(tied, tmp_path):
    """An untied model whose pickle shares the two needs both written."""
    theirs = tiny.torch_llama(tie_word_embeddings=tied)
    state = theirs.state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    from_pickle.convert(pickled(tmp_path, theirs, state))
    written = safetensors.torch.load_file(tmp_path / WRITTEN)
    assert ("lm_head.weight" in written) != tied
    tiny.load(tmp_path)  # complete


def test_a_head_beside_the_embedding_in_one_memory_is_kept(tmp_path):
    """Pickles of flat buffers hold every tensor as a view of one memory, equal or not."""
    theirs = tiny.torch_llama(tie_word_embeddings=True)
    state = theirs.state_dict()
    flat = torch.randn(sum(t.numel() for t in state.values()))
    for name, tensor in state.items():
        state[name], flat = flat[: tensor.numel()].view(tensor.shape), flat[tensor.numel() :]
    from_pickle.convert(pickled(tmp_path, theirs, state))
    written = safetensors.torch.load_file(tmp_path / WRITTEN)
    assert {n: bits(t) for n, t in written.items()} == {n: bits(t) for n, t in state.items()}


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_keeps_its_bits(zipped, tmp_path):
    """Types, NaNs, views, strides, scalars, and Parameters: all as torch reads them back."""
    long = torch.arange(24, dtype=torch.float32)
    state = {
        "f32": torch.tensor([1.5, float("nan"), float("-inf"), -0.0]),
        "f16": torch.randn(3, 5).half(),
        "bf16": torch.randn(3, 5).bfloat16(),
        "int": torch.arange(3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 6).bfloat16().T,
        "all": long,
        "part": long[5:9],
        "again": long,
        "every second": long[::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    from_pickle.convert(
        pickled(tmp_path, tiny.torch_opt(), state, _use_new_zipfile_serialization=zipped)
    )
    written = safetensors.torch.load_file(tmp_path / WRITTEN)
    assert {n: bits(t) for n, t in written.items()} == {n: bits(t) for n, t in state.items()}


def test_one_shard_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Checkpoints of 130 GB come in files of 10 GB so that these fit."""
    pickled_in_shards(tmp_path, tiny.torch_llama(), 3)
    alive, most = [], []
    load = torch.load

    def loaded(*args, **kwargs):
        result = load(*args, **kwargs)
        gc.collect()
        most.append(sum(not storage.expired() for storage in alive))
        alive.extend(reductions.StorageWeakRef(t.untyped_storage()) for t in result.values())
        return result

    monkeypatch.setattr(torch, "load", loaded)
    from_pickle.convert(tmp_path)
    assert most == [0, 0, 0]


# --- what is refused ---------------------------------------------------------------------------


class Evil:
    """Runs a command where it is unpickled carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _remove_shard(folder, _):
    next(folder.glob("*00001-of*")).unlink()


def _link_outside(folder, _):
    path = next(folder.glob("*00001-of*"))
    path.rename(folder.parent.with_name("elsewhere.bin"))
    path.symlink_to(folder.parent.with_name("elsewhere.bin"))


def _edit_index(folder, edit):
    content = json.loads((folder / INDEX).read_text())
    edit(content)
    (folder / INDEX).write_text(json.dumps(content))


def _second(folder, state, **how):
    torch.save(state, folder / LAST, **how)


def _cut(folder, _):
    path = folder / LAST
    path.write_bytes(path.read_bytes()[:-3000])


def _only(folder, name):
    for path in folder.glob("*.bin*"):
        path.unlink()
    if name:
        (folder / name).write_bytes(b"x")


def _moved(folder, where):
    def edit(content):
        content["weight_map"]["lm_head.weight"] = where

    _edit_index(folder, edit)


def _no_torch(patch):
    patch.setitem(sys.modules, "torch", None)


def _full(patch):
    usage = shutil.disk_usage("/")
    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))


def _lost_bits(patch):
    save = safetensors.torch.save_file

    def spoilt(tensors, path, *rest):
        save(tensors, path, *rest)
        data = bytearray(pathlib.Path(path).read_bytes())
        data[-1] ^= 1
        pathlib.Path(path).write_bytes(data)

    patch.setattr(safetensors.torch, "save_file", spoilt)


def _write_error(patch):
    def failing(*_):
        raise safetensors.SafetensorError("No space left on device")

    patch.setattr(safetensors.torch, "save_file", failing)


# What is done to a good folder of two shards (or to the world), and words of the message.
REFUSED = {
    "no bin": (lambda f, p: _only(f, None), "nothing to convert .*none"),
    "other bin": (lambda f, p: _only(f, "training_args.bin"), "nothing .*training_args.bin"),
    "converted": (lambda f, p: (f / WRITTEN).write_bytes(b"x"), f"{WRITTEN} is there already"),
    "converted shards": (
        lambda f, p: (f / WRITTEN_INDEX).write_bytes(b"x"), f"{WRITTEN_INDEX} is there already"),
    "missing shard": (_remove_shard, "names pytorch_model-00001-of-00002.bin, which is missing"),
    "link outside": (_link_outside, r"leads to .*elsewhere.bin, outside the model's folder"),
    "no weight_map": (
        lambda f, p: _edit_index(f, lambda c: c.pop("weight_map")), f"{INDEX}: no weight_map"),
    "index not JSON": (lambda f, p: (f / INDEX).write_text("{"), f"{INDEX}: not valid JSON"),
    "outside": (lambda f, p: _moved(f, "../a.bin"), r"lm_head.weight is said to be in '../a.bin'"),
    "moved": (
        lambda f, p: _moved(f, LAST), "lm_head.weight is not in it"),
    "evil": (
        lambda f, p: _second(f, {"a": Evil(f.parent / "run")}), f"{LAST}: holds posix.system"),
    "evil, old format": (
        lambda f, p: _second(
            f, {"a": Evil(f.parent / "run")}, _use_new_zipfile_serialization=False),
        f"{LAST}: holds posix.system"),
    "evil, plain pickle": (
        lambda f, p: (f / LAST).write_bytes(
            pickle.dumps({"a": Evil(f.parent / "run")})),
        f"{LAST}: no checkpoint of tensors, or damaged"),
    "whole module": (lambda f, p: _second(f, torch.nn.Linear(2, 2)), f"{LAST}: holds torch.nn"),
    "truncated": (_cut, f"{LAST}: no checkpoint of tensors, or damaged"),
    "pointer": (
        lambda f, p: (f / LAST).write_text(
            "version https://git-lfs.github.com/spec/v1\n"),
        f"{LAST}: no checkpoint of tensors, or damaged"),
    "a list": (lambda f, p: _second(f, [torch.ones(2)]), f"{LAST}: tensors by name .*found list"),
    "a number": (lambda f, p: _second(f, {"step": 3}), f"{LAST}: 'step' is no dense tensor"),
    "sparse": (
        lambda f, p: _second(f, {"a": torch.eye(3).to_sparse()}), f"{LAST}: 'a' is no dense"),
    "other family": (
        lambda f, p: (f / "config.json").write_text('{"model_type": "bloom"}'),
        "config.json: model_type is 'bloom'"),
    "no config": (lambda f, p: (f / "config.json").unlink(), "config.json: not found"),
    "no torch": (lambda f, p: _no_torch(p), "pip install torch"),
    "old torch": (
        lambda f, p: p.setattr(torch, "__version__", "2.5.1+cpu"), "torch 2.5.1.* 2.6 or later"),
    "no room": (lambda f, p: _full(p), r"take 0\.\d+ GB, and 0.00 GB are free"),
    "bad disk": (lambda f, p: _lost_bits(p), "did not read back from the disk"),
    "write error": (lambda f, p: _write_error(p), "cannot be written .*No space left"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    theirs = tiny.torch_llama(tie_word_embeddings=False)
    return pickled_in_shards(tmp_path_factory.mktemp("shards"), theirs)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_leave_the_folder_alone(case, shards, tmp_path, monkeypatch):
    """Each ends in one line with the culprit, nothing written and no foreign code run."""
    spoil, words = REFUSED[case]
    folder = shutil.copytree(shards, tmp_path / "model")
    spoil(folder, monkeypatch)
    before = contents(folder)
    with pytest.raises(config.UserError) as stopped:
        convert.run(str(folder))
    message = str(stopped.value)
    assert "\n" not in message and re.search(words, message), message
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_no_folder():
    """A wrong path is named."""
    with pytest.raises(config.UserError, match="^'no/such' is not a directory"):
        convert.run("no/such")


def test_an_interrupted_conversion_can_be_repeated(shards, tmp_path, monkeypatch):
    """Files without their index, which comes last, count for nothing."""
    folder = shutil.copytree(shards, tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(from_pickle.storage, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            from_pickle.convert(folder)
    with pytest.raises(ValueError, match="python -m isara_jax.convert"):
        tiny.load(folder)
    from_pickle.convert(folder)
    tiny.load(folder)


# --- the command -------------------------------------------------------------------------------


def test_the_command(tmp_path):
    """What is refused names the command; the command says what it wrote and what to run next."""
    theirs = tiny.torch_opt()
    pickled(tmp_path, theirs)
    with pytest.raises(ValueError, match=f"python -m isara_jax.convert {tmp_path}"):
        weights.load_config(tmp_path) and tiny.load(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "isara_jax.convert", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wrote, after = done.stdout.splitlines()
    assert wrote == f"{tmp_path / WRITTEN}: 0.00 GB"
    assert f"python -m isara_jax.generate --model={tmp_path}" in after
    tiny.load(tmp_path)


def test_only_the_conversion_knows_torch():
    """No module imports torch or pickle's readers, and this one not before it is called."""
    users = set()
    for path in (ROOT / "isara_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(n.split(".")[0] == "torch" or n == "safetensors.torch" for n in names):
                users.add(path.name)
    assert users == {"from_pickle.py"}
    blocked = "import sys; sys.modules['torch'] = None; import isara_jax.convert"
    subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, check=True)
