"""Files and folders elsewhere, by fsspec: `gs://bucket/folder`, `s3://...` and their like.

What is read is copied: a model or an adapter once, into the user's cache folder. A run works in a
scratch folder that is mirrored to its place. Whatever goes wrong there is a `config.UserError` that
names the URL.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import filelock
import fsspec
from fsspec.registry import known_implementations

from isara_jax import config
from isara_jax.files import storage
from isara_jax.shell import terminal

_SOURCE = ".source"  # in a copy, the URL it was made of
# What tells two versions of a file apart, the surest first; each store has its own.
_VERSIONS = (
    "md5Hash", "ETag", "etag", "content_md5", "generation", "mtime", "LastModified",
    "last_modified", "created",
)  # fmt: skip
# Orbax writes checkpoints there itself, from all processes; elsewhere they are mirrored.
_NATIVE = "gs://"
_MIRRORED = "mirrored.txt"  # in a mirrored checkpoint, the file that comes last and goes first
CHECKPOINTS = ("checkpoints", "stages")
_LAST = "summary.json"  # says that a run is finished, and all of it is there


def path(name: "str | Path") -> "Path":
    """What a user's path means: a local one, or a URL."""
    text = str(name)
    if "://" in text and not text.startswith("file://"):
        return _checked(Url(text.rstrip("/")))
    try:
        return pathlib.Path(text.removeprefix("file://")).expanduser()
    except RuntimeError as error:
        raise config.UserError(f"{text}: {error}; write the whole path") from error


def _checked(url: "Url") -> "Url":
    """`url`, if it is a plain one; `..` in it would be resolved here, in folders of this machine.

    Several protocols in one (`reference::https://...`) unpack, cache or compute: what a server
    sends could then name files here, or templates to run.
    """
    if "::" in url.text:
        raise config.UserError(
            f"{url}: several protocols in one URL; fetch and unpack it, and give that path"
        )
    if {".", ".."} & set(url.text.split("/")):
        raise config.UserError(f"{url}: `.` or `..` in a URL; write the whole path")
    return url


@dataclasses.dataclass(frozen=True)
class Url:
    """A file or a folder elsewhere."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        return self.text.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        return pathlib.PurePosixPath(self.name).suffix

    @contextlib.contextmanager
    def open(self, mode: str) -> Iterator[Any]:
        """The file, opened."""
        with self._reached() as (system, place), system.open(place, mode) as file:
            yield file

    def files(self) -> dict[str, dict[str, Any]]:
        """What the store says of each file directly in the folder; nothing if that is missing."""
        with self._reached() as (system, place):
            try:
                found = system.ls(place, detail=True)
            except FileNotFoundError:
                return {}
        # A store without folders may list one as a file whose name is empty, or its own.
        entries = {info["name"].rsplit("/", 1)[-1]: info for info in found}
        return {
            name: info
            for name, info in entries.items()
            if _is_name(name)
            and info["type"] == "file"
            and info["name"].strip("/") != place.strip("/")
        }

    def tree(self) -> list[str]:
        """The names of all files in the folder and below, relative to it; none if it is missing."""
        with self._reached() as (system, place):
            try:
                found = system.find(place)
            except FileNotFoundError:
                return []
        names = [name.strip("/").removeprefix(place.strip("/") + "/") for name in found]
        return sorted(name for name in names if all(map(_is_name, name.split("/"))))

    def download(self, target: pathlib.Path, size: int | None = None) -> None:
        """Copies the file to a local one, which appears whole or not at all.

        Args:
          target: the local file; its folder is made.
          size: what the store said it has.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        limit = shutil.disk_usage(target.parent).free if size is None else size
        with self._reached() as (system, place):
            system.get_file(place, str(temporary), callback=_Counter(self, limit, temporary))
        if size not in (None, temporary.stat().st_size):
            found = temporary.stat().st_size
            temporary.unlink()
            raise config.UserError(f"{self}: {found:,} of {size:,} bytes came; start again")
        temporary.replace(target)

    def upload(self, source: pathlib.Path) -> None:
        """Copies a local file there; stores of objects show it whole or not at all."""
        with self._reached() as (system, place):
            system.put_file(str(source), place)

    def write_bytes(self, content: bytes) -> None:
        """Makes a file of that content."""
        with self._reached() as (system, place):
            system.pipe_file(place, content)

    def create(self, content: bytes) -> bool:
        """Makes a file of that content; False if there is one: of several only one succeeds.

        So it is in stores that have such a condition, as those of Google and Amazon do.
        """
        with self._reached() as (system, place):
            try:
                system.pipe_file(place, content, mode="create")
            except FileExistsError:
                return False
        return True

    def check_writable(self) -> None:
        """Raises `config.UserError` where the folder cannot be written."""
        with self._reached() as (system, place):
            system.pipe_file(f"{place}/.probe", b"")
            system.rm(f"{place}/.probe")

    def remove(self) -> None:
        """Deletes the file, or the folder with all in it; what is not there is gone already."""
        with self._reached() as (system, place), contextlib.suppress(FileNotFoundError):
            system.rm(place, recursive=True)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """The file system and the path in it; whatever fails is said in a line."""
        try:
            yield fsspec.url_to_fs(self.text, use_listings_cache=False)
        except config.UserError:
            raise
        except ImportError as error:
            raise config.UserError(f"{self}: {_missing_package(self.text, error)}") from error
        except FileNotFoundError as error:
            raise config.UserError(
                f"{self}: not found; check the path, and that the bucket is there"
            ) from error
        except PermissionError as error:
            raise config.UserError(
                f"{self}: no permission ({_line(error)}); check this machine's credentials"
            ) from error
        except Exception as error:  # each store has errors of its own
            raise config.UserError(f"{self}: {type(error).__name__}: {_line(error)}") from error


Path = pathlib.Path | Url


class _Counter(fsspec.Callback):
    """Ends a copy of which more comes than was said; a server may send without end."""

    def __init__(self, url: Url, most: int, target: pathlib.Path) -> None:
        super().__init__()
        self._url, self._most, self._target = url, most, target

    def call(self, *_: Any, **named: Any) -> None:
        if self.value > self._most:
            self._target.unlink(missing_ok=True)
            raise config.UserError(
                f"{self._url}: more than {self._most:,} bytes came, as many as were said or "
                "as there is room for; check what is there"
            )


def _is_name(name: str) -> bool:
    """Whether a store's name of a file can be that of one here, in the folder it is copied to."""
    return name not in ("", ".", "..") and not re.search(r"[\x00-\x1f/\\]", name)


def _missing_package(url: str, error: ImportError) -> str:
    """What to install for a protocol; those that fsspec has itself say what they miss."""
    module = known_implementations.get(url.split("://", 1)[0], {}).get("class", "fsspec")
    package = module.split(".", 1)[0]
    return _line(error) if package == "fsspec" else f"{_line(error)}: pip install {package}"


def _line(error: Exception) -> str:
    return terminal.line(str(error))[:200]


# --- what is read --------------------------------------------------------------------------------


def folder(
    name: str | pathlib.Path, needed: Sequence[str], others: Sequence[str] = ()
) -> pathlib.Path:
    """The local folder a user's path means; of a URL, a copy of some of its files.

    Args:
      name: a path, or a URL.
      needed: patterns of names; each must be there.
      others: further patterns.
    """
    place = path(name)
    return _copied(place, needed, others) if isinstance(place, Url) else place


def source(copy: pathlib.Path) -> str | None:
    """The URL a folder is a copy of; None of one that `folder` has not made."""
    note = copy / _SOURCE
    if not note.is_file() or copy.parent != _copies():  # anybody's folder may hold such a file
        return None
    return note.read_text(encoding="utf-8")


def _copies() -> pathlib.Path:
    return storage.cache() / "copies"


def _copied(url: Url, needed: Sequence[str], others: Sequence[str]) -> pathlib.Path:
    """A copy in the user's cache folder, which appears whole or not at all.

    Its name holds a hash of what the store says of the files, so that what changes is copied anew,
    and who reads an older copy is not disturbed.
    """
    there = url.files()
    if missing := [pattern for pattern in needed if not fnmatch.filter(there, pattern)]:
        found = ", ".join(sorted(there)[:8]) or "nothing, or no such folder"
        raise config.UserError(f"{url}: no {' and no '.join(missing)}; found {found}")
    files = {
        name: (info.get("size"), next((str(info[v]) for v in _VERSIONS if info.get(v)), ""))
        for name, info in sorted(there.items())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in (*needed, *others))
    }
    version = hashlib.sha256(json.dumps([str(url), files]).encode()).hexdigest()[:16]
    copy = _copies() / f"{url.name}-{version}"
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Another process of this machine may be at it, or have been.
        with filelock.FileLock(copy.with_name(f".{copy.name}.lock")):
            if not copy.is_dir():
                _copy(url, {name: size for name, (size, _) in files.items()}, copy)
    return copy


def _copy(url: Url, sizes: dict[str, int | None], target: pathlib.Path) -> None:
    """Copies files into a new folder; those that an interrupted copy had ended are kept."""
    size = sum(size or 0 for size in sizes.values())
    terminal.show(
        f"Copying {url}: {len(sizes)} files, {size / 1e6:,.1f} MB, to {target}", sys.stderr
    )
    unfinished = target.with_name(f".{target.name}.unfinished")
    there = sum(file.stat().st_size for file in unfinished.rglob("*") if file.is_file())
    free = shutil.disk_usage(target.parent).free
    if size - there > free:
        raise config.UserError(
            f"{url} takes {size / 1e9:,.1f} GB, {target.parent} has {free / 1e9:,.1f} GB free; set "
            "XDG_CACHE_HOME to a folder on a larger disk, or mount the bucket and give that path"
        )
    for name, size in sizes.items():
        if not (unfinished / name).exists():
            (url / name).download(unfinished / name, size)
    (unfinished / _SOURCE).write_text(str(url), encoding="utf-8")
    unfinished.rename(target)


@contextlib.contextmanager
def reading(name: str | pathlib.Path, *folders: str) -> Iterator[pathlib.Path]:
    """The local folder a user's path means; of a URL, a copy that lives as long as the block.

    Args:
      name: the path.
      folders: those in it that are copied, too.
    """
    with finished(name, *folders) as found:
        yield found.local


@contextlib.contextmanager
def finished(name: str | pathlib.Path, *folders: str) -> Iterator["Workdir"]:
    """The folder of a finished run: of a URL a copy, of which `keep` mirrors what has changed.

    Args:
      name: the path.
      folders: those in it that are copied, too.
    """
    place = path(name)
    if isinstance(place, pathlib.Path):
        yield Workdir(place)
        return
    with storage.scratch() as scratch:
        found = Workdir(scratch / place.name, place)
        _fetch(place, found.local)
        for folder in folders:
            _fetch(place / folder, found.local / folder)
        if not found.local.exists():
            raise config.UserError(f"{place}: not found, or empty; check the path")
        found.note()
        yield found


def _fetch(url: Url, target: pathlib.Path) -> None:
    """Copies the files directly in a folder but for hidden ones; a missing one has none."""
    for name, info in url.files().items():
        if name.startswith("."):
            continue
        (url / name).download(target / name, info.get("size"))


# --- what is written -----------------------------------------------------------------------------


@contextlib.contextmanager
def writing(name: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A new local folder of that name; at a URL, what the block has written is copied there.

    Raises:
      config.UserError: there is something at the URL.
    """
    place = path(name)
    if isinstance(place, pathlib.Path):
        yield place
        return
    if place.tree():
        raise config.UserError(f"{place}: exists already; choose another folder, or delete it")
    with storage.scratch() as scratch:
        folder = scratch / place.name
        yield folder
        # The largest first: without its small config.json a folder is no model.
        files = [file for file in folder.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: -file.stat().st_size):
            (place / file.relative_to(folder).as_posix()).upload(file)


class Workdir:
    """Where a run writes.

    Attributes:
      local: the folder that is written.
      url: what it is mirrored to; None where the folder itself is the place.
      orbax: where Orbax writes its folders of checkpoints (`CHECKPOINTS`).
      mirrors_checkpoints: whether `keep_checkpoints` must follow it.
    """

    def __init__(self, local: pathlib.Path, url: Url | None = None, first: bool = True) -> None:
        self.local, self.url, self._first = local, url, first
        native = url is not None and url.text.startswith(_NATIVE)
        self.mirrors_checkpoints = url is not None and not native
        self.orbax = str(url if native else local.absolute())
        self._kept: dict[str, tuple[int, int]] = {}

    def __str__(self) -> str:
        return str(self.url or self.local)

    def __truediv__(self, name: str) -> Path:
        """Where users find a file of the folder."""
        return (self.url or self.local) / name

    def note(self) -> None:
        """What is there now is what is there at the URL, too."""
        self._kept = {name: self._version(name) for name in self._names()}

    def keep(self) -> None:
        """Mirrors what has changed, but for checkpoints; the summary, which ends a run, last."""
        if self.url is None or not self._first:
            return
        for name in sorted(self._names(), key=lambda name: (name == _LAST, name)):
            version = self._version(name)
            if self._kept.get(name) != version:
                (self.url / name).upload(self.local / name)
                self._kept[name] = version

    def _version(self, name: str) -> tuple[int, int]:
        status = (self.local / name).stat()
        return status.st_mtime_ns, status.st_size

    def _names(self) -> Iterator[str]:
        for file in self.local.rglob("*"):
            name = file.relative_to(self.local)
            elsewhere = name.parts[0] in (*CHECKPOINTS, "data")
            hidden = any(part.startswith(".") for part in name.parts)
            if not elsewhere and not hidden and file.is_file():
                yield name.as_posix()

    def keep_checkpoints(self, name: str) -> None:
        """Mirrors a folder of checkpoints."""
        assert self.url is not None
        folder, there = self.local / name, self.url / name
        here = {step.name for step in folder.iterdir() if step.name.isdigit()}
        whole = _whole(there)
        for step in sorted(here - whole):
            (there / step).remove()  # what an interrupted run may have left
            for file in sorted(file for file in (folder / step).rglob("*") if file.is_file()):
                (there / file.relative_to(folder).as_posix()).upload(file)
            (there / step / _MIRRORED).write_bytes(b"")
        for step in sorted(whole - here):
            (there / step / _MIRRORED).remove()
            (there / step).remove()


def _whole(checkpoints: Url) -> set[str]:
    """The names of mirrored checkpoints of which nothing is missing."""
    found = (name.split("/") for name in checkpoints.tree())
    return {parts[0] for parts in found if parts[1:] == [_MIRRORED] and parts[0].isdigit()}


@contextlib.contextmanager
def workdir(name: str | pathlib.Path, process: int = 0, n_processes: int = 1) -> Iterator[Workdir]:
    """A run's folder; of a URL, what a run that is continued reads again is fetched first.

    Args:
      name: a path, or a URL.
      process: the number of this process; only the first mirrors.
      n_processes: how many there are.

    Raises:
      config.UserError: the URL cannot be read or written, or not by several processes.
    """
    place = path(name)
    if isinstance(place, pathlib.Path):
        yield Workdir(place)
        return
    with storage.scratch() as scratch:
        found = Workdir(scratch / place.name, place, first=process == 0)
        if found.mirrors_checkpoints and n_processes > 1:
            raise config.UserError(
                f"{place}: several processes cannot keep their checkpoints there; use {_NATIVE}, "
                "or a folder that all of them see"
            )
        _fetch(place, found.local)
        if found.mirrors_checkpoints:
            for folder in CHECKPOINTS:
                _fetch_whole(place / folder, found.local / folder)
        if process == 0 and not (found.local / _LAST).exists():
            place.check_writable()
        yield found


def _fetch_whole(checkpoints: Url, target: pathlib.Path) -> None:
    """Copies the whole checkpoints, which are few."""
    for step in _whole(checkpoints):
        for name in (checkpoints / step).tree():
            if name != _MIRRORED:
                (checkpoints / step / name).download(target / step / name)
