"""Prompts in token space against the tokenizer's own ids of the same text.

    python -m benchmarks.text.seams --seeds=FILE.jsonl DIR...

For each folder with a tokenizer, prompts with six pairs and a question, packed on the device as a
run packs them; beside it, how many would differ if every text were encoded alone and joined.
"""

import functools
import pathlib
import random

import jax
import numpy as np
from absl import app, flags

from isara_jax.tasks import files
from isara_jax.text import encoding, packing, reading, tokens

_SEEDS = flags.DEFINE_multi_string("seeds", None, "A file of pairs; may be given again.")
_K = flags.DEFINE_integer("k", 6, "Pairs shown in a prompt.")
flags.mark_flags_as_required(["seeds"])
jax.config.update("jax_platforms", "cpu")


def _texts(vocabulary: tokens.Vocabulary, texts: list[str], place: tokens.Place) -> packing.Text:
    found = vocabulary.spellings(texts, place)
    widths = [max(len(s[form]) for s in found) for form in range(2)]
    return encoding.as_text(found, encoding.Room(*widths))


def _alone(vocabulary: tokens.Vocabulary, text: str) -> list[int]:
    """The ids of a part behind the first anchor that it does not merge with."""
    for anchor in ("\n", "0", "."):
        head, ids = vocabulary.plain([anchor, anchor + text])
        if ids[: len(head)] == head:
            return ids[len(head) :]
    raise ValueError(f"{text!r} merges with every anchor")


def _joined_alone(
    vocabulary: tokens.Vocabulary, pairs: list[tuple[str, str]], question: str
) -> list[int]:
    """The ids of every part encoded alone, end to end."""
    parts = []
    for q, a in pairs:
        parts += ["Question:", f" {q}", "\nAnswer:", f" {a}", "\n\n"]
    parts += ["Question:", f" {question}", "\nAnswer:"]
    return [i for part in parts for i in _alone(vocabulary, part)]


def count(vocabulary: tokens.Vocabulary, pairs: list[tuple[str, str]], k: int) -> tuple[int, int]:
    """Of as many prompts as pairs: how many differ as packed, and as parts encoded alone."""
    template, rng = packing.Template.of(vocabulary), random.Random(0)
    questions, answers = map(list, zip(*pairs, strict=True))
    asked = _texts(vocabulary, questions, tokens.IN_QUESTION)
    said = _texts(vocabulary, answers, tokens.IN_ANSWER)
    shown = packing.concatenate([asked.joined, said.joined], 4096)
    chosen = np.asarray([rng.sample(range(len(pairs)), k) for _ in pairs])
    pack = jax.jit(functools.partial(packing.prompts, template, capacity=8192))
    prompts = jax.device_get(pack(shown, chosen, question=asked.joined))
    packed_differ = alone_differ = 0
    for row, length, picks, question in zip(*prompts, chosen, questions, strict=True):
        examples = [pairs[i] for i in picks]
        (wanted,) = vocabulary.plain([tokens.render(examples, question)])
        packed_differ += row[len(template.bos) : length].tolist() != wanted
        alone_differ += _joined_alone(vocabulary, examples, question) != wanted
    return packed_differ, alone_differ


def main(folders: list[str]) -> None:
    pairs = [(p.question, p.answer) for path in _SEEDS.value for p in files.read_pairs(path)]
    print(f"{len(pairs)} prompts of {_K.value} pairs and a question")
    print("| tokenizer | packed, differ | parts encoded alone, differ |\n|---|---|---|")
    for folder in map(pathlib.Path, folders[1:]):
        tokenizer = reading.load(folder)
        size = 1 + max(tokenizer.get_vocab().values())
        packed, alone = count(tokens.Vocabulary(tokenizer, size, str(folder)), pairs, _K.value)
        print(f"| {folder.name} | {packed} | {alone} |")


if __name__ == "__main__":
    app.run(main)
