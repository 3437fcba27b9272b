"""Programs that JAX has compiled, kept on disk for the next start."""

import os
import pathlib

import jax

from isara_jax import config
from isara_jax.files import storage
from isara_jax.shell import endings


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs for the next start, in the user's cache folder."""
    named = jax.config.jax_compilation_cache_dir  # by JAX_COMPILATION_CACHE_DIR
    try:
        folder = str(storage.cache() / "compiled") if named is None else named
        if "://" not in folder and not storage.writable(pathlib.Path(folder)):
            raise config.UserError(f"{folder} cannot be written")
    except config.UserError as error:
        endings.say(f"compiled programs are not kept for the next start: {error}")
        folder = None
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX's own second would leave out, on a fast machine, what takes one on a slow one.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
