"""Numerical trouble in a fine-tuning: updates that are held back, and what becomes of the whole.

An update is held back, with the optimiser's moments, where the batch's loss or the norm of its
gradient is not finite: as optax's `apply_if_finite` does, for as long as it lasts. A large gradient
that is finite is no trouble: it is clipped (`train.clip_norm`), and Adam divides by its size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

KEPT = 8  # batches of which the host is told


class Trouble(NamedTuple):
    """What was held back.

    Attributes:
      count: updates: int32 scalar.
      step: `[K]` int32, the first of them, from 0; -1 for none.
      rows: `[K, B]` int32, the sequences of their batches; -1 for none.
      loss, norm: `[K]` f32, of the batch and of its gradient.
      dropped: bool scalar: the training came to nothing, the model is as it was before it.
    """

    count: jax.Array
    step: jax.Array
    rows: jax.Array
    loss: jax.Array
    norm: jax.Array
    dropped: jax.Array

    @classmethod
    def none(cls, batch: int) -> "Trouble":
        """Before the first update, of batches of so many sequences."""
        nowhere = jnp.full(KEPT, -1, jnp.int32)
        zeros = jnp.zeros(KEPT, jnp.float32)
        rows = jnp.full((KEPT, batch), -1, jnp.int32)
        return cls(jnp.int32(0), nowhere, rows, zeros, zeros, jnp.bool_(False))

    def noted(
        self, good: jax.Array, step: jax.Array, rows: jax.Array, loss: jax.Array, norm: jax.Array
    ) -> "Trouble":
        """With this update, unless it was `good`."""
        at = jnp.where(good, KEPT, self.count)  # out of range: dropped

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[at].set(new, mode="drop")

        return self._replace(
            count=self.count + ~good,
            step=put(self.step, step),
            rows=put(self.rows, rows),
            loss=put(self.loss, loss),
            norm=put(self.norm, norm),
        )


def keep(good: jax.Array, new: Any, old: Any) -> Any:
    """The new tree where an update is good, the old one where it is not."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite: bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def diverged(before: jax.Array, after: jax.Array, vocabulary: int) -> jax.Array:
    """Whether a training has ended in a worse model than it began with: bool scalar.

    Updates that are finite, but too large, end so. The loss has gone more than half of the way to
    ln V, which is that of a model that knows nothing; at least one nat, so that the chance of the
    last batches decides nothing. Or it is no number.

    Args:
      before: loss of the first batch that has one, which no update has come before, in nats a
        token.
      after: mean loss over the last tenth of the steps.
      vocabulary: V, tokens.
    """
    way = jnp.log(jnp.float32(vocabulary)) - before
    return ~(after <= before + jnp.maximum(way / 2, 1.0))
