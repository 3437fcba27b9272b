"""From a configuration to everything a run needs, with every mistake found before compiling."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax import config
from isara_jax.config import Config
from isara_jax.devices import hardware, processes
from isara_jax.devices import mesh as mesh_lib
from isara_jax.evaluate import choices, judges, prompts
from isara_jax.evaluate.choices import Choices
from isara_jax.evaluate.judges import Loaded, Reading
from isara_jax.evaluate.prompts import Prompts
from isara_jax.formats import adapters, pretrained, weights
from isara_jax.host import fingerprint, lengths, memory, placement
from isara_jax.method import retrieval, train
from isara_jax.method.program import Hyper, Inputs, Program, Sizes
from isara_jax.method.progress import Progress
from isara_jax.models import lora, shapes
from isara_jax.models.network import DecoderConfig
from isara_jax.tasks import domains
from isara_jax.tasks.base import Task
from isara_jax.text import packing, stops, tokens

BUNDLED_SEEDS = 32


class Measured(NamedTuple):
    """What a run's models are measured by, on the devices.

    Attributes:
      held_out: the held-out questions and references (`Setup.task.items`).
      judges: models that judge answers.
      choices: multiple-choice questions, or None.
      prompts: prompts without references, or None.
    """

    held_out: packing.Pairs
    judges: tuple[Loaded, ...]
    choices: Choices | None
    prompts: Prompts | None


class Setup(NamedTuple):
    """What a run works on: nothing of it changes.

    Attributes:
      task: the domain.
      base: the base model's folder, network and tokenizer.
      program: the plan, the static part of the computation.
      inputs: weights, initial adapter, stop tables and hyper-parameters, on the devices.
      seeds: the seeds, on the devices.
      pool: those that ISARA starts from: all, unless some choose its iteration (`config.keep`).
      validation: the last seeds, for choosing, or None.
      measured: what models are measured by.
    """

    task: Task
    base: pretrained.Pretrained
    program: Program
    inputs: Inputs
    seeds: packing.Pairs
    pool: packing.Pairs
    validation: packing.Pairs | None
    measured: Measured

    @property
    def config(self) -> Config:
        """With its lengths."""
        return self.program.config

    @property
    def n_params(self) -> int:
        """Of the base model."""
        return sum(x.size for x in jax.tree.leaves(self.inputs.base))

    @property
    def judge_bytes(self) -> int:
        """Of the judges' weights on a device."""
        return placement.placed_bytes([judge.params for judge in self.measured.judges])

    @property
    def n_pool(self) -> int:
        """How many seeds ISARA starts from."""
        return len(self.pool.question.bare.lengths)

    @property
    def n_validation(self) -> int:
        """How many seeds are kept for choosing."""
        return len(self.validation.question.bare.lengths) if self.validation else 0

    @property
    def data(self) -> fingerprint.Data:
        """What makes a run this one, besides its configuration."""
        asked, prompted = self.measured.choices, self.measured.prompts
        return {
            "seeds": self.task.seeds,
            "held-out items": self.task.items,
            "choices": asked.asked if asked else (),
            "prompts": prompted.items if prompted else (),
        }


def prepare(c: config.Config, data_dir: pathlib.Path, progress: Progress | None) -> Setup:
    """Reads and checks everything, weights last; nothing is compiled.

    Args:
      c: the configuration.
      data_dir: where TFDS keeps what it builds.
      progress: told of stages, or None.

    Raises:
      ValueError: the first thing that cannot work, by file and line or by field.
    """
    retrieval.check(c.retrieval.backend)
    _check_callbacks()
    task = load_task(c, data_dir)
    base = read_base(c)
    n_validation = _n_validation(c, len(task.seeds))
    c = _with_mesh(c, base.network)
    initial = _initial_adapter(c, base.network)
    template = packing.Template.of(base.vocabulary)
    encoded = lengths.encode(c, task, base.vocabulary, template, base.network.max_length)
    readings, asked, prompted = _read_evaluation(encoded.config, task, base, template)
    for reading in readings:
        placement.check(reading.base.network, c.mesh_shape, f"the judge {reading.name}")
    program = _program(encoded, len(task.seeds), base, template, progress)
    _check_prompts(program)
    split = program.mesh.shape["fsdp"] * program.mesh.shape["model"]
    beside = sum(placement.n_params(reading.base.network) for reading in readings) / split
    beside *= jnp.dtype(program.model.dtype).itemsize
    program = memory.with_slots(program, beside)
    with memory.told(program, beside):
        params = weights.load(base.path, program.model, program.mesh)
        judging = tuple(reading.load(c.model.dtype, program.mesh) for reading in readings)
    # What is left of the memory decides, now that all weights are there.
    program = plan_training(
        program, placement.placed_bytes((params, [judge.params for judge in judging]))
    )
    inputs = _inputs(encoded.config, base.vocabulary, params, initial)
    place = functools.partial(mesh_lib.place, mesh=program.mesh)
    measured = Measured(
        held_out=place(encoded.held_out),
        judges=judging,
        choices=asked and asked._replace(pairs=place(asked.pairs)),
        prompts=prompted and prompted._replace(pairs=place(prompted.pairs)),
    )
    others = np.arange(len(task.seeds) - n_validation)
    return Setup(
        task=task,
        base=base,
        program=program,
        inputs=place(inputs._replace(base=None))._replace(base=params),
        seeds=place(encoded.seeds),
        pool=place(encoded.seeds.take(others) if c.keep == "best" else encoded.seeds),
        validation=place(encoded.seeds.take(len(others) + np.arange(n_validation)))
        if n_validation
        else None,
        measured=measured,
    )


def _n_validation(c: config.Config, n_seeds: int) -> int:
    """How many seeds choose; there must be some where something is chosen by them."""
    found = domains.n_validation(n_seeds, c.task.validation)
    if c.keep == "best" and not found:
        raise config.ConfigError(
            f"config.keep='best' needs seeds to choose by, and config.task.validation="
            f"{c.task.validation} keeps none of {n_seeds}; say how many, such as "
            f"--config.task.validation={max(1, n_seeds // 4)}, or use --config.keep=last"
        )
    return found


def load_task(c: config.Config, data_dir: pathlib.Path) -> Task:
    """The domain, with as many items as are asked; there must be something to report."""
    n_seeds = c.task.n_seeds or (0 if c.task.seeds else BUNDLED_SEEDS)
    task = domains.load(
        c.task.name, c.task.seeds or None, n_seeds, c.task.topics, c.task.held_out, c.seed, data_dir
    )
    if c.task.test:
        task = domains.tested_on(task, c.task.test)
    answered = task.items or c.evaluation.prompts
    nothing = f"config.task.held_out={c.task.held_out}"
    if c.task.held_out < 0:
        nothing = f"{c.task.seeds} has too few pairs to hold one out ({len(task.seeds)})"
    if c.evaluation.judges and not answered:
        raise config.ConfigError(
            f"{nothing}: evaluation.judges have no answers to judge; hold out some questions, or "
            "give evaluation.prompts"
        )
    if not answered and not c.evaluation.choices:
        raise config.ConfigError(
            f"{nothing}: there is nothing to report; hold out some questions, or give "
            "evaluation.prompts or evaluation.choices"
        )
    return dataclasses.replace(task, items=task.items[: c.evaluation.n or None])


def read_base(c: config.Config) -> pretrained.Pretrained:
    """What is known of the base model before its weights are read."""
    if c.model.path in shapes.NETWORKS:
        raise config.ConfigError(
            f"config.model.path={c.model.path!r} is a shape to plan with (isara_jax.plan); to run, "
            "give the folder of its weights: --config.model.path=DIR"
        )
    if not pretrained.locate(c.model.path).is_dir():
        names = (*pretrained.BUNDLED, *shapes.NETWORKS)
        raise config.ConfigError(
            f"config.model.path={c.model.path!r}: neither a directory nor a bundled model "
            f"({', '.join(pretrained.BUNDLED)}){config.nearest(c.model.path, names)}"
        )
    base = pretrained.read_language_model(c.model.path, c.model.bos, c.model.template)
    if not c.question.show_answers and base.vocabulary.form.alone is None:
        raise config.ConfigError(
            "config.question.show_answers=False: the model's chat template has no place for "
            "questions without answers; show them, or use --config.model.template=plain"
        )
    if -c.retrieval.layer > base.network.n_layers:
        raise config.ConfigError(
            f"config.retrieval.layer={c.retrieval.layer}: the model has {base.network.n_layers} "
            "blocks"
        )
    return base


def _read_evaluation(
    c: config.Config, task: Task, base: pretrained.Pretrained, template: packing.Template
) -> tuple[tuple[Reading, ...], Choices | None, Prompts | None]:
    """Judges, without their weights, questions with choices, and prompts, on the host."""
    readings, asked, prompted = judges.read(c.evaluation), None, None
    limit = base.network.max_length
    if c.evaluation.choices:
        asked = choices.read(c.evaluation.choices, base.vocabulary, template, limit)
    if c.evaluation.prompts:
        seeds = {seed.question for seed in task.seeds}
        prompted = prompts.read(c, seeds, base.vocabulary, template, limit)
    for reading in readings:
        items = (*task.items, *(prompted.items if prompted else ()))
        reading.check([item.question for item in items])
    return readings, asked, prompted


def _program(
    encoded: lengths.Encoded, n_seeds: int, base: pretrained.Pretrained,
    template: packing.Template, progress: Progress | None,
) -> Program:  # fmt: skip
    c = encoded.config
    mesh = mesh_lib.make(c.mesh_shape)
    return Program(
        config=c,
        model=base.build(c.model.dtype, mesh, c.kv_cache),
        vocabulary=base.vocabulary,
        template=template,
        mesh=mesh,
        sizes=Sizes.of(c, template, n_seeds, encoded.typical_pair, base.network.max_length),
        progress=progress,
    )


def _with_mesh(c: config.Config, network: DecoderConfig) -> config.Config:
    """The configuration with the mesh that suits the model and the devices there are."""
    devices = jax.devices()
    itemsize = jnp.dtype(pretrained.choose_dtype(c.model.dtype, devices[0])).itemsize
    shape = placement.choose(c, network, itemsize, devices)
    return placement.with_mesh(c, tuple(int(processes.of_the_first(size)) for size in shape))


def plan_training(p: Program, held: float) -> Program:
    """The program, with its training suited to the memory there is.

    Args:
      p: the program.
      held: bytes on each device before training, where the device cannot tell.
    """
    free = processes.of_the_first(hardware.free_memory(p.mesh.devices.flat[0], held))
    if p.config.train.trainable == "full":
        free -= placement.training_bytes(p.model.config, p.mesh)
    plan = train.plan(p.model, p.config.train, p.sizes.sequence, p.mesh, free)
    return dataclasses.replace(p, training=plan)


def _inputs(
    c: config.Config, vocabulary: tokens.Vocabulary, params: dict, initial: lora.Trainable | None
) -> Inputs:
    """What iterations read; all but the weights is still on the host."""
    spelled, form = vocabulary.bytes, vocabulary.form
    asked, answered = stops.of_question(form), stops.of_answer(form)
    return Inputs(
        base=params,
        initial=initial,
        question_stops=stops.stop_table(spelled, vocabulary.question_ends, asked),
        answer_stops=stops.stop_table(spelled, vocabulary.ends, answered),
        hyper=Hyper.of(c),
    )


def _initial_adapter(c: config.Config, network: DecoderConfig) -> lora.Trainable | None:
    """The adapter that training starts from, on the host."""
    if not lora.target_shapes(network, c.train.lora):
        raise config.ConfigError(
            f"config.train.lora.targets={c.train.lora.targets}: the model has none of these layers"
        )
    if not c.train.init_adapter:
        return None
    adapter, found = adapters.load(adapters.locate(c.train.init_adapter), network)
    for field in dataclasses.fields(found):
        theirs, ours = getattr(found, field.name), getattr(c.train.lora, field.name)
        if field.name == "targets":  # those the model does not have make no difference
            known = {path.split("/")[-1] for path in network.linear_shapes}
            theirs, ours = set(theirs), set(ours) & known
        if theirs != ours:
            raise config.ConfigError(
                f"config.train.lora.{field.name}={ours}, but {c.train.init_adapter} has {theirs}; "
                "set the one to the other"
            )
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(adapter)):
        raise config.ConfigError(
            f"config.train.init_adapter={c.train.init_adapter!r} has numbers that are not finite; "
            "take an adapter of before its training diverged"
        )
    return adapter


def inputs_sharding(inputs: Inputs, params: dict, whole: jax.sharding.Sharding) -> Inputs:
    """The weights where they are, everything else on every device."""
    placed = jax.tree.map(lambda _: whole, inputs._replace(base=None))
    return placed._replace(base=jax.tree.map(lambda x: x.sharding, params))


def _check_callbacks() -> None:
    """Raises `config.ConfigError` where no CPU device is there for the host's callbacks."""
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise config.ConfigError(
            f"JAX_PLATFORMS leaves out cpu, which host callbacks need ({error}); add it: "
            "JAX_PLATFORMS=cuda,cpu"
        ) from error


def _check_prompts(p: Program) -> None:
    """Raises `config.ConfigError` where a prompt is too long for the model, or for itself."""
    c, limit = p.config, p.model.config.max_length
    stages = (("question", c.question, 0), ("answer", c.answer, c.question.max_tokens))
    for name, stage, question in stages:
        prompt = p.sizes.prompt(stage.k, stage.prompt_tokens, stage.max_tokens, question)
        tail = p.sizes.around + question
        if prompt + stage.max_tokens > limit or prompt < tail:
            raise config.ConfigError(
                f"config.{name}: a prompt of {prompt} tokens and {stage.max_tokens} new ones do "
                f"not fit the model's {limit} positions (a prompt takes at least {tail}); lower "
                f"config.{name}.prompt_tokens or config.{name}.max_tokens"
            )
