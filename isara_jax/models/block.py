"""A block of the decoder stack, built of what the network's configuration says."""

import flax.linen as nn
import jax

from isara_jax.models import attention, layers
from isara_jax.models.network import DecoderConfig, LayerKind


class Attention(nn.Module):
    """Self-attention over a chunk or a stream, or of one token over a cache."""

    config: DecoderConfig
    kind: LayerKind
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

        def project(name: str, heads: int, norm: str = "") -> jax.Array:
            y = layers.Linear(heads * c.head_size, c.qkv_bias, name=name)(x)
            y = layers.norm(c.norm, f"{name}_norm")(y) if norm == "flat" else y
            y = layers.split_heads(y, heads, step=cache is not None)
            return layers.norm(c.norm, f"{name}_norm")(y) if norm == "head" else y

        q, k = project("q", c.n_heads, c.qk_norm), project("k", c.n_kv_heads, c.qk_norm)
        if self.kind.rope is not None:
            turn = self.kind.rope.turn(c.head_size)
            q, k = (layers.rotate(y, positions, turn) for y in (q, k))
        v = project("v", c.n_kv_heads)
        scores = attention.Scores(c.attention_scale, c.score_cap, self.kind.window)
        y, cache = attention.attend(self.how, scores, q, k, v, positions, cache, segments)
        return layers.Linear(c.width, c.o_bias, name="o")(y), cache


class Block(nn.Module):
    """Attention and MLP with residual connections, and the norms where the network has them.

    Attributes:
      config: the network.
      kind: of this layer.
      how: attention is computed.
    """

    config: DecoderConfig
    kind: LayerKind
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
        y, cache = Attention(c, self.kind, self.how, name="attention")(
            self._before(x, "attention"), positions, cache, segments
        )
        x = self._added(x, y, "attention")
        y = layers.MLP(c.hidden, c.activation, c.gated, c.mlp_bias, name="mlp")(
            self._before(x, "mlp")
        )
        return self._added(x, y, "mlp"), cache

    def _before(self, x: jax.Array, part: str) -> jax.Array:
        """What a part of the block reads."""
        named = self.config.norm_place in ("before", "both")
        return layers.norm(self.config.norm, f"{part}_norm")(x) if named else x

    def _added(self, x: jax.Array, y: jax.Array, part: str) -> jax.Array:
        """The residual stream with what a part has computed."""
        c = self.config
        if c.norm_place in ("behind", "both"):
            y = layers.norm(c.norm, f"{part}_out_norm")(y)
        x = x + layers.scaled(y, c.residual_scale)
        return layers.norm(c.norm, f"{part}_norm")(x) if c.norm_place == "after" else x
