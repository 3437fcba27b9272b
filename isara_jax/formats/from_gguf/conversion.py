"""GGUF in: llama.cpp's single file to the Hugging Face folder of the same model.

| written | from |
|---|---|
| `config.json` | the metadata of the architecture (`network`) |
| `model.safetensors`, or shards and their index | the tensors, dequantised, in bf16 |
| `tokenizer.json`, `tokenizer_config.json` | vocabulary, chat template (`tokenizer`) |
| `generation_config.json` | the tokens that end a text |

Tensors go through memory a few rows at a time. Quantised weights stay as coarse as they are: the
values written are those that their blocks stand for, rounded to bf16.
"""

import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from isara_jax.files import storage
from isara_jax.formats import weights
from isara_jax.formats.from_gguf import file as file_lib
from isara_jax.formats.from_gguf import network, safetensors_writer, tokenizer
from isara_jax.formats.from_gguf.architectures import Architecture
from isara_jax.formats.from_gguf.file import GgufFile
from isara_jax.models import families

_CHUNK_BYTES = 16 << 20  # dequantised at once, in f32
_OTHER_BYTES = 64 << 20  # room for what is not weights


def convert(path: pathlib.Path, output: pathlib.Path) -> list[pathlib.Path]:
    """Writes the Hugging Face folder of a GGUF file.

    Args:
      path: the file, or one of several that are a model's parts.
      output: a new folder, which appears whole or not at all.

    Returns:
      The files with weights that were written.

    Raises:
      ValueError: the file is damaged or holds what is not supported, `output` holds something, or
        there is no room for it; the message says which.
    """
    with storage.atomic_folder(output) as folder:
        file = GgufFile(path)
        architecture = network.of(file)
        config = network.config(architecture, file)
        tokens = tokenizer.read(file, config["max_position_embeddings"])
        sources = network.names(architecture, config, file)
        shapes = _shapes(file, config, sources, tokens)
        _check_room(output, shapes)
        written = safetensors_writer.write(
            folder, shapes, lambda name: _rows(file, sources[name], architecture, config)
        )
        _write_config(folder, config, tokens)
        tokens.save(folder)
    return [output / name for name in written]


def _shapes(
    file: GgufFile, config: dict[str, Any], sources: dict[str, str], tokens: tokenizer.Tokenizer
) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor to be written, by Hugging Face's name.

    Raises:
      ValueError: the tensors of the file are not those that its metadata implies.
    """
    described = families.from_hf(config, f"{file.path} (as config.json)")
    expected = weights.tensor_shapes(families.build(described))
    if set(expected) != set(sources):
        raise ValueError(
            f"{file.path}: the tensors are not those of its metadata; missing: "
            f"{weights.some(set(expected) - set(sources))}; unknown: "
            f"{weights.some(set(sources) - set(expected))}"
        )
    for name, shape in expected.items():
        found = file_lib.shape(file.tensors[sources[name]])
        if found != shape:
            raise ValueError(
                f"{file.path}: {sources[name]} has shape {found}, its metadata implies {shape}"
            )
    if kinds := file_lib.unreadable(file.tensors[theirs] for theirs in sources.values()):
        raise ValueError(f"{file.path}: tensors of type {', '.join(kinds)} cannot be dequantised")
    if tokens.size > config["vocab_size"]:
        raise ValueError(
            f"{file.path}: tokenizer.ggml.tokens has {tokens.size} tokens, the embedding "
            f"{config['vocab_size']} rows; they do not belong together"
        )
    return expected


def _check_room(output: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> None:
    needed = 2 * sum(math.prod(shape) for shape in shapes.values()) + _OTHER_BYTES
    free = shutil.disk_usage(output.absolute().parent).free
    if needed > free:
        raise ValueError(
            f"{output}: the model takes {needed / 1e9:.2f} GB there, and {free / 1e9:.2f} GB are "
            "free; make room, or name a folder on another disk"
        )


def _rows(
    file: GgufFile, name: str, architecture: Architecture, config: dict[str, Any]
) -> Iterator[np.ndarray]:
    """A tensor in bf16, a few rows at a time, in Hugging Face's order; `name` is GGUF's."""
    tensor = file.tensors[name]
    if n_heads := network.heads(architecture, config, name):
        # Rows are moved as they are packed: no block reaches over the end of one.
        tensor = tensor._replace(data=network.turned_back(tensor.data, n_heads))
    *_, width = file_lib.shape(tensor)
    step = max(1, _CHUNK_BYTES // (4 * width))
    for at in range(0, tensor.n_elements // width, step):
        values = file_lib.rows(tensor, slice(at, at + step))
        if added := network.added(architecture, name):
            values = values - added  # before rounding: 1 + w has fewer digits of w
        values = values.astype(jnp.bfloat16)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{file.path}: {name} holds infinities or NaNs: the file is damaged, or its "
                "training diverged"
            )
        yield values


def _write_config(
    folder: pathlib.Path, config: dict[str, Any], tokens: tokenizer.Tokenizer
) -> None:
    ids = {f"{role}_token_id": i for role, i in tokens.ids.items() if role != "unk"}
    storage.write_json(folder / "config.json", config | ids | {"torch_dtype": "bfloat16"})
    if tokens.ends:
        ends = tokens.ends[0] if len(tokens.ends) == 1 else tokens.ends
        storage.write_json(folder / "generation_config.json", ids | {"eos_token_id": ends})
