"""The environment of processes that tests start."""

import functools
import os
import pathlib
import tempfile

ROOT = pathlib.Path(__file__).parents[1]


def of(n_devices: int = 1) -> dict[str, str]:
    """With so many devices, all of them this machine's CPU; isara_jax and the tests are found.

    transformers does not find torch: users have none, and importing it takes seconds.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n_devices}"
    paths = os.pathsep.join([_without_torch().name, str(ROOT)])
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}


@functools.cache
def _without_torch() -> tempfile.TemporaryDirectory:
    """A folder by which torch is older than any that transformers wants."""
    folder = tempfile.TemporaryDirectory(prefix="isara_jax-")
    info = pathlib.Path(folder.name) / "torch-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0\n")
    return folder
