"""Directories of models: how they are stored, written again, and damaged in a hundred ways."""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
import transformers

from isara_jax import config
from isara_jax.files import storage
from isara_jax.formats import pretrained, weights
from isara_jax.models import families
from tests import environment

IDS = np.random.default_rng(0).integers(3, tiny.SIZES["vocab_size"], (2, 24))
RICH = {name: {} for name in tiny.TORCH} | {
    "llama": {
        "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 100,
        },
    },
    "opt": {
        "do_layer_norm_before": False, "word_embed_proj_dim": 16, "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
}  # fmt: skip


def close(directory, theirs):
    expected = tiny.torch_logits(theirs, IDS)
    return tiny.difference(tiny.logits(*tiny.load(directory), IDS), expected) < 1e-4


def same_bits(ours, theirs):
    """Whether two dictionaries of arrays hold the same names, types and bits."""
    return ours.keys() == theirs.keys() and all(
        ours[n].dtype == theirs[n].dtype and ours[n].shape == theirs[n].shape
        and ours[n].tobytes() == theirs[n].tobytes()
        for n in ours
    )  # fmt: skip


def tensors_in(directory):
    """All tensors of a directory's safetensors, by name."""
    files = sorted(directory.glob("*.safetensors"))
    return {n: x for file in files for n, x in safetensors.numpy.load_file(file).items()}


# --- in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dtype", "shards"),
    [
        ("llama", torch.bfloat16, True),
        ("llama", torch.float16, False),
        ("opt", torch.float16, True),
        ("opt", torch.bfloat16, False),
    ],
)
def test_half_precision_and_shards(family, dtype, shards, tmp_path):
    """bf16 and f16, in one file or many, are read value by value without a loss."""
    stored = tiny.TORCH[family](**RICH[family]).to(dtype)
    stored.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    assert (len(list(tmp_path.glob("model-*.safetensors"))) > 3) == shards
    theirs = type(stored).from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    assert close(tmp_path, theirs)
    # In their own type the weights are those of the file to the bit; in f32, to the value.
    network = weights.load_config(tmp_path)
    for ours in (jnp.bfloat16, jnp.float32):
        params = weights.load(tmp_path, families.build(network, ours), tiny.mesh())
        kernel = np.asarray(params["layers_1"]["mlp"]["down"]["kernel"])
        name = weights.find(network, "layers_1/mlp/down/kernel").name
        expected = stored.get_parameter(name).detach().float().numpy().T
        np.testing.assert_array_equal(kernel, expected.astype(kernel.dtype))


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        (transformers.LlamaModel, transformers.LlamaForCausalLM),
        (transformers.OPTModel, transformers.OPTForCausalLM),
    ],
)
def test_base_models_without_a_head(base, whole, tmp_path):
    """A base model saved alone has no "model." in its names; tied, it is a language model."""
    tiny.torch_model(base, tie_word_embeddings=True).save_pretrained(tmp_path)
    assert not any(name.startswith("model.") for name in tensors_in(tmp_path))
    assert close(tmp_path, whole.from_pretrained(tmp_path, attn_implementation="eager"))


def test_old_buffers_and_a_copied_head_are_skipped(tmp_path):
    """RoPE's frequencies in old files, and a tied model's copy of the head, do no harm."""
    theirs = tiny.torch_llama(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    tensors = tensors_in(tmp_path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert close(tmp_path, theirs)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_links_of_the_hubs_cache_are_followed(shards, elsewhere, tmp_path):
    """snapshots/REVISION/* are links to blobs/* beside it, which may be a link to another disk."""
    theirs = tiny.torch_llama()
    plain, snapshot, blobs = tmp_path / "plain", tmp_path / "snapshots" / "1f", tmp_path / "blobs"
    theirs.save_pretrained(plain, max_shard_size="50KB" if shards else "1GB")
    snapshot.mkdir(parents=True)
    if elsewhere:
        (tmp_path / "disk").mkdir()
        blobs.symlink_to(tmp_path / "disk")
    else:
        blobs.mkdir()
    for number, file in enumerate(sorted(plain.iterdir())):
        shutil.move(file, blobs / f"{number:040}")
        (snapshot / file.name).symlink_to(pathlib.Path("../../blobs") / f"{number:040}")
    assert close(snapshot, theirs)
    mine = tmp_path / "mine"  # links of one's own to those of the cache
    mine.mkdir()
    for file in snapshot.iterdir():
        (mine / file.name).symlink_to(file)
    assert close(mine, theirs)
    (tmp_path / "whole").symlink_to(snapshot)
    assert close(tmp_path / "whole", theirs)


@pytest.mark.parametrize("name", ["model.safetensors", "step_1000.safetensors"])
@pytest.mark.parametrize("relative", [False, True])
def test_links_of_ones_own_are_followed(name, relative, tmp_path):
    """Weights may lie elsewhere, under another name, and so may the other files under theirs."""
    theirs = tiny.torch_llama()
    there, here = tmp_path / "there", tmp_path / "here"
    theirs.save_pretrained(there)
    here.mkdir()
    for file in list(there.iterdir()):
        target = file.rename(there / name) if file.suffix == ".safetensors" else file
        link = os.path.relpath(target, here) if relative else target
        (here / file.name).symlink_to(link)
    assert close(here, theirs)


SHARDED = """
import pathlib, sys
import jax, numpy as np
from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.formats import weights
from isara_jax.models import families
read, once = weights._Tensor.read, []
def counted(self, index, dtype):
    values = read(self, index, dtype)
    once.append(values.size)
    return values
weights._Tensor.read = counted
for name in ("llama", "opt", "phi3"):
    folder = pathlib.Path(sys.argv[1]) / name
    model = families.build(weights.load_config(folder))
    once.clear()
    params = weights.load(folder, model, mesh.make((2, 2, 2)))
    # Devices that hold the same slice share what was read.
    assert sum(once) == sum(x.size for x in jax.tree.leaves(params))
    weights.save(folder / "again", model.config, params)
    embedding = params["embed"]["embedding"]  # 327 rows divide by none of the axes
    assert {x.data.shape[0] for x in embedding.addressable_shards} == {327}, embedding.sharding
    kernel = params["layers_0"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert {x.data.shape for x in kernel.addressable_shards} == {(16, 24)}, kernel.sharding
    for shard in params["layers_1"]["mlp"]["up"]["kernel"].addressable_shards:
        np.save(folder / f"{shard.device.id}.npy", np.asarray(shard.data))
    everything = jax.jit(lambda p, x: model.apply({"params": p}, x, method="everything"))
    np.save(folder / "logits.npy", everything(params, np.load(folder / "../ids.npy")))
"""


def test_weights_spread_over_devices_equal_transformers(tmp_path):
    """On a mesh each slice is read once and lies where it should; logits are HF's, bits return.

    Also with a vocabulary that no axis divides, as after adding a padding token (32,001).
    """
    odd = {family: RICH[family] | {"vocab_size": 327} for family in ("llama", "opt", "phi3")}
    networks = {family: tiny.TORCH[family](**changed) for family, changed in odd.items()}
    for family, theirs in networks.items():
        theirs.save_pretrained(tmp_path / family)
    np.save(tmp_path / "ids.npy", IDS)
    subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)], env=environment.of(8), check=True
    )
    ups = {
        "llama": networks["llama"].model.layers[1].mlp.up_proj.weight,
        "opt": networks["opt"].model.decoder.layers[1].fc1.weight,
        "phi3": networks["phi3"].model.layers[1].mlp.gate_up_proj.weight[48:],
    }
    for family, theirs in networks.items():
        found = np.load(tmp_path / family / "logits.npy")
        assert tiny.difference(found, tiny.torch_logits(theirs, IDS)) < 1e-4
        assert same_bits(tensors_in(tmp_path / family / "again"), tensors_in(tmp_path / family))
        # Device 0 holds the first halves of inputs and outputs, devices 3 and 7 the second ones.
        up = ups[family].detach().numpy().T
        for device, part in ((0, up[:16, :24]), (3, up[16:, 24:]), (7, up[16:, 24:])):
            np.testing.assert_array_equal(np.load(tmp_path / family / f"{device}.npy"), part)


def test_axes_that_do_not_divide_are_named():
    """A mesh that cannot split a tensor evenly is refused by tensor, size and setting."""
    network = families.from_hf(tiny.torch_llama().config.to_dict(), "config")
    mesh = types.SimpleNamespace(shape={"fsdp": 3, "model": 2})
    with pytest.raises(ValueError, match=r"layers.1.*q_proj.weight.* 32, .*fsdp=3 of config.mesh"):
        weights.sharding(network, "layers_1/attention/q/kernel", (32, 32), mesh)


# --- out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.TORCH)
@pytest.mark.parametrize("shards", [False, True])
def test_saved_model_is_the_model_that_was_read(family, shards, tmp_path, monkeypatch):
    """Read, written, read again: HF's names and bits each time, whole or in shards."""
    if shards:
        monkeypatch.setattr(weights, "SHARD_BYTES", 10_000)  # less than the largest tensor
    theirs = tiny.TORCH[family](**RICH[family])
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = tiny.load(tmp_path / "theirs")
    out = tmp_path / "ours"
    weights.save(out, model.config, params)
    storage.write_json(out / "config.json", families.to_hf(model.config))
    assert same_bits(tensors_in(out), tensors_in(tmp_path / "theirs"))
    assert (len(list(out.glob("*.safetensors"))) > 3) == shards
    if shards:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors_in(out).values())
    again = type(theirs).from_pretrained(out, attn_implementation="eager")
    np.testing.assert_array_equal(tiny.torch_logits(again, IDS), tiny.torch_logits(theirs, IDS))
    _, back = tiny.load(out)
    flat = [{p: np.asarray(x) for p, x in weights.flatten(t).items()} for t in (back, params)]
    assert same_bits(*flat)


@pytest.mark.parametrize("family", tiny.TORCH)
def test_saved_in_bf16_as_torch_rounds(family, tmp_path):
    """A model written in bf16 holds the values that torch rounds to, and no others."""
    theirs = tiny.TORCH[family](**RICH[family])
    theirs.save_pretrained(tmp_path / "f32")
    model, params = tiny.load(tmp_path / "f32")
    weights.save(tmp_path / "ours", model.config, params, jnp.bfloat16)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    assert same_bits(tensors_in(tmp_path / "ours"), tensors_in(tmp_path / "bf16"))


# --- damaged -------------------------------------------------------------------------------------


class Folder:
    """A good directory with a tokenizer, to be spoilt."""

    def __init__(self, path, theirs, max_shard_size="1GB"):
        self.path, self.file = path, path / "model.safetensors"
        theirs.save_pretrained(path, max_shard_size=max_shard_size)
        tiny.byte_level_tokenizer().save_pretrained(path)

    def config(self, **changed):
        """Changes fields of config.json; `...` takes one away."""
        path = self.path / "config.json"
        fields = json.loads(path.read_text()) | changed
        fields = {name: value for name, value in fields.items() if value is not ...}
        path.write_text(json.dumps(fields))

    def tensors(self, change):
        safetensors.numpy.save_file(change(tensors_in(self.path)), self.file)

    def write(self, name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (self.path / name).write_bytes(data)

    def cut(self, name, size):
        path = self.path / name
        path.write_bytes(path.read_bytes()[:size])

    def index(self, change):
        path = self.path / "model.safetensors.index.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    def shard(self, number=-1):
        return sorted(self.path.glob("model-*.safetensors"))[number]

    def refused(self, *words):
        """Reads all as a run does; the error must be one line that has these words."""
        with pytest.raises(ValueError) as error:
            pretrained.read_language_model(str(self.path)).load("float32", tiny.mesh())
        assert type(error.value) in (
            ValueError,
            config.UserError,
        )  # not one that a library happened to raise
        message = str(error.value)
        assert "\n" not in message
        for word in (str(self.path), *words):
            assert re.search(word, message), (word, message)


@pytest.fixture
def llama(tmp_path):
    return Folder(tmp_path / "llama", tiny.torch_llama())


@pytest.fixture
def opt(tmp_path):
    return Folder(tmp_path / "opt", tiny.torch_opt(eos_token_id=2))


@pytest.fixture
def sharded(tmp_path):
    return Folder(tmp_path / "sharded", tiny.torch_llama(), "50KB")


def test_the_good_directories_are_accepted(llama, opt, sharded):
    """What is spoilt below is read without an error as it is."""
    for folder in (llama, opt, sharded):
        assert pretrained.read_language_model(str(folder.path)).load("float32", tiny.mesh())


CUTS = {
    "empty": 0,
    "in the length of the header": 4,
    "in the header": 100,
    "in the data": -5000,
    "one byte short": -1,
}


@pytest.mark.parametrize("case", CUTS)
def test_truncated_safetensors_is_named(case, llama, sharded):
    """A download that broke off names the file, single or shard."""
    llama.cut("model.safetensors", CUTS[case])
    llama.refused("model.safetensors: cannot be read as safetensors", "download it again")
    sharded.cut(sharded.shard(1).name, CUTS[case])
    sharded.refused(f"{sharded.shard(1).name}: cannot be read as safetensors")


FILES = {
    "pointer of git-lfs": (
        lambda f: f.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid"),
        ["model.safetensors: cannot be read", "download it again"],
    ),
    "no weights": (lambda f: f.file.unlink(), ["neither model.safetensors nor its index"]),
    "pickle alone": (
        lambda f: f.file.rename(f.path / "pytorch_model.bin"),
        ["found pytorch_model.bin", "Pickles can run code", r"python -m isara_jax.convert /"],
    ),
    "pickles in shards": (
        lambda f: [
            f.file.rename(f.path / "pytorch_model-00001-of-00002.bin"),
            f.write("pytorch_model.bin.index.json", "{}"),
        ],
        ["pytorch_model-00001-of-00002.bin", "python -m isara_jax.convert"],
    ),
    "link to what may be anything": (
        lambda f: f.file.symlink_to(f.file.rename(f.path.parent / "elsewhere")),
        ["model.safetensors: leads to .*elsewhere, outside the model's folder and called other"],
    ),
    "link that brings another text": (
        lambda f: (f.path / "tokenizer_config.json").symlink_to(
            (f.path / "tokenizer_config.json").rename(f.path.parent / "credentials")
        ),
        ["tokenizer_config.json: leads to .*credentials, outside", "copy the file there"],
    ),
    "link over others": (
        lambda f: [
            f.file.rename(f.path.parent / "key"),
            (f.path.parent / f.file.name).symlink_to("key"),
            f.file.symlink_to(f.path.parent / f.file.name),
        ],
        ["model.safetensors: leads to .*/key, outside"],
    ),
    "link to nothing outside": (
        lambda f: (f.file.unlink(), f.file.symlink_to("/nowhere/model.safetensors")),
        ["model.safetensors: leads to /nowhere/model.safetensors, which is not there"],
    ),
    "link to nothing": (
        lambda f: (f.file.unlink(), f.file.symlink_to("gone")),
        ["model.safetensors: leads to .*gone, which is not there"],
    ),
    "blobs of something that is no cache": (
        lambda f: [
            (f.path.parent / "blobs").mkdir(),
            f.file.symlink_to(f.file.rename(f.path.parent / "blobs" / "1")),
        ],
        ["model.safetensors: leads to .*blobs/1"],
    ),
    "index beside the file": (
        lambda f: f.write("model.safetensors.index.json", '{"weight_map": {}}'),
        ["both model.safetensors.index.json and model.safetensors", "delete"],
    ),
    "no config": (
        lambda f: (f.path / "config.json").unlink(), ["config.json: not found"],
    ),
    "config that breaks off": (
        lambda f: f.cut("config.json", 40), ["config.json: not valid JSON"],
    ),
    "config that is a list": (
        lambda f: f.write("config.json", "[1]"), ["config.json: a JSON object is expected"],
    ),
    "config that is no text": (
        lambda f: f.write("config.json", b"\xff\xfe{}"), ["config.json: not valid JSON"],
    ),
    "config without a bottom": (
        lambda f: f.write("config.json", "[" * 100_000), ["config.json: not valid JSON"],
    ),
    "config with a field twice": (
        lambda f: f.write("config.json", '{"vocab_size": 1, "vocab_size": 2}'),
        ["config.json: vocab_size: found twice in one object; remove one"],
    ),
    "config with NaN": (
        lambda f: f.config(initializer_range=math.nan),
        ["config.json: initializer_range: found NaN, which JSON does not have"],
    ),
    "flag that is a text": (
        lambda f: f.config(use_cache="x"), ["config.json: use_cache is 'x'; .* expected bool"],
    ),
    "number that is a text, unnamed by transformers": (
        lambda f: f.config(num_labels="x"), ["config.json: num_labels is 'x'; transformers"],
    ),
    "two fields that are texts": (
        lambda f: f.config(use_cache="x", pad_token_id="x"),
        ["config.json: transformers cannot read several fields .*'use_cache'"],
    ),
    "links in a circle": (
        lambda f: (f.file.unlink(), f.file.symlink_to(f.file.name)),
        ["model.safetensors: links lead in a circle there; mend them"],
    ),
    "folders in a circle": (
        lambda f: [
            (f.path / "config.json").unlink(), (f.path / "config.json").symlink_to("a/config.json"),
            (f.path / "a").symlink_to("b"), (f.path / "b").symlink_to("a"),
        ],
        ["config.json: links lead in a circle there"],
    ),
    "no directory": (lambda f: shutil.rmtree(f.path), ["is not a directory"]),
    "file in place of a directory": (
        lambda f: (shutil.rmtree(f.path), f.path.write_text("x")), ["is not a directory"],
    ),
    "no tokenizer": (
        lambda f: (f.path / "tokenizer.json").unlink(),
        ["no tokenizer", "tokenizer.json; tokenizer.model; vocab.json and merges.txt"],
    ),
    "half a tokenizer": (
        lambda f: (f.path / "tokenizer.json").rename(f.path / "vocab.json"), ["merges.txt"],
    ),
    "tokenizer that is garbage": (
        lambda f: f.write("tokenizer.json", b"\x00\x01garbage"), ["tokenizer cannot be read"],
    ),
    "tokenizer that breaks off": (
        lambda f: f.cut("tokenizer.json", 2000), ["tokenizer cannot be read"],
    ),
    "tokenizer of another model": (
        lambda f: tiny.byte_fallback_tokenizer().save_pretrained(f.path),
        [r"tokenizer has \d+ tokens, the model's embedding 326 rows"],
    ),
    "tokenizer without an end": (
        lambda f: [
            f.write("tokenizer_config.json", "{}"), f.write("generation_config.json", "{}"),
            f.config(eos_token_id=None),
        ],
        ["the tokenizer has no eos_token"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_wrong_files_are_named(case, llama):
    """Files that are missing, of another kind, or elsewhere are named; pickles are not opened."""
    spoil, words = FILES[case]
    spoil(llama)
    llama.refused(*words)


NORM = "model.norm.weight"
INDEXES = {
    "missing shard": (lambda f: f.shard().unlink(), ["the index names model-.*, which is missing"]),
    "not JSON": (
        lambda f: f.cut("model.safetensors.index.json", 50), ["index.json: not valid JSON"],
    ),
    "no weight_map": (lambda f: f.index(lambda i: {}), ["index.json: no weight_map"]),
    "weight_map that is a list": (
        lambda f: f.index(lambda i: i | {"weight_map": [1]}), ["index.json: no weight_map"],
    ),
    "path that climbs": (
        lambda f: f.index(lambda i: {"weight_map": i["weight_map"] | {NORM: "../x.safetensors"}}),
        [NORM, r"'\.\./x.safetensors'", "same folder"],
    ),
    "path from the root": (
        lambda f: f.index(lambda i: {"weight_map": i["weight_map"] | {NORM: "/x.safetensors"}}),
        [NORM, "'/x.safetensors'", "same folder"],
    ),
    "folder above": (
        lambda f: f.index(lambda i: {"weight_map": i["weight_map"] | {NORM: ".."}}),
        [NORM, r"'\.\.'", "same folder"],
    ),
    "pickle": (
        lambda f: f.index(lambda i: {"weight_map": i["weight_map"] | {NORM: "model.bin"}}),
        [NORM, "'model.bin'", "safetensors"],
    ),
    "file that is no name": (
        lambda f: f.index(lambda i: {"weight_map": i["weight_map"] | {NORM: 7}}), [NORM, "7"],
    ),
    "link outside": (
        lambda f: (s := f.shard()).symlink_to(s.rename(f.path.parent / "elsewhere")),
        ["leads to .*elsewhere, outside"],
    ),
    "tensor that no file has": (
        lambda f: f.index(
            lambda i: {"weight_map": i["weight_map"] | {"model.x": f.shard().name}}
        ),
        ["model.x is said to be in model-.*, found in none of its files"],
    ),
    "tensor in another file": (
        lambda f: f.index(
            lambda i: {"weight_map": i["weight_map"] | {"lm_head.weight": f.shard(1).name}}
        ),
        ["lm_head.weight is said to be in model-0000"],
    ),
    "tensor that the index does not know": (
        lambda f: safetensors.numpy.save_file(
            safetensors.numpy.load_file(f.shard()) | {"model.x": np.ones(3, np.float32)}, f.shard()
        ),
        ["unknown: .*model.x", "missing: none"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEXES)
def test_wrong_indexes_are_named(case, sharded):
    """An index is believed only where the files bear it out, and never leads out of the folder."""
    spoil, words = INDEXES[case]
    spoil(sharded)
    sharded.refused(*words)


Q, HEAD, EMBED = (
    "model.layers.1.self_attn.q_proj.weight", "lm_head.weight", "model.embed_tokens.weight",
)  # fmt: skip


def spoilt(value, dtype=np.float32):
    """A kernel with one bad value, in its last row."""
    kernel = np.zeros((32, 32), dtype)
    kernel[31, 31] = value
    return kernel


TENSORS = {
    "unknown": (
        lambda t: t | {"model.layers.0.self_attn.q_norm.weight": t[NORM]},
        ["unknown: .*layers.0.self_attn.q_norm.weight", "missing: none"],
    ),
    "beyond the last layer": (
        lambda t: t | {"model.layers.2.input_layernorm.weight": t[NORM]},
        ["unknown: .*layers.2.input_layernorm"],
    ),
    "bias without attention_bias": (
        lambda t: t | {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)},
        ["unknown: .*q_proj.bias"],
    ),
    "another family's": (
        lambda t: {n.replace("model.", "transformer."): x for n, x in t.items()},
        ["unknown: transformer.embed_tokens.weight, .* and 16 more", "missing: .*model.layers"],
    ),
    "missing": (
        lambda t: {n: x for n, x in t.items() if n != Q}, [f"missing: .*{Q}", "unknown: none"],
    ),
    "no head": (
        lambda t: {n: x for n, x in t.items() if n != HEAD}, ["missing: .*lm_head.weight"],
    ),
    "none": (lambda t: {}, ["missing: .*model", "unknown: none"]),
    "a judge's head": (
        lambda t: t | {"score.weight": np.ones((1, 32), np.float32)}, ["unknown: .*score.weight"],
    ),
    "shape": (
        lambda t: t | {Q: np.zeros((40, 32), np.float32)},
        ["model.safetensors", Q, r"\(40, 32\)", r"implies \(32, 32\)"],
    ),
    "transposed": (
        lambda t: t | {HEAD: np.ascontiguousarray(t[HEAD].T)},
        [HEAD, r"\(32, 326\)", r"\(326, 32\)"],
    ),
    "scalar": (lambda t: t | {NORM: np.ones((), np.float32)}, [NORM, r"shape \(\)"]),
    "integers": (lambda t: t | {Q: np.zeros((32, 32), np.int8)}, [Q, "I8", "BF16"]),
    "doubles": (lambda t: t | {Q: np.zeros((32, 32), np.float64)}, [Q, "F64", "BF16"]),
    "8 bits": (
        lambda t: t | {Q: np.zeros((32, 32), ml_dtypes.float8_e4m3fn)}, [Q, "F8_E4M3", "BF16"],
    ),
    "NaN": (lambda t: t | {Q: spoilt(np.nan)}, ["model.safetensors", Q, "infinities or NaNs"]),
    "infinity": (lambda t: t | {Q: spoilt(np.inf)}, [Q, "infinities or NaNs"]),
    "minus infinity": (lambda t: t | {NORM: np.full(32, -np.inf, "f")}, [NORM, "infinities"]),
    "NaN in f16": (lambda t: t | {Q: spoilt(np.nan, np.float16)}, [Q, "infinities or NaNs"]),
    "infinity in bf16": (
        lambda t: t | {Q: spoilt(np.inf, ml_dtypes.bfloat16)}, [Q, "infinities or NaNs"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors_are_named(case, llama):
    """A tensor that is unknown, missing, of another shape or type, or not finite, by its name."""
    change, words = TENSORS[case]
    llama.tensors(change)
    llama.refused(*words)


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[:-1], lambda x: x.astype("e")])
def test_a_head_that_is_not_the_embedding_is_named(change, llama):
    """Where the config ties both, HF computes with a head that differs: it is not dropped."""
    llama.config(tie_word_embeddings=True)
    llama.tensors(lambda t: t | {HEAD: change(t[EMBED])})
    llama.refused("lm_head.weight differs from .*embed_tokens", "tie_word_embeddings")


def rope(**fields):
    return {"rope_parameters": {"rope_theta": 1e4} | fields}


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SCORE = {"architectures": ["LlamaForScore"], "score_dim": 1}
FIELDS = {
    "another family": ({"model_type": "gpt2"}, ["model_type is 'gpt2'", "llama, opt"]),
    "no family": ({"model_type": ...}, ["model_type is None"]),
    "family that is a list": ({"model_type": ["llama"]}, [r"model_type is \['llama'\]"]),
    "missing": ({"hidden_size": ...}, ["'hidden_size' is missing"]),
    "null": ({"num_hidden_layers": None}, ["'num_hidden_layers' is missing"]),
    "negative": ({"intermediate_size": -48}, ["intermediate_size is -48", "above 0"]),
    "zero": ({"num_hidden_layers": 0}, ["num_hidden_layers is 0"]),
    "too large": ({"vocab_size": 10**30}, ["vocab_size is 10000", "at most 16,777,216"]),
    "string": ({"hidden_size": "32"}, ["hidden_size is '32'", "whole number"]),
    "fraction": ({"num_attention_heads": 4.0}, ["num_attention_heads is 4.0"]),
    "flag as a number": ({"vocab_size": True}, ["vocab_size is True"]),
    "string as a flag": ({"attention_bias": "false"}, ["attention_bias is 'false'", "true or"]),
    "eps of zero": ({"rms_norm_eps": 0}, ["rms_norm_eps is 0", "above 0"]),
    "eps that is text": ({"rms_norm_eps": "1e-5"}, ["rms_norm_eps is '1e-5'"]),
    "eps that is no number": ({"rms_norm_eps": float("nan")}, ["rms_norm_eps: found NaN"]),
    "heads": (
        {"num_attention_heads": 5, "head_dim": ...}, ["num_attention_heads is 5", "divisor"],
    ),
    "key heads": ({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "4 heads"]),
    "more key heads": ({"num_key_value_heads": 8}, ["num_key_value_heads is 8"]),
    "odd head": ({"head_dim": 7}, ["head_dim is 7", "even"]),
    "head that is text": ({"head_dim": "8"}, ["head_dim is '8'"]),
    "activation": ({"hidden_act": "relu2"}, ["hidden_act is 'relu2'", "silu"]),
    "activation that is a list": ({"hidden_act": ["silu"]}, [r"hidden_act is \['silu'\]"]),
    "another size": ({"intermediate_size": 50}, [r"mlp.\w+_proj.weight has shape", "implies"]),
    "another layer": ({"num_hidden_layers": 3}, ["missing: .*layers.2", "unknown: none"]),
    "a layer less": ({"num_hidden_layers": 1}, ["unknown: .*layers.1", "missing: none"]),
    "tied though it is not": ({"tie_word_embeddings": True}, ["lm_head.weight differs"]),
    "a window": ({"sliding_window": 64}, ["'sliding_window': 64", "might change the logits"]),
    "its own code": (
        {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}},
        ["auto_map is {.*modeling_own.Own", "never run", "plain LLaMA"],
    ),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, ["'pruned_heads': {'0'"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["'quantization_config'"]),
    "rope type": (rope(rope_type="ntk", factor=4.0), ["rope type 'ntk'", "default, linear"]),
    "rope type that is a list": (rope(rope_type=["linear"]), [r"rope type \['linear'\]"]),
    "rope types that differ": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        ["rope_type is given twice, as 'default' and as 'linear'"],
    ),
    "thetas that differ": ({"rope_theta": 5e5}, ["rope_theta is given twice", "500000"]),
    "rope that is text": ({"rope_parameters": "linear"}, ["rope_parameters is 'linear'", "object"]),
    "no factor": (rope(rope_type="linear"), ["'linear': factor is None"]),
    "negative factor": (rope(rope_type="dynamic", factor=-2.0), ["factor is -2.0", "above 0"]),
    "infinite factor": (rope(rope_type="linear", factor=float("inf")), ["factor: found Infinity"]),
    "factor that is text": (rope(rope_type="linear", factor="2"), ["factor is '2'"]),
    "factor beyond any": (rope(rope_type="linear", factor=10**400), ["factor is 1000"]),
    "theta of zero": (rope(rope_type="default", rope_theta=0), ["theta is 0"]),
    "part of the head": (
        rope(rope_type="default", partial_rotary_factor=0.5), ["partial_rotary_factor 0.5"],
    ),
    "part of the head, older": (
        {"partial_rotary_factor": 0.5}, ["'partial_rotary_factor': 0.5"],
    ),
    "more than the type has": (
        rope(rope_type="linear", factor=2.0, beta_fast=32), ["'linear' with beta_fast"],
    ),
    "llama3 without its length": (
        rope(**LLAMA3 | {"original_max_position_embeddings": None}),
        ["'llama3': original_max_position_embeddings is None"],
    ),
    "llama3 upside down": (
        rope(**LLAMA3 | {"low_freq_factor": 4.0}), ["high_freq_factor must be above"],
    ),
    "another head": (
        {"architectures": ["LlamaForTokenClassification"]},
        [r"architectures is \['LlamaForTokenClassification'\]", "sequence classifier"],
    ),
    "architecture that is no list": (
        {"architectures": "LlamaForCausalLM"}, ["architectures is 'LlamaForCausalLM'", "list"],
    ),
    "labels that are a list": (
        {"architectures": ["LlamaForSequenceClassification"], "id2label": ["a"]},
        [r"id2label is \['a'\]", "object"],
    ),
    "normalised scores": (SCORE | {"do_normalize": True}, ["'do_normalize': True"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_wrong_configs_are_named(case, llama):
    """A config that this port does not compute is refused by field and value, never half obeyed."""
    change, words = FIELDS[case]
    llama.config(**change)
    llama.refused(*words)


# What `to_dict` of transformers 4 writes beside the fields of the network.
DUMP = {
    "_name_or_path": "x", "add_cross_attention": False, "bad_words_ids": [[3]],
    "begin_suppress_tokens": None, "bos_token_id": 1, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.5,
    "do_sample": True, "early_stopping": True, "encoder_no_repeat_ngram_size": 2,
    "exponential_decay_length_penalty": [5, 1.1], "finetuning_task": "x",
    "forced_bos_token_id": 1, "forced_eos_token_id": 2, "is_decoder": False,
    "is_encoder_decoder": False, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 3, "num_beam_groups": 1, "num_beams": 4, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": True,
    "pad_token_id": 0, "prefix": "x", "problem_type": None, "pruned_heads": {},
    "remove_invalid_values": True, "repetition_penalty": 1.2, "return_dict": True,
    "return_dict_in_generate": True, "sep_token_id": 5, "suppress_tokens": [4],
    "task_specific_params": {"x": 1}, "temperature": 0.6, "tf_legacy_loss": True,
    "tie_encoder_decoder": False, "tokenizer_class": None, "top_k": 50, "top_p": 0.9,
    "torchscript": False, "torch_dtype": "float32", "typical_p": 0.9, "use_bfloat16": False,
}  # fmt: skip


def test_whole_dumps_are_read(llama):
    """What is about generation, training or bookkeeping changes no logit: the same network."""
    network = pretrained.read(str(llama.path)).network
    llama.config(**DUMP)
    assert pretrained.read(str(llama.path)).network == network


OPT_FIELDS = {
    "heads": ({"num_attention_heads": 5}, ["num_attention_heads is 5", "hidden_size 32"]),
    "activation": ({"activation_function": "swish"}, ["activation_function is 'swish'", "relu"]),
    "flag": ({"do_layer_norm_before": 1}, ["do_layer_norm_before is 1", "true or false"]),
    "embedding": ({"word_embed_proj_dim": 0}, ["word_embed_proj_dim is 0"]),
    "narrow": ({"word_embed_proj_dim": 16}, ["missing: .*project_in.weight", "unknown: none"]),
    "norms": ({"_remove_final_layer_norm": True}, ["unknown: .*final_layer_norm"]),
    "biases": ({"enable_bias": False}, ["unknown: .*bias"]),
    "positions": ({"max_position_embeddings": 94}, ["embed_positions", r"\(98, 32\)", "96"]),
    "LLaMA's": ({"num_key_value_heads": 2}, ["'num_key_value_heads': 2"]),
    "missing": ({"ffn_dim": ...}, ["'ffn_dim' is missing; OPT configs"]),
}


@pytest.mark.parametrize("case", OPT_FIELDS)
def test_wrong_configs_of_opt_are_named(case, opt):
    """The same holds for OPT's fields."""
    change, words = OPT_FIELDS[case]
    opt.config(**change)
    opt.refused(*words)


# --- judges --------------------------------------------------------------------------------------


@pytest.fixture
def judge(tmp_path):
    kind = transformers.LlamaForSequenceClassification
    return Folder(tmp_path / "judge", tiny.torch_model(kind, num_labels=3))


def test_a_judge_is_not_taken_for_a_language_model(judge):
    """A classifier where a model that writes is expected says what it is."""
    assert pretrained.read(str(judge.path)).network.n_labels == 3
    judge.refused("a model that judges", "3 outputs", "causal language model")


def load_judge(folder):
    return pretrained.read(str(folder.path)).load("float32", tiny.mesh())


def test_a_bias_that_transformers_would_not_add_is_named(judge):
    """HF's classifiers have no bias: one in the file is unknown, not added."""
    judge.tensors(lambda t: t | {"score.bias": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="unknown: score.bias;"):
        load_judge(judge)


def test_damaged_score_heads_are_named(judge):
    """A bias that the config promises must be there, and no tensor may come under two names."""
    judge.config(**SCORE | {"architectures": ["LlamaModelForScore"], "score_bias": True})
    judge.tensors(lambda t: t | {"score.weight": t["score.weight"][:1]})
    with pytest.raises(ValueError, match="missing: score.bias$"):
        load_judge(judge)
    judge.tensors(lambda t: t | {"score_head.weight": t["score.weight"]})
    with pytest.raises(ValueError, match=r"score\w*.weight and score\w*.weight mean the same"):
        load_judge(judge)


def test_labels_that_are_not_those_of_the_head_are_named(judge):
    """Three labels in the config, two rows in the head: the head is named with both shapes."""
    judge.tensors(lambda t: t | {"score.weight": t["score.weight"][:2]})
    with pytest.raises(ValueError, match=r"score.weight has shape \(2, 32\).*implies \(3, 32\)"):
        load_judge(judge)


def test_loading_leaves_no_tensor_out(tmp_path):
    """Each tensor of the file arrives under its own name: each spoilt alone is seen."""
    theirs = tiny.torch_opt(**RICH["opt"])
    theirs.save_pretrained(tmp_path)
    whole = tensors_in(tmp_path)
    model, params = tiny.load(tmp_path)
    before = {weights.find(model.config, p).name: x for p, x in weights.flatten(params).items()}
    changed = {name: value + 1 for name, value in whole.items()}
    safetensors.numpy.save_file(changed, tmp_path / "model.safetensors")
    _, params = tiny.load(tmp_path)
    after = {weights.find(model.config, p).name: x for p, x in weights.flatten(params).items()}
    assert after.keys() == whole.keys()
    assert all(bool(jnp.all(after[n] != before[n])) for n in after)
    assert len(jax.tree.leaves(params)) == len(whole)
