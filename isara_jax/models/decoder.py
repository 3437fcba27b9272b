"""The decoder stack and its heads, of every family.

Collections: `params` (base weights), `lora` (adapter, may be absent).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax.devices import mesh as mesh_lib
from isara_jax.models import attention, layers
from isara_jax.models.block import Block
from isara_jax.models.network import DecoderConfig

# A table of positions begins with two rows that right-padded text never reads (HF's OPT).
POSITION_OFFSET = 2

Cache = tuple[attention.LayerCache, ...]


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head.

    Attributes:
      config: the network.
      dtype: of weights and activations.
      remat: for a gradient blocks are computed again, and only what passes between them is kept.
      how: attention is computed.
      mesh: the devices, if several. Many tokens stay where their sequences are, and weights split
        over `fsdp` are gathered for them. One token a sequence is less than the weights: in a
        decoding step these stay where they are, and what they make of their share of D is added up.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    remat: bool = False
    how: attention.Settings = attention.Settings()
    mesh: Mesh | None = None

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(
            c.vocab_size, c.embedding_width, param_dtype=self.dtype, dtype=self.dtype
        )
        if c.learned_positions:
            self.positions = nn.Embed(
                c.max_length + POSITION_OFFSET, c.width, param_dtype=self.dtype, dtype=self.dtype
            )
        if c.narrow_width:
            self.project_in = layers.Linear(c.width)
            self.project_out = layers.Linear(c.narrow_width)
        block = nn.remat(Block) if self.remat else Block
        self.layers = [block(c, c.kind(i), self.how) for i in range(c.n_layers)]
        if c.final_norm:
            self.norm = layers.norm(c.norm)
        if c.n_labels:
            self.score = layers.Linear(c.n_labels, c.label_bias, wide=True)
        elif not c.tied:
            self.head = layers.Linear(c.vocab_size, wide=True)

    def begin(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """What the first block reads, `[B, T, D]`."""
        c = self.config
        # HF rounds Gemma's factor to the weights' type.
        factor = float(np.asarray(c.embedding_scale, self.dtype))
        x = layers.scaled(self.look_up(self.embed, tokens), factor)
        x = self.project_in(x) if c.narrow_width else x
        if c.learned_positions:
            x += self.look_up(self.positions, positions + POSITION_OFFSET, axis=None)
        return x

    def end(self, x: jax.Array) -> jax.Array:
        """What the heads read, `[B, T, E]`, of the last block's output `[B, T, D]`."""
        x = self.norm(x) if self.config.final_norm else x
        return self.project_out(x) if self.config.narrow_width else x

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        n_layers: int | None = None,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Hidden states of `tokens`.

        Args:
          tokens: `[B, T]`; right-padded without a cache, T = 1 with one.
          positions: `[B, T]`, default 0..T-1.
          cache: the layers' caches, or None for a chunk that starts its sequences.
          n_layers: stop after this many blocks, without the final norm (for embeddings).
          segments: `[P, C]`, where `tokens` are P streams of sequences cut into rows: numbers of
            the sequences, none of them longer than a row; else None.

        Returns:
          hidden `[B, T, E]` (with `n_layers` `[B, T, D]`), and the caches: with `cache`, that
          updated; without, the chunk's own, of T rows.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x, updated = self._spread(self.begin(tokens, positions)), []
        for index, block in enumerate(self.layers[:n_layers]):
            past = None if cache is None else cache[index]
            x, layer_cache = block(x, positions, past, segments)
            x = self._spread(x)
            updated.append(layer_cache)
        return (self.end(x) if n_layers is None else x), tuple(updated)

    def _spread(self, x: jax.Array) -> jax.Array:
        """What passes between blocks, `[B, T, D]`, where `mesh` says."""
        spec = (mesh_lib.BATCH, None, None) if x.shape[1] > 1 else ("data", None, "fsdp")
        return mesh_lib.constrain(x, self.mesh, *spec)

    def look_up(self, table: nn.Embed, rows: jax.Array, axis: str | None = "model") -> jax.Array:
        """Rows `[B, T]` of a table, `[B, T, D]`; `axis` of the mesh has the table's rows."""
        spec = (axis, None) if rows.shape[1] > 1 else (axis, "fsdp")
        return jnp.take(mesh_lib.constrain(table.embedding, self.mesh, *spec), rows, axis=0)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits `[..., V]` in f32 of hidden states `[..., E]`."""
        c = self.config
        if c.tied:
            embedding = self.embed.embedding
            logits = jnp.matmul(hidden, embedding.T, preferred_element_type=jnp.float32)
        else:
            logits = self.head(hidden)
        return layers.capped(layers.scaled(logits, 1 / c.logit_divisor), c.logit_cap)

    def scores(self, hidden: jax.Array) -> jax.Array:
        """A judge's outputs `[..., n_labels]` in f32 of hidden states `[..., E]`."""
        return self.score(hidden)

    def everything(self, tokens: jax.Array) -> jax.Array:
        """Logits `[B, T, V]`, or a judge's scores `[B, T, n_labels]`, of whole sequences.

        Touches every parameter, so it initialises.
        """
        hidden = self(tokens)[0]
        return self.scores(hidden) if self.config.n_labels else self.logits(hidden)
