"""Updates that a fine-tuning held back: what is kept of them, and what is said."""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from isara_jax import config
from isara_jax.files import storage
from isara_jax.host.setup import Setup
from isara_jax.method.progress import Progress
from isara_jax.method.state import Pool
from isara_jax.method.trouble import Trouble
from isara_jax.text import packing, tokens

FOLDER = "trouble"


class Fine(NamedTuple):
    """A fine-tuning, as the host knows it.

    Attributes:
      name: of the file that gets its batches, without suffix.
      title: for the terminal.
      steps: of the optimiser.
      trouble: on the host.
    """

    name: str
    title: str
    steps: int
    trouble: Trouble


def counted(found: Trouble) -> dict[str, int | bool]:
    """What an iteration, a row of the table and `metrics.jsonl` say of it."""
    return {"train_skipped": int(found.count), "train_dropped": bool(found.dropped)}


def note(
    fine: Fine, pool: Pool, ids: Sequence[str], setup: Setup, workdir: pathlib.Path,
    progress: Progress,
) -> None:  # fmt: skip
    """Says what was held back, and writes the first batches of it, a line each, for inspection.

    Args:
      fine: the fine-tuning.
      pool: what it read, on the devices.
      ids: of the pool's rows.
      setup: of the run.
      workdir: its folder.
      progress: gets the line.
    """
    if fine.trouble.count:
        path = workdir / FOLDER / f"{fine.name}.jsonl"
        storage.write_lines(path, _batches(fine, pool, ids, setup.base.vocabulary))
    if said := _told(fine, setup.config):
        progress.say(f"  {said}")


def _batches(
    fine: Fine, pool: Pool, ids: Sequence[str], vocabulary: tokens.Vocabulary
) -> Iterator[dict[str, Any]]:
    found, pairs = fine.trouble, jax.device_get(pool.pairs)

    def text(part: packing.Part, row: int) -> str:
        return vocabulary.decode(part.ids[row][: part.lengths[row]]).strip()

    def pair(row: int) -> dict[str, str]:
        question, answer = text(pairs.question.bare, row), text(pairs.answer.bare, row)
        return {"id": ids[row], "question": question, "answer": answer}

    for step, rows, loss, norm in zip(*found[1:5], strict=True):
        if step >= 0:
            yield {
                "update": int(step) + 1,
                "of": fine.steps,
                "loss": _number(loss),
                "gradient_norm": _number(norm),
                "batch": [pair(row) for row in rows if row >= 0],
            }


def _number(value: float) -> float | str:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else str(float(value))


def _told(fine: Fine, c: config.Config) -> str:
    """One line on updates held back and a training that is dropped; empty if all is well."""
    found, said = fine.trouble, []
    if found.count:
        said.append(
            f"{found.count} of {fine.steps} updates held back, the first is update "
            f"{found.step[0] + 1} (loss {found.loss[0]:.3g}, gradient norm {found.norm[0]:.3g}; "
            f"batches in {FOLDER}/{fine.name}.jsonl)"
        )
    if found.dropped:
        rate = f"config.train.learning_rate={c.train.learning_rate:g}"
        said.append(f"the training is dropped, the model is as before it: lower {rate}")
    return "; ".join(said)


def ends(fine: Fine, c: config.Config) -> bool:
    """Whether this is to end the run (`train.on_divergence`)."""
    return c.train.on_divergence == "stop" and bool(fine.trouble.count or fine.trouble.dropped)


def stopped(fine: Fine, c: config.Config, kept: str) -> config.UserError:
    """What ends the run.

    Args:
      fine: the fine-tuning.
      c: the configuration.
      kept: what there is of the run's result.
    """
    return config.UserError(
        f"config.train.on_divergence='stop', and in {fine.title}: {_told(fine, c)}. {kept}. To go "
        "on without such updates, start the same command with --config.train.on_divergence=skip"
    )
