"""One run a workdir: who is refused, who takes over, here and at URLs."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest
from fsspec.implementations import memory

from isara_jax import config
from isara_jax.files import remote
from isara_jax.host import lock, run
from tests import environment

HOLDS = """
import pathlib, sys, time
from isara_jax.host import lock
from isara_jax.shell import endings
endings.obey_signals(resumes=True)
lock._BEAT_SECONDS = 0.05
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = {"host": "node7", "pid": 17, "started": "2026-01-02 03:04:05 +0000",
             "machine": "another", "born": "1", "token": "ab", "beats": 0}  # fmt: skip


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.02)


@pytest.fixture(params=["here", "at a URL"])
def folder(request, tmp_path):
    """A folder of each kind."""
    if request.param == "here":
        yield tmp_path / "run"
        return
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield remote.path("memory://bucket/run")
    store.store.clear()


def write(folder, content, number=1):
    """What a run elsewhere has left."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode().ljust(512)
    if isinstance(folder, pathlib.Path):
        folder.mkdir(exist_ok=True)
        (folder / f".run-{number}.lock").write_bytes(data)
    else:
        (folder / f".run-{number}.lock").write_bytes(data)


@contextlib.contextmanager
def another(folder):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDS, folder]
    with subprocess.Popen(
        command, env=environment.of(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_is_refused_and_a_killed_one_is_followed_at_once(tmp_path, capsys, monkeypatch):
    """Two runs in one folder would mix their files; kill -9 leaves nothing that must be removed."""
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 1e9)
    with another(tmp_path / "run") as process:
        who = f"process {process.pid} on {socket.gethostname()}, started 20"
        with pytest.raises(config.UserError, match=f"another run is writing there .{who}") as said:
            run.run(config.Config(), tmp_path / "run")
        assert "\n" not in str(said.value)
        process.kill()
        process.wait()
        with lock.held(tmp_path / "run"):
            assert [p.name for p in (tmp_path / "run").iterdir()] == [".run-2.lock"]
    assert f"the run that wrote there is gone ({who}" in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())


def test_a_signal_releases(tmp_path):
    """The next run starts without a word."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # heard in the child
    with another(tmp_path / "1") as one, another(tmp_path / "2") as two:
        one.send_signal(signal.SIGINT)
        two.send_signal(signal.SIGTERM)
        assert (one.wait(timeout=20), two.wait(timeout=20)) == (130, 75)
    signal.signal(signal.SIGINT, before)
    assert not list((tmp_path / "1").iterdir()) + list((tmp_path / "2").iterdir())


def test_a_reused_process_number_is_no_run(tmp_path, capsys):
    """This very process has the number, and began at another time."""
    about = ELSEWHERE | {"machine": lock._machine(), "pid": os.getpid()}
    assert lock._machine() and lock._born(os.getpid())
    write(tmp_path, about | {"born": lock._born(os.getpid())})
    with pytest.raises(config.UserError, match="another run"), lock.held(tmp_path):
        pass
    write(tmp_path, about)
    with lock.held(tmp_path):
        pass
    assert "takes over" in capsys.readouterr().err


def test_a_run_of_another_machine_is_known_by_its_signs_of_life(folder, capsys):
    """What changes while one looks is alive, whatever the clocks say; what does not is gone."""
    write(folder, ELSEWHERE)
    if isinstance(folder, pathlib.Path):  # a clock that was wrong
        os.utime(folder / ".run-1.lock", (2**31, 2**31))
    with lock.held(folder), pytest.raises(config.UserError, match="another run"), lock.held(folder):
        pass
    said = capsys.readouterr().err
    assert "process 17 on node7, started 2026-01-02 03:04:05 +0000" in said
    assert "looking for a sign of its life, 0.5 s at most" in said and "takes over" in said

    write(folder, ELSEWHERE)
    beat = threading.Timer(0.1, write, [folder, ELSEWHERE | {"beats": 1}])
    beat.start()
    with pytest.raises(config.UserError, match="process 17 on node7"), lock.held(folder):
        pass
    beat.join()


def test_a_lock_that_is_released_while_one_looks_is_taken(tmp_path, capsys):
    """The other run has ended well."""
    write(tmp_path, ELSEWHERE)
    threading.Timer(0.1, (tmp_path / ".run-1.lock").unlink).start()
    with lock.held(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".run-1.lock"]
    assert "takes over" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff" * 2000])
def test_a_damaged_lock_keeps_nobody_out_for_long(content, tmp_path):
    """A disk was full, or a machine lost its power."""
    write(tmp_path, content)
    with lock.held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_of_many_that_find_a_stale_lock_one_takes_over(folder):
    """A launcher starts a run twice, after a crash."""
    write(folder, ELSEWHERE, number=3)
    barrier = threading.Barrier(8)

    def start(_):
        barrier.wait()
        try:
            with lock.held(folder):
                time.sleep(1)
                return 1
        except config.UserError:
            return 0

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(8))) == 1
    assert not lock._numbers(folder)


def test_who_was_followed_ends(tmp_path):
    """A laptop that slept, or a process that was stopped, and a second run since."""
    with another(tmp_path / "run") as process:
        write(tmp_path / "run", ELSEWHERE, number=2)
        assert process.wait(timeout=20) == 1
        said = process.stderr.read()
        assert said.startswith(f"isara_jax: {tmp_path}/run: its lock .run-1.lock is gone or")
        assert (tmp_path / "run" / ".run-2.lock").exists()


class ReadOnly(memory.MemoryFileSystem):
    """A store that lets one only read."""

    protocol = "readonly"

    def pipe_file(self, path, value, **settings):
        raise OSError("Forbidden: no access")  # as gcsfs says it


def test_what_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    """The table of a finished run is shown from a disk or a bucket that is read only."""
    fsspec.register_implementation("readonly", ReadOnly, clobber=True)
    with lock.held(remote.path("readonly://bucket/run")):
        pass

    opened = pathlib.Path.open

    def refuses(self, mode="r", *given, **named):
        if "x" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(self, mode, *given, **named)

    monkeypatch.setattr(pathlib.Path, "open", refuses)
    with lock.held(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path):
    """A mistake in the configuration is not to be cleaned up after."""
    with pytest.raises(config.UserError), lock.held(tmp_path / "run"):
        raise config.UserError("config.seed: a mistake")
    assert not (tmp_path / "run").exists()
