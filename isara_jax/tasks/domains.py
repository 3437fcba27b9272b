"""Domains to align a model to: somebody's own seeds, or one of the bundled ones."""

import dataclasses
import functools
import pathlib
import random
from collections.abc import Sequence

from isara_jax.tasks import builders, bundled, files, world
from isara_jax.tasks.base import Item, Pair, Task

_CHOOSING_FROM = 16  # seeds: a quarter of fewer tells too little


def load(
    name: str,
    seeds_file: str | None,
    n_seeds: int,
    topics: tuple[str, ...],
    held_out: int,
    seed: int,
    data_dir: pathlib.Path,
) -> Task:
    """Loads a domain through its TFDS data set.

    Args:
      name: of the bundled domain, or any name for somebody's own seeds.
      seeds_file: own seeds (see `files.read_seeds`), None or empty for the bundled domain.
      n_seeds: how many seeds; 0 takes all of `seeds_file`.
      topics: restricts the seeds of a bundled domain (its items stay); empty for all topics.
      held_out: how many pairs of `seeds_file` become items and never seeds, -1 for `n_held_out`;
        the bundled domains have items of their own.
      seed: of the draw of seeds, or of what is held out.
      data_dir: where data sets are kept.

    Raises:
      ValueError: there is no such domain or topic, or fewer than two seeds are asked for.
      SeedError: the file is unusable, or too few of its pairs remain as seeds.
    """
    if seeds_file:
        if topics:
            raise ValueError(
                f"topics: found {', '.join(topics)}, but only bundled domains have topics; "
                "leave it empty with own seeds"
            )
        read = files.read_seeds(seeds_file)
        seeds, items = _divided(name, seeds_file, read.pairs, n_seeds, held_out, seed)
        seeds, items = builders.materialize(seeds, items, data_dir)
        return Task(name, seeds, items, (), judge=None, check_question=None, about=read.about)
    if name not in world.DOMAINS:
        raise ValueError(
            f"task name: found {name!r}, expected one of {', '.join(world.DOMAINS)}; "
            "for a domain of your own, give a seeds_file"
        )
    if n_seeds < files.MINIMUM:
        raise ValueError(f"n_seeds: found {n_seeds}, expected at least {files.MINIMUM}")
    seeds = bundled.bundled_seeds(name, n_seeds, topics or None, seed)
    seeds, items = builders.materialize(seeds, bundled.bundled_items(name), data_dir)
    check = functools.partial(bundled.check_question, name)
    return Task(name, seeds, items, bundled.METRICS[name], bundled.judge, check)


def tested_on(task: Task, name: str) -> Task:
    """The task with the held-out questions, metrics and judge of a bundled domain.

    Raises:
      ValueError: there is no such domain.
    """
    if name not in world.DOMAINS:
        raise ValueError(f"task.test: found {name!r}, expected one of {', '.join(world.DOMAINS)}")
    items, metrics = bundled.bundled_items(name), bundled.METRICS[name]
    return dataclasses.replace(task, items=items, metrics=metrics, judge=bundled.judge)


def n_held_out(n_pairs: int) -> int:
    """How many of somebody's own pairs are held out where nobody says.

    A quarter: 16 of 64. At least 8 where that leaves twice as many as seeds, at least 1 where there
    are two seeds besides, and at most 256, which tell small differences.
    """
    least = 8 if n_pairs >= 24 else 1 if n_pairs > files.MINIMUM else 0
    return min(max(n_pairs // 4, least), 256)


def n_validation(n_seeds: int, asked: int) -> int:
    """How many seeds, the last ones, are kept for choosing.

    The last, because bundled seeds stand in rotation: of safety's last eight two are benign and the
    others of six topics, and so it is with the rest. Own seeds are shuffled.

    Args:
      n_seeds: all of them.
      asked: `config.task.validation`; -1 for a quarter where there are enough, else none.

    Raises:
      ValueError: fewer than two others would be left.
    """
    if asked < 0:
        return n_seeds // 4 if n_seeds >= _CHOOSING_FROM else 0
    if n_seeds - asked < files.MINIMUM:
        raise ValueError(
            f"config.task.validation={asked} of {n_seeds} seeds: at least {files.MINIMUM} others "
            "are needed; lower it, or give more seeds"
        )
    return asked


def share_held_out(n: int) -> str:
    """What n of `n_held_out` are: of how many pairs does not matter."""
    return {0: "there are too few pairs", 1: "the least", 8: "the least", 256: "the most"}.get(
        n, "a quarter"
    )


def _divided(
    name: str, seeds_file: str, found: Sequence[Pair], n_seeds: int, held_out: int, seed: int
) -> tuple[list[Pair], list[Item]]:
    """Own pairs, shuffled and divided into seeds and items."""
    pairs = list(found)
    random.Random(f"{seed}/seeds/{name}").shuffle(pairs)
    held_out = n_held_out(len(pairs)) if held_out < 0 else held_out
    rest = max(len(pairs) - held_out, 0)
    seeds = pairs[: min(n_seeds, rest) if n_seeds > 0 else rest]
    if len(seeds) < files.MINIMUM:
        raise files.SeedError(
            f"{seeds_file}: found {len(pairs)} pairs; held_out={held_out} and n_seeds={n_seeds} "
            f"leave {len(seeds)} as seeds, expected at least {files.MINIMUM}; add pairs or change "
            "these settings"
        )
    items = [Item(p.question, p.answer, "held_out", "all") for p in pairs[rest:]]
    return seeds, items
