"""Qwen 2, 2.5 and 3 (HF `Qwen2ForCausalLM`, `Qwen3ForCausalLM`).

Queries, keys and values of the second have biases, which no field says; heads of the third are
normed.
"""

import functools
from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind, alternating


def _read(fields: Fields, family_name: str, head_size: int, **choices: Any) -> DecoderConfig:
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes, kv_heads=min(32, sizes["n_heads"]), head_size=head_size)
    window = fields.optional("sliding_window", fields.count, 4096)
    first = fields.take("max_window_layers", 28)
    if not isinstance(first, int):
        fields.fail("max_window_layers", first, "a whole number is expected")
    window = window if fields.flag("use_sliding_window", False) else 0
    rope = rope_lib.from_hf(fields, sizes["head_size"])
    windows = family.windows(fields, sizes["n_layers"], window, lambda i: i >= first)
    return DecoderConfig(
        family=family_name,
        **sizes,
        kinds=alternating([LayerKind(rope, w) for w in windows]),
        norm=family.norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        **choices,
    )


def _read_3(fields: Fields) -> DecoderConfig:
    bias = fields.flag("attention_bias", False)
    return _read(fields, "qwen3", 128, qkv_bias=bias, o_bias=bias, qk_norm="head")


def _write(network: DecoderConfig) -> dict[str, Any]:
    return (
        family.write_gated(network)
        | family.write_rope(network.kinds)
        | family.layer_types(network)
        | {"use_sliding_window": any(network.windows)}
        | ({"attention_bias": network.qkv_bias} if network.family == "qwen3" else {})
    )


QWEN2 = family.Family(
    "Qwen2", "Qwen2ForCausalLM",
    functools.partial(_read, family_name="qwen2", head_size=0, qkv_bias=True), _write,
    family.table(),
)  # fmt: skip
QWEN3 = family.Family("Qwen3", "Qwen3ForCausalLM", _read_3, _write, family.table())
