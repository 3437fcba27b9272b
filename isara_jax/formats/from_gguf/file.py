"""A GGUF file, opened and checked; its weights stay on the disk until they are asked for.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

import gguf
import numpy as np

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
_MOST_ELEMENTS = 1 << 24  # of an array of metadata: more than any vocabulary has
_REQUIRED = object()
_SAID = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class _Reader(gguf.GGUFReader):
    """The package's reader takes a file at its word; this one looks whether it can be true.

    Beyond the end of a file the package reads nothing, silently, as often as a length says.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> np.ndarray:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise EOFError(f"it has {len(self.data):,} bytes, and what it describes {end:,}")
        return super()._get(offset, dtype, count, *rest, **named)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple:
        if raw_type == gguf.GGUFValueType.ARRAY:
            length = int(self._get(orig_offs + 4, np.uint64)[0])
            if length > _MOST_ELEMENTS:
                raise ValueError(f"an array of {length:,} elements")
        return super()._get_field_parts(orig_offs, raw_type)


class GgufFile:
    """Metadata and tensors of a model, which may be split over several files.

    Args:
      path: of the file, or of any of a model's parts (`NAME-00001-of-00003.gguf`).

    Attributes:
      path: as given.
      tensors: by name; `data` maps the file, rows first.

    Raises:
      ValueError: it is missing, no GGUF file, damaged, or one of its parts is; the message says so
        in a line.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        parts = [_open(part) for part in _parts(path)]
        self._fields = parts[0].fields
        self._taken: set[str] = set()
        n_parts = self.get("split.count", int, 1)
        if n_parts != len(parts):
            raise ValueError(
                f"{path}: part of a model of {n_parts} files, which are told from each other by "
                f"names like NAME-00001-of-{n_parts:05}.gguf; give them their names back"
            )
        self.tensors: dict[str, gguf.ReaderTensor] = {}
        for part in parts:
            self.tensors |= {tensor.name: tensor for tensor in part.tensors}
        n_tensors = self.get("split.tensors.count", int, len(self.tensors))
        if len(self.tensors) != n_tensors:
            raise ValueError(
                f"{path}: its parts hold {len(self.tensors)} tensors, and should {n_tensors}; they "
                "are not of one model"
            )

    def get(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        """One value of the metadata.

        Args:
          name: such as `llama.block_count`.
          kind: int, float (whole numbers are as good), str or bool.
          default: what stands for a missing one; without it that is an error.

        Raises:
          ValueError: it is missing, or of another kind.
        """
        self._taken.add(name)
        if name not in self._fields:
            if default is _REQUIRED:
                raise ValueError(f"{self.path}: {name} is missing; the file is not complete")
            return default
        value = self._contents(name)
        if not _is(value, kind):
            self.fail(name, value, f"{_SAID[kind]} is expected")
        return value

    def array(self, name: str, kind: type, length: int | None = None) -> list[Any] | None:
        """An array of the metadata, or None where there is none of that name.

        Raises:
          ValueError: it holds something else, or not as much.
        """
        self._taken.add(name)
        if name not in self._fields:
            return None
        values = self._contents(name)
        if not isinstance(values, list) or not all(_is(value, kind) for value in values):
            self.fail(name, values, f"a list, each {_SAID[kind]}, is expected")
        if length is not None and len(values) != length:
            raise ValueError(f"{self.path}: {name} has {len(values)} values; {length} are expected")
        return values

    def tensor(self, name: str) -> gguf.ReaderTensor:
        """A tensor that every file has; `ValueError` where this one does not."""
        if name not in self.tensors:
            raise ValueError(f"{self.path}: tensor {name} is missing; the file is not complete")
        return self.tensors[name]

    def left(self, prefix: str) -> dict[str, Any]:
        """The metadata of a prefix that nobody has asked for."""
        names = [name for name in self._fields if name.startswith(prefix)]
        return {name: self._contents(name) for name in names if name not in self._taken}

    def fail(self, name: str, value: Any, rule: str) -> None:
        """Raises `ValueError` about one value."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise ValueError(f"{self.path}: {name} is {shown}; {rule}")

    def _contents(self, name: str) -> Any:
        try:
            return self._fields[name].contents()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {name} is no UTF-8 ({error}); it is damaged") from error


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def rows(tensor: gguf.ReaderTensor, where: Any = slice(None)) -> np.ndarray:
    """Some rows of a tensor, or all, dequantised: f32 `[rows, columns]`; a vector is one row."""
    data = np.atleast_2d(tensor.data)[where]
    if data.dtype in (np.float32, np.float16, np.float64):
        return np.asarray(data, np.float32)
    return gguf.dequantize(data, tensor.tensor_type)


def shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """The shape of a tensor as NumPy and Hugging Face write it, rows first."""
    return tuple(int(size) for size in reversed(tensor.shape))


def unreadable(tensors: Iterable[gguf.ReaderTensor]) -> list[str]:
    """The types among those of some tensors that the package does not dequantise."""
    found = set()
    for tensor in {tensor.tensor_type: tensor for tensor in tensors}.values():
        try:
            rows(tensor, slice(0, 1))
        except NotImplementedError:
            found.add(tensor.tensor_type.name)
    return sorted(found)


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """All files of the model that a file belongs to, the first one first."""
    named = _PART.fullmatch(path.name)
    if not named:
        return [path]
    stem, count = named.groups()
    parts = [path.with_name(f"{stem}-{i + 1:05}-of-{count}.gguf") for i in range(int(count))]
    missing = [part.name for part in parts if not part.exists()]
    if missing and path.exists():
        raise ValueError(
            f"{path}: {', '.join(missing[:3])} of the same model must lie beside it; download "
            "what is missing"
        )
    return parts


def _open(path: pathlib.Path) -> _Reader:
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if start[:4] != _MAGIC:
        pointer = start.startswith(b"version https://git-lfs")
        what = "a pointer in place of one: fetch it with git lfs" if pointer else "check the path"
        raise ValueError(f"{path}: no GGUF file, it begins with {start[:16]!r}; {what}")
    version = int.from_bytes(start[4:8], "little")
    if len(start) >= 8 and version not in _VERSIONS:
        raise ValueError(
            f"{path}: GGUF version {version}, or of another byte order; supported: versions "
            f"{', '.join(map(str, _VERSIONS))}, little-endian"
        )
    try:
        return _Reader(path)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: damaged, not whole, or newer than the package gguf ({reason}); download it "
            "again"
        ) from error
