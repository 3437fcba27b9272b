"""Prompts of the two stages: which demonstrations, and how they are packed."""

import jax
import jax.numpy as jnp

from isara_jax.method import embed, keys, retrieval
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool, State
from isara_jax.sampler import decode, sampling
from isara_jax.text import packing, stops


def distinct_rows(key: jax.Array, n: jax.Array, k: int) -> jax.Array:
    """K distinct rows below n, uniformly and in random order; -1 where n is smaller than k.

    Draws the j-th among the n - j rows left and moves it past those taken: no work a row.
    """
    taken = jnp.full(k, jnp.iinfo(jnp.int32).max, jnp.int32)
    rows = []
    for j, u in enumerate(jax.random.uniform(key, (k,))):
        row = jnp.minimum((u * (n - j)).astype(jnp.int32), n - j - 1)
        for i in range(j):
            row += row >= taken[i]
        taken = jnp.sort(taken.at[j].set(row))
        rows.append(jnp.where(j < n, row, -1))
    return jnp.stack(rows)


def _random_rows(key: jax.Array, requests: int, n: jax.Array, k: int) -> jax.Array:
    """For each request k distinct rows below n: `[requests, k]`, -1 where there are fewer."""
    numbers = jnp.arange(requests)
    each = sampling.row_keys(key, numbers, jnp.zeros_like(numbers))
    return jax.vmap(lambda key: distinct_rows(key, n, k))(each)


def _available(inputs: Inputs, pool: Pool) -> jax.Array:
    """How many rows of the pool may be shown; seeds stand first."""
    return jnp.where(inputs.hyper.only_seeds, pool.n_seeds, pool.count)


def demonstrations(p: Program, pairs: packing.Pairs) -> packing.Part:
    r"""Each pair as ` q\nAnswer: a\n\nQuestion:`, the first header left to the prompt: `[C, D]`."""
    return packing.concatenate([pairs.question.joined, pairs.answer.joined], p.sizes.pair)


def questions_alone(p: Program, pairs: packing.Pairs) -> packing.Part:
    r"""Each question as ` q\n\nQuestion:`."""
    bare = pairs.question.bare
    unfinished = jnp.full_like(bare.lengths, stops.UNFINISHED)
    as_drawn = decode.Generation(*bare, unfinished, score=None, drawn=None)
    return p.settled(p.template.form.alone, (), as_drawn).text.joined


def question_prompts(p: Program, inputs: Inputs, state: State) -> packing.Prompts:
    """Prompts of demonstrations alone, drawn anew for every question."""
    c, pool = p.config.question, state.pool
    key = keys.demonstrations(inputs.hyper.seed, state.step)
    available = _available(inputs, pool)
    n_drawn = c.k if c.demonstrations == "random" else 1
    chosen = _random_rows(key, p.config.samples_per_iteration, available, n_drawn)
    if c.demonstrations == "knn":
        anchors = pool.embedding[chosen[:, 0]]
        chosen = retrieval.nearest(
            p.config.retrieval.backend, p.mesh, pool.embedding, available, anchors, c.k
        )[:, ::-1]
    demos = demonstrations(p, pool.pairs) if c.show_answers else questions_alone(p, pool.pairs)
    capacity = p.sizes.prompt(c.k, c.prompt_tokens, c.max_tokens, question=0)
    return packing.prompts(p.template, demos, chosen, capacity)


def embed_questions(p: Program, base: dict, question: packing.Part) -> jax.Array:
    """Embeddings `[N, D]` of questions, up to the answer's header, by the base model."""
    return embed.questions(
        p.model, base, p.template, question,
        layer=p.config.retrieval.layer, rows_at_once=p.config.slots, mesh=p.mesh,
    )  # fmt: skip


def nearest_demonstrations(
    p: Program, inputs: Inputs, pool: Pool, question: packing.Part, k: int
) -> tuple[jax.Array, jax.Array]:
    """Rows `[N, k]` of the demonstrations nearest to each question, -1 for none; the embeddings."""
    embedding = embed.centre(embed_questions(p, inputs.base, question), pool.mean)
    available, backend = _available(inputs, pool), p.config.retrieval.backend
    return retrieval.nearest(backend, p.mesh, pool.embedding, available, embedding, k), embedding


def answer_demonstrations(
    p: Program, inputs: Inputs, state: State, question: packing.Part
) -> tuple[jax.Array, jax.Array]:
    """Rows `[N, k]` of the demonstrations of each answer, -1 for none; the embeddings."""
    c, pool = p.config.answer, state.pool
    if c.demonstrations == "knn":
        return nearest_demonstrations(p, inputs, pool, question, c.k)
    key = keys.answer_demonstrations(inputs.hyper.seed, state.step)
    embedding = embed.centre(embed_questions(p, inputs.base, question), pool.mean)
    return _random_rows(key, len(embedding), _available(inputs, pool), c.k), embedding


def answer_prompts(
    p: Program, pool: Pool, question: packing.Part, chosen: jax.Array, capacity: int
) -> tuple[packing.Prompts, jax.Array]:
    """Prompts for answers; with the rows shown, in their order.

    Args:
      p: the program.
      pool: the demonstrations.
      question: N of them.
      chosen: `[N, k]` rows, the most important (nearest) first, -1 for none.
      capacity: tokens of a prompt; what does not fit is dropped, the least important first.
    """
    demos = demonstrations(p, pool.pairs)
    # Nearest last, so that what does not fit is dropped farthest first, in either order.
    chosen = packing.that_fit(p.template, demos, chosen[:, ::-1], capacity, question)
    if p.config.answer.order == "nearest_first":
        chosen = chosen[:, ::-1]
    return packing.prompts(p.template, demos, chosen, capacity, question), chosen
