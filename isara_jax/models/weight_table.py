"""The rows of a weight table: how Hugging Face names a tensor, and where ours lies."""

from typing import NamedTuple

from jax.sharding import PartitionSpec as P


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
