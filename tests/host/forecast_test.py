"""How long a run still takes, from what its iterations took."""

import dataclasses
import types

import pytest

from isara_jax import config
from isara_jax.host import forecast


def test_time_left_follows_from_the_iterations_done():
    """Two of four done: by hand, with SFT at equal compute, one round and an ICL row to come."""
    c = config.Config(
        iterations=4, train=config.Train(epochs=2, batch_size=10),
        evaluation=config.Evaluation(baselines=("icl_knn", "sft", "one_round"), sft_steps=(1.0,)),
    )  # fmt: skip
    s = types.SimpleNamespace(config=c, validation=None)
    done = [{"train_steps": 10, "accepted": 50}, {"train_steps": 20, "accepted": 50}]
    seconds = {"questions": 20, "answers": 38, "accept": 2, "train": 60, "evaluation": 9}
    # 30 s of sampling a round, 3 s an evaluation, 2 s a step; steps grow by 10 an iteration.
    steps = (30 + 40) + (10 + 20 + 30 + 40) + (20 + 2 * 10)
    expected = (2 + 4) * 30 + (2 + 1 + 1 + 1) * 3 + steps * 2
    assert forecast.left(s, done, seconds) == pytest.approx(expected)
    alone = dataclasses.replace(c, evaluation=config.Evaluation(baselines=()))
    s = types.SimpleNamespace(config=alone, validation=None)
    assert forecast.left(s, done, seconds) == pytest.approx(2 * 30 + 2 * 3 + 70 * 2)
