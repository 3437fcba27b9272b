"""LLaMA 1 to 3.2 (HF `LlamaForCausalLM`), and what shares its architecture by config."""

from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind


def network(**sizes: Any) -> DecoderConfig:
    """A LLaMA of these sizes, and what else is changed."""
    return DecoderConfig(**{"family": "llama", "kinds": (LayerKind(rope_lib.Rope()),)} | sizes)


def read(fields: Fields) -> DecoderConfig:
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes)
    bias = fields.flag("attention_bias", False)
    return network(
        **sizes,
        kinds=(LayerKind(rope_lib.from_hf(fields, sizes["head_size"])),),
        norm=family.norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def write(network: DecoderConfig) -> dict[str, Any]:
    return (
        family.write_gated(network)
        | family.write_rope(network.kinds)
        | {"attention_bias": network.qkv_bias, "mlp_bias": network.mlp_bias}
    )


FAMILY = family.Family("LLaMA", "LlamaForCausalLM", read, write, family.table())
