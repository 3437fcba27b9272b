"""What ISARA is compared with: the same base model, seeds, decoding and keys.

| | what it is | compute |
|---|---|---|
| ICL-random, -fixed, -kNN | the base model, shown k seeds with each question | nothing is trained |
| SFT | the base model, trained on the seeds | ISARA's optimiser steps, or fewer |
| one round | all samples drawn by the base model, then one fine-tuning | as many samples |
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from isara_jax.devices import mesh
from isara_jax.evaluate import answers
from isara_jax.host import held_back, history, results, validation
from isara_jax.host.checkpoint import Stages
from isara_jax.host.executables import Executables
from isara_jax.host.history import History
from isara_jax.host.setup import Setup
from isara_jax.method import train
from isara_jax.method.program import Hyper
from isara_jax.method.progress import Progress
from isara_jax.method.state import State
from isara_jax.method.trouble import Trouble
from isara_jax.models import lora

_SHOWN = {
    "icl_knn": (answers.NEAREST, "nearest"),
    "icl_random": (answers.RANDOM, "at random"),
    "icl_fixed": (answers.FIXED, "always the same"),
}


class Baseline(NamedTuple):
    """A model to be measured.

    Attributes:
      method: of `config.BASELINES`.
      title: for the terminal.
      trainable: what is added to the base model.
      how: the seeds shown with each question are chosen (`answers.NEAREST` and others), or None.
      steps: of the optimiser, or None.
      chosen_on: validation seeds that chose the steps; None where nothing did.
      trouble: updates that its training held back; None where nothing was trained.
    """

    method: str
    title: str
    trainable: lora.Trainable
    how: int | None = None
    steps: int | None = None
    chosen_on: int | None = None
    trouble: Trouble | None = None


class Baselines:
    """The baselines of a run, once its iterations are done."""

    def __init__(
        self, setup: Setup, exe: Executables, progress: Progress, history: History,
        stages: Stages, workdir: pathlib.Path,
    ) -> None:  # fmt: skip
        self._setup, self._exe, self._progress = setup, exe, progress
        self._history, self._stages, self._workdir = history, stages, workdir

    def __call__(self) -> Iterator[Baseline]:
        """Those without a row; trained one after the other, so that one is held at a time."""
        asked = self._setup.config.evaluation.baselines
        for method in _SHOWN:
            if method in asked and not self._history.has(method):
                yield self._in_context(method)
        if "sft" in asked:
            yield from self._sft()
        if "one_round" in asked and "one_round" not in self._history.data:
            yield self._one_round()

    def _fresh(self) -> State:
        """The state before the first iteration, with all seeds: no baseline has fewer."""
        return self._exe.start(self._setup.seeds)

    def _place(self, value: int | bool) -> jax.Array:
        scalar = np.bool_(value) if isinstance(value, bool) else np.int32(value)
        return mesh.place(scalar, self._setup.program.mesh)

    def _in_context(self, method: str) -> Baseline:
        how, words = _SHOWN[method]
        title = f"ICL, {self._setup.config.evaluation.k} {words}"
        return Baseline(method, title, self._fresh().trainable, how)

    # --- SFT -------------------------------------------------------------------------------------

    def _sft(self) -> Iterator[Baseline]:
        """The length that validation seeds choose, and the longest; all where none are kept.

        Both, since either choice may be the poorer: the likelihood of few seeds may stop too early.
        """
        total, chosen = self._history.train_steps, None
        shares = self._setup.config.evaluation.sft_steps
        lengths = sorted({max(1, round(share * total)) for share in shares})
        if self._setup.validation is not None and len(lengths) > 1:
            chosen = self._chosen(lengths)
            lengths = sorted({chosen, lengths[-1]})
        for steps in lengths:
            if self._history.has("sft", steps=steps):
                continue
            chosen_on = self._setup.n_validation if steps == chosen else None
            fitted = self._fitted(len(self._setup.task.seeds), steps)
            yield Baseline(
                "sft", f"SFT, {steps} steps", fitted.trainable, steps=steps, chosen_on=chosen_on,
                trouble=fitted.trouble,
            )  # fmt: skip

    def _chosen(self, lengths: list[int]) -> int:
        """The length of the lowest validation loss after training on the other seeds."""
        if "sft" in self._history.data:
            return self._history.data["sft"]["chosen"]
        others, losses = len(self._setup.task.seeds) - self._setup.n_validation, []
        for steps in lengths:
            fitted = self._fitted(others, steps)
            losses.append(validation.loss(self._setup, self._exe, fitted.trainable))
            self._progress.lap("validation")
            self._progress.say(f"  SFT on {others} seeds, {steps} steps: loss {losses[-1]:.3f}")
        chosen = lengths[validation.best(losses)]
        self._history.data["sft"] = {
            "steps": lengths, "validation": losses, "chosen": chosen,
            "n": self._setup.n_validation,
        }  # fmt: skip
        return chosen

    def _fitted(self, n: int, steps: int) -> train.Fit:
        self._progress.lap("host")
        start, place = self._fresh(), self._place
        keep = self._stages.under(f"SFT on {n} seeds, {steps} steps")
        fitted = self._exe.fine_tune_on_seeds(start, place(n), place(steps), keep)
        fitted = fitted._replace(trouble=jax.device_get(fitted.trouble))
        jax.block_until_ready(fitted)
        self._progress.lap("baseline_train")
        fine = held_back.Fine(
            f"sft_{steps}_on_{n}", f"SFT on {n} seeds, {steps} steps", steps, fitted.trouble
        )
        self._heed(fine, start, [])
        return fitted

    def _heed(self, fine: held_back.Fine, state: State, samples: Sequence[str]) -> None:
        """Says and keeps what a training on seeds and samples held back; may end the run.

        Raises:
          config.UserError: under `train.on_divergence="stop"`.
        """
        ids = [*history.seed_ids(len(self._setup.task.seeds)), *samples]
        held_back.note(fine, state.pool, ids, self._setup, self._workdir, self._progress)
        if held_back.ends(fine, self._setup.config):
            kept = f"ISARA's result is in {results.folder(self._setup.config)}/"
            raise held_back.stopped(fine, self._setup.config, kept)

    # --- one round -------------------------------------------------------------------------------

    def _one_round(self) -> Baseline:
        """As many samples as all iterations draw, by the base model; then one fine-tuning.

        The executable of an iteration draws them in as many parts, in which it takes no optimiser
        step until the last. Its random streams are those of the iterations, so that the first part
        is what the first iteration drew (where both have the same seeds), and differences are less
        due to chance.
        """
        parts, state, reports = self._setup.config.iterations, self._fresh(), []
        self._progress.lap("host")
        with self._progress.under("one_round"):
            for part in range(1, parts + 1):
                self._progress.say(f"  One round, part {part} of {parts}")
                keep = self._stages.under(f"one round, part {part} of {parts}")
                state, report = self._exe.step(state, self._hyper(last=part == parts), keep=keep)
                jax.effects_barrier()  # every stage has been heard of
                reports.append(jax.device_get(report))
        entry: dict[str, Any] = self._history.record_round(reports, self._workdir)
        self._progress.say(f"  {entry['accepted']} of {entry['attempted']} samples accepted")
        steps, found = entry["train_steps"], reports[-1].trouble
        fine = held_back.Fine("one_round", "the one round", steps, found)
        self._heed(fine, state, entry["ids"])
        title = f"one round, {steps} steps"
        return Baseline("one_round", title, state.trainable, steps=steps, trouble=found)

    def _hyper(self, last: bool) -> Hyper:
        """Of a part: only seeds are shown; training is on all parts, and in the last one."""
        hyper, place = self._exe.inputs.hyper, self._place
        epochs = hyper.train.epochs if last else place(0)
        return hyper._replace(
            only_seeds=place(True), latest=place(False), train=hyper.train._replace(epochs=epochs)
        )
