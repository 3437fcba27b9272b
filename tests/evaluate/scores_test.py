"""Rates and their intervals, against formulas of others."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from isara_jax.evaluate import scores
from isara_jax.tasks.base import Item, Metric


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (150, 192), (1, 96)])
def test_wilson_equals_scipy(k, n):
    """The interval beside every rate; the rate itself always lies in it."""
    low, high = scores.wilson(k, n)
    theirs = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose((low, high), (theirs.low, theirs.high), atol=1e-6)
    assert low <= k / n <= high


def test_metrics_count_their_own_kind():
    """A metric counts labels among the items of its kind only; of none it has no value."""
    items = [Item("q", "a", kind, topic) for kind, topic in (("x", "s"), ("x", "t"), ("y", "t"))]
    metrics = (
        Metric("of_x", "", "x", ("good",), True),
        Metric("of_all", "", None, ("good", "fair"), True),
        Metric("of_z", "", "z", ("good",), True),
    )
    found = scores.of_labels(metrics, items, ["good", "bad", "fair"])
    found = scores.renamed(found, "_greedy")
    assert found["counts"] == {
        "of_x_greedy": [1, 2],
        "of_all_greedy": [2, 3],
        "of_z_greedy": [0, 0],
    }
    assert found["metrics"]["of_x_greedy"] == 0.5 and found["metrics"]["of_z_greedy"] is None
    assert scores.by_topic(metrics[1], items, ["good", "bad", "fair"]) == {"s": [1, 1], "t": [1, 2]}


def test_mean_has_students_interval():
    """As scipy has it; of one value, or of equal ones, there is none, and JSON has no infinity."""
    values = np.asarray([1.0, 2.0, 4.0, 9.0])
    found = scores.of_means("score", values)
    expected = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose(found["intervals"]["score"], expected, rtol=1e-6)
    assert found["metrics"]["score"] == 4.0 and found["sizes"]["score"] == 4
    for few in (values[:1], np.full(7, 0.1, np.float32)):
        unknown = scores.of_means("score", few)
        assert unknown["intervals"]["score"] == [None, None]
        assert unknown["metrics"]["score"] == pytest.approx(few[0])
        json.dumps(unknown, allow_nan=False)


def test_likelihood_is_weighted_by_token():
    """Nats a token over all answers together, not the mean of means."""
    found = scores.of_likelihood(np.asarray([-2.0, -9.0]), np.asarray([2, 3]))
    assert found["metrics"]["nll_per_token"] == 11 / 5
    low, high = found["intervals"]["nll_per_token"]
    assert low < 11 / 5 < high


@pytest.mark.parametrize("seed", [0, 1])
def test_likelihoods_interval_is_that_of_drawing_answers_again(seed):
    """The ratio's interval, and that of a difference of two models, against a bootstrap."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 60, 400)
    per_token = rng.gamma(4.0, 0.5, 400)
    rows = [
        scores.of_likelihood(-tokens * (per_token + shift), tokens)
        for shift in (0.0, rng.normal(-0.1, 0.3, 400))
    ]
    drawn = rng.integers(0, 400, (4000, 400))
    (before, _), (after, _) = (np.asarray(row["items"]["nll_per_token"]) for row in rows)
    for values, interval in (
        (before, rows[0]["intervals"]["nll_per_token"]),
        (after - before, scores.differences(*rows)["nll_per_token"][1:]),
    ):
        again = values[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
        np.testing.assert_allclose(interval, np.quantile(again, [0.025, 0.975]), atol=0.012)
    alone, paired = (np.ptp(x) for x in (rows[1]["intervals"]["nll_per_token"], interval))
    assert paired < 0.6 * alone  # what is the same in both models has fallen out


def outcomes(*row):
    return scores.of_outcomes("right", row)


def test_a_paired_share_is_that_of_drawing_items_again():
    """Of many items the score interval is a bootstrap's."""
    rng = np.random.default_rng(2)
    a = rng.random(400) < 0.4
    b = np.where(rng.random(400) < 0.8, a, rng.random(400) < 0.6)
    value, *interval = scores.differences(outcomes(*a), outcomes(*b))["right"]
    drawn = rng.integers(0, 400, (4000, 400))
    again = b[drawn].mean(axis=1) - a[drawn].mean(axis=1)
    np.testing.assert_allclose(interval, np.quantile(again, [0.025, 0.975]), atol=0.01)
    assert value == b.mean() - a.mean()


@pytest.mark.parametrize("chances", [(0.5, 0.1, 0.3, 0.1), (0.0, 0.0, 0.1, 0.9), (0.9, 0, 0, 0.1)])
def test_a_paired_share_of_few_items_holds_what_it_promises(chances):
    """The exact coverage over all tables of ten items: never a false certainty."""
    n, truth, covered, total = 10, chances[2] - chances[1], 0.0, 0.0
    for both, left, right in itertools.product(range(n + 1), repeat=3):
        if (rest := n - both - left - right) < 0:
            continue
        table = (both, left, right, rest)
        chance = scipy.stats.multinomial.pmf(table, n, chances)
        a, b = (np.repeat(x, table) for x in ([1, 1, 0, 0], [1, 0, 1, 0]))
        low, high = scores.paired_shares(a, b)
        covered += chance * (low <= truth + 1e-12 and high >= truth - 1e-12)
        total += chance
    assert total == pytest.approx(1) and covered > 0.93


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30])
def test_a_paired_share_is_clear_where_mcnemar_says_so(n):
    """One question answered right instead of wrong proves nothing; nor do two or three of them."""
    for gained, lost in itertools.product(range(n + 1), repeat=2):
        if (same := n - gained - lost) < 0:
            continue
        old, new = (np.repeat(x, (gained, lost, same)) for x in ([0, 1, 1], [1, 0, 1]))
        value, low, high = scores.differences(outcomes(*old), outcomes(*new))["right"]
        assert -1 <= low <= value <= high <= 1 and (n > 1 or high - low > 0.7)
        statistic = (gained - lost) ** 2 / max(gained + lost, 1)
        assert (low > 0 or high < 0) == (scipy.stats.chi2.sf(statistic, 1) < 0.05)


def test_differences_are_of_the_same_items_only():
    """What one row lacks, or counted on others, is not compared; one answer has no interval."""
    one = scores.of_likelihood(np.asarray([-2.0]), np.asarray([2]))
    two = scores.of_likelihood(np.asarray([-1.0]), np.asarray([2]))
    assert scores.differences(one, two) == {"nll_per_token": [-0.5, None, None]}
    assert scores.differences(outcomes(1, 0), outcomes(1)) == {}
    assert scores.differences(outcomes(), outcomes()) == {}
    assert scores.differences({}, outcomes(1)) == {}  # a row from before items were kept
    assert scores.differences(one, outcomes(1)) == {}
