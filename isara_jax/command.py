"""What the commands share: a quiet start, mistakes in one line, compiled programs that are kept."""

import functools
import os
import sys
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notice that torch is missing

from absl import flags
from absl import logging as absl_logging

from isara_jax import config, storage


def of(work: Callable[..., None], *positional: str) -> Callable[[list[str]], None]:
    """A command's `main`, for `absl.app.run`.

    Args:
      work: what it does, given the positional arguments; a `config.UserError` ends it with one
        line.
      positional: their names.
    """

    @functools.wraps(work)
    def main(arguments: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
        given = arguments[1:]
        if len(given) != len(positional):
            module = work.__globals__["__spec__"].name
            usage = " ".join(["python -m", module, *positional, "[--flag=value ...]"])
            sys.exit(f"found {given or 'no arguments'}; usage: {usage}")
        try:
            work(*given)
        except config.UserError as error:
            sys.exit(f"isara_jax: {error}")
        except KeyboardInterrupt:
            sys.exit(130)

    return main


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs for the next start, in the user's cache folder."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # else JAX_COMPILATION_CACHE_DIR names one
        jax.config.update("jax_compilation_cache_dir", str(storage.cache() / "compiled"))
    # JAX's own second would leave out, on a fast machine, what takes one on a slow one.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
