"""The streams of randomness: numbered as they were when figures were measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isara_jax.method import keys

SEED, STEP = 7, 2
PATHS = {  # what is folded into key(SEED), in order
    "demonstrations": (2, 0, 0),
    "questions": (2, 0, 1),
    "answers": (2, 1),
    "shuffle": (2, 4),
    "evaluation": (1 << 20, 0),
    "adapter": (),
}


@pytest.mark.parametrize("name", PATHS)
def test_numbers_are_todays(name):
    """Another number would change every sample, and no other test would say why."""
    seed, of_a_step = jnp.uint32(SEED), name not in ("evaluation", "adapter")
    key = getattr(keys, name)(*((seed, jnp.int32(STEP)) if of_a_step else (seed,)))
    expected = jax.random.key(SEED)
    for number in PATHS[name]:
        expected = jax.random.fold_in(expected, number)
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(expected))
