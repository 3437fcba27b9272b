"""The host's loop: restore, iterate, evaluate, save, compare with the baselines, report."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import remote, storage
from isara_jax.host import (
    advice,
    checkpoint,
    forecast,
    held_back,
    history,
    integrity,
    lock,
    memory,
    metrics,
    results,
    same_run,
    validation,
)
from isara_jax.host.baselines import Baselines
from isara_jax.host.cache_check import WORST_DIVERGENCE
from isara_jax.host.executables import Executables, Shared, keep_nothing
from isara_jax.host.held_out import HeldOut
from isara_jax.host.history import History
from isara_jax.host.setup import Setup, prepare
from isara_jax.method.state import Pool, Report, State
from isara_jax.method.trouble import Trouble
from isara_jax.models import lora
from isara_jax.report import html, table
from isara_jax.shell import endings

_HISTORY = "history.json"


def run(
    c: config.Config, workdir: str | pathlib.Path, shared: Shared | None = None
) -> dict[str, Any]:
    """Aligns a model and writes everything into `workdir`; continues what it finds there.

    Args:
      c: the configuration.
      workdir: a folder, here or at a URL.
      shared: what runs before it in this process have compiled.

    Returns:
      The content of `summary.json`.

    Raises:
      config.UserError: something asked for cannot work; raised before anything is generated.
    """
    with _own_folder(workdir) as place:
        shared = Shared() if shared is None else shared
        progress = shared.begin(place.local / "output.txt")
        with config.user_errors():
            setup = prepare(c, place.local / "data", progress)
        c = setup.config
        same_run.check(setup, place)
        processes.check_same(json.dumps(same_run.record(setup)))
        if place.url is None:
            processes.check_shared(pathlib.Path(place.orbax))
        progress.expect("questions", c.samples_per_iteration)
        progress.expect("answers", c.samples_per_iteration)
        place.local.mkdir(parents=True, exist_ok=True)
        storage.sweep(place.local)
        with (
            memory.told(setup.program, setup.judge_bytes),
            checkpoint.Checkpoints(place) as checkpoints,
            checkpoint.Stages(place) as stages,
            jax.transfer_guard("disallow"),
            endings.saving_when_asked(),
        ):
            return _Run(setup, place, shared, checkpoints, stages).to_the_end()


@contextlib.contextmanager
def _own_folder(workdir: str | pathlib.Path) -> Iterator[remote.Workdir]:
    """Where this process writes: the first into the run's folder, others where nobody looks.

    So all run the same code. Checkpoints, which all write, are in the run's folder.
    """
    first = jax.process_index() == 0
    with (
        lock.held(remote.path(workdir)) if first else contextlib.nullcontext(),
        remote.workdir(workdir, jax.process_index(), jax.process_count()) as place,
    ):
        if place.url is not None or first:
            yield place
            return
        with storage.scratch() as scratch:
            own = remote.Workdir(scratch)
            own.orbax = place.orbax
            for name in ("config.json", _HISTORY, "summary.json"):  # what was done before
                if (place.local / name).exists():
                    shutil.copy(place.local / name, scratch)
            yield own


class _Run:
    """A run in progress.

    `setup` is its plan, and never changes. What changes is the state that `_iterate` hands on
    (adapter, pool), kept in `checkpoints` as soon as an iteration has ended, and `history` (what
    the host knows), kept there and, after every row of the table, in `history.json`; `stages` keeps
    what is on the way to either. So a run that is interrupted repeats at most one stage. The rest
    serves: `exe` computes, `held_out` measures, `progress` tells.
    """

    def __init__(
        self, setup: Setup, place: remote.Workdir, shared: Shared,
        checkpoints: checkpoint.Checkpoints, stages: checkpoint.Stages,
    ) -> None:  # fmt: skip
        self.setup, self.place, self.workdir = setup, place, place.local
        self.progress, self.checkpoints, self.stages = shared.progress, checkpoints, stages
        self.exe = Executables(setup.program, setup.inputs, shared)
        self.history = History(setup)

    def to_the_end(self) -> dict[str, Any]:
        done, wanted = self.checkpoints.latest, self.setup.config.iterations
        if done is not None and done > wanted:
            raise config.ConfigError(
                f"config.iterations={wanted}: {self.place} holds {done}, of which none is taken "
                f"back; give at least {done}, or choose another --workdir"
            )
        summary = self._finished()
        # The first process alone sees the result: where it is gone, all go on.
        if processes.of_the_first(summary is not None and done == wanted):
            summary = summary or {}
            self.progress.say(f"{self.place} holds this run, finished. Its table:\n")
            self.progress.say(table.text(summary))
            return summary
        self.progress.say(forecast.describe(self.setup, self.place, done))
        self.progress.say("\nCompiling")
        state = self._initial_state()
        self._identify()
        self.place.keep()
        with metrics.MetricWriter(self.workdir, self.history.measured) as writer:
            state = self._iterate(state, writer)
        if self.setup.config.keep == "last":
            self._export(state)
        del state  # leaves its memory to the baselines
        self._baselines()
        return self._conclude()

    def _export(self, state: State) -> None:
        # That of fewer iterations: without it an export waits for the one of the new result.
        (self.workdir / "summary.json").unlink(missing_ok=True)
        results.export(self.workdir, self.setup.base, self.setup.config, state.trainable)

    def _finished(self) -> dict[str, Any] | None:
        """The summary of a run of so many iterations; that of one with fewer is not its end."""
        path, result = self.workdir / "summary.json", results.folder(self.setup.config)
        here = self.place.url is None and jax.process_index() == 0  # else the result is not
        if not path.exists() or (here and not (self.workdir / result).exists()):
            return None
        try:
            summary = storage.read_json(path, ours=True)
        except config.UserError as error:
            processes.say_once(f"{error}; it is written anew")
            return None
        same = summary["config"]["iterations"] == self.setup.config.iterations
        return summary if same else None

    def _initial_state(self) -> State:
        state = self.exe.start(self.setup.pool)
        # Checkpoints with the one being written, a stage, the result.
        checkpoint.check_room(self.place, state, checkpoint.KEPT + 3)
        # A pool of its own: the state's is given to the iterations.
        seeds = self._fresh().pool
        self.held_out = HeldOut(self.setup, self.exe, seeds)
        if self.setup.config.kv_cache == "int8":
            self._check_cache(seeds)
        found = self.checkpoints.restore(state)
        kept = self._kept(found.step if found else 0) or (found and found.host)
        if kept:
            same_run.compare(self.setup, self.place, kept["run"])
            self.history.restore(kept["history"])
            self.progress.seconds.update(self.history.data["seconds"])
        return found.state if found else state

    def _kept(self, done: int) -> dict[str, Any] | None:
        """What `history.json` has, if it is of so many iterations: it may know of later rows."""
        kept = integrity.read(self.workdir / _HISTORY, "what it knew is measured again")
        other = kept is None or len(kept["history"]["iterations"]) != done
        return None if processes.in_any(other) else kept

    def _check_cache(self, seeds: Pool) -> None:
        """Raises `config.UserError` where 8 bits are too few for this model's keys and values."""
        moved = float(np.mean(jax.device_get(self.exe.cache_divergence(seeds))))
        self.progress.say(f"  8-bit cache: the next token's distribution moves by {moved:.5f} nats")
        if not moved <= WORST_DIVERGENCE:
            raise config.UserError(
                f"config.kv_cache='int8' moves the next token's distribution by {moved:.4f} nats "
                f"behind the seeds, more than {WORST_DIVERGENCE}; use --config.kv_cache=auto"
            )

    def _fresh(self) -> State:
        """The base model, with all seeds; not kept, since all weights may be part of it."""
        return self.exe.start(self.setup.seeds)

    def _iterate(self, state: State, writer: metrics.MetricWriter) -> State:
        if not self.history.data["rows"]:
            rates = self._evaluate("base", "base model", self._fresh().trainable)
            measured = self._validated(None)
            self.history.data["base"] = measured
            writer.write(0, rates | measured)
            self._note()
        self._expect_end()
        self._lose_patience()  # if it ended so, and is started again
        done, wanted = int(jax.device_get(state.step)), self.setup.config.iterations
        if done < wanted:
            self.exe.compile_step(state)
        self.progress.say(f"  compiled, {self.exe.seconds:.0f} s in all")
        for number in range(max(done, 1), wanted + 1):
            if number > done:
                state = self._step(state, number)
            if not self.history.has("isara", number):
                self._measure(state.trainable, number, writer)
            if self.setup.config.keep == "best":
                self._export_if_best(state)
            elif self.history.data["iterations"][number - 1]["accepted"] and number < wanted:
                self._export(state)  # the result, should those that follow accept nothing
            self._lose_patience()
        return state

    def _step(self, state: State, number: int) -> State:
        """An iteration; it is kept before it is measured."""
        self.progress.say(f"\nIteration {number} of {self.setup.config.iterations}")
        fused = self.setup.config.execution == "fused"  # the checkpoint follows at once
        keep = keep_nothing if fused else self.stages.under(f"iteration {number}")
        state, report = self.exe.step(state, keep=keep)
        jax.effects_barrier()  # every stage has been heard of
        self._tell(self.history.record(number, jax.device_get(report), self.workdir))
        self._heed(number, report, state)
        self.place.keep()  # before the checkpoint, which vouches for it
        self.checkpoints.save(number, state, self._host())
        self._end_if_asked(f"iteration {number}")
        return state

    def _measure(
        self, trainable: lora.Trainable, number: int, writer: metrics.MetricWriter
    ) -> None:
        entry = self.history.data["iterations"][number - 1]
        reasons = {f"reason/{name}": count for name, count in entry["reasons"].items()}
        numbers = {k: v for k, v in entry.items() if isinstance(v, (int, float))}
        rates = self._evaluate("isara", "after it", trainable, iteration=number)
        measured = self._validated(trainable)
        entry |= measured
        if said := self.history.collapsed():
            self.progress.say(f"  {said}")
        writer.write(number, rates | reasons | numbers | measured)
        self._note()
        self._expect_end()

    def _identify(self) -> None:
        """Says in the folder which run is in it."""
        storage.write_json(self.workdir / "config.json", same_run.record(self.setup))

    def _host(self) -> dict[str, Any]:
        """What the host knows, for a restart."""
        self.history.data["seconds"] = dict(self.progress.seconds)
        return {"run": same_run.record(self.setup), "history": self.history.data}

    def _note(self) -> None:
        """Keeps what the host knows; what has led to it is no longer needed."""
        if not (self.workdir / "config.json").exists():
            processes.say_once(
                f"{self.workdir}: its files are gone, removed while the run was at work; it goes "
                "on and writes what follows"
            )
            self._identify()
        self.checkpoints.wait()  # so that the host knows of no iteration that is not kept
        storage.write_json(self.workdir / _HISTORY, integrity.sealed(self._host()))
        self.place.keep()
        self.stages.clear()
        row = self.history.data["rows"][-1]
        self._end_if_asked(f"what is known up to {history.name_of(row)}")

    def _end_if_asked(self, saved: str) -> None:
        """Ends the process where a signal has asked for it; what was begun to be kept is first."""
        if processes.all_asked_to_end():
            self.checkpoints.wait()
            endings.end_preempted(saved)

    def _expect_end(self) -> None:
        done = self.history.data["iterations"]
        self.progress.ends_in(forecast.left(self.setup, done, self.progress.seconds))

    def _lose_patience(self) -> None:
        """Ends the run where several iterations in a row have accepted nothing."""
        entries = self.history.data["iterations"]
        if said := advice.given_up(entries, self.setup.config):
            good = [entry["iteration"] for entry in entries if entry["accepted"]]
            result = f"{self.place / results.folder(self.setup.config)} has the result of iteration"
            kept = f"{result} {good[-1]}" if good else "no iteration has a result"
            self.checkpoints.wait()
            self.place.keep()
            raise config.UserError(
                f"{said}. What was written is kept, {kept}; change this in another --workdir, or "
                "go on in this one with --config.patience=0"
            )

    def _validated(self, trainable: lora.Trainable | None) -> dict[str, float]:
        """A model's `validation_loss`, where an iteration is chosen by it; None: the base model."""
        if self.setup.config.keep == "last":
            return {}
        self.progress.lap("host")
        trainable = self._fresh().trainable if trainable is None else trainable
        loss = validation.loss(self.setup, self.exe, trainable)
        self.progress.lap("validation")
        self.progress.say(f"  loss on {self.setup.n_validation} validation seeds: {loss:.3f}")
        return {"validation_loss": loss}

    def _export_if_best(self, state: State) -> None:
        """Writes the result where the iteration just done, or restored, is the best so far.

        Not before its checkpoint is whole: a run that ends between the two finds the iteration in
        the checkpoint and writes the result then; one that ends earlier still has the result of
        the best one before.
        """
        losses = self.history.validation_losses
        if validation.best(losses) == len(losses) - 1:
            self.checkpoints.wait()
            self._export(state)
            self.place.keep()

    def _tell(self, entry: dict[str, Any]) -> None:
        reasons = ", ".join(f"{n} {reason}" for reason, n in entry["reasons"].items() if n)
        self.progress.say(f"  {entry['attempted']} samples: {reasons}")
        if entry["advice"]:
            self.progress.say(f"  {entry['advice']}")
        if entry["example"]:
            self._tell_example(entry["example"]["question"], entry["example"]["answer"])
        else:
            self.progress.say("  nothing was accepted; the run goes on with what the pool holds")

    def _heed(self, number: int, report: Report, state: State) -> None:
        """Says and keeps what the fine-tuning held back; ends the run where that is asked for."""
        found, steps = jax.device_get((report.trouble, report.train_steps))
        fine = held_back.Fine(f"iteration_{number}", f"iteration {number}", int(steps), found)
        ids, c = self.history.data["row_ids"], self.setup.config
        held_back.note(fine, state.pool, ids, self.setup, self.workdir, self.progress)
        if not held_back.ends(fine, c):
            return
        kept = "Nothing was trained before it"
        if number > 1:
            if c.keep == "last":
                self._export(state)  # a training that is dropped leaves the adapter as it was
            kept = f"{results.folder(c)}/ has the result until then"
        self.place.keep()
        raise held_back.stopped(fine, c, kept)

    def _tell_example(self, question: str, answer: str) -> None:
        self.progress.say(f"  e.g. Q {question}\n       A {answer}")

    def _evaluate(
        self, method: str, title: str, trainable: lora.Trainable, how: int | None = None,
        steps: int | None = None, chosen_on: int | None = None, trouble: Trouble | None = None, *,
        iteration: int | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Scores a model, appends its row to the table and returns its metrics."""
        self.progress.lap("host")
        scored = self.held_out.score(trainable, how)
        self.progress.lap("evaluation")
        where = {"method": method, "iteration": iteration, "steps": steps}
        more: dict[str, Any] = {"chosen_on": chosen_on} if chosen_on else {}
        more |= held_back.counted(trouble) if trouble else {}
        self.history.record_row(where, scored, self.workdir, **more)
        self.progress.say(f"  {title}: {_headline(scored.row)}")
        if method == "base" and scored.examples:
            self._tell_example(self.held_out.shown[0].question, scored.examples[0][0])
        return scored.row["metrics"]

    def _baselines(self) -> None:
        self.progress.say("\nBaselines")
        found = Baselines(
            self.setup, self.exe, self.progress, self.history, self.stages, self.workdir
        )
        for baseline in found():
            self._evaluate(*baseline)
            self._note()

    def _conclude(self) -> dict[str, Any]:
        """Writes the report and the summary, and shows the table."""
        summary = results.summary(self.setup, self.history, self.held_out, self.exe, self.progress)
        html.write(summary, self.workdir / "report.html")
        self.history.write_items(self.workdir / "items.jsonl")
        storage.write_json(self.workdir / "summary.json", summary)  # last: the run is finished
        self.place.keep()
        self.progress.say("\n" + table.text(summary))
        result = results.folder(self.setup.config)
        self.progress.say(
            f"\nReport: {self.place / 'report.html'}   {result}: {self.place / result}"
        )
        return summary


def _headline(row: dict[str, Any]) -> str:
    """A row's first metric, and refusals by rule, sampled."""
    names = [name for name in row["metrics"] if not name.endswith("_greedy")]
    chosen = dict.fromkeys([*names[:1], *(n for n in names if n.startswith("refused"))])
    shown = []
    for name in chosen:
        value = row["metrics"][name]
        percent = name in row["counts"]
        text = "none asked" if value is None else f"{value:.1%}" if percent else f"{value:.3f}"
        shown.append(f"{name} {text}")
    return ", ".join(shown)
