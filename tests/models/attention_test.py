"""Attention in blocks, in streams and over caches, against torch's."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2

from isara_jax.devices import mesh as mesh_lib
from isara_jax.formats import pretrained
from isara_jax.models import attention
from isara_jax.models.attention import Scores, Settings

HOW = {
    "accelerators": Settings(order="SBKh"),
    "CPUs": Settings(order="BKSh"),
}


def random_qkv(batch, length, heads=4, kv_heads=2, size=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, length, n, size) for n in (heads, kv_heads, kv_heads))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def by_torch(q, k, v, **settings):
    """torch's attention of `[B, T, H, h]`."""
    q, k, v = (torch.from_numpy(np.asarray(x)).transpose(1, 2) for x in (q, k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **settings)
    return y.transpose(1, 2).numpy()


def visible(length, window=0):
    """Which keys `[T, T]` each query sees, as transformers' masks have it."""
    behind = np.arange(length)[:, None] - np.arange(length)
    return torch.from_numpy((behind >= 0) & (behind < (window or length)))


@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize("length", [1, 128, 129, 300, 1100])
def test_causal_blocks_equal_torch(length, row_by_row):
    """One block, blocks that end with the chunk, and blocks that do not."""
    q, k, v = random_qkv(2, length)
    how = Settings(row_by_row=row_by_row)
    found = jax.jit(lambda *x: attention.causally(how, Scores(), *x))(q, k, v)
    np.testing.assert_allclose(found, by_torch(q, k, v, is_causal=True), atol=2e-6)


@pytest.mark.parametrize("window", [1, 5, 128, 200, 1000])
@pytest.mark.parametrize("length", [7, 300, 1100])
def test_windows_of_blocks_equal_torch(length, window):
    """Windows smaller and larger than a block and than the chunk, at another scale."""
    q, k, v = random_qkv(2, length)
    scores = Scores(scale=0.7, window=window)
    found = jax.jit(lambda *x: attention.causally(Settings(), scores, *x))(q, k, v)
    expected = by_torch(q, k, v, attn_mask=visible(length, window), scale=0.7)
    np.testing.assert_allclose(found, expected, atol=4e-6)


def test_the_cap_of_scores_is_gemmas():
    """c tanh(x / c) before the mask: transformers' own function says the same."""
    q, k, v = random_qkv(2, 40)
    module = types.SimpleNamespace(num_key_value_groups=2, head_dim=8, training=False)
    theirs = modeling_gemma2.eager_attention_forward(
        module, *(torch.from_numpy(np.asarray(x)).transpose(1, 2) for x in (q, k, v)),
        torch.where(visible(40), 0.0, -torch.inf)[None, None], scaling=0.9, softcap=1.5,
    )[0].numpy()  # fmt: skip
    found = attention.causally(Settings(), Scores(scale=0.9, cap=1.5), q, k, v)
    np.testing.assert_allclose(found, theirs, atol=2e-6)


@pytest.mark.parametrize("window", [0, 1, 3, 7, 8, 20])
def test_streams_keep_their_segments_apart(window):
    """Segments within a row, over its end, as long as a row, as the stream before has; padding."""
    lengths, rows, length = [(3, 8, 7, 1, 8, 2), (5, 8, 8, 8, 3)], 4, 8
    segments = [np.repeat(np.arange(1, len(of_stream) + 1), of_stream) for of_stream in lengths]
    segments = np.stack([np.pad(s, (0, rows * length - len(s))) for s in segments])
    q, k, v = random_qkv(2, rows * length)
    in_rows = (x.reshape(2 * rows, length, *x.shape[2:]) for x in (q, k, v))
    attend = functools.partial(attention.in_stream, Scores(window=window))
    found = np.asarray(jax.jit(attend)(*in_rows, segments)).reshape(q.shape)
    assert np.isfinite(found).all()
    for stream in range(2):
        ends = np.cumsum(lengths[stream])
        for start, end in zip(ends - lengths[stream], ends, strict=True):
            part = (x[stream : stream + 1, start:end] for x in (q, k, v))
            expected = by_torch(*part, attn_mask=visible(end - start, window))[0]
            np.testing.assert_allclose(found[stream, start:end], expected, atol=2e-6)


@pytest.mark.parametrize("where", HOW)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3, 5, 20])
def test_steps_over_a_cache_equal_torch(where, int8, window):
    """Chunks put into some columns, one of them dropped, then six steps of ragged sequences.

    With a window the cache is a ring: smaller than some chunks, or than chunk and steps, or not.
    """
    how, scores, steps = Settings(order=HOW[where].order, int8=int8), Scores(window=window), 6
    rows = min(window, 15) or 15
    q, k, v = random_qkv(4, 9)
    lengths = np.array([6, 1, 4, 3])  # of the chunks, right-padded
    columns = np.array([2, 0, 7, 1])  # of a cache of 5: the third chunk is dropped
    q_steps, k_steps, v_steps = random_qkv(5, steps, seed=1)

    @jax.jit
    def run(k, v):
        halves = tuple(attention.empty(how, rows, 5, 2, 8, jnp.float32) for _ in range(2))
        # What lies behind a sequence's end must never be read.
        halves = jax.tree.map(lambda x: jnp.full_like(x, 100), halves)
        chunk = tuple(attention.of_chunk(how, x) for x in (k, v))
        cache, result = attention.insert(how, halves, chunk, columns, jnp.asarray(lengths)), []
        at = jnp.zeros(5, int).at[columns].set(lengths, mode="drop")[:, None]
        for step in range(steps):
            token = (x[:, step : step + 1] for x in (q_steps, k_steps, v_steps))
            y, cache = attention.attend(how, scores, *token, at + step, cache)
            result.append(y)
        return jnp.stack(result)

    found = np.asarray(run(k, v)).reshape(steps, 5, 4, 8)
    for row, column in ((0, 2), (1, 0), (3, 1)):
        n = lengths[row]
        for step in range(steps):
            seen = (
                np.concatenate([x[row, :n], more[column, : step + 1]])[None, -window:]
                for x, more in ((k, k_steps), (v, v_steps))
            )
            expected = by_torch(q_steps[column : column + 1, step : step + 1], *seen)[0, 0]
            np.testing.assert_allclose(found[step, column], expected, atol=0.03 if int8 else 2e-6)


def test_eight_bits_keep_what_they_can():
    """Each token and head by its own scale: off by half a step at most, zeros exactly zero."""
    x = random_qkv(3, 5)[1] * np.array([1e-3, 1.0, 1e3])[:, None, None, None].astype(np.float32)
    x[1, 2] = 0
    half = attention.of_chunk(Settings(order="BKSh", int8=True), jnp.asarray(x))
    assert half.values.dtype == jnp.int8
    back = np.asarray(half.values * half.scale[..., None]).transpose(0, 2, 1, 3)
    step = np.abs(x).max(-1, keepdims=True) / 127
    assert (np.abs(back - x) <= 0.5001 * step).all()
    assert (back[1, 2] == 0).all()


def devices(platform, capability=None):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    return types.SimpleNamespace(devices=np.array([device]), shape=dict.fromkeys(mesh_lib.AXES, 1))


@pytest.mark.parametrize(
    ("platform", "capability", "head_size", "dtype", "expected"),
    [
        ("cpu", None, 64, jnp.float32, Settings("BKSh", row_by_row=True)),
        ("tpu", None, 128, jnp.bfloat16, Settings("SBKh")),
        ("gpu", "7.5", 128, jnp.float32, Settings("SBKh")),  # T4
        ("gpu", "8.0", 128, jnp.bfloat16, Settings("SBKh", cudnn=True)),
        ("gpu", "9.0", 128, jnp.float32, Settings("SBKh")),
        ("gpu", "9.0", 256, jnp.bfloat16, Settings("SBKh")),
        ("gpu", "9.0", 20, jnp.bfloat16, Settings("SBKh")),
    ],
)
def test_what_a_device_lacks_is_not_used(platform, capability, head_size, dtype, expected):
    """bf16 only where it is native, cuDNN's kernel only for what it takes; by capability."""
    mesh = devices(platform, capability)
    assert pretrained.choose_dtype("auto", mesh.devices.flat[0]) == (
        jnp.bfloat16 if platform == "tpu" or (capability or "0") >= "8" else jnp.float32
    )
    assert attention.settings(mesh, dtype, head_size) == expected
    eight = attention.settings(mesh, dtype, head_size, "int8")
    assert eight.int8 and not expected.int8
