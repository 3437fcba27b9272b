"""One ISARA iteration (arXiv 2401.06785) as one pure function.

    draw demonstrations → write questions → retrieve → answer → accept → pool → fine-tune

*Fused*: the whole is one executable. *Staged*: the same stage functions, compiled apart.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isara_jax.method import accept, keys, prompting, start, train
from isara_jax.method.program import Inputs, Program
from isara_jax.method.state import Pool, Report, State
from isara_jax.models import lora
from isara_jax.sampler import decode, spelling
from isara_jax.text import packing, stops


def write_questions(p: Program, inputs: Inputs, state: State) -> tuple[spelling.Written, jax.Array]:
    """Stage 1: new questions from demonstrations alone; and the prompts' tokens."""
    prompts = prompting.question_prompts(p, inputs, state)
    generation = decode.generate(
        p.sampler(p.config.question.max_tokens, "questions"),
        p.variables(inputs.base, state.trainable), prompts,
        keys.questions(inputs.hyper.seed, state.step), inputs.hyper.question, inputs.question_stops,
    )  # fmt: skip
    form = p.template.form
    written = p.settled(form.question, stops.of_question(form), generation)
    return written, jnp.sum(prompts.lengths)


class Answered(NamedTuple):
    """Answers `[N]`, the questions' embeddings `[N, D]`, the demonstrations shown `[N, k]`."""

    answer: spelling.Written
    embedding: jax.Array
    demonstrations: jax.Array
    prompt_tokens: jax.Array


def answer_questions(
    p: Program, inputs: Inputs, state: State, question: spelling.Written
) -> Answered:
    """Stage 2: embed the questions, retrieve the demonstrations, answer."""
    c = p.config.answer
    part, longest = question.text.joined, p.config.question.max_tokens
    capacity = p.sizes.prompt(c.k, c.prompt_tokens, c.max_tokens, longest)
    chosen, embedding = prompting.answer_demonstrations(p, inputs, state, part)
    prompts, shown = prompting.answer_prompts(p, state.pool, part, chosen, capacity)
    adapted = inputs.initial if c.model == "base" else state.trainable
    drawn = decode.generate(
        p.sampler(c.max_tokens, "answers"),
        p.variables(inputs.base, adapted),
        prompts,
        keys.answers(inputs.hyper.seed, state.step),
        inputs.hyper.answer,
        inputs.answer_stops,
    )
    form = p.template.form
    answer = p.settled(form.answer, stops.of_answer(form), drawn)
    return Answered(answer, embedding, shown, jnp.sum(prompts.lengths))


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
    generated = jnp.where(inputs.hyper.latest, pool.origin == step + 1, pool.origin > 0)
    seeds = (pool.origin == 0) & c.include_seeds
    ids, lengths, begin = packing.training_sequences(p.template, pool.pairs, p.sizes.sequence)
    sequences = train.Sequences(ids, lengths, begin, pool.occupied & (generated | seeds))
    if c.init == "base":
        trainable = start.fresh_trainable(p, inputs)
    return train.fit(
        p.trained, inputs.base, trainable, sequences, c, inputs.hyper.train,
        train.steps_for(sequences, c, inputs.hyper.train),
        keys.shuffle(inputs.hyper.seed, step), p.sizes.answer, p.training.rows, p.mesh,
        p.on_step,
    )  # fmt: skip


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
        trouble=fitted.trouble,
    )
    return State(fitted.trainable, pool, step + 1), report


def _ended(p: Program, stage: str, amount: jax.Array) -> None:
    """Tells the host that a stage has ended, once `amount`, a result of it, is there.

    The callbacks are not ordered (several devices know no ordered effects): `Progress` puts those
    of neighbouring stages in order.
    """
    if p.progress is None:
        return
    if isinstance(amount, jax.core.Tracer):
        jax.debug.callback(functools.partial(p.progress.ended, stage), amount)
    else:  # staged: of many processes, what is not traced can only be fetched
        p.progress.ended(stage, jax.device_get(amount))
