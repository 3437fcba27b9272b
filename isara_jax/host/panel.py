"""Judges without a run: each is loaded alone, on whatever devices there are."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.evaluate import judges, refusals
from isara_jax.formats import pretrained
from isara_jax.host import fingerprint, placement
from isara_jax.tasks import base

# A judge of some questions; as for `judges.ModelJudge`, the text says what they are, or is empty.
Make = Callable[[Sequence[base.Item], str], judges.Judge]


class Member(NamedTuple):
    """A judge before its weights are read: a model, or where there is no `reading` the rule."""

    config: config.Config
    reading: judges.Reading | None

    @property
    def name(self) -> str:
        """What it is called in verdicts and metrics."""
        return self.reading.name if self.reading else judges.RULE

    @property
    def version(self) -> str | None:
        """What all that it says follows from; None where asking it again takes no time."""
        if self.reading is None:
            return None
        prompt, capacity = self.reading.prompt.template, self.reading.capacity
        dtype = jnp.dtype(self._dtype).name
        return fingerprint.of_model(self.reading.base.path, prompt, capacity, dtype)

    @property
    def _dtype(self) -> Any:
        return pretrained.choose_dtype(self.config.model.dtype, jax.devices()[0])

    def check(self, questions: Iterable[str]) -> None:
        """Raises `config.ConfigError` where a question leaves no room for an answer."""
        if self.reading is not None:
            self.reading.check([*dict.fromkeys(questions)])

    def load(self, most: int) -> Make:
        """Places the weights, which stay as long as what is returned.

        Args:
          most: answers that are judged in one call, at the most.

        Raises:
          ValueError: the weights are damaged, or no mesh suits them.
        """
        if self.reading is None:
            return lambda items, of: refusals.Refusals(items)
        network, size = self.reading.base.network, jnp.dtype(self._dtype).itemsize
        mesh = mesh_lib.make(placement.choose(self.config, network, size, jax.devices()))
        loaded = self.reading.load(self.config.model.dtype, mesh)
        call, at_once = _compiled_once(mesh), min(self.config.slots, most)
        return lambda items, of: judges.ModelJudge(loaded, call, at_once, of)


def read(c: config.Config, names: Sequence[str]) -> list[Member]:
    """Reads and checks everything but the weights.

    Args:
      c: `evaluation.judges` are those of the names that are folders.
      names: folders, and the word for the rule.
    """
    readings = iter(judges.read(c.evaluation))
    return [Member(c, None if name == judges.RULE else next(readings)) for name in names]


def _compiled_once(mesh: Mesh) -> Callable[..., Any]:
    """`call(name, function, *args)`, for arguments of one shape a name."""
    compiled: dict[str, Callable] = {}

    def call(name: str, function: Callable, *args: Any) -> Any:
        if name not in compiled:
            jitted = jax.jit(
                function, out_shardings=mesh_lib.replicated(mesh),
                compiler_options=mesh_lib.compiler_options(mesh),
            )  # fmt: skip
            compiled[name] = jitted.lower(*args).compile()
        return compiled[name](*args)

    return call
