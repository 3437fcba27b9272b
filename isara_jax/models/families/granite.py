"""Granite (HF `GraniteForCausalLM`): LLaMA with four multipliers."""

from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind

_MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention_scale",
    "logits_scaling": "logit_divisor",
}


def _read(fields: Fields) -> DecoderConfig:
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes)
    bias = fields.flag("attention_bias", False)
    return DecoderConfig(
        family="granite",
        **sizes,
        **{ours: fields.number(theirs, 1.0) for theirs, ours in _MULTIPLIERS.items()},
        kinds=(LayerKind(rope_lib.from_hf(fields, sizes["head_size"])),),
        norm=family.norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _write(network: DecoderConfig) -> dict[str, Any]:
    return (
        family.write_gated(network)
        | family.write_rope(network.kinds)
        | {theirs: getattr(network, ours) for theirs, ours in _MULTIPLIERS.items()}
        | {"attention_bias": network.qkv_bias, "mlp_bias": network.mlp_bias}
    )


FAMILY = family.Family("Granite", "GraniteForCausalLM", _read, _write, family.table())
