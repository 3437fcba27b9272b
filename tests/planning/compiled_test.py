"""What the compilers make of the decoding loop: the cache is written in place and read as it lies.

A second copy of the cache, or of the weights, in a step costs as much as the step itself, and no
other test sees it.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks.planning import memory
from isara_jax.devices import hardware
from isara_jax.models.families import llama
from isara_jax.models.network import LayerKind
from isara_jax.models.rope import Rope
from isara_jax.planning import blueprint, estimate, hlo, pieces
from tests import environment
from tests.planning import plan_test

MB = 10**6
APART = pathlib.Path(sys.prefix) / "libtpu"  # where launch/test.sh installs it


def test_what_a_loop_moves_is_found():
    """The checks below would see a transposed cache, and take a row written in place for none."""

    def moved(step):
        loop = jax.jit(lambda x: jax.lax.fori_loop(0, 4, lambda _, x: step(x), x))
        compiled = loop.lower(jnp.zeros((512, 2048))).compile()
        return [move.bytes for move in hlo.moves(compiled.as_text(), MB)]

    turned = moved(lambda x: jax.lax.optimization_barrier(x.T).reshape(x.shape))
    assert set(turned) == {512 * 2048 * 4}
    assert not moved(lambda x: jnp.tanh(x).at[3].set(0.0))


def check_step_on_a_cpu():
    """Of a small model with a cache larger than anything else."""
    network = llama.network(
        vocab_size=512, width=256, hidden=512, n_layers=4, n_heads=4, n_kv_heads=4, head_size=64,
        max_length=2048, kinds=(LayerKind(Rope()), LayerKind(Rope(), window=700)),
    )  # fmt: skip
    b = memory.draw(network, jax.devices("cpu"), "1x1x1", slots=16, prompt=1000, new=128)
    compiled = memory.decode_loop(b, pieces.sampling(b))
    cache = estimate.cache_bytes(b)
    half_a_layer = cache // (4 * network.n_layers)  # of those that see a window
    assert not hlo.moves(compiled.as_text(), half_a_layer // 2)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * cache


def test_a_step_on_a_cpu_copies_no_cache():
    """Temporaries stay below 5 % of the cache, and no layer's keys or values are moved."""
    _apart("-c", "from tests.planning import compiled_test; compiled_test.check_step_on_a_cpu()")


@pytest.mark.parametrize(
    ("shape", "plugin", "topology"),
    [
        ("llama_7b", "libtpu", "v5p:2x2x1"),
        ("mistral_7b", "libtpu", "v5p:2x2x1"),  # queries that share keys
        ("llama_7b", "jax_cuda13_plugin", "h200"),
    ],
)
def test_a_step_on_an_accelerator_copies_neither_cache_nor_weights(shape, plugin, topology):
    """At 7B's width: temporaries below 5 % of the cache, nothing above 50 MB is moved."""
    if not _installed(plugin):
        pytest.skip(f"{plugin} is not installed, which compiles for {topology}")
    found = _measured(
        f"--shape={shape}", f"--topology={topology}", "--mesh=1x1x1", "--layers=2", "--moved=50"
    )
    program = found["programs"]["decode"]
    assert not program["moved"]
    assert program["temp_GB"] < 0.05 * found["cache_GB"]


def check_exchanges(topology="v5e:2x4"):
    """Of the whole iteration on 2 x 2 x 2 chips, with caches larger than anything else."""
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    c = plan_test.settings(mesh="2x2x2")
    stage = dataclasses.replace(c.answer, prompt_tokens=384)
    c = dataclasses.replace(c, slots=64, samples_per_iteration=128, answer=stage)
    network = dataclasses.replace(plan_test.NETWORK, n_layers=2)
    b = blueprint.draw(c, blueprint.of_shape(network), hardware.devices(topology))
    text = b.executables.compiled_step(b.state).as_text()
    half_a_layer = estimate.cache_bytes(b) / (2 * network.n_layers)
    found = hlo.collectives(text)
    assert {"all-gather", "all-reduce"} <= {exchange.kind for exchange in found}
    for exchange in found:
        assert exchange.bytes < 0.75 * half_a_layer, exchange


def test_no_device_is_sent_the_cache_of_others():
    """Weights and activations cross the mesh, keys and values in the cache never do."""
    if not _installed("libtpu"):
        pytest.skip("libtpu is not installed, which compiles for TPUs")
    done = _apart("-c", "from tests.planning import compiled_test; compiled_test.check_exchanges()")
    assert "Involuntary full rematerialization" not in done.stderr


def _installed(plugin):
    return importlib.util.find_spec(plugin) or (APART / plugin).is_dir()


def _measured(*flags):
    """The last line of `benchmarks.planning.memory`."""
    done = _apart("-m", "benchmarks.planning.memory", "--program=decode", *flags)
    return json.loads(done.stdout.splitlines()[-1])


def _apart(*command):
    """Python in a process of its own, which compiles as a run does, not as the tests do."""
    changed = environment.of()
    changed["PYTHONPATH"] += os.pathsep + str(APART)
    del changed["XLA_FLAGS"], changed["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    done = subprocess.run(
        [sys.executable, *command], env=changed, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done
