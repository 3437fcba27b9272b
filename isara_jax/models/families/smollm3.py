"""SmolLM3 (HF `SmolLM3ForCausalLM`): every fourth layer is without RoPE."""

from typing import Any

from isara_jax.models import rope as rope_lib
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind, alternating


def _read(fields: Fields) -> DecoderConfig:
    sizes = family.sizes(fields)
    sizes |= family.heads(fields, sizes, kv_heads=4)
    rope, n_layers = rope_lib.from_hf(fields, sizes["head_size"], 2_000_000.0), sizes["n_layers"]
    turned = _turned(fields, n_layers)
    window = fields.optional("sliding_window", fields.count, 0)
    window = window if fields.flag("use_sliding_window", False) else 0
    windows = family.windows(fields, n_layers, window, lambda i: not turned[i])
    bias = fields.flag("attention_bias", False)
    return DecoderConfig(
        family="smollm3",
        **sizes,
        kinds=alternating(
            [LayerKind(rope if t else None, w) for t, w in zip(turned, windows, strict=True)]
        ),
        norm=family.norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _turned(fields: Fields, n_layers: int) -> list[bool]:
    """Whether each layer has RoPE: in `no_rope_layers` 1 means that it has (sic)."""
    interval = fields.count("no_rope_layer_interval", 4)
    given = fields.take("no_rope_layers", None)
    if given is None:
        return [(i + 1) % interval != 0 for i in range(n_layers)]
    if not isinstance(given, list) or len(given) < n_layers or not all(x in (0, 1) for x in given):
        fields.fail("no_rope_layers", given, f"a list of {n_layers} times 0 or 1 is expected")
    if not any(given[:n_layers]):
        fields.fail("no_rope_layers", given, "some layer with RoPE (1) is expected")
    return [bool(x) for x in given[:n_layers]]


def _write(network: DecoderConfig) -> dict[str, Any]:
    turned = [int(network.kind(i).rope is not None) for i in range(network.n_layers)]
    return (
        family.write_gated(network)
        | family.write_rope(network.kinds)
        | family.layer_types(network)
        | {
            "use_sliding_window": any(network.windows),
            "no_rope_layers": turned,
            "attention_bias": network.qkv_bias,
            "mlp_bias": network.mlp_bias,
            "pad_token_id": 2,
        }
    )


FAMILY = family.Family("SmolLM3", "SmolLM3ForCausalLM", _read, _write, family.table())
