"""Random models that write words: their texts are the same tokens when they are read again."""

import re

import numpy as np

from isara_jax.formats import pretrained, weights
from isara_jax.text import reading, tokens

TOKENIZER = pretrained.BUNDLED["tiny_llama"]


def only_words(params: dict) -> dict:
    """A model for the bundled tokenizer, changed so that it draws words with a space before them.

    What else a random model draws is parts of characters and of words, which the tokenizer spells
    in another way, longer as a rule. Whatever is read, the last hidden state's first number is
    above zero, and takes all other tokens far below these.
    """
    flat = {path: np.array(value) for path, value in weights.flatten(params).items()}
    embedding = flat["embed/embedding"]
    vocabulary = tokens.Vocabulary(reading.load(TOKENIZER), len(embedding), str(TOKENIZER))
    others = np.array([not re.fullmatch(rb" [A-Za-z]+", spelled) for spelled in vocabulary.bytes])
    if "head/kernel" in flat:
        embedding[:, 0] = 6.0
        flat["head/kernel"][0] = -20.0 * others
    else:  # tied; there is a bias
        embedding[:, 0] = -2.0 * others
        flat["norm/scale"][0], flat["norm/bias"][0] = 0.0, 25.0
    return weights.unflatten(flat)
