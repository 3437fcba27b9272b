"""Many processes that are one run: how they meet, and how all end when one does.

A process that dies says nothing, and the others would wait for it inside a collective operation.
JAX notices by a heartbeat that is missed. Here each process also keeps a connection with the first:
it closes when a process dies, whatever of, and the others end within a second and say who it was.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TextIO

import jax
import numpy as np
from jax._src import distributed  # what processes share by name has no public interface
from jax.experimental import multihost_utils

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.shell import endings

# After which JAX takes a process for dead that is frozen, or waits no longer for others at the end.
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 50, 30
_NOTICE_SECONDS = 20  # of waiting for the others to start, until one is told
# In which a file of one process is seen by the others: NFS remembers for 60 that there is none.
_SHARED_SECONDS = 75
_GRACE_SECONDS = 2  # in which the first process may fail too, or a death explains a failure
_PORT = "isara_jax/watch"
_DONE, _SAID = "done", "said"  # last words: all went well; the first has told the user why not


@functools.cache
def say_once(text: str) -> None:
    """Says on stderr what should be known and ends nothing: in the first process, once."""
    if not distributed.global_state.process_id:
        endings.say(text)


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Makes this process one of several, if it is; when one of them fails in the block, all end.

    Must be entered before JAX looks for devices. What is None is asked of the launcher: Slurm's
    `srun`, Open MPI's `mpirun`, a TPU's hosts, the indexed jobs of Kubernetes.

    Args:
      coordinator: host and port at which the first process can be reached.
      num_processes: how many there are; 1: this one, whatever the launcher says.
      process_id: the number of this one, from 0.

    Raises:
      config.UserError: the others cannot be found.
    """
    given = (coordinator, num_processes, process_id)
    asked = any(value is not None for value in given)
    if num_processes == 1 or not (asked or launched_with_others(os.environ)):
        yield
        return
    _join(*given)
    if distributed.global_state.num_processes == 1:
        yield
        return
    watch = _Watch()
    with endings.tidied(watch.interrupted):
        try:
            mesh.check_platforms()  # else the next line would not say which is missing
            if jax.default_backend() == "cpu":
                _silence_gloo()
            yield
        except BaseException as error:  # KeyboardInterrupt among them
            watch.leave(error)
        watch.done()


def of_the_first(value: float) -> float:
    """The first process's value of what each measures, but all must agree on."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def check_same(record: str) -> None:
    """Sees that all processes are given the same; else they would wait for each other for ever.

    Raises:
      config.UserError: the first one was given something else.
    """
    number = int(hashlib.sha256(record.encode()).hexdigest()[:6], 16)  # as many bits as f32 holds
    if number != of_the_first(number):
        raise config.UserError(
            "this process has another configuration or other seeds than the first; start all with "
            "the same flags and files"
        )


def check_shared(folder: pathlib.Path) -> None:
    """Sees that all processes mean the same folder by a path.

    Raises:
      config.UserError: this process means another one than the first.
    """
    if jax.process_count() == 1:
        return
    mark, first = folder / ".processes", jax.process_index() == 0
    number = str(int(of_the_first(os.getpid())))
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(number)
    multihost_utils.sync_global_devices("isara_jax: written")
    until = time.monotonic() + _SHARED_SECONDS
    while not (mark.exists() and mark.read_text() == number):
        if time.monotonic() > until:
            raise config.UserError(
                f"--workdir: {folder} is not the folder that the first process has; choose one on "
                "a file system that all processes share, or in a bucket (gs://...)"
            )
        time.sleep(0.2)
    multihost_utils.sync_global_devices("isara_jax: seen")
    if first:
        mark.unlink()


def launched_with_others(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows says that there are, or may be, more processes.

    Only then is JAX asked: it takes a shell inside a Slurm allocation for all of its tasks, and may
    wait for minutes for a metadata server that a single TPU host, such as Colab's, does not have.
    """
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return environment["OMPI_COMM_WORLD_SIZE"] != "1"
    if "SLURM_STEP_NUM_TASKS" in environment:  # `srun` sets it
        return environment["SLURM_STEP_NUM_TASKS"] != "1"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts or environment.get("MEGASCALE_NUM_SLICES", "1") != "1"
    # An indexed job of Kubernetes, and how new versions of it tell the hosts of TPUs.
    if environment.keys() & {"JOB_COMPLETION_INDEX", "TPU_PROCESS_ADDRESSES_PATH"}:
        return True
    on_tpu = (jax.config.jax_platforms or "").startswith("tpu")  # JAX sets it there
    return on_tpu and "TPU_SKIP_MDS_QUERY" not in environment


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    known = None not in (coordinator, num_processes, process_id)
    notice = threading.Timer(
        _NOTICE_SECONDS,
        endings.say,
        ["waiting for the other processes; JAX gives up after 5 minutes"],
    )
    notice.daemon = True
    notice.start()
    try:
        # It would keep SIGTERM for itself, and this process would outlive it.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method="deactivate" if known else None,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )  # fmt: skip
    except Exception as error:  # each launcher has errors of its own
        raise config.UserError(
            f"the other processes cannot be found ({' '.join(str(error).split())}). Give all of "
            "--coordinator=HOST:PORT, --num_processes and --process_id, or --num_processes=1 to "
            "run alone"
        ) from error
    finally:
        notice.cancel()


def _silence_gloo() -> None:
    """Keeps from the output what Gloo, below JAX on CPUs, prints about each of its connections.

    It writes to the file descriptor; what Python prints goes on.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = os.fdopen(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


class _Watch:
    """The connections through which processes learn that one of them has ended.

    Each says two lines: who it is and, when it ends, why. The first hears all and tells all.
    """

    def __init__(self) -> None:
        state = distributed.global_state
        self._first = state.process_id == 0
        self._me = f"process {state.process_id} on {socket.gethostname()}"
        self._connections: list[socket.socket] = []
        self._listener: threading.Thread | None = None
        self._ending = threading.Lock()
        if self._first:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
            state.client.key_value_set(_PORT, str(server.getsockname()[1]))
            _start(self._accept, server)
            return
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        port = int(state.client.blocking_key_value_get(_PORT, 60_000))
        try:
            connection = socket.create_connection((host, port), timeout=20)
        except OSError as error:
            endings.say(
                f"{self._me} cannot reach {host}:{port} ({error}): only JAX watches over it"
            )
            return
        # Known to each other before anything can happen to this one.
        self._listener = _start(self._hear, *self._greet(connection))

    def _accept(self, server: socket.socket) -> None:
        while True:
            _start(self._follow, server.accept()[0])

    def _follow(self, connection: socket.socket) -> None:
        self._hear(*self._greet(connection))

    def _greet(self, connection: socket.socket) -> tuple[str, TextIO]:
        """Who is at the other end, and what it is going to say."""
        _notice_silence(connection)
        self._connections.append(connection)
        _tell(connection, self._me)
        lines = connection.makefile(encoding="utf-8", errors="replace")
        return _line(lines), lines

    def _hear(self, other: str, lines: TextIO) -> None:
        """Waits for the last word of another process, and ends this one if it is not good."""
        word = _line(lines)
        if not re.fullmatch(r"process \d+ on \S+", other) or word == _DONE:
            return
        if self._first and word:
            time.sleep(_GRACE_SECONDS)  # what all stumble over, the first says itself
        died = f"{other} has died: killed, or its machine is gone"
        self._end(word or died, said="" if word == _SAID else None)

    def leave(self, error: BaseException) -> NoReturn:
        """Ends all processes because of an error in this one.

        At once: at a regular end JAX would wait for the others, which wait for this one.
        """
        said, status = endings.told(error)
        if status == endings.INTERRUPTED:
            self._end(f"{self._me} was interrupted", status=status)
        if isinstance(error, config.UserError):  # perhaps of all: the first speaks for them
            if self._first:
                self._end(_SAID, said=said)
            self._end(f"{self._me}: {said}", said="" if self._connections else None)
        time.sleep(_GRACE_SECONDS + 1)  # if another's death is felt here, that is what is said
        if status != endings.BUG:
            self._end(f"{self._me}: {said}", status=status)
        traceback.print_exception(error)
        cause = f"{self._me}: {type(error).__name__}: {error}"
        self._end(cause, said=f"{self._me}: {said}", status=status)

    def interrupted(self) -> None:
        """Tells the others, when a signal ends this process."""
        self._ending.acquire()  # what they say of it is no news any more
        self._tell_all(f"{self._me} was interrupted")

    def done(self) -> None:
        """Ends the watch, at a good end.

        The others wait for the first, which may have much to write; JAX would not wait for long.
        """
        for connection in self._connections:
            _tell(connection, _DONE)
        if self._listener is not None:
            self._listener.join()

    def _end(self, sentence: str, said: str | None = None, *, status: int = 1) -> NoReturn:
        """Ends this process.

        Args:
          sentence: why, for the others.
          said: and for whoever reads this one's output, if that differs; empty: nothing.
          status: of the process.
        """
        self._ending.acquire()  # for good: the first reason counts
        if said != "":
            endings.say(said or sentence)
        self._tell_all(sentence)
        endings.end("", status)

    def _tell_all(self, sentence: str) -> None:
        for connection in self._connections:
            _tell(connection, sentence)
        if self._first:
            time.sleep(0.5)  # without it JAX would end the others, before they have heard why


def _start(work: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread


def _tell(connection: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        connection.sendall(f"{' '.join(text.split())}\n".encode())


def _line(lines: TextIO) -> str:
    try:
        return lines.readline().strip()
    except OSError:  # reset, or timed out
        return ""


def _notice_silence(connection: socket.socket) -> None:
    """Makes the kernel ask, so that a machine that is gone is noticed in half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
