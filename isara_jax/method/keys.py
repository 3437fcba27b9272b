"""Every stream of random numbers that a run draws on the devices; no two are the same.

    key(seed)
     ├─ step 0, 1, ...: an iteration
     │   ├─ 0  questions
     │   │   ├─ 0  the demonstrations of each request
     │   │   └─ 1  their texts: a request, then a position (`sampling.row_keys`)
     │   ├─ 1  answers: a request, then a position
     │   ├─ 2  the demonstrations of each answer, where they are drawn (`config.answer`)
     │   └─ 4  the order of each pass over the data (`train.fit`)
     ├─ step EVALUATION
     │   ├─ 0  answers to held-out questions: a request, then a position
     │   └─ 1  the demonstrations of the ICL-random baseline: a question
     └─ step START
         ├─ 0  a fresh adapter (`lora.init`): the index of a matrix
         └─ 1  the order of each pass of the SFT baseline

The host draws with `random.Random`: seeds and held-out items (`tasks`), prompts
(`evaluate.prompts`).
"""

import jax
import jax.numpy as jnp

# Steps that no iteration reaches.
EVALUATION = 1 << 20
START = EVALUATION + 1
_QUESTIONS, _ANSWERS, _SHOWN, _SHUFFLE = 0, 1, 2, 4


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


def answer_demonstrations(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Of the pairs shown to each request for an answer, where they are not the nearest."""
    return _stream(seed, step, _SHOWN)


def shuffle(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Of the order of training data."""
    return _stream(seed, step, _SHUFFLE)


def evaluation(seed: jax.Array) -> jax.Array:
    """Of answers to held-out questions, the same for every method."""
    return _stream(seed, jnp.int32(EVALUATION), 0)


def random_demonstrations(seed: jax.Array) -> jax.Array:
    """Of the pairs that ICL-random shows with each held-out question."""
    return _stream(seed, jnp.int32(EVALUATION), 1)


def adapter(seed: jax.Array) -> jax.Array:
    """Of a fresh adapter."""
    return _stream(seed, jnp.int32(START), 0)


def shuffle_seeds(seed: jax.Array) -> jax.Array:
    """Of the order in which the SFT baseline reads the seeds."""
    return _stream(seed, jnp.int32(START), 1)
