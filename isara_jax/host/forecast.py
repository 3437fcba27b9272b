"""What a run is about to do, and roughly how long that takes."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax.evaluate import choices, judges
from isara_jax.files import remote
from isara_jax.formats import pretrained
from isara_jax.host import memory
from isara_jax.host.setup import Setup
from isara_jax.tasks import domains
from isara_jax.text import packing, special_tokens, tokens

# Seen on 2 cores, with the bundled model and with SmolLM2-135M: seconds of compilation, in all and
# for each block, and the speed of reading, drawing and training as a share of a matrix product's.
_COMPILE_SECONDS, _COMPILE_SECONDS_A_BLOCK = 8, 5
_READ, _DRAW, _TRAIN = 0.6, 0.3, 0.4
_ACCEPTED = 0.6  # of the samples


def describe(s: Setup, workdir: remote.Workdir, done: int | None) -> str:
    """The lines shown before a run starts; `done` iterations were found in `workdir`."""
    c, p, measured = s.config, s.program, s.measured
    model = pathlib.PurePath(pretrained.name_of(s.base.path))
    devices = p.mesh.devices.flat
    by = ["an exact judge"] if s.task.judge else ["their likelihood"] if s.task.items else []
    by += [f"the judge {judge.name}" for judge in measured.judges]
    by += ["refusals by rule"] if measured.prompts else []
    by += [_choices(measured.choices)] if measured.choices else []
    continued = f", continued after iteration {done}" if done else ""
    axes = " × ".join(f"{name} {size}" for name, size in p.mesh.shape.items())
    return "\n".join(
        [
            f"ISARA on {model.name}: {s.n_params / 1e6:,.1f} M parameters, "
            f"{np.dtype(p.model.dtype).name}",
            f"  domain      {s.task.name}: {len(s.task.seeds)} seeds{_choosing(s)}, "
            f"{_held_out(s)}, scored by {', '.join(by)}",
            *_sources(s),
            f"  texts       {_texts(s.base.vocabulary)}",
            f"  devices     {p.mesh.size} × {devices[0].device_kind}, mesh {axes}",
            f"  run         {c.iterations} iterations of {c.samples_per_iteration} samples, "
            f"{c.execution}, {c.train.trainable} training{continued}",
            f"  memory      {_memory(s)}",
            f"  workdir     {workdir}",
            f"  time        about {max(1, round(_seconds(s) / 60))} min "
            "(from a matrix product timed just now)",
        ]
    )


def _memory(s: Setup) -> str:
    """What a device holds; a container that has less ends the run without a word."""
    taken = memory.use(s.program, s.judge_bytes).total / memory.GB
    has = memory.of_a_device(s.program) / memory.GB
    short = "; that is more than there is: take fewer --config.slots" if taken > has else ""
    return f"about {taken:.2f} of {has:.2f} GB a device, with {s.config.slots} slots{short}"


def _sources(s: Setup) -> list[str]:
    """Which files are read, and how: what their fields were taken for."""
    prompts, asked = s.measured.prompts, s.measured.choices
    found = [f"  seeds       {s.task.about}"] if s.task.about else []
    found += [f"  prompts     {prompts.about}; {prompts.read}"] if prompts else []
    return found + ([f"  choices     {asked.about}"] if asked else [])


def _choices(asked: choices.Choices) -> str:
    titles = " and ".join(choices.METRICS[name] for name in asked.metrics)
    return f"{titles} of {len(asked.asked):,} questions"


def _choosing(s: Setup) -> str:
    """How many seeds choose, and what."""
    if s.validation is None:
        return ""
    chosen = "SFT's length"
    if s.config.keep == "best":
        chosen += " and the iteration kept; ISARA sees the others"
    return f" ({s.n_validation} of them choose {chosen})"


def _held_out(s: Setup) -> str:
    """How many held-out questions there are, and of own pairs who says so."""
    n, c = len(s.task.items), s.config
    if not c.task.seeds:
        return f"{n} held-out questions"
    if n == c.evaluation.n:
        return f"{n} held-out questions (as evaluation.n={n})"
    how = f"{domains.share_held_out(n)}, by" if c.task.held_out < 0 else "as"
    return f"{n} held-out questions ({how} task.held_out={c.task.held_out})"


def _texts(vocabulary: tokens.Vocabulary) -> str:
    """How texts begin and end."""
    begin, eos, ends = (
        special_tokens.show(vocabulary.tokenizer, ids)
        for ids in (vocabulary.begin, [vocabulary.eos], vocabulary.ends)
    )
    drawn = f"; {ends} end what is drawn" if ends != eos else ""
    if vocabulary.form != tokens.PLAIN:
        return f"stand in the model's chat template, end with {eos}{drawn}"
    return f"begin {f'with {begin}' if begin else 'without BOS'}, end with {eos}{drawn}"


def left(s: Setup, iterations: Sequence[dict[str, Any]], seconds: Mapping[str, float]) -> float:
    """Seconds to the end of the run, where an iteration, or the start, has just ended.

    Args:
      s: its setup.
      iterations: those done, as in `History.data`.
      seconds: by stage, of all of them.
    """
    if not iterations:
        return _seconds(s)
    c, done, last = s.config, len(iterations), iterations[-1]
    ahead = c.iterations - done
    steps = [entry["train_steps"] for entry in iterations]
    grown = last["accepted"] * c.train.epochs / c.train.batch_size
    grown = 0 if c.train.data == "latest" else grown
    coming = ahead * steps[-1] + grown * ahead * (ahead + 1) / 2
    sampled = sum(seconds.get(stage, 0.0) for stage in ("questions", "answers", "accept")) / done
    evaluated = seconds.get("evaluation", 0.0) / (done + 1)
    rounds, rows, trained = ahead, ahead, coming
    fits = _sft_fits(s)
    trained += fits.shares * (sum(steps) + coming)
    rows += len(fits.measured) + sum(name.startswith("icl") for name in c.evaluation.baselines)
    if "one_round" in c.evaluation.baselines:
        rounds, rows = rounds + c.iterations, rows + 1
        trained += steps[-1] + grown * ahead
    a_step = seconds.get("train", 0.0) / max(sum(steps), 1)
    return rounds * sampled + rows * evaluated + trained * a_step


def _seconds(s: Setup) -> float:
    """The run's FLOPs, 2 a parameter for a token read or drawn and 6 for one trained on."""
    c, p, measured = s.config, s.program, s.measured
    rounds = 2 if "one_round" in c.evaluation.baselines else 1
    fits = _sft_fits(s)
    shown = sum(name.startswith("icl") for name in c.evaluation.baselines)
    evaluations = c.iterations + shown + len(fits.measured) + rounds  # and the base model
    asked = measured.prompts.pairs.question.bare.ids.shape if measured.prompts else (0, 0)
    read, drawn = (rounds * tokens for tokens in _sampled(s))
    demonstrations = shown * c.evaluation.k * p.sizes.typical_pair
    for n, width in ((len(s.task.items), c.question.max_tokens), asked):
        read += 2 * n * (evaluations * width + demonstrations)  # sampled and greedy
        drawn += evaluations * 2 * _drawn(s, n, _mean(s.seeds.answer), c.answer.max_tokens)
    scored = 0 if s.task.judge else len(s.task.items) * p.sizes.sequence
    read += evaluations * (scored + _choice_tokens(s))
    # Every iteration trains on what there is by then; the one round on all, once.
    samples = _ACCEPTED * c.samples_per_iteration
    rows = c.iterations * (p.sizes.n_seeds + samples * (c.iterations + 1) / 2)
    rows *= 1 + fits.shares
    rows += (rounds - 1) * (p.sizes.n_seeds + samples * c.iterations)
    pair = _mean(s.seeds.question) + _mean(s.seeds.answer) + p.template.pair
    trained = rows * c.train.epochs * pair
    work = 2 * s.n_params * (read / _READ + drawn / _DRAW + 3 * trained / _TRAIN)
    n_answers = len(s.task.items) + asked[0]
    work += evaluations * 2 * n_answers * sum(map(_judge_flops, measured.judges)) / _READ
    seconds = work / (p.mesh.size * _matmul_rate(p.model.dtype))
    return seconds + _COMPILE_SECONDS + _COMPILE_SECONDS_A_BLOCK * p.model.config.n_layers


class _Fits(NamedTuple):
    """SFT's trainings: lengths of which rows are `measured`; all `shares` of ISARA's steps."""

    measured: tuple[float, ...]
    shares: float


def _sft_fits(s: Setup) -> _Fits:
    """Where validation seeds choose, all lengths are tried, and two at most are trained again."""
    evaluation = s.config.evaluation
    lengths = evaluation.sft_steps if "sft" in evaluation.baselines else ()
    if s.validation is None or len(lengths) < 2:
        return _Fits(lengths, sum(lengths))
    measured = tuple(sorted(lengths)[-2:])
    return _Fits(measured, sum(lengths) + sum(measured))


def _sampled(s: Setup) -> tuple[float, float]:
    """Tokens of prompts, which are read padded, and tokens drawn, of all iterations."""
    c, p = s.config, s.program
    q, a, n = c.question, c.answer, c.samples_per_iteration
    prompts = p.sizes.prompt(q.k, q.prompt_tokens, q.max_tokens, question=0)
    prompts += p.sizes.prompt(a.k, a.prompt_tokens, a.max_tokens, question=q.max_tokens)
    drawn = _drawn(s, n, _mean(s.seeds.question), q.max_tokens)
    drawn += _drawn(s, n, _mean(s.seeds.answer), a.max_tokens)
    return c.iterations * n * prompts, c.iterations * drawn


def _drawn(s: Setup, n: int, mean: float, longest: int) -> float:
    """Tokens drawn for n texts, idle slots counted: the last ones wait for the longest text."""
    slots = s.config.slots
    return slots * (n / slots * mean + longest - mean) if n else 0.0


def _mean(texts: packing.Text) -> float:
    """Tokens of a text with what ends it."""
    return float(np.mean(jax.device_get(texts.joined.lengths)))


def _choice_tokens(s: Setup) -> int:
    """Tokens of all questions with a choice behind them."""
    if s.measured.choices is None:
        return 0
    pairs = s.measured.choices.pairs
    (rows, question), answer = pairs.question.bare.ids.shape, pairs.answer.bare.ids.shape[1]
    return rows * (s.program.template.overhead(0) + question + answer)


def _judge_flops(judge: judges.Loaded) -> int:
    """Of one answer, which a judge reads padded."""
    return 2 * judge.reading.capacity * sum(x.size for x in jax.tree.leaves(judge.params))


def _matmul_rate(dtype: Any) -> float:
    """FLOP/s of a 1024 × 1024 matrix product here and now, on one device."""
    size, times = 1024, []
    x = jax.jit(lambda: jnp.ones((size, size), dtype))()
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    for _ in range(3):
        began = time.monotonic()
        product(x).block_until_ready()
        times.append(time.monotonic() - began)
    return 2 * size**3 / min(times)
