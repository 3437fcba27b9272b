"""Ahead-of-time compilation: every executable of a run, compiled once, and counted."""

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

from isara_jax.devices import mesh as mesh_lib
from isara_jax.evaluate import answers
from isara_jax.formats import weights
from isara_jax.host import cache_check
from isara_jax.method import iteration, train
from isara_jax.method.program import Hyper, Inputs, Program, static
from isara_jax.method.progress import Progress
from isara_jax.method.start import fine_tune_on_seeds, initial_state
from isara_jax.method.state import Pool, Report, State
from isara_jax.models import lora
from isara_jax.sampler import sampling
from isara_jax.sampler.decode import Generation
from isara_jax.text import packing

# Given a stage's name, what computes its result and the shapes of that: the result, or that kept.
Keep = Callable[[str, Callable[[], Any], Callable[[], Any]], Any]


def keep_nothing(stage: str, compute: Callable[[], Any], like: Callable[[], Any]) -> Any:
    """Computes the result of a stage, and keeps it nowhere."""
    del stage, like
    return compute()


class Shared:
    """What runs in one process, one after the other, have in common: what is compiled already.

    Args:
      silent: the runs say nothing.

    Attributes:
      progress: of whichever run goes on; a part of what is compiled, which calls it.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.progress = Progress(silent=silent or jax.process_index() > 0)
        self._compiled: dict[Hashable, Callable] = {}
        self._used: set[Hashable] = set()

    def begin(self, rest: pathlib.Path) -> Progress:
        """The progress of the next run. What the last one did not call is dropped.

        Args:
          rest: as in `Progress`.
        """
        self._compiled = {k: v for k, v in self._compiled.items() if k in self._used}
        self._used = set()
        self.progress.restart(rest)
        return self.progress

    def get(self, key: Hashable, compiled: Callable[[], Callable]) -> Callable:
        """The executable under a key, by `compiled` where there is none."""
        self._used.add(key)
        if key not in self._compiled:
            self._compiled[key] = compiled()
        return self._compiled[key]


class Executables:
    """The compiled functions of a run.

    Attributes:
      compiles: how often each was compiled for this run; once, whatever the number of iterations,
        and not at all where a run before could share it.
      seconds: of compiling, in all.
    """

    def __init__(self, program: Program, inputs: Inputs, shared: Shared | None = None) -> None:
        self.program, self.inputs = program, inputs
        self._shared = Shared() if shared is None else shared
        self.compiles: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0
        self._compiled: dict[str, Callable] = {}

    def _get(
        self, name: str, function: Callable, *args: Any, donate: int | None = None
    ) -> Callable:
        """The executable `name`, compiled for the shapes of `args` when first asked for.

        Where results lie is pinned: else the partitioner may lay out the state otherwise than it
        came in, and the second iteration would be recompiled.
        """
        if name not in self._compiled:
            compiled = functools.partial(self._compile, name, function, *args, donate=donate)
            self._compiled[name] = self._shared.get(self._key(name, args), compiled)
        return self._compiled[name]

    def _key(self, name: str, args: tuple[Any, ...]) -> Hashable:
        """What decides on an executable: its name, what is static, and what arguments look like.

        The vocabulary, which executables call, follows from `model` of the configuration.
        """
        program = dataclasses.replace(
            self.program, config=static(self.program.config), vocabulary=None, progress=None
        )
        leaves, tree = jax.tree.flatten(args)
        return name, program, tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves)

    def _compile(
        self, name: str, function: Callable, *args: Any, donate: int | None
    ) -> jax.stages.Compiled:
        began = time.monotonic()
        placed = self.placed(jax.eval_shape(function, *args))
        jitted = jax.jit(
            function, out_shardings=placed, donate_argnums=donate,
            compiler_options=mesh_lib.compiler_options(self.program.mesh),
        )  # fmt: skip
        compiled = jitted.lower(*args).compile()
        self.compiles[name] += 1
        seconds = time.monotonic() - began
        self.seconds += seconds
        if self.program.progress is not None:
            self.program.progress.aside("compile", seconds)
        return compiled

    def call(self, name: str, function: Callable, *args: Any) -> Any:
        """Calls `function(*args)`, compiled under a name."""
        return self._get(name, function, *args)(*args)

    def _call(self, name: str, function: Callable, *args: Any) -> Any:
        return self.call(name, functools.partial(function, self.program), *args)

    def placed(self, abstract: Any) -> Any:
        """The shardings of a result: on every device, but for weights in full fine-tuning."""
        if type(abstract) is tuple:
            return tuple(self.placed(part) for part in abstract)
        whole = mesh_lib.replicated(self.program.mesh)
        placed = jax.tree.map(lambda _: whole, abstract)
        if self.program.config.train.trainable == "full" and hasattr(abstract, "trainable"):
            network = self.program.model.config
            spread = {
                path: weights.sharding(network, path, leaf.shape, self.program.mesh)
                for path, leaf in weights.flatten(abstract.trainable).items()
            }
            placed = placed._replace(trainable=weights.unflatten(spread))
        return placed

    def start(self, seeds: packing.Pairs) -> State:
        """The state before the first iteration, with a pool of all seeds, or of fewer."""
        n = len(seeds.question.bare.lengths)
        name = "initial_state" if n == self.program.sizes.n_seeds else f"initial_state_of_{n}"
        return self._call(name, initial_state, self.inputs, seeds)

    def cache_divergence(self, pool: Pool) -> jax.Array:
        """What a cache in 8 bits changes, in nats, for each seed."""
        return self._call("cache_divergence", cache_check.divergence, self.inputs, pool)

    def compile_step(self, state: State) -> None:
        """Compiles the iteration before it is needed (fused execution)."""
        if self.program.config.execution == "fused":
            self.compiled_step(state)

    def compiled_step(self, state: State) -> jax.stages.Compiled:
        """The executable of an iteration; `state` may be shapes with shardings."""
        function = functools.partial(iteration.isara_step, self.program)
        return self._get("isara_step", function, self.inputs, state, donate=1)

    def step(
        self, state: State, hyper: Hyper | None = None, keep: Keep = keep_nothing
    ) -> tuple[State, Report]:
        """One iteration.

        Args:
          state: it is given away.
          hyper: hyper-parameters, if they are others.
          keep: keeps the results of the stages in staged execution, that of the whole in fused.
        """
        inputs = self.inputs if hyper is None else self.inputs._replace(hyper=hyper)
        function = functools.partial(iteration.isara_step, self.program)
        if self.program.config.execution == "fused":
            return keep(
                "iteration",
                lambda: self.compiled_step(state)(inputs, state),
                lambda: self._shapes(function, inputs, state),
            )
        return function(inputs, state, functools.partial(self._stage, keep))

    def _stage(self, keep: Keep, name: str, stage: iteration.Stage) -> iteration.Stage:
        return lambda program, *args: self._kept(keep, name, f"stage_{name}", stage, *args)

    def fine_tune_on_seeds(
        self, start: State, n: jax.Array, steps: jax.Array, keep: Keep = keep_nothing
    ) -> train.Fit:
        """The SFT baseline on n seeds, from the state before the first iteration."""
        return self._kept(keep, "train", "sft", fine_tune_on_seeds, self.inputs, start, n, steps)

    def _kept(self, keep: Keep, stage: str, name: str, function: Callable, *args: Any) -> Any:
        bound = functools.partial(function, self.program)
        return keep(
            stage, lambda: self.call(name, bound, *args), lambda: self._shapes(bound, *args)
        )

    def _shapes(self, function: Callable, *args: Any) -> Any:
        """What `function(*args)` will look like, and lie where."""
        abstract = jax.eval_shape(function, *args)
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            abstract, self.placed(abstract),
        )  # fmt: skip

    def answer(
        self, trainable: lora.Trainable, held_out: answers.Questions,
        params: sampling.SamplingParams, k: int, of: str = "answer",
    ) -> Generation:  # fmt: skip
        """Answers with k demonstrations to held-out questions, or to others, named by `of`."""
        function = functools.partial(answers.answer, k=k)
        return self._call(f"{of}_{k}_shot", function, self.inputs, trainable, held_out, params)

    def log_likelihood(
        self, of: str, trainable: lora.Trainable, held_out: answers.Questions, k: int
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability and tokens of the held-out answers with k demonstrations.

        Args:
          of: what the answers are, for the executable's name.
          trainable: the model.
          held_out: questions and answers.
          k: demonstrations.
        """
        function = functools.partial(answers.log_likelihood, k=k)
        return self._call(f"{of}_{k}_shot", function, self.inputs, trainable, held_out)
