"""Safetensors written tensor by tensor, each a few rows at a time.

The library writes what is in memory as a whole; the format itself asks for no more than the shapes
beforehand: https://huggingface.co/docs/safetensors#format
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import safetensors

from isara_jax.files import storage
from isara_jax.formats import weights

_Shapes = dict[str, tuple[int, ...]]
_ITEM = 2  # bytes of a bf16


def write(
    folder: pathlib.Path, shapes: _Shapes, rows: Callable[[str], Iterable[np.ndarray]]
) -> list[str]:
    """Writes bf16 tensors under Hugging Face's file names: one or, above 4 GiB, several.

    Args:
      folder: where; it exists.
      shapes: of the tensors, by name.
      rows: the values of the one of that name, from the first on.

    Returns:
      The names of the files.

    Raises:
      ValueError: what was written does not read back with these shapes.
    """
    shards = list(_shards(shapes))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, rows)
    if len(shards) > 1:
        total = sum(map(_size, shapes.values()))
        files = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        content = {"metadata": {"total_size": total}, "weight_map": files}
        storage.write_json(folder / "model.safetensors.index.json", content)
    return names


def _shards(shapes: _Shapes) -> Iterator[_Shapes]:
    shard: _Shapes = {}
    for name, shape in shapes.items():
        if shard and sum(map(_size, shard.values())) + _size(shape) > weights.SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _size(shape: tuple[int, ...]) -> int:
    return _ITEM * math.prod(shape)


def _write_file(
    path: pathlib.Path, shapes: _Shapes, rows: Callable[[str], Iterable[np.ndarray]]
) -> None:
    header: dict[str, object] = {"__metadata__": weights.METADATA}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _size(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            for values in rows(name):
                file.write(np.ascontiguousarray(values).view(np.uint16).data)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name} cannot be read back ({error}); check the disk") from error
    if found != {name: tuple(shape) for name, shape in shapes.items()}:
        raise ValueError(f"{path.name} did not read back as written; check the disk")
