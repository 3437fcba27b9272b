"""Layers shared by the model families.

Shapes: B batch, T tokens, S cache length, H heads, K key/value heads, h head size, D width,
F hidden width, R LoRA rank, V vocabulary.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# By the names of HF's configs; the first is torch's, by the error function.
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


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
    """Root-mean-square norm in f32 (HF `LlamaRMSNorm`)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return scale * wide.astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm in f32 (torch `LayerNorm`); `affine` gives it scale and bias."""

    affine: bool = True
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if self.affine:
            wide *= self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
            wide += self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        return wide.astype(x.dtype)


def rotate(x: jax.Array, positions: jax.Array, inverse_frequencies: np.ndarray) -> jax.Array:
    """Rotary embedding of `x [B, T, H, h]` at `positions [B, T]`, half-split as in HF LLaMA."""
    angles = positions[..., None, None] * inverse_frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class GatedMLP(nn.Module):
    """`down(f(gate(x)) * up(x))` (HF `LlamaMLP`)."""

    hidden: int
    activation: str = "silu"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = ACTIVATIONS[self.activation](Linear(self.hidden, self.use_bias, name="gate")(x))
        up = Linear(self.hidden, self.use_bias, name="up")(x)
        return Linear(x.shape[-1], self.use_bias, name="down")(gate * up)


class MLP(nn.Module):
    """`down(f(up(x)))` (HF `OPTDecoderLayer`'s fc1 and fc2)."""

    hidden: int
    activation: str = "relu"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = ACTIVATIONS[self.activation](Linear(self.hidden, self.use_bias, name="up")(x))
        return Linear(x.shape[-1], self.use_bias, name="down")(up)
