"""What the families share: the decoder stack, its heads, and the rows of a weight table.

Collections: `params` (base weights), `lora` (adapter, may be absent).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from isara_jax.devices import mesh as mesh_lib
from isara_jax.models import attention, layers
from isara_jax.models.block import Block
from isara_jax.models.rope import Rope

Cache = tuple[attention.LayerCache, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The fields every family has.

    Attributes:
      vocab_size: V, rows of the embedding.
      width: D, of the residual stream.
      hidden: F, of the MLPs.
      n_layers: blocks.
      n_heads, n_kv_heads, head_size: H, K and h of the attention.
      max_length: positions.
      activation: of the MLPs, a name of `layers.ACTIVATIONS`.
      tied: the language-model head is the embedding.
      attention_bias, mlp_bias: linear layers of the attention, of the MLPs, have a bias.
      pre_norm: norms stand before attention and MLP, not after.
      rope: how queries and keys are turned; None where they are not.
      n_labels: outputs of a judging head, which then stands in place of the language-model head; 0
        for a language model.
      label_bias: the judging head has a bias.
    """

    vocab_size: int
    width: int
    hidden: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    max_length: int
    activation: str
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    pre_norm: bool = True
    rope: Rope | None = None
    n_labels: int = 0
    label_bias: bool = False

    @property
    def embedding_width(self) -> int:
        """E, of token embeddings and of what the heads read."""
        return self.width

    def norm(self, name: str | None = None) -> nn.Module:
        """A norm of a block, or the last one; only within `setup` or a compact call."""
        raise NotImplementedError

    def mlp(self, name: str) -> nn.Module:
        """The MLP of a block; only within a compact call."""
        raise NotImplementedError

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block, by its path in the block."""
        attention, keys = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        return {
            "attention/q": (self.width, attention),
            "attention/k": (self.width, keys),
            "attention/v": (self.width, keys),
            "attention/o": (attention, self.width),
            "mlp/up": (self.width, self.hidden),
            "mlp/down": (self.hidden, self.width),
        }


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head; a family adds what stands between.

    Attributes:
      config: the network.
      dtype: of weights and activations.
      remat: for a gradient blocks are computed again, and only what passes between them is kept.
      how: attention is computed.
      mesh: the devices, if several. Many tokens stay where their sequences are, and weights split
        over `fsdp` are gathered for them. One token a sequence is less than the weights: in a
        decoding step these stay where they are, and what they make of their share of D is added up.
    """

    config: Any
    dtype: Any = jnp.float32
    remat: bool = False
    how: attention.Settings = attention.Settings()
    mesh: Mesh | None = None

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(
            c.vocab_size, c.embedding_width, param_dtype=self.dtype, dtype=self.dtype
        )
        kind = nn.remat(Block) if self.remat else Block
        self.layers = [kind(c, self.how) for _ in range(c.n_layers)]
        if c.n_labels:
            self.score = layers.Linear(c.n_labels, c.label_bias, wide=True)
        elif not c.tied:
            self.head = layers.Linear(c.vocab_size, wide=True)

    def begin(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """What the first block reads, `[B, T, D]`."""
        del positions
        return self.look_up(self.embed, tokens)

    def end(self, x: jax.Array) -> jax.Array:
        """What the heads read, `[B, T, E]`, of the last block's output `[B, T, D]`."""
        raise NotImplementedError

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
        if not self.config.tied:
            return self.head(hidden)
        embedding = self.embed.embedding
        return jnp.matmul(hidden, embedding.T, preferred_element_type=jnp.float32)

    def scores(self, hidden: jax.Array) -> jax.Array:
        """A judge's outputs `[..., n_labels]` in f32 of hidden states `[..., E]`."""
        return self.score(hidden)

    def everything(self, tokens: jax.Array) -> jax.Array:
        """Logits `[B, T, V]`, or a judge's scores `[B, T, n_labels]`, of whole sequences.

        Touches every parameter, so it initialises.
        """
        hidden = self(tokens)[0]
        return self.scores(hidden) if self.config.n_labels else self.logits(hidden)


def sizes(hidden: str) -> dict[str, str]:
    """Sizes by HF's names and by ours; `hidden` is what HF calls that of the MLPs."""
    return {
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        hidden: "hidden",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_length",
    }


class Row(NamedTuple):
    """One kind of tensor: its Hugging Face name, our path, whether HF stores it transposed.

    `{i}` stands for the layer's index. `spec` shards our layout over the mesh.
    """

    theirs: str
    ours: str
    transposed: bool
    spec: P


IN, OUT = P("fsdp", "model"), P("model", "fsdp")


def linear(theirs: str, ours: str, spec: P = IN) -> tuple[Row, Row]:
    """A linear layer: HF keeps `[out, in]`, we keep `[in, out]`; the bias follows the outputs."""
    return (
        Row(f"{theirs}.weight", f"{ours}/kernel", True, spec),
        Row(f"{theirs}.bias", f"{ours}/bias", False, P(spec[1])),
    )


def attention_rows(theirs: str, out: str) -> tuple[Row, ...]:
    """The projections of a block's attention; HF names the last one in different ways."""
    names = (("q_proj", "q", IN), ("k_proj", "k", IN), ("v_proj", "v", IN), (out, "o", OUT))
    return tuple(
        row
        for hf, ours, spec in names
        for row in linear(f"{theirs}.{hf}", f"layers_{{i}}/attention/{ours}", spec)
    )


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """A norm, on every device whole."""
    return (
        Row(f"{theirs}.weight", f"{ours}/scale", False, P()),
        Row(f"{theirs}.bias", f"{ours}/bias", False, P()),
    )


def heads(embedding: str) -> tuple[Row, ...]:
    """Token embedding (`embedding` is its HF module) and heads; a judge's few labels stay whole."""
    return (
        Row(f"{embedding}.weight", "embed/embedding", False, P("model", "fsdp")),
        Row("lm_head.weight", "head/kernel", True, IN),
        *linear("score", "score", P("fsdp", None)),
    )
