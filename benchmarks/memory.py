"""Memory of the compiled programs on devices one need not have.

    python -m benchmarks.memory --shape=llama-7b --topology=v5p:2x2x1

compiles for these devices the sampler's decoding loop, the prefill of one refill, and LoRA steps
with and without recomputed blocks. Prints what each takes on a device, and the largest arrays that
its loops only move: copy, transpose, convert or gather. A last line is JSON. Nothing is allocated
and nothing runs.

| `--topology` | devices | what must be installed |
|---|---|---|
| `v5p:2x2x1`, `v6e:2x2`, ... | TPUs, by libtpu's names | the `libtpu` of `jax[tpu]` |
| `h200` | one GPU | `jax-cuda13-plugin`, `jax-cuda13-pjrt`, and CUDA's `ptxas` |
| `cpu` | this machine's | |

On a real GPU matrix products are tuned while compiling, so its temporaries differ a little.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import re
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from benchmarks import workload
from isara_jax import config, decode, lora, models, packing, sampling, scheduling, stops, weights
from isara_jax import mesh as mesh_lib
from isara_jax import train as train_lib
from isara_jax.models import attention

# What XLA must know of the device; the names are those of its `GpuTargetConfigProto`.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  threads_per_warp: 32  clock_rate_ghz: 1.98
  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000  device_memory_size: 151397597184
}
"""
PROGRAMS = ("decode", "prefill", "lora", "lora_remat")
STEPS = 16  # of the decoding loop; how many does not change its memory


def devices(topology: str) -> list[jax.Device]:
    """Devices to compile for; only `cpu` can also run."""
    if topology == "cpu":
        return jax.devices("cpu")
    if topology == "h200":
        found = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    else:
        # There is no TPU to ask or to lock, and nothing worth a log.
        settings = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        os.environ.update(settings | {"TPU_LOG_DIR": "disabled"})
        found = topologies.get_topology_desc(topology, "tpu")
    return found.devices


class Case(NamedTuple):
    """What is compiled: a model, a sampler, and the shapes and places of what they read."""

    model: models.Decoder
    sampler: decode.Sampler
    base: Any
    adapter: Any
    prompts: packing.Prompts
    key: jax.ShapeDtypeStruct
    slots: Any  # the state of the sampler's loop

    @property
    def mesh(self) -> Mesh:
        return self.sampler.mesh

    @property
    def cache_bytes(self) -> int:
        """Of all layers, on one device."""
        leaves = jax.tree.leaves(self.slots.cache)
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)

    def placed(self, tree: Any) -> Any:
        """The shapes of `tree`, on every device whole."""
        return _abstract(tree, mesh_lib.replicated(self.mesh))


def _abstract(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def case(
    network: models.DecoderConfig,
    over: list[jax.Device],
    shape: tuple[int, int, int],
    *,
    slots: int,
    prompt: int,
    new: int,
    dtype: Any = jnp.bfloat16,
    kv_cache: str = "auto",
) -> Case:
    """A sampler with its model and adapter.

    Args:
      network: the network.
      over: the devices; the first are used.
      shape: of the mesh, data × fsdp × model.
      slots: B.
      prompt: P, tokens of a prompt.
      new: L, tokens of an output.
      dtype: of weights and activations.
      kv_cache: as in the configuration.
    """
    grid = np.asarray(over[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(grid, mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(shape))
    how = attention.settings(mesh, dtype, network.head_size, kv_cache)
    model = models.build(network, dtype, how=how)
    sampler = decode.Sampler(
        model=model, slots=slots, max_tokens=new, steps_per_check=STEPS, eos=2, mesh=mesh,
        refill=scheduling.refill(slots, mesh_lib.batch_devices(mesh)),
    )  # fmt: skip
    base = {
        path: _abstract(leaf, weights.sharding(network, path, leaf.shape, mesh))
        for path, leaf in weights.flatten(weights.abstract_params(model)).items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    adapter = jax.eval_shape(lambda: lora.init(network, config.Lora(), jax.random.key(0)))
    prompts = packing.Prompts(np.zeros((2 * slots, prompt), np.int32), np.ones(2 * slots, np.int32))
    whole = mesh_lib.replicated(mesh)
    adapter, prompts, key = (_abstract(x, whole) for x in (adapter, prompts, key))
    empty = functools.partial(decode._empty_slots, sampler)
    places = _compiled(mesh, empty, prompts).output_shardings
    state = jax.tree.map(_abstract, jax.eval_shape(empty, prompts), places)
    return Case(model, sampler, weights.unflatten(base), adapter, prompts, key, state)


def _compiled(
    mesh: Mesh, function: Callable, *args: Any, donate: int | None = None
) -> jax.stages.Compiled:
    options = mesh_lib.compiler_options(mesh)
    return jax.jit(function, donate_argnums=donate, compiler_options=options).lower(*args).compile()


def _sampled(base: Any, adapter: Any) -> dict:
    """What the sampler reads; f32 kernels have taken the adapter in before its loop."""
    wide = jax.tree.leaves(base)[0].dtype == jnp.float32
    return lora.variables(base, None if wide else adapter, config.Train())


def decode_loop(c: Case) -> jax.stages.Compiled:
    """The sampler's loop between two looks for free slots, its state given away."""
    spelled = types.SimpleNamespace(bytes=[b"x"] * c.model.config.vocab_size)
    table, params = stops.stop_table(spelled, ()), sampling.SamplingParams.of(config.Sampling())

    def loop(base: Any, adapter: Any, key: Any, params: Any, table: Any, slots: Any) -> Any:
        step = functools.partial(
            decode._step, c.sampler, _sampled(base, adapter), key, params, table
        )
        length = c.prompts.tokens.shape[1] + c.sampler.max_tokens
        reads = scheduling.read_lengths(length, c.mesh)
        return decode._advance(c.sampler, step, reads, slots)

    read = (c.base, c.adapter, c.key, *c.placed((params, table)))
    return _compiled(c.mesh, loop, *read, c.slots, donate=5)


def prefill(c: Case) -> jax.stages.Compiled:
    """One refill: R prompts read into the cache, which is given away."""

    def refill(base: Any, adapter: Any, prompts: packing.Prompts, slots: Any) -> Any:
        return decode._refill(c.sampler, _sampled(base, adapter), prompts, slots)

    return _compiled(c.mesh, refill, c.base, c.adapter, c.prompts, c.slots, donate=3)


def lora_steps(c: Case, *, batch: int, row_tokens: int, remat: bool) -> jax.stages.Compiled:
    """The optimiser's loop over `batch` sequences of at most `row_tokens` a step."""
    train, model = config.Train(batch_size=batch), c.model.clone(remat=remat)
    spread = mesh_lib.batch_devices(c.mesh)
    tokens = train_lib.CPU_TOKENS if mesh_lib.on_cpu(c.mesh) else train_lib.MOST_TOKENS
    rows = min(-(-batch // spread), max(1, tokens // row_tokens)) * spread
    one = np.zeros(batch, np.int32)
    sequences = train_lib.Sequences(np.zeros((batch, row_tokens), np.int32), one, one, one > 0)

    def fit(base: Any, adapter: Any, sequences: Any, params: Any, steps: Any, key: Any) -> Any:
        return train_lib.fit(
            model, base, adapter, sequences, train, params, steps, key, row_tokens // 2, rows,
            c.mesh,
        )  # fmt: skip

    read = c.placed((sequences, train_lib.TrainParams.of(train), np.int32(1)))
    return _compiled(c.mesh, fit, c.base, c.adapter, *read, c.key, donate=1)


# --- what a compiled program's loops move ---------------------------------------------------------

_MOVES = {
    *("copy", "copy-done", "transpose", "convert", "reshape", "concatenate", "slice"),
    *("dynamic-slice", "all-gather", "all-gather-done", "all-to-all"),
}
_NOTHING = {"parameter", "constant", "bitcast", "broadcast", "tuple", "get-tuple-element"}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]+\d*)[a-z\d]*\[([\d,]*)\](\S*)")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|\w+_computations?)=(?:%?([\w.\-]+)|\{([^{}=]*)\})"
)


class Move(NamedTuple):
    """An instruction that computes nothing: a copy, a transpose, a gather or a conversion."""

    bytes: int
    kind: str
    shape: str


class _Instruction(NamedTuple):
    kind: str
    shape: str
    body: str  # of a while loop
    called: tuple[str, ...]


def moves(hlo: str, at_least: int) -> list[Move]:
    """What the loops of a compiled program only move, in arrays of so many bytes, largest first.

    A fusion counts where nothing in it computes. What a TPU fetches into its on-chip memory does
    not count.
    """
    computations = _parse(hlo)
    waiting = [i.body for body in computations.values() for i in body if i.body]
    result, reached = [], set()
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for instruction in computations[name]:
            kinds = _kinds(computations, instruction)
            size = _bytes(instruction.shape)
            if kinds and kinds <= _MOVES and size >= at_least:
                result.append(Move(size, "+".join(sorted(kinds)), instruction.shape))
            if instruction.kind != "fusion":
                waiting += instruction.called
    return sorted(result, reverse=True)


def _kinds(computations: dict[str, list[_Instruction]], instruction: _Instruction) -> set[str]:
    """What an instruction does; a fusion, what is fused."""
    if instruction.kind != "fusion":
        return {instruction.kind} - _NOTHING
    inside = (i for name in instruction.called for i in computations[name])
    return set().union(*(_kinds(computations, i) for i in inside))


def _parse(hlo: str) -> dict[str, list[_Instruction]]:
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found.group(1), [])
        elif found := _INSTRUCTION.match(line):
            shape, kind = found.groups()
            body, called = "", []
            for key, one, many in _CALLED.findall(line):
                names = [name.strip(" %") for name in (one or many).split(",")]
                body = names[0] if key == "body" else body
                called += names
            current.append(_Instruction(kind, shape, body, tuple(called)))
    return computations


def _bytes(shape: str) -> int:
    """Of the largest array of a result that lies in the device's main memory."""
    sizes = [0]
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if "S(1)" not in layout:
            bits = re.search(r"\d+", dtype)
            each = int(bits.group()) / 8 if bits else 1  # pred
            sizes.append(int(each * math.prod(int(d) for d in dimensions.split(",") if d)))
    return max(sizes)


# --- the command ----------------------------------------------------------------------------------

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import: the tests import more than one command."""
    flags.DEFINE_enum("shape", "llama-7b", tuple(workload.NETWORKS), "Whose shapes.")
    flags.DEFINE_integer("layers", 0, "Blocks; 0: all.")
    flags.DEFINE_string("topology", "v5p:2x2x1", "Devices to compile for.")
    flags.DEFINE_list("mesh", [], "data,fsdp,model; empty: all devices along model.")
    flags.DEFINE_string("kv_cache", "auto", "As in the configuration.")
    flags.DEFINE_integer("slots", 64, "Sequences decoded at once.")
    flags.DEFINE_integer("prompt", 1000, "Tokens of a prompt.")
    flags.DEFINE_integer("new", 128, "Tokens of an output.")
    flags.DEFINE_integer("batch", 32, "Training sequences of a step.")
    flags.DEFINE_integer("row", 256, "Tokens of the longest training sequence.")
    flags.DEFINE_multi_enum("program", PROGRAMS, PROGRAMS, "What to compile; repeatable.")
    flags.DEFINE_integer("moved", 50, "Megabytes from which moved arrays are shown.")


def measured(name: str, c: Case) -> dict[str, Any]:
    """One program's memory on a device, in GB, and what its loops move."""
    began = time.monotonic()
    if name.startswith("lora"):
        remat = name == "lora_remat"
        compiled = lora_steps(c, batch=FLAGS.batch, row_tokens=FLAGS.row, remat=remat)
    else:
        compiled = {"decode": decode_loop, "prefill": prefill}[name](c)
    m = compiled.memory_analysis()
    found = collections.Counter(moves(compiled.as_text(), FLAGS.moved * 10**6))
    return {
        "arguments_GB": m.argument_size_in_bytes / 1e9,
        "results_GB": (m.output_size_in_bytes - m.alias_size_in_bytes) / 1e9,
        "temp_GB": m.temp_size_in_bytes / 1e9,
        "seconds": time.monotonic() - began,
        "moved": [[move.bytes / 1e6, n, move.kind, move.shape] for move, n in found.items()],
    }


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # the others are compiled for, not run on
    over = devices(FLAGS.topology)
    shape = tuple(map(int, FLAGS.mesh)) or (1, 1, len(over))
    network = workload.NETWORKS[FLAGS.shape]
    network = dataclasses.replace(network, n_layers=FLAGS.layers or network.n_layers)
    dtype = jnp.float32 if FLAGS.topology == "cpu" else jnp.bfloat16
    sizes = {"slots": FLAGS.slots, "prompt": FLAGS.prompt, "new": FLAGS.new}
    c = case(network, over, shape, **sizes, dtype=dtype, kv_cache=FLAGS.kv_cache)
    cache = c.cache_bytes / 1e9
    print(f"{FLAGS.shape}, {network.n_layers} layers, {FLAGS.topology}, mesh {shape}, {sizes}")
    print(f"KV cache {cache:.3f} GB a device\n")
    print(f"{'GB a device':12}{'arguments':>12}{'results':>12}{'temp':>12}{'temp/cache':>12}")
    programs = {}
    for name in FLAGS.program:
        found = programs[name] = measured(name, c)
        columns = [found[f"{part}_GB"] for part in ("arguments", "results", "temp")]
        print(f"{name:12}" + "".join(f"{x:12.3f}" for x in columns) + f"{columns[2] / cache:12.1%}")
        for megabytes, times, kind, array in found["moved"]:
            print(f"    {times} x {megabytes:.0f} MB moved in a loop: {kind} {array}")
    print(json.dumps({
        "shape": FLAGS.shape, "layers": network.n_layers, "topology": FLAGS.topology,
        "mesh": shape, **sizes, "cache_GB": cache, "programs": programs,
    }))  # fmt: skip


if __name__ == "__main__":
    define_flags()
    app.run(main)
