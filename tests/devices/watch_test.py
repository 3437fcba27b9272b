"""The watch over processes, without JAX: who may end a run, and how all end with one."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import environment

HOST = socket.gethostname()
# A process of a run, whose store is a folder in place of the coordination service's.
PROCESS = """
import os, pathlib, signal, sys, time
from isara_jax import config
from isara_jax.devices.watch import Watch
from isara_jax.shell import command, endings

folder, number, n, port, how = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
class Store:
    def key_value_set(self, key, value):
        path = folder / key.replace("/", "_")
        path.with_suffix(".tmp").write_text(value)
        path.with_suffix(".tmp").rename(path)
    def blocking_key_value_get(self, key, ms):
        path = folder / key.replace("/", "_")
        while not path.exists():
            time.sleep(0.01)
        return path.read_text()
def work():
    watch = Watch(Store(), number, n, f"localhost:{port}")
    with endings.tidied(watch.signalled), endings.tidied(lambda: print("tidied", flush=True)):
        try:
            print("there", flush=True)
            if how == "preempted":
                time.sleep(0.3 * (number + 1) % 0.9)
                endings.end_preempted("iteration 1")
            while not (folder / "go").exists():
                time.sleep(0.01)
        except BaseException as error:
            watch.leave(error)
        watch.done()
endings.obey_signals(resumes=True)
sys.argv[1:] = []
command.run(command.of(work))
"""


@contextlib.contextmanager
def run(folder, n, how="well"):
    """The processes of a run, of which those that others wait for come later; all are ended."""
    with socket.create_server(("localhost", 0)) as service:  # what the others probe
        started = []

        def start(number):
            command = [sys.executable, "-c", PROCESS, folder, number, n,
                       service.getsockname()[1], how]  # fmt: skip
            started.append(
                subprocess.Popen(
                    [str(word) for word in command], env=environment.of(), text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
            return started[-1]

        try:
            yield start
        finally:
            for process in started:
                process.kill()
                process.communicate()


def listening(pid):
    """Addresses at which a process listens, as Linux writes them."""
    sockets = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(str(link.readlink()))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [f[1] for f in lines if f[3] == "0A" and f"socket:[{f[9]}]" in sockets]


def connect(port):
    """A stranger's connection, held open; the system waits for room in the queue of a busy one."""
    with contextlib.suppress(OSError):
        return socket.create_connection(("localhost", port), timeout=5)


def send(stranger, data):
    with contextlib.suppress(OSError, AttributeError):  # it was dropped
        stranger.sendall(data)


def annoy(port, flood):
    """Garbage, what looks like one of the run's lines, silence, and many at once."""
    noise = random.Random(0)
    said = [b"", b"\n", b"process 1 on evil\n1 the end\n", b"0" * 32 + b" process 1 on evil",
            (b"0" * 32 + b" process 1 on evil").ljust(512) + b"1 the end\n",
            b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise.randbytes(999),
            noise.randbytes(100_000), b"x" * 1_000_000]  # fmt: skip
    strangers = [connect(port) for _ in range(flood)] + [connect(port) for _ in said]
    for stranger, data in zip(reversed(strangers), said, strict=False):
        send(stranger, data)
    return strangers


def test_strangers_end_nothing_and_fill_nothing(tmp_path):
    """While the first waits for the others; then its door is closed, and nobody is left outside."""
    with run(tmp_path, 3) as start:
        first, second = start(0), start(1)
        (tmp_path / "isara_jax_address_2").write_text("127.0.0.1")
        assert first.stdout.readline() == second.stdout.readline() == "there\n"
        [door] = listening(first.pid)
        address, port = door.split(":")
        assert address == "0100007F"  # of all interfaces the coordinator's
        strangers = annoy(int(port, 16), flood=200)
        time.sleep(0.5)
        assert first.poll() is None and second.poll() is None
        open_files = len(os.listdir(f"/proc/{first.pid}/fd"))  # noqa: PTH208
        assert open_files < 100
        third = start(2)
        assert third.stdout.readline() == "there\n"
        while listening(first.pid):
            time.sleep(0.05)
        (tmp_path / "go").touch()
        assert [p.wait(timeout=20) for p in (first, second, third)] == [0, 0, 0]
        assert not first.stderr.read() + second.stderr.read() + third.stderr.read()
    assert all(strangers)


@pytest.mark.parametrize(
    ("number", "of", "status", "word"),
    [
        (signal.SIGINT, 1, 130, "was interrupted"),
        (signal.SIGTERM, 0, 75, "was told to end (SIGTERM)"),
        (signal.SIGKILL, 1, 1, "has died: killed, or its machine is gone"),
    ],
)
def test_a_signal_to_one_ends_all(number, of, status, word, tmp_path):
    """Ctrl-C and a preemption with a status that launchers tell apart from a failure."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with run(tmp_path, 2) as start:
        started = [start(0), start(1)]
        assert [process.stdout.readline() for process in started] == ["there\n"] * 2
        time.sleep(0.2)
        started[of].send_signal(number)
        own = -signal.SIGKILL if number == signal.SIGKILL else status
        assert started[of].wait(timeout=20) == own
        other = started[1 - of]
        assert other.wait(timeout=20) == status
        assert other.stderr.read() == f"isara_jax: process {of} on {HOST} {word}\n"
        assert other.stdout.read() == "tidied\n"  # such as the lock of the folder
    signal.signal(signal.SIGINT, before)


def test_a_preempted_run_ends_when_all_have_saved(tmp_path):
    """The slowest has saved before any is gone, and the user is told once."""
    with run(tmp_path, 3, "preempted") as start:
        started = [start(number) for number in range(3)]
        said = [process.communicate(timeout=20) for process in started]
        assert [process.returncode for process in started] == [75] * 3
    line = "isara_jax: told to end (SIGTERM): saved iteration 1; the same command continues\n"
    assert [errors for _, errors in said] == [line, "", ""]
