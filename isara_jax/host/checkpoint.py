"""Orbax checkpoints: asynchronous, atomic, verified; of iterations, and of stages on the way.

| folder | a checkpoint holds | until |
|---|---|---|
| `checkpoints/` | the `State` after an iteration, and the host's JSON | two newer ones are whole |
| `stages/` | the result of a stage, or of a baseline's training | what it leads to is kept |
"""

import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import remote
from isara_jax.host import integrity
from isara_jax.host.executables import Keep
from isara_jax.host.integrity import DamagedError
from isara_jax.method.state import State
from isara_jax.shell import endings

KEPT = 2  # the newest checkpoints that stay on disk
WORTH_SECONDS = 10.0  # a stage that takes less is computed again rather than kept
T = TypeVar("T")


# Orbax logs what its threads raise, hundreds of lines of it, and raises it, too.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def check_room(place: remote.Workdir, tree: Any, times: float) -> None:
    """Sees that there is room for arrays: a disk that is full in the midst of them is a long story.

    Args:
      place: the run's folder.
      tree: the arrays.
      times: how often they will be there.

    Raises:
      config.UserError: there is not; the message says how much is needed.
    """
    needed = times * sum(x.nbytes for x in jax.tree.leaves(tree))
    # The first process's, which may be the only one that writes there: all must do the same.
    free = processes.of_the_first(shutil.disk_usage(place.local).free)
    if free < needed:
        raise config.UserError(
            f"{place}: what is kept needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are "
            "free; make room, then start the same command again"
        )


class _Folder:
    """Numbered checkpoints: arrays, and JSON that says what they are.

    A context manager; leaving it waits for what is being written.
    """

    def __init__(self, place: remote.Workdir, name: str, most: int | None) -> None:
        self._place, self._name = place, name
        options = ocp.CheckpointManagerOptions(
            max_to_keep=most,
            enable_async_checkpointing=True,
            single_host_load_and_broadcast=True,  # all processes know the same checkpoints
            cleanup_tmp_directories=True,  # else one is written on top of what a killed run left
        )
        self._manager = ocp.CheckpointManager(f"{place.orbax}/{name}", options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        # What ends the block comes first: what could not be written is often the same cause.
        with self._told() if error is None else contextlib.suppress(Exception):
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The numbers of all that are there, the newest first; not all may be whole."""
        return sorted(self._manager.all_steps(), reverse=True)

    def wait(self) -> None:
        """Returns once all that was saved is whole."""
        with self._told():
            self._manager.wait_until_finished()

    def _save(self, step: int, arrays: Any, about: dict[str, Any]) -> None:
        """Begins to write; the arrays may be donated once this returns."""
        check_room(self._place, arrays, 1.5)
        sums = [int(x) for x in jax.device_get(integrity.checksum(arrays))]
        sealed = integrity.sealed({"checksum": sums, "about": about})
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(sealed)
        )
        with self._told(), jax.transfer_guard("allow"):  # how Orbax copies is its own affair
            for later in self.steps:  # of a run that went on from a damaged one
                if later >= step:
                    self._manager.delete(later)
            self._manager.save(step, args=args)
        if self._place.mirrors_checkpoints:
            self.wait()
            self._place.keep_checkpoints(self._name)

    def _about(self, step: int) -> tuple[dict[str, Any], list[int]]:
        """What was said of a checkpoint, and the checksums of its arrays."""
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        with jax.transfer_guard("allow"), _reading():
            found = self._manager.restore(step, args=args)["about"]
        content = integrity.opened(found, f"{self._place}/{self._name}/{step}")
        return content["about"], content["checksum"]

    def _arrays(self, step: int, like: T, sums: list[int]) -> T:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract, strict=False))
        with jax.transfer_guard("allow"), _reading():
            arrays = self._manager.restore(step, args=args)["arrays"]
        found = [int(x) for x in jax.device_get(integrity.checksum(arrays))]
        if found != sums:
            raise DamagedError("its arrays are not what their checksums say")
        return arrays

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """One line of what cannot be written."""
        try:
            yield
        except Exception as error:
            said, status = endings.told(error)
            if status == endings.BUG:
                raise
            raise config.UserError(
                f"{self._place}/{self._name} could not be written: {said}; what was saved before "
                "is whole"
            ) from error


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever a reader of damaged files raises is damage."""
    try:
        yield
    except Exception as error:  # Orbax, TensorStore and JSON have errors of their own
        raise DamagedError(endings.one_line(error)[:200]) from error


class Restored(NamedTuple):
    """A checkpoint that is whole: the iterations completed, the state, the host's JSON."""

    step: int
    state: State
    host: dict[str, Any]


class Checkpoints(_Folder):
    """One an iteration: the carried `State`, and the host's JSON beside it."""

    def __init__(self, place: remote.Workdir) -> None:
        super().__init__(place, "checkpoints", KEPT)

    @property
    def latest(self) -> int | None:
        """Iterations completed in the newest checkpoint, whole or not; None where there is none."""
        return max(self.steps, default=None)

    def save(self, step: int, state: State, host: dict[str, Any]) -> None:
        """Begins to write a checkpoint; the device arrays may be donated once this returns.

        Raises:
          config.UserError: it cannot be written.
        """
        self._save(step, state, host)

    def restore(self, like: State) -> Restored | None:
        """The newest checkpoint that is whole, said where a newer one is not; None: there is none.

        Args:
          like: arrays, or shapes, with their sharding. The pool may have another capacity, which
            follows from the iterations: free rows, all zeros, are added or left out.

        Raises:
          config.UserError: a newer version has written it.
        """
        damaged, found = [], None
        for step in self.steps:
            said = "another process cannot read it"
            try:
                host, sums = self._about(step)
                found = Restored(step, self._arrays(step, like, sums), host)
            except DamagedError as error:
                found, said = None, str(error)
            if not processes.in_any(found is None):
                break
            found = None
            damaged.append(f"{self._place}/{self._name}/{step} is damaged ({said})")
        if damaged:
            then = f"from iteration {found.step}" if found else "from the beginning"
            processes.say_once(f"{'; '.join(damaged)}: the run goes on {then}")
        return found


class Stages(_Folder):
    """Results of long stages, each kept until what it leads to is."""

    def __init__(self, place: remote.Workdir) -> None:
        super().__init__(place, "stages", None)
        self._found: dict[str, tuple[int, list[int]]] = {}
        for step in self.steps:
            about = None
            with contextlib.suppress(DamagedError):
                about, sums = self._about(step)
            if not processes.in_any(about is None):
                self._found[about["stage"]] = step, sums
        self._number = max(self.steps, default=0)

    def __call__(self, stage: str, compute: Callable[[], T], like: Callable[[], T]) -> T:
        """What `compute` gives, or what it gave before the run was interrupted.

        Args:
          stage: its name; with what the result depends on that may change between two starts.
          compute: computes it.
          like: the shapes of the result, with their sharding.
        """
        if stage in self._found:
            kept = None
            with contextlib.suppress(DamagedError):
                step, sums = self._found[stage]
                kept = self._arrays(step, like(), sums)
            if not processes.in_any(kept is None):
                return kept
        began = time.monotonic()
        result = jax.block_until_ready(compute())
        asked = processes.all_asked_to_end()
        if asked or processes.of_the_first(time.monotonic() - began) >= WORTH_SECONDS:
            self._number += 1
            try:
                self._save(self._number, result, {"stage": stage})
            except config.UserError as error:  # nothing is lost yet
                processes.say_once(f"a stage is not kept: {error}")
        if asked:
            self.wait()
            endings.end_preempted(stage)
        return result

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        with contextlib.suppress(OSError):  # there is something in it, or it is no local folder
            pathlib.Path(self._place.orbax, self._name).rmdir()

    def under(self, name: str) -> Keep:
        """The stages of one iteration, or of one baseline."""
        return lambda stage, *how: self(f"{name}: {stage}", *how)

    def clear(self) -> None:
        """Drops all; what they led to is kept."""
        self.wait()
        self._found = {}
        with self._told():
            for step in self.steps:
                self._manager.delete(step)
