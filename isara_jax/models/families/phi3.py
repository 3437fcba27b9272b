"""Phi-3, 3.5 and 4-mini (HF `Phi3ForCausalLM`): fused layers, a part of each head turned.

Where waves are stretched by longrope, texts end at the original length: beyond it transformers
takes other factors for a whole batch as soon as one row of it is longer.
"""

from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind


def _read(fields: Fields) -> DecoderConfig:
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes)
    rope = rope_lib.from_hf(fields, sizes["head_size"], phi3=True)
    if rope.kind == "longrope":
        original = int(rope.original_max_position_embeddings)
        sizes["max_length"] = min(sizes["max_length"], original)
    return DecoderConfig(
        family="phi3",
        **sizes,
        fused=True,
        kinds=(LayerKind(rope, fields.optional("sliding_window", fields.count, 0)),),
        norm=family.norm(fields, eps=1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _write(network: DecoderConfig) -> dict[str, Any]:
    kind = network.kinds[0]
    original = int(kind.rope.original_max_position_embeddings)
    return (
        family.write_gated(network)
        | family.write_rope(network.kinds)
        | {"sliding_window": kind.window or None, "pad_token_id": 2}
        | ({"original_max_position_embeddings": original} if kind.rope.kind == "longrope" else {})
    )


FAMILY = family.Family("Phi-3", "Phi3ForCausalLM", _read, _write, family.table(fused=True))
