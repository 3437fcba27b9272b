"""Every architecture of GGUF: the torch model that a file was written of comes back."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
from gguf import GGMLQuantizationType as Type

from isara_jax.formats.from_gguf import conversion, network
from isara_jax.formats.from_gguf.architectures import ARCHITECTURES
from isara_jax.formats.from_gguf.file import GgufFile
from isara_jax.models import families
from tests import gguf_files
from tests.gguf_files import convert, rounded, same_model, written

YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
    "attention_factor": 1.25, "rope_theta": 500_000.0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 500_000.0}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
    "rope_theta": 10_000.0, "partial_rotary_factor": 0.5,
}  # fmt: skip
# Sizes at which what llama.cpp takes for granted shows in logits of eleven tokens.
MODELS = {
    "mistral": {"sliding_window": None, "num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 1, "rope_theta": 1e6},
    "gemma": {"head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {
        "sliding_window": 4, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        "sliding_window": 4, "query_pre_attn_scalar": 8, "num_hidden_layers": 6,
        "layer_types": None, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {
        "sliding_window": 4, "num_hidden_layers": 4, "num_key_value_heads": 2,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN},
    },
    "smollm3": {"num_hidden_layers": 4, "num_key_value_heads": 2},
    "granite": {
        "attention_multiplier": 0.125, "embedding_multiplier": 12.0, "residual_multiplier": 0.25,
        "logits_scaling": 8.0, "num_key_value_heads": 2,
    },
    "phi3": {"sliding_window": 5, "num_key_value_heads": 2},
    "phi3 long": {
        "rope_parameters": LONGROPE, "original_max_position_embeddings": 64,
        "num_key_value_heads": 2,
    },
}  # fmt: skip


def torch_model(case):
    return rounded(tiny.TORCH[case.split()[0]](**MODELS[case]))


@pytest.mark.parametrize("case", MODELS)
def test_the_original_comes_back(case, tmp_path):
    """Weights bit by bit, and, by the config that is made of metadata, the logits."""
    theirs = torch_model(case)
    path = written(tmp_path / "a.gguf", theirs)
    folder = convert(path, tmp_path / "out")
    same_model(folder, theirs)
    config = json.loads((folder / "config.json").read_text())
    family = "llama" if case == "mistral" else case.split()[0]
    assert config["architectures"] == [families.FAMILIES[family].architecture]


READ = {"qwen2": {}, "qwen3": {"head_dim": 128}, "gemma2": {}, "gemma3_text": {}, "phi3": {}}


@pytest.mark.parametrize("case", READ)
def test_weights_are_those_that_transformers_reads(case, tmp_path):
    """Quantised ones too: its own reader, of architectures and sizes of heads that it knows."""
    sizes = MODELS[case] | READ[case] | {"intermediate_size": 64}  # a block is of 32 values
    theirs = tiny.TORCH[case](**sizes)
    words = gguf_files.llamas_words(**{"ggml.padding_token_id": 0})
    path = written(tmp_path / "a.gguf", theirs, words, kind=Type.Q8_0)
    folder = convert(path, tmp_path / "out")
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    wanted = gguf_files.read_by_transformers(path).state_dict()
    assert set(wanted) - set(found) <= {"lm_head.weight"} and set(found) <= set(wanted)
    for name, value in found.items():
        np.testing.assert_array_equal(
            value.view(np.int16), gguf_files.bits(wanted[name]), err_msg=name
        )


def test_every_architecture_is_tried():
    """A new entry of the table needs a model here."""
    assert {gguf_files.ARCHITECTURE.get(case.split()[0], case.split()[0]) for case in MODELS} == (
        set(ARCHITECTURES)
    )


def test_yarn(tmp_path):
    """Its parameters come back, and what follows from them is left to follow."""
    scaling = {name: value for name, value in YARN.items() if name != "attention_factor"}
    theirs = rounded(tiny.TORCH["qwen2"](rope_parameters=scaling))
    fields = {
        "type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 32.0,
    }  # fmt: skip
    changed = {f"qwen2.rope.scaling.{name}": value for name, value in fields.items()}
    same_model(
        convert(written(tmp_path / "a.gguf", theirs, changed=changed), tmp_path / "out"), theirs
    )


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_gemmas_of_27b_scale_otherwise(family, layers, tmp_path):
    """By width / heads, which here is not the size of a head; they are known by their layers."""
    theirs = tiny.TORCH[family](head_dim=4, num_hidden_layers=6)
    changed = {f"{gguf_files.architecture(theirs.config)}.block_count": layers}
    file = GgufFile(written(tmp_path / "a.gguf", theirs, changed=changed))
    assert network.config(network.of(file), file)["query_pre_attn_scalar"] == 8


def test_older_files_say_less(tmp_path):
    """What llama.cpp takes where a field is missing: caps and windows of Gemma 2."""
    theirs = rounded(tiny.TORCH["gemma2"](query_pre_attn_scalar=8))
    names = ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")
    absent = {f"gemma2.{name}": None for name in names}
    same_model(
        convert(written(tmp_path / "a.gguf", theirs, changed=absent), tmp_path / "out"), theirs
    )


REFUSED = {
    "granite": ({"granite.rope.scaling.finetuned": False}, "finetuned is False; only true"),
    "gemma3_text": ({"gemma3.attention.scale": 0.5}, "gemma3.attention.scale is 0.5; it is not"),
    "qwen2": ({"qwen2.attention.sliding_window": 9}, "sliding_window is 9; it is not supported"),
    "olmo3": (
        {"olmo2.attention.sliding_window_pattern": [True]}, "pattern has 1 values; 4 are expected"),
    "phi3": ({"phi3.rope.dimension_count": 80}, "dimension_count is 80; only 8"),
    "gemma2": ({"gemma2.rope.dimension_count": 4}, "dimension_count is 4; only 8"),
    "gemma": ({"gemma.block_count": 2**31}, "block_count is 2147483648; the file has only 20 tens"),
    "mistral": ({"llama.attention.head_count": 64}, "head_dim would be 0; at least 1 is expected"),
    "phi3 long": (
        {"phi3.rope.scaling.type": "yarn", "phi3.rope.scaling.factor": 2.0},
        "both tensors of factors and a yarn scaling"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_logits_is_refused(case, tmp_path):
    """By the name of the field, and nothing is left behind."""
    changed, words = REFUSED[case]
    path = written(tmp_path / "a.gguf", torch_model(case), changed=changed)
    with pytest.raises(ValueError, match=words) as stopped:
        conversion.convert(path, tmp_path / "out")
    assert "\n" not in str(stopped.value) and list(tmp_path.iterdir()) == [path]


def test_ones_are_taken_away_before_rounding(tmp_path):
    """1 + w in bf16 would lose what small weights of norms say."""
    theirs = rounded(tiny.TORCH["gemma"]())
    with torch.no_grad():
        theirs.model.norm.weight.fill_(float(torch.tensor(0.00123).bfloat16()))
    folder = convert(written(tmp_path / "a.gguf", theirs), tmp_path / "out")
    found = safetensors.numpy.load_file(folder / "model.safetensors")["model.norm.weight"]
    assert set(found.astype(np.float32)) == {theirs.model.norm.weight[0].item()}
