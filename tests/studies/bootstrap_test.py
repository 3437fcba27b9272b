"""Intervals against scipy's bootstrap and against what is simulated."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from isara_jax.studies import bootstrap


def interval(values, same_items=True):
    """Of the first method."""
    weights = [np.ones(v.shape[1]) for v in values]
    found = bootstrap.means(values, weights).mean(axis=0)
    return bootstrap.interval(found[0], bootstrap.resampled(values, weights, same_items), 0)


@pytest.mark.parametrize("ways", ["items", "seeds", "seeds with items of their own"])
def test_one_way_is_scipys(ways):
    """Where one thing alone varies, it is the percentile bootstrap of a mean, taken further out."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=30)
    values = [data[None]] if ways == "items" else [np.full((1, 4), x) for x in data]
    if ways == "seeds with items of their own":  # whose noise the seeds' means have already
        values = [v + rng.permutation([-3, -1, 1, 3])[None] for v in values]
    ours = interval(values, same_items=ways != "seeds with items of their own")
    tail = scipy.special.ndtr(-math.sqrt(30 / 29) * scipy.stats.t.ppf(0.975, 29))
    theirs = scipy.stats.bootstrap(
        (data,), np.mean, method="percentile", n_resamples=20_000, rng=2,
        confidence_level=1 - 2 * tail,
    ).confidence_interval  # fmt: skip
    assert ours.value == pytest.approx(data.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_weights_make_a_ratio():
    """A likelihood a token is of all tokens, not the mean of the texts' means."""
    values, weights = [np.array([[2.0, 9.0]])], [np.array([1.0, 3.0])]
    assert bootstrap.means(values, weights) == pytest.approx(11 / 4)
    draws = bootstrap.resampled(values, weights, same_items=True)
    assert set(np.round(draws.all[:, 0], 6)) == {2.0, 2.75, 3.0}


def test_methods_share_their_draws():
    """Of a difference, what seeds and items have in common falls out."""
    rng = np.random.default_rng(3)
    values = [rng.normal(size=(1, 40)) + rng.normal() for _ in range(5)]
    values = [np.concatenate([v, v + 0.5]) for v in values]
    draws = bootstrap.resampled(values, [np.ones(40)] * 5, same_items=True)
    np.testing.assert_allclose(draws.differences(1).all, [[0.5, 0]] * bootstrap.DRAWS, atol=1e-9)


@pytest.mark.parametrize(
    ("of_seed", "of_item", "of_both"), [(1, 0.1, 0.1), (0.1, 1, 0.1), (0.3, 0.3, 1)]
)
def test_intervals_cover(of_seed, of_item, of_both):
    """With five seeds, whichever varies most: percentiles as they are covered 85 % in the first."""
    rng, covered = np.random.default_rng(4), []
    for _ in range(150):
        shape = (5, 60)
        data = of_seed * rng.normal(size=(5, 1)) + of_item * rng.normal(size=(1, 60))
        data = data + of_both * rng.normal(size=shape)
        found = interval([row[None] for row in data])
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) > 0.9


def test_of_one_nothing_is_known():
    """One seed of one item has a value, and no interval."""
    assert interval([np.ones((1, 1))]) == (1.0, -math.inf, math.inf)
    assert interval([np.ones((1, 9))] * 5) == (1.0, 1.0, 1.0)  # all alike
