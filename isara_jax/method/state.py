"""What a run carries from one iteration to the next, and what an iteration reports."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isara_jax.method import trouble
from isara_jax.models import lora
from isara_jax.sampler import decode
from isara_jax.text import packing


class Pool(NamedTuple):
    """Seeds first, then what was accepted, in order; fixed capacity C.

    Attributes:
      pairs: `[C, ...]` token rows.
      embedding: `[C, D]` f32 unit vectors, centred by `mean`; zero in free rows.
      origin: `[C]` int32: 0 for a seed, else the iteration that made the row.
      count: int32 scalar, rows in use.
      mean: `[D]` the seeds' mean embedding, fixed at the start so that old and new vectors stay
        comparable.
    """

    pairs: packing.Pairs
    embedding: jax.Array
    origin: jax.Array
    count: jax.Array
    mean: jax.Array

    @property
    def capacity(self) -> int:
        return self.origin.shape[0]

    @property
    def occupied(self) -> jax.Array:
        """`[C]` bool."""
        return jnp.arange(self.capacity) < self.count

    @property
    def n_seeds(self) -> jax.Array:
        """Rows that are seeds: int32 scalar."""
        return jnp.sum(self.occupied & (self.origin == 0), dtype=jnp.int32)

    def append(
        self, pairs: packing.Pairs, embedding: jax.Array, accepted: jax.Array, origin: jax.Array
    ) -> "Pool":
        """Adds the rows of `pairs [N, ...]` where `accepted [N]`, in their order."""
        target = jnp.where(accepted, self.count + jnp.cumsum(accepted) - 1, self.capacity)

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[target].set(new, mode="drop")

        return self._replace(
            pairs=jax.tree.map(put, self.pairs, pairs),
            embedding=put(self.embedding, embedding),
            origin=put(self.origin, jnp.broadcast_to(origin, target.shape)),
            count=self.count + jnp.sum(accepted, dtype=jnp.int32),
        )


class State(NamedTuple):
    """All that an iteration changes, and all that a checkpoint holds.

    The optimiser starts anew in each iteration, so its state is not carried.

    Attributes:
      trainable: the adapter, or all weights in full fine-tuning.
      pool: the demonstrations.
      step: int32 scalar, iterations completed.
    """

    trainable: lora.Trainable
    pool: Pool
    step: jax.Array


class Report(NamedTuple):
    """What an iteration tells the host.

    Attributes:
      question: N generated questions.
      answer: their answers.
      demonstrations: `[N, k]` pool rows shown for each answer, most important last, -1 for none.
      reason: `[N]` index of `accept.REASONS`.
      prompt_tokens: int32 scalar, tokens of all prompts.
      train_steps, train_first_loss, train_last_loss, train_tokens: of the fine-tuning.
      trouble: updates of it that were held back; its rows are the pool's.
    """

    question: decode.Generation
    answer: decode.Generation
    demonstrations: jax.Array
    reason: jax.Array
    prompt_tokens: jax.Array
    train_steps: jax.Array
    train_first_loss: jax.Array
    train_last_loss: jax.Array
    train_tokens: jax.Array
    trouble: trouble.Trouble
