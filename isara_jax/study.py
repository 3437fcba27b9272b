"""The command: what a claim is tested by, many runs and one table.

    python -m isara_jax.study --study=seeds --output=runs/studies

runs every configuration of a grid (`isara_jax.studies.grids`) with several random seeds, in one
process that compiles equal programs once. What is finished is not run again, so the same command
continues after Ctrl-C. After each run OUTPUT/STUDY.json, .md and .png hold what is known so far.

On one's own model and seeds, the same with `--config=configs/safety.py:DIR
--config.task.seeds=FILE`; then domain and model are those of the configuration.
"""

import importlib.util
import pathlib
import shlex
import sys

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

import ml_collections
from absl import flags
from ml_collections import config_flags

from isara_jax import config
from isara_jax.devices import compilation_cache, mesh
from isara_jax.files import storage
from isara_jax.formats import pretrained
from isara_jax.shell import terminal
from isara_jax.studies import cells, grids, result, running
from isara_jax.studies.cells import Base
from isara_jax.studies.grids import Study

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def define_flags() -> None:
    """Not done on import: the tests import more than one command."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/; the bundled world's else.")
    flags.DEFINE_string("study", None, f"One of {', '.join(grids.STUDIES)}.")
    flags.DEFINE_string("output", None, "Folder for the runs and for what they say.")
    flags.DEFINE_integer("seeds", grids.RANDOM_SEEDS, "Random seeds, from 1.", lower_bound=1)
    flags.DEFINE_list("models", [], "Folders of models, or names, in place of the study's.")
    flags.DEFINE_bool("keep_runs", True, "Keep all files of each run, not its results alone.")
    flags.DEFINE_bool("summarize", False, "Run nothing: table and picture of the JSON, again.")


def study() -> None:
    """Runs the study that the flags ask for, and says what it found."""
    values = flags.FLAGS
    if values.study not in grids.STUDIES:
        raise config.UserError(
            f"--study={values.study}: choose one of {', '.join(grids.STUDIES)}"
            + config.nearest(values.study, grids.STUDIES)
        )
    chosen, folder = grids.STUDIES[values.study], pathlib.Path(values.output)
    if values.summarize:
        found = storage.read_json(result.path(folder, chosen.name, "json"))
        result.write(found, folder)
        return
    mesh.check_platforms()
    compilation_cache.keep_compiled_programs()
    with storage.scratch() as data, config.user_errors():
        grid = cells.of(chosen, _bases(chosen), values.seeds, data)
    run(chosen, grid, folder, values.keep_runs)


def run(chosen: Study, grid: list[cells.Cell], folder: pathlib.Path, keep_runs: bool) -> None:
    """Runs the cells of a study, and writes its result after each."""
    given = shlex.join(["python", "-m", "isara_jax.study", *sys.argv[1:]])
    runs = folder / "cells"

    def write() -> None:
        records = running.finished(grid, runs)
        result.write(result.of(chosen, records, len(grid), given), folder)

    known = len(running.finished(grid, runs))
    terminal.show(f"{chosen.name}: {len(grid)} runs, of which {known} are finished")
    running.run_all(grid, runs, keep_runs, write, terminal.show)
    write()
    found = storage.read_json(result.path(folder, chosen.name, "json"))
    compiled = ", ".join(f"{name} {n}" for name, n in found["compiles"].items())
    terminal.show(f"\nCompiled: {compiled}\nResult: {result.path(folder, chosen.name, 'md')}")


def _bases(chosen: Study) -> list[Base]:
    """The configurations that the study changes."""
    given, models = flags.FLAGS.config, flags.FLAGS.models
    if given is not None:
        return [_base(given, given.task.name, model) for model in models or [given.model.path]]
    if not (models or chosen.models):
        raise config.UserError(f"--study={chosen.name} needs --models=DIR,DIR")
    return [
        _base(_bundled(domain, model), domain, model)
        for domain in chosen.domains
        for model in models or chosen.models
    ]


def _base(values: ml_collections.ConfigDict, domain: str, model: str) -> Base:
    values = values.copy_and_resolve_references()
    values.model.path = model
    return Base({"domain": domain, "model": pathlib.PurePath(model).name}, values)


def _bundled(domain: str, model: str) -> ml_collections.ConfigDict:
    """What suits a bundled model in a domain, and others that were pretrained like it."""
    path = _CONFIGS / f"{domain}.py"
    if not path.is_file():
        raise config.UserError(f"{path}: not found; give --config=FILE")
    spec = importlib.util.spec_from_file_location(f"configs_{domain}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[model] * (model in pretrained.BUNDLED))


main = command.of(study, needs=("study", "output"))

if __name__ == "__main__":
    define_flags()
    command.run(main)
