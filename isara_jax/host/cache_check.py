"""Whether a cache in 8 bits still lets the model say the same, asked before a run relies on it."""

import jax
import jax.numpy as jnp

from isara_jax.devices import mesh
from isara_jax.method import prompting
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool
from isara_jax.text import packing

WORST_DIVERGENCE = 0.02  # nats a token, mean; full-precision sampling at temperature 1 has 1 to 3


def divergence(p: Program, inputs: Inputs, pool: Pool) -> jax.Array:
    """How far the 8-bit cache moves the next token's distribution, in nats, for each seed: `[N]`.

    KL(full || 8 bits) of an answer's first token, behind prompts as they will be sampled from, for
    the seeds' own questions. What is read is quantised; what is written later from slightly other
    hidden states is not part of it.

    Args:
      p: a program whose model keeps its cache in 8 bits.
      inputs: the base model.
      pool: the seeds.
    """
    seeds = pool.pairs.take(jnp.arange(p.sizes.n_seeds))
    question, c = seeds.question.joined, p.config.answer
    longest = p.config.question.max_tokens
    capacity = p.sizes.prompt(c.k, c.prompt_tokens, c.max_tokens, longest)
    nearest, _ = prompting.nearest_demonstrations(p, inputs, pool, question, c.k)
    prompts, _ = prompting.answer_prompts(p, pool, question, nearest, capacity)
    variables = {"params": inputs.base}

    def one(prompts: packing.Prompts) -> jax.Array:
        ids, last = prompts.tokens, prompts.lengths[:, None] - 1
        hidden, cache = p.model.apply(variables, ids)
        full = jnp.take_along_axis(hidden, last[..., None], axis=1)
        token = jnp.take_along_axis(ids, last, axis=1)
        short, _ = p.model.apply(variables, token, last, cache)
        full, short = (
            jax.nn.log_softmax(p.model.apply(variables, h[:, 0], method="logits"))
            for h in (full, short)
        )
        return jnp.sum(jnp.exp(full) * (full - short), axis=-1)

    return mesh.map_rows(one, prompts, p.config.slots, p.mesh)
