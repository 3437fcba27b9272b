"""Mistral 7B and what shares its architecture (HF `MistralForCausalLM`): windows on all layers."""

from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind


def _read(fields: Fields) -> DecoderConfig:
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes, kv_heads=8)
    window = fields.optional("sliding_window", fields.count, 4096)
    return DecoderConfig(
        family="mistral",
        **sizes,
        kinds=(LayerKind(rope_lib.from_hf(fields, sizes["head_size"]), window),),
        norm=family.norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _write(network: DecoderConfig) -> dict[str, Any]:
    window = {"sliding_window": network.kinds[0].window or None}
    return family.write_gated(network) | family.write_rope(network.kinds) | window


FAMILY = family.Family("Mistral", "MistralForCausalLM", _read, _write, family.table())
