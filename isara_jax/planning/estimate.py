"""What an iteration takes on devices one need not have: memory, limits of time, the best mesh.

Memory is that of the compiled iteration. Times are limits: operations over the device's products,
bytes over its memory, bytes sent over its links; a stage takes at least the largest of the three.
Every text is taken to be as long as its field allows, and every sample to be accepted, so an
iteration of real texts takes less.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax import config
from isara_jax.devices import hardware
from isara_jax.devices import mesh as mesh_lib
from isara_jax.formats import pretrained
from isara_jax.host import memory as memory_lib
from isara_jax.host import placement
from isara_jax.planning import blueprint, pieces, roofline
from isara_jax.planning.blueprint import Base, Blueprint

FITS = 0.95  # of a device's memory; the runtime keeps the rest


class Memory(NamedTuple):
    """Bytes on a device.

    Attributes:
      weights: of the base model.
      trainable: the adapter, or all weights in f32.
      others: pool, stop tables.
      judges: their weights.
      optimiser: Adam's moments and the gradient; part of `temp`.
      cache: keys and values; part of `temp`.
      temp: all that lives only during the iteration.
    """

    weights: float
    trainable: float
    others: float
    judges: float
    optimiser: float
    cache: float
    temp: float

    @property
    def total(self) -> float:
        return self.weights + self.trainable + self.others + self.judges + self.temp


class Stage(NamedTuple):
    """A stage on one device.

    Attributes:
      name: of the stage.
      tokens: of all devices.
      flops, read, sent: operations, bytes of memory, bytes sent to other devices.
      seconds: that each of them takes at least.
      exchanges: number and bytes by kind of collective.
    """

    name: str
    tokens: float
    flops: float
    read: float
    sent: float
    seconds: tuple[float, float, float]
    exchanges: dict[str, tuple[float, float]]

    @property
    def limit(self) -> str:
        """What the stage waits for."""
        names = ("products", "memory", "links")
        return names[int(np.argmax(self.seconds))]


class Costs(NamedTuple):
    """What a decoding step, a refill, an embedding and an optimiser step cost a device."""

    step: pieces.Cost
    refill: pieces.Cost
    embed: pieces.Cost
    train: pieces.Cost


def depths(base: Base) -> tuple[int, int]:
    """Blocks of the two models that are compiled to see what more blocks take, of each kind."""
    kinds = len(base.network.kinds)
    each = kinds if kinds < base.network.n_layers else 1  # no pattern: as if all were the first
    return max(2, each), max(2, each) + (2 if each == 1 else each)


def costs(c: config.Config, base: Base, devices: Sequence[jax.Device]) -> Costs:
    """Of the whole depth, from models of two `depths`."""
    found, (shallow, deep) = [], depths(base)
    for layers in (shallow, deep):
        b = blueprint.draw(c, base, devices, layers)
        s = pieces.sampling(b)
        compiled = (pieces.step(b, s), pieces.refill(b, s), pieces.embed(b), pieces.train_step(b))
        found.append([pieces.cost(x) for x in compiled])
    times = (base.network.n_layers - shallow) / (deep - shallow)
    return Costs(*(a.extended(b, times) for a, b in zip(*found, strict=True)))


def memory(b: Blueprint, compiled: jax.stages.Compiled) -> Memory:
    """Of a compiled iteration."""
    m = compiled.memory_analysis()
    return _memory(b, m.argument_size_in_bytes, m.temp_size_in_bytes)


def _memory(b: Blueprint, arguments: float, temp: float) -> Memory:
    base, trainable = (placement.placed_bytes(x) for x in (b.inputs.base, b.state.trainable))
    return Memory(
        weights=base,
        trainable=trainable,
        others=max(arguments - base - trainable, 0.0),
        judges=b.judges,
        optimiser=3 * trainable,
        cache=cache_bytes(b),
        temp=temp,
    )


def cache_bytes(b: Blueprint) -> float:
    """Of the larger of the two samplers' caches, on one device."""
    return memory_lib.cache_bytes(b.program, sum(memory_lib.longest(b.program)))


def _prompts(p: Any) -> tuple[int, int]:
    """Tokens of a prompt for a question and for an answer."""
    q, a = p.config.question, p.config.answer
    return (
        p.sizes.prompt(q.k, q.prompt_tokens, q.max_tokens, question=0),
        p.sizes.prompt(a.k, a.prompt_tokens, a.max_tokens, question=q.max_tokens),
    )


def _split_heads(b: Blueprint) -> int:
    """Devices that key and value heads are split over; others hold copies."""
    model = b.program.mesh.shape["model"]
    return model if b.program.model.config.n_kv_heads % model == 0 else 1


def stages(b: Blueprint, c: Costs, kind: hardware.Kind) -> list[Stage]:
    """The stages of the first iteration.

    Operations and bytes are those that must be done (`roofline`), on the devices' own shares; what
    is sent is what the compiled pieces send.
    """
    p, n = b.program, roofline.Counts.of(b.program.model)
    conf = p.config
    rows, model = mesh_lib.batch_devices(p.mesh), p.mesh.shape["model"]
    samples, slots = math.ceil(conf.samples_per_iteration / rows), conf.slots // rows
    # Of the weights a decoding step reads what lies on the device; of the cache, its sequences'.
    share = n._replace(
        cache_bytes=n.cache_bytes * model // _split_heads(b),
        itemsize=n.itemsize / p.mesh.shape["fsdp"],
    )
    refills = math.ceil(conf.samples_per_iteration / p.sampler(1).refill)
    result = []

    def add(name: str, work: roofline.Work, passes: int, piece: pieces.Cost, times: int) -> None:
        flops, read = float(work.flops / model), float(work.bytes * passes / model)
        exchanges = {k: (a * times, size * times) for k, (a, size) in piece.exchanges.items()}
        sent = piece.sent * times
        seconds = flops / kind.flops, read / kind.bandwidth, sent / kind.links
        result.append(Stage(name, float(work.tokens * rows), flops, read, sent, seconds, exchanges))

    for name, prompt, new in zip(
        ("questions", "answers"), _prompts(p), (conf.question.max_tokens, conf.answer.max_tokens),
        strict=True,
    ):  # fmt: skip
        if name == "answers":
            question = np.full(samples, conf.question.max_tokens + p.template.overhead(0))
            portions = math.ceil(conf.samples_per_iteration / conf.slots)
            add("embed", roofline.prefill_work(n, question), portions, c.embed, portions)
        prompts, drawn = np.full(samples, prompt), np.full(samples, new)
        read = roofline.prefill_work(n, prompts)
        add(f"{name}: prefill", read, refills, c.refill, refills)
        steps = math.ceil(samples / slots) * new
        add(f"{name}: decode", roofline.decode_work(share, prompts, drawn, slots), 1, c.step, steps)
    add("train", *_training(b, n, rows), c.train, _streams(b))
    return result


def _training(b: Blueprint, n: roofline.Counts, rows: int) -> tuple[roofline.Work, int]:
    p, c = b.program, b.program.config.train
    sequences = math.ceil((p.config.samples_per_iteration + p.sizes.n_seeds) / rows)
    lengths = np.full(sequences, p.sizes.sequence)
    work = roofline.train_work(
        n, lengths, lengths - p.sizes.answer, c.epochs, full=c.trainable == "full"
    )
    if p.training.remat:
        again = roofline.prefill_work(n, lengths).flops * c.epochs
        work = work._replace(flops=work.flops + again)
    return work._replace(bytes=n.blocks * n.itemsize * 2.0), _streams(b)


def _streams(b: Blueprint) -> int:
    """Streams of all optimiser steps."""
    p = b.program
    sequences = p.config.samples_per_iteration + p.sizes.n_seeds
    each = math.ceil(p.config.train.batch_size / p.training.rows)
    return p.config.train.epochs * math.ceil(sequences / p.config.train.batch_size) * each


class Candidate(NamedTuple):
    """A mesh and a number of slots: what they would take, extrapolated from shallow models."""

    config: config.Config
    memory: Memory
    stages: list[Stage]
    costs: Costs

    @property
    def seconds(self) -> float:
        return sum(max(stage.seconds) for stage in self.stages)


def fit(
    c: config.Config, base: Base, devices: Sequence[jax.Device], kind: hardware.Kind, most: int
) -> Iterator[Candidate]:
    """Meshes and slots that fit, the fastest first.

    The training batch is left as it is: another one would train another model.

    Args:
      c: the configuration; its mesh is ignored.
      base: the model.
      devices: all that are used.
      kind: what they are.
      most: meshes to compile, those first that leave weights least split.
    """
    itemsize = jnp.dtype(config_dtype(c, devices)).itemsize
    room = FITS * kind.memory
    found: list[Candidate] = []
    meshes = [
        shape
        for shape in placement.shapes(c, base.network, len(devices))
        if itemsize * placement.n_params(base.network) / (shape[1] * shape[2]) < room
    ]
    for shape in meshes[:most]:
        found += _with_slots(placement.with_mesh(c, shape), base, devices, kind, room)
    yield from sorted(found, key=lambda candidate: candidate.seconds)


def config_dtype(c: config.Config, devices: Sequence[jax.Device]) -> Any:
    """The type of weights on these devices."""
    return pretrained.choose_dtype(c.model.dtype, devices[0])


def _with_slots(
    c: config.Config, base: Base, devices: Sequence[jax.Device], kind: hardware.Kind, room: float
) -> Iterator[Candidate]:
    """A mesh with as many slots as fit, and with half of them: fewer may wait less for the last.

    What is temporary beside the cache is taken to grow with the slots, but not to shrink: training
    may need it.
    """
    each = costs(c, base, devices)
    b = blueprint.draw(c, base, devices)
    temps, (shallow, deep) = [], depths(base)
    for layers in (shallow, deep):
        drawn = blueprint.draw(c, base, devices, layers)
        m = memory(drawn, drawn.executables.compiled_step(drawn.state))
        temps.append(m.temp - m.cache)
    times = (base.network.n_layers - shallow) / (deep - shallow)
    temp = temps[0] + (temps[1] - temps[0]) * times
    fixed = _memory(b, 0.0, 0.0)

    def taken(slots: int) -> Memory:
        scaled = slots / c.slots
        cache = fixed.cache * scaled
        return fixed._replace(cache=cache, temp=cache + temp * max(scaled, 1.0))

    slots = mesh_lib.batch_devices(b.program.mesh)
    if taken(slots).total > room:
        return
    while slots * 2 <= c.samples_per_iteration and taken(slots * 2).total <= room:
        slots *= 2
    for number in {slots, max(slots // 2, mesh_lib.batch_devices(b.program.mesh))}:
        changed = dataclasses.replace(c, slots=number)
        expected = stages(blueprint.draw(changed, base, devices), each, kind)
        yield Candidate(changed, taken(number), expected, each)
