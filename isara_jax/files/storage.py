"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import functools
import json
import math
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from isara_jax import config
from isara_jax.shell import endings, terminal

_UNFINISHED = re.compile(r"\..+\.\w+\.tmp")
# Bytes of a model's JSON that are read: ten times what any has. As values it takes up to forty
# times as many.
MOST_JSON = 16 << 20
_LONGEST_CHAIN = 40  # of links, as the kernel has it


def cache() -> pathlib.Path:
    """The user's folder for what can be had again, made where it is missing.

    Where the home folder is missing or cannot be written, as in many containers, it is below the
    temporary folder, and nobody else's: programs that are run are kept in it.

    Raises:
      config.UserError: there is none that can be written.
    """
    home = os.path.expanduser("~/.cache")  # noqa: PTH111, as it stands where there is none
    wanted = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home) / "isara_jax"
    if wanted.parts[0] != "~" and writable(wanted):
        return wanted
    with contextlib.suppress(FileNotFoundError):  # no temporary folder either
        other = pathlib.Path(tempfile.gettempdir()) / f"isara_jax-{os.getuid()}"
        if writable(other) and not other.is_symlink() and other.stat().st_uid == os.getuid():
            _tell_once(f"{wanted} cannot be written; what is kept for the next start is in {other}")
            return other
    raise config.UserError(
        f"{wanted} cannot be written, nor a folder in its place; set XDG_CACHE_HOME to one that can"
    )


def writable(folder: pathlib.Path) -> bool:
    """Whether a folder, which is made where it is missing, takes new files."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


_tell_once = functools.cache(endings.say)


@contextlib.contextmanager
def scratch(
    parent: pathlib.Path | None = None, prefix: str = "isara_jax-"
) -> Iterator[pathlib.Path]:
    """A folder that is gone after the block, also where a signal ends the process in it."""
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as name,
        _removed(pathlib.Path(name)),
    ):
        yield pathlib.Path(name)


def _removed(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return endings.tidied(lambda: shutil.rmtree(folder, ignore_errors=True))


def atomic_write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # as `_UNFINISHED` has it
    try:
        temporary.write_bytes(data)
    except OSError as error:  # a full disk does not say which file it was
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary.replace(path)


def sweep(folder: pathlib.Path) -> None:
    """Removes what killed processes have left unfinished in a folder that nobody writes in."""
    for path in [p for p in folder.rglob(".*") if _UNFINISHED.fullmatch(p.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes readable JSON atomically."""
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def write_lines(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes a line of JSON a row, atomically."""
    atomic_write(path, json_lines(rows))


def json_lines(rows: Iterable[Any]) -> bytes:
    """A line of JSON a row."""
    return "".join(f"{json_line(row)}\n" for row in rows).encode()


def json_line(row: Any) -> str:
    """One line of JSON that can be read, and that a terminal can show."""
    return terminal.visible(json.dumps(row, ensure_ascii=False))


class AmbiguousError(ValueError):
    """What Python's reader takes for JSON, and other programs refuse or read otherwise."""


def parse_json(text: str) -> Any:
    """The value that a text is in JSON, read as strictly as other programs read it.

    Raises:
      AmbiguousError: a field stands twice in an object, or is NaN or infinite; the message names
        the field and what to do.
      ValueError: it is no JSON, nested too deep, or has a number of too many digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number has too many digits") from error
        raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise AmbiguousError(f"{name}: found twice in one object; remove one of the two")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise AmbiguousError(
                    f"{name}: found {json.dumps(one)}, which JSON does not have; write its value, "
                    "or remove it"
                )
        fields[name] = value
    return fields


def read_json(path: pathlib.Path, ours: bool = False) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
      path: the file.
      ours: it was written by `write_json`, which writes infinities as Python has them.

    Raises:
      config.UserError: it is missing, or holds something else; the message names the file.
      OSError: it cannot be read.
    """
    try:
        ordinary(path, None if ours else MOST_JSON)
    except (FileNotFoundError, NotADirectoryError):
        raise config.UserError(f"{path}: not found; check the folder's path and content") from None
    try:
        content = (json.loads if ours else parse_json)(path.read_text(encoding="utf-8"))
    except AmbiguousError as error:
        raise config.UserError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise config.UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise config.UserError(f"{path}: a JSON object is expected, found {type(content).__name__}")
    return content


def ordinary(path: pathlib.Path, most: int | None = None) -> pathlib.Path:
    """`path`, if reading it will end.

    An archive may hold pipes and devices under any name; reading those waits, or has no end.

    Args:
      path: a file, or a link to one.
      most: bytes that it may have; None: any number.

    Raises:
      config.UserError: it is no ordinary file, or a larger one.
      OSError: it is not there.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise config.UserError(f"{path}: found {found}, expected a file; put the file in its place")
    if most is not None and status.st_size > most:
        raise config.UserError(
            f"{path}: found {status.st_size:,} bytes, expected at most {most:,}; it is damaged, or "
            "not what its name says: get it again"
        )
    return path


def followed(directory: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """`path`, unless it is a link that may bring a file that nobody meant.

    A folder that was unpacked from an archive may hold links to any file of this machine, a key for
    example under the name of a licence, and what is read from it may be published. So a link leads
    out of the folder only to a file of its own name, or from weights to weights (`.safetensors`),
    which hold nothing but tensors. The hub's cache links to `blobs/`, which may itself be a link.

    Args:
      directory: a model's, or an adapter's.
      path: a file of it.

    Raises:
      ValueError: a link leads elsewhere, nowhere, or in a circle, or it is no ordinary file.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path}: links lead in a circle there; mend them") from error
    folder, file = directory.resolve(), path
    for _ in range(_LONGEST_CHAIN):
        if not file.is_symlink():
            break
        target = file.parent / file.readlink()
        if not _may_lead(file, target, folder):
            raise ValueError(
                f"{path}: leads to {target.resolve()}, outside the model's folder and called "
                "otherwise, as links of a downloaded archive may; copy the file there"
            )
        file = target
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: leads to {path.resolve()}, which is not there; mend the link")
    return ordinary(path) if path.exists() else path


def _may_lead(link: pathlib.Path, target: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a link may be followed by one step."""
    if target.name == link.name or target.suffix == link.suffix == ".safetensors":
        return True
    here, there = link.parent.resolve(), target.parent.resolve()
    blobs = os.path.realpath(here.parent.parent / "blobs")  # not resolve(): it may be a circle
    in_cache = here.parent.name == "snapshots" and str(there) == blobs
    return in_cache or there.is_relative_to(folder)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to be filled that takes the name `path` once the block ends without an error.

    Raises:
      config.UserError: `path` exists and is not an empty folder; nothing in it is touched.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise config.UserError(f"{path}: exists already; choose another folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because a rename is atomic within one file system only.
    temporary = pathlib.Path(
        tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    )
    try:
        temporary.chmod(0o755)
        with _removed(temporary):
            yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
