"""What llama.cpp calls an architecture, and the config and tensors it is in Hugging Face's terms.

Another architecture is another entry of `ARCHITECTURES`. Every field of the metadata is honoured,
known to change nothing, or refused by name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from isara_jax.formats.from_gguf import file as file_lib
from isara_jax.formats.from_gguf.file import GgufFile
from isara_jax.models import rope as rope_lib
from isara_jax.models.rope import Rope

# Of an architecture's metadata: facts of other fields said again, or of training.
_WITHOUT_EFFECT = (
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
)  # fmt: skip
_ROPE_FACTORS = "rope_freqs.weight"


class Architecture(NamedTuple):
    """One of llama.cpp's architectures.

    Attributes:
      config: makes the fields of `config.json`.
      tensors: Hugging Face's name of each tensor by GGUF's, `{i}` for the number of a block.
      turned: of those whose rows llama.cpp reorders for RoPE, the field of `config.json` that
        counts their heads.
    """

    config: Callable[[GgufFile], dict[str, Any]]
    tensors: dict[str, str]
    turned: dict[str, str]


def of(file: GgufFile) -> Architecture:
    """The architecture of a file.

    Raises:
      ValueError: it is none of those supported, or the file holds something else than a model.
    """
    kind = file.get("general.type", str, "model")
    if kind != "model":
        file.fail("general.type", kind, "a whole model is expected")
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: general.architecture is {name!r}; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def names(architecture: Architecture, config: dict[str, Any], file: GgufFile) -> dict[str, str]:
    """The GGUF name of each tensor of the file, by its Hugging Face name.

    Raises:
      ValueError: one that the architecture does not have.
    """
    found = {}
    known = {
        theirs.replace("{i}", str(i)): ours.replace("{i}", str(i))
        for theirs, ours in architecture.tensors.items()
        for i in range(config["num_hidden_layers"] if "{i}" in theirs else 1)
    }
    unknown = sorted(set(file.tensors) - set(known) - {_ROPE_FACTORS})
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(
            f"{file.path}: tensors {', '.join(unknown[:3])}{more} are none of the supported "
            f"{config['model_type']}'s; they would be lost"
        )
    for theirs in file.tensors:
        if theirs in known:
            found[known[theirs]] = theirs
    return found


def heads(architecture: Architecture, config: dict[str, Any], name: str) -> int:
    """The heads by which llama.cpp reordered a tensor's rows; 0: it did not. `name` is GGUF's."""
    pattern = ".".join("{i}" if part.isdecimal() else part for part in name.split("."))
    field = architecture.turned.get(pattern)
    return config[field] if field else 0


def turned_back(data: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows in Hugging Face's order.

    llama.cpp turns neighbouring rows of a head as a pair, Hugging Face the one half of the head
    with the other: rows 0, 1, 2, 3, ... of a head are there 0, h/2, 1, h/2 + 1, ...

    Args:
      data: `[n_heads * h, ...]`, also of packed blocks, which lie along the rows.
      n_heads: of queries, or of keys.
    """
    pairs = data.reshape(n_heads, -1, 2, *data.shape[1:])
    return pairs.swapaxes(1, 2).reshape(data.shape)


# --- LLaMA ---------------------------------------------------------------------------------------

_LLAMA_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
} | {
    f"blk.{{i}}.{theirs}.{part}": f"model.layers.{{i}}.{ours}.{part}"
    for theirs, ours in _LLAMA_BLOCK.items()
    for part in ("weight", "bias")
}
_LLAMA_TURNED = {
    f"blk.{{i}}.{name}.{part}": heads
    for name, heads in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads"))
    for part in ("weight", "bias")
}


def _llama(file: GgufFile) -> dict[str, Any]:
    """The `config.json` of a LLaMA, but for what the tokenizer says."""
    sizes = {ours: file.get(f"llama.{theirs}", int) for theirs, ours in _LLAMA_SIZES.items()}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{file.path}: {name} would be {value}; at least 1 is expected")
    n_heads = sizes["num_attention_heads"]
    size = _head_size(file, sizes["hidden_size"] // n_heads)
    config = sizes | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": file.get("llama.attention.head_count_kv", int, n_heads),
        "head_dim": size,
        "hidden_act": "silu",
        "vocab_size": file_lib.shape(file.tensor("token_embd.weight"))[0],
        "rms_norm_eps": _number(file, "llama.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }
    config |= rope_lib.to_hf(_rope(file, "llama", size))
    _refuse_the_rest(file, "llama")
    return config


def _head_size(file: GgufFile, default: int) -> int:
    """Of queries and keys; values as large, all of it turned by RoPE."""
    size = file.get("llama.rope.dimension_count", int, default)
    size = file.get("llama.attention.key_length", int, size)
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        other = file.get(f"llama.{name}", int, size)
        if other != size:
            file.fail(f"llama.{name}", other, f"only {size}, the size of a head, is supported")
    return size


def _refuse_the_rest(file: GgufFile, name: str) -> None:
    """Raises `ValueError` where metadata of the architecture is left that might change logits."""
    if not file.get(f"{name}.attention.causal", bool, True):
        file.fail(f"{name}.attention.causal", False, "only a causal model is supported")
    ignored = {f"{name}.{field}" for field in _WITHOUT_EFFECT}
    for field, value in file.left(f"{name}.").items():
        if field not in ignored and value not in (0, False, "", []):
            file.fail(field, value, "it is not supported, and might change the logits")


# --- RoPE ----------------------------------------------------------------------------------------

# Llama 3.1's; 3.2 differs in the factor, which the longest waves show.
_LLAMA3 = Rope(kind="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
_ORIGINALS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)  # tokens; Llama 3's first


def _rope(file: GgufFile, name: str, size: int) -> Rope:
    """RoPE's base and scaling, which llama.cpp keeps in three places."""
    plain = Rope(theta=_number(file, f"{name}.rope.freq_base", 10_000.0))
    kind = file.get(f"{name}.rope.scaling.type", str, "linear")
    if kind not in ("none", "linear"):
        file.fail(f"{name}.rope.scaling.type", kind, "supported: none, linear")
    factor = _number(file, f"{name}.rope.scale_linear", 1.0)  # of files from before 2024
    factor = _number(file, f"{name}.rope.scaling.factor", factor) or 1.0
    linear = kind == "linear" and factor != 1.0
    scaled = dataclasses.replace(plain, kind="linear", factor=factor) if linear else plain
    if _ROPE_FACTORS not in file.tensors:
        return scaled
    factors = file_lib.rows(file.tensors[_ROPE_FACTORS])[0]
    if np.all(factors == 1):
        return scaled
    if linear:
        raise ValueError(f"{file.path}: both {_ROPE_FACTORS} and a linear scaling of RoPE")
    return _llama3(file, plain, size, factors)


def _llama3(file: GgufFile, plain: Rope, size: int, factors: np.ndarray) -> Rope:
    """The parameters of Llama 3's scaling, from what it divides each frequency by.

    Equal frequencies are an equal model, so parameters that reproduce the tensor are right whatever
    the original ones were.
    """
    frequencies = plain.turn(size).frequencies
    for original in _ORIGINALS:
        rope = dataclasses.replace(
            _LLAMA3,
            theta=plain.theta,
            factor=float(factors.max()),
            original_max_position_embeddings=original,
        )
        again = frequencies / rope.turn(size).frequencies
        if again.shape == factors.shape and np.allclose(again, factors, rtol=1e-4):
            return rope
    raise ValueError(
        f"{file.path}: {_ROPE_FACTORS} ({len(factors)} values, {factors.min():g} to "
        f"{factors.max():g}) is no scaling of Llama 3's kind; others are not supported"
    )


def _number(file: GgufFile, name: str, *default: float) -> float:
    """A number that was written as f32, in as few digits as it needs."""
    return float(str(np.float32(file.get(name, float, *default))))


ARCHITECTURES = {"llama": Architecture(_llama, _LLAMA_TENSORS, _LLAMA_TURNED)}
