"""One ISARA iteration (arXiv 2401.06785) as one pure function.

    draw demonstrations → write questions → retrieve → answer → accept → pool → fine-tune

*Fused*: the whole is one executable. *Staged*: the same stage functions, compiled apart.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax.config import Config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.method import accept, embed, keys, retrieval, train
from isara_jax.method.progress import Progress
from isara_jax.method.state import Pool, Report, State
from isara_jax.models import attention, decoder, lora
from isara_jax.sampler import decode, sampling, scheduling, spelling
from isara_jax.text import encoding, packing, stops, tokens


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static: configuration, network, tokenizer, template, devices and shapes."""

    config: Config
    model: decoder.Decoder
    vocabulary: tokens.Vocabulary | None
    template: packing.Template
    mesh: Mesh
    n_seeds: int
    typical_pair: int
    steps_per_check: int
    training: train.Plan = train.Plan(rows=1, remat=False)
    progress: Progress | None = None

    @property
    def trained(self) -> decoder.Decoder:
        """The network as it is trained."""
        return self.model.clone(remat=self.training.remat)

    @property
    def merged(self) -> bool:
        """Whether samplers hold the adapter in the weights: faster, but a second copy of them.

        On CPUs in f32; accelerators have less memory, and bf16, in which a small change is lost.
        """
        return mesh_lib.on_cpu(self.mesh) and self.model.dtype == jnp.float32

    @property
    def capacity(self) -> int:
        """Rows of the pool: the seeds and every attempt there can be."""
        return self.n_seeds + self.config.iterations * self.config.samples_per_iteration

    @property
    def pair_tokens(self) -> int:
        """The most tokens of a rendered demonstration."""
        q, a = self.config.question.max_tokens, self.config.answer.max_tokens
        return q + a + self.template.pair

    @property
    def train_tokens(self) -> int:
        """Tokens of a training sequence: BOS, headers, question, answer, EOS; rounded up."""
        q, a = self.config.question.max_tokens, self.config.answer.max_tokens
        template = self.template
        around = len(template.bos) + len(template.start) + template.to_answer + 1
        return encoding.round_up(q + around + a, attention.STREAM_BLOCKS)

    @property
    def answer_span(self) -> int:
        return self.config.answer.max_tokens + 1

    def prompt_capacity(self, k: int, asked: int, generated: int, question: int) -> int:
        """Tokens of a prompt: as asked for, else k typical pairs, if the model has room.

        Args:
          k: demonstrations.
          asked: tokens, 0 for as many as are typical.
          generated: tokens that must have room behind it.
          question: tokens of the question it ends with, 0 for none.
        """
        tail = self.template.overhead(0) + question
        room = self.model.config.max_length - generated
        return asked or min(k * self.typical_pair + tail, room)

    def sampler(self, max_tokens: int, stage: str | None = None) -> decode.Sampler:
        """A sampler; `stage` is what the host counts its requests under, if it does."""
        c, counted = self.config, self.progress is not None and stage is not None
        return decode.Sampler(
            model=self.model,
            slots=c.slots,
            refill=scheduling.refill(c.slots, mesh_lib.batch_devices(self.mesh)),
            max_tokens=max_tokens,
            steps_per_check=self.steps_per_check,
            mesh=self.mesh,
            on_refill=functools.partial(self.progress.begun, stage) if counted else None,
        )


class Hyper(NamedTuple):
    """The traced part of the configuration."""

    seed: jax.Array
    question: sampling.SamplingParams
    answer: sampling.SamplingParams
    filters: accept.FilterParams
    train: train.TrainParams

    @classmethod
    def of(cls, config: Config) -> "Hyper":
        """Host scalars, to be placed by the caller."""
        return cls(
            np.uint32(config.seed),
            mesh_lib.scalars(sampling.SamplingParams, config.question.sampling),
            mesh_lib.scalars(sampling.SamplingParams, config.answer.sampling),
            mesh_lib.scalars(accept.FilterParams, config.filters),
            mesh_lib.scalars(train.TrainParams, config.train),
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


def distinct_rows(key: jax.Array, n: jax.Array, k: int) -> jax.Array:
    """K distinct rows below n, uniformly and in random order; -1 where n is smaller than k.

    Draws the j-th among the n - j rows left and moves it past those taken: no work a row.
    """
    taken = jnp.full(k, jnp.iinfo(jnp.int32).max, jnp.int32)
    rows = []
    for j, u in enumerate(jax.random.uniform(key, (k,))):
        row = jnp.minimum((u * (n - j)).astype(jnp.int32), n - j - 1)
        for i in range(j):
            row += row >= taken[i]
        taken = jnp.sort(taken.at[j].set(row))
        rows.append(jnp.where(j < n, row, -1))
    return jnp.stack(rows)


def _shown(p: Program, pool: Pool) -> jax.Array:
    """How many rows of the pool may be shown; seeds stand first."""
    return jnp.int32(p.n_seeds) if p.config.pool == "seeds" else pool.count


def demonstrations(p: Program, pairs: packing.Pairs) -> packing.Part:
    r"""Each pair as ` q\nAnswer: a\n\nQuestion:`, the first header left to the prompt: `[C, D]`."""
    return packing.concatenate([pairs.question.joined, pairs.answer.joined], p.pair_tokens)


def questions_alone(p: Program, pairs: packing.Pairs) -> packing.Part:
    r"""Each question as ` q\n\nQuestion:`."""
    bare = pairs.question.bare
    unfinished = jnp.full_like(bare.lengths, stops.UNFINISHED)
    as_drawn = decode.Generation(*bare, unfinished, score=None, drawn=None)
    return _settled(p, tokens.ALONE, (), as_drawn).text.joined


def question_prompts(p: Program, inputs: Inputs, state: State) -> packing.Prompts:
    """Prompts of demonstrations alone, drawn anew for every question."""
    c, pool = p.config.question, state.pool
    key = keys.demonstrations(inputs.hyper.seed, state.step)
    requests = jnp.arange(p.config.samples_per_iteration)
    demo_keys = sampling.row_keys(key, requests, jnp.zeros_like(requests))
    available = _shown(p, pool)
    n_drawn = c.k if c.demonstrations == "random" else 1
    chosen = jax.vmap(lambda k: distinct_rows(k, available, n_drawn))(demo_keys)
    if c.demonstrations == "knn":
        anchors = pool.embedding[chosen[:, 0]]
        chosen = retrieval.nearest(
            p.config.retrieval.backend, p.mesh, pool.embedding, available, anchors, c.k
        )[:, ::-1]
    demos = demonstrations(p, pool.pairs) if c.show_answers else questions_alone(p, pool.pairs)
    capacity = p.prompt_capacity(c.k, c.prompt_tokens, c.max_tokens, question=0)
    return packing.prompts(p.template, demos, chosen, capacity)


def _settled(
    p: Program, place: tokens.Place, ended: tuple[stops.Stop, ...], drawn: decode.Generation
) -> spelling.Written:
    return spelling.settled(p.vocabulary, p.template, p.mesh, place, ended, drawn)


def write_questions(p: Program, inputs: Inputs, state: State) -> tuple[spelling.Written, jax.Array]:
    """Stage 1: new questions from demonstrations alone; and the prompts' tokens."""
    prompts = question_prompts(p, inputs, state)
    generation = decode.generate(
        p.sampler(p.config.question.max_tokens, "questions"),
        lora.variables(inputs.base, state.trainable, p.config.train, merged=p.merged), prompts,
        keys.questions(inputs.hyper.seed, state.step), inputs.hyper.question, inputs.question_stops,
    )  # fmt: skip
    written = _settled(p, tokens.IN_QUESTION, stops.QUESTION_STOPS, generation)
    return written, jnp.sum(prompts.lengths)


class Answered(NamedTuple):
    """Answers `[N]`, the questions' embeddings `[N, D]`, the demonstrations shown `[N, k]`."""

    answer: spelling.Written
    embedding: jax.Array
    demonstrations: jax.Array
    prompt_tokens: jax.Array


def embed_questions(p: Program, base: dict, question: packing.Part) -> jax.Array:
    """Embeddings `[N, D]` of questions, up to the answer's header, by the base model."""
    return embed.questions(
        p.model, base, p.template, question,
        layer=p.config.retrieval.layer, rows_at_once=p.config.slots, mesh=p.mesh,
    )  # fmt: skip


def answer_prompts(
    p: Program, base: dict, pool: Pool, question: packing.Part, k: int, capacity: int
) -> tuple[packing.Prompts, jax.Array, jax.Array]:
    """Prompts from the k nearest demonstrations; with the embeddings and the rows shown."""
    embedding = embed.centre(embed_questions(p, base, question), pool.mean)
    chosen = retrieval.nearest(
        p.config.retrieval.backend, p.mesh, pool.embedding, _shown(p, pool), embedding, k
    )
    demos = demonstrations(p, pool.pairs)
    # Nearest last, so that what does not fit is dropped farthest first, in either order.
    chosen = packing.that_fit(p.template, demos, chosen[:, ::-1], capacity, question)
    if p.config.answer.order == "nearest_first":
        chosen = chosen[:, ::-1]
    return packing.prompts(p.template, demos, chosen, capacity, question), embedding, chosen


def answer_questions(
    p: Program, inputs: Inputs, state: State, question: spelling.Written
) -> Answered:
    """Stage 2: embed the questions, retrieve the nearest demonstrations, answer."""
    c = p.config.answer
    part, longest = question.text.joined, p.config.question.max_tokens
    capacity = p.prompt_capacity(c.k, c.prompt_tokens, c.max_tokens, longest)
    prompts, embedding, chosen = answer_prompts(p, inputs.base, state.pool, part, c.k, capacity)
    adapted = inputs.initial if c.model == "base" else state.trainable
    drawn = decode.generate(
        p.sampler(c.max_tokens, "answers"),
        lora.variables(inputs.base, adapted, p.config.train, merged=p.merged),
        prompts,
        keys.answers(inputs.hyper.seed, state.step),
        inputs.hyper.answer,
        inputs.answer_stops,
    )
    answer = _settled(p, tokens.IN_ANSWER, stops.ANSWER_STOPS, drawn)
    return Answered(answer, embedding, chosen, jnp.sum(prompts.lengths))


def accept_samples(
    p: Program, inputs: Inputs, pool: Pool, step: jax.Array, question: spelling.Written,
    answered: Answered,
) -> tuple[Pool, jax.Array]:  # fmt: skip
    """Stage 3: keep what is finished, long enough and new; returns the pool and the reasons."""
    pairs, asked = packing.Pairs(question.text, answered.answer.text), question.text.bare
    known = accept.similarity_to_pool(
        asked, answered.embedding, pool.pairs.question.bare, pool.embedding, pool.count
    )
    earlier = accept.similarity_within_batch(asked, answered.embedding)
    reason = accept.decide(question, answered.answer, known, earlier, inputs.hyper.filters)
    return pool.append(pairs, answered.embedding, reason == 0, step + 1), reason


def fine_tune(
    p: Program, inputs: Inputs, trainable: lora.Trainable, pool: Pool, step: jax.Array
) -> train.Fit:
    """Stage 4: epochs over what was accepted, from the last adapter or from a fresh one."""
    c = p.config.train
    generated = pool.origin == step + 1 if c.data == "latest" else pool.origin > 0
    seeds = (pool.origin == 0) & c.include_seeds
    ids, lengths, begin = packing.training_sequences(p.template, pool.pairs, p.train_tokens)
    sequences = train.Sequences(ids, lengths, begin, pool.occupied & (generated | seeds))
    if c.init == "base":
        trainable = fresh_trainable(p, inputs)
    return train.fit(
        p.trained, inputs.base, trainable, sequences, c, inputs.hyper.train,
        train.steps_for(sequences, c, inputs.hyper.train),
        keys.shuffle(inputs.hyper.seed, step), p.answer_span, p.training.rows, p.mesh,
    )  # fmt: skip


def fresh_trainable(p: Program, inputs: Inputs) -> lora.Trainable:
    """Where training starts: a copy of the weights, a given adapter, or one without effect."""
    if p.config.train.trainable == "full":
        return jax.tree.map(lambda x: x.astype(jnp.float32), inputs.base)
    if inputs.initial is not None:
        return inputs.initial
    return lora.init(p.model.config, p.config.train.lora, keys.adapter(inputs.hyper.seed))


Stage = Callable[..., Any]


def isara_step(
    p: Program,
    inputs: Inputs,
    state: State,
    run: Callable[[str, Stage], Stage] = lambda _, stage: stage,
) -> tuple[State, Report]:
    """One iteration.

    Args:
      p: the static part.
      inputs: weights, stop tables, hyper-parameters.
      state: of the iteration before.
      run: how a stage is called; the identity where the whole is compiled at once, the stage's own
        executable in staged execution.

    Returns:
      The new state, and what to tell the host.
    """
    question, question_prompts = run("questions", write_questions)(p, inputs, state)
    _ended(p, "questions", question.drawn.drawn)
    answered = run("answers", answer_questions)(p, inputs, state, question)
    _ended(p, "answers", answered.answer.drawn.drawn)
    pool, reason = run("accept", accept_samples)(
        p, inputs, state.pool, state.step, question, answered
    )
    _ended(p, "accept", pool.count)
    fitted = run("train", fine_tune)(p, inputs, state.trainable, pool, state.step)
    _ended(p, "train", fitted.tokens)
    return run("report", _conclude)(
        p, state.step, fitted, pool, question, answered, reason, question_prompts
    )


def _conclude(
    p: Program, step: jax.Array, fitted: train.Fit, pool: Pool, question: spelling.Written,
    answered: Answered, reason: jax.Array, question_prompts: jax.Array,
) -> tuple[State, Report]:  # fmt: skip
    del p
    report = Report(
        question=question.drawn,
        answer=answered.answer.drawn,
        demonstrations=answered.demonstrations,
        reason=reason,
        prompt_tokens=question_prompts + answered.prompt_tokens,
        train_steps=fitted.steps,
        train_first_loss=fitted.first_loss,
        train_last_loss=fitted.last_loss,
        train_tokens=fitted.tokens,
    )
    return State(fitted.trainable, pool, step + 1), report


def _ended(p: Program, stage: str, amount: jax.Array) -> None:
    """Tells the host that a stage has ended, once `amount`, a result of it, is there.

    The callbacks are not ordered (several devices know no ordered effects): `Progress` puts those
    of neighbouring stages in order.
    """
    if p.progress is not None:
        jax.debug.callback(functools.partial(p.progress.ended, stage), amount)
