"""Kills runs at random moments, starts them again, and compares what they leave behind.

    python -m tests.faults --kills=100

Every kind of run (fused or staged, one process or two, an adapter or all weights) is killed with
SIGKILL, again and again, until it has ended; of two processes all, or one. Prints a table; the
status is 1 where a run does not end as the one that nobody disturbed.
"""

import argparse
import itertools
import pathlib
import random
import sys
import tempfile
import time

from tests.faults import runs


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="how many kills at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    kinds = [
        runs.Kind(*chosen)
        for chosen in itertools.product(("fused", "staged"), (1, 2), ("lora", "full"))
    ]
    rng, failed = random.Random(given.seed), False
    with tempfile.TemporaryDirectory() as folder:
        model = _model(pathlib.Path(folder))
        print("| run | seconds, undisturbed | kills | starts | differs |\n|---|---|---|---|---|")
        for kind in kinds:
            row = _survive(kind, model, pathlib.Path(folder), -(-given.kills // len(kinds)), rng)
            failed |= bool(row[-1])
            print(f"| {' | '.join(map(str, (kind, *row[:-1], ', '.join(row[-1]) or 'nothing')))} |",
                  flush=True)  # fmt: skip
    sys.exit(failed)


def _model(folder: pathlib.Path) -> pathlib.Path:
    from tests import conftest

    return conftest.write_random_model(folder / "model")


def _survive(
    kind: runs.Kind, model: pathlib.Path, folder: pathlib.Path, kills: int, rng: random.Random
) -> tuple[float, int, int, list[str]]:
    """Seconds of an undisturbed run, kills, starts, and the files that differ from its."""
    name = str(kind).replace(", ", "_").replace(" ", "_")
    (folder / name).mkdir()
    (folder / f"{name}_killed").mkdir()
    whole = runs.Command(kind, model, folder / name)
    began = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - began
    done, starts, differ = 0, 0, []
    for number in itertools.count():
        place = folder / f"{name}_killed" / str(number)
        place.mkdir()
        disturbed = runs.Command(kind, model, place)
        for _ in range(8):
            only = rng.choice([None, *range(kind.processes)]) if kind.processes > 1 else None
            at_work = disturbed.kill(rng.uniform(0, seconds), only)
            starts += 1
            done += at_work
            if not at_work or done >= kills:
                break
        disturbed.finish()
        starts += 1
        differ += runs.differences(disturbed.workdir, whole.workdir)
        if done >= kills:
            return round(seconds, 1), done, starts, differ
    raise AssertionError


if __name__ == "__main__":
    main()
