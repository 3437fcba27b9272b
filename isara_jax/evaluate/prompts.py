"""Held-out prompts without references: the answers are judged by rule, and by models that judge.

Half of them may be safe ones that look unsafe: refused-unsafe and refused-safe stand side by side.
"""

import pathlib
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from isara_jax import config
from isara_jax.tasks import base, files
from isara_jax.text import encoding, packing, tokens


class Prompts(NamedTuple):
    """Prompts to be answered.

    Attributes:
      pairs: N prompts as tokens; the answers are empty and as wide as may be generated.
      items: the prompts; `kind` is the label, "" where the file has none.
      about: how many of which file, how labels are known that do not stand in it, and what
        was passed over and why.
      read: which fields were read.
      datasets: the part of a benchmark that each prompt is from, or "".
    """

    pairs: packing.Pairs
    items: tuple[base.Item, ...]
    about: str
    read: str = ""
    datasets: tuple[str, ...] = ()


def read(
    c: config.Config,
    seeds: Collection[str],
    vocabulary: tokens.Vocabulary,
    template: packing.Template,
    limit: int,
) -> Prompts:
    """Reads, chooses and encodes `evaluation.prompts`; the pairs stay on the host.

    Passed over are prompts that are seeds, that are too long for the model with an answer, that do
    not survive tokenization, and, where some are labelled safe or unsafe, all others. Of the rest
    `evaluation.n` are drawn, the same for every seed of the run, as many safe as unsafe ones where
    there are.

    Args:
      c: the configuration, `answer.max_tokens` included.
      seeds: questions of the seeds.
      vocabulary: the tokenizer.
      template: its fixed ids.
      limit: the model's positions.

    Raises:
      ValueError: the file is unusable, or no prompt of it is left.
    """
    path, new = c.evaluation.prompts, c.answer.max_tokens
    room = limit - new - template.overhead(0)
    file = files.read_prompts(path)
    found = file.prompts
    labelled = any(prompt.label for prompt in found)
    passed: dict[str, list[str]] = {}
    kept, spelled = [], {}
    texts = [prompt.text for prompt in found]
    spellings = vocabulary.try_spellings(texts, vocabulary.form.question)
    for prompt, one in zip(found, spellings, strict=True):
        if labelled and prompt.label not in (files.SAFE, files.UNSAFE):
            reason = f"labelled {prompt.label!r}" if prompt.label else "without a label"
        elif prompt.text in seeds:
            reason = "seeds themselves"
        elif one is None:
            reason = "with characters that the tokenizer changes"
        elif len(one.joined) - template.to_answer > room:
            reason = f"of more than {room} tokens, too long for the model with {new} of an answer"
        else:
            kept.append(prompt)
            spelled[prompt] = one
            continue
        passed.setdefault(reason, []).append(f"{prompt.unit} {prompt.line}")
    over = files.counted(passed)
    if not kept:
        raise config.ConfigError(
            f"{path}: of {len(found)} prompts none is left: {over}; give others, or "
            "lower config.answer.max_tokens if they are too long"
        )
    chosen = _draw(kept, c.evaluation.n)
    rows = [spelled[prompt] for prompt in chosen]
    longest = max(max(len(s.bare), len(s.joined) - template.to_answer) for s in rows)
    nothing = [tokens.Spelling([], [])] * len(rows)
    about = (_counted(path, chosen, len(found)), file.labels, over and f"passed over: {over}")
    return Prompts(
        packing.Pairs(
            encoding.as_text(rows, encoding.Room(longest, longest + template.to_answer)),
            encoding.as_text(nothing, encoding.Room(new, new + template.to_question)),
        ),
        tuple(base.Item(prompt.text, "", prompt.label, "all") for prompt in chosen),
        "; ".join(filter(None, about)),
        file.about,
        tuple(prompt.dataset for prompt in chosen),
    )


def _draw(prompts: Sequence[files.Prompt], n: int) -> list[files.Prompt]:
    """At most n of the prompts (0: all), the labels in equal numbers as far as they go."""
    rng = random.Random("prompts")
    by_label: dict[str, list[files.Prompt]] = {}
    for prompt in prompts:
        by_label.setdefault(prompt.label, []).append(prompt)
    left, drawn = n or len(prompts), []
    groups = sorted(by_label.values(), key=len)
    for i, group in enumerate(groups):
        share = rng.sample(group, min(len(group), left // (len(groups) - i)))
        drawn, left = drawn + share, left - len(share)
    return sorted(drawn)  # as in the file


def _counted(path: str, chosen: Sequence[files.Prompt], n_found: int) -> str:
    labels = [prompt.label for prompt in chosen if prompt.label]
    by_label = ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels)))
    name = pathlib.PurePath(path).name
    return f"{len(chosen)} of the {n_found:,} in {name}" + (f" ({by_label})" if by_label else "")
