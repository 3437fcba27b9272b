"""The command: `python -m isara_jax.main --config=configs/safety.py --workdir=runs/safety`."""

import os
import pathlib
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notice that torch is missing

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from isara_jax import config, run

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")
flags.mark_flags_as_required(["config", "workdir"])


def main(arguments: list[str]) -> None:
    """Aligns a model as the flags say; a mistake in them ends with one clear line."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    if len(arguments) > 1:
        sys.exit(f"unknown arguments: {' '.join(arguments[1:])}; flags begin with --")
    try:
        resolved = config.resolve(_CONFIG.value)
        if resolved.compilation_cache:
            cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
            folder = pathlib.Path(cache).expanduser() / "isara_jax" / "compiled"
            jax.config.update("jax_compilation_cache_dir", str(folder))
        run.run(resolved, pathlib.Path(_WORKDIR.value))
    except config.UserError as error:
        sys.exit(f"isara_jax: {error}")


if __name__ == "__main__":
    app.run(main)
