"""One ISARA iteration, stage by stage: seconds, tokens a second, and how far from the roofline.

    python -m benchmarks.method.iteration --shape=tiny_llama --peer

prints a table and appends a line of JSON to `--out`. `--peer` then runs the same work by
transformers and PEFT (`benchmarks.method.peer_hf`), alone on the machine, and checks that it was
the same.

Two numbers a stage: floating-point operations over the fastest matrix product, and bytes that must
be moved over the fastest copy, both measured here in the same run. The larger is the roofline.
What is counted is in `isara_jax.planning.roofline`; retrieval counts as the prefill of its
questions.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import workload
from isara_jax.devices import mesh
from isara_jax.host import executables
from isara_jax.method import iteration, prompting
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool, State
from isara_jax.models import lora
from isara_jax.planning import roofline
from isara_jax.sampler import decode, spelling
from isara_jax.text import packing

_SHAPE = flags.DEFINE_enum(
    "shape", "tiny_llama", (*workload.BUNDLED, *workload.NETWORKS), "What to measure."
)
_DTYPE = flags.DEFINE_enum("dtype", "auto", ("auto", "float32", "bfloat16"), "Of random weights.")
_SAMPLES = flags.DEFINE_integer("samples", 0, "Samples of random weights; 0: the shape's own.")
_SLOTS = flags.DEFINE_integer("slots", 0, "Slots of random weights; 0: the shape's own.")
_KV_CACHE = flags.DEFINE_enum("kv_cache", "auto", ("auto", "int8"), "As in the configuration.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each stage; the median counts.")
_PEER = flags.DEFINE_bool("peer", False, "Run the same by transformers and PEFT.")
_PEER_DTYPES = flags.DEFINE_list("peer_dtypes", [], "The peer's; empty: as ours.")
_PEER_BATCH = flags.DEFINE_string("peer_batch", "", "The peer's batches to try; empty: the slots.")
_RECORD = flags.DEFINE_string("record", "", "Where to leave the work for a peer.")
_OUT = flags.DEFINE_string("out", "benchmarks/results.jsonl", "Where to append the result.")


class Timed(NamedTuple):
    """A compiled function's outcome: its result, median seconds, compile seconds, temp bytes."""

    result: Any
    seconds: float
    compile_seconds: float
    temp_bytes: int


def timed(function: Callable, *args: Any) -> Timed:
    """Compiles, runs once to warm up, then `--repeats` times."""
    began = time.perf_counter()
    options = mesh.compiler_options(mesh.make())
    compiled = jax.jit(function, compiler_options=options).lower(*args).compile()
    compile_seconds = time.perf_counter() - began
    result, seconds = jax.block_until_ready(compiled(*args)), []
    for _ in range(_REPEATS.value):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - began)
    memory = compiled.memory_analysis()
    temp = memory.temp_size_in_bytes if memory else 0
    return Timed(result, float(np.median(seconds)), compile_seconds, temp)


# --- the limits ----------------------------------------------------------------------------------


def ceilings(dtype: Any) -> tuple[float, float]:
    """Operations and bytes a second: the fastest matrix product and the fastest copy, here."""
    on_cpu = jax.devices()[0].platform == "cpu"
    n, megabytes = (2048, 256) if on_cpu else (8192, 4096)
    x = jnp.ones((n, n), dtype)
    rate = 2 * n**3 / _fastest(jax.jit(jnp.matmul), x, x)
    if on_cpu and dtype == jnp.float32:  # NumPy's BLAS is the better of the two on some machines
        host = np.ones((n, n), np.float32)
        rate = max(rate, 2 * n**3 / _fastest(np.matmul, host, host))
    big = jnp.ones(megabytes << 18, jnp.float32)
    return rate, 2 * big.nbytes / _fastest(jax.jit(lambda x: x + 1), big)


def _fastest(function: Callable, *args: Any, repeats: int = 10) -> float:
    jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


# --- the measurement -----------------------------------------------------------------------------


class Measured(NamedTuple):
    """An iteration's stages: the work and the time of each; and what a peer needs to repeat it."""

    stages: dict[str, tuple[roofline.Work, Timed]]
    recorded: dict[str, Any]


def measure(work: workload.Workload) -> Measured:
    """Runs the first iteration, stage by stage."""
    p, inputs = work.program, work.inputs
    state = executables.Executables(p, inputs).start(work.seeds)
    n, slots, c = roofline.Counts.of(p.model), p.config.slots, p.config
    bind = functools.partial
    stages: dict[str, tuple[roofline.Work, Timed]] = {}

    prompts = jax.jit(bind(prompting.question_prompts, p))(inputs, state)
    questions = timed(bind(iteration.write_questions, p), inputs, state)
    question = questions.result[0]
    first = timed(bind(_prefill, p), inputs, state.trainable, prompts)
    _split(stages, "questions", n, slots, prompts, question.drawn, questions, first)

    part = question.text.joined
    lengths = np.asarray(part.lengths) + len(p.template.bos) + len(p.template.start)
    capacity = p.sizes.prompt(
        c.answer.k, c.answer.prompt_tokens, c.answer.max_tokens, c.question.max_tokens
    )

    def retrieve(inputs: Inputs, pool: Pool, part: packing.Part) -> tuple:
        nearest, _ = prompting.nearest_demonstrations(p, inputs, pool, part, c.answer.k)
        return prompting.answer_prompts(p, pool, part, nearest, capacity)

    shown = timed(retrieve, inputs, state.pool, part)
    stages["retrieve"] = (roofline.prefill_work(n, lengths), shown)
    answers = timed(bind(iteration.answer_questions, p), inputs, state, question)
    first = timed(bind(_prefill, p), inputs, state.trainable, shown.result[0])
    generation = answers._replace(seconds=answers.seconds - shown.seconds)
    answer = answers.result.answer.drawn
    _split(stages, "answers", n, slots, shown.result[0], answer, generation, first)

    accepted = timed(
        bind(iteration.accept_samples, p), inputs, state.pool, state.step, question, answers.result
    )
    stages["accept"] = (roofline.Work(0, 0, 0), accepted)
    pool = accepted.result[0]
    fitted = timed(bind(iteration.fine_tune, p), inputs, state.trainable, pool, state.step)
    ids, lengths, begin = (
        np.asarray(x) for x in packing.training_sequences(p.template, pool.pairs, p.sizes.sequence)
    )
    rows = _trained(p, pool)
    passes = float(fitted.result.tokens) / lengths[rows].sum()
    stages["train"] = (
        roofline.train_work(
            n, lengths[rows], begin[rows], passes, full=c.train.trainable == "full"
        ),
        fitted,
    )
    recorded = _recorded(p, inputs, state, prompts, question, shown.result[0], answers.result)
    recorded |= {
        "train_ids": ids[rows],
        "train_lengths": lengths[rows],
        "train_begin": begin[rows],
        "batches": _batches(len(rows), int(fitted.result.steps), c.train.batch_size),
    }
    return Measured(stages, recorded)


def counted(recorded: dict[str, Any]) -> dict[str, int]:
    """How much a recorded iteration reads, draws and trains."""
    rows = recorded["batches"][recorded["batches"] >= 0]
    return {
        "question_prompt_tokens": int(recorded["question_prompt_lengths"].sum()),
        "question_tokens": int(recorded["question_lengths"].sum()),
        "answer_prompt_tokens": int(recorded["answer_prompt_lengths"].sum()),
        "answer_tokens": int(recorded["answer_lengths"].sum()),
        "train_tokens": int(recorded["train_lengths"][rows].sum()),
        "steps": len(recorded["batches"]),
    }


def _prefill(
    p: Program, inputs: Inputs, trainable: lora.Trainable,
    prompts: packing.Prompts,
) -> decode.Generation:  # fmt: skip
    """A generation that ends with its first token: reading the prompts, and one step."""
    return decode.generate(
        p.sampler(1)._replace(steps_per_check=1),
        p.variables(inputs.base, trainable), prompts,
        jax.random.key(0), inputs.hyper.question, inputs.question_stops,
    )  # fmt: skip


def _split(
    stages: dict, name: str, n: roofline.Counts, slots: int, prompts: packing.Prompts,
    generation: decode.Generation, whole: Timed, first: Timed,
) -> None:  # fmt: skip
    """Books a generation as prefill and decode."""
    lengths, drawn = np.asarray(prompts.lengths), np.asarray(generation.lengths) - 1
    stages[f"{name}: prefill"] = (roofline.prefill_work(n, lengths), first)  # with a first token
    rest = whole._replace(seconds=whole.seconds - first.seconds)
    stages[f"{name}: decode"] = (roofline.decode_work(n, lengths, drawn, slots), rest)


def _trained(p: Program, pool: Any) -> np.ndarray:
    """Rows of the pool that the first iteration is trained on."""
    origin = np.asarray(pool.origin)[: int(pool.count)]
    return np.flatnonzero((origin == 1) | ((origin == 0) & p.config.train.include_seeds))


def _batches(rows: int, steps: int, batch: int) -> np.ndarray:
    """Row numbers `[steps, batch]` of shuffled passes, -1 where a pass ends."""
    rng, result = np.random.default_rng(0), []
    while len(result) < steps:
        order = rng.permutation(rows)
        order = np.pad(order, (0, -rows % batch), constant_values=-1)
        result += list(order.reshape(-1, batch))
    return np.asarray(result[:steps], np.int32)


def _recorded(
    p: Program, inputs: Inputs, state: State, prompts: packing.Prompts,
    question: spelling.Written, answer_prompts: packing.Prompts, answered: iteration.Answered,
) -> dict[str, Any]:  # fmt: skip
    """What `peer_hf` repeats: prompts, output lengths, and how tokens are drawn."""
    part = question.text.joined
    rows, longest = part.ids.shape
    capacity = len(p.template.bos) + len(p.template.start) + longest
    wrapped = packing.prompts(p.template, *packing.no_demonstrations(rows), capacity, part)
    c = p.config
    recorded = {
        "question_prompts": prompts.tokens,
        "question_prompt_lengths": prompts.lengths,
        "question_lengths": question.drawn.lengths,
        "embed_ids": wrapped.tokens,
        "embed_lengths": wrapped.lengths,
        "pool": state.pool.embedding[: p.sizes.n_seeds],
        "k": c.answer.k,
        "answer_prompts": answer_prompts.tokens,
        "answer_prompt_lengths": answer_prompts.lengths,
        "answer_lengths": answered.answer.drawn.lengths,
        "lora_rank": c.train.lora.rank,
        "lora_alpha": c.train.lora.alpha,
        "lora_targets": np.asarray(c.train.lora.targets),
        "learning_rate": c.train.learning_rate,
        "clip_norm": c.train.clip_norm,
        "eos": p.template.eos,
    }
    for name, stage in (("question", c.question), ("answer", c.answer)):
        recorded |= {f"{name}_{k}": v for k, v in vars(stage.sampling).items()}
    return {name: np.asarray(value) for name, value in recorded.items()}


# --- the result ----------------------------------------------------------------------------------


def ours(folder: pathlib.Path | None) -> dict[str, Any]:
    """Measures; writes into `folder`, if there is one, what a peer needs."""
    changed = {"samples": _SAMPLES.value, "slots": _SLOTS.value}
    changed = {name: value for name, value in changed.items() if value}
    work = workload.build(_SHAPE.value, _DTYPE.value, _KV_CACHE.value, **changed)
    p = work.program
    rate, bandwidth = ceilings(p.model.dtype)
    measured = measure(work)
    if folder:
        np.savez(folder / "workload.npz", **measured.recorded)
        workload.save_model(work, folder / "model")
    start = executables.Executables(p, work.inputs).start(work.seeds)
    fused = timed(functools.partial(iteration.isara_step, p), work.inputs, start)
    stats = jax.devices()[0].memory_stats() or {}
    stages = {
        name: _row(least, run, rate, bandwidth) for name, (least, run) in measured.stages.items()
    }
    return workload.where() | {
        "shape": _SHAPE.value,
        "dtype": jnp.dtype(p.model.dtype).name,
        "kv_cache": _KV_CACHE.value,
        "samples": p.config.samples_per_iteration,
        "slots": p.config.slots,
        "tflops_per_s": rate / 1e12,
        "gb_per_s": bandwidth / 1e9,
        "stages": stages,
        "work": counted(measured.recorded),
        "fused": {
            "seconds": fused.seconds,
            "roofline": sum(row["roofline"] for row in stages.values()),
            "compile_seconds": fused.compile_seconds,
            "temp_gb": fused.temp_bytes / 1e9,
            "peak_gb": stats.get("peak_bytes_in_use", 0) / 1e9,
        },
    }


def _row(work: roofline.Work, run: Timed, rate: float, bandwidth: float) -> dict[str, float]:
    compute, memory = work.flops / rate, work.bytes / bandwidth
    return {
        "seconds": run.seconds,
        "tokens": float(work.tokens),
        "compute": compute,
        "memory": memory,
        "roofline": max(compute, memory),
        "flop_utilisation": compute / run.seconds if run.seconds else 0.0,
        "compile_seconds": run.compile_seconds,
        "temp_gb": run.temp_bytes / 1e9,
    }


def run_peer(folder: pathlib.Path, result: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The same work by transformers and PEFT, in a process of its own."""
    batch = _PEER_BATCH.value or str(result["slots"])
    command = [
        sys.executable, "-m", "benchmarks.method.peer_hf", f"--workload={folder / 'workload.npz'}",
        f"--model={folder / 'model'}", f"--dtype={dtype}", f"--threads={os.cpu_count()}",
        f"--search_batch={batch}" if "," in batch else f"--batch={batch}",
        "--cache=fastest" if result["platform"] == "cpu" else "--cache=dynamic",
    ]  # fmt: skip
    return _last_line(command)


def _last_line(command: list[str]) -> dict[str, Any]:
    """Runs a command and reads the JSON it prints last."""
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | quiet, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Our stages, by those of the peer.
_SAME = {
    "questions": ("questions: prefill", "questions: decode"),
    "retrieve": ("retrieve",),
    "answers": ("answers: prefill", "answers: decode"),
    "train": ("train",),
}


def check_equal_work(result: dict[str, Any], peer: dict[str, Any]) -> None:
    """Raises `ValueError` where the peer read, drew or trained on another number of tokens."""
    for name, here in result["work"].items():
        if here != peer["work"][name]:
            raise ValueError(f"{name}: {here} here, {peer['work'][name]} by the peer")


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    print(
        f"{result['shape']} {result['dtype']}, {result['samples']} samples, {result['slots']} "
        f"slots, on {result['machine']}: {result['tflops_per_s']:.3g} TFLOP/s, "
        f"{result['gb_per_s']:.3g} GB/s; jax {result['jax']}, {result['commit']}"
    )
    header = ("stage", "seconds", "tokens/s", "FLOPs s", "bytes s", "of roofline", "MFU")
    print(("{:<20}" + "{:>12}" * 8).format(*header, "compile s", "temp GB"))
    for name, row in result["stages"].items():
        share = row["roofline"] / row["seconds"] if row["seconds"] else 0
        speed = row["tokens"] / row["seconds"] if row["seconds"] else 0
        print(
            f"{name:<20}{row['seconds']:>12.3f}{speed:>12.0f}{row['compute']:>12.3f}"
            f"{row['memory']:>12.3f}{share:>12.0%}{row['flop_utilisation']:>12.0%}"
            f"{row['compile_seconds']:>12.1f}{row['temp_gb']:>12.3f}"
        )
    fused = result["fused"]
    share = fused["roofline"] / fused["seconds"]
    print(
        f"{'fused, whole':<20}{fused['seconds']:>12.3f}{'':>36}{share:>12.0%}{'':>12}"
        f"{fused['compile_seconds']:>12.1f}{fused['temp_gb']:>12.3f}"
    )
    for peer in result.get("peers", ()):
        print(f"\ntransformers {peer['transformers']} + PEFT {peer['peft']}, {peer['dtype']}")
        print(f"{'stage':<20}{'ours s':>12}{'peer s':>12}{'ratio':>12}")
        theirs = peer["stages"] | {"retrieve": peer["stages"]["embed"] + peer["stages"]["retrieve"]}
        for name in _SAME:
            seconds = theirs[name]
            here = sum(result["stages"][stage]["seconds"] for stage in _SAME[name])
            print(f"{name:<20}{here:>12.3f}{seconds:>12.3f}{seconds / here:>12.2f}")
        total = sum(peer["stages"].values())
        print(
            f"{'whole iteration':<20}{fused['seconds']:>12.3f}{total:>12.3f}"
            f"{total / fused['seconds']:>12.2f}"
        )


def main(arguments: list[str]) -> None:
    del arguments
    if _RECORD.value:
        print(json.dumps(ours(pathlib.Path(_RECORD.value))))
        return
    if not _PEER.value:
        result = ours(None)
    else:  # each in a process of its own: one program at a time holds the memory of a GPU
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.method.iteration", *sys.argv[1:]]
            result = _last_line([*command, f"--record={folder}"])
            result["peers"] = []
            for dtype in _PEER_DTYPES.value or [result["dtype"]]:
                peer = run_peer(pathlib.Path(folder), result, dtype)
                check_equal_work(result, peer)
                result["peers"].append(peer)
    show(result)
    workload.append(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
