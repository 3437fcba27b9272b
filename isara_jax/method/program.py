"""What an iteration is compiled for, and what it reads: fixed for the whole run.

| | holds |
|---|---|
| `Program` | the plan: everything static, part of the compiled code |
| `Inputs` | arrays that are only read: weights, stop tables, numbers of the configuration |
| `state.State` | arrays that an iteration changes: adapter and pool |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax import config
from isara_jax.config import Config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.method import accept, train
from isara_jax.method.progress import Progress
from isara_jax.models import attention, decoder, lora
from isara_jax.sampler import decode, sampling, scheduling, spelling
from isara_jax.text import encoding, packing, stops, tokens


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large arrays are; it all follows from the configuration, the template and the seeds.

    Attributes:
      n_seeds: rows of the pool that are seeds.
      pool: its rows, for the seeds and every attempt there can be.
      pair: the most tokens of a rendered demonstration.
      sequence: tokens of a training sequence: BOS, headers, question, answer, EOS; rounded up.
      answer: the most tokens of an answer and of what ends it.
      typical_pair: tokens of a demonstration, for prompts that are to hold k of them.
      around: tokens of a prompt beside demonstrations and question.
      positions: of the model.
    """

    n_seeds: int
    pool: int
    pair: int
    sequence: int
    answer: int
    typical_pair: int
    around: int
    positions: int

    @classmethod
    def of(
        cls, c: Config, template: packing.Template, n_seeds: int, typical_pair: int, positions: int
    ) -> "Sizes":
        """Sizes under a configuration with its lengths."""
        q, a = c.question.max_tokens, c.answer.max_tokens
        headers = len(template.bos) + len(template.start) + template.to_answer
        return cls(
            n_seeds=n_seeds,
            pool=n_seeds + c.iterations * c.samples_per_iteration,
            pair=q + a + template.pair,
            sequence=encoding.round_up(q + headers + a + 1, attention.STREAM_BLOCKS),
            answer=a + 1,
            typical_pair=typical_pair,
            around=template.overhead(0),
            positions=positions,
        )

    def prompt(self, k: int, asked: int, generated: int, question: int) -> int:
        """Tokens of a prompt: as asked for, else k typical pairs, if the model has room.

        Args:
          k: demonstrations.
          asked: tokens, 0 for as many as are typical.
          generated: tokens that must have room behind it.
          question: tokens of the question it ends with, 0 for none.
        """
        tail, room = self.around + question, self.positions - generated
        return asked or min(k * self.typical_pair + tail, room)


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static.

    Attributes:
      config: with its lengths.
      model: the network.
      vocabulary: the tokenizer; None where programs cannot call the host.
      template: the fixed ids of prompts.
      mesh: the devices.
      sizes: of arrays; they follow from `config`.
      training: how a batch is trained in the memory there is.
      progress: told on the host of stages, or None.
    """

    config: Config
    model: decoder.Decoder
    vocabulary: tokens.Vocabulary | None
    template: packing.Template
    mesh: Mesh
    sizes: Sizes
    training: train.Plan = train.Plan(rows=1, remat=False)
    progress: Progress | None = None

    @property
    def trained(self) -> decoder.Decoder:
        """The network as it is trained."""
        return self.model.clone(remat=self.training.remat)

    @property
    def merged(self) -> bool:
        """Whether samplers hold the adapter in the weights."""
        return mesh_lib.on_cpu(self.mesh) and self.model.dtype == jnp.float32

    def variables(self, base: dict, trainable: lora.Trainable | None) -> dict:
        """The network's variables for sampling, with an adapter (None: without).

        On CPUs in f32 the weights take the adapter in: faster, but a second copy of them.
        Accelerators have less memory, and bf16, in which a small change is lost.
        """
        return lora.variables(base, trainable, self.config.train, merged=self.merged)

    @property
    def on_step(self) -> Callable[..., None] | None:
        """Who is told of the optimiser's steps."""
        return self.progress.trained if self.progress is not None else None

    def settled(
        self, place: tokens.Place, ended: tuple[stops.Stop, ...], drawn: decode.Generation
    ) -> spelling.Written:
        """What was drawn in the tokenizer's own spelling (`spelling.settled`)."""
        return spelling.settled(self.vocabulary, self.template, self.mesh, place, ended, drawn)

    def sampler(self, max_tokens: int, stage: str | None = None) -> decode.Sampler:
        """A sampler; `stage` is what the host counts its requests under, if it does."""
        c, counted = self.config, self.progress is not None and stage is not None
        return decode.Sampler(
            model=self.model,
            slots=c.slots,
            refill=scheduling.refill(c.slots, mesh_lib.batch_devices(self.mesh)),
            max_tokens=max_tokens,
            steps_per_check=scheduling.steps_per_check(self.mesh),
            mesh=self.mesh,
            on_refill=functools.partial(self.progress.drawn, stage) if counted else None,
        )


class Hyper(NamedTuple):
    """The traced part of the configuration.

    Attributes:
      seed: of all streams of random numbers (`keys`).
      only_seeds: demonstrations are seeds (`config.pool`).
      latest: what is trained on are the samples of this iteration, not those of all
        (`config.train.data`).
      question, answer: how each stage draws.
      filters: what a sample must pass.
      train: of the fine-tuning.
    """

    seed: jax.Array
    only_seeds: jax.Array
    latest: jax.Array
    question: sampling.SamplingParams
    answer: sampling.SamplingParams
    filters: accept.FilterParams
    train: train.TrainParams

    @classmethod
    def of(cls, c: Config) -> "Hyper":
        """Host scalars, to be placed by the caller."""
        return cls(
            np.uint32(c.seed),
            np.bool_(c.pool == "seeds"),
            np.bool_(c.train.data == "latest"),
            config.traced(sampling.SamplingParams, c.question.sampling),
            config.traced(sampling.SamplingParams, c.answer.sampling),
            config.traced(accept.FilterParams, c.filters),
            config.traced(train.TrainParams, c.train),
        )


def static(c: Config) -> Config:
    """What programs are compiled for: all but `Hyper`, and but what only says what data there are.

    Runs that are equal in it, and in the shapes of their arrays, can share executables.
    """
    return dataclasses.replace(
        c,
        seed=0,
        pool="seeds",
        task=config.Task(),
        question=dataclasses.replace(c.question, sampling=config.Sampling()),
        answer=dataclasses.replace(c.answer, sampling=config.Sampling()),
        filters=config.Filters(),
        train=dataclasses.replace(
            c.train, data="latest", learning_rate=0.0, warmup=0.0, epochs=1, on_divergence="skip"
        ),
        patience=0,
        evaluation=dataclasses.replace(c.evaluation, temperature=1.0, baselines=(), sft_steps=()),
    )


class Inputs(NamedTuple):
    """What an iteration reads and never changes.

    Attributes:
      base: the base model's weights.
      initial: the adapter that training starts from (`train.init_adapter`), or None.
      question_stops, answer_stops: what ends a question, an answer.
      hyper: the traced part of the configuration.
    """

    base: dict
    initial: lora.Trainable | None
    question_stops: stops.StopTable
    answer_stops: stops.StopTable
    hyper: Hyper
