"""The config and the tensors of a file, in Hugging Face's terms, by the tables of `architectures`.

Every field of the metadata is honoured, known to change nothing, or refused by name.
"""

from typing import Any

import numpy as np

from isara_jax.formats.from_gguf import file as file_lib
from isara_jax.formats.from_gguf.architectures import ARCHITECTURES, Architecture
from isara_jax.formats.from_gguf.file import GgufFile
from isara_jax.formats.from_gguf.metadata import Metadata
from isara_jax.models import families

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
}


def of(file: GgufFile) -> Architecture:
    """The architecture of a file.

    Raises:
      ValueError: it is none of those supported, or the file holds something else than a model.
    """
    kind = file.get("general.type", str, "model")
    if kind != "model":
        file.fail("general.type", kind, "a whole model is expected")
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: general.architecture is {name!r}; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def config(architecture: Architecture, file: GgufFile) -> dict[str, Any]:
    """The `config.json` of a file, but for what the tokenizer says.

    Raises:
      ValueError: a field is missing, is wrong, or says what is not supported; the message names it.
    """
    meta = Metadata(file, file.get("general.architecture", str))
    found = _common(meta)
    found |= architecture.fields(meta, found)
    found["architectures"] = [families.FAMILIES[found["model_type"]].architecture]
    meta.finish()
    return found


def _common(meta: Metadata) -> dict[str, Any]:
    """What all architectures have."""
    file = meta.file
    sizes = {ours: meta.get(theirs, int) for theirs, ours in _SIZES.items()}
    n_heads = sizes["num_attention_heads"]
    width = sizes["hidden_size"] // max(n_heads, 1)
    sizes["head_dim"] = size = meta.get("attention.key_length", int, width)
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{file.path}: {name} would be {value}; at least 1 is expected")
    if (n_layers := sizes["num_hidden_layers"]) > len(file.tensors):
        meta.fail("block_count", n_layers, f"the file has only {len(file.tensors)} tensors")
    meta.only("attention.value_length", size, f"only {size}, the size of a head, is supported")
    return sizes | {
        "num_key_value_heads": meta.get("attention.head_count_kv", int, n_heads),
        "vocab_size": file_lib.shape(file.tensor("token_embd.weight"))[0],
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def names(architecture: Architecture, config: dict[str, Any], file: GgufFile) -> dict[str, str]:
    """The GGUF name of each tensor of the file, by its Hugging Face name.

    Raises:
      ValueError: one that the architecture does not have.
    """
    found = {}
    known = {
        theirs.replace("{i}", str(i)): ours.replace("{i}", str(i))
        for theirs, ours in architecture.tensors.items()
        for i in range(config["num_hidden_layers"] if "{i}" in theirs else 1)
    }
    unknown = sorted(set(file.tensors) - set(known) - set(architecture.rope_tensors))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(
            f"{file.path}: tensors {', '.join(unknown[:3])}{more} are none of the supported "
            f"{config['model_type']}'s; they would be lost"
        )
    for theirs in file.tensors:
        if theirs in known:
            found[known[theirs]] = theirs
    return found


def heads(architecture: Architecture, config: dict[str, Any], name: str) -> int:
    """The heads by which llama.cpp reordered a tensor's rows; 0: it did not. `name` is GGUF's."""
    pattern = ".".join("{i}" if part.isdecimal() else part for part in name.split("."))
    field = architecture.turned.get(pattern)
    return config[field] if field else 0


def turned_back(data: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows in Hugging Face's order.

    llama.cpp turns neighbouring rows of a head as a pair, Hugging Face the one half of the head
    with the other: rows 0, 1, 2, 3, ... of a head are there 0, h/2, 1, h/2 + 1, ...

    Args:
      data: `[n_heads * h, ...]`, also of packed blocks, which lie along the rows.
      n_heads: of queries, or of keys.
    """
    pairs = data.reshape(n_heads, -1, 2, *data.shape[1:])
    return pairs.swapaxes(1, 2).reshape(data.shape)


def added(architecture: Architecture, name: str) -> float:
    """What llama.cpp's converter added to a tensor's values; `name` is GGUF's."""
    return 1.0 if architecture.one_added and name.endswith("norm.weight") else 0.0
