"""The pieces that stages repeat, compiled apart: what one costs is what a stage costs, divided.

Each is compiled for the devices of a `blueprint.Blueprint`; nothing runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax.devices import mesh as mesh_lib
from isara_jax.method import prompting, train
from isara_jax.method.program import Inputs
from isara_jax.models import lora
from isara_jax.planning import hlo
from isara_jax.planning.blueprint import Blueprint, placed
from isara_jax.sampler import decode
from isara_jax.text import packing


class Cost(NamedTuple):
    """What a piece costs each device.

    Attributes:
      flops: operations, as the compiler counts them.
      sent: bytes sent to other devices.
      exchanges: number and bytes by kind of collective.
    """

    flops: float
    sent: float
    exchanges: dict[str, tuple[float, float]]

    def extended(self, deeper: "Cost", layers: float) -> "Cost":
        """The cost at so many times the difference between this one and a deeper one."""

        def line(a: float, b: float) -> float:
            return max(a + (b - a) * layers, 0.0)

        none = (0.0, 0.0)
        exchanges = {
            kind: tuple(
                line(a, b)
                for a, b in zip(
                    self.exchanges.get(kind, none), deeper.exchanges.get(kind, none), strict=True
                )
            )
            for kind in sorted(self.exchanges.keys() | deeper.exchanges.keys())
        }
        sent = sum(size for _, size in exchanges.values())
        return Cost(line(self.flops, deeper.flops), sent, exchanges)


def cost(compiled: jax.stages.Compiled) -> Cost:
    """The cost of a compiled piece."""
    exchanges: dict[str, tuple[float, float]] = {}
    for found in hlo.collectives(compiled.as_text()):
        number, size = exchanges.get(found.kind, (0.0, 0.0))
        exchanges[found.kind] = (number + found.times, size + found.times * found.bytes)
    analysis = compiled.cost_analysis() or {}
    sent = sum(size for _, size in exchanges.values())
    return Cost(max(float(analysis.get("flops", 0.0)), 0.0), sent, exchanges)


def compile_piece(
    b: Blueprint, function: Callable, *args: Any, donate: int | None = None
) -> jax.stages.Compiled:
    """An executable for the blueprint's devices."""
    options = mesh_lib.compiler_options(b.program.mesh)
    return jax.jit(function, donate_argnums=donate, compiler_options=options).lower(*args).compile()


class Sampling(NamedTuple):
    """What pieces of a sampler read: prompts and the state of its loop, as shapes with places."""

    sampler: decode.Sampler
    prompts: packing.Prompts
    slots: Any
    key: Any


def sampling(b: Blueprint) -> Sampling:
    """The sampler of answers."""
    p, c = b.program, b.program.config.answer
    sampler = p.sampler(c.max_tokens)
    n = p.config.samples_per_iteration
    length = p.sizes.prompt(c.k, c.prompt_tokens, c.max_tokens, p.config.question.max_tokens)
    whole = mesh_lib.replicated(p.mesh)
    prompts = packing.Prompts(np.zeros((n, length), np.int32), np.ones(n, np.int32))
    prompts = placed(prompts, whole)
    empty = functools.partial(decode._empty_slots, sampler)
    places = compile_piece(b, empty, prompts).output_shardings
    slots = jax.tree.map(placed, jax.eval_shape(empty, prompts), places)
    key = placed(jax.eval_shape(lambda: jax.random.key(0)), whole)
    return Sampling(sampler, prompts, slots, key)


def variables(b: Blueprint, base: Any, trainable: Any) -> dict:
    """What a sampler's loop reads; f32 kernels on a CPU have taken the adapter in before it."""
    train_config = b.program.config.train
    if train_config.trainable == "full" or not b.program.merged:
        return lora.variables(base, trainable, train_config)
    return {"params": base}


def step(b: Blueprint, s: Sampling, rows: int = 0) -> jax.stages.Compiled:
    """One decoding step of all slots, over the whole cache or so many of its rows."""

    def one(inputs: Inputs, trainable: Any, key: Any, slots: Any) -> Any:
        return decode._step(
            s.sampler, variables(b, inputs.base, trainable), key, inputs.hyper.answer,
            inputs.answer_stops, rows, slots,
        )  # fmt: skip

    return compile_piece(b, one, b.inputs, b.state.trainable, s.key, s.slots, donate=3)


def refill(b: Blueprint, s: Sampling) -> jax.stages.Compiled:
    """One refill: R prompts read into the cache."""

    def one(inputs: Inputs, trainable: Any, prompts: Any, slots: Any) -> Any:
        read = variables(b, inputs.base, trainable)
        return decode._refill(s.sampler, read, prompts, slots)

    return compile_piece(b, one, b.inputs, b.state.trainable, s.prompts, s.slots, donate=3)


def embed(b: Blueprint) -> jax.stages.Compiled:
    """The embedding of as many questions as there are slots."""
    c = b.program.config
    longest = c.question.max_tokens + b.program.template.to_answer
    part = packing.Part(np.zeros((c.slots, longest), np.int32), np.ones(c.slots, np.int32))
    part = placed(part, mesh_lib.replicated(b.program.mesh))
    function = functools.partial(prompting.embed_questions, b.program)
    return compile_piece(b, function, b.inputs.base, part)


def train_step(b: Blueprint) -> jax.stages.Compiled:
    """An optimiser step over one stream: so many sequences as it certainly holds."""
    p = b.program
    rows, row_tokens = p.training.rows, p.sizes.sequence
    one = np.zeros(rows, np.int32)
    sequences = train.Sequences(np.zeros((rows, row_tokens), np.int32), one, one, one > 0)
    whole = mesh_lib.replicated(p.mesh)
    settings = dataclasses.replace(p.config.train, batch_size=rows)

    def fit(inputs: Any, trainable: Any, sequences: Any, steps: Any, key: Any) -> Any:
        return train.fit(
            p.trained, inputs.base, trainable, sequences, settings, inputs.hyper.train, steps, key,
            p.sizes.answer, rows, p.mesh,
        )  # fmt: skip

    key = placed(jax.eval_shape(lambda: jax.random.key(0)), whole)
    sequences, steps = placed((sequences, jnp.int32(1)), whole)
    return compile_piece(b, fit, b.inputs, b.state.trainable, sequences, steps, key, donate=1)
