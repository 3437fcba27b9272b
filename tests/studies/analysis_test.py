"""What is made of records, on records written by hand."""

import pytest

from isara_jax.studies import analysis

RATE = {"title": "Rate", "higher_is_better": True, "share": True}
LOSS = {"title": "Loss", "higher_is_better": False, "share": False}


def row(method, outcomes, iteration=None, steps=None, metric="rate"):
    value = outcomes.count("1") / len(outcomes) if isinstance(outcomes, str) else sum(outcomes[0])
    return {
        "method": method, "iteration": iteration, "steps": steps,
        "metrics": {metric: value}, "outcomes": {metric: outcomes},
    }  # fmt: skip


def cell(rows, seed=0, level="a", items="x", headline=None, seen=None):
    return {
        "labels": {"domain": "d", "model": "m", "level": level, "seed": seed},
        "n_seeds": 8, "items": items, "clusters": None, "seen": seen,
        "headline": headline or {"rate": RATE},
        "rows": rows, "iterations": [{"iteration": 1, "accepted": 3 + seed, "refusals": None}],
    }  # fmt: skip


def test_means_and_differences_by_hand():
    """Over seeds, of each method, ISARA's last iteration against it."""
    cells = [
        cell([row("base", "0000"), row("isara", "0001", 1), row("isara", "0011", 2)], seed=0),
        cell([row("base", "0001"), row("isara", "0001", 1), row("isara", "1111", 2)], seed=1),
    ]
    (group,) = analysis.of_cells(cells, "level", ["a"], None)
    found = group["metrics"]["rate"]
    means = {name: e["mean"] for name, e in found["methods"].items()}
    assert means == {"base": 0.125, "isara_1": 0.25, "isara": 0.75}
    assert found["isara_minus"]["base"]["per_seed"] == [0.5, 0.75]
    assert (found["items"], group["same_items"]) == (4, True)
    assert group["iterations"] == [{"iteration": 1.0, "accepted": 3.5, "refusals": None}]


@pytest.mark.parametrize(("about", "best"), [(RATE, 1.0), (LOSS, 0.25)])
def test_of_several_sft_rows_the_longest_and_the_best(about, best):
    """Without a validation split nobody could know the best: it is called flattered."""
    rows = [row("sft", o, steps=s) for s, o in ((8, "0100"), (2, "1111"), (4, "0001"))]
    found = analysis.methods(cell([*rows, row("isara", "1111", 1)], headline={"rate": about}))
    assert list(found) == ["sft_longest", "sft_best", "isara"]
    assert found["sft_longest"]["steps"] == 8
    assert found["sft_best"]["metrics"]["rate"] == best
    rows[1]["chosen_on"] = 8
    chosen = analysis.methods(cell([*rows, row("isara", "1111", 1)]))
    assert [(name, chosen[name]["steps"]) for name in chosen if name != "isara"] == [
        ("sft", 2), ("sft_longest", 8)
    ]  # fmt: skip
    both = analysis.methods(cell([rows[0] | {"chosen_on": 8}, row("isara", "1111", 1)]))
    assert both["sft"] is both["sft_longest"]
    alone = analysis.methods(cell([rows[0], row("isara", "1111", 1)]))
    assert list(alone) == ["sft_longest", "sft_best", "isara"]


def test_a_method_that_diverged_is_left_out():
    """It has no mean; the others are compared all the same."""
    lost = row("sft", [[1.0, 2.0], None], steps=9, metric="nll") | {"metrics": {"nll": None}}
    lost["outcomes"]["nll"] = [[1.0, None], None]
    rows = [row("base", [[2.0, 3.0], None], metric="nll"), lost]
    rows += [row("isara", [[1.0, 1.5], None], 1, metric="nll")]
    (group,) = analysis.of_cells([cell(rows, headline={"nll": LOSS})], "level", ["a"], None)
    assert list(group["metrics"]["nll"]["methods"]) == ["base", "isara"]


def test_levels_are_compared_with_the_reference_on_the_same_items():
    """Of the same seed and the same items, or not at all."""
    one = [row("isara", "0001", 1)]
    cells = [cell(one, level="a"), cell([row("isara", "0111", 1)], level="b")]
    first, second = analysis.of_cells(cells, "level", ["a", "b"], "a")
    assert list(first["metrics"]["rate"]["isara_minus"]) == []
    assert second["metrics"]["rate"]["isara_minus"]["reference"]["mean"] == 0.5
    cells[0]["items"] = "y"
    second = analysis.of_cells(cells, "level", ["a", "b"], "a")[1]
    assert "reference" not in second["metrics"]["rate"]["methods"]


def test_own_items_of_each_seed():
    """Somebody's own file is divided anew by each seed: its items may differ, also in number."""
    rows = [[row("base", [[1.0, 2.0], [1, 2]], metric="nll"),
             row("isara", [[0.5, 1.0], [1, 2]], 1, metric="nll")],
            [row("base", [[4.0], [2]], metric="nll"),
             row("isara", [[2.0], [2]], 1, metric="nll")]]  # fmt: skip
    cells = [
        cell(of_seed, seed=s, items=str(s), headline={"nll": LOSS})
        for s, of_seed in enumerate(rows)
    ]
    (group,) = analysis.of_cells(cells, "level", ["a"], None)
    assert group["same_items"] is False
    assert group["metrics"]["nll"]["methods"]["base"]["per_seed"] == [1.0, 2.0]
    assert group["metrics"]["nll"]["isara_minus"]["base"]["mean"] == -0.75


def test_topics_that_seeds_have_and_have_not():
    """Transfer: the same answers, divided by whether the topic was seen."""
    cells = [cell([row("base", "0000"), row("isara", "1101", 1)], seen="1100")]
    (group,) = analysis.of_cells(cells, "level", ["a"], None)
    rates = {n: m["methods"]["isara"]["mean"] for n, m in group["metrics"].items()}
    assert rates == {"rate": 0.75, "rate_seen": 1.0, "rate_unseen": 0.5}
