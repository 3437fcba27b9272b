"""The bundled models are fit for use: what they were judged by, and that it is theirs."""

import json

import pytest

from isara_jax.formats import pretrained
from isara_jax.testbed import gate


def table(alone, shown):
    return {"zero-shot greedy": alone, "4 nearest greedy": shown}


@pytest.mark.parametrize(
    ("alone", "shown", "fault"),
    [
        ({"fact": 0.5}, {"fact": 0.9}, None),
        ({"fact": 0.51}, {"fact": 0.9}, "fact 0.510 alone"),
        ({"fact": 0.5}, {"fact": 0.89}, "fact 0.890 with 4 nearest"),
        ({"harmful": 0.0, "benign": 1.0}, {"harmful": 1.0, "benign": 1.0}, None),
        ({"harmful": 0.0, "benign": 1.0}, {"harmful": 1.0, "benign": 0.8}, "benign 0.800 with"),
    ],
)
def test_gate_refuses_what_is_aligned_already_or_learns_nothing(alone, shown, fault):
    """A method compared on such a model shows nothing."""
    said = gate.faults({"any": table(alone, shown)})
    assert not said if fault is None else fault in said[0]


@pytest.mark.parametrize("model", pretrained.BUNDLED)
def test_bundled_models_pass(model):
    """By the figures that the command wrote beside the weights."""
    folder = pretrained.locate(model)
    found = json.loads((folder / "gate.json").read_text())
    assert gate.markdown(found) in (folder / "README.md").read_text()
    assert set(found) == {"safety", "truthfulness", "instruction"} and not gate.faults(found)
