"""The host's loop: restore, iterate, evaluate, save, compare with the baselines, report."""

import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from isara_jax import accept, checkpoint, config, decode, lora, metrics, sampling, weights
from isara_jax.evaluate import answers, scores
from isara_jax.executables import Executables
from isara_jax.progress import Progress
from isara_jax.report import html, table
from isara_jax.setup import Setup, prepare
from isara_jax.state import Report, State

N_EXAMPLES = 5
# Of the whole job on the bundled model and 2 cores, in shares of the rate of a matrix product:
# small matrices, attention, sampling, compilation.
_EFFICIENCY = 0.3
# Fields that may change between the start of a run and its continuation.
_FREE_FIELDS = {"execution", "compilation_cache", "mesh", "slots"}


def run(c: config.Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Aligns a model and writes everything into `workdir`; continues what it finds there.

    Returns:
      The content of `summary.json`.

    Raises:
      ValueError: something asked for cannot work; raised before anything is compiled.
    """
    _check_same_run(c, workdir)
    progress = Progress()
    setup = prepare(c, workdir / "data", progress)
    progress.expect("questions", c.samples_per_iteration)
    progress.expect("answers", c.samples_per_iteration)
    progress.expect("evaluation", len(setup.task.items))
    workdir.mkdir(parents=True, exist_ok=True)
    weights.write_json(workdir / "config.json", config.to_dict(c))
    with (
        jax.transfer_guard("disallow"),
        checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints,
    ):
        return _Run(setup, workdir, progress, checkpoints).to_the_end()


def _check_same_run(c: config.Config, workdir: pathlib.Path) -> None:
    """Raises `config.ConfigError` where `workdir` holds a run with another configuration."""
    path = workdir / "config.json"
    if not path.exists():
        return
    # Through JSON, so that tuples compare with the lists they become.
    old, new = weights.read_json(path), json.loads(json.dumps(config.to_dict(c)))
    old, new = weights.flatten(old), weights.flatten(new)
    changed = [
        f"config.{name.replace('/', '.')}: {old.get(name)!r} there, {new.get(name)!r} now"
        for name in old | new
        if old.get(name) != new.get(name) and name.split("/")[0] not in _FREE_FIELDS
    ]
    if changed:
        raise config.ConfigError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed[:4])}). "
            "Choose another --workdir, or delete that one to start anew"
        )


class _Run:
    """A run in progress. `host` is what its checkpoints hold besides the state."""

    def __init__(
        self, setup: Setup, workdir: pathlib.Path, progress: Progress,
        checkpoints: checkpoint.Checkpoints,
    ) -> None:  # fmt: skip
        self.setup, self.workdir = setup, workdir
        self.progress, self.checkpoints = progress, checkpoints
        self.exe = Executables(setup.program, setup.inputs)
        self.judged = setup.task.judge is not None
        self.host: dict[str, Any] = {
            "rows": [],
            "iterations": [],
            "row_ids": [f"seed-{i + 1}" for i in range(len(setup.task.seeds))],
            "before": [],
            "seconds": {},
            "tokens": dict.fromkeys(("questions", "answers", "train", "prompts"), 0),
        }

    def to_the_end(self) -> dict[str, Any]:
        done = self.checkpoints.latest
        if done is not None:
            self.host = self.checkpoints.restore_host()
            self.progress.seconds.update(self.host["seconds"])
        finished = self.workdir / "summary.json"
        if done == self.setup.config.iterations and finished.exists():
            summary = weights.read_json(finished)
            self.progress.say(f"{self.workdir} holds this run, finished. Its table:\n")
            self.progress.say(table.text(summary))
            return summary
        self.progress.say(self._plan(done))
        self.progress.say("\nCompiling")
        state = self._initial_state(done)
        with metrics.MetricWriter(self.workdir, -1 if done is None else done) as writer:
            state = self._iterate(state, writer)
        return self._conclude(state)

    def _plan(self, done: int | None) -> str:
        s, c, p = self.setup, self.setup.config, self.setup.program
        devices = p.mesh.devices.flat
        judge = "a judge" if self.judged else "no judge for it: likelihood on held-out seeds"
        lines = [
            f"ISARA on {s.model_path.name}: {s.n_params / 1e6:,.1f} M parameters, "
            f"{np.dtype(p.model.dtype).name}",
            f"  domain      {s.task.name}: {len(s.task.seeds)} seeds, {len(s.task.items)} held-out "
            f"questions, {judge}",
            f"  devices     {p.mesh.size} × {devices[0].device_kind}, mesh "
            + " × ".join(f"{name} {size}" for name, size in p.mesh.shape.items()),
            f"  run         {c.iterations} iterations of {c.samples_per_iteration} samples, "
            f"{c.execution}, {c.train.trainable} training"
            + (f", continued after iteration {done}" if done else ""),
            f"  workdir     {self.workdir}",
            f"  time        about {_minutes(s)} (from a matrix product timed just now)",
        ]
        return "\n".join(lines)

    def _initial_state(self, done: int | None) -> State:
        state = self.exe.start(self.setup.seeds)
        # Before the state is replaced by a checkpoint's: seeds stand first in either.
        self.held_out = answers.Questions(self.setup.held_out, self.exe.seeds(state.pool))
        self.fresh = self.exe.fresh()
        if done is not None:
            state = self.checkpoints.restore_state(state)
        return state

    def _iterate(self, state: State, writer: metrics.MetricWriter) -> State:
        if not self.host["rows"]:
            self._evaluate("base", None, self.fresh, writer)
        self.exe.compile_step(state)
        self.progress.say(f"  compiled, {self.exe.seconds:.0f} s in all")
        for number in range(int(jax.device_get(state.step)) + 1, self.setup.config.iterations + 1):
            self.progress.say(f"\nIteration {number} of {self.setup.config.iterations}")
            state, report = self.exe.step(state)
            scalars = self._record(number, jax.device_get(report))
            scalars |= self._evaluate("isara", number, state.trainable, None)
            writer.write(number, scalars)
            self.host["seconds"] = dict(self.progress.seconds)
            self.checkpoints.save(number, state, self.host)
        return state

    def _record(self, number: int, report: Report) -> dict[str, float]:
        """Writes an iteration's samples and returns its scalars."""
        decode_text = self.setup.vocabulary.decode
        task, rows, ids = self.setup.task, [], self.host["row_ids"]
        known, accepted_ids = list(ids), []
        for index, reason in enumerate(report.reason):
            sample_id = f"{number}-{index + 1}"
            shown = report.demonstrations[index]
            rows.append(
                {
                    "id": sample_id,
                    "question": decode_text(_row(report.question, index)).strip(),
                    "answer": decode_text(_row(report.answer, index)).strip(),
                    "demonstrations": [known[row] for row in shown if row >= 0],
                    "accepted": bool(reason == 0),
                    "reason": accept.REASONS[reason],
                }
            )
            accepted_ids += [sample_id] if reason == 0 else []
        ids += accepted_ids
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = self.workdir / "samples" / f"iteration_{number}.jsonl"
        weights.atomic_write(path, lines.encode())

        kept = [(row["question"], row["answer"]) for row in rows if row["accepted"]]
        counts = np.bincount(report.reason, minlength=len(accept.REASONS))
        held_out = {item.question for item in task.items}
        entry = {
            "iteration": number,
            "attempted": len(rows),
            "accepted": len(kept),
            "reasons": dict(zip(accept.REASONS, counts.tolist(), strict=True)),
            "valid_questions": self._share([task.check_question(q) for q, _ in kept])
            if task.check_question
            else None,
            "aligned_answers": self._share([self._is_aligned(q, a) for q, a in kept])
            if task.judge
            else None,
            "held_out_questions": sum(q in held_out for q, _ in kept),
            "train_steps": int(report.train_steps),
            "train_loss_first": float(report.train_first_loss),
            "train_loss_last": float(report.train_last_loss),
        }
        self.host["iterations"].append(entry)
        for name, n in (
            ("questions", report.question.drawn),
            ("answers", report.answer.drawn),
            ("train", report.train_tokens),
            ("prompts", report.prompt_tokens),
        ):
            self.host["tokens"][name] += int(n)
        self._tell_iteration(entry, rows)
        scalars = {k: v for k, v in entry.items() if isinstance(v, (int, float))}
        return scalars | {f"reason/{k}": v for k, v in entry["reasons"].items()}

    def _tell_iteration(self, entry: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        reasons = ", ".join(f"{n} {r}" for r, n in entry["reasons"].items() if n)
        lines = [f"  {entry['attempted']} samples: {reasons}"]
        if entry["accepted"]:
            first = next(row for row in rows if row["accepted"])
            lines += [f"  e.g. Q {first['question']}", f"       A {first['answer']}"]
        else:
            lines.append("  nothing was accepted; the run goes on with what the pool holds")
        self.progress.say("\n".join(lines))

    @staticmethod
    def _share(values: list[bool]) -> float | None:
        return statistics.fmean(values) if values else None

    def _is_aligned(self, question: str, answer: str) -> bool:
        wanted = {
            label for m in self.setup.task.metrics if m.higher_is_better for label in m.labels
        }
        return self.setup.task.judge(question, answer) in wanted

    def _evaluate(
        self, method: str, number: int | None, trainable: lora.Trainable,
        writer: metrics.MetricWriter | None, steps: int | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Scores a model on the held-out questions and appends a row to the table."""
        k = self.setup.config.evaluation.k if method == "icl_knn" else 0
        self.progress.lap("host")
        row: dict[str, Any] = {
            "method": method,
            "iteration": number,
            "steps": steps,
            "n": len(self.setup.task.items),
        }
        if self.judged:
            row |= self._judge(method, trainable, k)
        else:
            held_out = self.exe.log_likelihood(trainable, self.held_out, k)
            row |= scores.of_likelihood(*jax.device_get(held_out)) | {"by_topic": {}}
        self.progress.lap("evaluation")
        self.host["rows"].append(row)
        name, value = next(iter(row["metrics"].items()))
        shown = f"{value:.1%}" if row["counts"] else f"{value:.3f}"
        label = {"base": "base model", "sft": f"SFT, {steps} steps", "icl_knn": f"ICL, {k} nearest"}
        self.progress.say(f"  {label.get(method, 'after it')}: {name} {shown}")
        if method == "base":
            writer.write(0, row["metrics"])
            for answer, _ in self.host["before"][:1]:
                self.progress.say(
                    f"  e.g. Q {self.setup.task.items[0].question}\n       A {answer}"
                )
        return row["metrics"]

    def _judge(self, method: str, trainable: lora.Trainable, k: int) -> dict[str, Any]:
        task, result = self.setup.task, {"metrics": {}, "counts": {}, "intervals": {}}
        warm = config.Sampling(temperature=self.setup.config.evaluation.temperature)
        for suffix, settings in (("", warm), ("_greedy", config.Sampling(temperature=0.0))):
            with jax.transfer_guard("allow"):  # three scalars
                params = sampling.SamplingParams.of(settings)
            generation = jax.device_get(self.exe.answer(trainable, self.held_out, params, k))
            texts = [
                self.setup.vocabulary.decode(_row(generation, i)).strip()
                for i in range(len(task.items))
            ]
            labels = [task.judge(i.question, a) for i, a in zip(task.items, texts, strict=True)]
            found = scores.of_labels(task.metrics, task.items, labels, suffix)
            result = {key: result[key] | found[key] for key in result}
            if not suffix:
                topics = scores.by_topic(task.metrics[0], task.items, labels)
                self._keep_examples(method, texts, labels)
        return result | {"by_topic": topics}

    def _keep_examples(self, method: str, texts: list[str], labels: list[str]) -> None:
        shown = list(zip(texts, labels, strict=True))[:N_EXAMPLES]
        if method == "base":
            self.host["before"] = shown
        elif method == "isara":
            self.host["after"] = shown

    def _baselines(self) -> None:
        c, total = self.setup.config, sum(i["train_steps"] for i in self.host["iterations"])
        self.progress.say("\nBaselines")
        self._evaluate("icl_knn", None, self.fresh, None)
        for steps in sorted({max(1, round(share * total)) for share in c.evaluation.sft_steps}):
            traced = jax.device_put(np.int32(steps), jax.tree.leaves(self.fresh)[0].sharding)
            fitted = self.exe.fine_tune_on_seeds(self.held_out.seeds, traced)
            jax.block_until_ready(fitted)
            self.progress.lap("baseline_train")
            self._evaluate("sft", None, fitted.trainable, None, steps)

    def _conclude(self, state: State) -> dict[str, Any]:
        self._export(jax.device_get(state.trainable))
        self._baselines()
        order = {"base": 0, "sft": 1, "icl_knn": 2, "isara": 3}
        self.host["rows"].sort(key=lambda row: order[row["method"]])
        self.host["seconds"] = {
            name: round(value, 2) for name, value in self.progress.seconds.items()
        }
        summary = self._summary()
        weights.write_json(self.workdir / "summary.json", summary)
        html.write(summary, self.workdir / "report.html")
        self.progress.say("\n" + table.text(summary))
        self.progress.say(
            f"\nReport: {self.workdir / 'report.html'}   adapter: {self.workdir / 'adapter'}"
        )
        return summary

    def _export(self, trainable: lora.Trainable) -> None:
        """The result in a form other programs load."""
        s = self.setup
        if s.config.train.trainable == "lora":
            settings, base = s.config.train.lora, str(s.model_path)
            weights.save_adapter(self.workdir / "adapter", trainable, settings, base)
        else:
            weights.save_params(self.workdir / "model", trainable)
            s.vocabulary.tokenizer.save_pretrained(self.workdir / "model")
            fields = weights.read_json(s.model_path / "config.json")
            weights.write_json(self.workdir / "model" / "config.json", fields)

    def _summary(self) -> dict[str, Any]:
        s, task = self.setup, self.setup.task
        accepted = sum(i["accepted"] for i in self.host["iterations"])
        examples = [
            {"question": item.question, "before": before, "before_label": old, "after": after,
             "after_label": new}
            for item, (before, old), (after, new) in zip(
                task.items, self.host["before"], self.host.get("after", []), strict=False
            )
        ]  # fmt: skip
        return {
            "task": task.name,
            "model": s.model_path.name,
            "n_seeds": len(task.seeds),
            "rows": self.host["rows"],
            "metrics_info": self._metrics_info(),
            "scaling_ratio": accepted / len(task.seeds),
            "iterations": self.host["iterations"],
            "compiles": dict(self.exe.compiles),
            "seconds": self.host["seconds"],
            "tokens": self.host["tokens"],
            "examples": examples,
            "config": config.to_dict(s.config),
        }

    def _metrics_info(self) -> dict[str, Any]:
        if not self.judged:
            title = "held-out loss, nats a token"
            return {"nll_per_token": {"title": title, "higher_is_better": False}}
        return {
            m.name + suffix: {"title": m.title, "higher_is_better": m.higher_is_better}
            for suffix in ("", "_greedy")
            for m in self.setup.task.metrics
        }


def _row(generation: decode.Generation, index: int) -> np.ndarray:
    return generation.tokens[index][: generation.lengths[index]]


def _matmul_rate(dtype: Any) -> float:
    """FLOP/s of a 1024 × 1024 matrix product here and now, on one device."""
    size, times = 1024, []
    x = jax.jit(lambda: jax.numpy.ones((size, size), dtype))()
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    for _ in range(3):
        began = time.monotonic()
        product(x).block_until_ready()
        times.append(time.monotonic() - began)
    return 2 * size**3 / min(times)


def _minutes(s: Setup) -> str:
    """A rough forecast: the run's FLOPs at the rate of a matrix product on this machine."""
    c, p = s.config, s.program
    n = p.config.samples_per_iteration * c.iterations
    q, a = c.question, c.answer
    prompts = p.prompt_capacity(q.k, q.prompt_tokens, q.max_tokens, question=False)
    prompts += p.prompt_capacity(a.k, a.prompt_tokens, a.max_tokens, question=True)
    decoded = (q.max_tokens + a.max_tokens) // 2
    kept = s.program.n_seeds * c.iterations + n * (c.iterations + 1) / 2 / c.iterations * 0.6
    trained = 2 * kept * c.train.epochs * p.train_tokens  # ISARA and the baseline of equal compute
    flops = 2 * s.n_params * (n * (prompts + decoded) + 3 * trained)
    minutes = flops / (_EFFICIENCY * _matmul_rate(p.model.dtype)) / 60
    return f"{minutes:.0f} min" if minutes >= 1.5 else "a minute or two"
