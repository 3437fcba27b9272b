"""A long run on a small model: memory, disk and seconds an iteration stay what they were.

    python -m benchmarks.host.soak --iterations=50

runs `isara_jax.main` on the bundled LLaMA in a process of its own, with every sample accepted, so
that the pool is full at the end, and with training on the last samples alone, so that iterations
are alike. From outside it looks at the process and at its folder whenever metrics.jsonl has an
iteration more. Prints a table; a last line is JSON: the ratios of late to early, and how often each
program was compiled.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags

from isara_jax.files import storage

_ITERATIONS = flags.DEFINE_integer("iterations", 50, "How many.", 4)
_SAMPLES = flags.DEFINE_integer("samples", 16, "A round.", 8)
_WORKDIR = flags.DEFINE_string("workdir", None, "Kept; by default a folder that is not.")
MB = 1e6
_SETTINGS = {
    "slots": 8, "train.epochs": 1, "train.batch_size": 8, "train.data": "latest",
    "train.include_seeds": False, "evaluation.n": 4, "evaluation.baselines": "()",
    "task.n_seeds": 8,
    "filters.finished": False, "filters.min_tokens": 0, "filters.rouge_l": 2.0,
}  # fmt: skip


def command(workdir: pathlib.Path) -> list[str]:
    """Of the run."""
    settings = _SETTINGS | {
        "iterations": _ITERATIONS.value,
        "samples_per_iteration": _SAMPLES.value,
    }
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "isara_jax.main", "--config=configs/safety.py",
            f"--workdir={workdir}", *given]  # fmt: skip


def watch(process: subprocess.Popen, workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
    """An entry an iteration: `iteration`, `rss` and `disk` in bytes, `seconds`, `accepted`."""
    path, seen, before = workdir / "metrics.jsonl", 0, None
    while process.poll() is None:
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines[seen:]:
            record = json.loads(line)
            if record["step"] > 0:
                yield {
                    "iteration": record["step"],
                    "rss": rss(process.pid),
                    "disk": disk(workdir),
                    "seconds": record["time"] - before,
                    "accepted": record["accepted"],
                }
            before = record["time"]
        seen = len(lines)
        time.sleep(0.2)


def rss(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def disk(folder: pathlib.Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (pathlib.Path(parent) / name).stat().st_size
            except FileNotFoundError:  # of a checkpoint that is being replaced
                continue
    return total


def result(found: Sequence[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Late against early: a tenth to three tenths of the iterations, and the last two tenths."""
    n = len(found)
    early, late = found[n // 10 : 3 * n // 10], found[8 * n // 10 :]

    def ratio(name: str) -> float:
        one, other = (statistics.median(entry[name] for entry in part) for part in (early, late))
        return other / one

    pool = summary["n_seeds"] + sum(entry["accepted"] for entry in found)
    return {
        "iterations": n,
        "late_to_early": {name: round(ratio(name), 3) for name in ("rss", "disk", "seconds")},
        "pool": pool,
        "capacity": summary["n_seeds"] + n * summary["config"]["samples_per_iteration"],
        "compiles": summary["compiles"],
    }


def main(_: Sequence[str]) -> None:
    """Runs, watches and prints."""
    given = _WORKDIR.value and contextlib.nullcontext(pathlib.Path(_WORKDIR.value))
    with given or storage.scratch() as folder:
        workdir, found = folder / "run", []
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command(workdir), stdout=said, stderr=said)
            print(
                f"{'iteration':>10}{'RSS, MB':>10}{'disk, MB':>10}{'seconds':>10}{'accepted':>10}"
            )
            for e in watch(process, workdir):
                found.append(e)
                print(
                    f"{e['iteration']:>10}{e['rss'] / MB:>10.0f}{e['disk'] / MB:>10.2f}"
                    f"{e['seconds']:>10.2f}{e['accepted']:>10.0f}",
                    flush=True,
                )
            if process.wait():
                said.seek(0)
                sys.exit(said.read().decode(errors="replace")[-2000:])
        print(json.dumps(result(found, storage.read_json(workdir / "summary.json"))))


if __name__ == "__main__":
    app.run(main)
