"""What llama.cpp calls an architecture, as tables: another one is another entry of `ARCHITECTURES`.

Names of tensors and fields are those of the package gguf. What llama.cpp takes for granted, and no
field says, is written here: https://github.com/ggml-org/llama.cpp/tree/master/src/models; what
its converter changes: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from isara_jax.formats.from_gguf import rope
from isara_jax.formats.from_gguf.metadata import Metadata

_Config = dict[str, Any]


class Architecture(NamedTuple):
    """One of llama.cpp's architectures.

    Attributes:
      fields: of `config.json`, beside the sizes, from the metadata and the sizes.
      tensors: Hugging Face's name of each tensor by GGUF's, `{i}` for the number of a block.
      turned: of those whose rows llama.cpp reorders for RoPE, the field of `config.json` that
        counts their heads.
      one_added: weights of norms are stored with 1 added.
      rope_tensors: tensors that say how RoPE is scaled.
    """

    fields: Callable[[Metadata, _Config], _Config]
    tensors: dict[str, str]
    turned: dict[str, str] = {}  # noqa: RUF012 (nothing changes it)
    one_added: bool = False
    rope_tensors: tuple[str, ...] = ()


# --- tensors -------------------------------------------------------------------------------------

_BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BOTH = _BEHIND | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SPLIT = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


def _tensors(*blocks: dict[str, str]) -> dict[str, str]:
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    } | {
        f"blk.{{i}}.{theirs}.{part}": f"model.layers.{{i}}.{ours}.{part}"
        for block in blocks
        for theirs, ours in block.items()
        for part in ("weight", "bias")
    }


_TURNED = {
    f"blk.{{i}}.{name}.{part}": heads
    for name, heads in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads"))
    for part in ("weight", "bias")
}

# --- fields --------------------------------------------------------------------------------------


def _plain(model_type: str, activation: str = "silu") -> Callable[[Metadata, _Config], _Config]:
    """Of an architecture that has no fields of its own."""

    def fields(meta: Metadata, sizes: _Config) -> _Config:
        found = rope.flat(rope.parameters(meta, sizes["head_dim"]))
        return found | {"model_type": model_type, "hidden_act": activation}

    return fields


def _biases(meta: Metadata, *names: str) -> _Config:
    """Fields of `config.json` by which layers have biases, from the tensors."""
    tensors = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {name: tensors[name] in meta.file.tensors for name in names}


def _llama(meta: Metadata, sizes: _Config) -> _Config:
    return _plain("llama")(meta, sizes) | _biases(meta, "attention_bias", "mlp_bias")


def _qwen3(meta: Metadata, sizes: _Config) -> _Config:
    return _plain("qwen3")(meta, sizes) | _biases(meta, "attention_bias")


def _smollm3(meta: Metadata, sizes: _Config) -> _Config:
    """Every fourth layer is without RoPE, which no field says."""
    more = {"no_rope_layer_interval": 4, "use_sliding_window": False, "pad_token_id": None}
    return _llama(meta, sizes) | {"model_type": "smollm3"} | more


def _granite(meta: Metadata, sizes: _Config) -> _Config:
    """Multipliers; 0 stands for none."""
    # Elsewhere a fact of training; here it turns RoPE off.
    meta.only("rope.scaling.finetuned", True, "only true, a model with RoPE, is supported")
    # Of the layers that experts share; where there are no experts, it says nothing.
    hidden = sizes["intermediate_size"]
    meta.only("expert_shared_feed_forward_length", hidden, f"only {hidden} is supported")
    multipliers = {
        "attention_multiplier": meta.number("attention.scale", 0) or sizes["head_dim"] ** -0.5,
        "embedding_multiplier": meta.number("embedding_scale", 0) or 1.0,
        "residual_multiplier": meta.number("residual_scale", 0) or 1.0,
        "logits_scaling": meta.number("logit_scale"),
    }
    return _llama(meta, sizes) | {"model_type": "granite"} | multipliers


def _phi3(meta: Metadata, sizes: _Config) -> _Config:
    """A part of each head may be turned. llama.cpp keeps the size of windows, and has none."""
    turn = rope.parameters(meta, sizes["head_dim"], partial=True)
    return rope.flat(turn) | {
        "model_type": "phi3",
        "hidden_act": "silu",
        "original_max_position_embeddings": rope.original(meta),
        "sliding_window": meta.get("attention.sliding_window", int, 0) or None,
        "pad_token_id": None,
    }


def _olmo2(meta: Metadata, sizes: _Config) -> _Config:
    """OLMo 2, and OLMo 3, which has windows, and scales RoPE on the other layers alone."""
    window = meta.get("attention.sliding_window", int, 0)
    bias = _biases(meta, "attention_bias")
    if not window:
        return _plain("olmo2")(meta, sizes) | bias
    full = rope.parameters(meta, sizes["head_dim"])
    windowed = {"rope_theta": full["rope_theta"], "rope_type": "default"}
    return _windows(meta, sizes, window, 4) | bias | {
        "model_type": "olmo3",
        "hidden_act": "silu",
        "rope_parameters": {"full_attention": full, "sliding_attention": windowed},
    }  # fmt: skip


def _windows(meta: Metadata, sizes: _Config, window: int, every: int) -> _Config:
    """Which layers have windows: as the file says, or all but the last of `every`."""
    n_layers = sizes["num_hidden_layers"]
    given = meta.array("attention.sliding_window_pattern", bool, n_layers)
    windowed = given or [(i + 1) % every != 0 for i in range(n_layers)]
    kinds = ["sliding_attention" if here else "full_attention" for here in windowed]
    return {"sliding_window": window, "layer_types": kinds}


# --- Gemma ---------------------------------------------------------------------------------------

_TANH = "gelu_pytorch_tanh"


def _gemma2(meta: Metadata, sizes: _Config) -> _Config:
    window = meta.get("attention.sliding_window", int, 4096)
    turn = rope.parameters(meta, sizes["head_dim"])
    return rope.flat(turn) | _later(meta, sizes, 46) | {
        "model_type": "gemma2",
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0) or None,
    } | _windows(meta, sizes, window, 2)  # fmt: skip


def _gemma3(meta: Metadata, sizes: _Config) -> _Config:
    """RoPE of the windowed layers has a base that no field of older files says, and no scaling."""
    local = meta.number("rope.freq_base_swa", 10_000.0)
    turns = {
        "full_attention": rope.parameters(meta, sizes["head_dim"]),
        "sliding_attention": {"rope_theta": local, "rope_type": "default"},
    }
    return _later(meta, sizes, 62) | {
        "model_type": "gemma3_text",
        "rope_parameters": turns,
        "final_logit_softcapping": meta.number("final_logit_softcapping", 0) or None,
    } | _windows(meta, sizes, meta.get("attention.sliding_window", int), 6)  # fmt: skip


def _later(meta: Metadata, sizes: _Config, largest: int) -> _Config:
    """What the second and the third have; the model of 27B, of `largest` layers, scales its own."""
    scalar = sizes["head_dim"]
    if sizes["num_hidden_layers"] == largest:
        scalar = sizes["hidden_size"] // sizes["num_attention_heads"]
    return {"hidden_activation": _TANH, "query_pre_attn_scalar": scalar} | _biases(
        meta, "attention_bias"
    )


_LLAMA3 = (rope.FACTORS,)
ARCHITECTURES = {
    "llama": Architecture(_llama, _tensors(_BEFORE, _SPLIT), _TURNED, rope_tensors=_LLAMA3),
    "qwen2": Architecture(_plain("qwen2"), _tensors(_BEFORE, _SPLIT), rope_tensors=_LLAMA3),
    "qwen3": Architecture(_qwen3, _tensors(_BEFORE, _SPLIT, _HEADS), rope_tensors=_LLAMA3),
    "gemma": Architecture(_plain("gemma", _TANH), _tensors(_BEFORE, _SPLIT), one_added=True),
    "gemma2": Architecture(_gemma2, _tensors(_BOTH, _SPLIT), one_added=True),
    "gemma3": Architecture(_gemma3, _tensors(_BOTH, _SPLIT, _HEADS), one_added=True),
    "olmo2": Architecture(_olmo2, _tensors(_BEHIND, _SPLIT, _HEADS)),
    "smollm3": Architecture(_smollm3, _tensors(_BEFORE, _SPLIT), _TURNED, rope_tensors=_LLAMA3),
    "granite": Architecture(_granite, _tensors(_BEFORE, _SPLIT), _TURNED),
    "phi3": Architecture(_phi3, _tensors(_BEFORE, _FUSED), rope_tensors=tuple(rope.LONGROPE)),
}
