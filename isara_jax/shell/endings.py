"""How a process ends: what it says of the cause, with what status, and that nothing is left half.

Python tells its main thread of a signal, which does not hear it while XLA compiles or computes; an
exception raised in the midst of either, and an interpreter that is taken down under XLA's threads,
end in crashes. So a thread hears of signals, tidies up and ends the process where it stands. What
is kept is written under another name and renamed: what was saved stays whole.
"""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from isara_jax import config
from isara_jax.shell import terminal

MISTAKE, BUG, CLOSED, INTERRUPTED = 1, 70, 128 + signal.SIGPIPE, 128 + signal.SIGINT
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "told to end (SIGTERM)"}
_TIDY_SECONDS = 1.5  # users press Ctrl-C again after two
_CURES = {
    errno.ENOSPC: "make room, then start the same command again",
    errno.EDQUOT: "make room in your quota, then start the same command again",
    errno.EACCES: "allow it to be read and written, or choose another path",
    errno.EPERM: "allow it to be read and written, or choose another path",
    errno.EROFS: "choose a path that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file lies where a folder is expected: move it, or choose another path",
    errno.EEXIST: "a file lies where a folder is expected: move it, or choose another path",
    errno.EISDIR: "a folder lies where a file is expected: move it, or choose another path",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit: ulimit -n 4096",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "links lead in a circle there: mend them",
    errno.ENOMEM: "close other programs, or take fewer --config.slots",
}
_tidying: list[Callable[[], None]] = []
_after = ""  # what is said behind "interrupted"


def say(text: str) -> None:
    """Prints a line on stderr, if somebody still reads it."""
    with contextlib.suppress(OSError):
        print(f"isara_jax: {terminal.visible(text)}", file=sys.stderr, flush=True)


def told(error: BaseException) -> tuple[str, int]:
    """What is said of an error in one line, and the exit status.

    The sentence is empty where nobody reads what is said; the status is `BUG` for what neither
    environment nor files and flags can cause.
    """
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{_after}", INTERRUPTED
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return "", CLOSED
    if isinstance(error, config.UserError):
        return one_line(error), MISTAKE
    cause: BaseException | None = error
    while cause is not None:  # what a library has wrapped
        if sentence := _of_the_machine(cause):
            return sentence, MISTAKE
        cause = cause.__cause__
    return (
        f"this is a bug of isara_jax, not yours ({type(error).__name__}: {one_line(error)[:200]}); "
        "please report it with the lines above"
    ), BUG


def one_line(error: BaseException) -> str:
    """An error's message in one line that a terminal can show."""
    return terminal.line(str(error))


def _of_the_machine(error: BaseException) -> str:
    """What is said of memory, disks and files; empty for other errors."""
    if isinstance(error, MemoryError):
        return "this machine's memory is full; take fewer --config.slots, or a smaller model"
    if number := re.search(r"os_error_code='(\d+)'", str(error)):  # below Orbax
        place = re.search(r'"(/[^"]*)"', str(error))
        error = OSError(int(number[1]), os.strerror(int(number[1])), place and place[1])
    # JAX's errors by name: this module is imported before it.
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        if "RESOURCE_EXHAUSTED" in str(error):
            return (
                f"the device's memory is full ({one_line(error)[:200]}); take fewer "
                "--config.slots, a smaller --config.train.batch_size, or more devices"
            )
        return ""
    if isinstance(error, ImportError) and not (error.name or "isara_jax").startswith("isara_jax"):
        return f"{one_line(error)}; install what is needed: pip install -r requirements.txt"
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    cure = _CURES.get(error.errno)
    if error.filename is None and cure is None:
        return ""
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{error.strerror}; {cure or 'check the path'}"


def _nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe whose reader has gone."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def by(error: BaseException) -> NoReturn:
    """Ends the process because of an error: one line, and of our own bugs the traceback."""
    sentence, status = told(error)
    if status == BUG:
        with contextlib.suppress(OSError):
            print(terminal.visible("".join(traceback.format_exception(error))), file=sys.stderr)
    end(sentence, status)


def end(sentence: str, status: int) -> NoReturn:
    """Ends the process, in a way that XLA's threads, which may be at work, survive."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if sentence:
        say(sentence)
    os._exit(status)


def silence_output() -> None:
    """Sends what is still written to a closed stdout, and to a stderr that is the same, nowhere."""
    with contextlib.suppress(OSError), open(os.devnull, "w", encoding="utf-8") as void:  # noqa: PTH123
        out = sys.stdout.fileno()
        if os.path.sameopenfile(out, 2):
            os.dup2(void.fileno(), 2)
        os.dup2(void.fileno(), out)


@contextlib.contextmanager
def tidied(action: Callable[[], None]) -> Iterator[None]:
    """In the block, a signal calls `action` before the process ends; it must be short."""
    _tidying.append(action)
    try:
        yield
    finally:
        _tidying.remove(action)


def obey_signals(after: str = "") -> None:
    """Lets signals end this process within two seconds; the second one does at once.

    A signal that whoever started the process ignores or handles stays ignored or handled.

    Args:
      after: what is said behind "interrupted".
    """
    global _after
    _after = after
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda *_: None)  # Python then writes to the pipe, at once
    threading.Thread(target=_listen, args=(reader,), daemon=True).start()


def _listen(reader: int) -> None:
    number = _next(reader)
    threading.Thread(target=_obey, args=(number,), daemon=True).start()
    # Another signal, or what hangs, ends it at once.
    select.select([reader], [], [], _TIDY_SECONDS)
    os._exit(128 + number)


def _next(reader: int) -> int:
    while (number := os.read(reader, 1)[0]) not in _SIGNALS:
        pass
    return number


def _obey(number: int) -> None:
    line = f"isara_jax: {_SIGNALS[signal.Signals(number)]}{_after}\n"
    with contextlib.suppress(OSError):
        if os.isatty(2):
            line = f"\n{line}"  # behind ^C
        os.write(2, line.encode())  # past Python's locks: the main thread may hold one
    for action in reversed(_tidying):
        with contextlib.suppress(Exception):
            action()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(128 + number)
