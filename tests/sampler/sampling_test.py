"""Logits to tokens, against NumPy, `transformers` and the softmax itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from isara_jax.sampler import sampling

keep = jax.jit(sampling.keep_most_probable)
draw = jax.jit(sampling.sample)


def params(temperature=1.0, top_k=0, top_p=1.0):
    return sampling.SamplingParams(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))


def sorted_reference(probs, top_k, top_p):
    """Both sets by sorting: everything at least as probable as the last one that belongs."""
    ordered = -np.sort(-probs.astype(np.float64), axis=1)
    k = min(top_k or probs.shape[1], probs.shape[1])
    nucleus = np.sum(np.cumsum(ordered, axis=1) < top_p, axis=1)
    last = np.minimum(nucleus, k - 1)
    return np.where(probs >= np.take_along_axis(ordered, last[:, None], 1), probs, 0)


def rows_with_ties(n, size):
    """Probabilities in units of 1/1024, so that sums are exact and ties and zeros are common."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(size, 0.5), n)
    counts = np.array([rng.multinomial(1024, share) for share in shares])
    counts[0] = 0
    counts[0, :4] = 256  # all tied
    counts[1] = 0
    counts[1, -1] = 1024  # one certain
    return (counts / 1024).astype(np.float32)


@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 12, 40])
def test_kept_set_equals_sorting(top_k):
    """The bisection finds the very set that sorting finds: ties, zeros, and any k and p."""
    probs = rows_with_ties(400, 12)
    for top_p in (1.0, 1e-6, *(np.array([1, 100, 256, 257, 512, 777, 1023]) / 1024)):
        kept = np.asarray(keep(probs, jnp.int32(top_k), jnp.float32(top_p)))
        np.testing.assert_array_equal(kept, sorted_reference(probs, top_k, top_p))


def test_neighbouring_numbers_are_told_apart():
    """The bisection goes down to the last bit: k tokens stay though they differ by one ulp."""
    steps = np.arange(16, dtype=np.int32)
    for middle in (1 / 16, 1e-5, 1e-30):
        row = (np.float32(middle).view(np.int32) + steps).view(np.float32)
        probs = np.random.default_rng(0).permutation(row)[None]
        for k in steps[1:]:
            kept = np.asarray(keep(probs, jnp.int32(k), jnp.float32(1)))
            np.testing.assert_array_equal(kept, sorted_reference(probs, int(k), 2))


def test_kept_set_equals_transformers():
    """Over a real vocabulary's size the nucleus and the top-k are those of HF's warpers."""
    logits = np.random.default_rng(1).normal(0, 3, (32, 4000)).astype(np.float32)
    probs = jax.nn.softmax(jnp.asarray(logits))
    for top_k, top_p, warper in [
        (50, 1.0, transformers.TopKLogitsWarper(50)),
        (1, 1.0, transformers.TopKLogitsWarper(1)),
        (0, 0.9, transformers.TopPLogitsWarper(0.9)),
        (0, 0.05, transformers.TopPLogitsWarper(0.05)),
    ]:
        kept = np.asarray(keep(probs, jnp.int32(top_k), jnp.float32(top_p))) > 0
        expected = torch.isfinite(warper(None, torch.tensor(logits))).numpy()
        # A sum of thousands of f32 may round to either side of p: one token a row at the edge.
        allowed = 0 if top_p == 1 else 1
        assert (kept != expected).sum(axis=1).max() <= allowed
        assert kept.sum(axis=1).min() >= 1


LOGITS = np.array([1.5, 0.2, -np.inf, 1.4, -1.0, 0.9, 0.9, -3.0, 2.0, -np.inf], np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (0.7, 0, 0.6), (1.0, 4, 0.5)],
)
def test_frequencies_follow_softmax(temperature, top_k, top_p):
    """Tokens are drawn as often as the tempered, limited softmax says, by a chi-square test."""
    n = 20_000
    keys = sampling.row_keys(jax.random.key(7), jnp.arange(n), jnp.zeros(n, jnp.int32))
    drawn = draw(jnp.tile(LOGITS, (n, 1)), keys, params(temperature, top_k, top_p))
    counts = np.bincount(np.asarray(drawn), minlength=len(LOGITS))
    exact = np.exp(LOGITS.astype(np.float64) / temperature)
    exact = sorted_reference((exact / exact.sum())[None], top_k, top_p)[0]
    exact /= exact.sum()
    assert counts[exact == 0].sum() == 0
    wanted = exact > 0
    assert scipy.stats.chisquare(counts[wanted], exact[wanted] * n).pvalue > 1e-3


def test_temperature_zero_is_greedy():
    """Temperature 0 takes the most probable token, the first of equals, whatever k and p."""
    logits = np.random.default_rng(2).normal(size=(64, 33)).astype(np.float32)
    logits[0, [4, 9]] = 9.0
    keys = sampling.row_keys(jax.random.key(0), jnp.arange(64), jnp.arange(64))
    for limits in (params(0.0), params(0.0, 5, 0.3)):
        np.testing.assert_array_equal(draw(logits, keys, limits), logits.argmax(axis=1))


def test_draw_depends_on_request_and_position_alone():
    """A request draws the same token in any slot, of any batch; another position, another one."""
    requests, positions = jnp.array([5, 0, 9, 3]), jnp.array([2, 2, 7, 0])
    key = jax.random.key(3)
    wide = jnp.zeros((4, 5000))  # uniform: equal tokens come from equal numbers
    together = np.asarray(draw(wide, sampling.row_keys(key, requests, positions), params()))
    assert len(set(together.tolist())) == 4
    order = np.array([2, 0, 3, 1])
    moved = draw(wide, sampling.row_keys(key, requests[order], positions[order]), params())
    np.testing.assert_array_equal(moved, together[order])
    for row in range(4):
        alone = sampling.row_keys(key, requests[row : row + 1], positions[row : row + 1])
        assert int(draw(wide[:1], alone, params())[0]) == together[row]
    swapped = draw(wide, sampling.row_keys(key, positions, requests), params())
    assert (np.asarray(swapped) != together).all()
    other = draw(wide, sampling.row_keys(jax.random.key(4), requests, positions), params())
    assert (np.asarray(other) != together).all()


def test_request_and_position_are_not_confused():
    """No two of many (request, position) pairs share a key: equal keys would repeat outputs."""
    requests, positions = np.divmod(np.arange(4096), 64)
    keys = sampling.row_keys(jax.random.key(0), jnp.asarray(requests), jnp.asarray(positions))
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()}) == 4096


@pytest.mark.parametrize("seed", range(3))
def test_impossible_tokens_are_never_drawn(seed):
    """Tokens of probability zero, or outside top-k and top-p, are never drawn."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 4, (16, 5000)).astype(np.float32)
    logits[:, :100] = logits[:, -100:] = -np.inf
    logits[rng.random(logits.shape) < 0.3] = -np.inf
    keys = jax.random.split(jax.random.key(seed), 16)
    for limits in (params(), params(0.7, 40), params(1.0, 0, 0.9)):
        drawn = np.asarray(sampling.sample(jnp.asarray(logits), keys, limits))
        probs = np.asarray(jax.nn.softmax(logits / limits.temperature))
        # A little more than p, for sums that round to either side of it.
        possible = sorted_reference(probs, int(limits.top_k), float(limits.top_p) + 1e-4) > 0
        assert np.isfinite(logits[np.arange(16), drawn]).all()
        assert possible[np.arange(16), drawn].all()
