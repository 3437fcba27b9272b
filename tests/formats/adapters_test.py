"""Adapters in and out, against PEFT."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import tiny

from isara_jax import config
from isara_jax.formats import adapters, weights
from isara_jax.models import lora

IDS = np.random.default_rng(0).integers(3, tiny.SIZES["vocab_size"], (2, 20))
NETWORKS = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True},
    "opt": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
}
# The other families by what tells their adapters apart: fused layers, norms of q and k, windows.
OTHERS = {name: {} for name in tiny.TORCH if name not in NETWORKS}
FILE = "adapter_model.safetensors"


@functools.cache
def network(family):
    """HF's model and ours; PEFT changes the first in place, so a test that uses PEFT makes one."""
    return tiny.ported(tiny.TORCH[family](**(NETWORKS | OTHERS)[family]))


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _logits(model, params, adapter, settings):
    variables = lora.variables(params, adapter, config.Train(lora=settings))
    return model.apply(variables, jnp.asarray(IDS), method="everything")


def logits(family, adapter, settings):
    return np.asarray(_logits(*network(family), adapter, settings))


def random_adapter(family, settings):
    """An adapter whose b is not zero, as after some training."""
    rng = np.random.default_rng(0)
    fresh = lora.init(network(family)[0].config, settings, jax.random.key(0))
    changed = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), fresh)
    return jax.device_get(changed)


def in_peft(family, directory):
    """PEFT's reading of an adapter, upon the base model."""
    theirs = tiny.TORCH[family](**(NETWORKS | OTHERS)[family])
    return peft.PeftModel.from_pretrained(theirs, directory).eval()


# --- out -----------------------------------------------------------------------------------------

SETTINGS = {
    "all": config.Lora(rank=4, alpha=24.0),
    "some": config.Lora(rank=3, alpha=3.5, targets=("q", "v", "down")),
}


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("name", SETTINGS)
def test_saved_adapter_works_in_peft(family, name, tmp_path):
    """PEFT loads what we write, names, layout and scale, and computes the same logits."""
    settings, (model, _) = SETTINGS[name], network(family)
    adapter, base = random_adapter(family, settings), str(tmp_path / "base")
    tiny.TORCH[family](**NETWORKS[family]).config.save_pretrained(base)
    adapters.save(tmp_path, model.config, adapter, settings, base)
    adapted = in_peft(family, tmp_path)
    expected = tiny.torch_logits(adapted, IDS)
    assert tiny.difference(logits(family, adapter, settings), expected) < 1e-4
    with adapted.disable_adapter():
        assert tiny.difference(tiny.torch_logits(adapted, IDS), expected) > 0.01
    assert adapted.peft_config["default"].base_model_name_or_path == base
    # PEFT only warns of tensors that it cannot place: all must have found theirs.
    loaded = peft.get_peft_model_state_dict(adapted)
    saved = safetensors.numpy.load_file(tmp_path / FILE)
    assert set(loaded) == set(saved)
    for path, value in saved.items():
        np.testing.assert_array_equal(loaded[path].numpy(), value)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("name", SETTINGS)
def test_saved_adapter_loads_again(family, name, tmp_path):
    """What we write we read: the same bits, rank, alpha, layers; written again, the same files."""
    settings, (model, _) = SETTINGS[name], network(family)
    adapter = random_adapter(family, settings)
    adapters.save(tmp_path / "first", model.config, adapter, settings, "base")
    back, found = adapters.load(tmp_path / "first", model.config)
    assert (found.rank, found.alpha) == (settings.rank, settings.alpha)
    # OPT has no gate, so an adapter of all its layers has none.
    assert set(found.targets) == {path[-1] for path in lora.target_shapes(model.config, settings)}
    ours, theirs = weights.flatten(adapter), weights.flatten(back)
    assert ours.keys() == theirs.keys()
    assert all(np.asarray(ours[p]).tobytes() == theirs[p].tobytes() for p in ours)
    adapters.save(tmp_path / "second", model.config, back, found, "base")
    for name in (FILE, "adapter_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("family", OTHERS)
def test_exports_of_every_family_load_elsewhere(family, tmp_path):
    """An adapter in PEFT and here again, and the merged model in transformers: the same logits."""
    settings, (model, params) = SETTINGS["all"], network(family)
    adapter, base = random_adapter(family, settings), tmp_path / "base"
    theirs = tiny.TORCH[family](**OTHERS[family])
    theirs.config.save_pretrained(base)
    adapters.save(tmp_path / "adapter", model.config, adapter, settings, str(base))
    ours = logits(family, adapter, settings)
    assert (
        tiny.difference(tiny.torch_logits(in_peft(family, tmp_path / "adapter"), IDS), ours) < 1e-4
    )
    back, found = adapters.load(tmp_path / "adapter", model.config)
    assert set(found.targets) == set(settings.targets)
    np.testing.assert_array_equal(logits(family, back, settings), ours)
    weights.save(base, model.config, lora.merge(params, adapter, settings))
    merged = type(theirs).from_pretrained(base, attn_implementation="eager")
    assert tiny.difference(tiny.torch_logits(merged, IDS), ours) < 1e-4
    assert tiny.difference(tiny.torch_logits(theirs, IDS), ours) > 0.01


def test_layers_that_are_fused_are_adapted_together():
    """Some but not all of them would be an adapter that PEFT cannot hold."""
    model, _ = network("phi3")
    with pytest.raises(config.ConfigError, match="phi3 has q, k, v fused in one layer"):
        lora.target_shapes(model.config, SETTINGS["some"])


# --- in ------------------------------------------------------------------------------------------

LINEAR = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}


def save_from_peft(directory, family="llama", dtype=None, **changed):
    """Writes an adapter as PEFT does, after training of a kind."""
    fields = {"r": 5, "lora_alpha": 12, "target_modules": LINEAR[family]} | changed
    settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **fields)
    adapted = peft.get_peft_model(tiny.TORCH[family](**NETWORKS[family]), settings)
    adapted.save_pretrained(directory)
    if dtype:
        edit(directory, lambda t: {n: x.astype(dtype) for n, x in t.items()})


def edit(directory, change):
    tensors = safetensors.numpy.load_file(directory / FILE)
    safetensors.numpy.save_file(change(tensors), directory / FILE, {"format": "pt"})


FROM_PEFT = {
    "llama": ("llama", {}, "q k v o gate up down"),
    "llama, some": ("llama", {"target_modules": ["v_proj", "gate_proj"]}, "v gate"),
    "llama, all-linear": ("llama", {"target_modules": "all-linear"}, "q k v o gate up down"),
    "llama, bf16": ("llama", {"dtype": ml_dtypes.bfloat16}, "q k v o gate up down"),
    "opt": ("opt", {}, "q k v o up down"),
    "opt, a pattern": ("opt", {"target_modules": r".*\.(q_proj|fc2)"}, "q down"),
    "opt, f16": ("opt", {"dtype": np.float16, "target_modules": ["out_proj"]}, "o"),
    "llama, rsLoRA": ("llama", {"use_rslora": True}, "q k v o gate up down"),
    "llama, a block": ("llama", {"layers_to_transform": [1]}, "q k v o gate up down"),
    "llama, the first": (
        "llama", {"layers_to_transform": 0, "layers_pattern": "layers"}, "q k v o gate up down",
    ),
    "llama, some by path": (
        "llama", {"target_modules": ["layers.0.self_attn.q_proj", "up_proj"]}, "q up",
    ),
    "llama, some excluded": (
        "llama", {"exclude_modules": ["layers.1.mlp.up_proj", "k_proj"]}, "q v o gate up down",
    ),
    "llama, a pattern excluded": (
        "llama", {"target_modules": "all-linear", "exclude_modules": r".*layers\.1\..*"},
        "q k v o gate up down",
    ),
    "opt, a pattern of a block": (
        "opt", {"target_modules": r".*layers\.0\..*(v_proj|fc1)", "use_rslora": True}, "v up",
    ),
    "opt, a block in f16": (
        "opt", {"dtype": np.float16, "layers_to_transform": [0]}, "q k v o up down",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROM_PEFT)
def test_adapters_of_peft_load(name, tmp_path):
    """Adapters that PEFT wrote give PEFT's logits, whatever way their layers were chosen."""
    family, changed, targets = FROM_PEFT[name]
    save_from_peft(tmp_path, family, **changed)
    adapter, settings = adapters.load(tmp_path, network(family)[0].config)
    assert settings.targets == tuple(targets.split())
    assert settings.rank == 5
    assert np.isclose(settings.alpha, 12 * (5**0.5 if changed.get("use_rslora") else 1))
    assert {x.dtype for x in jax.tree.leaves(adapter)} == {np.dtype(np.float32)}
    expected = tiny.torch_logits(in_peft(family, tmp_path), IDS)
    assert tiny.difference(logits(family, adapter, settings), expected) < 1e-4
    base = logits(family, None, settings)
    assert tiny.difference(base, expected) > 0.01
    # Written again it means the same in PEFT, also where it said less.
    adapters.save(tmp_path / "again", network(family)[0].config, adapter, settings, "base")
    again = tiny.torch_logits(in_peft(family, tmp_path / "again"), IDS)
    assert tiny.difference(again, expected) < 1e-4


def test_blocks_without_adapter_stay_as_they_are(tmp_path):
    """Going on with an adapter of one block trains that block, and no other, as in PEFT."""
    save_from_peft(tmp_path, layers_to_transform=[1])
    model, params = network("llama")
    adapter, settings = adapters.load(tmp_path, model.config)

    def loss(trainable):
        return jnp.sum(jnp.square(_logits(model, params, trainable, settings)))

    found = jax.grad(loss)(adapter)
    assert not any(np.any(x) for x in jax.tree.leaves(found["layers_0"]))
    assert all(np.any(x) for x in jax.tree.leaves(found["layers_1"]))


# --- damaged -------------------------------------------------------------------------------------


def refused(directory, *words, family="llama"):
    with pytest.raises(ValueError) as error:
        adapters.load(directory, network(family)[0].config)
    message = str(error.value)
    assert "\n" not in message
    for word in (str(directory), *words):
        assert re.search(word, message), (word, message)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good")
    save_from_peft(directory)
    return directory


@pytest.fixture
def adapter(good, tmp_path):
    """An adapter's directory, to be spoilt."""
    for name in (FILE, "adapter_config.json"):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    adapters.load(tmp_path, network("llama")[0].config)
    return tmp_path


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
TENSORS = {
    "missing": (lambda t: {n: x for n, x in t.items() if n != A}, [f"missing: {A}$"]),
    "block left out": (
        lambda t: {n: x for n, x in t.items() if ".layers.1." not in n},
        ["every block", r"missing: .*layers.1.*and \d+ more"],
    ),
    "unknown": (
        lambda t: t | {A.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(32, "f")},
        ["unknown: .*lora_magnitude_vector"],
    ),
    "module beyond the blocks": (
        lambda t: t | {"base_model.model.lm_head.lora_A.weight": np.ones((5, 32), "f")},
        ["unknown: base_model.model.lm_head.lora_A.weight"],
    ),
    "none": (lambda t: {}, ["no tensor fits", "found none"]),
    "of a model without head": (
        lambda t: {n.replace("model.model.", "model."): x for n, x in t.items()},
        ["no tensor fits a layer", "found base_model.model.layers"],
    ),
    "rank": (lambda t: t | {A: np.ones((4, 32), "f")}, [A, r"\(4, 32\)", "r=5", r"\(5, 32\)"]),
    "transposed": (lambda t: t | {A: np.ones((32, 5), "f")}, [A, r"\(32, 5\)", r"\(5, 32\)"]),
    "NaN": (lambda t: t | {A: np.full((5, 32), np.nan, "f")}, [A, "infinities or NaNs"]),
    "infinity": (lambda t: t | {A: np.full((5, 32), np.inf, "e")}, [A, "infinities or NaNs"]),
    "integers": (lambda t: t | {A: np.ones((5, 32), np.int32)}, [FILE, A, "I32", "bf16"]),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors_are_named(case, adapter):
    """A tensor that is missing, unknown, of another rank or not finite is refused by its name."""
    change, words = TENSORS[case]
    edit(adapter, change)
    refused(adapter, *words)


FIELDS = {
    "another kind": ({"peft_type": "IA3"}, ["peft_type is 'IA3'", "'LORA'"]),
    "DoRA": ({"use_dora": True}, ["use_dora is True", "plain LoRA"]),
    "blocks it does not have": ({"layers_to_transform": [0]}, ["unknown: .*layers.1.* more"]),
    "layers it does not have": ({"target_modules": ["v_proj"]}, ["unknown: .*_proj.* more"]),
    "a wrong pattern": ({"target_modules": "(q_proj"}, ["target_modules, .* do not choose"]),
    "blocks that are text": ({"layers_to_transform": 1.5}, ["layers_to_transform .* not choose"]),
    "ranks by layer": ({"rank_pattern": {"q_proj": 8}}, ["rank_pattern is .*q_proj"]),
    "alphas by layer": ({"alpha_pattern": {"q_proj": 8}}, ["alpha_pattern is"]),
    "trained biases": ({"bias": "lora_only"}, ["bias is 'lora_only'", "'none'"]),
    "whole modules": ({"modules_to_save": ["lm_head"]}, [r"modules_to_save is \['lm_head'\]"]),
    "trained tokens": ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
    "another base": ({"init_lora_weights": "pissa"}, ["init_lora_weights is 'pissa'", "base"]),
    "replicated": ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
    "invocation tokens": ({"alora_invocation_tokens": [5]}, ["alora_invocation_tokens"]),
    "of the future": ({"use_better_lora": {"twice": True}}, ["use_better_lora is"]),
    "another rank": ({"r": 6}, [r"\(5, 32\)", "r=6"]),
    "rank of zero": ({"r": 0}, ["r is 0", "above 0"]),
    "rank that is text": ({"r": "5"}, ["r is '5'"]),
    "no rank": ({"r": None}, ["r is None"]),
    "no alpha": ({"lora_alpha": None}, ["lora_alpha is None"]),
    "alpha that is no number": ({"lora_alpha": float("nan")}, ["lora_alpha: found NaN"]),
}


@pytest.mark.parametrize("case", FIELDS)
def test_other_kinds_of_adapters_are_named(case, adapter):
    """What is not plain LoRA is refused by field: it would load, and compute something else."""
    change, words = FIELDS[case]
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(adapter, *words)


FILES = {
    "header cut": (lambda d: (d / FILE).write_bytes((d / FILE).read_bytes()[:50]), [FILE, "read"]),
    "data cut": (lambda d: (d / FILE).write_bytes((d / FILE).read_bytes()[:-9]), [FILE, "read"]),
    "pickle alone": (
        lambda d: (d / FILE).rename(d / "adapter_model.bin"),
        [f"{FILE}: not found", "safe_serialization=True"],
    ),
    "link outside": (
        lambda d: (d / FILE).symlink_to((d / FILE).rename(d.parent / f"{d.name}-elsewhere")),
        ["leads to .*-elsewhere, outside"],
    ),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), ["adapter_config.json: not"]),
    "no JSON": (lambda d: (d / "adapter_config.json").write_text("{"), ["not valid JSON"]),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_files_are_named(case, adapter):
    """Files that broke off, are missing or lie elsewhere are named."""
    spoil, words = FILES[case]
    spoil(adapter)
    refused(adapter, *words)


def test_an_adapter_of_another_model_is_named(adapter):
    """LLaMA's adapter upon OPT, and upon a wider LLaMA, is refused by name."""
    refused(adapter, "no tensor fits a layer|unknown: ", family="opt")
    wider = tiny.ported(tiny.torch_llama(hidden_size=48))[0].config
    with pytest.raises(ValueError, match=r"has shape \(\d+, 5\)|has shape \(5, \d+\)"):
        adapters.load(adapter, wider)
