"""A block of the decoder stack, built of what a family's configuration says."""

import flax.linen as nn
import jax

from isara_jax.models import attention, layers
from isara_jax.models.network import DecoderConfig


class Attention(nn.Module):
    """Self-attention over a chunk or a stream, or of one token over a cache."""

    config: DecoderConfig
    how: attention.Settings

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        cache: attention.LayerCache | None,
        segments: jax.Array | None,
    ) -> tuple[jax.Array, attention.LayerCache]:
        c = self.config

        def project(name: str, heads: int) -> jax.Array:
            y = layers.Linear(heads * c.head_size, c.attention_bias, name=name)(x)
            return layers.split_heads(y, heads, step=cache is not None)

        q, k = project("q", c.n_heads), project("k", c.n_kv_heads)
        if c.rope is not None:
            frequencies = c.rope.inverse_frequencies(c.head_size)
            q, k = (layers.rotate(y, positions, frequencies) for y in (q, k))
        v = project("v", c.n_kv_heads)
        y, cache = attention.attend(self.how, q, k, v, positions, cache, segments)
        return layers.Linear(c.width, c.attention_bias, name="o")(y), cache


class Block(nn.Module):
    """Attention and MLP with residual connections, normed before or after.

    Attributes:
      config: the network.
      how: attention is computed.
    """

    config: DecoderConfig
    how: attention.Settings

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        cache: attention.LayerCache | None,
        segments: jax.Array | None,
    ) -> tuple[jax.Array, attention.LayerCache]:
        """Of `x [B, T, D]` at `positions [B, T]`; the cache as of `Decoder.__call__`."""
        c = self.config
        attention_norm, mlp_norm = c.norm("attention_norm"), c.norm("mlp_norm")
        y, cache = Attention(c, self.how, name="attention")(
            attention_norm(x) if c.pre_norm else x, positions, cache, segments
        )
        x = x + y if c.pre_norm else attention_norm(x + y)
        mlp = c.mlp("mlp")
        return (x + mlp(mlp_norm(x)) if c.pre_norm else mlp_norm(x + mlp(x))), cache
