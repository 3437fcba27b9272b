"""Files and folders that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any


def cache() -> pathlib.Path:
    """The user's folder for what can be had again."""
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "isara_jax"


def atomic_write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes readable JSON atomically."""
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      ValueError: it is missing, or holds something else; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: not found; check the folder's path and content") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected, found {type(content).__name__}")
    return content


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to be filled that takes the name `path` once the block ends without an error.

    Raises:
      ValueError: `path` exists and is not an empty folder; nothing in it is touched.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: exists already; choose another folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because a rename is atomic within one file system only.
    temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
