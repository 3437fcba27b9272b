"""A Gemma 3 that sees pictures too: its language model is read, trained and exported."""

import json
import pathlib
import re

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import tiny
import torch
import transformers

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import storage
from isara_jax.formats import adapters, pretrained, weights
from isara_jax.models import families, lora

IDS = np.random.default_rng(0).integers(3, tiny.SIZES["vocab_size"], (2, 20))
SETTINGS = config.Lora(rank=4, alpha=24.0)
PICTURES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """A tiny one with random weights."""
    text = {
        **tiny.SIZES, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"],
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    whole = transformers.Gemma3Config(
        text_config=text, vision_config=PICTURES, mm_tokens_per_image=4, image_token_index=300,
        boi_token_index=301, eoi_token_index=302, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    return tiny.randomise(transformers.Gemma3ForConditionalGeneration(whole).eval())


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "base")
    tiny.byte_level_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def renamed(folder, change):
    """Other names of the same tensors."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({change(name): x for name, x in tensors.items()}, path)


NAMES = {
    "as saved": lambda name: name,
    "as published": lambda name: re.sub(
        r"^(model\.)?(language_model\.)(model\.)?", r"\2model.", name
    ),
    "as transformers 5 has them": lambda name: re.sub(
        r"^language_model\.model\.", "model.language_model.", name
    ),
}


@pytest.mark.parametrize("names", NAMES)
def test_the_language_model_is_read(theirs, folder, names, monkeypatch):
    """By either names of tensors; that the rest is passed over is said."""
    said = []
    monkeypatch.setattr(processes.endings, "say", said.append)
    processes.say_once.cache_clear()
    renamed(folder, NAMES[names])
    ours = tiny.logits(*tiny.load(folder), IDS)
    assert tiny.difference(ours, tiny.torch_logits(theirs, IDS)) < 1e-4
    assert any("vision tower passed over" in line for line in said)


def test_what_published_configs_leave_out_is_of_the_class():
    """As google/gemma-3-4b-it has it: transformers fills in the rest, and so do we."""
    sparse = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144,
        "mm_tokens_per_image": 256, "initializer_range": 0.02, "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 2, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "image_size": 896, "patch_size": 14},
    }  # fmt: skip
    network = families.from_hf(sparse, "config.json")
    filled = transformers.Gemma3Config(**sparse).text_config.to_dict()
    assert families.alone(network, sparse)[0] == families.from_hf(filled, "filled")


def test_exports_load_elsewhere(theirs, folder, tmp_path):
    """The adapter upon the whole model in PEFT; the merged language model by itself."""
    base = pretrained.read(str(folder))
    model, params = tiny.load(folder)
    rng = np.random.default_rng(0)
    fresh = lora.init(model.config, SETTINGS, jax.random.key(0))
    adapter = jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.1, x.shape), np.float32), fresh)
    variables = lora.variables(params, adapter, config.Train(lora=SETTINGS))
    ours = np.asarray(model.apply(variables, IDS, method="everything"))

    adapters.save(tmp_path / "adapter", model.config, adapter, SETTINGS, str(folder))
    (tmp_path / "merged").mkdir()
    pretrained.save_model(tmp_path / "merged", base, lora.merge(params, adapter, SETTINGS))
    fields = storage.read_json(tmp_path / "merged" / "config.json")
    assert fields["model_type"] == "gemma3_text" and "vision_config" not in fields
    merged = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation="eager"
    )
    assert type(merged) is transformers.Gemma3ForCausalLM
    assert tiny.difference(tiny.torch_logits(merged, IDS), ours) < 1e-4
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert tiny.difference(tiny.torch_logits(adapted, IDS), ours) < 1e-4
    loaded = peft.get_peft_model_state_dict(adapted)
    saved = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(loaded) == set(saved)
    back, _ = adapters.load(tmp_path / "adapter", model.config)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, adapter))


def test_a_field_of_the_language_model_is_named(folder):
    """With where it stands."""
    path = pathlib.Path(folder) / "config.json"
    fields = json.loads(path.read_text())
    fields["text_config"]["use_bidirectional_attention"] = True
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"\(text_config\): use_bidirectional_attention is True"):
        weights.load_config(folder)
