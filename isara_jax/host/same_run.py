"""Whether a folder holds this run: what makes it this one, and what may change on the way."""

import os
import pathlib
from typing import Any

import ml_collections

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import remote, storage
from isara_jax.formats import weights
from isara_jax.host import fingerprint
from isara_jax.host.setup import Setup

# Fields that may change between the start of a run and its continuation.
_FREE_FIELDS = {
    "iterations", "execution", "compilation_cache", "mesh", "slots", "patience",
    "train/on_divergence",
}  # fmt: skip
# What they choose is compared itself: seeds, held-out items and choices, by their content.
_COMPARED_BY_CONTENT = {
    "task/seeds", "task/n_seeds", "task/topics", "task/held_out", "task/test",
    "evaluation/choices", "evaluation/n",
}  # fmt: skip
_FOLLOWS_FROM_DATA = {
    f"{stage}/{field}"
    for stage in ("question", "answer")
    for field in ("max_tokens", "prompt_tokens")
}
_PATHS = {  # may be spelt otherwise
    "model/path", "train/init_adapter", "evaluation/judges", "task/seeds", "evaluation/choices",
}  # fmt: skip


def record(setup: Setup) -> dict[str, Any]:
    """What makes a run this one: configuration and data, as kept in `config.json`."""
    return config.to_dict(setup.config) | {"data": fingerprint.of(setup.data)}


def check(setup: Setup, place: remote.Workdir) -> None:
    """Raises `config.ConfigError` where `place` holds a run with other data or configuration.

    A `config.json` that is missing or damaged is written anew: what is kept for a restart has what
    it says, too, and is compared when it is read.
    """
    path = place.local / "config.json"
    try:
        recorded = storage.read_json(path, ours=True)
    except config.UserError as error:
        if path.exists():
            processes.say_once(f"{error}; it is written anew")
        return
    compare(setup, place, recorded)


def compare(setup: Setup, place: remote.Workdir, recorded: dict[str, Any]) -> None:
    """Raises `config.ConfigError` where `record`, as it was kept, is of another run."""
    fields = dict(recorded)
    data = fields.pop("data", None)
    other_data = not fingerprint.agrees(data, setup.data)
    known = config.to_dict(config.resolve(ml_collections.ConfigDict(fields)))  # newer fields too
    old, new = weights.flatten(known), weights.flatten(config.to_dict(setup.config))
    other = _other_fields(old, new, other_data)
    flags = " ".join(config.flag(name.replace("/", "."), old[name]) for name in other)
    cure = f"To continue it, give {flags}; to start anew, choose another --workdir"
    if changed := [name for name in other if name not in _COMPARED_BY_CONTENT]:
        said = (
            f"config.{name.replace('/', '.')}: {old[name]!r} there, {new[name]!r} now"
            for name in changed[:4]
        )
        raise config.ConfigError(
            f"{place} holds a run with another configuration ({'; '.join(said)}). {cure}, or "
            "delete that one"
        )
    if other_data:
        raise config.ConfigError(
            f"{place}: seeds, held-out items or choices have changed since this run began "
            f"({fingerprint.changes(data, setup.data)}). "
            + (cure if other else "Put them back, or choose another --workdir")
        )


def _other_fields(old: dict[str, Any], new: dict[str, Any], other_data: bool) -> list[str]:
    """Fields that make a run another one; those that choose its data where these are others."""
    free = _FREE_FIELDS | (_FOLLOWS_FROM_DATA if other_data else _COMPARED_BY_CONTENT)
    return [
        name
        for name in new
        if not (name in free or old[name] == new[name])
        and not (name in _PATHS and _same_place(old[name], new[name]))
    ]


def _same_place(one: str | list[str], other: str | list[str]) -> bool:
    """Whether paths, or lists of them, lead to the same files."""
    if isinstance(one, str):
        places = [remote.path(path) for path in (one, other)]
        return all(isinstance(p, pathlib.Path) for p in places) and (
            os.path.realpath(places[0]) == os.path.realpath(places[1])
        )
    return len(one) == len(other) and all(map(_same_place, one, other))
