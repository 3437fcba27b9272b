"""A study's result as a picture."""

import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from isara_jax.studies import tables

_COLOURS = {
    "base": "#888888",
    "icl_random": "#c2a5cf",
    "icl_fixed": "#9970ab",
    "icl_knn": "#762a83",
    "sft": "#1b7837",
    "sft_longest": "#5aae61",
    "sft_best": "#a6dba0",
    "one_round": "#e08214",
    "isara": "#2166ac",
    "reference": "#92c5de",
}
_PANEL = (4.2, 3.2)  # inches
_DIVERSITY = {
    "accepted": "accepted",
    "duplicates": "near-duplicates, share",
    "refusals": "refusals, share of answers",
    "question_distinct_2": "questions, distinct-2",
    "question_self_bleu": "questions, self-BLEU",
    "answer_self_bleu": "answers, self-BLEU",
}
Result = Mapping[str, Any]
Group = Mapping[str, Any]


def png(result: Result) -> bytes:
    """The content of the study's `.png`: panels as `result["plot"]` says."""
    draw = {"dots": _dots, "curves": _curves, "iterations": _by_iteration}[result["plot"]]
    with matplotlib.rc_context({"font.size": 8}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        figure = draw(result)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _panels(
    columns: Sequence[Any], rows: Sequence[Any], draw: Callable[[Axes, Any, Any], None]
) -> Figure:
    """`draw(axes, column, row)` for each panel."""
    size = (_PANEL[0] * len(columns), _PANEL[1] * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for (y, row), (x, column) in itertools.product(enumerate(rows), enumerate(columns)):
        draw(grid[y][x], column, row)
    named = {}
    for axes in grid.flat:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if named:
        ncols = 2 * min(len(columns), 2)
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=ncols, frameon=False
        )
    return figure


def _domains(result: Result) -> dict[tuple[str, str], list[Group]]:
    """The groups of each domain and model."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in result["groups"]:
        labels = group["labels"]
        found.setdefault((labels["domain"], labels["model"]), []).append(group)
    return found


def _headline(group: Group) -> str:
    return next(iter(group["metrics"]))


def _methods(groups: Sequence[Group]) -> list[str]:
    """Those to be drawn: of ISARA the last iteration."""
    names = tables.ordered(m for g in groups for m in g["metrics"][_headline(g)]["methods"])
    return [name for name in names if name in _COLOURS]


def _dots(result: Result) -> Figure:
    """A panel a domain and model, a line a level, a dot with its interval a method."""
    domains = _domains(result)

    def draw(axes: Axes, key: tuple[str, str], row: None) -> None:
        del row
        groups = domains[key]
        names = _methods(groups)
        for m, name in enumerate(names):
            offset = 0.6 * ((m + 0.5) / len(names) - 0.5)
            for place, group in enumerate(groups):
                e = group["metrics"][_headline(group)]["methods"].get(name)
                if e is not None:
                    _dot(axes, e, place + offset, name, result)
        levels = [str(group["labels"].get(result["axis"], "")) for group in groups]
        axes.set_yticks(range(len(groups)), levels)
        axes.invert_yaxis()
        axes.set_xlabel(_metric_title(groups[0]))
        axes.set_title(", ".join(key))
        axes.grid(axis="x", alpha=0.3)

    figure = _panels(list(domains), [None], draw)
    tallest = max(map(len, domains.values()))
    figure.set_figheight(max(_PANEL[1], 1.2 + 0.55 * tallest))
    return figure


def _dot(axes: Axes, e: Mapping[str, Any], y: float, name: str, result: Result) -> None:
    if e["low"] is not None:
        axes.plot([e["low"], e["high"]], [y, y], color=_COLOURS[name], linewidth=1)
    axes.plot(e["mean"], y, "o", color=_COLOURS[name], markersize=4,
              label=tables.method(name, result))  # fmt: skip


def _curves(result: Result) -> Figure:
    """A panel a domain and model: a curve a method against the number of seeds, with its band.

    The base model, which has none, is told above, so that the others have the room.
    """
    domains = _domains(result)

    def draw(axes: Axes, key: tuple[str, str], row: None) -> None:
        del row
        groups = domains[key]
        for name in _methods(groups):
            if name == "base":
                continue
            found = [
                (group["seeds"], group["metrics"][_headline(group)]["methods"].get(name))
                for group in groups
            ]
            known = [(x, e) for x, e in found if e is not None]
            _line(axes, known, _COLOURS[name], tables.method(name, result))
        axes.set_xscale("log", base=2)
        places = sorted({group["seeds"] for group in groups})
        axes.set_xticks(places, [str(x) for x in places])
        axes.set_xlabel(result["axis"])
        axes.set_ylabel(_metric_title(groups[0]))
        base = groups[0]["metrics"][_headline(groups[0])]["methods"].get("base")
        axes.set_title(", ".join(key) + (f" (base model {base['mean']:.3f})" if base else ""))
        axes.grid(alpha=0.3)

    return _panels(list(domains), [None], draw)


def _line(
    axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], colour: str, label: str = ""
) -> None:
    places = [x for x, _ in points]
    axes.plot(places, [e["mean"] for _, e in points], "o-", color=colour, label=label, markersize=3)
    if all(e["low"] is not None for _, e in points):
        low, high = ([e[end] for _, e in points] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)


def _by_iteration(result: Result) -> Figure:
    """A row a domain and model: every headline, and the texts' diversity, by iteration."""
    groups = {", ".join(map(str, group["labels"].values())): group for group in result["groups"]}
    known = list(tables.metrics(result))

    def draw(axes: Axes, name: str, title: str) -> None:
        group = groups[title]
        if name in group["metrics"]:
            found = group["metrics"][name]["methods"]
            earlier = [k for k in found if k.startswith("isara_")]
            points = [(i, found[k]) for i, k in enumerate(["base", *earlier, "isara"])]
            _line(axes, points, _COLOURS["isara"])
        else:
            entries = group["iterations"]
            axes.plot([e["iteration"] for e in entries], [e[name] for e in entries], "o-",
                      color=_COLOURS["one_round"], markersize=3)  # fmt: skip
        axes.set_ylabel(_DIVERSITY.get(name) or tables.title(name, tables.metrics(result)[name]))
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title)
        axes.grid(alpha=0.3)

    return _panels([*known, *_DIVERSITY], list(groups), draw)


def _metric_title(group: Group) -> str:
    name = _headline(group)
    return tables.title(name, group["metrics"][name])
