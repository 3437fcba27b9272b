"""Orbax checkpoints: asynchronous, atomic, one an iteration."""

from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from isara_jax.files import remote
from isara_jax.method.state import State

KEPT = 2  # the newest checkpoints that stay on disk


class Checkpoints:
    """The checkpoints of a run: the carried `State`, and the host's JSON beside it.

    A context manager; leaving it waits for what is being written.
    """

    def __init__(self, place: remote.Workdir) -> None:
        self._place = place
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=True,
            single_host_load_and_broadcast=True,  # all processes know the same checkpoints
            cleanup_tmp_directories=True,  # else one is written on top of what a killed run left
        )
        self._manager = ocp.CheckpointManager(place.checkpoints, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Iterations completed in the newest whole checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, host: dict[str, Any]) -> None:
        """Begins to write a checkpoint; the device arrays may be donated once this returns."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        with jax.transfer_guard("allow"):  # how Orbax copies is its own affair
            self._manager.save(step, args=args)
        if self._place.mirrors_checkpoints:
            self.wait()
            self._place.keep_checkpoints()

    def wait(self) -> None:
        """Returns once all that was saved is whole."""
        self._manager.wait_until_finished()

    def restore_host(self) -> dict[str, Any]:
        """The host's JSON of the newest checkpoint."""
        args = ocp.args.Composite(host=ocp.args.JsonRestore())
        with jax.transfer_guard("allow"):
            return self._manager.restore(self.latest, args=args)["host"]

    def restore_state(self, like: State) -> State:
        """The state of the newest checkpoint, placed as `like` (arrays or shapes with sharding).

        Its pool may have another capacity, which follows from the iterations: free rows, all zeros,
        are added or left out.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract, strict=False))
        with jax.transfer_guard("allow"):
            return self._manager.restore(self.latest, args=args)["state"]
