"""The device mesh and where things lie on it."""

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from isara_jax import config

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes a batch is spread over
_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
Shape = tuple[int, int, int]  # devices along the axes


def check_platforms() -> None:
    """Sees that the platforms which the environment names are there; JAX would take the others.

    Raises:
      config.UserError: one is not.
    """
    for variable in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        named = [name.strip() for name in os.environ.get(variable, "").split(",")]
        for name in filter(None, named):
            try:
                jax.local_devices(backend=name)
            except Exception as error:  # AssertionError, where JAX was installed without it
                raise config.UserError(_not_there(variable, named, name, error)) from error


def _not_there(variable: str, named: list[str], asked: str, error: Exception) -> str:
    """What is said of the platform that JAX lacks.

    JAX starts all that are named, whichever is asked for, and says which of them it could not.
    """
    said = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0]
    found = re.match(r"Unable to initialize backend '([^']*)'", said)
    lacking = found[1] if found and found[1] in named else asked
    hint = "" if lacking in _PLATFORMS else config.nearest(lacking, _PLATFORMS)
    others = dict.fromkeys([*(name for name in named if name and name != lacking), "cpu"])
    return (
        f"{variable}={','.join(named)}: no {lacking or repr(lacking)} here "
        f"({said or 'JAX came without it'}){hint}; set {variable}={','.join(others)}, or unset it "
        "to use what there is (for others see launch/requirements-gpu.txt and -tpu.txt)"
    )


def make(shape: Shape = (1, 1, 1), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `data × fsdp × model` over the first devices.

    Args:
      shape: devices along each axis.
      devices: to choose from; by default all there are.

    Raises:
      config.ConfigError: there are fewer devices than the mesh asks for, or some process would have
        none of them.
    """
    devices = jax.devices() if devices is None else devices
    needed, asked = math.prod(shape), "x".join(map(str, shape))
    if needed > len(devices):
        raise config.ConfigError(
            f"config.mesh={asked} asks for {needed} devices; {len(devices)} found "
            f"({devices[0].device_kind})"
        )
    if needed < len(devices) and jax.process_count() > 1:
        raise config.ConfigError(
            f"config.mesh={asked} asks for {needed} devices; the {jax.process_count()} processes "
            f"have {len(devices)}, and all of them must be used"
        )
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed]
    )


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def gpu_generation(device: jax.Device) -> float:
    """Compute capability of NVIDIA's GPUs (8.0: Ampere); 0 of other devices."""
    found = str(getattr(device, "compute_capability", ""))
    return float(found) if found.replace(".", "", 1).isdigit() else 0.0


def native_bf16(device: jax.Device) -> bool:
    """Whether a device multiplies bf16 matrices; CPUs and GPUs before Ampere (T4) imitate it."""
    return device.platform == "tpu" or gpu_generation(device) >= 8.0


def compiler_options(mesh: Mesh) -> dict[str, int]:
    """What XLA must be told on these devices.

    On a GPU it joins products that share an operand, x @ kernel and x @ a of an adapter, by
    concatenating their weights in every step: 10 GB a token at LLaMA-7B's shape.
    """
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    return {"xla_gpu_dot_merger_threshold_mb": 0} if on_gpu else {}


def batch_devices(mesh: Mesh | None) -> int:
    """Devices that a batch is spread over."""
    return 1 if mesh is None else _extent(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, P())


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the host, whole on every device.

    `jax.device_put` would have the processes compare them, leaf by leaf.
    """
    where = replicated(mesh)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        copies = [jax.device_put(x, device) for device in where.addressable_devices]
        return jax.make_array_from_single_device_arrays(x.shape, where, copies)

    return jax.tree.map(one, tree)


def constrain(x: jax.Array, mesh: Mesh | None, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """Asks the partitioner to lay `x` out so; an axis that does not divide stays whole."""
    if mesh is None:
        return x
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
