"""Where a run begins: the first state, and fine-tuning on the seeds alone, the baseline."""

import jax
import jax.numpy as jnp

from isara_jax.method import embed, keys, prompting, train
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool, State
from isara_jax.models import lora
from isara_jax.text import packing


def fresh_trainable(p: Program, inputs: Inputs) -> lora.Trainable:
    """Where training starts: a copy of the weights, a given adapter, or one without effect."""
    if p.config.train.trainable == "full":
        return jax.tree.map(lambda x: x.astype(jnp.float32), inputs.base)
    if inputs.initial is not None:
        return inputs.initial
    return lora.init(p.model.config, p.config.train.lora, keys.adapter(inputs.hyper.seed))


def initial_state(p: Program, inputs: Inputs, seeds: packing.Pairs) -> State:
    """The state before the first iteration: a fresh trainable, a pool of these seeds."""
    rows = p.sizes.pool
    raw = prompting.embed_questions(p, inputs.base, seeds.question.joined)
    mean = jnp.mean(raw, axis=0)

    def empty(x: jax.Array) -> jax.Array:
        return jnp.zeros((rows, *x.shape[1:]), x.dtype)

    pool = Pool(
        pairs=jax.tree.map(empty, seeds),
        embedding=jnp.zeros((rows, raw.shape[1]), jnp.float32),
        origin=jnp.zeros(rows, jnp.int32),
        count=jnp.int32(0),
        mean=mean,
    )
    everything = jnp.ones(raw.shape[0], bool)
    pool = pool.append(seeds, embed.centre(raw, mean), everything, jnp.int32(0))
    trainable = fresh_trainable(p, inputs)
    return State(trainable, pool, jnp.int32(0))


def fine_tune_on_seeds(
    p: Program, inputs: Inputs, start: State, n: jax.Array, steps: jax.Array
) -> train.Fit:
    """The SFT baseline: the same optimiser, on the seeds alone.

    It tells the host nothing of its steps, so that JAX 0.10 can keep it for the next start.

    Args:
      p: the program.
      inputs: weights and hyper-parameters.
      start: the state before the first iteration.
      n: how many seeds, the first ones, are trained on: int32 scalar.
      steps: of the optimiser: int32 scalar.
    """
    pool = start.pool
    trained_on = pool.occupied & (jnp.arange(pool.capacity) < n)
    ids, lengths, begin = packing.training_sequences(p.template, pool.pairs, p.sizes.sequence)
    return train.fit(
        p.trained, inputs.base, start.trainable,
        train.Sequences(ids, lengths, begin, trained_on), p.config.train, inputs.hyper.train,
        steps, keys.shuffle_seeds(inputs.hyper.seed),
        p.sizes.answer, p.training.rows, p.mesh,
    )  # fmt: skip
