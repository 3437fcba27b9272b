"""Kills runs at random moments, starts them again, and compares what they leave behind.

    python -m tests.faults --kills=100
    python -m tests.faults --kills=40 --signal=SIGTERM

Every kind of run (fused or staged, one process or two, an adapter or all weights) is killed again
and again, until it has ended; of two processes all, or, by SIGKILL, also one. Prints a table, with
the statuses of the processes; its own is 1 where a run does not end as one that nobody disturbed.
"""

import argparse
import itertools
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter

from tests.faults import runs


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="how many kills at least")
    parser.add_argument("--signal", default="SIGKILL", choices=("SIGKILL", "SIGTERM", "SIGINT"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    kinds = [
        runs.Kind(*chosen)
        for chosen in itertools.product(("fused", "staged"), (1, 2), ("lora", "full"))
    ]
    rng, failed = random.Random(given.seed), False
    with tempfile.TemporaryDirectory() as folder:
        model = _model(pathlib.Path(folder))
        columns = ("run", "undisturbed, s", "killed", "starts", "ended after, s", "statuses",
                   "differs")  # fmt: skip
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for kind in kinds:
            kills = -(-given.kills // len(kinds))
            by = signal.Signals[given.signal]
            row = _survive(kind, model, pathlib.Path(folder), kills, by, rng)
            failed |= row[-1] != "nothing"
            print(f"| {' | '.join((str(kind), *row))} |", flush=True)
    sys.exit(failed)


def _model(folder: pathlib.Path) -> pathlib.Path:
    from tests import conftest

    return conftest.write_random_model(folder / "model")


def _survive(
    kind: runs.Kind, model: pathlib.Path, folder: pathlib.Path, kills: int, by: signal.Signals,
    rng: random.Random,
) -> list[str]:  # fmt: skip
    """A row of the table."""
    name = str(kind).replace(", ", "_").replace(" ", "_")
    (folder / name).mkdir()
    (folder / f"{name}_killed").mkdir()
    whole = runs.Command(kind, model, folder / name)
    began = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - began
    one_alone = kind.processes > 1 and by == signal.SIGKILL
    ended, starts, differ = [], 0, []
    for number in itertools.count():
        place = folder / f"{name}_killed" / str(number)
        place.mkdir()
        disturbed = runs.Command(kind, model, place)
        for _ in range(8):
            only = rng.choice([None, *range(kind.processes)]) if one_alone else None
            last = disturbed.disturb(rng.uniform(0, seconds), by, only)
            starts += 1
            ended += [last] if last else []
            if not last or len(ended) >= kills:
                break
        disturbed.finish()
        starts += 1
        differ += runs.differences(disturbed.workdir, whole.workdir)
        if len(ended) >= kills:
            break
    after = sorted(end.seconds for end in ended)
    statuses = Counter(status for end in ended for status in end.statuses)
    return [
        f"{seconds:.1f}", str(len(ended)), str(starts),
        f"{after[len(after) // 2]:.1f}, at most {after[-1]:.1f}",
        ", ".join(f"{status}: {n}" for status, n in statuses.most_common()),
        ", ".join(differ) or "nothing",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
