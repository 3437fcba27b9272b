"""Special tokens in what we write, and none in what others write.

A tokenizer either reads every `</s>` as the token or none. Here it reads none, and a copy of it
knows those of our own text by a second name, which stands for them there.
"""

import copy
import re
from collections.abc import Collection, Sequence

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

MARK = "\ufdd0"  # a noncharacter: no text holds it


def pattern(names: Collection[str]) -> re.Pattern[str]:
    """What matches one of the names, the longest first; of no names, nothing."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class Marked:
    """A tokenizer that reads special tokens where they are marked, and nowhere else.

    Args:
      tokenizer: left as it is.
      names: the special tokens that may be marked.

    Attributes:
      tokenizer: the copy, or the tokenizer itself where there are no names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: Collection[str]) -> None:
        added = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items()}
        self.tokenizer = copy.deepcopy(tokenizer) if names else tokenizer
        self._pattern, self._ids = pattern(names), {}
        for name in sorted(names):
            index, token = added[name]
            second = AddedToken(
                f"{MARK}{name}{MARK}", lstrip=token.lstrip, rstrip=token.rstrip, normalized=False
            )
            self.tokenizer.add_tokens([second])
            self._ids[self.tokenizer.convert_tokens_to_ids(second.content)] = index

    def mark(self, text: str) -> str:
        """Our own text, with its special tokens by their second names."""
        return self._pattern.sub(rf"{MARK}\g<0>{MARK}", text)

    def ids(self, found: Sequence[int]) -> list[int]:
        """What the copy has made of a text, as ids of the tokenizer."""
        return [self._ids.get(i, i) for i in found]


def special_in(tokenizer: PreTrainedTokenizerBase, text: str) -> set[str]:
    """The special tokens that a text of ours holds."""
    added = tokenizer.added_tokens_decoder.values()
    return set(pattern({t.content for t in added if t.special and t.content}).findall(text))
