"""What is happening: a line a stage in the terminal, and each stage's seconds."""

import collections
import sys
import threading
import time
from typing import Any


class Progress:
    """Receives the iteration's callbacks on the host; stages of one run follow each other.

    Callable as `iteration.Program.progress`: with a count while a stage's requests begin, with None
    when the stage has ended. Called from the runtime's threads, so it holds a lock and uses no JAX.
    """

    def __init__(self, requests: dict[str, int]) -> None:
        """Args: requests: how many requests each sampling stage has."""
        self.seconds: collections.Counter[str] = collections.Counter()
        self._requests = requests
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._shown = ""

    def begin(self, title: str) -> None:
        """Says what starts now, and starts the clock of its first stage."""
        with self._lock:
            self._since = time.monotonic()
            self._print(f"{title}\n")

    def lap(self, name: str) -> float:
        """Books the time since the last stage ended under `name`; returns it."""
        with self._lock:
            now = time.monotonic()
            taken, self._since = now - self._since, now
            self.seconds[name] += taken
            return taken

    def __call__(self, stage: str, count: Any | None) -> None:
        """A stage's requests have begun up to `count`, or (None) the stage has ended."""
        if count is None:
            taken = self.lap(stage)
            with self._lock:
                self._print(f"  {stage:<10} {taken:6.1f} s\n")
        elif sys.stdout.isatty() and stage in self._requests:
            with self._lock:
                self._print(f"  {stage:<10} {int(count)}/{self._requests[stage]}")

    def say(self, text: str) -> None:
        """Prints a line."""
        with self._lock:
            self._print(f"{text}\n")

    def _print(self, text: str) -> None:
        # A line without an end is provisional: the next one replaces it.
        erase = "\r" + " " * len(self._shown) + "\r" if self._shown else ""
        self._shown = "" if text.endswith("\n") else text
        sys.stdout.write(erase + text)
        sys.stdout.flush()
