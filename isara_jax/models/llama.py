"""LLaMA in Flax (HF `LlamaForCausalLM`): RMSNorm, RoPE, grouped-query attention, gated MLP."""

import dataclasses
from typing import Any

import jax

from isara_jax.models import decoder, layers, weight_table
from isara_jax.models import rope as rope_lib
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig, size_names
from isara_jax.models.rope import Rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """LLaMA 1 to 3.2, and what shares its architecture by config."""

    activation: str = "silu"
    norm_eps: float = 1e-6
    rope: Rope = Rope()

    def norm(self, name: str | None = None) -> layers.RMSNorm:
        return layers.RMSNorm(self.norm_eps, name=name)

    def mlp(self, name: str) -> layers.GatedMLP:
        return layers.GatedMLP(self.hidden, self.activation, self.mlp_bias, name=name)

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        return super().linear_shapes | {"mlp/gate": (self.width, self.hidden)}


_SIZES = size_names("intermediate_size")
_FLAGS = {
    "tie_word_embeddings": "tied",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}


def from_hf(values: dict[str, Any], source: str) -> LlamaConfig:
    """Reads an HF `config.json`.

    Args:
      values: its content.
      source: the file's name, for messages.

    Raises:
      ValueError: a field is missing, or has a value this port does not compute.
    """
    fields = Fields(values, source, "LLaMA")
    sizes = {ours: fields.count(theirs) for theirs, ours in _SIZES.items()}
    heads, width = sizes["n_heads"], sizes["width"]
    kv_heads = fields.count("num_key_value_heads", heads)
    head_size = fields.count("head_dim", 0) if values.get("head_dim") is not None else 0
    if not head_size and width % heads:
        fields.fail("num_attention_heads", heads, f"a divisor of hidden_size {width} is expected")
    head_size = head_size or width // heads
    if heads % kv_heads:
        fields.fail("num_key_value_heads", kv_heads, f"a divisor of the {heads} heads is expected")
    if head_size % 2:
        fields.fail("head_dim", head_size, "RoPE turns pairs: an even number is expected")
    turning = rope_lib.from_hf(
        fields.take("rope_parameters", None), fields.take("rope_scaling", None),
        fields.take("rope_theta", None), source,
    )  # fmt: skip
    network = LlamaConfig(
        **sizes,
        n_kv_heads=kv_heads,
        head_size=head_size,
        rope=turning,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=fields.activation("hidden_act", "silu"),
        **{ours: fields.flag(theirs, False) for theirs, ours in _FLAGS.items()},
        **fields.labels(),
    )
    fields.finish()
    return network


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The HF `config.json` of a language model, the inverse of `from_hf`."""
    same = {theirs: getattr(config, ours) for theirs, ours in (_SIZES | _FLAGS).items()}
    return same | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_eps,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | rope_lib.to_hf(config.rope)  # fmt: skip


class Llama(decoder.Decoder):
    """The decoder stack of LLaMA."""

    def setup(self) -> None:
        super().setup()
        self.norm = self.config.norm()

    def end(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


_LAYER = "model.layers.{i}"
TABLE = (
    *weight_table.heads("model.embed_tokens"),
    *weight_table.norm("model.norm", "norm"),
    *weight_table.norm(f"{_LAYER}.input_layernorm", "layers_{i}/attention_norm"),
    *weight_table.norm(f"{_LAYER}.post_attention_layernorm", "layers_{i}/mlp_norm"),
    *weight_table.attention_rows(f"{_LAYER}.self_attn", "o_proj"),
    *weight_table.linear(f"{_LAYER}.mlp.gate_proj", "layers_{i}/mlp/gate"),
    *weight_table.linear(f"{_LAYER}.mlp.up_proj", "layers_{i}/mlp/up"),
    *weight_table.linear(f"{_LAYER}.mlp.down_proj", "layers_{i}/mlp/down", weight_table.OUT),
)
