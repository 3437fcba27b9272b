"""Results as folders that Hugging Face's libraries load: an adapter, or a whole model."""

import pathlib
import shutil
from typing import Any, Literal

import ml_collections
import numpy as np

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.files import storage
from isara_jax.formats import adapters, pretrained, weights
from isara_jax.models import families, lora
from isara_jax.publish import card

Format = Literal["peft", "merged"]


def export(
    workdir: pathlib.Path, form: Format, output: pathlib.Path, model: str = "", base_name: str = ""
) -> None:
    """Writes the result of a finished run, with tokenizer and model card, into a new folder.

    Args:
      workdir: of the run.
      form: `peft`, the adapter alone; or `merged`, all weights.
      output: the folder, which appears whole or not at all.
      model: the base model's folder, where it is no longer the one the run was given.
      base_name: its name on the hub; empty: as `pretrained.name_of` finds it.

    Raises:
      config.UserError: the run is not finished, the base model is missing or another one, the
        format does not go with the run, or `output` holds something.
    """
    with config.user_errors():
        c, summary = _finished(workdir)
        if form == "peft" and c.train.trainable == "full":
            raise config.UserError(
                f"{workdir}: all weights were trained, so there is no adapter; use --format=merged"
            )
        base = _base(model or c.model.path, c.model)
        name = base_name or pretrained.name_of(base.path)
        with storage.atomic_folder(output) as folder:
            settings = None
            if c.train.trainable == "full":
                _copy_model(workdir / "model", folder)
            else:
                adapter, settings = adapters.load(workdir / "adapter", base.network)
                if form == "peft":
                    adapters.save(folder, base.network, adapter, settings, name)
                    pretrained.copy_tokenizer(base, folder)
                else:
                    params = _load(base)
                    pretrained.save_model(folder, base, lora.merge(params, adapter, settings))
            about = card.About(output.absolute().name, form, name, base, c, settings, summary)
            storage.atomic_write(folder / "README.md", card.text(about).encode())
            pretrained.copy_files(
                base.path, folder, *(file.name for file in card.licence_files(base.path))
            )


def _finished(workdir: pathlib.Path) -> tuple[config.Config, dict[str, Any]]:
    """The configuration and the summary of a run."""
    path = workdir / "config.json"
    if not path.exists():
        raise config.UserError(f"{workdir}: not the folder of a run; it has no config.json")
    if not (workdir / "summary.json").exists():
        raise config.UserError(
            f"{workdir}: this run is not finished; the command that started it continues it"
        )
    fields = {k: v for k, v in storage.read_json(path, ours=True).items() if k != "data"}
    try:
        return (
            config.resolve(ml_collections.ConfigDict(fields)),
            storage.read_json(workdir / "summary.json", ours=True),
        )
    except config.ConfigError as error:
        raise config.UserError(f"{path}: of another version of isara_jax: {error}") from error


def _base(name: str, how: config.Model) -> pretrained.Pretrained:
    path = pretrained.locate(name)
    if not path.is_dir():
        raise config.UserError(
            f"the base model {name!r} is not there; if it has moved, say where: --model=DIR"
        )
    return pretrained.read_language_model(name, how.bos, how.template)


def _load(base: pretrained.Pretrained) -> dict[str, Any]:
    """The base model's parameters, in the type they are stored in."""
    model = families.build(base.network, np.dtype(pretrained.stored_dtype(base.path)))
    return weights.load(base.path, model, mesh.make())


def _copy_model(source: pathlib.Path, folder: pathlib.Path) -> None:
    if not source.is_dir():
        raise config.UserError(f"{source}: not found; it held the run's result")
    shutil.copytree(source, folder, dirs_exist_ok=True)
