"""The studies as data: what each tests, and the grid of its configurations.

A grid is domains x models x levels x random seeds. A level changes fields of the base
configuration; one that changes nothing there (`answer.k=6`, where that is the default) is left out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from isara_jax.tasks import world

RANDOM_SEEDS, MOST_SEEDS = 5, 64
# Where levels are compared with each other, the baselines would only be measured again.
_ISARA_ALONE = {"evaluation.baselines": ()}
Plot = Literal["dots", "curves", "iterations"]


@dataclasses.dataclass(frozen=True)
class Level:
    """A setting: what it is called, and `{field: value}` that it changes."""

    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
      name: of its files.
      claim: what it tests, in a sentence.
      axis: what its levels are.
      levels: in their order; of `curves` the labels are numbers.
      reference: the level whose ISARA the others' is compared with, or None.
      changes: fields that are changed in all of its runs.
      domains: bundled ones, where the command line has no configuration of its own.
      models: likewise; empty: the command line must name them.
      plot: how it is drawn.
    """

    name: str
    claim: str
    axis: str = ""
    levels: tuple[Level, ...] = (Level(""),)
    reference: str | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    domains: tuple[str, ...] = world.DOMAINS
    models: tuple[str, ...] = ("tiny_llama",)
    plot: Plot = "dots"


_ALL = (
    Study(
        name="claims",
        claim="ISARA aligns a base model better than in-context learning and than fine-tuning on "
        "the seeds, in every domain.",
        models=("tiny_llama", "tiny_opt"),
    ),
    Study(
        name="seeds",
        claim="ISARA's lead over the baselines depends on how many seeds there are.",
        axis="seeds",
        levels=tuple(Level(str(n), {"task.n_seeds": n}) for n in (4, 8, 16, 32, MOST_SEEDS)),
        plot="curves",
    ),
    Study(
        name="lengths",
        claim="Fine-tuning on the seeds is as good as ISARA where it is stopped at the right step.",
        # No seeds choose, so that each length is a row.
        changes={"task.validation": 0, "evaluation.baselines": ("sft",)},
    ),
    Study(
        name="transfer",
        claim="Seeds of one topic align all topics, and leave other domains as they were.",
        axis="seeds of",
        levels=(
            *(Level(t, {"task.topics": (t,)}) for t in world.TOPICS["safety"][:10:3]),
            *(
                Level(f"all topics, tested on {domain}", {"task.test": domain})
                for domain in world.DOMAINS
                if domain != "safety"
            ),
        ),
        domains=("safety",),
    ),
    Study(
        name="rounds",
        claim="At an equal number of samples several rounds are better than one.",
        axis="rounds",
        levels=tuple(
            Level(f"{n} x {1152 // n}", {"iterations": n, "samples_per_iteration": 1152 // n})
            for n in (1, 2, 3, 6)
        ),
        reference="1 x 1152",
        changes=_ISARA_ALONE,
        domains=("safety",),
    ),
    Study(
        name="retrieval",
        claim="It matters which demonstrations questions and answers have, how many, in which "
        "order.",
        axis="changed",
        levels=(
            Level("default"),
            *(
                Level(f"questions from {how} pairs", {"question.demonstrations": how})
                for how in ("random", "knn")
            ),
            Level("answers from random pairs", {"answer.demonstrations": "random"}),
            *(Level(f"answers from {k} pairs", {"answer.k": k}) for k in (2, 4, 6, 8)),
            *(
                Level(f"answers, {order.replace('_', ' ')}", {"answer.order": order})
                for order in ("nearest_last", "nearest_first")
            ),
        ),
        reference="default",
        changes=_ISARA_ALONE,
        domains=("safety",),
    ),
    Study(
        name="switches",
        claim="What the paper leaves open makes a difference, one choice at a time.",
        axis="changed",
        levels=(
            Level("default"),
            *(
                Level(f"{field}={value}", {field: value})
                for field, values in (
                    ("answer.model", ("current", "base")),
                    ("train.init", ("previous", "base")),
                    ("train.data", ("cumulative", "latest")),
                    ("train.include_seeds", (True, False)),
                    ("pool", ("seeds", "seeds+generated")),
                    ("question.demonstrations", ("random", "knn")),
                    ("question.show_answers", (True, False)),
                    ("filters.rouge_l", (2.0,)),  # off
                    ("filters.min_score", (-0.25,)),
                )
                for value in values
            ),
        ),
        reference="default",
        changes=_ISARA_ALONE,
        domains=("safety",),
    ),
    Study(
        name="collapse",
        claim="Iterating does not collapse: texts stay diverse and held-out answers probable.",
        changes={"iterations": 8, "evaluation.likelihood": True} | _ISARA_ALONE,
        domains=("safety",),
        plot="iterations",
    ),
    Study(
        name="size",
        claim="ISARA's lead over the baselines depends on the model's size.",
        domains=("safety",),
        models=(),
    ),
)
STUDIES = {study.name: study for study in _ALL}
