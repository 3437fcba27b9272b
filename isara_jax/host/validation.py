"""The seeds that choose: how long SFT is trained, and which iteration is kept (`config.keep`).

What is reported, the held-out items, chooses nothing.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np

from isara_jax.evaluate.answers import Questions
from isara_jax.host.executables import Executables
from isara_jax.host.setup import Setup
from isara_jax.models import lora


def loss(setup: Setup, exe: Executables, trainable: lora.Trainable) -> float:
    """A model's loss on the validation seeds' answers, in nats a token, without demonstrations."""
    assert setup.validation is not None
    found = exe.log_likelihood("validation", trainable, Questions(setup.validation), 0)
    log_likelihood, tokens = jax.device_get(found)
    return float(-np.sum(log_likelihood, dtype=np.float64) / np.sum(tokens))


def best(losses: Sequence[float]) -> int:
    """The place of the lowest loss, the first of equals; one that is no number is the highest."""
    return min(range(len(losses)), key=lambda i: math.inf if math.isnan(losses[i]) else losses[i])
