"""What a family is, and what most of them share: sizes, windows, names of tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from isara_jax.models import rope as rope_lib
from isara_jax.models import weight_table
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, LayerKind, Norm
from isara_jax.models.weight_table import Row

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_length",
}
_FULL, _WINDOWED = "full_attention", "sliding_attention"


class Family(NamedTuple):
    """Everything that tells one family from another.

    Attributes:
      called: how messages call it.
      architecture: HF's class of its language models.
      read: makes a network of an HF config; leaves what it does not know.
      write: the fields of an HF config, beside those of `to_hf`, that `read` reads back.
      table: HF names, our paths, layout and placement of its tensors.
      passed_over: how names begin of tensors that are not the language model's.
      alone: makes of an HF config that of the language model alone, where it is part of a larger
        model, and the `model_type` it then has.
    """

    called: str
    architecture: str
    read: Callable[[Fields], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
    table: tuple[Row, ...]
    passed_over: tuple[str, ...] = ()
    alone: tuple[str, Callable[[dict[str, Any]], dict[str, Any]]] | None = None


def sizes(fields: Fields, hidden: str = "intermediate_size") -> dict[str, Any]:
    """The sizes that every config must have; `hidden` is what it calls that of the MLPs."""
    found = {ours: fields.count(theirs) for theirs, ours in _SIZES.items()}
    return found | {"hidden": fields.count(hidden)}


def heads(
    fields: Fields, sizes: dict[str, Any], *, kv_heads: int = 0, head_size: int = 0
) -> dict[str, int]:
    """Key and value heads, and the size of a head.

    Args:
      fields: of the config.
      sizes: as `sizes` found them.
      kv_heads: the family's number where the config has none; 0 for as many as there are heads.
      head_size: the family's size where the config has none; 0 for width / heads.

    Raises:
      ValueError: they do not divide as they must.
    """
    n_heads, width = sizes["n_heads"], sizes["width"]
    n_kv_heads = fields.count("num_key_value_heads", kv_heads or n_heads)
    size = fields.optional("head_dim", fields.count, head_size)
    if not size and width % n_heads:
        fields.fail("num_attention_heads", n_heads, f"a divisor of hidden_size {width} is expected")
    if n_heads % n_kv_heads:
        fields.fail(
            "num_key_value_heads", n_kv_heads, f"a divisor of the {n_heads} heads is expected"
        )
    return {"n_kv_heads": n_kv_heads, "head_size": size or width // n_heads}


def norm(fields: Fields, weight: str = "rounded", eps: float = 1e-6) -> Norm:
    """The root-mean-square norm of a config; `eps` where it has none."""
    return Norm("rms", fields.number("rms_norm_eps", eps), weight)


def windows(
    fields: Fields, n_layers: int, window: int, default: Callable[[int], bool]
) -> list[int]:
    """The window of each layer, 0 where it sees everything, by `layer_types` or a rule.

    Args:
      fields: of the config.
      n_layers: blocks.
      window: of the layers that have one; 0 where the config has none.
      default: whether a layer has one, by its index, where the config has no `layer_types`.

    Raises:
      ValueError: `layer_types` is no list of so many known types, or names windows without a size.
    """
    names = fields.take("layer_types", None)
    if names is None:
        names = [_WINDOWED if default(i) else _FULL for i in range(n_layers)]
        return [window if name == _WINDOWED else 0 for name in names]
    if not isinstance(names, list) or len(names) < n_layers or set(map(str, names)) - {
        _FULL, _WINDOWED,
    }:  # fmt: skip
        fields.fail(
            "layer_types", names, f"a list of {n_layers} {_FULL} or {_WINDOWED} is expected"
        )
    if _WINDOWED in names[:n_layers] and not window:
        fields.fail("layer_types", names, "layers have windows, and no size of one is given")
    return [window if name == _WINDOWED else 0 for name in names[:n_layers]]


def layer_types(network: DecoderConfig) -> dict[str, Any]:
    """The fields of an HF config that `windows` reads back."""
    found = network.windows
    return {
        "layer_types": [_WINDOWED if window else _FULL for window in found],
        "sliding_window": max(found) or None,
    }


def to_hf(family: Family, network: DecoderConfig, name: str) -> dict[str, Any]:
    """The HF `config.json` of a language model."""
    same = {theirs: getattr(network, ours) for theirs, ours in _SIZES.items()}
    return same | {
        "architectures": [family.architecture],
        "model_type": name,
        "tie_word_embeddings": network.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | family.write(network)  # fmt: skip


def write_gated(network: DecoderConfig, activation: str = "hidden_act") -> dict[str, Any]:
    """The fields that all families with gated MLPs and RMS norms have."""
    return {
        "intermediate_size": network.hidden,
        "num_key_value_heads": network.n_kv_heads,
        "head_dim": network.head_size,
        "rms_norm_eps": network.norm.eps,
        activation: network.activation,
    }


def write_rope(kinds: Sequence[LayerKind]) -> dict[str, Any]:
    """The fields about RoPE, one for all layers that are turned at all."""
    return rope_lib.to_hf(next(kind.rope for kind in kinds if kind.rope is not None))


def write_ropes(network: DecoderConfig) -> dict[str, Any]:
    """`rope_parameters` of a family whose windowed layers have another RoPE."""
    names = {kind: _WINDOWED if kind.window else _FULL for kind in network.kinds}
    return {name: rope_lib.parameters(kind.rope) for kind, name in names.items() if kind.rope}


_NORMS = {
    "before": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    "behind": {
        "post_attention_layernorm": "attention_out_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
}
_NORMS["both"] = _NORMS["behind"] | {
    "input_layernorm": "attention_norm", "pre_feedforward_layernorm": "mlp_norm",
}  # fmt: skip


def table(
    norm_place: str = "before", *, fused: bool = False, stack: str = "model"
) -> tuple[Row, ...]:
    """The tensors by the names that LLaMA gave them; rows without a tensor do no harm."""
    layer = f"{stack}.layers.{{i}}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    inner = (
        (
            *weight_table.linear(f"{attention}.qkv_proj", "layers_{i}/attention/qkv"),
            *weight_table.linear(f"{attention}.o_proj", "layers_{i}/attention/o", weight_table.OUT),
            *weight_table.linear(f"{mlp}.gate_up_proj", "layers_{i}/mlp/gate_up"),
        )
        if fused
        else (
            *weight_table.attention_rows(attention, "o_proj"),
            *weight_table.linear(f"{mlp}.gate_proj", "layers_{i}/mlp/gate"),
            *weight_table.linear(f"{mlp}.up_proj", "layers_{i}/mlp/up"),
        )
    )
    norms = [
        row
        for theirs, ours in _NORMS[norm_place].items()
        for row in weight_table.norm(f"{layer}.{theirs}", f"layers_{{i}}/{ours}")
    ]
    return (
        *weight_table.heads(f"{stack}.embed_tokens"),
        *weight_table.norm(f"{stack}.norm", "norm"),
        *norms,
        *weight_table.norm(f"{attention}.q_norm", "layers_{i}/attention/q_norm"),
        *weight_table.norm(f"{attention}.k_norm", "layers_{i}/attention/k_norm"),
        *inner,
        *weight_table.linear(f"{mlp}.down_proj", "layers_{i}/mlp/down", weight_table.OUT),
    )
