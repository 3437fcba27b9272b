"""Which samples are kept, and why not: finished, long enough, new, and plausible."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isara_jax.method import retrieval
from isara_jax.sampler import spelling
from isara_jax.text import packing, stops

REASONS = (
    "accepted",
    "question_unfinished",
    "question_unspellable",
    "question_short",
    "question_duplicate",
    "answer_unfinished",
    "answer_unspellable",
    "answer_short",
    "answer_improbable",
)
NEIGHBOURS = 8  # of the pool and of the batch, to which a question is compared


class FilterParams(NamedTuple):
    """`config.Filters` as traced scalars."""

    finished: jax.Array
    min_tokens: jax.Array
    rouge_l: jax.Array
    min_score: jax.Array


def longest_common_subsequence(
    a: jax.Array, a_length: jax.Array, b: jax.Array, b_length: jax.Array
) -> jax.Array:
    """Lengths `[N]` of the longest common subsequences of rows `a [N, L]` and `b [N, L]`.

    The usual recurrence, a row at a time: within a row, the maximum over what stands to the left
    is a running maximum.
    """
    columns = jnp.arange(b.shape[1])
    b_valid = columns < b_length[:, None]

    def row(previous: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, token = step
        match = (b == token[:, None]) & b_valid & (index < a_length)[:, None]
        diagonal = jnp.pad(previous, ((0, 0), (1, 0)))[:, :-1]
        here = jnp.maximum(previous, diagonal + match)
        return jax.lax.cummax(here, axis=1), None

    start = jnp.zeros(b.shape, jnp.int32)
    last, _ = jax.lax.scan(row, start, (jnp.arange(a.shape[1]), a.T))
    return last[:, -1]


def rouge_l(a: packing.Part, b: packing.Part) -> jax.Array:
    """ROUGE-L F1 `[N]` (Lin 2004) of token rows: the harmonic mean of LCS / |a| and LCS / |b|."""
    common = longest_common_subsequence(*a, *b)
    return 2 * common / jnp.maximum(a[1] + b[1], 1)


def similarity_to_pool(
    question: packing.Part,
    embedding: jax.Array,
    pool_question: packing.Part,
    pool_embedding: jax.Array,
    pool_count: jax.Array,
) -> jax.Array:
    """The highest ROUGE-L `[N]` of each question to the nearest few of the pool."""
    rows, _ = retrieval.search_on_device(pool_embedding, pool_count, embedding, NEIGHBOURS)

    def against(column: jax.Array) -> jax.Array:
        other = jnp.maximum(column, 0)
        score = rouge_l(question, (pool_question[0][other], pool_question[1][other]))
        return jnp.where(column >= 0, score, 0.0)

    return jnp.max(jax.lax.map(against, rows.T), axis=0)


def similarity_within_batch(
    question: packing.Part, embedding: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """ROUGE-L to the nearest earlier questions of the batch.

    Returns:
      rows `[N, M]` of earlier questions (-1 for none) and the scores `[N, M]`.
    """
    n = embedding.shape[0]
    scores = jnp.matmul(embedding, embedding.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(jnp.tri(n, k=-1, dtype=bool), scores, -jnp.inf)
    best, rows = jax.lax.top_k(scores, min(NEIGHBOURS, n))
    rows = jnp.where(jnp.isfinite(best), rows, -1)

    def against(column: jax.Array) -> jax.Array:
        other = jnp.maximum(column, 0)
        return rouge_l(question, (question[0][other], question[1][other]))

    return rows, jax.lax.map(against, rows.T).T


def decide(
    question: spelling.Written,
    answer: spelling.Written,
    known: jax.Array,
    earlier: tuple[jax.Array, jax.Array],
    params: FilterParams,
) -> jax.Array:
    """The reason of each sample, an index of `REASONS`.

    A question is a duplicate where its ROUGE-L to the nearest few questions of the pool, or of the
    samples accepted before it in this batch, reaches the threshold. Self-Instruct (arXiv
    2212.10560) compares words with everything there is; here tokens are compared with the
    `NEIGHBOURS` nearest by embedding, in the order of the requests.

    Args:
      question: N of them.
      answer: their answers.
      known: `[N]` from `similarity_to_pool`.
      earlier: rows and scores from `similarity_within_batch`.
      params: the thresholds.

    Returns:
      `[N]` int32.
    """

    def cut(finish: jax.Array) -> jax.Array:
        """Out of room, or ended by the other header (AT_STOP + 1): the template is broken.

        A question may end at EOS too: fine-tuned models end any text so.
        """
        return (params.finished & (finish == stops.UNFINISHED)) | (finish > stops.AT_STOP)

    shortest = jnp.maximum(params.min_tokens, 1)  # an empty text shows nothing
    verdict = jnp.select(
        [
            cut(question.drawn.finish),
            ~question.spelled,
            question.text.bare.lengths < shortest,
            known >= params.rouge_l,
            cut(answer.drawn.finish),
            ~answer.spelled,
            answer.text.bare.lengths < shortest,
            answer.drawn.score < params.min_score,
        ],
        [jnp.int32(i) for i in range(1, len(REASONS))],
        jnp.int32(0),
    )
    rows, scores = earlier
    similar = (scores >= params.rouge_l) & (rows >= 0)

    def in_order(accepted: jax.Array, step: tuple) -> tuple[jax.Array, jax.Array]:
        index, reason, others, alike = step
        repeated = jnp.any(alike & accepted[jnp.maximum(others, 0)])
        reason = jnp.where((reason == 0) & repeated, REASONS.index("question_duplicate"), reason)
        return accepted.at[index].set(reason == 0), reason

    n = verdict.shape[0]
    _, reasons = jax.lax.scan(in_order, jnp.zeros(n, bool), (jnp.arange(n), verdict, rows, similar))
    return reasons
