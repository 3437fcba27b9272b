"""The device mesh and where things lie on it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from isara_jax import config

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes a batch is spread over


def make(mesh: config.Mesh) -> Mesh:
    """The mesh `data × fsdp × model` over the first devices.

    Raises:
      config.ConfigError: there are fewer devices than the mesh asks for.
    """
    shape = (mesh.data, mesh.fsdp, mesh.model)
    needed, devices = int(np.prod(shape)), jax.devices()
    if needed > len(devices):
        raise config.ConfigError(
            f"config.mesh asks for {' × '.join(map(str, shape))} = {needed} devices; "
            f"{len(devices)} found ({devices[0].device_kind})"
        )
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed]
    )


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def gpu_generation(mesh: Mesh) -> float:
    """Compute capability of NVIDIA's GPUs (8.0: Ampere); 0 of other devices."""
    found = str(getattr(mesh.devices.flat[0], "compute_capability", ""))
    return float(found) if found.replace(".", "", 1).isdigit() else 0.0


def native_bf16(mesh: Mesh) -> bool:
    """Whether the devices multiply bf16 matrices; CPUs and GPUs before Ampere (T4) imitate it."""
    return mesh.devices.flat[0].platform == "tpu" or gpu_generation(mesh) >= 8.0


def compiler_options(mesh: Mesh) -> dict[str, int]:
    """What XLA must be told on these devices.

    On a GPU it joins products that share an operand, x @ kernel and x @ a of an adapter, by
    concatenating their weights in every step: 10 GB a token at LLaMA-7B's shape.
    """
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    return {"xla_gpu_dot_merger_threshold_mb": 0} if on_gpu else {}


def batch_devices(mesh: Mesh) -> int:
    """Devices that a batch is spread over."""
    return _extent(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, P())


def constrain(x: jax.Array, mesh: Mesh, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """Asks the partitioner to lay `x` out so; an axis that does not divide stays whole."""
    fitted = [
        axes if axes is None or size % _extent(mesh, axes) == 0 else None
        for size, axes in zip(x.shape, spec, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*fitted)))


def map_rows(function: Callable[[Any], Any], rows: Any, rows_at_once: int, mesh: Mesh) -> Any:
    """`function` of all rows, so many at a time, each portion spread over the batch's devices.

    Args:
      function: of a tree of `[B, ...]` to a tree of `[B, ...]`.
      rows: a tree of `[N, ...]`.
      rows_at_once: B, if there are as many; the last portion is filled up with copies.
      mesh: the devices.

    Returns:
      A tree of `[N, ...]`.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    size = min(rows_at_once, n)
    portions = -(-n // size)
    index = jnp.minimum(jnp.arange(portions * size), n - 1).reshape(portions, size)

    def one(portion: jax.Array) -> Any:
        return function(jax.tree.map(lambda x: constrain(x[portion], mesh, BATCH), rows))

    result = jax.lax.map(one, index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], result)


def _extent(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
    names = (axes,) if isinstance(axes, str) else axes
    return int(np.prod([mesh.shape[name] for name in names]))
