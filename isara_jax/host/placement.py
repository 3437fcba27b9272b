"""Which mesh suits a model and the devices there are: what divides, and what fits."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from isara_jax import config
from isara_jax.devices import hardware
from isara_jax.devices import mesh as mesh_lib
from isara_jax.formats import weights
from isara_jax.models import families
from isara_jax.models.network import DecoderConfig

# Of a device's memory, for weights and what training keeps of them; the rest is for the cache and
# for activations.
_SHARE = 0.5
# A trained parameter, as it was before, its two moments, its gradient and that of a stream, in f32.
TRAINED_BYTES = 24


def choose(
    c: config.Config, network: DecoderConfig, itemsize: int, devices: Sequence[jax.Device]
) -> mesh_lib.Shape:
    """The mesh of `config.mesh`, checked; `auto` spreads the batch as far as the memory allows.

    Sampling reads all weights for each token. Along `data` a device reads them whole, but for more
    sequences; along `model` its own part, and activations are exchanged; along `fsdp` its own part
    too, but weights are gathered for every refill and every stream. So weights are split over as
    few devices as hold them, over `fsdp` only where no split over `model` is enough.

    Args:
      c: the configuration.
      network: the base model.
      itemsize: bytes of a weight.
      devices: all there are.

    Raises:
      config.ConfigError: it does not divide the model, or no mesh over all devices divides it.
    """
    if c.mesh_shape is not None:
        check(network, c.mesh_shape)
        return c.mesh_shape
    choices = list(shapes(c, network, len(devices)))
    if not choices:
        rows = [config.field(c, name) for name in config.SPREAD]
        raise config.ConfigError(
            f"config.mesh='auto': no mesh over {len(devices)} devices divides "
            f"{' and '.join(f'config.{n}={v}' for n, v in zip(config.SPREAD, rows, strict=True))} "
            f"and the model ({_described(network)}); choose these as multiples of {len(devices)}"
        )
    each = itemsize + (TRAINED_BYTES if c.train.trainable == "full" else 0)
    room = _SHARE * hardware.memory(devices[0])
    for shape in choices:
        if each * n_params(network) / (shape[1] * shape[2]) <= room:
            return shape
    return choices[-1]  # the most spread; the compiler says by how much it does not fit


def shapes(c: config.Config, network: DecoderConfig, n_devices: int) -> Iterator[mesh_lib.Shape]:
    """The meshes over all devices that divide model and batches, the least split weights first."""
    rows = math.gcd(*(config.field(c, name) for name in config.SPREAD))
    most = divisors(network)
    for fsdp in _divisors(math.gcd(n_devices, most["fsdp"])):
        for model in _divisors(math.gcd(n_devices // fsdp, most["model"])):
            data = n_devices // (fsdp * model)
            if rows % (data * fsdp) == 0:
                yield data, fsdp, model


def check(network: DecoderConfig, shape: mesh_lib.Shape, name: str = "the model") -> None:
    """Raises `config.ConfigError` where a mesh does not divide a model of that name."""
    sizes = dict(zip(mesh_lib.AXES, shape, strict=True))
    for axis, most in divisors(network).items():
        if most % sizes[axis]:
            raise config.ConfigError(
                f"config.mesh={'x'.join(map(str, shape))}: {axis}={sizes[axis]} does not divide "
                f"{name} ({_described(network)}); choices: "
                f"{', '.join(map(str, _divisors(most)))}"
            )


def divisors(network: DecoderConfig) -> dict[str, int]:
    """The largest number of devices along `fsdp` and `model`; others must divide it.

    Every axis that the weight table spreads must divide, but the vocabulary's, which then stays
    whole; and a device along `model` holds whole heads. Key and value heads may be fewer: they are
    then replicated.
    """
    sizes: dict[str, list[int]] = {"fsdp": [], "model": [network.n_heads]}
    for path, leaf in _parameters(network, 1).items():
        for size, axis in zip(leaf.shape, weights.find(network, path).row.spec, strict=False):
            if axis and size != network.vocab_size:
                sizes[axis].append(size)
    return {axis: math.gcd(*found) for axis, found in sizes.items()}


def n_params(network: DecoderConfig) -> int:
    """Parameters of a model."""
    one, two = (sum(x.size for x in _parameters(network, n).values()) for n in (1, 2))
    return one + (two - one) * (network.n_layers - 1)


@functools.cache
def _parameters(network: DecoderConfig, layers: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes by path of the network with so many blocks: all of them take seconds."""
    shallow = dataclasses.replace(network, n_layers=layers)
    return weights.flatten(weights.abstract_params(families.build(shallow)))


def placed_bytes(tree: Any) -> int:
    """Bytes of arrays, or of shapes with shardings, on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def training_bytes(network: DecoderConfig, mesh: Mesh) -> float:
    """Bytes on one device of what training all weights adds to them."""
    return TRAINED_BYTES * n_params(network) / (mesh.shape["fsdp"] * mesh.shape["model"])


def with_mesh(c: config.Config, shape: mesh_lib.Shape) -> config.Config:
    """The configuration with its mesh written out."""
    return dataclasses.replace(c, mesh="x".join(map(str, shape)))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _described(network: DecoderConfig) -> str:
    return f"{network.n_heads} heads, width {network.width}, hidden {network.hidden}"
