"""What is happening: a line a stage in the terminal, and each stage's seconds."""

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


class Progress:
    """Hears of the iteration on the host, and of what surrounds it.

    `begun` and `ended` are called from the runtime's threads, so it holds a lock and uses no JAX.

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

    def begun(self, stage: str, count: Any) -> None:
        """Requests of a stage have begun up to `count`: a counter, where a terminal shows it."""
        if sys.stdout.isatty():
            with self._lock:
                self._print(f"  {stage:<10} {int(count)}/{self._requests[stage]}")

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
