"""What a run says where most of its samples are rejected for one reason."""

import itertools

import numpy as np
import pytest

from isara_jax import config
from isara_jax.host import advice
from isara_jax.method import accept
from isara_jax.method.state import Report
from isara_jax.sampler import decode
from isara_jax.text import stops

N = 20


def report(reasons, question=stops.AT_STOP, answer=stops.AT_STOP):
    """An iteration whose first samples were rejected for `reasons`, and how all of them ended."""
    numbers = [accept.REASONS.index(reason) for reason in reasons]
    generations = [
        decode.Generation(None, None, np.full(N, finish), None, None)
        for finish in (question, answer)
    ]
    nothing = [None] * (len(Report._fields) - 2)
    whole = Report(*generations, *nothing)
    return whole._replace(reason=np.asarray(numbers + [0] * (N - len(numbers))))


def test_half_of_the_samples_is_no_fault_of_the_settings():
    """Rejections are ordinary; only where they are the rule is something said."""
    c = config.Config()
    assert advice.of(report([]), c) is None
    assert advice.of(report(["question_duplicate"] * 10), c) is None
    mixed = ["question_duplicate"] * 10 + ["answer_short"] * 10
    assert advice.of(report(mixed), c) is None
    assert advice.of(report(["question_duplicate"] * 11), c) is not None


@pytest.mark.parametrize(
    ("reason", "ends", "said"),
    [
        (
            "answer_unfinished",
            {"answer": stops.UNFINISHED},
            ["config.answer.max_tokens=72", "raise"],
        ),
        ("question_unfinished", {"question": stops.UNFINISHED}, ["config.question.max_tokens=40"]),
        ("question_unfinished", {"question": stops.AT_EOS}, ["chat model", "config.question.k=4"]),
        ("answer_unfinished", {"answer": stops.AT_STOP + 1}, ["config.answer.k=6", "temperature"]),
        ("answer_unspellable", {}, ["config.answer.max_tokens=72", "temperature"]),
        ("question_short", {}, ["config.filters.min_tokens=2"]),
        ("answer_short", {}, ["config.filters.min_tokens=2", "config.answer.k=6"]),
        ("question_duplicate", {}, ["config.filters.rouge_l=0.7", "temperature=1.0", "top_p=0.9"]),
        ("answer_improbable", {}, ["config.filters.min_score=-1"]),
    ],
)
def test_the_line_names_what_to_change(reason, ends, said):
    """One line: how many, why, and the fields with their present values."""
    c = config.Config(
        question=config.Question(max_tokens=40),
        answer=config.Answer(max_tokens=72),
        filters=config.Filters(min_score=-1.0),
    )
    line = advice.of(report([reason] * 15, **ends), c)
    assert line.startswith(f"15 of 20 are {reason}: ") and "\n" not in line
    for part in said:
        assert part in line


def test_every_reason_has_a_cure():
    """A new filter without advice would say what another one needs."""
    c = config.Config()
    lines = {advice.of(report([reason] * N), c) for reason in accept.REASONS[1:]}
    assert len(lines) == len(accept.REASONS) - 1 and None not in lines


def test_when_a_run_is_given_up():
    """So many empty iterations in a row at the end, with all their reasons; never at 0."""

    def entry(accepted, **reasons):
        return {"accepted": accepted, "reasons": reasons, "advice": "5 of 9 are x: do y"}

    empty = [entry(0, answer_short=3, question_short=6), entry(0, answer_short=9)]
    c = config.Config(patience=2)
    said = advice.given_up([entry(4), *empty], c)
    assert said.startswith("nothing was accepted in 2 iterations (12 answer_short, 6 question_sh")
    assert said.endswith("in the last, 5 of 9 are x: do y")
    assert advice.given_up([*empty, entry(1)], c) is None
    assert advice.given_up(empty[:1], c) is None
    assert advice.given_up(empty * 9, config.Config(patience=0)) is None


def test_what_counts_as_collapse():
    """Values of runs that did well say nothing; half the diversity, or a loss that rose, do."""
    c = config.Config()

    def told(pairs, losses=(), questions=()):
        shares = itertools.zip_longest(pairs, questions, fillvalue=0.9)
        entries = [{"distinct_2": a, "distinct": b} for a, b in shares]
        return advice.collapsed(entries, losses, c)

    assert told([0.215, 0.207, 0.204]) is None  # safety, tiny_llama
    assert told([0.272, 0.265, 0.267], (), [0.82, 0.74, 0.71]) is None  # instruction
    assert told([0.798, 0.682, 0.629], [2.012, 1.746, 1.844, 1.870]) is None  # SmolLM2-135M
    assert told([0.2], [2.0, 1.9]) is None  # nothing to compare with
    assert told([None, None]) is None  # no two words anywhere
    said = told([0.2, 0.22, 0.1])
    assert "of the word pairs of questions 10.0% are distinct, 22.0% before" in said
    assert "loss" not in said
    # A rate of 0.03: half of the questions are one, of words that nobody had put together.
    said = told([0.365, 0.338, 0.416], [0.25, 0.12, 0.43, 2.49], [1.0, 1.0, 0.51])
    assert said.startswith("collapse: of the questions 51.0% are distinct, 100.0% before and the ")
    assert "loss rose to 2.49 nats a token from 0.12; lower config.train.learning_rate=" in said
    assert "rose to nan" in told([0.2, 0.2], [2.0, 1.7, float("nan")])
