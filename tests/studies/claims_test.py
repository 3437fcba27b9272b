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


def test_readme_shows_the_headline_of_each_domain():
    """The first table that people read."""
    result = json.loads((ROOT / "docs" / "claims" / "claims.json").read_text())
    shown = "\n".join(tables.estimates(result, "aligned_rate", "methods"))
    assert shown in (ROOT / "README.md").read_text()
