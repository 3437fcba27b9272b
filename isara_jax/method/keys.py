"""Every stream of random numbers of a run, in one place, numbered as it always was.

    key(seed)
     ├─ step: 0, 1, ... of an iteration; EVALUATION for what is measured
     │   ├─ 0  questions
     │   │   ├─ 0  the demonstrations of each request
     │   │   └─ 1  their texts: a request, then a position (`sampling.row_keys`)
     │   ├─ 1  answers: a request, then a position; those to held-out questions at number 0
     │   └─ 4  the order of each pass over the data (`train.fit`)
     └─ index of a matrix: a fresh adapter's (`lora.init`)

Two coincide: a fresh adapter's matrix i is drawn with the key that iteration i's streams come from,
and the SFT baseline shuffles as the first iteration does. Both are kept until figures are measured
anew: nothing that is drawn from the one is drawn from the other in the same way.
"""

import jax
import jax.numpy as jnp

EVALUATION = 1 << 20  # a step that no iteration reaches
_QUESTIONS, _ANSWERS, _SHUFFLE = 0, 1, 4


def _stream(seed: jax.Array, step: jax.Array, stage: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stage)


def demonstrations(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Of the pairs shown to each request for a question."""
    return jax.random.fold_in(_stream(seed, step, _QUESTIONS), 0)


def questions(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Of an iteration's questions."""
    return jax.random.fold_in(_stream(seed, step, _QUESTIONS), 1)


def answers(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Of an iteration's answers."""
    return _stream(seed, step, _ANSWERS)


def shuffle(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Of the order of training data."""
    return _stream(seed, step, _SHUFFLE)


def evaluation(seed: jax.Array) -> jax.Array:
    """Of answers to held-out questions, the same for every method."""
    return _stream(seed, jnp.int32(EVALUATION), 0)


def adapter(seed: jax.Array) -> jax.Array:
    """Of a fresh adapter."""
    return jax.random.key(seed)
