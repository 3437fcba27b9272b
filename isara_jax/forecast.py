"""What a run is about to do, and roughly how long that takes."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax import pretrained, remote, special_tokens, tokens
from isara_jax.evaluate import judges
from isara_jax.setup import Setup

# Seen on the bundled model and 2 cores: seconds of compilation, and the speed of the rest as a
# share of a matrix product's.
_COMPILE_SECONDS, _EFFICIENCY = 28, 0.7


def describe(s: Setup, workdir: remote.Workdir, done: int | None) -> str:
    """The lines shown before a run starts; `done` iterations were found in `workdir`."""
    c, p = s.config, s.program
    model = pathlib.PurePath(pretrained.name_of(s.model_path))
    devices = p.mesh.devices.flat
    by = ["an exact judge"] if s.task.judge else ["their likelihood"] if s.task.items else []
    by += [f"the judge {judge.name}" for judge in s.judges]
    by += ["refusals by rule"] if s.prompts else []
    by += [f"MC1 of {len(set(s.choices.question))} questions"] if s.choices else []
    continued = f", continued after iteration {done}" if done else ""
    axes = " × ".join(f"{name} {size}" for name, size in p.mesh.shape.items())
    return "\n".join(
        [
            f"ISARA on {model.name}: {s.n_params / 1e6:,.1f} M parameters, "
            f"{np.dtype(p.model.dtype).name}",
            f"  domain      {s.task.name}: {len(s.task.seeds)} seeds, {_held_out(s)}, scored by "
            f"{', '.join(by)}",
            *([f"  prompts     {s.prompts.about}"] if s.prompts else []),
            f"  texts       {_texts(s.vocabulary)}",
            f"  devices     {p.mesh.size} × {devices[0].device_kind}, mesh {axes}",
            f"  run         {c.iterations} iterations of {c.samples_per_iteration} samples, "
            f"{c.execution}, {c.train.trainable} training{continued}",
            f"  workdir     {workdir}",
            f"  time        about {_minutes(s)} min (from a matrix product timed just now)",
        ]
    )


def _held_out(s: Setup) -> str:
    """How many held-out questions there are, and of own pairs who says so."""
    n, t = len(s.task.items), s.config.task
    how = "a quarter, says" if t.held_out < 0 else "as"
    return f"{n} held-out questions" + (f" ({how} task.held_out={t.held_out})" if t.seeds else "")


def _texts(vocabulary: tokens.Vocabulary) -> str:
    """How texts begin and end."""
    begin, eos, ends = (
        special_tokens.show(vocabulary.tokenizer, ids)
        for ids in (vocabulary.begin, [vocabulary.eos], vocabulary.ends)
    )
    drawn = f"; {ends} end what is drawn" if ends != eos else ""
    return f"begin {f'with {begin}' if begin else 'without BOS'}, end with {eos}{drawn}"


def _minutes(s: Setup) -> int:
    """The run's FLOPs (2 a parameter for a token read, 6 for one trained on) at this rate."""
    c, p = s.config, s.program
    q, a = c.question, c.answer
    samples = c.samples_per_iteration * c.iterations
    prompts = p.prompt_capacity(q.k, q.prompt_tokens, q.max_tokens, question=0)
    prompts += p.prompt_capacity(a.k, a.prompt_tokens, a.max_tokens, question=q.max_tokens)
    sampled = samples * (prompts + q.max_tokens + a.max_tokens)
    evaluations = 2 * (2 + c.iterations + len(c.evaluation.sft_steps))
    sampled += evaluations * len(s.task.items) * (q.max_tokens + a.max_tokens)
    asked, width = s.prompts.pairs.question.shape if s.prompts else (0, 0)
    sampled += evaluations * asked * (width + a.max_tokens)
    # Half of the samples accepted; every iteration trains on what there is by then.
    rows = p.n_seeds * c.iterations + 0.25 * samples * (c.iterations + 1)
    trained = rows * c.train.epochs * p.train_tokens * (1 + sum(c.evaluation.sft_steps))
    flops = 2 * s.n_params * (sampled + 3 * trained + evaluations / 2 * _choice_tokens(s))
    flops += evaluations * (len(s.task.items) + asked) * sum(map(_judge_flops, s.judges))
    seconds = _COMPILE_SECONDS + flops / (_EFFICIENCY * p.mesh.size * _matmul_rate(p.model.dtype))
    return max(1, round(seconds / 60))


def _choice_tokens(s: Setup) -> int:
    """Tokens of all questions with a choice behind them."""
    if s.choices is None:
        return 0
    pairs = s.choices.pairs
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
