"""OPT in Flax (HF `OPTForCausalLM`): learned positions, layer norm, plain MLP, biases.

350m differs from its siblings: the norms stand after attention and MLP, there is no final norm, and
token embeddings are narrower than the residual stream.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

from isara_jax.models import decoder, layers, weight_table
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, size_names

# HF's table of positions begins with two rows that right-padded text never reads.
POSITION_OFFSET = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptConfig(DecoderConfig):
    """OPT 125m to 66b, and what shares its architecture by config.

    Attributes:
      narrow_width: E where token embeddings are projected to D and back; 0 where E is D.
      final_norm: there is one after the last block.
      affine_norm: norms have scale and bias.
    """

    activation: str = "relu"
    tied: bool = True
    narrow_width: int = 0
    final_norm: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    affine_norm: bool = True

    def norm(self, name: str | None = None) -> layers.LayerNorm:
        return layers.LayerNorm(self.affine_norm, name=name)

    def mlp(self, name: str) -> layers.MLP:
        return layers.MLP(self.hidden, self.activation, self.mlp_bias, name=name)

    @property
    def embedding_width(self) -> int:
        return self.narrow_width or self.width


_SIZES = size_names("ffn_dim")
_FLAGS = {
    "tie_word_embeddings": "tied",
    "do_layer_norm_before": "pre_norm",
    "enable_bias": "attention_bias",
    "layer_norm_elementwise_affine": "affine_norm",
}
# Of training; the last stands in the files of 13b, and HF does not read it.
_WITHOUT_EFFECT = ("dropout", "layerdrop", "init_std", "activation_dropout", "output_projection")


def from_hf(values: dict[str, Any], source: str) -> OptConfig:
    """Reads an HF `config.json`.

    Args:
      values: its content.
      source: the file's name, for messages.

    Raises:
      ValueError: a field is missing, or has a value this port does not compute.
    """
    fields = Fields(values, source, "OPT")
    sizes = {ours: fields.count(theirs) for theirs, ours in _SIZES.items()}
    heads, width = sizes["n_heads"], sizes["width"]
    if width % heads:
        fields.fail("num_attention_heads", heads, f"a divisor of hidden_size {width} is expected")
    flags = {ours: fields.flag(theirs, True) for theirs, ours in _FLAGS.items()}
    embedding_width = fields.count("word_embed_proj_dim", width)
    no_final_norm = fields.flag("_remove_final_layer_norm", False)
    network = OptConfig(
        **sizes,
        **flags,
        n_kv_heads=heads,
        head_size=width // heads,
        activation=fields.activation("activation_function", "relu"),
        narrow_width=0 if embedding_width == width else embedding_width,
        mlp_bias=flags["attention_bias"],
        final_norm=flags["pre_norm"] and not no_final_norm,
        **fields.labels(),
    )
    for name in _WITHOUT_EFFECT:
        fields.take(name, None)
    fields.finish()
    return network


def to_hf(config: OptConfig) -> dict[str, Any]:
    """The HF `config.json` of a language model, the inverse of `from_hf`."""
    same = {theirs: getattr(config, ours) for theirs, ours in (_SIZES | _FLAGS).items()}
    return same | {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "word_embed_proj_dim": config.embedding_width,
        "_remove_final_layer_norm": config.pre_norm and not config.final_norm,
        "activation_function": config.activation,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }


class Opt(decoder.Decoder):
    """The decoder stack of OPT."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.positions = nn.Embed(
            c.max_length + POSITION_OFFSET, c.width, param_dtype=self.dtype, dtype=self.dtype
        )
        if c.narrow_width:
            self.project_in = layers.Linear(c.width)
            self.project_out = layers.Linear(c.narrow_width)
        if c.final_norm:
            self.norm = c.norm()

    def begin(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.look_up(self.embed, tokens)
        x = self.project_in(x) if self.config.narrow_width else x
        return x + self.look_up(self.positions, positions + POSITION_OFFSET, axis=None)

    def end(self, x: jax.Array) -> jax.Array:
        x = self.norm(x) if self.config.final_norm else x
        return self.project_out(x) if self.config.narrow_width else x


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
