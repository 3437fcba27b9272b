"""Work on somebody's file in a process of its own, within limits of time and memory.

What a library does in native code can be neither interrupted nor caught: a pattern that backtracks
for hours, a page of a kilobyte that unpacks into gigabytes, an error that ends the process. In a
process of its own each of these is a message.
"""

import os
import pathlib
import signal
import subprocess
import sys

_TIME, _MEMORY = 3, 4  # statuses
# Sets the limits, then runs the script. Panics of Rust libraries are no `Exception`.
_BEGIN = f"""
import contextlib, resource, runpy, sys
seconds, n_bytes = map(int, sys.argv[1:3])
del sys.argv[:3]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except MemoryError:
    sys.exit({_MEMORY})
except TimeoutError:
    sys.exit({_TIME})
except BaseException as error:
    if isinstance(error, SystemExit): raise
    sys.exit(" ".join(str(error).split()) or type(error).__name__)
"""
# One thread: each of many would reserve address space of its own, on a large machine more than is
# allowed.
_ENVIRONMENT = {
    "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "RUST_BACKTRACE": "0",
    "PYTHONIOENCODING": "utf-8",
}  # fmt: skip


class RefusedError(ValueError):
    """The work failed, or exceeded a limit; the message is the end of a sentence about its file."""


def run(
    script: pathlib.Path, *arguments: str, given: bytes = b"", seconds: int, n_bytes: int
) -> bytes:
    """Runs a script of ours that imports nothing of this package.

    Args:
      script: its file.
      arguments: its `sys.argv`.
      given: its standard input.
      seconds: of computing that it may take; of waiting, four times as many and a minute.
      n_bytes: of memory that it may take.

    Returns:
      What it has written to standard output.

    Raises:
      RefusedError: it failed, or wanted more.
    """
    command = [sys.executable, "-P", "-c", _BEGIN, str(seconds), str(n_bytes), str(script)]
    try:
        done = subprocess.run(
            [*command, *arguments], input=given, capture_output=True, timeout=60 + 4 * seconds,
            env=os.environ | _ENVIRONMENT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RefusedError(f"it takes more than {60 + 4 * seconds} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        raise RefusedError(_why(done.returncode, said, seconds, n_bytes))
    return done.stdout


def _why(status: int, said: str, seconds: int, n_bytes: int) -> str:
    if status in (_TIME, -signal.SIGXCPU):
        return f"it takes more than {seconds} s"
    if status in (_MEMORY, -signal.SIGKILL) or "memory allocation of" in said:
        return f"it takes more than {n_bytes / 1e9:.1f} GB of memory"
    if status < 0:
        return f"it ends the process that reads it ({signal.Signals(-status).name})"
    return said.strip().rsplit("\n", 1)[-1][:300] or f"status {status}"
