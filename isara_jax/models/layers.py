"""Layers shared by the model families.

Shapes: B batch, T tokens, S cache length, H heads, K key/value heads, h head size, D width,
F hidden width, R LoRA rank, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from isara_jax.models.activations import ACTIVATIONS
from isara_jax.models.network import Norm
from isara_jax.models.rope import Turn


class Linear(nn.Module):
    """`x @ kernel (+ bias)`, plus `(x @ a) @ b` where the collection `lora` has this module.

    The adapter's scale (alpha / rank) is folded into b by the caller (`lora.variables`).

    Attributes:
      features: outputs.
      use_bias: whether a bias is added.
      wide: the result is f32, as it is accumulated, not rounded to the type of x: for heads.
    """

    features: int
    use_bias: bool = False
    wide: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features), x.dtype
        )
        y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32 if self.wide else None)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            y += (x @ a.astype(x.dtype)) @ b.astype(x.dtype)
        return y


def split_heads(y: jax.Array, heads: int, *, step: bool) -> jax.Array:
    """A projection's `[B, T, H * h]` as `[B, T, H, h]`.

    Args:
      y: the projection.
      heads: H.
      step: of a decoding step. Then XLA must not look through: for a TPU it would lay the kernels
        out anew to suit the cache, and hold them twice.
    """
    y = jax.lax.optimization_barrier(y) if step else y
    return y.reshape(*y.shape[:2], heads, -1)


class RMSNorm(nn.Module):
    """Root-mean-square norm in f32 (HF `LlamaRMSNorm`, `Olmo2RMSNorm`, `GemmaRMSNorm`)."""

    settings: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.settings.eps)
        if self.settings.weight == "none":
            return wide.astype(x.dtype)
        one_plus = self.settings.weight == "one_plus"
        first = nn.initializers.zeros if one_plus else nn.initializers.ones
        scale = self.param("scale", first, (x.shape[-1],), x.dtype)
        if self.settings.weight == "rounded":
            return scale * wide.astype(x.dtype)
        return (wide * (scale.astype(jnp.float32) + one_plus)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm in f32 (torch `LayerNorm`), with scale and bias unless the weight is `none`."""

    settings: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.settings.eps)
        if self.settings.weight != "none":
            wide *= self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
            wide += self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        return wide.astype(x.dtype)


def norm(settings: Norm, name: str | None = None) -> nn.Module:
    """A norm of a network; only within `setup` or a compact call."""
    return {"rms": RMSNorm, "layer": LayerNorm}[settings.kind](settings, name=name)


def rotate(x: jax.Array, positions: jax.Array, turn: Turn) -> jax.Array:
    """Rotary embedding of `x [B, T, H, h]` at `positions [B, T]`, half-split as in HF LLaMA.

    Of a head the first 2 P numbers are turned, where `turn` has P frequencies.
    """
    angles = positions[..., None, None] * turn.frequencies
    cos, sin = (scaled(f(angles), turn.factor).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    pairs = turn.frequencies.size
    first, second, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.size else turned, axis=-1)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """`x * factor`, computed in f32 as torch does; x itself where the factor is 1."""
    return x if factor == 1 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def capped(x: jax.Array, cap: float) -> jax.Array:
    """The soft cap `cap * tanh(x / cap)` (HF `Gemma2`); x itself where it is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


class MLP(nn.Module):
    """`down(f(gate(x)) * up(x))` (HF `LlamaMLP`); without a gate `down(f(up(x)))` (OPT)."""

    hidden: int
    activation: str
    gated: bool
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        f = ACTIVATIONS[self.activation]

        def project(name: str) -> jax.Array:
            return Linear(self.hidden, self.use_bias, name=name)(x)

        y = f(project("gate")) * project("up") if self.gated else f(project("up"))
        return Linear(x.shape[-1], self.use_bias, name="down")(y)
