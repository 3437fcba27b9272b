"""Processes that see several devices, all of them this machine's CPU."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def environment(n: int) -> dict[str, str]:
    """Of a process with so many devices, which finds isara_jax and the tests."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
