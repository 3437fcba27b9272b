"""Memory of the compiled programs on devices one need not have.

    python -m benchmarks.planning.memory --shape=llama_7b --topology=v5p:2x2x1 --mesh=1x1x4

compiles for these devices the sampler's decoding loop, the prefill of one refill, and LoRA steps
with and without recomputed blocks. Prints what each takes on a device, and the largest arrays that
its loops only move: copy, transpose, convert or gather. A last line is JSON. Nothing is allocated
and nothing runs.

| `--topology` | devices | what must be installed |
|---|---|---|
| `v5p:2x2x1`, `v6e:2x2`, ... | TPUs, by libtpu's names | the `libtpu` of `jax[tpu]` |
| `h200`, `h100:8`, ... | GPUs | `jax-cuda13-plugin[with-cuda]` |
| `cpu` | this machine's | |

On a real GPU matrix products are tuned while compiling, so its temporaries differ a little.
"""

import collections
import dataclasses
import functools
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags

from benchmarks import workload
from isara_jax import config
from isara_jax.devices import hardware
from isara_jax.models.network import DecoderConfig
from isara_jax.planning import blueprint, estimate, hlo, pieces
from isara_jax.sampler import decode

PROGRAMS = ("decode", "prefill", "lora", "lora_remat")


def draw(
    network: DecoderConfig, devices: Sequence[jax.Device], mesh: str, *, slots: int,
    prompt: int, new: int, batch: int = 32, kv_cache: str = "auto", remat: bool = False,
) -> blueprint.Blueprint:  # fmt: skip
    """A run of the network with texts of `new` tokens after prompts of `prompt`."""
    stage = {"k": 1, "max_tokens": new, "prompt_tokens": prompt}
    c = config.Config(
        samples_per_iteration=2 * slots, slots=slots, kv_cache=kv_cache, mesh=mesh,
        task=config.Task(n_seeds=workload.SEEDS),
        question=config.Question(**stage), answer=config.Answer(**stage),
        train=config.Train(batch_size=batch, remat="blocks" if remat else "none"),
    )  # fmt: skip
    return blueprint.draw(c, blueprint.of_shape(network), devices)


def decode_loop(b: blueprint.Blueprint, s: pieces.Sampling) -> jax.stages.Compiled:
    """The sampler's loop between two looks for free slots, its state given away."""
    reads = decode.read_lengths(s.sampler, s.prompts.tokens.shape[1])

    def loop(inputs: Any, trainable: Any, key: Any, slots: Any) -> Any:
        step = functools.partial(
            decode._step, s.sampler, pieces.variables(b, inputs.base, trainable), key,
            inputs.hyper.answer, inputs.answer_stops,
        )  # fmt: skip
        return decode._advance(s.sampler, step, reads, slots)

    return pieces.compile_piece(b, loop, b.inputs, b.state.trainable, s.key, s.slots, donate=3)


# --- the command ----------------------------------------------------------------------------------

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import: the tests import more than one command."""
    flags.DEFINE_enum("shape", "llama_7b", tuple(workload.NETWORKS), "Whose shapes.")
    flags.DEFINE_integer("layers", 0, "Blocks; 0: all.")
    flags.DEFINE_string("topology", "v5p:2x2x1", "Devices to compile for.")
    flags.DEFINE_string("mesh", "", "As in the configuration; empty: all devices along model.")
    flags.DEFINE_string("kv_cache", "auto", "As in the configuration.")
    flags.DEFINE_integer("slots", 64, "Sequences decoded at once.")
    flags.DEFINE_integer("prompt", 1000, "Tokens of a prompt.")
    flags.DEFINE_integer("new", 128, "Tokens of an output.")
    flags.DEFINE_integer("batch", 32, "Training sequences of a step.")
    flags.DEFINE_multi_enum("program", PROGRAMS, PROGRAMS, "What to compile; repeatable.")
    flags.DEFINE_integer("moved", 50, "Megabytes from which moved arrays are shown.")


def measured(name: str, b: blueprint.Blueprint) -> dict[str, Any]:
    """One program's memory on a device, in GB, and what its loops move."""
    began = time.monotonic()
    if name.startswith("lora"):
        compiled = pieces.train_step(b)
    else:
        compiled = {"decode": decode_loop, "prefill": pieces.refill}[name](b, pieces.sampling(b))
    m = compiled.memory_analysis()
    found = collections.Counter(hlo.moves(compiled.as_text(), FLAGS.moved * 10**6))
    return {
        "arguments_GB": m.argument_size_in_bytes / 1e9,
        "results_GB": (m.output_size_in_bytes - m.alias_size_in_bytes) / 1e9,
        "temp_GB": m.temp_size_in_bytes / 1e9,
        "seconds": time.monotonic() - began,
        "moved": [[move.bytes / 1e6, n, move.kind, move.shape] for move, n in found.items()],
    }


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # the others are compiled for, not run on
    devices = hardware.devices(FLAGS.topology)
    mesh = FLAGS.mesh or f"1x1x{len(devices)}"
    devices = devices[: math.prod(map(int, mesh.split("x")))]
    network = workload.NETWORKS[FLAGS.shape]
    network = dataclasses.replace(network, n_layers=FLAGS.layers or network.n_layers)
    sizes = {"slots": FLAGS.slots, "prompt": FLAGS.prompt, "new": FLAGS.new}

    def drawn(*, remat: bool) -> blueprint.Blueprint:
        return draw(
            network, devices, mesh, **sizes, batch=FLAGS.batch, kv_cache=FLAGS.kv_cache, remat=remat
        )

    cache = estimate.cache_bytes(drawn(remat=False)) / 1e9
    print(f"{FLAGS.shape}, {network.n_layers} layers, {FLAGS.topology}, mesh {mesh}, {sizes}")
    print(f"KV cache {cache:.3f} GB a device\n")
    print(f"{'GB a device':12}{'arguments':>12}{'results':>12}{'temp':>12}{'temp/cache':>12}")
    programs = {}
    for name in FLAGS.program:
        found = programs[name] = measured(name, drawn(remat=name == "lora_remat"))
        columns = [found[f"{part}_GB"] for part in ("arguments", "results", "temp")]
        print(f"{name:12}" + "".join(f"{x:12.3f}" for x in columns) + f"{columns[2] / cache:12.1%}")
        for megabytes, times, kind, array in found["moved"]:
            print(f"    {times} x {megabytes:.0f} MB moved in a loop: {kind} {array}")
    print(json.dumps({
        "shape": FLAGS.shape, "layers": network.n_layers, "topology": FLAGS.topology,
        "mesh": mesh, **sizes, "cache_GB": cache, "programs": programs,
    }))  # fmt: skip


if __name__ == "__main__":
    define_flags()
    app.run(main)
