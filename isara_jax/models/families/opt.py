"""OPT 125m to 66b (HF `OPTForCausalLM`): learned positions, layer norm, plain MLP, biases.

350m differs from its siblings: the norms stand after attention and MLP, there is no final norm, and
token embeddings are narrower than the residual stream.
"""

from typing import Any

from jax.sharding import PartitionSpec as P

from isara_jax.models import weight_table
from isara_jax.models.families import family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, Norm

# Of training; the last stands in the files of 13b, and HF does not read it.
_WITHOUT_EFFECT = ("dropout", "layerdrop", "init_std", "activation_dropout", "output_projection")
_EPS = 1e-5  # torch's default


def network(**sizes: Any) -> DecoderConfig:
    """An OPT of these sizes, and what else is changed."""
    usual = {
        "family": "opt", "activation": "relu", "gated": False, "norm": Norm("layer", _EPS),
        "tied": True, "learned_positions": True, "qkv_bias": True, "o_bias": True,
        "mlp_bias": True,
    }  # fmt: skip
    return DecoderConfig(**usual | sizes)


def _read(fields: Fields) -> DecoderConfig:
    sizes = family.sizes(fields, hidden="ffn_dim")
    n_heads, width = sizes["n_heads"], sizes["width"]
    if width % n_heads:
        fields.fail("num_attention_heads", n_heads, f"a divisor of hidden_size {width} is expected")
    before = fields.flag("do_layer_norm_before", True)
    bias = fields.flag("enable_bias", True)
    affine = fields.flag("layer_norm_elementwise_affine", True)
    embedding_width = fields.count("word_embed_proj_dim", width)
    for name in _WITHOUT_EFFECT:
        fields.take(name, None)
    return network(
        **sizes,
        n_kv_heads=n_heads,
        head_size=width // n_heads,
        activation=fields.activation("activation_function", "relu"),
        norm=Norm("layer", _EPS, "rounded" if affine else "none"),
        norm_place="before" if before else "after",
        final_norm=not fields.flag("_remove_final_layer_norm", False) and before,
        tied=fields.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        narrow_width=0 if embedding_width == width else embedding_width,
    )


def _write(network: DecoderConfig) -> dict[str, Any]:
    before = network.norm_place == "before"
    return {
        "ffn_dim": network.hidden,
        "do_layer_norm_before": before,
        "enable_bias": network.qkv_bias,
        "layer_norm_elementwise_affine": network.norm.weight != "none",
        "word_embed_proj_dim": network.embedding_width,
        "_remove_final_layer_norm": before and not network.final_norm,
        "activation_function": network.activation,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }


_STACK = "model.decoder"
_LAYER = f"{_STACK}.layers.{{i}}"
TABLE = (
    *weight_table.heads(f"{_STACK}.embed_tokens"),
    weight_table.Row(
        f"{_STACK}.embed_positions.weight", "positions/embedding", False, P(None, "fsdp")
    ),
    *weight_table.linear(f"{_STACK}.project_in", "project_in"),
    *weight_table.linear(f"{_STACK}.project_out", "project_out", weight_table.OUT),
    *weight_table.norm(f"{_STACK}.final_layer_norm", "norm"),
    *weight_table.norm(f"{_LAYER}.self_attn_layer_norm", "layers_{i}/attention_norm"),
    *weight_table.norm(f"{_LAYER}.final_layer_norm", "layers_{i}/mlp_norm"),
    *weight_table.attention_rows(f"{_LAYER}.self_attn", "out_proj"),
    *weight_table.linear(f"{_LAYER}.fc1", "layers_{i}/mlp/up"),
    *weight_table.linear(f"{_LAYER}.fc2", "layers_{i}/mlp/down", weight_table.OUT),
)
FAMILY = family.Family("OPT", "OPTForCausalLM", _read, _write, TABLE)
