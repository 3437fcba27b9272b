"""Work and exchanges of each device as devices and batches grow together; nothing runs.

    python -m benchmarks.planning.weak_scaling --shape=llama_7b --model=4

compiles the pieces that stages repeat (`isara_jax.planning.pieces`) for 4, 16, 64 and 256 TPU
chips: a decoding step, a refill, an embedding, an optimiser step. Sequences a device stay the same,
so that perfect scaling shows as equal rows. A compiler is needed, not a TPU: `jax[tpu]`.
"""

import jax
from absl import app, flags

from benchmarks import workload
from isara_jax import config
from isara_jax.devices import hardware
from isara_jax.models import shapes
from isara_jax.planning import blueprint, estimate

FLAGS = flags.FLAGS
TOPOLOGIES = ("2x2", "4x4", "8x8", "16x16")
TEXT = {"k": 8, "max_tokens": 128, "prompt_tokens": 1024}


def rows(chips: int, model: int) -> config.Config:
    """A run whose batches are as many times larger as there are groups of `model` chips."""
    groups = chips // model
    return config.Config(
        mesh=f"{groups}x1x{model}", slots=32 * groups, samples_per_iteration=256 * groups,
        task=config.Task(n_seeds=workload.SEEDS),
        question=config.Question(**TEXT), answer=config.Answer(**TEXT),
        train=config.Train(batch_size=8 * groups),
    )  # fmt: skip


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # the others are compiled for, not run on
    jax.config.update("jax_exec_time_optimization_effort", -1.0)  # as in isara_jax.plan
    base = blueprint.of_shape(shapes.NETWORKS[FLAGS.shape])
    print(f"{'chips':>6}{'mesh':>10}  {'piece':8}{'GFLOP':>12}{'MB sent':>10}  exchanges")
    for size in TOPOLOGIES:
        devices = hardware.devices(f"{FLAGS.device}:{size}")
        c = rows(len(devices), FLAGS.model)
        found = estimate.costs(c, base, devices)
        for name, cost in found._asdict().items():
            kinds = ", ".join(
                f"{number:.0f} {kind} {sent / 1e6:.1f} MB"
                for kind, (number, sent) in cost.exchanges.items()
                if sent > 1e4
            )
            print(
                f"{len(devices):>6}{c.mesh:>10}  {name:8}{cost.flops / 1e9:>12,.1f}"
                f"{cost.sent / 1e6:>10,.1f}  {kinds}",
                flush=True,
            )
        result = {"chips": len(devices), "mesh": c.mesh, "costs": found._asdict()}
        workload.append(FLAGS.out, workload.where() | {"benchmark": "weak_scaling"} | result)


if __name__ == "__main__":
    flags.DEFINE_enum("shape", "llama_7b", tuple(shapes.NETWORKS), "Whose shapes.")
    flags.DEFINE_string("device", "v5e", "A kind of TPU with topologies of two axes.")
    flags.DEFINE_integer("model", 4, "Chips that weights are split over.")
    flags.DEFINE_string("out", "benchmarks/results.jsonl", "Where to append the results.")
    app.run(main)
