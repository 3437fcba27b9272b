"""What an iteration costs as one size grows: pool, samples, prompt, answer, slots; and refilling.

    python -m benchmarks.method.scaling --vary=pool
    python -m benchmarks.method.scaling --vary=refill

Random weights of a small LLaMA whose blocks are those of a 7B in proportion. Every line is the
fused iteration, compiled for its shapes, run once to warm up and once to be timed. The pool is
filled with copies of the seeds, so that it is searched, rendered and compared as a full one.

`--vary=refill` compares slots that are refilled as requests end with lockstep, where all slots wait
for the longest: answers of random lengths, half of the longest on average, the same tokens.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import workload
from isara_jax.devices import mesh
from isara_jax.host import executables
from isara_jax.method import iteration, prompting
from isara_jax.method.state import State
from isara_jax.models.families import llama
from isara_jax.sampler import decode, sampling
from isara_jax.text import stops

NETWORK = llama.network(
    vocab_size=4096, width=256, hidden=688, n_layers=4, n_heads=4, n_kv_heads=4, head_size=64,
    max_length=4096,
)  # fmt: skip
SIZE = workload.Size(samples=64, slots=32, k=4, prompt=256, new=32, batch=32, epochs=1)
REPEATS = 5  # of the comparison with lockstep
VALUES = {
    "pool": (64, 2_000, 20_000, 100_000),
    "samples": (32, 64, 128, 256),
    "prompt": (128, 256, 512, 1024),
    "new": (16, 32, 64, 128),
    "slots": (8, 16, 32, 64),
}


def _filled(state: State) -> State:
    """The state with every free row but one iteration's taken by a copy of a seed."""
    pool = state.pool
    count, rows = int(pool.count), jnp.arange(pool.capacity)
    taken = jnp.where(rows < count, rows, rows % count)
    copied = lambda x: x[taken]  # noqa: E731
    return state._replace(
        pool=pool._replace(
            pairs=jax.tree.map(copied, pool.pairs),
            embedding=copied(pool.embedding),
            origin=jnp.where(rows < count, 0, 2).astype(jnp.int32),  # of another iteration
            count=jnp.int32(pool.capacity - SIZE.samples),
        )
    )


def seconds(function: Any, *args: Any) -> tuple[Any, float]:
    """The result and the seconds of a second call."""
    result = jax.block_until_ready(function(*args))
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return result, time.perf_counter() - began


def iterate(name: str, value: int) -> dict[str, Any]:
    """Times the iteration with one size changed."""
    size = dataclasses.replace(SIZE, **{name: value})
    work = workload.random(NETWORK, size)
    state = executables.Executables(work.program, work.inputs).start(work.seeds)
    state = _filled(state) if name == "pool" else state
    options = mesh.compiler_options(work.program.mesh)
    step = jax.jit(functools.partial(iteration.isara_step, work.program), compiler_options=options)
    return {"vary": name, "value": value, "seconds": seconds(step, work.inputs, state)[1]}


def refill(requests: int = 256, slots: int = 32, longest: int = 128) -> list[dict[str, Any]]:
    """Times lockstep and refilled slots on answers of random lengths."""
    size = dataclasses.replace(SIZE, samples=requests, slots=slots, new=longest, prompt=64)
    work = workload.random(NETWORK, size)
    p = work.program
    # Of the drawn tokens so many end an answer that the mean length is half the longest:
    # (1 - (1 - x)^L) / x = L / 2 at x L = 1.59.
    enders = round(1.59 / longest * NETWORK.vocab_size)
    spelled = [b"\n" if i < enders else b"x" for i in range(NETWORK.vocab_size)]
    table = stops.stop_table(spelled, (), (stops.Stop("\n"),))
    state = executables.Executables(p, work.inputs).start(work.seeds)
    prompts = jax.jit(functools.partial(prompting.question_prompts, p))(work.inputs, state)
    params = jax.tree.map(jnp.asarray, sampling.SamplingParams(1.0, 0, 1.0))
    args = ({"params": work.inputs.base}, prompts, jax.random.key(0), params, table)
    samplers = {"refill": p.sampler(longest)}
    samplers["lockstep"] = samplers["refill"]._replace(refill=slots)
    options = mesh.compiler_options(p.mesh)
    runs = {
        name: jax.jit(functools.partial(decode.generate, sampler), compiler_options=options)
        for name, sampler in samplers.items()
    }
    # In turn, and the fastest of each: a slow moment of the machine falls on both.
    timed = [{name: seconds(run, *args) for name, run in runs.items()} for _ in range(REPEATS)]
    out, fastest = timed[0]["refill"][0], {n: min(t[n][1] for t in timed) for n in runs}
    return [
        {
            "vary": "refill",
            "slots": slots,
            "at_once": samplers["refill"].refill,
            "lockstep_seconds": fastest["lockstep"],
            "refill_seconds": fastest["refill"],
            "times_lockstep": fastest["lockstep"] / fastest["refill"],
            "mean_length": float(jnp.mean(out.lengths)),
            "same_tokens": bool((out.tokens == timed[0]["lockstep"][0].tokens).all()),
        }
    ]


def main(_: list[str]) -> None:
    for name in flags.FLAGS.vary:
        values = VALUES.get(name)
        for row in (iterate(name, v) for v in values) if values else refill():
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            print("  ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
            workload.append(flags.FLAGS.out, workload.where() | {"benchmark": "scaling"} | row)


if __name__ == "__main__":
    flags.DEFINE_multi_enum("vary", ["pool"], (*VALUES, "refill"), "What grows; repeatable.")
    flags.DEFINE_string("out", "benchmarks/results.jsonl", "Where to append the results.")
    app.run(main)
