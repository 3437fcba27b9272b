"""What a run leaves behind: its result for other programs, and its summary."""

import pathlib
import shutil
from typing import Any

import jax

from isara_jax import config
from isara_jax.files import storage
from isara_jax.formats import adapters, pretrained
from isara_jax.host.executables import Executables
from isara_jax.host.held_out import HeldOut
from isara_jax.host.history import History
from isara_jax.host.setup import Setup
from isara_jax.method.progress import Progress
from isara_jax.models import lora


def folder(c: config.Config) -> str:
    """What the result is called in the run's folder."""
    return "adapter" if c.train.trainable == "lora" else "model"


def export(
    workdir: pathlib.Path, base: pretrained.Pretrained, c: config.Config, trainable: lora.Trainable
) -> None:
    """The result in a form other programs load, in `folder` of `workdir`."""
    target = workdir / folder(c)
    if c.train.trainable == "lora":
        name = pretrained.name_of(base.path)
        adapters.save(target, base.network, jax.device_get(trainable), c.train.lora, name)
        return
    shutil.rmtree(target, ignore_errors=True)  # of a run that ended during its baselines
    with storage.atomic_folder(target) as unfinished:
        pretrained.save_model(unfinished, base, trainable)


def summary(
    s: Setup, history: History, held_out: HeldOut, exe: Executables, progress: Progress
) -> dict[str, Any]:
    """The content of `summary.json`, which table, report and model card are made from."""
    return {
        "task": s.task.name,
        "model": pathlib.PurePath(pretrained.name_of(s.base.path)).name,
        "n_seeds": len(s.task.seeds),
        "rows": history.table(),
        "metrics_info": held_out.metrics_info(),
        "scaling_ratio": history.scaling_ratio,
        "iterations": history.data["iterations"],
        "one_round": history.data.get("one_round"),
        "sft": history.data.get("sft"),
        "kept": history.kept(),
        "leakage": history.leaked(),
        "compiles": dict(exe.compiles),
        "seconds": {name: round(value, 2) for name, value in progress.seconds.items()},
        "tokens": history.data["tokens"],
        "prompts": s.measured.prompts.about if s.measured.prompts else None,
        "examples": history.examples(held_out.shown),
        "config": config.to_dict(s.config),
    }
