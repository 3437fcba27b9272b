"""Figures in the documents are those that the studies wrote."""

import json
import pathlib

import pytest

from isara_jax.studies import tables

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = sorted((ROOT / "docs" / "claims").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_tables_are_those_of_the_committed_results(path):
    """A figure changed by hand, or left behind by a later run, would be nobody's."""
    assert path.with_suffix(".md").read_text() == tables.markdown(json.loads(path.read_text()))


def loaded(study):
    return json.loads((ROOT / "docs" / "claims" / f"{study}.json").read_text())


@pytest.mark.parametrize(
    ("document", "study", "what"),
    [
        ("README.md", "claims", "methods"),
        ("docs/claims.md", "claims", "isara_minus"),
        ("docs/claims.md", "seeds", "isara_minus"),
        ("docs/claims.md", "lengths", "methods"),
    ],
)
def test_documents_show_the_headline_of_each_domain(document, study, what):
    """What people read first, and what most will read alone."""
    shown = "\n".join(tables.estimates(loaded(study), "aligned_rate", what))
    assert shown in (ROOT / document).read_text()


def test_scaling_ratios_are_those_of_the_study():
    """Accepted samples for each seed, as the paper counts them."""
    text = (ROOT / "docs" / "claims.md").read_text()
    for group in loaded("claims")["groups"]:
        accepted = sum(iteration["accepted"] for iteration in group["iterations"])
        assert f"{group['labels']['domain']} {accepted / group['seeds']:.1f}" in text
