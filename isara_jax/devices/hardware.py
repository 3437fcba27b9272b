"""What is known of accelerators without having one: memory, speed, and devices to compile for.

Figures are the makers': dense bf16 products, main memory, and the links between devices one way
(TPUs: "How to Scale Your Model", https://jax-ml.github.io/scaling-book/tpus; GPUs: datasheets).
"""

import dataclasses
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from isara_jax import config

GB, GIB = 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Kind:
    """One device.

    Attributes:
      name: as in a topology.
      memory: bytes.
      flops: bf16 operations a second.
      bandwidth: bytes a second of its memory.
      links: bytes a second that it sends to its neighbours along one axis of a mesh.
      known_as: what JAX calls it (`device_kind`), in lower case; a part of it.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    links: float
    known_as: str

    @property
    def is_gpu(self) -> bool:
        return self.name in _GPUS


# What XLA must know of a GPU to compile for it; the names are those of its `GpuTargetConfigProto`.
_GPUS = {
    "a100": {"major": 8, "core_count": 108, "clock_rate_ghz": 1.41, "shared": 167936, "l2": 40},
    "h100": {"major": 9, "core_count": 132, "clock_rate_ghz": 1.98, "shared": 233472, "l2": 50},
    "h200": {"major": 9, "core_count": 132, "clock_rate_ghz": 1.98, "shared": 233472, "l2": 50},
}
_TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA {description}"
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {core_count}  fpus_per_core: {fpus}  threads_per_warp: 32
  clock_rate_ghz: {clock_rate_ghz}
  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: {shared}  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {optin}  l2_cache_size: {l2_bytes}
  memory_bandwidth: {bandwidth}  device_memory_size: {memory}
}}
"""


# A ring over TPUs sends both ways at once: twice a link's rate.
KINDS = (
    Kind("v4", 32 * GIB, 275e12, 1228 * GB, 2 * 45 * GB, "tpu v4"),
    Kind("v5e", 16 * GIB, 197e12, 819 * GB, 2 * 45 * GB, "tpu v5 lite"),
    Kind("v5p", 95 * GIB, 459e12, 2765 * GB, 2 * 90 * GB, "tpu v5"),
    Kind("v6e", 32 * GIB, 918e12, 1640 * GB, 2 * 90 * GB, "tpu v6 lite"),
    Kind("a100", 80 * GIB, 312e12, 2039 * GB, 300 * GB, "a100"),
    Kind("h100", 80 * GIB, 989e12, 3350 * GB, 450 * GB, "h100"),
    Kind("h200", 141 * GB, 989e12, 4800 * GB, 450 * GB, "h200"),
)
BY_NAME = {kind.name: kind for kind in KINDS}
HERE = Kind("cpu", math.inf, 2e11, 7 * GB, 7 * GB, "cpu")  # a laptop, for a rough idea
_NETWORK = 50 * GB  # bytes a second that a GPU sends to another machine: 400 Gbit/s


def kind_in(topology: str) -> Kind:
    """What the devices of a topology are; over several machines all links count as the slowest."""
    name, _, counts = topology.partition(":")
    kind = BY_NAME.get(name, HERE)
    machines = counts.rpartition("x")[0]
    several = kind.is_gpu and machines not in ("", "1")
    return dataclasses.replace(kind, links=_NETWORK) if several else kind


def devices(topology: str) -> list[jax.Device]:
    """Devices to compile for; only those of `cpu` can also run.

    Args:
      topology: `v5e:4x4`, by the names of the TPUs; `h200`, `h200:8`, `h200:2x8` (machines x GPUs);
        `cpu`, this machine's.

    Raises:
      config.ConfigError: an unknown topology, or its compiler is not installed.
    """
    name, _, counts = topology.partition(":")
    if name == "cpu":
        return jax.devices("cpu")
    kind = BY_NAME.get(name)
    if kind is None or not re.fullmatch(r"(\d+(x\d+)*)?", counts):
        raise config.ConfigError(
            f"--topology={topology}: expected a device ({', '.join(BY_NAME)}, cpu) and how many, "
            "such as v5e:4x4, h200 or h200:2x8"
        )
    try:
        found = _gpus(kind, counts or "1") if kind.is_gpu else _tpus(topology)
    except Exception as error:  # the compilers raise their own
        needed = "jax-cuda13-plugin and jax-cuda13-pjrt" if kind.is_gpu else "libtpu, of jax[tpu]"
        reason = " ".join(str(error).split())[:300]
        raise config.ConfigError(
            f"--topology={topology}: no such devices to compile for ({reason}); it needs {needed}, "
            "and a shape that is built"
        ) from error
    return list(found.devices)


def _tpus(topology: str) -> Any:
    # There is no TPU to ask or to lock, and nothing worth a log. Any type will do, but none makes
    # the compiler look for its hosts and complain.
    settings = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    settings |= {"TPU_ACCELERATOR_TYPE": "v4-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.update(settings | {"TPU_LOG_DIR": "disabled", "TPU_WORKER_ID": "0"})
    return topologies.get_topology_desc(topology, "tpu")


def _gpus(kind: Kind, counts: str) -> Any:
    numbers = _GPUS[kind.name]
    target = _TARGET.format(
        description=kind.name.upper(), optin=numbers["shared"] - 1024,
        fpus=64 if numbers["major"] == 8 else 128, l2_bytes=numbers["l2"] << 20,
        bandwidth=int(kind.bandwidth), memory=int(kind.memory), **numbers,
    )  # fmt: skip
    machines, _, each = counts.rpartition("x")
    # Triton's products are tuned on the device; untuned some do not compile at all. cuBLAS instead.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = flags.strip()
    return topologies.get_topology_desc(
        platform="cuda", target_config=target, topology=f"1x{machines or 1}x{each}"
    )


def kind_of(device: jax.Device) -> Kind | None:
    """What is known of a device; None for CPUs and for what is not in the table."""
    name = device.device_kind.lower()
    found = [kind for kind in KINDS if kind.known_as in name and device.platform != "cpu"]
    return max(found, key=lambda kind: len(kind.known_as), default=None)  # "tpu v5" is in others


def memory(device: jax.Device) -> float:
    """Bytes of a device's memory; infinite where nothing is known, as of CPUs."""
    stats = _stats(device)
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    kind = kind_of(device)
    return kind.memory if kind else math.inf


def free_memory(device: jax.Device, held: float) -> float:
    """Bytes that are left of it.

    Args:
      device: one that is there, or one to compile for.
      held: what lies on it, where it cannot tell.
    """
    stats = _stats(device)
    return memory(device) - stats.get("bytes_in_use", held)


def _stats(device: jax.Device) -> dict[str, int]:
    try:
        return device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):  # one to compile for
        return {}
