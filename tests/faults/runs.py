"""Runs that are disturbed and started again, and what must be equal to one that was not."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from tests import environment

# Started as users start it; but every stage is kept, however short, and `DIE_AT=n` kills the
# process at the n-th time that it is about to give something that is kept its name.
_CHILD = """
import itertools, os, pathlib, runpy, signal
from isara_jax.host import checkpoint
checkpoint.WORTH_SECONDS = 0.0
calls, die_at = itertools.count(1), int(os.environ.get("DIE_AT", 0))
def counted(function):
    def call(*given, **named):
        if next(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)
    return call
pathlib.Path.replace = counted(pathlib.Path.replace)
checkpoint.ocp.CheckpointManager.save = counted(checkpoint.ocp.CheckpointManager.save)
runpy.run_module("isara_jax.main", run_name="__main__", alter_sys=True)
"""
_CONFIG = """
from tests.method.iteration_test import small

def get_config():
    return small({model!r}, **{changes!r})
"""
_TIMES = ("seconds", "compiles")  # of the summary: not the same twice
_LIMIT = 600  # seconds, for one start


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to run: `execution`, how many processes, what is trained."""

    execution: str = "fused"
    processes: int = 1
    trainable: str = "lora"

    @property
    def changes(self) -> dict[str, object]:
        """Fields of the configuration, as `iteration_test.small` takes them."""
        return {
            "samples_per_iteration": 8, "evaluation__n": 8, "execution": self.execution,
            "train__trainable": self.trainable, "mesh": f"1x1x{self.processes}",
            "evaluation__baselines": ("icl_knn", "sft", "one_round"),
        }  # fmt: skip

    def __str__(self) -> str:
        number = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.execution}, {number}, {self.trainable}"


class Ended(NamedTuple):
    """How a run ended that got a signal: seconds from it to the last process's end, statuses."""

    seconds: float
    statuses: list[int]


class Command:
    """The command of a kind of run, on a model, in a folder."""

    def __init__(self, kind: Kind, model: pathlib.Path, folder: pathlib.Path) -> None:
        self.kind, self.model = kind, model
        self.workdir, self._config = folder / "run", folder / "config.py"
        self._config.write_text(_CONFIG.format(model=str(model), changes=kind.changes))

    def start(self, **variables: str) -> list[subprocess.Popen]:
        """Starts its processes."""
        flags = [f"--config={self._config}", f"--workdir={self.workdir}"]
        if self.kind.processes > 1:
            with socket.create_server(("localhost", 0)) as free:
                port = free.getsockname()[1]
            flags += [f"--coordinator=localhost:{port}", f"--num_processes={self.kind.processes}"]
        each = [[f"--process_id={i}"] if self.kind.processes > 1 else []
                for i in range(self.kind.processes)]  # fmt: skip
        return [
            subprocess.Popen(
                [sys.executable, "-c", _CHILD, *flags, *own],
                env=environment.of() | variables, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for own in each
        ]  # fmt: skip

    def finish(self) -> str:
        """Runs it to its end, and returns what it has said.

        Raises:
          RuntimeError: it failed.
        """
        started = self.start()
        said = [process.communicate(timeout=_LIMIT)[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError(f"{self.kind}: {said}")
        return said[0]

    def disturb(self, after: float, by: signal.Signals, only: int | None = None) -> Ended | None:
        """Starts it and sends it a signal after so many seconds; None: it had ended before.

        Args:
          after: seconds.
          by: the signal.
          only: the process that gets it, the others are to end by themselves; None: all.
        """
        started = self.start()
        until = time.monotonic() + after
        while time.monotonic() < until and any(p.poll() is None for p in started):
            time.sleep(0.02)
        at_work = any(process.poll() is None for process in started)
        began = time.monotonic()
        for process in started if only is None else [started[only]]:
            if process.poll() is None:
                os.killpg(process.pid, by)
        for process in started:
            process.communicate(timeout=_LIMIT)
        statuses = [process.returncode for process in started]
        return Ended(time.monotonic() - began, statuses) if at_work else None


def differences(workdir: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """The files of a run that are not what they are in the other one, times left out."""
    ours, theirs = _content(workdir), _content(expected)
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def _content(workdir: pathlib.Path) -> dict[str, object]:
    """What is in the files of a run, but for what is kept for a restart."""
    found: dict[str, object] = {}
    for path in sorted(path for path in workdir.rglob("*") if path.is_file()):
        name = path.relative_to(workdir)
        if name.parts[0] in ("checkpoints", "stages", "data", "tensorboard", "history.json"):
            continue
        found[str(name)] = path.read_bytes()
    summary = json.loads(found["summary.json"])
    found["summary.json"] = {k: v for k, v in summary.items() if k not in _TIMES}
    found["metrics.jsonl"] = [
        {k: v for k, v in json.loads(line).items() if k != "time"}
        for line in found["metrics.jsonl"].splitlines()
    ]
    # The page has the times, too: it is made from the summary.
    found["report.html"] = len(found["report.html"]) > 0
    return found
