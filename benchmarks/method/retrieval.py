"""Retrieval: queries a second and recall, exact on the device and by ScaNN, by size of the pool.

    python -m benchmarks.method.retrieval

A call is what an iteration makes: for ScaNN the host callback, the index built and forgotten. Rows
`hash` and `tree` force the indices that so few queries would not be given.
Vectors are drawn around a thousand centres, as questions of a domain lie, and have 768 numbers.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import workload
from isara_jax.devices import mesh
from isara_jax.method import retrieval

_POOLS = flags.DEFINE_list("pools", ["64", "2000", "20000", "100000"], "Rows of the pool.")
_QUERIES = flags.DEFINE_integer("queries", 512, "Questions of an iteration.")
_K = flags.DEFINE_integer("k", 6, "Neighbours.")
_DIMENSIONS = flags.DEFINE_integer("dimensions", 768, "Width of the model.")
_OUT = flags.DEFINE_string("out", "benchmarks/results.jsonl", "Where to append the results.")

# The smallest pool, and from how many queries on ScaNN hashes and builds a tree.
KEPT = (retrieval.HASH_QUERIES, retrieval.TREE_QUERIES)
INDICES = {
    "device": (0, *KEPT),
    "scann": (0, *KEPT),
    "hash": (retrieval.HASH_FROM, 0, 10**9),
    "tree": (retrieval.TREE_FROM, 0, 0),
}


def vectors(n: int, dimensions: int, seed: int) -> jax.Array:
    """Unit vectors `[n, dimensions]` around centres that all seeds share."""
    centres = np.random.default_rng(0).normal(size=(1000, dimensions))
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(0, 1000, n)] + 0.7 * rng.normal(size=(n, dimensions))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def _seconds(function: Callable, *args: jax.Array) -> tuple[np.ndarray, float]:
    result, seconds = jax.block_until_ready(function(*args)), []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - began)
    return np.asarray(result), float(np.median(seconds))


def main(_: list[str]) -> None:
    devices = mesh.make()
    queries = vectors(_QUERIES.value, _DIMENSIONS.value, seed=2)
    print(f"{'pool':>8}{'backend':>10}{'seconds':>10}{'queries/s':>12}{'recall':>8}")
    for size in map(int, _POOLS.value):
        pool, exact = vectors(size, _DIMENSIONS.value, seed=1), None
        for backend, limits in INDICES.items():
            if size < limits[0]:
                continue
            retrieval.HASH_QUERIES, retrieval.TREE_QUERIES = limits[1:]
            name = "device" if backend == "device" else "scann"
            search = jax.jit(functools.partial(retrieval.nearest, name, devices), static_argnums=3)
            found, seconds = _seconds(lambda *x, f=search: f(*x, _K.value), pool, size, queries)
            exact = found if exact is None else exact
            hits = (found[:, :, None] == exact[:, None]).any(axis=2)
            result = {
                "benchmark": "retrieval", "pool": size, "backend": backend, "seconds": seconds,
                "queries_per_s": _QUERIES.value / seconds, "recall": float(hits.mean()),
            }  # fmt: skip
            print(
                f"{size:>8}{backend:>10}{seconds:>10.4f}{result['queries_per_s']:>12.0f}"
                f"{result['recall']:>8.3f}"
            )
            workload.append(_OUT.value, workload.where() | result)


if __name__ == "__main__":
    app.run(main)
