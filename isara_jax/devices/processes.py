"""Many processes that are one run: how they meet, agree, and end when one of them does."""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax._src import distributed  # what processes share by name has no public interface
from jax.experimental import multihost_utils

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.devices.watch import Watch
from isara_jax.shell import endings

# After which JAX takes a process for dead that is frozen, or waits no longer for others at the end.
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 50, 30
_NOTICE_SECONDS = 20  # of waiting for the others to start, until one is told
# In which a file of one process is seen by the others: NFS remembers for 60 that there is none.
_SHARED_SECONDS = 75


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
    state = distributed.global_state
    watch = Watch(state.client, state.process_id, state.num_processes, state.coordinator_address)
    with endings.tidied(watch.signalled):
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
    with jax.transfer_guard("allow"):  # it may be asked in the midst of a run
        return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def all_asked_to_end() -> bool:
    """Whether one of the processes, or more, was told by SIGTERM to save what it has and end.

    All must call it, at the same point of what they compute, and are told the same. JAX's own
    preemption service (`multihost_utils.reached_preemption_sync_point`) would have them stop at
    the next such point, which may be minutes away, and keeps SIGTERM from everybody else.
    """
    return in_any(endings.asked_to_end())


def in_any(value: bool) -> bool:
    """Whether it is so in one of the processes, or more; all must ask at the same point."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard("allow"):
        return bool(np.any(multihost_utils.process_allgather(np.array(value))))


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
    _make_room()
    try:
        # It would keep SIGTERM for itself: nobody would know when the grace period ends.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method="deactivate" if known else None,
            # Else on all interfaces: of another name one cannot tell which is its own.
            coordinator_bind_address=coordinator if _is_here(coordinator) else None,
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


def _is_here(coordinator: str | None) -> bool:
    """Whether only this machine can reach an address."""
    return re.match(r"(localhost|127\.0\.0\.1|\[::1\]):", coordinator or "") is not None


def _make_room() -> None:
    """Lets strangers' connections to JAX's service, which takes all, leave descriptors for files.

    It drops those that do not speak its protocol after two minutes.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _silence_gloo() -> None:
    """Keeps from the output what Gloo, below JAX on CPUs, prints about each of its connections.

    It writes to the file descriptor; what Python prints goes on.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = os.fdopen(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
