"""What a run takes of a device's memory, how many slots fit, and what is said when it is full.

All of it follows from shapes: nothing is compiled. `planning.estimate` compiles, and knows better:
of LLaMA-7B on v5e:4x4 and v6e:2x4 13.3 and 26.1 GB, which here are 13.1 and 25.7.
"""

import contextlib
import dataclasses
import gc
import math
import pathlib
import resource
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from isara_jax import config
from isara_jax.devices import hardware, processes
from isara_jax.devices import mesh as mesh_lib
from isara_jax.host import placement
from isara_jax.method import train
from isara_jax.method.program import Program
from isara_jax.models import lora
from isara_jax.sampler import scheduling
from isara_jax.shell import endings

_Result = TypeVar("_Result")
ON_CPU = 64  # slots beyond which decoding on a CPU gets no faster (benchmarks/README.md)
_FITS = 0.9  # of a device's memory
GB = 1e9


class Use(NamedTuple):
    """Bytes on a device.

    Attributes:
      weights: of the base model, of judges, and where samplers hold the adapter in them, again.
      trained: what is trained, as it was before, Adam's moments and gradients.
      cache: keys and values of all slots.
      prefill: what is computed where prompts are read and tokens drawn.
      activations: what training keeps for the gradient.
      scoring: what is computed where held-out answers are read, as many at once as there are slots.
      pool: its rows.
    """

    weights: float
    trained: float
    cache: float
    prefill: float
    activations: float
    scoring: float
    pool: float

    @property
    def total(self) -> float:
        """The most at one time: drawing, training and scoring follow each other."""
        stage = max(self.cache + self.prefill, self.activations, self.scoring)
        return self.weights + self.trained + self.pool + stage

    def __str__(self) -> str:
        names = {
            "weights": self.weights,
            "adapter and optimiser": self.trained,
            "KV cache": self.cache,
            "prefill": self.prefill,
            "training activations": self.activations,
            "scoring": self.scoring,
            "pool": self.pool,
        }
        return ", ".join(f"{name} {size / GB:.2f}" for name, size in names.items())


def use(p: Program, judges: float = 0.0) -> Use:
    """What a run takes on each device, `judges` bytes of judges' weights among it."""
    c, network, sizes = p.config, p.model.config, p.sizes
    batch, model = mesh_lib.batch_devices(p.mesh), p.mesh.shape["model"]
    item = jnp.dtype(p.model.dtype).itemsize
    parameters = placement.n_params(network) / (p.mesh.shape["fsdp"] * model)
    trained = parameters
    if c.train.trainable == "lora":
        key = jax.eval_shape(lambda: jax.random.key(0))
        adapter = jax.eval_shape(lambda key: lora.init(network, c.train.lora, key), key)
        trained = sum(x.size for x in jax.tree.leaves(adapter))
    prompt, drawn = longest(p)
    slots, samples = math.ceil(c.slots / batch), c.samples_per_iteration
    wide = 10 * network.width + 5 * network.hidden / model  # of a block, a token
    read = max(1, scheduling.refill(c.slots, batch) // batch) * prompt
    alive = 4 * network.width + 3 * network.hidden / model  # of them, where none is kept
    fresh = read * cache_bytes(p, 1) / slots  # of all tokens, before windows are cut
    logits = 3 * 4 * slots * network.vocab_size
    row = 2 * (c.question.max_tokens + c.answer.max_tokens + p.template.pair) + network.width
    tokens = p.training.rows / batch * sizes.sequence
    kept = train.kept_bytes(p.model, p.mesh, remat=p.training.remat)
    return Use(
        weights=parameters * item * (2 if p.merged else 1) + judges,
        trained=placement.TRAINED_BYTES * trained,
        cache=cache_bytes(p, prompt + drawn),
        prefill=read * wide * item + fresh + logits,
        activations=tokens * kept + min(train.LOGITS_BYTES, 4 * tokens * network.vocab_size) * 2,
        scoring=math.ceil(min(c.slots, samples) / batch) * (prompt + drawn) * alive * item,
        pool=4.0 * sizes.pool * row,
    )


def longest(p: Program) -> tuple[int, int]:
    """Tokens of a prompt and of what is drawn behind it, of the stage that has more of them."""
    q, a = p.config.question, p.config.answer
    asked = p.sizes.prompt(q.k, q.prompt_tokens, q.max_tokens, question=0)
    answered = p.sizes.prompt(a.k, a.prompt_tokens, a.max_tokens, question=q.max_tokens)
    return max((asked, q.max_tokens), (answered, a.max_tokens), key=sum)


def cache_bytes(p: Program, length: int) -> float:
    """Of the keys and values of all slots, `length` tokens each, on one device."""
    c, model = p.model.config, p.mesh.shape["model"]
    entry = c.head_size + 4 if p.model.how.int8 else c.head_size * jnp.dtype(p.model.dtype).itemsize
    heads = model if c.n_kv_heads % model == 0 else 1  # else others hold copies
    rows = sum(c.rows(layer, length) for layer in range(c.n_layers))
    each = 2 * c.n_kv_heads * entry
    return each * rows * p.config.slots / (mesh_lib.batch_devices(p.mesh) * heads)


def of_a_device(p: Program) -> float:
    """Bytes that each device has; CPU devices share what the machine, or the container, allows."""
    device = p.mesh.devices.flat[0]
    found = hardware.memory(device)
    if math.isinf(found) and device.platform == "cpu":
        found = of_the_host() / max(1, len(jax.local_devices()))
    return float(processes.of_the_first(found))


def of_the_host() -> float:
    """Bytes that this process may take: the machine's, its container's, or its own limit."""
    limits = [float(resource.getrlimit(resource.RLIMIT_AS)[0])]  # -1: none
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(float(pathlib.Path(path).read_text()))
    with contextlib.suppress(OSError, IndexError, ValueError):
        meminfo = pathlib.Path("/proc/meminfo").read_text()
        limits.append(1024.0 * int(meminfo.split("MemTotal:")[1].split()[0]))
    return min((limit for limit in limits if limit > 0), default=math.inf)


def with_slots(p: Program, judges: float = 0.0) -> Program:
    """The program with the slots that fit, where `config.slots` is 0; a power of two a device.

    On an accelerator as many as there are samples, at most: each step reads all weights, for
    however many sequences. What is drawn does not depend on it.
    """
    if p.config.slots:
        return p
    rows, room = mesh_lib.batch_devices(p.mesh), _FITS * of_a_device(p)
    most = min(ON_CPU, p.config.samples_per_iteration)
    if not mesh_lib.on_cpu(p.mesh):
        most = p.config.samples_per_iteration
    slots = rows
    while slots * 2 <= max(most, rows) and use(_slotted(p, slots * 2), judges).total <= room:
        slots *= 2
    return _slotted(p, slots)


def _slotted(p: Program, slots: int) -> Program:
    return dataclasses.replace(p, config=dataclasses.replace(p.config, slots=slots))


# --- when it is full -----------------------------------------------------------------------------


class FullError(config.UserError):
    """Memory is full; `fewer` slots would take less, None where there are none."""

    def __init__(self, said: str, fewer: int | None) -> None:
        super().__init__(said)
        self.fewer = fewer


@contextlib.contextmanager
def told(p: Program, judges: float = 0.0) -> Iterator[None]:
    """Makes a `FullError` of an allocation that fails in the block, compiling or running."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        said = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in said:
            raise
        raise _full(p, judges, said or "MemoryError") from error


def with_less(run: Callable[[config.Config], _Result], c: config.Config) -> _Result:
    """`run(c)`; where the slots were left to us and memory is full all the same, once with fewer.

    Of several processes each would have to know that the others failed: there the run ends.
    """
    try:
        return run(c)
    except FullError as full:
        if c.slots or full.fewer is None or jax.process_count() > 1:
            raise
        said, fewer = str(full), full.fewer
    gc.collect()  # the error is gone, and with it what its frames held
    endings.say(f"{said}. Now once more with {config.flag('slots', fewer)}")
    return run(dataclasses.replace(c, slots=fewer))


def _full(p: Program, judges: float, said: str) -> FullError:
    taken, has = use(p, judges), of_a_device(p)
    rows = mesh_lib.batch_devices(p.mesh)
    fewer = min(p.config.slots // 2, p.config.samples_per_iteration) // rows * rows
    cures = []
    while fewer // 2 >= rows and use(_slotted(p, fewer), judges).total > _FITS * has:
        fewer //= 2
    less = use(_slotted(p, fewer), judges).total if fewer else taken.total
    if less < taken.total:
        flag = config.flag("slots", fewer)
        cures.append(f"{flag} (about {less / GB:.2f} GB; this command then continues)")
    cures += [config.flag(name, value) for name, value in _others(p, taken)]
    return FullError(
        f"memory is full ({said[:120]}): a device has {has / GB:.2f} GB, this run takes about "
        f"{taken.total / GB:.2f}: {taken}. Take {', or '.join(cures)}",
        fewer if less < taken.total else None,
    )


def _others(p: Program, taken: Use) -> Iterator[tuple[str, str | int]]:
    """Fields beside the slots that take less, with values, for another folder."""
    c = p.config
    if taken.activations > taken.cache + taken.prefill and not p.training.remat:
        yield "train.remat", "blocks"
    elif c.kv_cache == "auto" and jnp.dtype(p.model.dtype).itemsize == 2:
        yield "kv_cache", "int8"
    if c.train.trainable == "full":
        yield "train.trainable", "lora"
    else:
        prompt, drawn = longest(p)
        yield "answer.prompt_tokens", max(prompt // 2, p.sizes.around + c.question.max_tokens)
