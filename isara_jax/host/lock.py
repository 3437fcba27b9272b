"""One run a workdir: the second is refused, what a run that is gone has left is taken over.

A lock is a file `.run-N.lock` in the folder, made so that only one can make it (`O_EXCL`, which NFS
keeps too, or a store's if-none-match) and rewritten every few seconds. The one of the highest
number counts: a stale one is not replaced, which two could do at once, but followed by the next.

Whether it is stale is seen on the same machine by the process, else by its content, which must
change while one looks at it. So neither clocks count nor what they were set to.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from isara_jax import config
from isara_jax.files import remote
from isara_jax.shell import endings

_BEAT_SECONDS = 10.0  # after which a lock is written again
_PATIENCE_SECONDS = 120.0  # without that, after which its process is taken for gone
_LOOK_SECONDS = 2.0
_SIZE = 512  # bytes of a lock, always: one that is being written is never shorter
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NAME = re.compile(r"\.run-(\d+)\.lock")


class _ReadOnlyError(Exception):
    """A folder cannot be written."""


@contextlib.contextmanager
def held(folder: remote.Path) -> Iterator[None]:
    """In the block, no other run writes into the folder, which is made where it is missing.

    A folder that cannot be written, of a finished run for example, needs no lock.

    Args:
      folder: here or at a URL.

    Raises:
      config.UserError: another run writes there; the message says which.
    """
    made = isinstance(folder, pathlib.Path) and not folder.exists()
    try:
        lock = _taken(folder)
    except _ReadOnlyError:
        lock = None
    if lock is None:
        yield
        return
    with endings.tidied(lock.release):
        try:
            yield
        finally:
            lock.release()
            if made:
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


def _taken(folder: remote.Path) -> "_Lock":
    if isinstance(folder, pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
    while True:
        before = _numbers(folder)
        if before and not _ended(folder, _name(folder, before[-1])):
            continue  # it was released, or followed by another
        own = _Lock(folder, before[-1] + 1 if before else 1)
        if own.make():
            for number in before:
                _remove(_name(folder, number))
            return own


def _numbers(folder: remote.Path) -> list[int]:
    """Of the locks in a folder, the one that counts last."""
    names = os.listdir(folder) if isinstance(folder, pathlib.Path) else folder.files()  # noqa: PTH208
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def _name(folder: remote.Path, number: int) -> remote.Path:
    return folder / f".run-{number}.lock"


def _ended(folder: remote.Path, lock: remote.Path) -> bool:
    """Whether the run that a lock is of is gone without having released it.

    Raises:
      config.UserError: it is not gone.
    """
    if (content := _content(lock)) is None:
        return False
    try:
        about = json.loads(content)
        of = f"process {about['pid']} on {about['host']}, started {about['started']}"
        machine, born = about["machine"], about["born"]
    except (ValueError, KeyError, TypeError):
        about, of, machine = None, "which it does not say", None
    if machine and machine == _machine():
        if _born(about["pid"]) == born:
            raise _refusal(folder, of)
    elif not _silent(folder, lock, content, of):
        return False
    endings.say(f"{folder}: the run that wrote there is gone ({of}); this one takes over")
    return True


def _silent(folder: remote.Path, lock: remote.Path, content: bytes, of: str) -> bool:
    """Whether a lock's content stays as it is; False where the lock goes away."""
    endings.say(
        f"{folder}: a run may be writing there ({of}); looking for a sign of its life, "
        f"{_PATIENCE_SECONDS:g} s at most"
    )
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        now = _content(lock)
        if now is None:
            return False
        if now != content:
            raise _refusal(folder, of)
    return True


def _refusal(folder: remote.Path, of: str) -> config.UserError:
    return config.UserError(
        f"{folder}: another run is writing there ({of}); wait for its end, end it, or choose "
        "another --workdir"
    )


class _Lock:
    """A lock of this process."""

    def __init__(self, folder: remote.Path, number: int) -> None:
        self._folder, self._number, self._path = folder, number, _name(folder, number)
        self._about = {
            "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(),
            "born": _born(os.getpid()), "token": secrets.token_hex(8),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }  # fmt: skip
        self._beats = 0
        self._released = threading.Event()

    def make(self) -> bool:
        """Makes the file and keeps it alive; False if another run was faster."""
        if not self._create():
            return False
        if self._lost():
            _remove(self._path)
            return False
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def release(self) -> None:
        """Removes the file."""
        self._released.set()
        with contextlib.suppress(OSError, config.UserError):
            if not self._lost():
                _remove(self._path)

    def _create(self) -> bool:
        """Makes the file; False if there is one.

        Raises:
          _ReadOnlyError: nothing can be written there; what needs to be, says so.
        """
        try:
            if isinstance(self._path, remote.Url):
                return self._path.create(self._written())
            with self._path.open("xb") as file:
                file.write(self._written())
        except FileExistsError:
            return False
        except (OSError, config.UserError) as error:
            if isinstance(error, config.UserError) or error.errno in _READ_ONLY:
                raise _ReadOnlyError from error
            raise
        return True

    def _written(self) -> bytes:
        return json.dumps(self._about | {"beats": self._beats}).encode().ljust(_SIZE)

    def _lost(self) -> bool:
        """Whether another run has taken over, or the file is not this process's any more."""
        content = _content(self._path)
        ours = content is not None and self._about["token"].encode() in content
        return not ours or _numbers(self._folder)[-1:] != [self._number]

    def _beat(self) -> None:
        while not self._released.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError, config.UserError):  # out of reach: the next time
                if self._lost():
                    if not self._released.is_set():
                        self._give_way()
                    return
                self._beats += 1
                if isinstance(self._path, remote.Url):
                    self._path.write_bytes(self._written())
                else:
                    with self._path.open("r+b") as file:  # not made again, if it is gone
                        file.write(self._written())

    def _give_way(self) -> None:
        endings.tidy()
        endings.end(
            f"{self._folder}: its lock {self._path.name} is gone or followed by another run's, as "
            "after a process was stopped for minutes; this run ends, so that no two write there",
            endings.MISTAKE,
        )


def _content(lock: remote.Path) -> bytes | None:
    """What is in a lock; None if there is none."""
    try:
        with lock.open("rb") as file:
            return file.read(_SIZE)
    except FileNotFoundError:
        return None
    except config.UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _remove(lock: remote.Path) -> None:
    if isinstance(lock, remote.Url):
        lock.remove()
    else:
        lock.unlink(missing_ok=True)


def _machine() -> str:
    """What tells apart the machines, and the containers, that number processes of their own.

    Empty where that cannot be said (no Linux).
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return ""


def _born(pid: Any) -> str:
    """When a process of this machine has begun, in the kernel's ticks; empty if it is gone."""
    try:
        status = pathlib.Path(f"/proc/{int(pid)}/stat").read_text(
            encoding="utf-8", errors="replace"
        )
    except (OSError, ValueError, TypeError):
        return ""
    state, *fields = status.rpartition(")")[2].split()  # the command before it may hold anything
    return "" if state in "ZX" else fields[18]
