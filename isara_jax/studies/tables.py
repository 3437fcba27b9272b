"""A study's result as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "–"
NOTE = (
    "In brackets 95 % intervals over random seeds and held-out items, both resampled (crossed "
    "bootstrap, Student's t: `isara_jax/studies/bootstrap.py`). Differences are those of "
    "the same seeds on the same items, shares in points; bold where the interval leaves out 0. "
    "Where all outcomes are alike an interval has no width, which says nothing of other items."
)
_METHODS = {
    "base": "base model",
    "icl_random": "ICL, random",
    "icl_fixed": "ICL, fixed",
    "icl_knn": "ICL-kNN",
    "sft": "SFT, length chosen",
    "sft_longest": "SFT, longest",
    "sft_best": "SFT, best length (flattered)",
    "one_round": "one round",
    "isara": "ISARA",
}
_LAST = ("isara", "reference")
Result = Mapping[str, Any]


def method(name: str, result: Result) -> str:
    """What a method is called."""
    if name == "reference":
        return f"ISARA, {result['reference']}"
    if name.startswith("isara_"):
        return f"ISARA, iteration {name.removeprefix('isara_')}"
    return _METHODS.get(name, name)


def ordered(names: Iterable[str]) -> list[str]:
    """Methods in the order in which they are shown, each once: ISARA's iterations at the end."""
    known = [*_METHODS][:-1]

    def place(name: str) -> int:
        if name in _LAST:
            return len(known) + 1 + _LAST.index(name)
        return known.index(name) if name in known else len(known)

    return sorted(dict.fromkeys(names), key=place)


def title(name: str, about: Mapping[str, Any]) -> str:
    """What a metric is called, with how the answers were decoded."""
    greedy = "_greedy" in name
    decoding = ", greedy" if greedy else ", sampled" if about["share"] else ""
    return about["title"] + decoding + ("" if about["higher_is_better"] is not False else " (↓)")


def metrics(result: Result) -> dict[str, Mapping[str, Any]]:
    """All metrics that some group has."""
    return {name: about for group in result["groups"] for name, about in group["metrics"].items()}


def markdown(result: Result) -> str:
    """The content of the study's `.md`."""
    done, planned = result["cells"]["done"], result["cells"]["planned"]
    seeds = sorted({seed for group in result["groups"] for seed in group["random_seeds"]})
    lines = [
        f"# {result['study']}",
        "",
        f"Tested: {result['claim']}",
        "",
        f"{done} of {planned} runs, random seeds {', '.join(map(str, seeds))}; {result['date']}, "
        f"{result['seconds'] / 3600:.1f} h on {result['device']}; "
        f"{sum(result['compiles'].values())} compilations.",
        "",
        "```",
        result["command"],
        "```",
        "",
        NOTE,
    ]
    for name, about in metrics(result).items():
        lines += ["", f"## {title(name, about)}", "", *estimates(result, name, "methods")]
        lines += ["", "ISARA minus:", "", *estimates(result, name, "isara_minus")]
    for group in result["groups"]:
        heading = f"## {', '.join(filter(None, map(str, group['labels'].values())))}"
        lines += ["", heading, "", *_parts(group, result), "", *_iterations(group)]
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def estimates(result: Result, metric: str, what: str) -> list[str]:
    """The lines of a table: a row a group, a column a method.

    Args:
      result: of the study.
      metric: its name.
      what: `methods`, their values, or `isara_minus`, ISARA's differences to the others.
    """
    groups = [group for group in result["groups"] if metric in group["metrics"]]
    names = ordered(m for g in groups for m in g["metrics"][metric][what])
    head = [*groups[0]["labels"], *(method(name, result) for name in names)]
    rows = []
    for group in groups:
        about = group["metrics"][metric]
        cells = [_estimate(about[what].get(name), about["share"], what) for name in names]
        rows.append([*map(str, group["labels"].values()), *cells])
    return _table(head, rows)


def _estimate(e: Mapping[str, Any] | None, share: bool, what: str) -> str:
    if e is None:
        return MISSING
    scale, digits = (100, 1) if share else (1, 3)
    sign = "+" if what == "isara_minus" else ""
    value = f"{scale * e['mean']:{sign}.{digits}f}"
    if e["low"] is None:
        return value
    low, high = (f"{scale * e[end]:{sign}.{digits}f}" for end in ("low", "high"))
    if sign and e["low"] < e["high"] and not e["low"] <= 0 <= e["high"]:
        value = f"**{value}**"
    return f"{value} ({low} to {high})"


def _number(value: float | None, share: bool = False) -> str:
    if value is None:
        return MISSING
    return f"{100 * value:.1f}" if share else f"{value:.3f}".rstrip("0").rstrip(".")


def _parts(group: Mapping[str, Any], result: Result) -> list[str]:
    """The metrics' means, sampled, a row a method."""
    parts = {name: of for name, of in group["parts"].items() if not name.endswith("_greedy")}
    shares = {name for name in parts if name.endswith("_rate")}
    head = ["method", *(name.replace("_", " ") for name in parts)]
    rows = [
        [method(m, result), *(_number(of.get(m), name in shares) for name, of in parts.items())]
        for m in group["metrics"][next(iter(group["metrics"]))]["methods"]
        if m != "reference"
    ]
    return _table(head, rows)


def _iterations(group: Mapping[str, Any]) -> list[str]:
    """What was accepted, a row an iteration."""
    entries = group["iterations"]
    names = [name for name in entries[0] if any(entry[name] is not None for entry in entries)]
    head = [name.replace("_", " ") for name in names]
    return _table(head, [[_number(entry[name]) for name in names] for entry in entries])
