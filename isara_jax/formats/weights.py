"""Hugging Face directories in and out, slice by slice, by the table of the model's family.

Only safetensors is read. The tables are strict both ways: a tensor that matches no row, or a
parameter that no tensor fills, is an error that names it.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isara_jax.files import storage
from isara_jax.models import decoder, families, weight_table
from isara_jax.models.network import DecoderConfig
from isara_jax.shell import terminal
from isara_jax.shell.terminal import quoted

METADATA = {"format": "pt"}
SHARD_BYTES = 4 << 30  # of a file that is written
_CHUNK_BYTES = 8 << 20  # read at once by each thread: what loading costs beside the tensor itself
_THREADS = min(8, os.cpu_count() or 1)
_ALIGNMENT = 64
_BLOCK_ROWS = 16  # transposed at once: as many lines of both sides stay in the cache
# Stored types, and the bits that are all set in infinities and NaNs alone.
_EXPONENT = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}

flatten = functools.partial(traverse_util.flatten_dict, sep="/")  # {"a/b/c": leaf}
unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")


def find(network: DecoderConfig, path: str) -> weight_table.Place:
    """Where one of our paths is in a checkpoint: the table's row, the tensor's name, its part."""
    return weight_table.find(families.family_of(network).table, network, path)


def by_tensor(network: DecoderConfig, paths: Iterable[str]) -> dict[str, list[str]]:
    """Our paths by the Hugging Face name of the tensor they are in, in their order there."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in paths:
        place = find(network, path)
        found.setdefault(place.name, []).append((place.inside.start if place.inside else 0, path))
    return {name: [path for _, path in sorted(inside)] for name, inside in found.items()}


def tensor_shapes(model: decoder.Decoder) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checkpoint, by its Hugging Face name."""
    params, result = flatten(abstract_params(model)), {}
    for name, paths in by_tensor(model.config, params).items():
        shape = params[paths[0]].shape
        shape = (*shape[:-1], sum(params[path].shape[-1] for path in paths))
        result[name] = shape[::-1] if find(model.config, paths[0]).row.transposed else shape
    return result


def abstract_params(model: decoder.Decoder) -> dict[str, Any]:
    """Shapes and dtypes of the network's parameters, as a tree; nothing is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(
        lambda t: model.init(jax.random.key(0), t, method="everything")["params"], tokens
    )


def sharding(
    network: DecoderConfig, path: str, shape: tuple[int, ...], mesh: Mesh
) -> NamedSharding:
    """Where the table puts a parameter.

    Raises:
      ValueError: an axis does not divide among the devices the table gives it.
    """
    row, name, _ = find(network, path)
    axes = list(row.spec)
    for place, (size, axis) in enumerate(zip(shape, row.spec, strict=False)):
        if not axis or size % mesh.shape[axis] == 0:
            continue
        if size == network.vocab_size:  # 32,001 with an added padding token: kept whole
            axes[place] = None
        else:
            raise ValueError(
                f"{name} has an axis of {size}, which {axis}={mesh.shape[axis]} of config.mesh "
                "does not divide; choose a divisor"
            )
    return NamedSharding(mesh, PartitionSpec(*axes))


def load_config(directory: pathlib.Path) -> DecoderConfig:
    """The network of a Hugging Face directory.

    Raises:
      ValueError: no directory, or a model this version does not run; the message says which.
    """
    if not directory.is_dir():
        raise ValueError(f"{str(directory)!r} is not a directory; {_how_to_get_one(directory)}")
    path = directory / "config.json"
    if not path.exists() and (found := sorted(directory.glob("*.gguf"))):
        raise ValueError(f"{directory}: holds a GGUF file alone; {_how_to_get_one(found[0])}")
    network = families.from_hf(storage.read_json(path), str(path))
    if network.n_labels:  # safe-rlhf's configs do not always say whether the head has a bias
        found = _stored(directory).get("score.bias")
        if found and found.name == "score_head.bias":
            network = dataclasses.replace(network, label_bias=True)
    return network


def _how_to_get_one(path: pathlib.Path) -> str:
    if path.suffix != ".gguf" or not path.is_file():
        return "give that of a model"
    return f"convert it: python -m isara_jax.convert {path} --output=DIR"


# --- in ------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """Where a tensor is: its file, and its name there."""

    file: pathlib.Path
    name: str


def _stored(directory: pathlib.Path) -> dict[str, _Stored]:
    """The tensors of a checkpoint by the names the tables use."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.exists() and single.exists():
        raise ValueError(f"{directory}: both {index.name} and {single.name}; delete the wrong one")
    if index.exists():
        files = _indexed(directory, index)
    elif single.exists() or single.is_symlink():
        files = dict.fromkeys(_names_in(storage.followed(directory, single)), single)
    else:
        raise ValueError(_nothing_to_read(directory))
    names = {name: _usual(name) for name in files}
    # A base model saved without its head has no "model." before its names.
    bare = not any(known.startswith("model.") for known in names.values())
    result: dict[str, _Stored] = {}
    for name, file in files.items():
        known = names[name]
        if bare and not known.startswith(("lm_head.", "score.")):
            known = f"model.{known}"
        if known in result:
            raise ValueError(f"{file}: {name} and {result[known].name} mean the same tensor")
        result[known] = _Stored(file, name)
    return result


def _usual(name: str) -> str:
    """A tensor's name as the tables have it."""
    name = re.sub(r"^score_head\.", "score.", name)  # safe-rlhf's
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)  # Gemma 3's
    return re.sub(r"^language_model\.lm_head\.", "lm_head.", name)


def _indexed(directory: pathlib.Path, index: pathlib.Path) -> dict[str, pathlib.Path]:
    weight_map = storage.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no weight_map, which says where each tensor is")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\]+\.safetensors", file):
            raise ValueError(
                f"{index}: {name} is said to be in {quoted(file)}; a safetensors file of the same "
                "folder is expected"
            )
    files = {file: directory / file for file in sorted(set(weight_map.values()))}
    missing = [file for file, path in files.items() if not path.exists()]
    if missing:
        raise ValueError(
            f"{directory}: the index names {', '.join(missing)}, which is missing; download again"
        )
    result = {
        name: path
        for path in files.values()
        for name in _names_in(storage.followed(directory, path))
    }
    for name, file in weight_map.items():
        if result.get(name) != files[file]:
            found = result[name].name if name in result else "none of its files"
            raise ValueError(f"{index}: {name} is said to be in {file}, found in {found}")
    return result


def _names_in(path: pathlib.Path) -> list[str]:
    with opened(path) as file:
        return list(file.keys())


def _nothing_to_read(directory: pathlib.Path) -> str:
    found = sorted(p.name for p in directory.glob("*.bin"))
    if not found:
        return f"{directory}: neither model.safetensors nor its index is there"
    return (
        f"{directory}: found {', '.join(found[:3])}, but no safetensors. Pickles can run code, so "
        f"they are not loaded; convert them once: python -m isara_jax.convert {directory}"
    )


def opened(path: pathlib.Path) -> Any:
    """A safetensors file, whose header was looked at; a context manager.

    Raises:
      ValueError: it is none, or damaged.
    """
    try:
        _check_header(path)
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: cannot be read as safetensors ({terminal.line(str(error))[:300]}); download "
            "it again"
        ) from error


def _check_header(path: pathlib.Path) -> None:
    """Raises `ValueError` for what the library believes: any length, and one name twice."""
    size = storage.ordinary(path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(storage.MOST_JSON, size - 8):
            raise ValueError(f"it has {size:,} bytes, and says that its header has {length:,}")
        storage.parse_json(file.read(length).decode())


def load(directory: pathlib.Path, model: decoder.Decoder, mesh: Mesh) -> dict[str, Any]:
    """Reads the weights onto the mesh; each device reads only its slice.

    Beside what is placed, the host holds one slice of one tensor at a time.

    Args:
      directory: a Hugging Face directory with safetensors.
      model: the network, whose dtype the weights take.
      mesh: the devices.

    Returns:
      The parameters, placed as the table says.

    Raises:
      ValueError: a tensor is missing, unknown, of another shape or type, or holds infinities or
        NaNs; the message names it.
    """
    stored = _stored(directory)
    wanted = flatten(abstract_params(model))
    names = by_tensor(model.config, wanted)
    unknown = [
        stored[n].name for n in set(stored) - set(names) if not _may_be_skipped(n, model.config)
    ]
    unfilled = set(names) - set(stored)
    if unknown or unfilled:
        raise ValueError(
            f"{directory}: the tensors are not those of its config.json; "
            f"unknown: {some(unknown)}; missing: {some(unfilled)}"
        )
    params, shapes = {}, tensor_shapes(model)
    for path in sorted({stored[n].file for n in names}):
        with opened(path) as file:
            for name in sorted(n for n in names if stored[n].file == path):
                for ours in names[name]:
                    row, _, inside = find(model.config, ours)
                    tensor = _Tensor(file, stored[name], row.transposed, inside)
                    tensor.check(shapes[name])
                    where = sharding(model.config, ours, wanted[ours].shape, mesh)
                    params[ours] = tensor.place(wanted[ours], where)
    if model.config.tied and not model.config.n_labels and "lm_head.weight" in stored:
        _check_copy(stored["lm_head.weight"], stored[find(model.config, "embed/embedding").name])
    return unflatten(params)


def stored_types(directory: pathlib.Path) -> set[str]:
    """The types, as safetensors calls them, of the tensors that `load` reads.

    Other files of the folder, such as an adapter's, and tensors that add nothing do not count.
    """
    stored, model = _stored(directory), families.build(load_config(directory))
    names = set(tensor_shapes(model))
    by_file: dict[pathlib.Path, list[str]] = {}
    for name in names & set(stored):
        by_file.setdefault(stored[name].file, []).append(stored[name].name)
    types = set()
    for path, inside in by_file.items():
        with opened(path) as file:
            types |= {file.get_slice(name).get_dtype() for name in inside}
    return types


def some(names: Collection[str]) -> str:
    """The first few of some names, for a message."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(sorted(names)[:4]) or "none") + more


def _may_be_skipped(name: str, network: DecoderConfig) -> bool:
    """Whether a tensor adds nothing.

    Old checkpoints carry RoPE's frequencies, which follow from the config; tied ones a copy of the
    embedding as the head; score models the statistics their training normalised with; models that
    see pictures what they see them with.
    """
    others = families.family_of(network).passed_over
    if name.endswith("rotary_emb.inv_freq") or (others and name.startswith(others)):
        return True
    if name == "lm_head.weight":
        return network.tied or network.n_labels > 0
    return network.n_labels > 0 and name.removeprefix("model.").startswith("normalizer.")


def _check_copy(head: _Stored, embedding: _Stored) -> None:
    """Raises `ValueError` where a tied model carries a head that is not its embedding."""
    with opened(head.file) as first, opened(embedding.file) as second:
        ours, theirs = _Tensor(first, head, False), _Tensor(second, embedding, False)
        same = (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        rows, width = theirs.shape
        step = max(1, _CHUNK_BYTES // (4 * width))
        for at in range(0, rows if same else 0, step):
            end = min(at + step, rows)
            a, b = (x.slices[at:end].view(_EXPONENT[x.dtype][0]) for x in (ours, theirs))
            same = same and np.array_equal(a, b)
    if not same:
        raise ValueError(
            f"{ours.where} differs from {embedding.name}, though tie_word_embeddings makes them "
            "one; set it to false in config.json, or delete the head"
        )


class _Tensor:
    """A tensor in an open safetensors file."""

    def __init__(
        self, file: Any, stored: _Stored, transposed: bool, inside: slice | None = None
    ) -> None:
        self.where, self.transposed = f"{stored.file}: {stored.name}", transposed
        self.start = inside.start if inside else 0  # of the first axis, which is cut if any is
        self.slices = file.get_slice(stored.name)
        self.shape = tuple(self.slices.get_shape())
        self.dtype = self.slices.get_dtype()
        if self.dtype not in _EXPONENT:
            raise ValueError(f"{self.where} is {self.dtype}; F32, F16 or BF16 is expected")

    def check(self, expected: tuple[int, ...]) -> None:
        """Raises `ValueError` where the tensor has another shape."""
        if self.shape != expected:
            raise ValueError(f"{self.where} has shape {self.shape}, config.json implies {expected}")

    def place(self, want: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.Array:
        """The tensor, or the part of it that is wanted, on the devices, in our layout."""
        by_slice: dict[str, list[tuple[jax.Device, tuple[slice, ...]]]] = {}
        for device, index in where.addressable_devices_indices_map(want.shape).items():
            by_slice.setdefault(str(index), []).append((device, index))
        placed = []
        for copies in by_slice.values():
            values = self.read(copies[0][1], want)
            # Waited for, so that the host holds no second slice meanwhile.
            placed += [jax.block_until_ready(jax.device_put(values, d)) for d, _ in copies]
        return jax.make_array_from_single_device_arrays(want.shape, where, placed)

    def read(self, index: tuple[slice, ...], want: jax.ShapeDtypeStruct) -> np.ndarray:
        """One device's slice in our layout, filled chunk by chunk."""
        index, whole = (x[::-1] if self.transposed else x for x in (index, want.shape))
        bounds = [part.indices(size)[:2] for part, size in zip(index, whole, strict=True)]
        bounds[0] = (self.start + bounds[0][0], self.start + bounds[0][1])
        sizes = tuple(stop - start for start, stop in bounds)
        result = _aligned(sizes[::-1] if self.transposed else sizes, np.dtype(want.dtype))
        rows = result.T if self.transposed else result
        (start, _), *others = bounds
        step = max(1, _CHUNK_BYTES * sizes[0] // max(1, 4 * int(np.prod(sizes))))

        def fill(at: int) -> None:
            end = min(at + step, sizes[0])
            chunk = self.slices[slice(start + at, start + end), *(slice(*b) for b in others)]
            self._check_finite(chunk)
            _copy(rows[at:end], chunk)

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, range(0, sizes[0], step)))  # list: raises what a thread raised
        return result

    def _check_finite(self, chunk: np.ndarray) -> None:
        bits, exponent = _EXPONENT[self.dtype]
        if np.any(chunk.view(bits) & bits(exponent) == exponent):
            raise ValueError(
                f"{self.where} holds infinities or NaNs: the checkpoint is damaged, or its "
                "training diverged"
            )


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins where JAX, on a CPU, takes it over without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, a few rows at a time: three times as fast where it transposes.

    NumPy copies bf16 element by element, but its bits at full speed.
    """
    if target.dtype == source.dtype and source.itemsize == 2:
        target, source = target.view(np.uint16), source.view(np.uint16)
    for at in range(0, len(source), _BLOCK_ROWS):
        target[at : at + _BLOCK_ROWS] = source[at : at + _BLOCK_ROWS]


# --- out -----------------------------------------------------------------------------------------


def save(directory: pathlib.Path, network: DecoderConfig, params: dict, dtype: Any = None) -> None:
    """Writes safetensors under Hugging Face's names: one file or, above 4 GiB, several.

    Of several processes all must call it, and the first writes.

    Args:
      directory: created when missing.
      network: whose parameters they are.
      params: our tree, on host or devices; fetched tensor by tensor.
      dtype: of the files; None keeps that of each tensor.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(network, params, np.dtype(dtype) if dtype else None))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    weight_map, total = {}, 0
    for file, shard in zip(names, shards, strict=True):
        tensors = {name: _fetch(network, paths, params, dtype) for name, paths in shard.items()}
        total += sum(t.nbytes for t in tensors.values())
        weight_map |= dict.fromkeys(tensors, file)
        if jax.process_index() > 0:  # the first has them now
            continue
        temporary = directory / f".{file}.tmp"
        safetensors.numpy.save_file(tensors, temporary, METADATA)
        temporary.chmod(0o644)  # safetensors leaves files for their owner alone
        temporary.replace(directory / file)
        del tensors  # before those of the next file are fetched
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        storage.write_json(directory / "model.safetensors.index.json", content)


def _shards(
    network: DecoderConfig, params: dict, dtype: np.dtype | None
) -> Iterator[dict[str, list[str]]]:
    """Our paths by Hugging Face name, in portions of at most `SHARD_BYTES`."""
    shard: dict[str, list[str]] = {}
    size, flat = 0, flatten(params)
    for name, paths in by_tensor(network, flat).items():
        n_bytes = sum(flat[p].size * (dtype or flat[p].dtype).itemsize for p in paths)
        if shard and size + n_bytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = paths
        size += n_bytes
    yield shard


def _fetch(network: DecoderConfig, paths: list[str], params: dict, dtype: Any) -> np.ndarray:
    """One tensor on the host, in Hugging Face's layout."""
    parts = []
    for path in paths:
        node: Any = params
        for part in path.split("/"):
            node = node[part]
        value = _on_host(node)
        parts.append(value if dtype is None else value.astype(dtype, copy=False))
    if not find(network, paths[0]).row.transposed:
        return np.ascontiguousarray(np.concatenate(parts, axis=-1) if parts[1:] else parts[0])
    inputs, outputs = parts[0].shape[0], sum(value.shape[1] for value in parts)
    result, start = np.empty((outputs, inputs), parts[0].dtype), 0
    for value in parts:
        _copy(result[start : start + value.shape[1]], value.T)
        start += value.shape[1]
    return result


def _on_host(value: Any) -> np.ndarray:
    """The values of an array; unlike `jax.device_get` it leaves no copy with the array.

    Where other processes hold parts of it, all must ask for it.
    """
    if not isinstance(value, jax.Array):
        return np.asarray(value)
    if not value.is_fully_addressable:
        whole = jax.device_put(value, NamedSharding(value.sharding.mesh, PartitionSpec()))
        return jax.device_get(whole.addressable_data(0))
    result = np.empty(value.shape, value.dtype)
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            result[shard.index] = jax.device_get(shard.data)
    return result
