"""Held-out questions answered, or held-out answers scored, inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax.devices import mesh
from isara_jax.method import keys, prompting, train
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool
from isara_jax.models import lora
from isara_jax.sampler import decode, sampling
from isara_jax.text import packing

# How the seeds that are shown are chosen. Nearest: ICL-kNN. Random: anew for each question. Fixed:
# the first ones with every question, as in URIAL (arXiv 2312.01552).
NEAREST, RANDOM, FIXED = range(3)


class Shown(NamedTuple):
    """Which seeds are shown with N questions; traced, so one executable serves all ways.

    Attributes:
      seeds: a pool of them.
      how: NEAREST, RANDOM or FIXED: int32 scalar.
      number: `[N]` int32, the question of each row: rows of one question are shown the same seeds.
    """

    seeds: Pool
    how: jax.Array
    number: jax.Array

    @classmethod
    def of(cls, seeds: Pool, how: int, number: np.ndarray, where: Mesh) -> "Shown":
        """Of host values, placed beside the seeds."""
        return cls(seeds, *mesh.place((np.int32(how), number.astype(np.int32)), where))


class Questions(NamedTuple):
    """Held-out pairs, and the seeds that are shown with them, None where none is.

    Of prompts without references the answers are empty, and as wide as may be generated.
    """

    pairs: packing.Pairs
    shown: Shown | None = None


def _prompts(p: Program, inputs: Inputs, held_out: Questions, k: int) -> packing.Prompts:
    """Prompts with k seeds, or with none."""
    question, longest = held_out.pairs.question.joined, held_out.pairs.question.bare.ids.shape[1]
    if k:
        answer_tokens = held_out.pairs.answer.bare.ids.shape[1]
        capacity = p.sizes.prompt(k, 0, answer_tokens, longest)
        chosen = _chosen(p, inputs, held_out, k)
        return prompting.answer_prompts(p, held_out.shown.seeds, question, chosen, capacity)[0]
    nothing = packing.no_demonstrations(question.ids.shape[0])
    return packing.prompts(p.template, *nothing, p.template.overhead(0) + longest, question)


def _chosen(p: Program, inputs: Inputs, held_out: Questions, k: int) -> jax.Array:
    """The seeds shown with each question: rows `[N, k]`, the most important first, -1 for none."""
    shown = held_out.shown
    assert shown is not None, "k seeds are to be shown, and nobody says which"
    pool = shown.seeds

    def nearest() -> jax.Array:
        question = held_out.pairs.question.joined
        return prompting.nearest_demonstrations(p, inputs, pool, question, k)[0]

    def random() -> jax.Array:
        key = keys.random_demonstrations(inputs.hyper.seed)
        each = jax.vmap(lambda number: jax.random.fold_in(key, number))(shown.number)
        return jax.vmap(lambda key: prompting.distinct_rows(key, pool.count, k))(each)

    def fixed() -> jax.Array:
        rows = jnp.arange(k, dtype=jnp.int32)
        rows = jnp.where(rows < pool.count, rows, -1)
        return jnp.broadcast_to(rows, (*shown.number.shape, k))

    return jax.lax.switch(shown.how, (nearest, random, fixed))


def answer(
    p: Program,
    inputs: Inputs,
    trainable: lora.Trainable,
    held_out: Questions,
    params: sampling.SamplingParams,
    k: int,
) -> decode.Generation:
    """Answers to the held-out questions with k demonstrations; the same keys for every method.

    Without a counter: JAX 0.10 keeps no program that calls the host for the next start, and these
    answers are the first that are shown.
    """
    max_tokens = p.config.answer.max_tokens
    return decode.generate(
        p.sampler(max_tokens),
        p.variables(inputs.base, trainable),
        _prompts(p, inputs, held_out, k),
        keys.evaluation(inputs.hyper.seed),
        params,
        inputs.answer_stops,
    )


def log_likelihood(
    p: Program,
    inputs: Inputs,
    trainable: lora.Trainable,
    held_out: Questions,
    k: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each held-out answer, in nats, and its number of tokens: `[N]` each.

    The end of the answer is left out: it is EOS after training and the next header in context.
    """
    prompts = _prompts(p, inputs, held_out, k)
    answers = held_out.pairs.answer.bare
    span = answers.ids.shape[1]
    ids, lengths = packing.concatenate(
        [packing.Part(*prompts), answers], prompts.tokens.shape[1] + span
    )
    variables = lora.variables(inputs.base, trainable, p.config.train)

    def score(batch: train.Sequences) -> tuple[jax.Array, jax.Array]:
        losses, inside = train.answer_losses(p.model, variables, batch, span)
        return -jnp.sum(losses * inside, axis=1), jnp.sum(inside, axis=1)

    rows = train.Sequences(ids, lengths, prompts.lengths, jnp.ones_like(lengths, bool))
    return mesh.map_rows(score, rows, p.config.slots, p.mesh)
