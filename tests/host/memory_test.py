"""What a run takes by its shapes, the slots that fit, and what is said when memory is full."""

import dataclasses
import math
import resource

import jax
import jax.numpy as jnp
import pytest

from isara_jax import config
from isara_jax.host import memory, setup
from isara_jax.method import train
from isara_jax.models import lora
from isara_jax.planning import blueprint, pieces
from isara_jax.sampler import decode
from tests.method.iteration_test import small


@pytest.fixture(scope="module")
def program(random_model, tmp_path_factory):
    c = config.resolve(small(random_model))
    return setup.prepare(c, tmp_path_factory.mktemp("data"), None).program


def nbytes(tree):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_what_a_run_takes_is_what_its_arrays_take(program, tmp_path):
    """Cache, adapter and pool against the shapes that are allocated."""
    taken = memory.use(program)
    base = blueprint.read(program.config, tmp_path)[1]
    drawn = blueprint.draw(program.config, base, jax.devices()[:1])
    s = pieces.sampling(drawn)
    slots = jax.eval_shape(lambda prompts: decode._empty_slots(s.sampler, prompts), s.prompts)
    assert taken.cache == nbytes(slots.cache)
    assert taken.weights == 2 * nbytes(drawn.inputs.base)  # f32 on a CPU: the adapter merged
    key = jax.random.key(0)
    adapter = lora.init(program.model.config, program.config.train.lora, key)
    assert taken.trained == 6 * nbytes(adapter)
    assert taken.pool == pytest.approx(nbytes(drawn.state.pool), rel=0.05)


def test_as_many_slots_as_fit(program, monkeypatch):
    """Powers of two, in the memory there is, and on a CPU no more than make it faster."""
    wide = dataclasses.replace(program.config, slots=0, samples_per_iteration=1000)
    wide = dataclasses.replace(program, config=wide, training=train.Plan(rows=1, remat=False))
    found = memory.with_slots(wide).config.slots
    assert found == memory.ON_CPU
    for slots in (32, 8):
        taken = memory.use(memory._slotted(wide, slots)).total
        monkeypatch.setattr(memory, "of_a_device", lambda _, has=taken / 0.9 + 1: has)
        assert memory.with_slots(wide).config.slots == slots
    assert memory.with_slots(program) is program  # a number that was given stays
    few = dataclasses.replace(wide.config, samples_per_iteration=20)
    monkeypatch.undo()
    assert memory.with_slots(dataclasses.replace(wide, config=few)).config.slots == 16


def test_an_allocation_that_fails_is_told_with_what_takes_how_much(program):
    """One that fails in XLA: the parts, what there is, and values to try."""
    drawing = dataclasses.replace(program, training=train.Plan(rows=1, remat=False))
    with pytest.raises(memory.FullError) as e, memory.told(drawing):
        jax.jit(lambda: jnp.zeros(1 << 42, jnp.float32) + 1)().block_until_ready()
    said = str(e.value)
    assert said.startswith("memory is full (RESOURCE_EXHAUSTED: Out of memory allocating ")
    for part in ("weights 0.00", "adapter and optimiser", "KV cache", "activations", "pool"):
        assert part in said
    assert "Take --config.slots=4 (about 0.0" in said and "\n" not in said
    assert e.value.fewer == 4
    with pytest.raises(memory.FullError, match="Take --config.train.remat=blocks") as e:  # noqa: SIM117
        with memory.told(program):  # here fewer slots would change nothing
            raise MemoryError
    assert e.value.fewer is None
    with pytest.raises(memory.FullError, match="memory is full"), memory.told(program):
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.told(program):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_slots_left_to_us_are_tried_once_with_less(capfd):
    """The second failure ends the run, and so does the first where a number was given."""
    asked = []

    def fails(c):
        asked.append(c.slots)
        raise memory.FullError("memory is full", 32)

    with pytest.raises(memory.FullError):
        memory.with_less(fails, config.Config(slots=0))
    assert asked == [0, 32]
    assert "memory is full. Now once more with --config.slots=32" in capfd.readouterr().err
    with pytest.raises(memory.FullError):
        memory.with_less(fails, config.Config(slots=64))
    assert asked == [0, 32, 64]


def test_memory_is_that_of_the_container(monkeypatch):
    """A limit of the process counts before the machine's memory."""
    machine = memory.of_the_host()
    assert 1e8 < machine < 1e14
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 26, -1))
    assert memory.of_the_host() == 1 << 26
