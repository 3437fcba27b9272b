"""Where things lie on the mesh, on fake devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax.devices import mesh
from tests import environment

ROWS = np.random.default_rng(0).normal(size=(37, 64)).astype(np.float32)


def test_rows_are_mapped_in_portions():
    """Every row once and in order, whatever the portions, the last one not full."""
    devices = mesh.make()
    for rows_at_once in (1, 5, 37, 64):
        doubled, total = mesh.map_rows(
            lambda x: (2 * x["a"], jnp.sum(x["a"], axis=1)),
            {"a": jnp.asarray(ROWS)},
            rows_at_once,
            devices,
        )
        np.testing.assert_array_equal(doubled, 2 * ROWS)
        np.testing.assert_allclose(total, ROWS.sum(axis=1), rtol=1e-5, atol=1e-5)


SPREAD = """
import jax, numpy as np
from isara_jax import config
from isara_jax.devices import mesh
weight, flops = np.ones((64, 4096), np.float32), {}
for n in (1, 4):
    devices = mesh.make((n, 1, 1))
    function = lambda x, w: mesh.map_rows(lambda rows: (rows @ w).sum(axis=1), x, 16, devices)
    place = mesh.replicated(devices)
    x, w = jax.device_put((np.ones((64, 64), np.float32), weight), place)
    compiled = jax.jit(function, out_shardings=place).lower(x, w).compile()
    np.testing.assert_allclose(compiled(x, w), 64 * 4096)
    flops[n] = compiled.cost_analysis()["flops"]
assert flops[4] < 0.3 * flops[1], flops

# What is exchanged: a matrix of 64 x 4,096 gathered from four, and its sums of rows, thrice.
from jax.sharding import NamedSharding, PartitionSpec as P
from isara_jax.planning import hlo
def compiled(function, spec):
    x = jax.ShapeDtypeStruct((64, 4096), np.float32, sharding=NamedSharding(devices, spec))
    return hlo.collectives(jax.jit(function, out_shardings=place).lower(x).compile().as_text())
(gathered,) = compiled(lambda x: x * 2, P("data"))
assert (gathered.kind, gathered.group, gathered.times) == ("all-gather", 4, 1), gathered
assert gathered.bytes == 0.75 * weight.nbytes, gathered
def thrice(x):
    return jax.lax.fori_loop(0, 3, lambda i, y: np.float32(1) + (x * y).sum(axis=0), x[0])
summed = [c for c in compiled(thrice, P("data")) if c.bytes == 2 * 0.75 * 4096 * 4]
assert sum(c.times for c in summed) in (3, 4), summed  # and once for the first row
assert {(c.kind, c.group) for c in summed} == {("all-reduce", 4)}, summed
"""


def test_rows_are_spread_over_the_devices():
    """On four devices each does a quarter of the work: embedding, likelihood and judges scale."""
    subprocess.run([sys.executable, "-c", SPREAD], env=environment.of(4), check=True)


def test_an_axis_that_does_not_divide_stays_whole():
    """A constraint asks for what can be had: odd batches are no error."""
    devices = mesh.make()
    out = jax.jit(lambda x: mesh.constrain(x, devices, mesh.BATCH))(ROWS)
    np.testing.assert_array_equal(out, ROWS)
