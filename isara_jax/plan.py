r"""The command: what a run would take on devices one need not have.

    python -m isara_jax.plan --config=configs/safety.py:llama_7b --topology=v5e:4x4

compiles the run's iteration for these devices and prints, for each, its memory, and for each stage
operations, bytes, exchanges and the least time they take. Nothing runs and no weights are read: a
name of `isara_jax.models.shapes` or a model's folder will do.

| `--topology` | devices | what must be installed |
|---|---|---|
| `v4:2x2x1`, `v5e:4x4`, `v5p:4x4x4`, `v6e:2x4`, ... | TPUs, by libtpu's names | `jax[tpu]` |
| `a100`, `h100:8`, `h200:2x8`, ... | GPUs, or machines x GPUs | `jax-cuda13-plugin[with-cuda]` |

`--fit` tries meshes and numbers of slots, compiles the fastest that fits, and recommends it. (The
training batch is left alone: another one would train another model.)
`--price=1.2` (an hour of one chip) adds what an iteration costs.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

import jax
from absl import flags
from ml_collections import config_flags

from isara_jax import config
from isara_jax.devices import hardware
from isara_jax.files import storage
from isara_jax.planning import blueprint, estimate, hlo
from isara_jax.planning.blueprint import Base, Blueprint
from isara_jax.shell import terminal

GB = 1e9
_HEADER = ("stage", "tokens", "TFLOP", "GB read", "GB sent", "products s", "memory s", "links s",
           "least s", "waits for")  # fmt: skip


def define_flags() -> None:
    """Not done on import: the tests import more than one command."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/.")
    flags.DEFINE_string("topology", None, "Devices to compile for.")
    flags.DEFINE_float("price", 0.0, "Of an hour of one device, in any currency.", 0.0)
    flags.DEFINE_bool("fit", False, "Search for the mesh and the slots.")
    flags.DEFINE_integer("meshes", 4, "With --fit: how many meshes to compile.", 1)
    flags.DEFINE_string("out", "", "Where to write the same as JSON.")


def plan() -> None:
    """Prints the plan that the flags ask for."""
    jax.config.update("jax_platforms", "cpu")  # the others are compiled for, not run on
    # Three times as fast for TPUs, to programs that take a little more memory than those of a run.
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    values = flags.FLAGS
    devices = hardware.devices(values.topology)
    kind = hardware.kind_in(values.topology)
    with storage.scratch() as folder, config.user_errors():
        c, base = blueprint.read(config.resolve(values.config), folder)
    slots = blueprint.draw(c, base, devices).program.config.slots  # where they are left to us
    c = dataclasses.replace(c, slots=slots)
    found = None
    if values.fit:
        c, found = _fit(c, base, devices, kind)
    result = found or measure(c, base, devices, kind)
    result |= {"topology": values.topology, "price": values.price}
    terminal.show(text(result))
    if values.out:
        storage.write_json(pathlib.Path(values.out), result)


def measure(
    c: config.Config,
    base: Base,
    devices: Sequence[jax.Device],
    kind: hardware.Kind,
    costs: estimate.Costs | None = None,
) -> dict[str, Any]:
    """The plan as JSON values: the whole iteration is compiled, and its pieces if not given.

    Raises:
      config.UserError: it does not fit; the message says by how much, as the compiler found.
    """
    b = blueprint.draw(c, base, devices)
    costs = costs or estimate.costs(c, base, devices)
    began = time.monotonic()
    compiled = _compiled(b)
    seconds = time.monotonic() - began
    memory = estimate.memory(b, compiled)
    exchanges = hlo.collectives(compiled.as_text())
    stages = estimate.stages(b, costs, kind)
    iteration = sum(max(stage.seconds) for stage in stages)
    return {
        "model": c.model.path,
        "layers": base.network.n_layers,
        "dtype": str(jax.numpy.dtype(b.program.model.dtype)),
        "device": kind.name,
        "devices": len(devices),
        "mesh": b.program.config.mesh,
        "slots": c.slots,
        "samples": c.samples_per_iteration,
        "batch": c.train.batch_size,
        "remat": b.program.training.remat,
        "memory": memory._asdict() | {"total": memory.total, "of": kind.memory},
        "fits": memory.total <= estimate.FITS * kind.memory,
        "stages": [stage._asdict() | {"limit": stage.limit} for stage in stages],
        "largest_exchange": max(exchanges, key=lambda x: x.bytes)._asdict() if exchanges else None,
        "costs": {name: cost._asdict() for name, cost in costs._asdict().items()},
        "seconds": iteration,
        "compile_seconds": seconds,
    }


def _compiled(b: Blueprint) -> jax.stages.Compiled:
    try:
        return b.executables.compiled_step(b.state)
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        raise config.UserError(
            f"it does not fit with mesh {b.program.config.mesh} and {b.program.config.slots} "
            f"slots: {said[:300]} ... Try --fit, a larger topology, fewer --config.slots, or a "
            "larger model axis of --config.mesh"
        ) from error


def _fit(
    c: config.Config, base: Base, devices: Sequence[jax.Device], kind: hardware.Kind
) -> tuple[config.Config, dict[str, Any]]:
    """The configuration and the plan of the fastest candidate that, compiled whole, fits."""
    print(f"{'mesh':>10}{'slots':>8}{'GB a device':>14}{'least s an iteration':>24}")
    candidates = []
    for candidate in estimate.fit(c, base, devices, kind, flags.FLAGS.meshes):
        candidates.append(candidate)
        total, least = candidate.memory.total / GB, candidate.seconds
        conf = candidate.config
        print(f"{conf.mesh:>10}{conf.slots:>8}{total:>14.1f}{least:>24.1f}", flush=True)
    for candidate in candidates:
        try:
            result = measure(candidate.config, base, devices, kind, candidate.costs)
        except config.UserError as error:
            terminal.show(f"{candidate.config.mesh}, {candidate.config.slots} slots: {error}")
            continue
        if result["fits"]:
            chosen = candidate.config
            print(f"\nrecommended: --config.mesh={chosen.mesh} --config.slots={chosen.slots}\n")
            return chosen, result
    raise config.UserError(
        f"{c.model.path} fits no mesh over {len(devices)} of {kind.name} that was tried; choose a "
        "larger --topology, or raise --meshes"
    )


def text(result: dict[str, Any]) -> str:
    """The plan as a table."""
    memory = result["memory"]
    of = memory["of"]
    share = f"{memory['total'] / of:.0%} of {of / GB:.1f}"
    remat = "recomputed" if result["remat"] else "kept"
    rows = [_HEADER]
    for stage in result["stages"]:
        times = [f"{s:.2f}" for s in (*stage["seconds"], max(stage["seconds"]))]
        rows.append((
            stage["name"], f"{stage['tokens']:,.0f}", f"{stage['flops'] / 1e12:,.1f}",
            f"{stage['read'] / GB:,.1f}", f"{stage['sent'] / GB:,.2f}", *times, stage["limit"],
        ))  # fmt: skip
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    table = [
        "  ".join([name.ljust(first), *map(str.rjust, numbers, widths)]) for name, *numbers in rows
    ]
    lines = [
        f"{result['model']}, {result['layers']} layers, {result['dtype']}, on {result['devices']} "
        f"x {result['device']} ({result['topology']}), mesh {result['mesh']} "
        "(data x fsdp x model)",
        f"{result['samples']} samples, {result['slots']} slots, batches of {result['batch']}; "
        f"activations {remat}; compiled in {result['compile_seconds']:.0f} s",
        "",
        "GB on each device",
        *(
            f"  {name:<12}{memory[key] / GB:8.2f}{note}"
            for name, key, note in _PARTS
            if memory[key]
        ),
        f"  {'total':<12}{memory['total'] / GB:8.2f}  {share} GB"
        + ("" if result["fits"] else "  DOES NOT FIT"),
        "",
        "One iteration, each device (every text as long as it may be, all accepted)",
        *table,
        f"least time of an iteration: {result['seconds']:.1f} s, "
        f"{3600 / result['seconds']:.0f} an hour",
    ]
    if found := result["largest_exchange"]:
        lines.append(
            f"largest exchange: {found['kind']} of {found['bytes'] / 1e6:,.1f} MB a device among "
            f"{found['group']}"
        )
    if result["price"]:
        hours = result["seconds"] / 3600 * result["devices"]
        lines.append(f"cost of an iteration at that speed: {hours * result['price']:.2f}")
    return "\n".join(lines)


_PARTS = (
    ("weights", "weights", ""),
    ("trainable", "trainable", "  in f32"),
    ("pool, tables", "others", ""),
    ("judges", "judges", ""),
    ("temporaries", "temp", "  the largest stage's; among them:"),
    ("  cache", "cache", "  keys and values"),
    ("  optimiser", "optimiser", "  moments and gradient"),
)


main = command.of(plan, needs=("config", "topology"))

if __name__ == "__main__":
    define_flags()
    command.run(main)
