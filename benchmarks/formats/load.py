"""Loading a checkpoint: GB/s, and the host's peak memory beyond the arrays placed.

    python -m benchmarks.formats.load --shape=llama_7b --layers=3 --folder=DIR

writes random bf16 weights of that shape once (`--layers=0`: all of them), loads them as a run
does, and prints one JSON line. Peak: anonymous memory, sampled every few milliseconds; on a CPU the
placed arrays are part of it and are taken off. Beside it stands a plain copy of the same bytes from
the same mapped files, the speed that no loader on this machine can beat.
"""

import dataclasses
import json
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from absl import app, flags

from benchmarks import workload
from isara_jax.devices import mesh
from isara_jax.files import storage
from isara_jax.formats import weights
from isara_jax.models import families
from isara_jax.models.network import DecoderConfig

_SHAPE = flags.DEFINE_enum("shape", "llama_7b", ("llama_7b", "opt_6.7b"), "Whose shapes.")
_LAYERS = flags.DEFINE_integer("layers", 0, "Blocks; 0: all.")
_FOLDER = flags.DEFINE_string("folder", None, "Where to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ("bfloat16", "float32"), "Of the placed arrays.")


class _Random:
    """A parameter that is drawn when it is fetched, so that no host holds the whole model."""

    def __init__(self, like: jax.ShapeDtypeStruct) -> None:
        self.shape, self.size, self.dtype = like.shape, like.size, np.dtype(ml_dtypes.bfloat16)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # Random bits of finite values: signs and mantissas, all exponents near one.
        bits = np.random.default_rng(self.size).integers(0, 1 << 16, self.size, np.uint16)
        bits = (bits & np.uint16(0x807F)) | np.uint16(0x3C80)
        return bits.view(ml_dtypes.bfloat16).reshape(self.shape)


def write(folder: pathlib.Path, network: DecoderConfig) -> None:
    """A Hugging Face folder of random weights, without a tokenizer."""
    shapes = weights.abstract_params(families.build(network, jnp.bfloat16))
    weights.save(folder, network, jax.tree.map(_Random, shapes))
    storage.write_json(folder / "config.json", families.to_hf(network))


def _anonymous() -> int:
    """Bytes of this process's memory that are no file's."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def _watched(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """The result, the seconds, and the growth of anonymous memory at its peak."""
    before, peak, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.003):
            peak = max(peak, _anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    result = jax.block_until_ready(work())
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    return result, seconds, peak - before


def _copy_seconds(folder: pathlib.Path) -> float:
    """Seconds to copy every tensor out of the mapped files once, and to keep none."""
    began = time.monotonic()
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, no mapping
                np.asarray(file.get_tensor(name))
    return time.monotonic() - began


def main(_: list[str]) -> None:
    folder = pathlib.Path(_FOLDER.value)
    network = workload.NETWORKS[_SHAPE.value]
    network = dataclasses.replace(network, n_layers=_LAYERS.value or network.n_layers)
    if not (folder / "config.json").exists():
        write(folder, network)
    model = families.build(weights.load_config(folder), jnp.dtype(_DTYPE.value))
    devices = mesh.make()
    jax.device_put(np.zeros(8)).block_until_ready()
    copied = _copy_seconds(folder)  # also brings the files into the page cache
    params, seconds, peak = _watched(lambda: weights.load(folder, model, devices))
    leaves = jax.tree.leaves(params)
    placed = sum(x.nbytes for x in leaves)
    stored = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    beyond = peak - (placed if mesh.on_cpu(devices) else 0)
    largest = max(x.nbytes for x in leaves)
    result = {
        "shape": _SHAPE.value, "layers": network.n_layers, "dtype": _DTYPE.value,
        "stored_GB": stored / 1e9, "seconds": seconds, "GB_per_s": stored / 1e9 / seconds,
        "copy_GB_per_s": stored / 1e9 / copied, "placed_GB": placed / 1e9,
        "peak_beyond_placed_GB": beyond / 1e9, "largest_tensor_GB": largest / 1e9,
        "beyond_over_largest": beyond / largest,
    }  # fmt: skip
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    app.run(main)
