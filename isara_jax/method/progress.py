"""What is happening: a line a stage, how far a long one is, and each stage's seconds.

A terminal shows how far a stage is in a line that replaces itself; a file, or a log of Slurm's,
gets a line now and then.
"""

import collections
import contextlib
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from isara_jax.shell import endings, terminal

_UNITS = {
    "questions": "tokens",
    "answers": "tokens",
    "accept": "pairs in the pool",
    "train": "tokens",
}
_STAGES = tuple(_UNITS)  # in their order
_COUNTED = {"questions": "", "answers": "", "train": " steps"}  # what progress is counted in
# In a file a line comes after so many seconds at the earliest: with so much more of the stage done,
# or after so many at the latest.
_EVERY, _SHARE, _LATEST = 30.0, 0.1, 300.0


class Progress:
    """Hears of the iteration on the host, and of what surrounds it.

    `drawn`, `trained` and `ended` are called from the runtime's threads, so it holds a lock and
    uses no JAX.

    Args:
      silent: prints nothing, as in all processes but the first.
      rest: the file that gets what is said once standard output cannot be written.

    Attributes:
      seconds: of each stage, summed over the run.
    """

    def __init__(
        self, *, silent: bool = False, rest: pathlib.Path = pathlib.Path(os.devnull)
    ) -> None:
        self._silent, self._lock = silent, threading.Lock()
        self.restart(rest)

    def restart(self, rest: pathlib.Path) -> None:
        """Forgets a run for the next one, whose executables call this very object."""
        self._rest = rest
        self.seconds: collections.Counter[str] = collections.Counter()
        self._requests: dict[str, int] = {}
        self._since = time.monotonic()
        self._shown = ""
        self._written = (self._since, 0.0)  # of the last line on how far a stage is, and how far
        self._ends: float | None = None
        self._early: dict[str, tuple[float, int]] = {}  # ended, but not yet their turn
        self._next = _STAGES[0]
        self._under: str | None = None

    def expect(self, stage: str, requests: int) -> None:
        """How many requests a stage will have."""
        self._requests[stage] = requests

    def say(self, text: str) -> None:
        """Prints a line, or several."""
        with self._lock:
            self._print(f"{terminal.visible(text)}\n")

    def lap(self, name: str) -> None:
        """Books the time since the last stage ended under `name`."""
        with self._lock:
            self._book(name, time.monotonic())

    def aside(self, name: str, seconds: float) -> None:
        """Books seconds that have just passed under `name`, not under the stage they fell into."""
        with self._lock:
            self._since += seconds
            self.seconds[name] += seconds

    @contextlib.contextmanager
    def under(self, name: str) -> Iterator[None]:
        """Books stages that end in the block under one name: they are of no iteration."""
        self._under = name
        try:
            yield
        finally:
            self._under = None

    def _book(self, name: str, now: float) -> float:
        taken = max(now - self._since, 0.0)
        self._since += taken
        self.seconds[name] += taken
        return taken

    def ends_in(self, seconds: float) -> None:
        """The run is expected to end so many seconds from now."""
        self._ends = time.monotonic() + seconds

    def drawn(self, stage: str, finished: Any, tokens: Any) -> None:
        """So many requests of a stage are finished, and so many tokens drawn."""
        self._advance(stage, int(finished), self._requests[stage], int(tokens))

    def trained(self, step: Any, steps: Any, tokens: Any) -> None:
        """So many of the optimiser's steps are done, and tokens read."""
        self._advance("train", int(step), int(steps), int(tokens))

    def _advance(self, stage: str, done: int, total: int, tokens: int) -> None:
        with self._lock:
            now, share = time.monotonic(), done / max(total, 1)
            taken = now - self._since
            if taken <= 0 or not tokens:
                return
            line = (
                f"  {stage:<10} {done:,}/{total:,}{_COUNTED[stage]}, {tokens / taken:,.0f} tokens/s"
            )
            if share:
                left = taken * (1 - share) / share
                line += f", {_duration(left)} left"
                if self._ends is not None:
                    line += f"; of the run {_duration(max(self._ends - now, left))}"
            if sys.stdout.isatty():
                self._print(line)
            elif self._due(now, share):
                self._written = (now, share)
                self._print(f"{line}\n")

    def _due(self, now: float, share: float) -> bool:
        """Whether a file gets a line on how far the stage is."""
        then, before = self._written
        if then < self._since:  # of another stage
            then, before = self._since, 0.0
        waited = now - then
        return waited >= _LATEST or (waited >= _EVERY and share - before >= _SHARE)

    def ended(self, stage: str, amount: Any) -> None:
        """A stage has ended, with so many tokens (or pairs).

        The runtime may call for two stages in either order; they are booked in the right one.
        """
        amount = int(amount)
        with self._lock:
            self._early[stage] = (time.monotonic(), amount)
            while self._next in self._early:
                self._tell(self._next, *self._early.pop(self._next))
                self._next = _STAGES[(_STAGES.index(self._next) + 1) % len(_STAGES)]

    def _tell(self, stage: str, when: float, amount: int) -> None:
        taken, unit = self._book(self._under or stage, when), _UNITS[stage]
        rate = f", {amount / taken:,.0f}/s" if unit == "tokens" and taken > 0 else ""
        self._print(f"  {stage:<10} {taken:6.1f} s   {amount:,} {unit}{rate}\n")

    def _print(self, text: str) -> None:
        if self._silent:
            return
        # A line without an end is provisional: the next one replaces it.
        erase = "\r" + " " * len(self._shown) + "\r" if self._shown else ""
        self._shown = "" if text.endswith("\n") else text
        try:
            sys.stdout.write(erase + text)
            sys.stdout.flush()
        except OSError as error:  # a closed pipe, a full disk, a terminal that is gone
            self._leave_stdout(error.strerror)
            self._print(text)

    def _leave_stdout(self, why: str) -> None:
        """What takes hours does not end because nobody reads on: the rest goes into a file."""
        endings.say(f"standard output: {why}; the run goes on and says the rest in {self._rest}")
        endings.silence_output()
        self._rest.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout = self._rest.open("a", encoding="utf-8")
        self._shown = ""
        sys.stdout.write(f"Standard output could no longer be written ({why}). Since then:\n")


def _duration(seconds: float) -> str:
    """Such as 40 s, 12 min or 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
