"""The end of a run as plain text, and the words and numbers that the HTML report shares with it."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from isara_jax.shell import terminal

WIDTH = 118
MISSING = "–"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NAMES = {
    "base": "Base",
    "icl_random": "ICL-random",
    "icl_fixed": "ICL-fixed",
    "icl_knn": "ICL-kNN",
}
_OTHERS = ("icl_random", "icl_fixed", "icl_knn", "one_round")  # besides SFT
Summary = Mapping[str, Any]
Row = Mapping[str, Any]


def get(mapping: Mapping[str, Any] | None, *keys: str) -> Any:
    """The value under nested keys; None where a level is missing, None or not finite."""
    value: Any = mapping
    for key in keys:
        value = (value or {}).get(key)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows(summary: Summary, method: str | None = None) -> list[Row]:
    """The table's rows, of one method where it is named."""
    return [r for r in get(summary, "rows") or [] if method in (None, r.get("method"))]


def label(row: Row) -> str:
    """What a row is called."""
    match row.get("method"):
        case "sft" | "one_round" as method:
            steps, n = row.get("steps"), row.get("chosen_on")
            name = "SFT on the seeds" if method == "sft" else "One round"
            name += "" if steps is None else f", {steps:,} steps"
            name += f", chosen on {n} of them" if n else ""
            return name + (", dropped" if row.get("train_dropped") else "")
        case "isara":
            return f"ISARA iteration {row.get('iteration')}"
        case method:
            return _NAMES.get(method, str(method))


def metrics(summary: Summary) -> list[str]:
    """All metrics that some row has, sampled and greedy side by side, in the summary's order."""
    present = dict.fromkeys(name for row in rows(summary) for name in get(row, "metrics") or {})
    known = [n for n in get(summary, "metrics_info") or {} if n in present]
    names = known + [n for n in present if n not in known]
    stems = dict.fromkeys(name.removesuffix("_greedy") for name in names)
    return [n for stem in stems for n in (stem, f"{stem}_greedy") if n in names]


def kind(summary: Summary, name: str) -> str:
    """How the metric's answers were decoded: greedy, sampled, or empty where it has no twin."""
    if name.endswith("_greedy"):
        return "greedy"
    return "sampled" if f"{name}_greedy" in metrics(summary) else ""


def title(summary: Summary, name: str) -> str:
    """The metric's title, without a word on the decoding."""
    words = get(summary, "metrics_info", name, "title") or name.removesuffix("_greedy")
    return re.sub(r"\W*\b(sampled|greedy)\b\W*$", "", words) or words


def higher_is_better(summary: Summary, name: str) -> bool | None:
    """The metric's direction; None where neither is better."""
    return (get(summary, "metrics_info", name) or {}).get("higher_is_better", True)


def is_share(summary: Summary, name: str) -> bool:
    """Whether the metric is a share, shown in percent."""
    return any(get(row, "counts", name) for row in rows(summary))


def _known(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def interval(row: Row, name: str) -> tuple[float, float] | None:
    """The 95 % interval of a value, if both are known."""
    bounds = get(row, "intervals", name) or ()
    good = len(bounds) == 2 and _known(get(row, "metrics", name), *bounds)
    return tuple(bounds) if good else None


def cell(summary: Summary, row: Row, name: str) -> tuple[str, str]:
    """The value and its 95 % interval as text; empty where there is no interval."""
    value, share = get(row, "metrics", name), is_share(summary, name)
    if value is None:
        return MISSING, ""
    text = [f"{100 * b:.0f}" if share else f"{b:.3f}" for b in interval(row, name) or ()]
    return f"{100 * value:.1f} %" if share else f"{value:.3f}", "–".join(text)


def difference(old: Row, new: Row, name: str) -> tuple[float, float, float] | None:
    """New minus old item by item, and its 95 % interval; None where it is not known."""
    found = get(new, "differences", str(old.get("method")), name) or ()
    if not found:  # or the other way round
        found = [
            None if x is None else -x
            for x in get(old, "differences", str(new.get("method")), name) or ()
        ]
        found[1:] = found[:0:-1]
    return tuple(found) if len(found) == 3 and _known(*found) else None


def change(summary: Summary, name: str, found: tuple[float, float, float] | None) -> str:
    """A difference and its interval as text, of shares in points; empty where there is none."""
    if found is None:
        return ""
    share = is_share(summary, name)
    # "+ 0.0": no minus before a zero.
    value, *ends = (round(100 * x, 1) + 0.0 if share else round(x, 3) + 0.0 for x in found)
    form = "+.1f" if share else "+.3f"
    return f"{value:{form}} ({' to '.join(f'{end:{form}}' for end in ends)})"


def header(summary: Summary, name: str) -> tuple[str, str, str]:
    """A column's head: the title; decoding and direction; `n=256`, or the range over the rows."""
    counts = (
        (get(row, "counts", name) or [0, get(row, "sizes", name) or row.get("n")])[1]
        for row in rows(summary)
    )
    found = sorted({n for n in counts if n is not None})
    ends = "–".join(f"{n:,}" for n in dict.fromkeys((*found[:1], *found[-1:])))
    arrow = {True: "↑", False: "↓", None: ""}[higher_is_better(summary, name)]
    how = f"{kind(summary, name)} {arrow}".strip()
    return title(summary, name), how, f"n={ends}" if ends else ""


def last_isara(summary: Summary) -> Row | None:
    """The row of the last iteration."""
    return max(rows(summary, "isara"), key=lambda r: r.get("iteration") or 0, default=None)


def result(summary: Summary) -> Row | None:
    """The row of the model that the run gives: that of the iteration kept, else the last one's."""
    kept = get(summary, "kept", "iteration")
    found = [row for row in rows(summary, "isara") if row.get("iteration") == kept]
    return found[0] if found else last_isara(summary)


def sft(summary: Summary) -> dict[str, Row]:
    """SFT rows worth naming: the longest (equal compute), and the one that validation seeds chose.

    Where they chose none, the best by the headline metric.
    """
    name = next(iter(metrics(summary)), "")
    found = [r for r in rows(summary, "sft") if get(r, "metrics", name) is not None]
    if not found:
        return {}
    longest = max(found, key=lambda r: r.get("steps") or 0)
    steps = sum(i.get("train_steps") or 0 for i in get(summary, "iterations") or [])
    equal = "equal compute" if (longest.get("steps") or 0) >= 0.99 * steps > 0 else "longest"
    sign = _sign(summary, name)
    which, first = "best", max(found, key=lambda r: sign * r["metrics"][name])
    if chosen := [row for row in found if row.get("chosen_on")]:
        which, first = "chosen", chosen[0]
    return {f"{which}, {equal}": first} if first is longest else {which: first, equal: longest}


def flattered(summary: Summary) -> str:
    """What must be known of the best SFT row; empty where this table did not choose it."""
    n = len(rows(summary, "sft"))
    best = any(which.startswith("best") for which in sft(summary))
    count = _NUMBERS[n] if n < len(_NUMBERS) else str(n)
    return f"best of {count}, flattered: chosen on what is reported" if best and n > 1 else ""


def _sign(summary: Summary, name: str) -> int:
    return -1 if higher_is_better(summary, name) is False else 1


def compare(summary: Summary, name: str, old: Row, new: Row) -> int | None:
    """1: better (or higher, where neither is better), -1: worse, 0: not clear; None: unknown.

    By the interval of the difference, item by item, where it is known; else by whether the
    intervals of the two values are apart, which takes much larger differences.
    """
    sign = _sign(summary, name)
    if found := difference(old, new, name):
        return sign * (int(found[1] > 0) - int(found[2] < 0))
    a, b = interval(old, name), interval(new, name)
    if a is None or b is None:
        return None
    return sign * (int(b[0] > a[1]) - int(b[1] < a[0]))


def _outcome(summary: Summary, name: str, base: Row, last: Row) -> str:
    """Whether the last iteration is better than the base model, and how sure that is."""
    better, worse = ("better", "worse")
    if higher_is_better(summary, name) is None:
        better, worse = ("higher", "lower")
    sure = {1: f"{better} than the base model", -1: f"{worse} than the base model",
            0: "no clear change"}  # fmt: skip
    found = compare(summary, name, base, last)
    if found is None:
        return "how sure that is, is unknown: there are no intervals"
    if item_by_item := change(summary, name, difference(base, last, name)):
        return f"{sure[found]}; item by item the difference is {item_by_item}"
    unit = " %" if is_share(summary, name) else ""
    ranges = [f"{cell(summary, row, name)[1]}{unit}" for row in (base, last)]
    how = "are apart" if found else "overlap"
    return f"{sure[found]}{';' if found else ':'} the 95 % intervals {how} ({' and '.join(ranges)})"


def verdict(summary: Summary) -> list[str]:
    """What the headline metric says of the run, good or bad, one sentence an element."""
    names, base, last = metrics(summary), rows(summary, "base"), last_isara(summary)
    if not names or not base or last is None:
        return ["The run has no base row and ISARA row to compare."]
    name, base = names[0], base[0]
    old, new = get(base, "metrics", name), get(last, "metrics", name)
    if old is None or new is None:
        return [f"{title(summary, name)}: not measured before and after ISARA."]
    a, b = cell(summary, base, name)[0], cell(summary, last, name)[0]
    how = f" ({kind(summary, name)})" if kind(summary, name) else ""
    verb = "rose" if new > old else "fell" if new < old else "stayed"
    span = f"from {a} to {b}" if new != old else f"at {b}"
    said = [
        f"{title(summary, name)}{how} {verb} {span} by ISARA iteration {last.get('iteration')}"
        f" – {_outcome(summary, name, base, last)}."
    ]
    others = []
    for which, row in sft(summary).items():
        how = which.replace("best", flattered(summary)) if flattered(summary) else which
        how = how.removeprefix("chosen").strip(", ")  # which the label says
        others.append((label(row) + (f" ({how})" if how else ""), row))
    others += [(label(r), r) for method in _OTHERS for r in rows(summary, method)]
    relation = {1: "above it", -1: "below it", 0: "not clearly apart", None: "not comparable"}
    if higher_is_better(summary, name) is False:
        relation |= {1: "better (lower)", -1: "worse (higher)"}
    for who, row in others:
        by = change(summary, name, difference(row, last, name))
        said.append(
            f"{who}: {cell(summary, row, name)[0]}; ISARA ends "
            f"{relation[compare(summary, name, row, last)]}{', ' if by else ''}{by}."
        )
    return said


def differences(summary: Summary) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Per method: what it changes of the base model's metrics, sampled ones."""
    base = next(iter(rows(summary, "base")), {})
    found = [row for row in rows(summary) if get(row, "differences", "base")]
    columns = []
    for name in (n for n in metrics(summary) if not n.endswith("_greedy")):
        cells = [change(summary, name, difference(base, row, name)) for row in found]
        if any(cells):
            columns.append((title(summary, name), [text or MISSING for text in cells]))
    return [label(row) for row in found] if columns else [], columns


NOTE_DIFFERENCES = (
    "Difference to the base model item by item, with its 95 % interval, of shares in points: what "
    "items have in common falls out of it."
)
NOTE_RULE = (
    "By rule (crude): the beginning of the answer has a phrase that refusals have. All answers are "
    "in answers/."
)


def notes(summary: Summary) -> list[str]:
    """What must be known of the prompts, and of what was chosen and seen."""
    about = get(summary, "prompts")
    return ([f"Prompts: {about}. {NOTE_RULE}"] if about else []) + provenance(summary)


def provenance(summary: Summary) -> list[str]:
    """Which iteration was kept, what was seen of the held-out questions, trouble and collapse."""
    found = [_kept(summary), _leakage(summary), _trouble(summary)]
    found += [
        f"Iteration {i.get('iteration')}: {i['collapse']}."
        for i in get(summary, "iterations") or []
        if i.get("collapse")
    ]
    return [line for line in found if line]


def _trouble(summary: Summary) -> str:
    """Updates that trainings held back, and trainings that came to nothing."""
    trained = [(f"iteration {i.get('iteration')}", i) for i in get(summary, "iterations") or []]
    others = (row for row in rows(summary) if row.get("method") in ("sft", "one_round"))
    trained += [(label(row).removesuffix(", dropped"), row) for row in others]
    skipped = [f"{name}: {n:,}" for name, found in trained if (n := found.get("train_skipped"))]
    dropped = [name for name, found in trained if found.get("train_dropped")]
    said = []
    if skipped:
        said.append(
            "Updates held back, whose loss or gradient was not finite (their batches are in "
            f"trouble/): {'; '.join(skipped)}."
        )
    if dropped:
        said.append(
            "Dropped, since the loss exploded (the model measured is the one before this "
            f"training): {'; '.join(dropped)}."
        )
    return " ".join(said)


def _kept(summary: Summary) -> str:
    """Which iteration's model is the result, where that was chosen."""
    kept = get(summary, "kept")
    if not kept:
        return ""
    number, losses, base = kept["iteration"], kept["validation"], kept["base"]
    said = (
        f"Kept: iteration {number}, by its loss on {kept['n']} validation seeds, "
        f"{losses[number - 1]:.3f} nats a token"
    )
    if number != kept["last"]:
        said += f"; the last, iteration {kept['last']}, has {losses[-1]:.3f}"
    lower = base < min(losses)
    return f"{said}. {f'The base model is lower than all: {base:.3f}.' if lower else ''}".rstrip()


def _leakage(summary: Summary) -> str:
    """How many questions of seeds and samples are near held-out ones."""
    found = get(summary, "leakage")
    if not found:
        return ""
    accepted = [entry for entry in found["accepted"] if entry["near"] is not None]
    total = {key: sum(entry[key] for entry in accepted) for key in ("n", "near", "identical")}
    groups = [("seeds", found["seeds"]), ("accepted samples", total)]
    if found["one_round"]:
        groups.append(("samples of the one round", found["one_round"]))
    said = "; ".join(
        f"of {group['n']:,} {name} {group['near']:,} ({group['identical']:,} identical)"
        for name, group in groups
    )
    return (
        f"Leakage: questions near one of the {found['held_out']:,} held-out ones (ROUGE-L of "
        f"{found['rouge_l']:g} or more): {said}."
    )


def acceptance(summary: Summary) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Per iteration: what was attempted, accepted, and why the others were not."""
    its = get(summary, "iterations") or []
    reasons = dict.fromkeys(r for i in its for r in get(i, "reasons") or {} if r != "accepted")

    def percent(value: float | None) -> str:
        return MISSING if value is None else f"{100 * value:.1f} %"

    def loss(i: Row) -> str:
        ends = (get(i, "train_loss_first"), get(i, "train_loss_last"))
        return " → ".join(MISSING if x is None else f"{x:.3f}" for x in ends)

    columns = [("attempted", [_count(i.get("attempted")) for i in its])]
    columns += [("accepted", [_count(i.get("accepted")) for i in its])]
    columns += [
        (r.replace("_", " "), [_count(get(i, "reasons", r) or 0) for i in its]) for r in reasons
    ]
    for name, what in (("distinct", "questions"), ("distinct_2", "word pairs")):
        if any(get(i, name) is not None for i in its):
            columns += [(f"distinct {what}", [percent(get(i, name)) for i in its])]
    for name in ("valid_questions", "aligned_answers"):
        if any(get(i, name) is not None for i in its):
            columns += [(name.replace("_", " "), [percent(get(i, name)) for i in its])]
    for name in ("near_held_out", "identical_to_held_out"):
        if any(name in i for i in its):
            columns += [(name.replace("_", " "), [_count(i.get(name)) for i in its])]
    columns += [("train steps", [_count(i.get("train_steps")) for i in its])]
    if any(i.get("train_skipped") for i in its):
        columns += [("updates held back", [_count(i.get("train_skipped")) for i in its])]
    columns += [("train loss", [loss(i) for i in its])]
    return [f"Iteration {i.get('iteration')}" for i in its], columns


def times(summary: Summary) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Per stage: seconds, tokens, tokens a second, compilations; empty columns left out."""
    seconds, tokens, compiles = (get(summary, k) or {} for k in ("seconds", "tokens", "compiles"))
    names = list(dict.fromkeys((*seconds, *tokens, *compiles)))
    both = [(get(tokens, n), get(seconds, n)) for n in names]
    columns = [
        ("seconds", [f"{seconds[n]:,.1f}" if get(seconds, n) is not None else "" for n in names]),
        ("tokens", [_count(tokens[n]) if get(tokens, n) is not None else "" for n in names]),
        ("tokens/s", [f"{t / s:,.0f}" if t is not None and s else "" for t, s in both]),
        ("compiled", [_count(compiles[n]) if n in compiles else "" for n in names]),
    ]
    return [n.replace("_", " ") for n in names], [c for c in columns if any(c[1])]


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _grid(first: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Aligned columns under their heads; what is wider than `WIDTH` continues in a new block."""
    blocks, current, room = [], [], 0
    left = max(map(len, first), default=0)
    for head, cells in columns:
        width = max(10, *map(len, cells)) if cells else 10
        lines = [w for part in head.split("\n") for w in textwrap.wrap(part, width) or [""]]
        width = max(map(len, (*lines, *cells)))
        if current and left + room + 2 + width > WIDTH:
            blocks, current, room = [*blocks, current], [], 0
        current, room = [*current, (lines, cells, width)], room + 2 + width
    text = []
    for block in [*blocks, current] if current else []:
        height = max(len(lines) for lines, _, _ in block)
        heads = [[""] * (height - len(lines)) + lines for lines, _, _ in block]
        body = [("", *line) for line in zip(*heads, strict=True)]
        body += [(name, *(c[i] for _, c, _ in block)) for i, name in enumerate(first)]
        for name, *cells in body:
            parts = (f"  {c:>{b[2]}}" for c, b in zip(cells, block, strict=True))
            text.append((name.ljust(left) + "".join(parts)).rstrip())
        text.append("")
    return text


def blocks(summary: Summary) -> list[str]:
    """The metrics: in one block where it fits, else sampled and greedy apart."""
    found, names = rows(summary), metrics(summary)

    def column(name: str) -> tuple[str, list[str]]:
        return "\n".join(header(summary, name)), [
            " ".join(filter(None, cell(summary, row, name))) for row in found
        ]

    lines = _grid([label(r) for r in found], [column(n) for n in names])
    if lines.count("") <= 1:
        return lines
    parts = [[n for n in names if n.endswith("_greedy") == greedy] for greedy in (False, True)]
    return [x for p in parts for x in _grid([label(r) for r in found], [column(n) for n in p])]


def _paragraph(lead: str, text: str | None) -> list[str]:
    """Wrapped text of the model."""
    shown = terminal.visible(lead + (text or MISSING))
    return textwrap.wrap(shown, WIDTH, subsequent_indent=" " * len(lead)) or [lead]


def text(summary: Summary) -> str:
    """What the terminal shows at the end of a run.

    Args:
      summary: the content of summary.json; what is missing in it is left out.

    Returns:
      Lines of at most `WIDTH` columns, unless one column alone is wider.
    """
    facts = (get(summary, "task"), get(summary, "model"))
    seeds = get(summary, "n_seeds")
    lead = " · ".join([*map(str, filter(None, facts)), *([f"{seeds} seeds"] if seeds else [])])
    lines = ["", f"ISARA · {lead}" if lead else "ISARA", ""]
    lines += blocks(summary)
    if metrics(summary):
        lines += [
            "After each value its 95 % interval. ↑: higher is better; ↓: lower is better.",
            *(line for note in notes(summary) for line in textwrap.wrap(note, WIDTH)),
            "",
        ]
    if grid := _grid(*differences(summary)):
        lines += [*textwrap.wrap(NOTE_DIFFERENCES, WIDTH), "", *grid]
    lines += [part for said in verdict(summary) for part in textwrap.wrap(said, WIDTH)] + [""]
    ratio = get(summary, "scaling_ratio")
    if ratio is not None:
        lines += [f"Scaling ratio: {ratio:.1f} accepted samples for each seed.", ""]
    lines += _grid(*acceptance(summary)) + _grid(*times(summary))
    for example in get(summary, "examples") or []:
        lines += _paragraph("Question: ", example.get("question"))
        for when in ("before", "after"):
            tag = example.get(f"{when}_label")
            lines += _paragraph(f"  {when:<6} " + (f"[{tag}] " if tag else ""), example.get(when))
        lines.append("")
    return terminal.visible("\n".join(lines).rstrip()) + "\n"
