"""The k nearest demonstrations: ScaNN behind a host callback, or exact search on the device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib

# ScaNN's own guide: brute force below HASH_FROM points, then asymmetric hashing with reordering,
# above TREE_FROM a tree over partitions of about the square root of their number. An index is built
# for one call and forgotten, so each kind must also have the queries that repay its building
# (measured by benchmarks/method/retrieval.py; both grow with the points, so their ratio does not).
HASH_FROM, TREE_FROM = 20_000, 100_000
HASH_QUERIES, TREE_QUERIES = 2_500, 10_000


def check(backend: str) -> None:
    """Raises `config.ConfigError` where ScaNN is asked for and cannot be imported."""
    if backend == "scann":
        try:
            import scann  # noqa: F401
        except ImportError as error:
            raise config.ConfigError(
                f"config.retrieval.backend='scann', but ScaNN cannot be imported ({error}). It has "
                "wheels for Linux only; use --config.retrieval.backend=device elsewhere"
            ) from error


def build_index(points: np.ndarray, k: int, queries: int) -> Any:
    """A ScaNN searcher over `points [C, D]` by inner product, for k neighbours of each query."""
    import scann

    builder = scann.scann_ops_pybind.builder(points, k, "dot_product")
    if len(points) < HASH_FROM or queries < HASH_QUERIES:
        return builder.score_brute_force().build()
    if len(points) >= TREE_FROM and queries >= TREE_QUERIES:
        leaves = int(len(points) ** 0.5)
        builder = builder.tree(num_leaves=leaves, num_leaves_to_search=max(1, leaves // 10))
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(10 * k).build()


def search_with_scann(
    pool: np.ndarray, count: np.ndarray, queries: np.ndarray, k: int
) -> np.ndarray:
    """The host side: builds the index over the pool's valid rows, asks it, and forgets it.

    Args:
      pool: `[C, D]`; rows from `count` on are padding and never enter the index.
      count: how many rows are valid.
      queries: `[N, D]`.
      k: neighbours wanted.

    Returns:
      `[N, k]` int32 rows, nearest first, -1 where the pool has fewer than k.
    """
    points = np.asarray(pool, np.float32)[: int(count)]
    found = np.full((len(queries), k), -1, np.int32)
    if len(points):
        index = build_index(points, min(k, len(points)), len(queries))
        neighbours, _ = index.search_batched(np.asarray(queries, np.float32))
        found[:, : neighbours.shape[1]] = neighbours
    return found


def search_on_device(
    pool: jax.Array, count: jax.Array, queries: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Exact search by one matrix product; arguments and rows as of `search_with_scann`.

    Returns:
      rows `[N, k]` int32 and their inner products `[N, k]`.
    """
    # Accelerators would round the f32 operands to bf16.
    scores = jnp.einsum("ND,CD->NC", queries, pool, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(jnp.arange(pool.shape[0]) < count, scores, -jnp.inf)
    best, rows = jax.lax.top_k(scores, min(k, pool.shape[0]))
    rows = jnp.where(jnp.isfinite(best), rows, -1)
    missing = ((0, 0), (0, k - rows.shape[1]))
    return (
        jnp.pad(rows, missing, constant_values=-1).astype(jnp.int32),
        jnp.pad(best, missing, constant_values=-jnp.inf),
    )


def nearest(
    backend: str, mesh: Mesh, pool: jax.Array, count: jax.Array, queries: jax.Array, k: int
) -> jax.Array:
    """The k nearest valid rows of `pool [C, D]` to each of `queries [N, D]`: `[N, k]`, or -1."""
    if backend == "device":
        return search_on_device(pool, count, queries, k)[0]
    # A callback takes its operands from the first device; the result goes back to all of them.
    whole = mesh_lib.replicated(mesh)
    operands = jax.lax.with_sharding_constraint((pool, count, queries), whole)
    found = jax.pure_callback(
        lambda *arrays: search_with_scann(*arrays, k=k),
        jax.ShapeDtypeStruct((queries.shape[0], k), jnp.int32),
        *operands,
    )
    return jax.lax.with_sharding_constraint(found, whole)
