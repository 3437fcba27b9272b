"""LLaMA in Flax (HF `LlamaForCausalLM`): RMSNorm, RoPE, grouped-query attention, gated MLP."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from isara_jax.models import layers

Cache = tuple[layers.LayerCache, ...]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything that decides the network; `from_hf` honours or refuses each field of HF's."""

    vocab_size: int
    width: int
    hidden: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    max_length: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block, by its path in the block."""
        attention = self.n_heads * self.head_size
        keys = self.n_kv_heads * self.head_size
        return {
            "attention/q": (self.width, attention),
            "attention/k": (self.width, keys),
            "attention/v": (self.width, keys),
            "attention/o": (attention, self.width),
            "mlp/gate": (self.width, self.hidden),
            "mlp/up": (self.width, self.hidden),
            "mlp/down": (self.hidden, self.width),
        }


# Fields of an HF config that change no logit: bookkeeping, training, generation defaults.
_IGNORED = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
    "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict",
    "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "attention_dropout",
    "tokenizer_class", "max_sequence_length", "_attn_implementation_autoset", "auto_map",
}  # fmt: skip
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "hidden",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_length",
}
_OPTIONAL = {
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}


def from_hf(fields: dict[str, Any], source: str) -> LlamaConfig:
    """Reads an HF `config.json`.

    Args:
      fields: its content.
      source: the file's name, for messages.

    Raises:
      ValueError: a field is missing, or has a value this port does not compute.
    """
    fields = dict(fields)

    def take(name: str, *default: Any) -> Any:
        value = fields.pop(name, None)
        if value is None and not default:
            raise ValueError(f"{source}: field {name!r} is missing; a LLaMA config has it")
        return default[0] if value is None else value

    def count(name: str, *default: int) -> int:
        value = take(name, *default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{source}: {name} is {value!r}; a whole number above 0 is expected")
        return value

    sizes = {ours: count(theirs) for theirs, ours in _SIZES.items()}
    heads = sizes["n_heads"]
    sizes["n_kv_heads"] = kv_heads = count("num_key_value_heads", heads)
    sizes["head_size"] = count("head_dim", sizes["width"] // heads)
    if heads % kv_heads:
        raise ValueError(
            f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads "
            f"{kv_heads}"
        )
    if sizes["head_size"] % 2:
        raise ValueError(f"{source}: head_dim {sizes['head_size']} is odd; RoPE turns pairs")
    optional = {ours: take(name, None) for name, ours in _OPTIONAL.items()}
    optional = {ours: value for ours, value in optional.items() if value is not None}
    theta = _rope_theta(take("rope_parameters", {}), take("rope_scaling", {}), source)
    theta = theta or take("rope_theta", 10_000.0)
    fields.pop("rope_theta", None)
    if take("hidden_act", "silu") != "silu":
        raise ValueError(f"{source}: hidden_act must be 'silu', the only activation of LLaMA")
    unknown = {k: v for k, v in fields.items() if k not in _IGNORED and v not in (None, False)}
    if unknown:
        raise ValueError(f"{source}: not supported: {unknown}; it would change the logits")
    return LlamaConfig(**sizes, **optional, rope_theta=float(theta))


def _rope_theta(parameters: Any, scaling: Any, source: str) -> float | None:
    """The base of RoPE's frequencies where these fields, of newer and older files, give it."""
    for name, part in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(part, dict):
            raise ValueError(f"{source}: {name} is {part!r}; an object is expected")
        kind = part.get("rope_type", part.get("type", "default"))
        if kind != "default":
            raise ValueError(f"{source}: rope type {kind!r} is not supported; supported: 'default'")
    return (parameters | scaling).get("rope_theta")


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The HF `config.json` of a network, the inverse of `from_hf`."""
    sizes = {theirs: getattr(config, ours) for theirs, ours in (_SIZES | _OPTIONAL).items()}
    return sizes | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


class Attention(nn.Module):
    """Self-attention over a chunk (no cache) or of one token over a cache."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: layers.LayerCache | None
    ) -> tuple[jax.Array, layers.LayerCache]:
        c = self.config

        def project(name: str, heads: int) -> jax.Array:
            y = layers.Linear(heads * c.head_size, c.attention_bias, name=name)(x)
            return y.reshape(*x.shape[:2], heads, c.head_size)

        exponents = jnp.arange(0, c.head_size, 2, dtype=jnp.float32) / c.head_size
        frequencies = c.rope_theta**-exponents
        q = layers.rotate(project("q", c.n_heads), positions, frequencies)
        k = layers.rotate(project("k", c.n_kv_heads), positions, frequencies)
        v = project("v", c.n_kv_heads)
        if cache is None:
            y, cache = layers.attend_causally(q, k, v), (k.swapaxes(0, 1), v.swapaxes(0, 1))
        else:
            cache = layers.write_cache(cache, (k, v), positions)
            y = layers.attend_to_cache(q, cache, positions)
        y = y.reshape(*x.shape[:2], c.n_heads * c.head_size)
        return layers.Linear(c.width, c.attention_bias, name="o")(y), cache


class Block(nn.Module):
    """Pre-norm attention and MLP with residual connections."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: layers.LayerCache | None
    ) -> tuple[jax.Array, layers.LayerCache]:
        c = self.config
        y = layers.RMSNorm(c.norm_eps, name="attention_norm")(x)
        y, cache = Attention(c, name="attention")(y, positions, cache)
        x = x + y
        y = layers.RMSNorm(c.norm_eps, name="mlp_norm")(x)
        return x + layers.GatedMLP(c.hidden, c.mlp_bias, name="mlp")(y), cache


class Llama(nn.Module):
    """The decoder stack. Collections: `params` (base weights), `lora` (adapter, may be absent)."""

    config: LlamaConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, param_dtype=self.dtype, dtype=self.dtype)
        self.layers = [Block(c) for _ in range(c.n_layers)]
        self.norm = layers.RMSNorm(c.norm_eps)
        if not c.tied:
            self.head = layers.Linear(c.vocab_size)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        n_layers: int | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Hidden states of `tokens`.

        Args:
          tokens: `[B, T]`; right-padded without a cache, T = 1 with one.
          positions: `[B, T]`, default 0..T-1.
          cache: the layers' caches, or None for a chunk that starts its sequences.
          n_layers: stop after this many blocks and skip the final norm (for embeddings).

        Returns:
          hidden `[B, T, D]`, and the caches: with `cache`, that updated; without, the chunk's own
          keys and values `[T, B, K, h]` a layer.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x, updated = self.embed(tokens), []
        for index, block in enumerate(self.layers[:n_layers]):
            x, layer_cache = block(x, positions, None if cache is None else cache[index])
            updated.append(layer_cache)
        return (self.norm(x) if n_layers is None else x), tuple(updated)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]` in f32 of normed hidden states `[..., D]`."""
        out = self.embed.attend(hidden) if self.config.tied else self.head(hidden)
        return out.astype(jnp.float32)

    def everything(self, tokens: jax.Array) -> jax.Array:
        """Logits `[B, T, V]` of whole sequences; touches every parameter, so it initialises."""
        return self.logits(self(tokens)[0])
