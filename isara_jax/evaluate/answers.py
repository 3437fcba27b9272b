"""Held-out questions answered, or held-out answers scored, inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isara_jax.devices import mesh
from isara_jax.method import keys, prompting, train
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool
from isara_jax.models import lora
from isara_jax.sampler import decode, sampling
from isara_jax.text import packing


class Questions(NamedTuple):
    """Held-out pairs, and a pool of the seeds, which may be shown with them.

    Of prompts without references the answers are empty, and as wide as may be generated.
    """

    pairs: packing.Pairs
    seeds: Pool


def _prompts(p: Program, inputs: Inputs, held_out: Questions, k: int) -> packing.Prompts:
    """Prompts with the k nearest seeds, or with none."""
    question, longest = held_out.pairs.question.joined, held_out.pairs.question.bare.ids.shape[1]
    if k:
        answer_tokens = held_out.pairs.answer.bare.ids.shape[1]
        capacity = p.sizes.prompt(k, 0, answer_tokens, longest)
        return prompting.answer_prompts(p, inputs.base, held_out.seeds, question, k, capacity)[0]
    nothing = packing.no_demonstrations(question.ids.shape[0])
    return packing.prompts(p.template, *nothing, p.template.overhead(0) + longest, question)


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
