"""Ahead-of-time compilation: every executable of a run, compiled once, and counted."""

import collections
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from isara_jax import embed, iteration, lora, packing, sampling, train, weights
from isara_jax import mesh as mesh_lib
from isara_jax.decode import Generation
from isara_jax.evaluate import answers
from isara_jax.iteration import Inputs, Program
from isara_jax.state import Pool, Report, State


def initial_state(p: Program, inputs: Inputs, seeds: packing.Pairs) -> State:
    """The state before the first iteration: a fresh trainable, a pool of the seeds."""
    rows = p.capacity
    part = (seeds.question, seeds.question_length)
    raw = iteration.embed_questions(p, inputs.base, part)
    mean = jnp.mean(raw, axis=0)

    def empty(x: jax.Array) -> jax.Array:
        return jnp.zeros((rows, *x.shape[1:]), x.dtype)

    pool = Pool(
        pairs=jax.tree.map(empty, seeds),
        embedding=jnp.zeros((rows, raw.shape[1]), jnp.float32),
        origin=jnp.zeros(rows, jnp.int32),
        count=jnp.int32(0),
        mean=mean,
    )
    everything = jnp.ones(p.n_seeds, bool)
    pool = pool.append(seeds, embed.centre(raw, mean), everything, jnp.int32(0))
    return State(fresh_trainable(p, inputs), pool, jnp.int32(0))


def fresh_trainable(p: Program, inputs: Inputs) -> lora.Trainable:
    """An adapter, or a copy of the weights, that changes nothing."""
    return iteration.fresh_trainable(p, inputs.base, inputs.hyper.seed)


def fine_tune_on_seeds(p: Program, inputs: Inputs, pool: Pool, steps: jax.Array) -> train.Fit:
    """The SFT baseline: the same optimiser, on the seeds alone, for a given number of steps."""
    ids, lengths, begin = packing.training_sequences(p.template, pool.pairs, p.train_tokens)
    return train.fit(
        p.model, inputs.base, fresh_trainable(p, inputs),
        train.Sequences(ids, lengths, begin, pool.occupied), p.config.train, inputs.hyper.train,
        steps, iteration.stage_key(inputs.hyper, jnp.int32(0), len(iteration.STAGES)),
        p.answer_span,
    )  # fmt: skip


def seeds_alone(p: Program, pool: Pool) -> Pool:
    """The pool's first rows, which are the seeds."""
    rows = jnp.arange(p.n_seeds)
    return Pool(
        pool.pairs.take(rows), pool.embedding[rows], pool.origin[rows], jnp.int32(p.n_seeds),
        pool.mean,
    )  # fmt: skip


class Executables:
    """The compiled functions of a run.

    Attributes:
      compiles: how often each was compiled; once, whatever the number of iterations.
      seconds: of compiling, in all.
    """

    def __init__(self, program: Program, inputs: Inputs) -> None:
        self.program, self.inputs = program, inputs
        self.compiles: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0
        self._compiled: dict[str, Callable] = {}

    def _get(self, name: str, function: Callable, *args: Any, **options: Any) -> Callable:
        """The executable `name`, compiled for the shapes of `args` when first asked for."""
        if name not in self._compiled:
            began = time.monotonic()
            self._compiled[name] = jax.jit(function, **options).lower(*args).compile()
            self.compiles[name] += 1
            self.seconds += time.monotonic() - began
            if self.program.progress is not None:
                self.program.progress.lap("compile")
        return self._compiled[name]

    def _call(self, name: str, function: Callable, *args: Any, **options: Any) -> Any:
        return self._get(name, functools.partial(function, self.program), *args, **options)(*args)

    def state_sharding(self, state: State) -> State:
        """Where the carried state lies. Pinned: else the second iteration would be recompiled."""
        whole = mesh_lib.replicated(self.program.mesh)
        placed = jax.tree.map(lambda _: whole, state)
        if self.program.config.train.trainable == "full":
            flat = weights.flatten(state.trainable)
            spread = {
                path: weights.sharding(path, leaf.shape, self.program.mesh)
                for path, leaf in flat.items()
            }
            placed = placed._replace(trainable=weights.unflatten(spread))
        return placed

    def start(self, seeds: packing.Pairs) -> State:
        """The state before the first iteration."""
        function = functools.partial(initial_state, self.program)
        abstract = jax.eval_shape(function, self.inputs, seeds)
        options = {"out_shardings": self.state_sharding(abstract)}
        return self._call("initial_state", initial_state, self.inputs, seeds, **options)

    def fresh(self) -> lora.Trainable:
        """A trainable that changes nothing."""
        return self._call("fresh_trainable", fresh_trainable, self.inputs)

    def compile_step(self, state: State) -> None:
        """Compiles the iteration before it is needed (fused execution)."""
        if self.program.config.execution == "fused":
            self._get("isara_step", self._fused, self.inputs, state, **self._step_options(state))

    def _fused(self, inputs: Inputs, state: State) -> tuple[State, Report]:
        return iteration.isara_step(self.program, inputs, state)

    def _step_options(self, state: State) -> dict[str, Any]:
        placed = (self.state_sharding(state), mesh_lib.replicated(self.program.mesh))
        return {"donate_argnums": 1, "out_shardings": placed}

    def step(self, state: State) -> tuple[State, Report]:
        """One iteration; `state` is given away."""
        if self.program.config.execution == "fused":
            options = self._step_options(state)
            return self._get("isara_step", self._fused, self.inputs, state, **options)(
                self.inputs, state
            )
        return iteration.isara_step(self.program, self.inputs, state, self._stage)

    def _stage(self, name: str, stage: iteration.Stage) -> iteration.Stage:
        def run(program: Program, *args: Any) -> Any:
            placed: Any = mesh_lib.replicated(program.mesh)
            if name == "report":
                abstract, _ = jax.eval_shape(functools.partial(stage, program), *args)
                placed = (self.state_sharding(abstract), placed)
            return self._call(f"stage_{name}", stage, *args, out_shardings=placed)

        return run

    def seeds(self, pool: Pool) -> Pool:
        """The seeds of the pool, as a pool."""
        return self._call("seeds_alone", seeds_alone, pool)

    def fine_tune_on_seeds(self, seeds: Pool, steps: jax.Array) -> train.Fit:
        """The SFT baseline."""
        return self._call("sft", fine_tune_on_seeds, self.inputs, seeds, steps)

    def answer(
        self, trainable: lora.Trainable, held_out: answers.Questions,
        params: sampling.SamplingParams, k: int,
    ) -> Generation:  # fmt: skip
        """Answers to held-out questions with k demonstrations."""
        function = functools.partial(answers.answer, k=k)
        name = f"answer_{k}_shot"
        return self._call(name, function, self.inputs, trainable, held_out, params)

    def log_likelihood(
        self, trainable: lora.Trainable, held_out: answers.Questions, k: int
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability and tokens of the held-out answers with k demonstrations."""
        function = functools.partial(answers.log_likelihood, k=k)
        name = f"score_{k}_shot"
        return self._call(name, function, self.inputs, trainable, held_out)
