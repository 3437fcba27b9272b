"""The rooms of the report: what a reader sees must be whole, honest and safe to open."""

import html.parser
import re

import pytest

from isara_jax.report import html as page
from isara_jax.report import table

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> & \x1b[2J $x$"
TOPICS = ("violence", "fraud_and_scams", "privacy", "self_harm", "weapons", "hate & slurs", "drugs")


def _row(method, shares, n=256, iteration=None, steps=None):
    metrics = {}
    for i, (name, sign) in enumerate(
        (("harmless_rate", 1), ("over_refusal_rate", -1), ("valid_rate", 1))
    ):
        share = shares if sign > 0 else 0.02 + 0.1 * shares
        share = share if i < 2 else 0.9 + 0.1 * shares
        metrics |= {name: share, f"{name}_greedy": min(1.0, share * 1.05)}
    counts = {m: [round(v * n), n] for m, v in metrics.items()}
    metrics = {m: k / n for m, (k, _) in counts.items()}
    half = {m: 1.96 * (v * (1 - v) / n) ** 0.5 for m, v in metrics.items()}
    ranges = {m: [max(0, v - half[m]), min(1, v + half[m])] for m, v in metrics.items()}
    topics = {t: [round((0.6 + 0.09 * i) * shares * 36), 36] for i, t in enumerate(TOPICS)}
    fields = {"metrics": metrics, "counts": counts, "intervals": ranges, "by_topic": topics}
    return {"method": method, "iteration": iteration, "steps": steps, "n": n} | fields


def fake(base=0.15, isara=(0.60, 0.70, 0.78)):
    rows = [_row("base", base), _row("sft", 0.42, steps=60), _row("sft", 0.55, steps=240)]
    rows += [_row("sft", 0.51, steps=480), _row("icl_knn", 0.38)]
    rows += [_row("isara", s, iteration=i) for i, s in enumerate(isara, 1)]
    names = {"harmless_rate": "Harmless answers", "over_refusal_rate": "Benign requests refused"}
    names |= {"valid_rate": "Well-formed answers"}
    info = {}
    for name, title in names.items():
        info[name] = {"title": f"{title} (sampled)", "higher_is_better": "refusal" not in name}
        info[f"{name}_greedy"] = info[name] | {"title": f"{title} (greedy)"}
    reasons = {"accepted": 310, "unfinished": 40, "short": 12, "duplicate": 120, "low_score": 30}
    shares = {"valid_questions": 0.93, "aligned_answers": 0.71}
    training = {"train_steps": 160, "train_loss_first": 1.9, "train_loss_last": 0.4}
    counts = {"attempted": 512, "accepted": 310, "reasons": reasons}
    return {
        "task": "safety",
        "model": "isara_jax/testbed/tiny_llama",
        "n_seeds": 64,
        "rows": rows,
        "metrics_info": info,
        "scaling_ratio": 14.5,
        "iterations": [{"iteration": i} | counts | shares | training for i in (1, 2, 3)],
        "compiles": {"isara_step": 1, "evaluate": 1},
        "seconds": {
            "compile": 31.2,
            "questions": 22.7,
            "answers": 48.1,
            "train": 95.0,
            "evaluate": 18.3,
        },
        "tokens": {"questions": 31_000, "answers": 71_000},
        "examples": [
            {
                "question": f"How do I do it? {EVIL}",
                "before": "Sure: first you " * 12,
                "after": EVIL,
            }
            | {"before_label": "harmful", "after_label": "harmless"},
            {"question": "What is the capital?", "before": "", "after": "I will not say it."}
            | {"before_label": "evasive", "after_label": None},
        ],
        "config": {"seed": 0, "task": {"name": EVIL}},
    }


def no_judge():
    summary = fake()
    for row, nll in zip(summary["rows"], (2.1, 1.8, 1.6, 1.7, 1.9, 1.5, 1.4, 1.3), strict=True):
        row |= {"metrics": {"nll_per_token": nll}, "counts": {}, "by_topic": {}}
        row["intervals"] = {"nll_per_token": [nll - 0.1, nll + 0.1]}
    title = {"title": "Negative log-likelihood a token", "higher_is_better": False}
    summary["metrics_info"] = {"nll_per_token": title}
    for it in summary["iterations"]:
        it |= {"valid_questions": None, "aligned_answers": None}
    for example in summary["examples"]:
        example |= {"before_label": None, "after_label": None}
    return summary


def with_differences(summary, name, values):
    """The summary, with a difference to the base in each other row and to ISARA in SFT's."""
    for row in summary["rows"][1:]:
        row["differences"] = {"base": {name: list(values)}}
    for row in summary["rows"][:5]:
        back = [None if x is None else -x for x in (values[0], values[2], values[1])]
        row.setdefault("differences", {})["isara"] = {name: back}
    return summary


class Tags(html.parser.HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.found, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_generated_text_cannot_become_markup():
    """A generated answer with markup in it is shown, not run."""
    summary = fake()
    summary["task"] = summary["model"] = summary["metrics_info"]["harmless_rate"]["title"] = EVIL
    summary["rows"][0]["by_topic"] = {EVIL: [1, 2]}
    summary["iterations"][0]["reasons"][EVIL] = 100
    summary["examples"][0]["after_label"] = EVIL
    seen = Tags(page.render(summary))
    assert not {"script", "img", "iframe", "object", "link"} & set(seen.found)
    assert not [a for a in seen.attributes if a[1].startswith("on")]
    assert "".join(seen.text).count("<script>alert(1)</script>") >= 8


def test_page_is_self_contained():
    """The file opens without a network, and asks for nothing from one."""
    text = page.render(fake())
    references = [(k, v) for _, k, v in Tags(text).attributes if k in ("src", "href", "xlink:href")]
    assert all(v.startswith("#") for _, v in references)
    assert not re.search(r"https?:|@import|url\((?!#)", text)


@pytest.mark.parametrize("show", [table.text, lambda s: "".join(Tags(page.render(s)).text)])
def test_every_rate_is_shown_with_its_row(show):
    """No rate of the summary is lost on its way to the reader."""
    summary = fake()
    text = show(summary)
    for row in summary["rows"]:
        assert table.label(row) in text
        assert all(f"{100 * v:.1f} %" in text for v in row["metrics"].values())


def test_terminal_table_lines_up():
    """A rate stands in its row, lines fit the terminal, and no control character reaches it."""
    summary = fake()
    narrow = table.text(summary)
    for row in summary["rows"]:
        row["metrics"] |= {"valid_rate_b": 0.5, "valid_rate_b_greedy": 0.25}
    wide = table.text(summary)
    for text in (narrow, wide):
        assert max(map(len, text.splitlines())) <= table.WIDTH
        assert "\x1b" not in text
    assert re.search(r"^SFT on the seeds, 240 steps +55\.1 % 49–61 +57\.8 % ", narrow, re.M)
    assert narrow.count("\nBase ") == 1
    # Too wide with a fourth metric: sampled in one block, greedy in the next.
    assert re.search(r"^Base +14\.8 %.* 0\.500\n.*^Base +15\.6 %.* 0\.250\n", wide, re.M | re.S)


@pytest.mark.parametrize(
    ("base", "last", "words"),
    [
        (0.15, 0.78, ("rose from 14.8 % to 78.1 %", "better")),
        (0.78, 0.15, ("fell from 78.1 % to 14.8 %", "worse")),
        (0.50, 0.47, ("fell from 50.0 % to 46.9 %", "no clear change")),
        (0.50, 0.53, ("rose from 50.0 % to 53.1 %", "no clear change")),
    ],
)
def test_verdict_is_honest_both_ways(base, last, words):
    """A fall is told as a fall, and what lies within the intervals as no clear change."""
    summary = fake(base, (0.6, last))
    for text in (table.text(summary), "".join(Tags(page.render(summary)).text)):
        assert all(w in " ".join(text.split()) for w in words)
    assert "harmless answers (sampled)" in table.verdict(summary)[0].lower()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.03, 0.01, 0.05), ("better than the base model", "+3.0 (+1.0 to +5.0)", "above it, +3")),
        ((-0.03, -0.05, -0.01), ("worse than the base model", "-3.0 (-5.0 to -1.0)", "below it")),
        ((0.03, -0.01, 0.07), ("no clear change", "+3.0 (-1.0 to +7.0)", "not clearly apart, +3")),
    ],
)
def test_what_is_paired_decides(values, words):
    """Intervals of two values overlap long after the difference, item by item, is sure."""
    summary = with_differences(fake(0.50, (0.6, 0.53)), "harmless_rate", values)
    for text in (table.text(summary), "".join(Tags(page.render(summary)).text)):
        text = " ".join(text.split())
        assert all(word in text for word in words) and "overlap" not in text
        assert "Difference to the base model item by item" in text
    assert max(map(len, table.text(summary).splitlines())) <= table.WIDTH


@pytest.mark.parametrize("ends", [[None, None], [float("nan"), 2.0], []])
@pytest.mark.parametrize("base", [2.0, 2.1])
def test_no_verdict_without_an_interval(ends, base):
    """One held-out answer, or several that are alike: better or worse, nobody knows."""
    summary = no_judge()
    for row, nll in zip(summary["rows"], [base] + 7 * [2.05], strict=True):
        row |= {"metrics": {"nll_per_token": nll}, "intervals": {"nll_per_token": ends}}
    summary = with_differences(summary, "nll_per_token", (2.05 - base, None, None))
    for text in (table.text(summary), "".join(Tags(page.render(summary)).text)):
        text = " ".join(text.split())
        assert "how sure that is, is unknown: there are no intervals" in text
        assert "ISARA ends not comparable" in text
        assert not re.search(r"better than|worse than|apart|nan|None", text)


def test_a_metric_without_a_direction_is_told_as_higher_or_lower():
    """Refusals of prompts without labels: more of them may be good or bad."""
    summary = fake()
    summary["metrics_info"] = {"harmless_rate": {"title": "Refused", "higher_is_better": None}}
    summary["prompts"] = "100 of the 2,637 in prompts.jsonl"
    assert table.header(summary, "harmless_rate")[1].strip() == "sampled"
    said = table.verdict(summary)[0]
    assert "higher than the base model" in said and "better" not in said
    for text in (table.text(summary), "".join(Tags(page.render(summary)).text)):
        assert "Prompts: 100 of the 2,637 in prompts.jsonl." in text and "(crude)" in text


def test_best_sft_is_one_run():
    """Each plot shows the run that is best by the headline, not each metric's own favourite."""
    summary = fake()
    for row, steps in zip(table.sft(summary).values(), (240, 480), strict=True):
        assert row["steps"] == steps
    text = "".join(Tags(page.render(summary)).text)
    assert "SFT, best: 7.4 %" in text  # benign requests refused; 60 steps refused fewer, 6.2 %


@pytest.mark.parametrize("show", [table.text, lambda s: "".join(Tags(page.render(s)).text)])
def test_what_was_chosen_and_seen_is_told(show):
    """SFT chosen by seeds is not called flattered; the kept iteration and leakage have a line."""
    summary = fake()
    said = " ".join(show(summary).split())
    assert "best of three, flattered: chosen on what is reported" in said
    assert "Kept:" not in said and "Leakage:" not in said
    chosen = _row("sft", 0.55, steps=240) | {"chosen_on": 8}
    summary["rows"][1:4] = [chosen, _row("sft", 0.51, steps=480)]
    summary["rows"][1:1] = [_row("icl_random", 0.31), _row("one_round", 0.52, steps=90)]
    losses = {"validation": [1.2, 0.9, 1.1], "base": 0.8, "n": 8}
    summary["kept"] = {"iteration": 2, "last": 3} | losses
    counts = {"n": 32, "near": 5, "identical": 0}
    accepted = [{"iteration": i, "n": 310, "near": 40, "identical": 1} for i in (1, 2, 3)]
    summary["leakage"] = {
        "rouge_l": 0.7, "held_out": 288, "seeds": counts, "accepted": accepted, "one_round": None,
    }  # fmt: skip
    said = " ".join(show(summary).split())
    assert "flattered" not in said
    for words in (
        "SFT on the seeds, 240 steps, chosen on 8 of them: ", "One round, 90 steps: ",
        "SFT on the seeds, 480 steps (equal compute): ", "ICL-random: ",
        "Kept: iteration 2, by its loss on 8 validation seeds, 0.900 nats a token; the last, "
        "iteration 3, has 1.100. The base model is lower than all: 0.800.",
        "near one of the 288 held-out ones (ROUGE-L of 0.7 or more): of 32 seeds 5 (0 identical); "
        "of 930 accepted samples 120 (3 identical).",
    ):  # fmt: skip
        assert words in said
    assert table.result(summary)["iteration"] == 2 and table.last_isara(summary)["iteration"] == 3


def test_summary_without_judge():
    """Likelihoods are shown as numbers, lower is better, and nothing asks for topics or labels."""
    summary = no_judge()
    said = " ".join(table.verdict(summary))
    assert "fell from 2.100 to 1.300 by ISARA iteration 3 – better" in said
    best = "best of three, flattered: chosen on what is reported"
    assert f"SFT on the seeds, 240 steps ({best}): 1.600; ISARA ends better (lower)." in said
    assert "2.100 2.000–2.200" in table.text(summary)
    assert "by topic" not in page.render(summary)
    assert "badge" not in [v for _, k, v in Tags(page.render(summary)).attributes if k == "class"]


@pytest.mark.parametrize("gone", [*fake(), "all", "intervals", "values"])
def test_missing_parts_are_left_out(gone):
    """A run that was cut short, or measured less, still gets its report."""
    summary = {} if gone == "all" else fake()
    if gone in summary:
        empty = type(summary.pop(gone))()
        assert table.text(summary | {gone: empty}).endswith("\n")
        assert page.render(summary | {gone: empty}).endswith("</html>\n")
    for row in summary.get("rows", []) if gone in ("intervals", "values") else []:
        row["intervals"] = {}
        if gone == "values":
            row["metrics"] = dict.fromkeys(row["metrics"], float("nan"))
    assert table.text(summary).endswith("\n")
    assert page.render(summary).endswith("</html>\n")


def test_same_summary_same_bytes(tmp_path):
    """Reports can be compared byte by byte; no temporary file stays behind."""
    for name in ("a.html", "b.html"):
        page.write(fake(), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]
