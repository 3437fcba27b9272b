"""Gemma 1, 2 and 3 (HF `GemmaForCausalLM`, `Gemma2ForCausalLM`, `Gemma3ForCausalLM`).

Norms are (1 + w) x, embeddings are scaled by the root of the width. The second has norms behind
attention and MLP too, soft caps, and windows on every other layer; the third norms on queries and
keys instead of caps, and windows with another RoPE on five layers of six.
"""

import dataclasses
from typing import Any

from isara_jax.devices import processes
from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind, alternating

_TANH = "gelu_pytorch_tanh"
_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}


def _common(fields: Fields, kv_heads: int, activation: str) -> dict[str, Any]:
    """What all three have."""
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes, kv_heads=kv_heads, head_size=256)
    bias = fields.flag("attention_bias", False)
    if fields.flag("use_bidirectional_attention", False):
        fields.fail("use_bidirectional_attention", True, "a causal language model is expected")
    return sizes | {
        "norm": family.norm(fields, "one_plus"),
        "activation": fields.activation(activation, _TANH),
        "embedding_scale": sizes["width"] ** 0.5,
        "tied": fields.flag("tie_word_embeddings", True),
        "qkv_bias": bias,
        "o_bias": bias,
    }


def _read_1(fields: Fields) -> DecoderConfig:
    common = _common(fields, 16, "hidden_act")
    if common["activation"] == "gelu":  # of the first files, which meant tanh's
        common["activation"] = _TANH
    rope = rope_lib.from_hf(fields, common["head_size"])
    return DecoderConfig(family="gemma", **common, kinds=(LayerKind(rope),))


def _with_windows(fields: Fields, default: Any) -> tuple[dict[str, Any], list[int]]:
    """What the second and the third have, and the windows of the layers."""
    common = _common(fields, 4, "hidden_activation")
    window = fields.optional("sliding_window", fields.count, 4096)
    common |= {
        "norm_place": "both",
        "attention_scale": fields.count("query_pre_attn_scalar", 256) ** -0.5,
    }
    return common, family.windows(fields, common["n_layers"], window, default)


def _read_2(fields: Fields) -> DecoderConfig:
    common, windows = _with_windows(fields, lambda i: i % 2 == 0)
    rope = rope_lib.from_hf(fields, common["head_size"])
    return DecoderConfig(
        family="gemma2",
        **common,
        kinds=alternating([LayerKind(rope, window) for window in windows]),
        score_cap=fields.optional("attn_logit_softcapping", fields.number, 50.0),
        logit_cap=fields.optional("final_logit_softcapping", fields.number, 30.0),
    )


def _read_3(fields: Fields) -> DecoderConfig:
    if cap := fields.take("attn_logit_softcapping", None):
        fields.fail("attn_logit_softcapping", cap, "transformers' Gemma 3 computes none")
    pattern = fields.count("sliding_window_pattern", 6)
    fields.take("_sliding_window_pattern", None)  # the same again, as transformers 5 writes it
    common, windows = _with_windows(fields, lambda i: (i + 1) % pattern != 0)
    ropes = rope_lib.by_kind(fields, common["head_size"], "rope_local_base_freq", _THETA)
    return DecoderConfig(
        family="gemma3_text",
        **common,
        qk_norm="head",
        kinds=alternating(
            [LayerKind(ropes["sliding_attention" if w else "full_attention"], w) for w in windows]
        ),
        logit_cap=fields.optional("final_logit_softcapping", fields.number, 0),
    )


def _write_1(network: DecoderConfig) -> dict[str, Any]:
    bias = {"attention_bias": network.qkv_bias}
    return family.write_gated(network) | family.write_rope(network.kinds) | bias


def _write_later(network: DecoderConfig) -> dict[str, Any]:
    return (
        family.write_gated(network, "hidden_activation")
        | family.layer_types(network)
        | {
            "attention_bias": network.qkv_bias,
            "query_pre_attn_scalar": round(network.attention_scale**-2),
            "attn_logit_softcapping": network.score_cap or None,
            "final_logit_softcapping": network.logit_cap or None,
        }
    )


def _write_2(network: DecoderConfig) -> dict[str, Any]:
    return _write_later(network) | family.write_rope(network.kinds)


def _write_3(network: DecoderConfig) -> dict[str, Any]:
    return _write_later(network) | {"rope_parameters": family.write_ropes(network)}


# Of the whole of the third, which sees pictures too: its fields about them, and what its published
# files leave out of the language model's, which transformers then has from its class.
_OF_PICTURES = (
    "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
    "image_token_index", "boi_token_id", "eoi_token_id", "image_token_id",
)  # fmt: skip
_LEFT_OUT = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "max_position_embeddings": 131_072,
}  # fmt: skip


def _language_model(whole: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model in that of the whole."""
    same = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype",
            "dtype", "transformers_version")  # fmt: skip
    return _LEFT_OUT | whole["text_config"] | {k: whole[k] for k in same if k in whole}


def _read_whole(fields: Fields) -> DecoderConfig:
    text, tied = fields.take("text_config"), fields.flag("tie_word_embeddings", True)
    if not isinstance(text, dict):
        fields.fail("text_config", text, "an object is expected")
    for name in _OF_PICTURES:
        fields.take(name, None)
    whole = ["Gemma3ForConditionalGeneration"]
    if (named := fields.take("architectures", whole)) != whole:
        fields.fail("architectures", named, f"{whole} is expected")
    source = f"{fields.source} (text_config)"
    inner = Fields(_language_model({"text_config": text, "tie_word_embeddings": tied}), source,
                   "Gemma 3")  # fmt: skip
    network = _read_3(inner)
    inner.finish()
    processes.say_once(f"{fields.source}: the language model is read, the vision tower passed over")
    return dataclasses.replace(network, family="gemma3")


GEMMA = family.Family("Gemma", "GemmaForCausalLM", _read_1, _write_1, family.table())
GEMMA2 = family.Family("Gemma 2", "Gemma2ForCausalLM", _read_2, _write_2, family.table("both"))
GEMMA3 = family.Family("Gemma 3", "Gemma3ForCausalLM", _read_3, _write_3, family.table("both"))
_STACK = "model.language_model"
GEMMA3_WHOLE = family.Family(
    "Gemma 3", "Gemma3ForConditionalGeneration", _read_whole, _write_3,
    family.table("both", stack=_STACK),
    passed_over=("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                 "model.multi_modal_projector."),
    alone=("gemma3_text", _language_model),
)  # fmt: skip
