"""The rows of a weight table: how Hugging Face names a tensor, and where ours lies."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import PartitionSpec as P

from isara_jax.models.network import DecoderConfig


class Row(NamedTuple):
    """One kind of tensor: its Hugging Face name, our path, whether HF stores it transposed.

    `{i}` stands for the layer's index. `spec` shards our layout over the mesh.
    """

    theirs: str
    ours: str
    transposed: bool
    spec: P


class Place(NamedTuple):
    """Where a parameter is in a checkpoint.

    Attributes:
      row: of the table.
      name: of the tensor.
      inside: its outputs among the tensor's, where several parameters are fused in it; else None.
    """

    row: Row
    name: str
    inside: slice | None = None


def find(table: Sequence[Row], network: DecoderConfig, path: str) -> Place:
    """Where one of our paths is.

    Raises:
      KeyError: nowhere.
    """
    index = re.search(r"layers_(\d+)/", path)
    number = index.group(1) if index else ""

    def named(wanted: str) -> tuple[Row, str] | None:
        for row in table:
            if row.ours.replace("{i}", number) == wanted:
                return row, row.theirs.replace("{i}", number)
        return None

    if found := named(path):
        return Place(*found)
    for part, whole, inside in network.fused_parts:
        if f"/{part}/" in path and (found := named(path.replace(part, whole))):
            return Place(*found, inside)
    raise KeyError(f"no row of the weight table describes the parameter {path!r}")


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
