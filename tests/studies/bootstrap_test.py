"""Intervals against scipy's bootstrap and against what is simulated."""

import math

import numpy as np
import pytest
import scipy.stats

from isara_jax.studies import bootstrap


def interval(values, same_items=True):
    """Of the first method."""
    weights = [np.ones(v.shape[1]) for v in values]
    found = bootstrap.means(values, weights).mean(axis=0)
    return bootstrap.interval(found[0], bootstrap.resampled(values, weights, same_items), 0)


@pytest.mark.parametrize("ways", ["items", "seeds", "seeds with items of their own"])
def test_one_way_is_scipys(ways):
    """Where one thing alone varies, it is a mean's t interval; the error is scipy's."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=30)
    values = [data[None]] if ways == "items" else [np.full((1, 4), x) for x in data]
    if ways == "seeds with items of their own":  # whose noise the seeds' means have already
        values = [v + rng.permutation([-3, -1, 1, 3])[None] for v in values]
    ours = interval(values, same_items=ways != "seeds with items of their own")
    theirs = scipy.stats.ttest_1samp(data, 0).confidence_interval()
    assert ours == pytest.approx((data.mean(), *theirs), abs=0.01)
    weights = [np.ones(v.shape[1]) for v in values]
    draws = bootstrap.resampled(values, weights, ways != "seeds with items of their own")
    error = scipy.stats.bootstrap((data,), np.mean, n_resamples=20_000, rng=2).standard_error
    assert draws.all.std() == pytest.approx(error, rel=0.03)


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
    ("n_seeds", "of_seed", "of_item", "of_both"),
    [(5, 1, 0.1, 0.1), (5, 0.1, 1, 0.1), (5, 0.3, 0.3, 1), (2, 1, 0.01, 0.01)],
)
def test_intervals_cover(monkeypatch, n_seeds, of_seed, of_item, of_both):
    """Whichever varies most: percentiles covered 85 % in the first case, and half in the last."""
    monkeypatch.setattr(bootstrap, "DRAWS", 2000)
    rng, covered = np.random.default_rng(4), []
    for _ in range(100):
        data = of_seed * rng.normal(size=(n_seeds, 1)) + of_item * rng.normal(size=(1, 60))
        data = data + of_both * rng.normal(size=(n_seeds, 60))
        found = interval([row[None] for row in data])
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) > 0.9


def test_items_that_belong_together_are_drawn_together():
    """Every item written twice says nothing new: counted as two, intervals were 0.7 as wide."""
    rng = np.random.default_rng(5)
    values = [rng.normal(size=(1, 40)) for _ in range(3)]
    twice = [np.repeat(v, 2, axis=1) for v in values]
    once = bootstrap.resampled(values, [np.ones(40)] * 3, same_items=True)
    pairs = bootstrap.resampled(twice, [np.ones(80)] * 3, True, np.repeat(np.arange(40), 2))
    np.testing.assert_allclose(pairs.all, once.all, atol=1e-12)
    assert [n for _, n in pairs.parts] == [n for _, n in once.parts]


def test_of_one_nothing_is_known():
    """One seed of one item has a value, and no interval."""
    assert interval([np.ones((1, 1))]) == (1.0, -math.inf, math.inf)
    assert interval([np.ones((1, 9))] * 5) == (1.0, 1.0, 1.0)  # all alike
