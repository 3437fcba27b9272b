"""How a process ends: what it says of the cause, with what status, and that nothing is left half.

Python tells its main thread of a signal, which does not hear it while XLA compiles or computes; an
exception raised in the midst of either, and an interpreter that is taken down under XLA's threads,
end in crashes. So a thread hears of signals, tidies up and ends the process where it stands. What
is kept is written under another name and renamed: what was saved stays whole.

| signal | within | status |
|---|---|---|
| SIGINT | two seconds | 130 |
| SIGTERM, in a block of `saving_when_asked`, which saves first | the grace period | 75 |
| SIGTERM, elsewhere in a command that continues when it is started again | two seconds | 75 |
| SIGTERM, in other commands | two seconds | 143 |
| another signal | at once | its own |
"""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from isara_jax import config
from isara_jax.shell import terminal

MISTAKE, BUG, CLOSED, INTERRUPTED = 1, 70, 128 + signal.SIGPIPE, 128 + signal.SIGINT
# Of a run that was preempted: EX_TEMPFAIL, "the user is invited to retry". Launchers count on it.
PREEMPTED = os.EX_TEMPFAIL
GRACE_SECONDS = 25.0  # Kubernetes and Slurm (KillWait) kill after 30
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "told to end (SIGTERM)"}
_TIDY_SECONDS = 1.5  # users press Ctrl-C again after two
_WRITE_SECONDS = 4.0  # what is being written when the grace period ends
_ECHO_SECONDS = 0.5  # in which a launcher that signals a group, and its members, means it once
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
_resumes = False  # started again, this command continues
_grace_seconds = GRACE_SECONDS
_savers = 0  # blocks of `saving_when_asked` that are under way
_heard: signal.Signals | None = None
_AFTER = "; what was saved stays, the same command continues"


class Preempted(SystemExit):
    """Ends a run that was asked to end and has saved; `str` is what is said.

    No `Exception`, so that nothing takes it for a failure.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = PREEMPTED

    def __str__(self) -> str:
        return self.args[0]


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
        return f"interrupted{_AFTER if _resumes else ''}", INTERRUPTED
    if isinstance(error, Preempted):
        return one_line(error), PREEMPTED
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


@contextlib.contextmanager
def saving_when_asked() -> Iterator[None]:
    """In the block, SIGTERM asks for an end, and what computes there looks at `asked_to_end`."""
    global _savers
    _savers += 1
    try:
        yield
    finally:
        _savers -= 1


def grant(seconds: float) -> None:
    """Sets the grace period: from SIGTERM to the end, where nothing could be saved before."""
    global _grace_seconds
    _grace_seconds = seconds


def heard() -> signal.Signals | None:
    """The signal by which this process ends, if there was one."""
    return _heard


def asked_to_end() -> bool:
    """Whether this process was told by SIGTERM to save what it has and end."""
    return _heard == signal.SIGTERM


def end_preempted(saved: str) -> NoReturn:
    """Ends a run that was asked to, by an exception: what is being written is waited for.

    Args:
      saved: up to where, such as "iteration 2".
    """
    raise Preempted(f"{_SIGNALS[signal.SIGTERM]}: saved {saved}; the same command continues")


def obey_signals(resumes: bool = False) -> None:
    """Lets signals end this process as the table above says.

    A signal that whoever started the process ignores or handles stays ignored or handled.

    Args:
      resumes: started again, this command continues.
    """
    global _resumes
    _resumes = resumes
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda *_: None)  # Python then writes to the pipe, at once
    threading.Thread(target=_listen, args=(reader,), daemon=True).start()


def _listen(reader: int) -> None:
    global _heard
    _heard = number = _next(reader)
    assert number is not None
    asks = number == signal.SIGTERM and _savers > 0
    if asks:
        _print(f"{_SIGNALS[number]}; saves and ends within {_grace_seconds:g} s")
        _wait(reader, number, _grace_seconds)
        _print(f"nothing could be saved within {_grace_seconds:g} s{_AFTER}")
    else:
        _print(f"{_SIGNALS[number]}{_AFTER if _resumes else ''}")
    threading.Thread(target=_finish, args=(_status(number),), daemon=True).start()
    _wait(reader, number, _WRITE_SECONDS if asks else _TIDY_SECONDS)
    os._exit(_status(number))


def _finish(status: int) -> None:
    _tidy()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(status)


def _wait(reader: int, first: signal.Signals, seconds: float) -> None:
    """Lets time pass; another signal ends the process at once."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        number = _next(reader, left)
        echo = number == first and time.monotonic() - began < _ECHO_SECONDS
        if number is not None and not echo:
            os._exit(_status(number))


def _status(number: signal.Signals) -> int:
    return PREEMPTED if number == signal.SIGTERM and _resumes else 128 + number


def _next(reader: int, seconds: float | None = None) -> signal.Signals | None:
    """The next signal that ends this process; None if there is none for so long."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            return None
        if (number := os.read(reader, 1)[0]) in _SIGNALS:
            return signal.Signals(number)


def tidy(seconds: float = _TIDY_SECONDS) -> None:
    """Does what is left to do in `tidied` blocks that are under way, or as much as time allows."""
    worker = threading.Thread(target=_tidy, daemon=True)
    worker.start()
    worker.join(seconds)


def _tidy() -> None:
    for action in reversed(_tidying):
        with contextlib.suppress(Exception):
            action()


def _print(text: str) -> None:
    """Says a line past Python's locks, of which the main thread may hold one."""
    with contextlib.suppress(OSError):
        line = f"isara_jax: {text}\n"
        os.write(2, (f"\n{line}" if os.isatty(2) else line).encode())  # behind ^C
