"""The report of a run: one self-contained HTML file with plots as inline SVG."""

import functools
import html
import io
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from isara_jax.files import storage
from isara_jax.report import table
from isara_jax.report.table import Summary, get
from isara_jax.shell import terminal

ISARA, SFT, BASE = "#0f766e", "#c2612c", "#a3aab2"
OTHERS = {
    "icl_knn": "#7a5ea8",
    "icl_random": "#a48fc9",
    "icl_fixed": "#b0719b",
    "one_round": "#3f7fb5",
}
INK = "#33404a"
REASONS = ("#e0a458", "#a3aab2", "#8aa9c8", "#c58b8b", "#b7a6d3", "#c9c48a", "#7f8c8d",
           "#9c7a5b")  # fmt: skip
GOOD = {"harmless", "good", "safe", "aligned", "correct", "truthful", "helpful"}
BAD = {"harmful", "wrong", "unsafe", "misaligned", "incorrect", "untruthful"}
STYLE = """
:root { color-scheme: light }
body { margin: 0; background: #f5f6f4; color: #26323a;
  font: 15px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
main { max-width: 1060px; margin: 0 auto; padding: 36px 20px 60px }
h1 { font-size: 27px; margin: 0 } h2 { font-size: 18px; margin: 0 0 10px }
section { background: #fff; border: 1px solid #e3e6e2; border-radius: 10px; padding: 20px 24px;
  margin-top: 18px }
.lead { font-size: 19px; line-height: 1.45; margin: 0 0 6px } .dim { color: #66727a }
p { margin: 6px 0 } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th { text-align: right; font-weight: 600; padding: 3px 0 3px 16px; vertical-align: bottom }
td { text-align: right; padding: 6px 0 6px 16px; border-top: 1px solid #eceeeb }
td small, th small { color: #66727a; font-weight: 400; margin-left: 5px; white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 6px }
th:last-child, td:last-child { padding-right: 6px }
th.group { white-space: normal; text-align: right } tr.final td { background: #e9f4f2 }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600; margin: 12px 0 2px }
svg { width: 100%; height: auto; display: block } svg text { font-family: inherit !important }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 24px }
.answer { background: #f7f8f6; border-radius: 8px; padding: 10px 14px; overflow-wrap: anywhere;
  white-space: pre-wrap }
.question { font-weight: 600; margin: 16px 0 6px; overflow-wrap: anywhere; white-space: pre-wrap }
.badge { display: inline-block; border-radius: 9px; padding: 0 9px; font-size: 12.5px;
  background: #e7e9ec; color: #414b53 }
.badge.good { background: #d5efe6; color: #0b5a45 }
.badge.bad { background: #f8dcd6; color: #8a2a17 }
.answer p { margin: 0 0 4px; white-space: normal }
pre { overflow-x: auto; font-size: 13px } summary { cursor: pointer; font-weight: 600 }
@media (max-width: 760px) { .two { grid-template-columns: 1fr } }
"""


def _svg(size: tuple[float, float], name: str, draw: Callable[[Any], None]) -> str:
    """What `draw(axes)` draws, as an SVG element: text stays text, the same bytes each time."""
    # Jupyter's own backend, handed to all it starts; where it is missing the import would fail.
    os.environ.pop("MPLBACKEND", None)
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), "#8b959c"),
        **dict.fromkeys(("text.color", "axes.labelcolor"), INK),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph the font lacks: the browser has it
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", out.getvalue()[out.getvalue().index("<svg") :])
    label = f'<svg role="img" aria-label="{html.escape(name)}"'
    svg = svg.replace("<svg", label, 1)
    return f"<figure><figcaption>{html.escape(name)}</figcaption>{svg}</figure>"


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels in [0, 1]: near `values`, at least `gap` apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [min(max(v, 0.0), 1.0) for v in values]
    for low, high in zip(order, order[1:], strict=False):
        places[high] = max(places[high], places[low] + gap)
    ceiling = 1.0
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _rates(summary: Summary, name: str, size: tuple[float, float]) -> str:
    """A metric over the iterations, sampled and greedy, with the baselines as lines."""
    scale = 100 if table.is_share(summary, name) else 1
    points = [*table.rows(summary, "base")[:1], *table.rows(summary, "isara")]
    points = sorted(points, key=lambda r: r.get("iteration") or 0)

    def draw(axes: Any) -> None:
        ends = []
        for metric, line in ((name, "-"), (f"{name}_greedy", "--")):
            known = [r for r in points if get(r, "metrics", metric) is not None]
            if not known:
                continue
            xs = [r.get("iteration") or 0 for r in known]
            ys = [scale * r["metrics"][metric] for r in known]
            axes.plot(xs, ys, line, color=ISARA, marker="o", ms=4, lw=1.8, zorder=3, clip_on=False)
            ranges = [table.interval(r, metric) for r in known]
            if all(ranges):
                low, high = zip(*([scale * b for b in r] for r in ranges), strict=True)
                alpha = 0.16 if line == "-" else 0.07
                axes.fill_between(xs, low, high, color=ISARA, alpha=alpha, linewidth=0)
            how = table.kind(summary, metric)
            ends.append((ys[-1], f"ISARA{', ' if how else ''}{how}", known[-1], metric, ISARA))
        lines = [(f"SFT, {k}", r, SFT) for k, r in table.sft(summary).items()]
        lines += [
            (table.label(r).split(",")[0], r, color)
            for method, color in OTHERS.items()
            for r in table.rows(summary, method)
        ]
        for i, (who, row, color) in enumerate(lines):
            if get(row, "metrics", name) is not None:
                y = scale * row["metrics"][name]
                axes.axhline(y, color=color, linewidth=1.2, linestyle=("-", ":", "-.")[i % 3])
                ends.append((y, who, row, name, color))
        if scale == 100:
            top = 20 if axes.get_ylim()[1] < 20 else 50 if axes.get_ylim()[1] < 50 else 100
            axes.set_ylim(0, top)
            axes.set_yticks(ticks := range(0, top + 1, top // 5), [f"{v} %" for v in ticks])
        axes.set_xticks(sorted({r.get("iteration") or 0 for r in points}))
        axes.set_xlabel("iteration (0: the base model)")
        axes.grid(axis="y", color="#eceeeb")
        bottom, top = axes.get_ylim()
        heights = _spread([(e[0] - bottom) / (top - bottom) for e in ends], 0.2 / (size[1] - 0.6))
        for (_, who, row, metric, color), height in zip(ends, heights, strict=True):
            text = f"{who}: {table.cell(summary, row, metric)[0]}"
            where = {"transform": axes.transAxes, "va": "center", "color": color}
            axes.text(1.02, height, text, **where)

    return _svg(size, table.title(summary, name), draw)


def _topics(summary: Summary) -> str:
    """The headline metric by topic: base, SFT (chosen or best), the last ISARA."""
    name = table.metrics(summary)[0]
    which, best = next(iter(table.sft(summary).items()), ("", None))
    base = next(iter(table.rows(summary, "base")), None)
    compared = [("Base", base, BASE), (f"SFT, {which}", best, SFT)]
    compared.append(("ISARA, last", table.last_isara(summary), ISARA))
    compared = [(who, get(row, "by_topic"), c) for who, row, c in compared if get(row, "by_topic")]
    if not compared:
        return ""

    def rate(topics: Any, topic: str) -> float:
        k, n = topics.get(topic) or (0, 0)
        return 100 * k / n if n else 0.0

    topics = dict.fromkeys(t for _, by, _ in compared for t in by)
    order = sorted(topics, key=lambda t: [rate(by, t) for _, by, _ in reversed(compared)])
    height = 0.8 / len(compared)

    def draw(axes: Any) -> None:
        for i, (who, by, color) in enumerate(compared):
            ys = [y + (len(compared) - 1 - 2 * i) * height / 2 for y in range(len(order))]
            values = [rate(by, t) for t in order]
            axes.barh(ys, values, height * 0.92, color=color, label=who)
            for y, value in zip(ys, values, strict=True):
                axes.text(value + 0.8, y, f"{value:.0f}", va="center", fontsize=7.5)
        counts = [max((by.get(t) or (0, 0))[1] for _, by, _ in compared) for t in order]
        labels = [f"{t.replace('_', ' ')} (n={n})" for t, n in zip(order, counts, strict=True)]
        axes.set_yticks(range(len(order)), labels)
        axes.set_xlim(0, 104)
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xticks(ticks := range(0, 101, 20), [f"{v} %" for v in ticks])
        axes.tick_params(axis="y", length=0)
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False)

    size = (10.6, 0.8 + len(order) * (0.14 + 0.16 * len(compared)))
    return _svg(size, f"{table.title(summary, name)} by topic", draw)


def _reasons(summary: Summary) -> str:
    """Accepted and rejected samples of each iteration, stacked."""
    its = [i for i in get(summary, "iterations") or [] if i.get("reasons") or i.get("accepted")]
    if not its:
        return ""
    names = dict.fromkeys(r for i in its for r in i.get("reasons") or {} if r != "accepted")
    stacks = [("accepted", [i.get("accepted") or 0 for i in its], ISARA)]
    for i, name in enumerate(names):
        counts = [get(it, "reasons", name) or 0 for it in its]
        stacks.append((name.replace("_", " "), counts, REASONS[i % len(REASONS)]))

    def draw(axes: Any) -> None:
        left = [0] * len(its)
        total = max(sum(c[i] for _, c, _ in stacks) for i in range(len(its))) or 1
        for name, counts, color in stacks:
            axes.barh(range(len(its)), counts, 0.62, left=left, color=color, label=name)
            ink = "white" if name == "accepted" else INK
            for y, count in enumerate(counts):
                if count > 0.03 * total:
                    place = {"ha": "center", "va": "center", "color": ink, "fontsize": 8}
                    axes.text(left[y] + count / 2, y, str(count), **place)
            left = [a + b for a, b in zip(left, counts, strict=True)]
        axes.set_yticks(range(len(its)), [f"iteration {i.get('iteration')}" for i in its])
        axes.set_ylim(len(its) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("attempts")
        narrow = {"handlelength": 1, "columnspacing": 1.2}  # all seven fit
        axes.figure.legend(loc="outside upper left", ncols=7, frameon=False, **narrow)

    return _svg((10.6, 1.2 + 0.36 * len(its)), "What became of the generated samples", draw)


def _table(head: Sequence[str], body: Sequence[Sequence[str]], final: int | None = None) -> str:
    """A table of cells that are HTML already."""
    lines = [f"<tr>{''.join(f'<th class=group>{c}</th>' for c in head)}</tr>"]
    for i, cells in enumerate(body):
        mark = " class=final" if i == final else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _columns(first: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The text table's columns as an HTML table."""
    escape = functools.partial(html.escape, quote=False)
    body = [[escape(n), *(escape(c[i]) for _, c in columns)] for i, n in enumerate(first)]
    return _table(["", *(escape(h) for h, _ in columns)], body) if body else ""


def _results(summary: Summary) -> str:
    found, names = table.rows(summary), table.metrics(summary)
    heads = [tuple(map(html.escape, table.header(summary, n))) for n in names]
    body = []
    for row in found:
        cells = [tuple(map(html.escape, table.cell(summary, row, n))) for n in names]
        body.append(
            [html.escape(table.label(row)), *(f"{v}<br><small>{i}</small>" for v, i in cells)]
        )
    last = table.last_isara(summary)
    final = next((i for i, row in enumerate(found) if row is last), None)
    return _table(
        ["", *("<br>".join((a, *(f"<small>{x}</small>" for x in b))) for a, *b in heads)],
        body,
        final,
    )


def _answer(example: Any, when: str) -> str:
    label = example.get(f"{when}_label")
    tone = "good" if label in GOOD else "bad" if label in BAD else ""
    badge = f' <span class="badge {tone}">{html.escape(str(label))}</span>' if label else ""
    text = html.escape(example.get(when) or table.MISSING)
    return f"<div class=answer><p class=dim>{when}{badge}</p>{text}</div>"


def _example(example: Any) -> str:
    question = html.escape(example.get("question") or table.MISSING)
    answers = _answer(example, "before") + _answer(example, "after")
    return f"<div class=question>{question}</div><div class=two>{answers}</div>"


def render(summary: Summary) -> str:
    """The report as HTML text; the same summary gives the same text.

    Texts of models are escaped, and of characters that reorder or hide others stand the numbers.
    """
    names = table.metrics(summary)
    facts = [f"{k}: {get(summary, v)}" for k, v in (("task", "task"), ("model", "model"))]
    facts.append(f"{get(summary, 'n_seeds')} seeds")
    if (ratio := get(summary, "scaling_ratio")) is not None:
        facts.append(f"scaling ratio {ratio:.1f} accepted samples a seed")
    lead, *more = [html.escape(s) for s in table.verdict(summary)]
    plain = [n for n in names if not n.endswith("_greedy")]
    drawn = table.rows(summary, "isara") and plain
    parts = [f"<p class=lead>{lead}</p>" + "".join(f"<p>{s}</p>" for s in more)]
    if names:
        note = "Below each value its 95 % interval. ↑ higher is better, ↓ lower is better."
        if flattered := table.flattered(summary):
            note += f" SFT: {flattered}."
        said = "".join(f"<p class=dim>{html.escape(n)}</p>" for n in (note, *table.notes(summary)))
        parts.append(f"<h2>Results</h2>{_results(summary)}{said}")
        if paired := _columns(*table.differences(summary)):
            note = f"<p class=dim>{html.escape(table.NOTE_DIFFERENCES)}</p>"
            parts.append(f"<h2>Against the base model</h2>{note}{paired}")
    if drawn:
        small = "".join(_rates(summary, n, (5.2, 3.1)) for n in plain[1:])
        plots = _rates(summary, plain[0], (10.6, 3.9)) + f"<div class=two>{small}</div>"
        note = "Bands: 95 % intervals. Baselines: sampled answers." if len(names) > 1 else ""
        parts.append(f"<h2>Over the iterations</h2>{plots}<p class=dim>{note}</p>")
    parts.append(_topics(summary) if names else "")
    parts.append(_reasons(summary) + _columns(*table.acceptance(summary)))
    if seconds := _columns(*table.times(summary)):
        parts.append(f"<h2>Time</h2>{seconds}")
    if examples := "".join(map(_example, get(summary, "examples") or [])):
        parts.append(f"<h2>Before and after</h2>{examples}")
    config = json.dumps(get(summary, "config") or {}, indent=2, sort_keys=True, default=str)
    parts.append(
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>"
    )
    sections = "".join(f"<section>{p}</section>\n" for p in parts if p)
    return terminal.visible(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\"><title>ISARA report</title>"
        f"<style>{STYLE}</style></head><body><main><h1>ISARA report</h1>"
        f"<p class=dim>{html.escape(' · '.join(facts))}</p>\n{sections}</main></body></html>\n"
    )


def write(summary: Summary, path: pathlib.Path) -> None:
    """Writes the report of a run as one HTML file, atomically.

    Args:
      summary: the content of summary.json; what is missing in it is left out.
      path: the file; it refers to nothing outside itself.
    """
    storage.atomic_write(path, render(summary).encode("utf-8", "replace"))
