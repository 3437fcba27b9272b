"""Kills runs at random moments, starts them again, and compares what they leave behind.

    python -m tests.faults --kills=100 --terms=16 --ints=16

Every kind of run (fused or staged, one process or two, an adapter or all weights) is killed again
and again, until it has ended: by SIGKILL, SIGTERM, SIGINT; of two processes all, or, by SIGKILL,
also one. Prints a table, with the statuses of the processes; its own is 1 where a run does not end
as one that nobody disturbed.
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

_SIGNALS = {"kills": signal.SIGKILL, "terms": signal.SIGTERM, "ints": signal.SIGINT}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, by in _SIGNALS.items():
        parser.add_argument(f"--{name}", type=int, default=0, help=f"how many {by.name}s at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    # A shell ignores SIGINT for what it starts in the background; what starts here would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kinds = [
        runs.Kind(*chosen)
        for chosen in itertools.product(("fused", "staged"), (1, 2), ("lora", "full"))
    ]
    rng, failed = random.Random(given.seed), False
    with tempfile.TemporaryDirectory() as folder:
        model = _model(pathlib.Path(folder))
        columns = (
            "run", "undisturbed, s", "signal", "killed", "starts", "ended after, s", "statuses",
            "differs",
        )  # fmt: skip
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for kind in kinds:
            whole, seconds = _undisturbed(kind, model, pathlib.Path(folder))
            for name, by in _SIGNALS.items():
                if not (kills := -(-getattr(given, name) // len(kinds))):
                    continue
                row = _survive(whole, seconds, kills, by, rng)
                failed |= row[-1] != "nothing"
                print(f"| {' | '.join((str(kind), f'{seconds:.1f}', by.name, *row))} |", flush=True)
    sys.exit(failed)


def _model(folder: pathlib.Path) -> pathlib.Path:
    from tests import conftest

    return conftest.write_random_model(folder / "model")


def _undisturbed(
    kind: runs.Kind, model: pathlib.Path, folder: pathlib.Path
) -> tuple[runs.Command, float]:
    """A run that nobody disturbs, and the seconds that it took."""
    place = folder / str(kind).replace(", ", "_").replace(" ", "_")
    place.mkdir()
    whole = runs.Command(kind, model, place)
    began = time.monotonic()
    whole.finish()
    return whole, time.monotonic() - began


def _survive(
    whole: runs.Command, seconds: float, kills: int, by: signal.Signals, rng: random.Random
) -> list[str]:
    """What runs like this one are killed for: the rest of a row of the table."""
    kind, folder = whole.kind, whole.workdir.parent / by.name
    folder.mkdir()
    one_alone = kind.processes > 1 and by == signal.SIGKILL
    ended, starts, differ = [], 0, []
    for number in itertools.count():
        place = folder / str(number)
        place.mkdir()
        disturbed = runs.Command(kind, whole.model, place)
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
        str(len(ended)), str(starts),
        f"{after[len(after) // 2]:.1f}, at most {after[-1]:.1f}",
        ", ".join(f"{status}: {n}" for status, n in statuses.most_common()),
        ", ".join(differ) or "nothing",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
