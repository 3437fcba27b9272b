"""A network as numbers and choices: all that a family's `config.json` can say of it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from isara_jax.models.rope import Rope

# Layers that some checkpoints keep as one matrix: its name, and the parts of its outputs in order.
FUSED = {"attention/qkv": ("q", "k", "v"), "mlp/gate_up": ("gate", "up")}


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm of the network.

    Attributes:
      kind: `rms`, or `layer` (with bias).
      eps: added to the mean square.
      weight: how the weight w joins the normed x, which is f32: `rounded`, w times x rounded to the
        activations' type (LLaMA); `wide`, w x in f32, rounded after (OLMo); `one_plus`, (1 + w) x
        in f32 (Gemma); `none`.
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    weight: Literal["rounded", "wide", "one_plus", "none"] = "rounded"


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of one network.

    Attributes:
      rope: how queries and keys are turned; None where they are not.
      window: positions that a token sees, its own among them; 0 for all.
    """

    rope: Rope | None = None
    window: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder stack.

    Attributes:
      family: `model_type` of its `config.json`.
      vocab_size: V, rows of the embedding.
      width: D, of the residual stream.
      hidden: F, of the MLPs.
      n_layers: blocks.
      n_heads, n_kv_heads, head_size: H, K and h of the attention.
      max_length: positions.
      activation: of the MLPs, a name of `layers.ACTIVATIONS`.
      gated: MLPs have a gate.
      norm: every norm of the residual stream.
      norm_place: of a block's norms: `before` attention and MLP; `after` the sum (OPT-350m);
        `behind` attention and MLP, before the sum (OLMo 2); `both` before and behind (Gemma 2).
      final_norm: there is one after the last block.
      qk_norm: queries and keys are normed too: `head` by head, or `flat`, all heads as one vector.
      kinds: of the layers in turn, over and over again.
      qkv_bias, o_bias, mlp_bias: of the linear layers.
      fused: checkpoint and adapters have the layers of `FUSED` as one.
      attention_scale: of the scores; 0 for 1 / sqrt(h).
      score_cap, logit_cap: c of the soft cap c tanh(x / c); 0 for none.
      embedding_scale, residual_scale: factors of token embeddings, and of what attention and MLP
        add.
      logit_divisor: of the logits.
      tied: the language-model head is the embedding.
      learned_positions: there is a table of positions, which is added to the embedding.
      narrow_width: E where token embeddings are projected to D and back; 0 where E is D.
      n_labels: outputs of a judging head, which then stands in place of the language-model head; 0
        for a language model.
      label_bias: the judging head has a bias.
    """

    family: str
    vocab_size: int
    width: int
    hidden: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    max_length: int
    activation: str = "silu"
    gated: bool = True
    norm: Norm = Norm()
    norm_place: Literal["before", "after", "behind", "both"] = "before"
    final_norm: bool = True
    qk_norm: Literal["", "head", "flat"] = ""
    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    fused: bool = False
    attention_scale: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    tied: bool = False
    learned_positions: bool = False
    narrow_width: int = 0
    n_labels: int = 0
    label_bias: bool = False

    def kind(self, layer: int) -> LayerKind:
        """Of a layer, by its index."""
        return self.kinds[layer % len(self.kinds)]

    @property
    def embedding_width(self) -> int:
        """E, of token embeddings and of what the heads read."""
        return self.narrow_width or self.width

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each layer, 0 where it sees everything."""
        return tuple(self.kind(i).window for i in range(self.n_layers))

    def rows(self, layer: int, length: int) -> int:
        """Rows of a layer's cache for sequences of `length`: no more than its window."""
        window = self.kind(layer).window
        return min(window, length) if window else length

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block, by its path in the block."""
        attention, keys = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        shapes = {
            "attention/q": (self.width, attention),
            "attention/k": (self.width, keys),
            "attention/v": (self.width, keys),
            "attention/o": (attention, self.width),
            "mlp/up": (self.width, self.hidden),
            "mlp/down": (self.hidden, self.width),
        }
        return shapes | ({"mlp/gate": (self.width, self.hidden)} if self.gated else {})

    @property
    def fused_parts(self) -> list[tuple[str, str, slice]]:
        """Of each layer that is fused with others: its path, theirs, its outputs among theirs."""
        found = []
        for whole, parts in FUSED.items() if self.fused else ():
            start = 0
            for part in parts:
                path = f"{whole.split('/')[0]}/{part}"
                stop = start + self.linear_shapes[path][1]
                found.append((path, whole, slice(start, stop)))
                start = stop
        return found

    @property
    def adapted(self) -> dict[str, tuple[int, int]]:
        """As `linear_shapes`, of the layers that an adapter may have: fused ones as one."""
        shapes = dict(self.linear_shapes)
        for path, whole, inside in self.fused_parts:
            inputs, _ = shapes.pop(path)
            shapes[whole] = (inputs, inside.stop)
        return shapes


def alternating(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest part that, repeated, gives the kinds of all layers."""
    every = tuple(kinds)
    return next(
        every[:n] for n in range(1, len(every) + 1)
        if all(kind == every[i % n] for i, kind in enumerate(every))
    )  # fmt: skip
