"""From pickled weights to safetensors: `python -m isara_jax.convert DIR`.

Older checkpoints, most OPT on the hubs among them, are `.bin` files: pickles, which can run code
when they are read. Nothing else in this package reads them, and nothing else needs torch. Here
torch reads them once, as tensors and nothing more, and they are written again beside the originals:

| found | written |
|---|---|
| `pytorch_model.bin` | `model.safetensors` |
| `pytorch_model-*.bin`, `pytorch_model.bin.index.json` | `model-*.safetensors` and their index |

Names, shapes and dtypes stay. The files take their names once all of them have been read back and
compared; before that nothing in the folder changes.
"""

import pathlib
import pickle
import re
import shutil
import warnings
import zipfile
from collections import Counter
from typing import TYPE_CHECKING

import safetensors

from isara_jax import config
from isara_jax.files import storage
from isara_jax.models import families
from isara_jax.shell.terminal import quoted

if TYPE_CHECKING:
    import torch

_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WRITTEN, _WRITTEN_INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD = "lm_head.weight"
# Before this version a crafted file could run code even with `weights_only` (CVE-2025-32434).
_OLDEST_TORCH = (2, 6)

_Tensors = dict[str, "torch.Tensor"]


def convert(directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes the weights of a Hugging Face directory as safetensors, one file at a time.

    Args:
      directory: with `config.json` and `.bin` files, which stay as they are.

    Returns:
      The files with weights that were written.

    Raises:
      ValueError: there is nothing to convert, or it cannot be read or written; the message says
        what to do.
    """
    shards = _find(directory)
    path = directory / "config.json"
    tied = families.from_hf(storage.read_json(path), str(path)).tied
    _check_torch()
    _check_room(directory, shards)
    weight_map, total = {}, 0
    with storage.scratch(directory, ".convert-") as folder:
        fresh = {file: folder / _renamed(file) for file in shards}
        for file, target in fresh.items():
            sizes = _convert_file(directory / file, target, shards[file], tied)
            weight_map |= dict.fromkeys(sizes, target.name)
            total += sum(sizes.values())
        written = [target.replace(directory / target.name) for target in fresh.values()]
    if (directory / _INDEX).exists():  # last, because readers begin with it
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        storage.write_json(directory / _WRITTEN_INDEX, content)
    return written


def _convert_file(
    source: pathlib.Path, target: pathlib.Path, expected: set[str], tied: bool
) -> dict[str, int]:
    """Converts one file; the bytes of each tensor, all of which are let go on return."""
    tensors = _separate(_read(source, expected), tied)
    _write(target, tensors)
    shutil.copymode(source, target)  # safetensors lets nobody else read it
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def _find(directory: pathlib.Path) -> dict[str, set[str]]:
    """The names of the `.bin` files, and of the tensors that the index says each one holds."""
    if not directory.is_dir():
        raise ValueError(f"{str(directory)!r} is not a directory; give that of a model")
    for name in (_WRITTEN, _WRITTEN_INDEX):
        if (directory / name).exists():
            raise ValueError(
                f"{directory / name} is there already; use it, or delete it to convert again"
            )
    if (directory / _INDEX).exists():
        shards = _indexed(directory / _INDEX)
    elif (directory / _SINGLE).exists():
        shards = {_SINGLE: set()}
    else:
        found = ", ".join(sorted(p.name for p in directory.glob("*.bin"))[:3])
        raise ValueError(
            f"{directory}: neither {_SINGLE} nor its index is there, so there is nothing to "
            f"convert (other .bin files: {found or 'none'})"
        )
    missing = [file for file in shards if not (directory / file).exists()]
    if missing:
        raise ValueError(
            f"{directory}: the index names {', '.join(missing)}, which is missing; download again"
        )
    for file in shards:
        storage.followed(directory, directory / file)
    return shards


def _indexed(index: pathlib.Path) -> dict[str, set[str]]:
    weight_map = storage.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no weight_map, which says where each tensor is")
    shards: dict[str, set[str]] = {}
    for name, file in sorted(weight_map.items()):
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\]+\.bin", file):
            raise ValueError(
                f"{index}: {name} is said to be in {quoted(file)}; the name of a .bin file in "
                "the same folder is expected"
            )
        shards.setdefault(file, set()).add(name)
    return dict(sorted(shards.items()))


def _renamed(file: str) -> str:
    return file.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def _check_torch() -> None:
    try:
        import torch  # here, because only who converts needs it
    except ImportError as error:
        raise config.UserError(
            f"torch, which reads .bin files, cannot be imported ({error}); install it for the "
            "conversion: pip install torch"
        ) from error
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or tuple(map(int, version.groups())) < _OLDEST_TORCH:
        raise config.UserError(
            f"torch {torch.__version__} can be made to run code by a crafted .bin file; install "
            f"{'.'.join(map(str, _OLDEST_TORCH))} or later"
        )


def _check_room(directory: pathlib.Path, shards: dict[str, set[str]]) -> None:
    needed = sum((directory / file).stat().st_size for file in shards)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise config.UserError(
            f"{directory}: the converted weights take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} "
            "GB are free there; make room, or copy the folder to another disk"
        )


def _read(path: pathlib.Path, expected: set[str]) -> _Tensors:
    """The tensors of a `.bin` file, mapped from the disk where its format allows."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # about formats; the outcome is what counts
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: {_why_unread(error)}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: tensors by name are expected, found {type(content).__name__}")
    for name, tensor in content.items():
        dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not isinstance(name, str) or not dense or tensor.is_quantized:
            raise ValueError(f"{path}: {name!r} is no dense tensor; weights alone are expected")
    missing = sorted(expected - set(content))
    if missing:
        raise ValueError(
            f"{path}: {', '.join(missing[:3])} is not in it, as the index says; download again"
        )
    return {name: tensor.detach() for name, tensor in content.items()}


def _why_unread(error: Exception) -> str:
    """One line; torch's own are many, and recommend to trust the file."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and named:
        return (
            f"holds {named.group(1)}, which is no tensor and could run code; nothing of it was "
            "run. Get the weights from a source you trust"
        )
    return f"no checkpoint of tensors, or damaged ({type(error).__name__}); download it again"


def _separate(tensors: _Tensors, tied: bool) -> _Tensors:
    """The tensors, each contiguous and in memory of its own, as safetensors wants them.

    A head that is the embedding is left out where the config ties the two, and copied where not.
    """
    import torch

    views = Counter((t.data_ptr(), t.shape, t.stride()) for t in tensors.values())
    result, taken = {}, set()
    for name, tensor in tensors.items():
        if tied and name == _HEAD and views[tensor.data_ptr(), tensor.shape, tensor.stride()] > 1:
            continue
        memory = tensor.untyped_storage().data_ptr()
        shared = memory in taken
        taken.add(memory)
        # Copied one by one: of a mapped file only what is shared or not contiguous.
        tensor = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor
        result[name] = tensor.contiguous()
    return result


def _write(path: pathlib.Path, tensors: _Tensors) -> None:
    """Writes a file and compares what it reads back with what was meant, bit by bit."""
    from safetensors.torch import save_file  # needs torch

    try:
        save_file(tensors, path, {"format": "pt"})
        with safetensors.safe_open(path, framework="pt") as file:
            wrong = sorted(set(file.keys()) ^ set(tensors)) or [
                name for name, tensor in tensors.items() if not _same(file.get_tensor(name), tensor)
            ]
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} cannot be written ({error})") from error
    if wrong:
        raise ValueError(
            f"{path.name}: {', '.join(wrong[:3])} did not read back from the disk as written; "
            "check the disk, then convert again"
        )


def _same(a: "torch.Tensor", b: "torch.Tensor") -> bool:
    """Equal in shape, dtype and bits: NaNs too, which are not for this command to judge."""
    import torch

    same = a.shape == b.shape and a.dtype == b.dtype
    return same and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))
