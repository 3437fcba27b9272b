"""The streams of randomness: numbered as they were when figures were measured, and all apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isara_jax.method import keys

SEED, STEP = 7, 2
OF_A_STEP = {  # what is folded into key(SEED), in order
    "demonstrations": (2, 0, 0),
    "questions": (2, 0, 1),
    "answers": (2, 1),
    "answer_demonstrations": (2, 2),
    "shuffle": (2, 4),
}
OF_THE_RUN = {
    "evaluation": (1 << 20, 0),
    "random_demonstrations": (1 << 20, 1),
    "adapter": ((1 << 20) + 1, 0),
    "shuffle_seeds": ((1 << 20) + 1, 1),
}


def drawn(name, step=STEP):
    steps = (jnp.int32(step),) if name in OF_A_STEP else ()
    return getattr(keys, name)(jnp.uint32(SEED), *steps)


@pytest.mark.parametrize("name", OF_A_STEP | OF_THE_RUN)
def test_numbers_are_todays(name):
    """Another number would change every sample, and no other test would say why."""
    expected = jax.random.key(SEED)
    for number in (OF_A_STEP | OF_THE_RUN)[name]:
        expected = jax.random.fold_in(expected, number)
    np.testing.assert_array_equal(jax.random.key_data(drawn(name)), jax.random.key_data(expected))


def test_no_two_streams_coincide():
    """Nor do the keys that are folded from them by the index of a request, or of a matrix."""
    parents = [drawn(name, step) for step in range(4) for name in OF_A_STEP]
    parents += [drawn(name) for name in OF_THE_RUN]
    children = [jax.random.fold_in(parent, i) for parent in parents for i in range(4)]
    data = {tuple(jax.random.key_data(key).tolist()) for key in (*parents, *children)}
    assert len(data) == len(parents) + len(children)
