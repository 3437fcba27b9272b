"""Logits to tokens: temperature, top-k and top-p without a sort, and keys that never move."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class SamplingParams(NamedTuple):
    """`config.Sampling` as traced scalars, so that a sweep over them compiles nothing."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def keep_most_probable(probs: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zeroes what is outside the top-k and outside the nucleus (arXiv 1904.09751).

    Both sets are `probs >= threshold`; the largest threshold that holds k tokens, or the mass p,
    is found by bisection over the bit patterns of f32, which order as their values do: 31
    reductions over the row in place of a sort, and exact. Tokens tied with the threshold all stay.

    Args:
      probs: `[B, V]`, f32, rows sum to one.
      top_k: int32 scalar, 0 for no limit.
      top_p: f32 scalar in (0, 1], 1 for no limit.

    Returns:
      `[B, V]`, not renormalised.
    """
    wanted_count = jnp.where(top_k > 0, top_k, probs.shape[-1])

    def enough(bits: jax.Array) -> jax.Array:
        above = probs >= jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]
        count = jnp.sum(above, axis=-1)
        mass = jnp.sum(jnp.where(above, probs, 0.0), axis=-1)
        # The set is large enough once either limit is reached: the stricter one decides.
        return (count >= wanted_count) | (mass >= top_p)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # enough(low) holds, enough(high) does not
        middle = low + (high - low) // 2
        good = enough(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    rows = probs.shape[:1]
    one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros(rows, jnp.int32), jnp.full(rows, one)))
    threshold = jax.lax.bitcast_convert_type(low, jnp.float32)[:, None]
    return jnp.where(probs >= threshold, probs, 0.0)


def row_keys(key: jax.Array, requests: jax.Array, positions: jax.Array) -> jax.Array:
    """One key a row `[B]`, from the request and the position in its output, never from the slot."""

    def one(request: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, request), position)

    return jax.vmap(one)(requests, positions)


def sample(logits: jax.Array, keys: jax.Array, params: SamplingParams) -> jax.Array:
    """Draws a token a row by the Gumbel-max trick.

    Inverting the cumulative distribution would take one random number a row in place of V, but
    rounding moves each of its V boundaries: on another mesh or batch size one token in a few
    thousand would change. Here only near-ties of two tokens can.

    Args:
      logits: `[B, V]` f32.
      keys: `[B]`.
      params: temperature 0 takes the most probable token.

    Returns:
      `[B]` int32.
    """

    def limit(scaled: jax.Array) -> jax.Array:
        probs = jax.nn.softmax(scaled)
        kept = keep_most_probable(probs, params.top_k, params.top_p)
        return jnp.where(kept > 0, scaled, -jnp.inf)

    def drawn(logits: jax.Array) -> jax.Array:
        scaled = logits / params.temperature
        limited = (params.top_k > 0) | (params.top_p < 1)
        scaled = jax.lax.cond(limited, limit, lambda x: x, scaled)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32)

    def most_probable(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.cond(params.temperature > 0, drawn, most_probable, logits)
