"""What to change where most samples of an iteration are rejected for one reason, or all are."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from isara_jax.config import Config
from isara_jax.method import accept
from isara_jax.method.state import Report
from isara_jax.text import stops

_SHARE = 0.5  # of the samples, from which on a reason is a fault of the settings
# Collapse. Of an iteration's questions, and of their word pairs, so many are distinct, as a share
# of those of the most diverse iteration before; in 20 runs that did well never below 0.78.
_DISTINCT = 0.67
DIVERSITY = {"distinct": "questions", "distinct_2": "word pairs of questions"}
# A loss above the lowest before, in nats a token; runs that did well came to 0.13.
_LOST = 0.25


def of(report: Report, c: Config) -> str | None:
    """One line on the reason that more than half of the samples were rejected for, or None.

    Args:
      report: of the iteration, on the host.
      c: its configuration, lengths included.
    """
    counts = np.bincount(report.reason, minlength=len(accept.REASONS))
    worst = int(np.argmax(counts[1:])) + 1
    if counts[worst] <= _SHARE * len(report.reason):
        return None
    name, rows = accept.REASONS[worst], report.reason == worst
    return f"{counts[worst]} of {len(rows)} are {name}: {_cure(name, report, rows, c)}"


def given_up(iterations: Sequence[dict[str, Any]], c: Config) -> str | None:
    """One line where the last iterations accepted nothing, as many as `config.patience`; or None.

    Args:
      iterations: entries of the run's history.
      c: its configuration.
    """
    last = iterations[-c.patience :] if c.patience else []
    if len(last) < max(c.patience, 1) or any(entry["accepted"] for entry in last):
        return None
    reasons = sum((collections.Counter(entry["reasons"]) for entry in last), collections.Counter())
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common() if n)
    cure = last[-1]["advice"] or "no reason is that of most; read samples/"
    return f"nothing was accepted in {len(last)} iterations ({counts}); in the last, {cure}"


def collapsed(
    iterations: Sequence[dict[str, Any]], losses: Sequence[float], c: Config
) -> str | None:
    """One line where the last iteration has lost what those before it had; or None.

    Args:
      iterations: entries of the run's history, with shares of what is distinct in `DIVERSITY`.
      losses: on held-out or validation answers, in nats a token, of the base model and after each
        iteration; empty where none is measured.
      c: the configuration.
    """
    said = []
    for name, what in DIVERSITY.items():
        *before, now = (entry.get(name) or 0.0 for entry in iterations)
        if now < _DISTINCT * max(before, default=0.0):
            said.append(f"of the {what} {now:.1%} are distinct, {max(before):.1%} before")
    if losses and not losses[-1] <= min(losses) + _LOST:
        said.append(f"the loss rose to {losses[-1]:.2f} nats a token from {min(losses):.2f}")
    if not said:
        return None
    return (
        f"collapse: {' and '.join(said)}; lower config.train.learning_rate="
        f"{c.train.learning_rate:g} or config.train.epochs={c.train.epochs}, raise config.question."
        f"sampling.temperature={c.question.sampling.temperature:g}, or stop an iteration earlier"
    )


def _cure(name: str, report: Report, rows: np.ndarray, c: Config) -> str:
    stage, _, fault = name.partition("_")
    field = f"config.{stage}"
    if fault == "unfinished":
        finish = getattr(report, stage).finish[rows]
        ended = np.mean(finish != stops.UNFINISHED)
        if ended < _SHARE:
            longest = getattr(c, stage).max_tokens
            return (
                f"they had not ended after {field}.max_tokens={longest} tokens; raise it, or give "
                f"seeds that are more alike in length, or show more of them ({field}.k="
                f"{getattr(c, stage).k})"
            )
        other = "of a chat model use its template (config.model.template=chat)"
        if c.model.template != "plain":
            other = "try config.model.template=plain"
        return (
            "they ended where the template does not; the model does not follow it: show more "
            f"examples ({field}.k={getattr(c, stage).k}), lower {field}.sampling.temperature, or "
            f"{other}"
        )
    if fault == "unspellable":
        return (
            "they are bytes that make no text, or need more tokens in the tokenizer's own spelling "
            f"than {field}.max_tokens={getattr(c, stage).max_tokens}; lower "
            f"{field}.sampling.temperature, or raise the former"
        )
    if fault == "short":
        return (
            f"they have fewer than config.filters.min_tokens={c.filters.min_tokens} tokens; lower "
            f"it if that is an answer, or show more examples ({field}.k={getattr(c, stage).k})"
        )
    if fault == "duplicate":
        return (
            "the model repeats what the pool holds: raise config.question.sampling.temperature="
            f"{c.question.sampling.temperature} or top_p={c.question.sampling.top_p}, lower "
            f"config.question.k={c.question.k}, or raise config.filters.rouge_l="
            f"{c.filters.rouge_l}"
        )
    return f"lower config.filters.min_score={c.filters.min_score}, or give more seeds"
