"""What the commands share: a quiet start, and one place for all that can end them.

Each command imports this module before any other and ends with `run(main)`. From the one to the
other whatever environment, files and flags can do is one line with its cause and its cure, and
status 1; Ctrl-C is 130; SIGTERM is 75 for what can be continued, else 143; a bug of ours says that
it is one, behind its traceback, and is 70.
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036, who has an older one is told, not shown a traceback
    sys.exit(
        f"isara_jax: this is Python {sys.version.split()[0]}, and 3.11, 3.12 or 3.13 is needed; "
        "./launch/local.sh makes an environment with one that is installed"
    )

import functools
import pathlib
import re
import subprocess
import types
import warnings
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notice that torch is missing

from absl import app, flags
from absl import logging as absl_logging

from isara_jax import config
from isara_jax.shell import arguments, endings, terminal

# What would change the computation, or break it, and its defaults: the configuration decides.
_NOT_HONOURED = {
    "JAX_ENABLE_X64": ("", "0", "f", "false", "n", "no", "off"),
    "JAX_DISABLE_JIT": ("", "0", "f", "false", "n", "no", "off"),
    "JAX_NUMPY_DTYPE_PROMOTION": ("", "standard"),
    "JAX_NUMPY_RANK_PROMOTION": ("", "allow"),
    "JAX_TRANSFER_GUARD": ("", "allow"),
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE": ("", "allow"),
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST": ("", "allow"),
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE": ("", "allow"),
    "JAX_DEFAULT_PRNG_IMPL": ("", "threefry2x32"),
    "JAX_THREEFRY_PARTITIONABLE": ("", "1", "t", "true", "y", "yes", "on"),
}
# Reads XLA_FLAGS as a run does, in a fifth of a second.
_PROBE = (
    "from jaxlib import xla_client as x; x.CompileOptions().executable_build_options.debug_options"
)
_at_work = False  # everything is imported


def of(
    work: Callable[..., None], *positional: str, needs: tuple[str, ...] = ()
) -> Callable[[list[str]], None]:
    """A command's `main`, for `run`.

    Args:
      work: what it does, given the positional arguments; a `config.UserError` ends it with one
        line.
      positional: their names.
      needs: the flags that must be given.
    """

    @functools.wraps(work)
    def main(given: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            arguments.check(_module(work), given[1:], positional, needs)
            work(*given[1:])
        except config.UserError as error:
            sys.exit(f"isara_jax: {endings.one_line(error)}")

    return main


def _module(work: Callable[..., None]) -> str:
    """The name by which a command is started."""
    spec = work.__globals__.get("__spec__")
    return work.__module__ if spec is None else spec.name


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags, calls `main`, and ends the process."""
    global _at_work
    _at_work = True
    try:
        app.run(main, flags_parser=arguments.parse)
    except endings.Preempted as end:
        endings.by(end)
    except SystemExit as end:
        if isinstance(end.code, str):
            endings.end(end.code.removeprefix("isara_jax: "), endings.MISTAKE)
        sys.stdout.flush()  # here a closed pipe is no traceback
        raise


def start(resumes: bool = False) -> None:
    """Makes this process a command, before the imports that can fail or take seconds.

    Args:
      resumes: started again, it continues.
    """
    endings.obey_signals(resumes)
    sys.excepthook = _ended_by
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    sys.stdout.reconfigure(errors="replace")  # a terminal of 8 bits shows what it can
    warnings.formatwarning = lambda message, *_: f"isara_jax: {terminal.line(str(message))}\n"
    for name, defaults in _NOT_HONOURED.items():
        if (value := os.environ.pop(name, "")).lower() not in defaults:
            endings.say(
                f"{name}={value} is not honoured: what is computed follows from flags alone"
            )
    if _cores() == 1:
        # XLA has a thread a core on CPUs. What calls the host, as ScaNN is, holds one while another
        # copies its arguments: with a single one it waits for ever (jax-ml/jax#24255).
        os.environ.setdefault("NPROC", "2")
    _check_xla_flags()


def _cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _check_xla_flags() -> None:
    """Tries them in another process, since XLA ends this one at a flag that it does not know."""
    if not os.environ.get("XLA_FLAGS"):
        return
    tried = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, errors="replace"
    )
    said = re.search(r"Unknown flag.*|Couldn't interpret.*|Could not open.*", tried.stderr)
    if tried.returncode and said:
        raise config.UserError(
            f"XLA_FLAGS={os.environ['XLA_FLAGS']!r}: XLA refuses them ({said.group()}); mend or "
            "unset them"
        )


def _ended_by(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Python's hook for what nobody has caught, also while the command is imported."""
    del kind
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = pathlib.Path(trace.tb_frame.f_code.co_filename if trace else "")
    if not _at_work and type(error) is ValueError and "isara_jax" not in file.parts:
        error = config.UserError(
            f"{file.stem} cannot be imported ({endings.one_line(error)[:300]}); mend or unset the "
            "variable of the environment that it names"
        )
    endings.by(error)


_spec = getattr(sys.modules["__main__"], "__spec__", None)
if _spec is not None and _spec.name.startswith("isara_jax."):  # it is not only imported
    start(resumes=_spec.name in ("isara_jax.main", "isara_jax.judge", "isara_jax.study"))
