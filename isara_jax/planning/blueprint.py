"""A run drawn for devices one need not have: its program, and the shapes and places of its arrays.

Nothing is read but a model's config and tokenizer, nothing is allocated, nothing runs.
"""

import dataclasses
import functools
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.evaluate import judges
from isara_jax.formats import pretrained, weights
from isara_jax.host import executables, lengths, memory, placement, setup
from isara_jax.method.program import Hyper, Inputs, Program, Sizes
from isara_jax.method.start import initial_state
from isara_jax.method.state import State
from isara_jax.models import decoder, lora, shapes
from isara_jax.models.network import DecoderConfig
from isara_jax.text import encoding, packing, stops, tokens


class Base(NamedTuple):
    """What is known of a model before its weights are: see `pretrained.Pretrained`.

    Attributes:
      network: its shapes.
      template: the template's tokens.
      vocabulary: the tokenizer, or a stand-in.
      typical_pair: tokens of an average seed as a demonstration, 0 if not known.
      judges: the networks that judge answers, which lie beside it.
    """

    network: DecoderConfig
    template: packing.Template
    vocabulary: tokens.Vocabulary
    typical_pair: int = 0
    judges: tuple[DecoderConfig, ...] = ()


class Blueprint(NamedTuple):
    """A program, and the arrays it is compiled for, as shapes with shardings.

    Attributes:
      program: everything static.
      inputs: what iterations read.
      state: what they carry.
      judges: bytes of the judges' weights on a device.
    """

    program: Program
    inputs: Inputs
    state: State
    judges: float

    @property
    def executables(self) -> executables.Executables:
        return executables.Executables(self.program, self.inputs)


def read(c: config.Config, data_dir: pathlib.Path) -> tuple[config.Config, Base]:
    """The model of a configuration, and the configuration with its lengths written out.

    Of a model's folder, lengths follow from tokenizer and seeds; of a published shape
    (`models.shapes`) they must be given.

    Raises:
      config.ConfigError: neither a model nor a shape, or lengths are missing.
    """
    network = shapes.NETWORKS.get(c.model.path)
    judging = tuple(reading.base.network for reading in judges.read(c.evaluation))
    if network is None:
        task, base = setup.load_task(c, data_dir), setup.read_base(c)
        template = packing.Template.of(base.vocabulary)
        encoded = lengths.encode(c, task, base.vocabulary, template, base.network.max_length)
        c = dataclasses.replace(
            encoded.config, task=dataclasses.replace(c.task, n_seeds=len(task.seeds))
        )
        return c, Base(base.network, template, base.vocabulary, encoded.typical_pair, judging)
    needed = ("question.max_tokens", "question.prompt_tokens", "answer.max_tokens",
              "answer.prompt_tokens", "task.n_seeds")  # fmt: skip
    missing = [name for name in needed if not config.field(c, name)]
    if missing:
        raise config.ConfigError(
            f"config.model.path={c.model.path!r} is a shape without a tokenizer, so lengths do not "
            f"follow from seeds; give config.{', config.'.join(missing)}"
        )
    return c, of_shape(network)._replace(judges=judging)


def of_shape(network: DecoderConfig) -> Base:
    """A network under a stand-in for its tokenizer, with a template as long as real ones."""
    template = packing.Template((1,), 2, (3, 4, 5), to_answer=3, to_question=5)
    return Base(
        network,
        template,
        types.SimpleNamespace(bytes=[b"x"] * network.vocab_size, ends=(2,), question_ends=(2,)),
    )


def draw(c: config.Config, base: Base, devices: Sequence[jax.Device], layers: int = 0) -> Blueprint:
    """The run on these devices.

    Args:
      c: the configuration, with lengths.
      base: the model.
      devices: all that are used.
      layers: blocks, if not all of them: what a layer takes is seen from two such drawings.

    Raises:
      config.ConfigError: the mesh does not divide the model.
    """
    itemsize = jnp.dtype(pretrained.choose_dtype(c.model.dtype, devices[0])).itemsize
    c = placement.with_mesh(c, placement.choose(c, base.network, itemsize, devices))
    calls_the_host = devices[0].platform != "gpu"
    if not calls_the_host:
        # JAX compiles such calls only for GPUs that are there. A search takes megabytes.
        c = dataclasses.replace(c, retrieval=dataclasses.replace(c.retrieval, backend="device"))
    mesh = mesh_lib.make(c.mesh_shape, devices)
    whole = pretrained.Pretrained(pathlib.Path(), base.network, None)
    program = Program(
        config=c,
        model=whole.build(c.model.dtype, mesh, c.kv_cache),
        vocabulary=base.vocabulary if calls_the_host else None,
        template=base.template,
        mesh=mesh,
        sizes=Sizes.of(
            c, base.template, c.task.n_seeds, base.typical_pair, base.network.max_length
        ),
    )
    a_weight = itemsize / (mesh.shape["fsdp"] * mesh.shape["model"])
    judging = a_weight * sum(map(placement.n_params, base.judges))
    program = memory.with_slots(program, judging)
    program = setup.plan_training(program, a_weight * placement.n_params(base.network) + judging)
    # So far the whole model decided, whatever is drawn of it.
    network = dataclasses.replace(base.network, n_layers=layers or base.network.n_layers)
    program = dataclasses.replace(program, model=program.model.clone(config=network))
    inputs = _inputs(program.config, program.model, base, mesh)
    return Blueprint(program, inputs, _state(program, inputs), judging)


def _inputs(c: config.Config, model: decoder.Decoder, base: Base, mesh: Mesh) -> Inputs:
    vocabulary, spelled, form = base.vocabulary, base.vocabulary.bytes, base.template.form
    asked, answered = stops.of_question(form), stops.of_answer(form)
    whole = mesh_lib.replicated(mesh)
    params = {
        path: placed(leaf, weights.sharding(model.config, path, leaf.shape, mesh))
        for path, leaf in weights.flatten(weights.abstract_params(model)).items()
    }
    fresh = functools.partial(lora.init, model.config, c.train.lora)
    adapter = jax.eval_shape(fresh, jax.eval_shape(lambda: jax.random.key(0)))
    others = Inputs(
        base=None,
        initial=adapter if c.train.init_adapter else None,
        question_stops=stops.stop_table(spelled, vocabulary.question_ends, asked),
        answer_stops=stops.stop_table(spelled, vocabulary.ends, answered),
        hyper=Hyper.of(c),
    )
    return placed(others, whole)._replace(base=weights.unflatten(params))


def _state(program: Program, inputs: Inputs) -> State:
    c, n = program.config, program.sizes.n_seeds
    seams = (program.template.to_answer, program.template.to_question)
    widths = (c.question.max_tokens, c.answer.max_tokens)
    nothing = [tokens.Spelling([], [])] * n
    seeds = packing.Pairs(
        *(
            encoding.as_text(nothing, encoding.Room(width, width + seam))
            for width, seam in zip(widths, seams, strict=True)
        )
    )
    begin = functools.partial(initial_state, program)
    state = jax.eval_shape(begin, inputs, placed(seeds, mesh_lib.replicated(program.mesh)))
    where = executables.Executables(program, inputs).placed(state)
    return jax.tree.map(placed, state, where)


def placed(tree: Any, where: NamedSharding) -> Any:
    """The shapes of arrays, with the place they are to have."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
