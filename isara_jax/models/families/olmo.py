"""OLMo 2 and 3 (HF `Olmo2ForCausalLM`, `Olmo3ForCausalLM`): norms behind, flat norms of q and k.

The third has windows on three layers of four, and scales RoPE on the others alone.
"""

from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind, alternating

_THETA = {"full_attention": 500_000.0, "sliding_attention": 500_000.0}


def _common(fields: Fields) -> dict[str, Any]:
    """What both have."""
    sizes = family.sizes(fields)
    bias = fields.flag("attention_bias", False)
    return sizes | family.heads(fields, sizes) | {
        "norm": family.norm(fields, "wide", 1e-5),
        "norm_place": "behind",
        "qk_norm": "flat",
        "activation": fields.activation("hidden_act", "silu"),
        "tied": fields.flag("tie_word_embeddings", False),
        "qkv_bias": bias,
        "o_bias": bias,
    }  # fmt: skip


def _read_2(fields: Fields) -> DecoderConfig:
    common = _common(fields)
    rope = rope_lib.from_hf(fields, common["head_size"])
    return DecoderConfig(family="olmo2", **common, kinds=(LayerKind(rope),))


def _read_3(fields: Fields) -> DecoderConfig:
    common = _common(fields)
    window = fields.optional("sliding_window", fields.count, 4096)
    windows = family.windows(fields, common["n_layers"], window, lambda i: (i + 1) % 4 != 0)
    ropes = rope_lib.by_kind(fields, common["head_size"], "", _THETA)
    if len({rope.theta for rope in ropes.values()}) > 1:  # transformers 4 and 5 differ
        fields.fail("rope_theta", ropes["full_attention"].theta, "say it in rope_parameters")
    kinds = [LayerKind(ropes["sliding_attention" if w else "full_attention"], w) for w in windows]
    return DecoderConfig(family="olmo3", **common, kinds=alternating(kinds))


def _write_2(network: DecoderConfig) -> dict[str, Any]:
    bias = {"attention_bias": network.qkv_bias}
    return family.write_gated(network) | family.write_rope(network.kinds) | bias


def _write_3(network: DecoderConfig) -> dict[str, Any]:
    return (
        family.write_gated(network)
        | family.layer_types(network)
        | {
            "attention_bias": network.qkv_bias,
            "rope_parameters": family.write_ropes(network),
        }
    )


OLMO2 = family.Family("OLMo 2", "Olmo2ForCausalLM", _read_2, _write_2, family.table("behind"))
OLMO3 = family.Family("OLMo 3", "Olmo3ForCausalLM", _read_3, _write_3, family.table("behind"))
