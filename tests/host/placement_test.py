"""Which mesh is chosen, what is refused, and what is known of the devices."""

import dataclasses
import math
import types

import pytest

from isara_jax import config
from isara_jax.devices import hardware
from isara_jax.host import placement
from isara_jax.models import shapes

GIB = 2**30


def devices(n, platform="tpu", kind="TPU v5 lite", limit=None):
    """Fake devices; `limit` is the memory that they tell, if they do."""
    stats = {"bytes_limit": limit} if limit else None
    one = types.SimpleNamespace(
        platform=platform, device_kind=kind, memory_stats=lambda: stats, compute_capability="9.0"
    )
    return [one] * n


def settings(**changed):
    train = {k: changed.pop(k) for k in ("trainable", "batch_size") if k in changed}
    c = config.Config(slots=128, **changed)
    return dataclasses.replace(c, train=dataclasses.replace(c.train, **{"batch_size": 32} | train))


@pytest.mark.parametrize(
    ("model", "n", "kind", "trainable", "expected"),
    [
        ("llama_7b", 1, "NVIDIA H200", "lora", (1, 1, 1)),
        ("llama_7b", 8, "NVIDIA H200", "lora", (8, 1, 1)),  # whole on each: nothing is exchanged
        ("llama_7b", 16, "TPU v5 lite", "lora", (8, 1, 2)),  # 13.5 GB, half of 17.2 at most
        ("llama_7b", 256, "TPU v5 lite", "lora", (32, 1, 8)),  # 32 sequences a step at most
        ("opt_66b", 64, "TPU v5", "lora", (16, 1, 4)),
        ("llama3_70b", 8, "NVIDIA H200", "lora", (2, 1, 4)),
        ("llama_7b", 8, "NVIDIA H200", "full", (2, 1, 4)),  # 22 bytes a parameter
    ],
)
def test_weights_are_split_over_as_few_devices_as_hold_them(model, n, kind, trainable, expected):
    """`auto` keeps sampling free of exchanges where it can, and never exceeds the memory."""
    platform = "gpu" if "NVIDIA" in kind else "tpu"
    found = placement.choose(
        settings(trainable=trainable), shapes.NETWORKS[model], 2, devices(n, platform, kind)
    )
    assert found == expected and math.prod(found) == n


def test_a_mesh_that_does_not_divide_is_refused_with_what_does():
    """Heads, widths and batches are checked before any weight is read."""
    network = shapes.NETWORKS["llama_7b"]
    with pytest.raises(config.ConfigError, match=r"1x1x3: model=3 .*32 heads.*1, 2, 4, 8, 16, 32"):
        placement.choose(settings(mesh="1x1x3"), network, 2, devices(3))
    with pytest.raises(config.ConfigError, match=r"1x3x1: fsdp=3 .* width 4096"):
        placement.choose(dataclasses.replace(settings(mesh="1x1x1"), mesh="1x3x1"), network, 2, [])
    with pytest.raises(config.ConfigError, match=r"3 devices .*slots=128.*multiples of 3"):
        placement.choose(settings(), network, 2, devices(3))


def test_key_and_value_heads_may_be_fewer():
    """Eight heads of keys over sixteen devices are replicated, not refused."""
    assert placement.divisors(shapes.NETWORKS["llama3_8b"])["model"] == 32
    placement.check(shapes.NETWORKS["llama3_8b"], (1, 1, 16))


@pytest.mark.parametrize(
    ("kind", "platform", "expected"),
    [
        ("TPU v4", "tpu", 32 * GIB),
        ("TPU v5 lite", "tpu", 16 * GIB),
        ("TPU v5", "tpu", 95 * GIB),
        ("TPU v6 lite", "tpu", 32 * GIB),
        ("NVIDIA A100-SXM4-80GB", "gpu", 80 * GIB),
        ("cpu", "cpu", math.inf),
        ("Radeon", "gpu", math.inf),
    ],
)
def test_memory_of_devices_that_do_not_tell(kind, platform, expected):
    """JAX's names of devices find their rows; one that tells its memory is believed."""
    assert hardware.memory(devices(1, platform, kind)[0]) == expected
    assert hardware.memory(devices(1, platform, kind, limit=GIB)[0]) == GIB
