"""A network as numbers: what every family has, and what its blocks are made of."""

import dataclasses

import flax.linen as nn

from isara_jax.models.rope import Rope


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


def size_names(hidden: str) -> dict[str, str]:
    """Sizes by HF's names and by ours; `hidden` is what HF calls that of the MLPs."""
    return {
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        hidden: "hidden",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_length",
    }
