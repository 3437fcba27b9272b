"""Writers: each step's scalars as lines of JSON and as TensorBoard events."""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from isara_jax import config
from isara_jax.files import storage


def _truncate(path: pathlib.Path, resume_step: int) -> None:
    """Drops a torn last line and the lines of steps after `resume_step`; all or nothing."""
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise config.UserError(
                f"{path}:{number}: expected a JSON object with a step, found {line[:80]!r}; "
                "mend or delete the line, or move the file away"
            ) from error
        if step <= resume_step:
            kept.append(line + b"\n")
    storage.atomic_write(path, b"".join(kept))


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and to `tensorboard/` in the run's folder.

    A run that was interrupted and continued leaves each step once: what was written after
    `resume_step` is dropped first (TensorBoard is told to hide it).

    Args:
      workdir: the run's folder, created when missing.
      resume_step: the last step to keep; -1 for a new run.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int) -> None:
        import tensorboardX

        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        if path.exists():
            _truncate(path, resume_step)
        self._lines = path.open("a", encoding="utf-8")
        # Event files are named by the second: the suffix keeps a quick restart from overwriting.
        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=resume_step + 1,
            flush_secs=1,  # a thread writes; a killed run loses at most this
            filename_suffix=f".{os.getpid()}.{resume_step + 1}",
        )

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's scalars, None left out; NaN and infinity are `null` in the line."""
        if clash := {"step", "time"} & scalars.keys():
            raise ValueError(
                f"scalars {sorted(clash)} would hide the line's own field; rename them"
            )
        now = time.time()
        values = {name: float(value) for name, value in scalars.items() if value is not None}
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        record = {"step": int(step), "time": now} | line
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, int(step), walltime=now)

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
