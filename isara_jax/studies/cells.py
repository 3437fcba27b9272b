"""From a study's grid to cells: one resolved configuration each, in the order they are run."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from isara_jax import config
from isara_jax.config import Config
from isara_jax.formats import pretrained, weights
from isara_jax.host import fingerprint, lengths, setup
from isara_jax.method.program import static
from isara_jax.studies.grids import MOST_SEEDS, RANDOM_SEEDS, Level, Study
from isara_jax.text import packing

Labels = dict[str, str | int]


class Base(NamedTuple):
    """A configuration before the study changes it, and what its domain and model are called."""

    labels: Labels
    values: ml_collections.ConfigDict


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      labels: `domain`, `model`, the study's axis if it has one, and `seed`.
      config: of the run.
    """

    labels: Labels
    config: Config

    @property
    def digest(self) -> str:
        """A hash of the model and of what the configuration changes: newer fields leave it."""
        model = pretrained.locate(self.config.model.path)
        usual = weights.flatten(config.to_dict(Config()))
        fields = weights.flatten(config.to_dict(self.config))
        changes = {name: value for name, value in fields.items() if value != usual[name]}
        return fingerprint.of_model(model, changes)[:8]

    @property
    def name(self) -> str:
        """Of its folder: equal runs of several studies are one."""
        parts = [re.sub(r"[^\w.]+", "_", str(self.labels[name])) for name in ("domain", "model")]
        return "-".join([*parts, f"seed{self.labels['seed']}", self.digest])


def changed(values: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> Config:
    """The configuration with some fields changed.

    Raises:
      config.ConfigError: it makes no sense.
    """
    values = values.copy_and_resolve_references()
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config.resolve(values)


def of(study: Study, bases: Sequence[Base], n_seeds: int, data_dir: pathlib.Path) -> list[Cell]:
    """All cells of a study, those of equal programs next to each other.

    Args:
      study: the grid.
      bases: its domains and models.
      n_seeds: random seeds, from 1: with 0, the default, settings are tried.
      data_dir: where data sets are kept.

    Raises:
      ValueError: a cell cannot work.
    """
    cells = [cell for base in bases for cell in _of_base(study, base, max(n_seeds, RANDOM_SEEDS))]
    configs = with_common_lengths([cell.config for cell in cells], data_dir)
    cells = [cell._replace(config=c) for cell, c in zip(cells, configs, strict=True)]
    cells = [cell for cell in cells if cell.config.seed <= n_seeds]
    return sorted(cells, key=lambda cell: (repr(static(cell.config)), repr(cell.config.task)))


def _of_base(study: Study, base: Base, n_seeds: int) -> Iterable[Cell]:
    default = None
    if study.reference is not None:
        (reference,) = (level for level in study.levels if level.label == study.reference)
        default = _at(study, base, reference, seed=0)
    for level in study.levels:
        same = level.label != study.reference and _at(study, base, level, seed=0) == default
        for seed in range(1, 1 if same else n_seeds + 1):
            label = {study.axis: level.label} if study.axis else {}
            labels = base.labels | label | {"seed": seed}
            yield Cell(labels, _at(study, base, level, seed))


def _at(study: Study, base: Base, level: Level, seed: int) -> Config:
    c = changed(base.values, {**study.changes, **level.changes, "seed": seed})
    if c.task.seeds or c.task.n_seeds:
        return c
    return dataclasses.replace(c, task=dataclasses.replace(c.task, n_seeds=setup.BUNDLED_SEEDS))


def with_common_lengths(configs: Sequence[Config], data_dir: pathlib.Path) -> list[Config]:
    """The configurations with lengths that suit every cell of a domain and model.

    Lengths follow from the seeds that are drawn (`host.lengths`), so that each random seed would be
    a program of its own, and one number of seeds would have more room than another. Bundled domains
    have room for `MOST_SEEDS` in every study, so that what two studies ask for is run once.

    Raises:
      ValueError: seeds or model are unusable.
    """
    groups: dict[Any, list[lengths.Encoded]] = {}
    encoded: dict[Any, lengths.Encoded] = {}
    for c in configs:
        task = c.task
        if not (task.seeds or task.topics):
            task = dataclasses.replace(task, n_seeds=max(task.n_seeds, MOST_SEEDS))
        what = (_group(c), c.seed, task, c.question.max_tokens, c.answer.max_tokens)
        if what not in encoded:
            encoded[what] = _encode(dataclasses.replace(c, task=task), data_dir)
            groups.setdefault(_group(c), []).append(encoded[what])
    return [_longest(c, groups[_group(c)]) for c in configs]


def _group(c: Config) -> Any:
    return c.model, c.task.name, c.task.seeds, c.task.test


def _encode(c: Config, data_dir: pathlib.Path) -> lengths.Encoded:
    base = setup.read_base(c)
    template = packing.Template.of(base.vocabulary)
    task = setup.load_task(c, data_dir)
    return lengths.encode(c, task, base.vocabulary, template, base.network.max_length)


def _longest(c: Config, found: Sequence[lengths.Encoded]) -> Config:
    question, answer = (
        dataclasses.replace(
            getattr(c, stage),
            max_tokens=max(getattr(e.config, stage).max_tokens for e in found),
        )
        for stage in ("question", "answer")
    )
    pair_tokens = max(e.typical_pair for e in found)
    return dataclasses.replace(c, question=question, answer=answer, pair_tokens=pair_tokens)
