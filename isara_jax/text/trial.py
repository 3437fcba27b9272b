r"""Tries a tokenizer before it is trusted; run by `files.confined`, so it imports nothing of ours.

Its patterns run in Onigurama, which backtracks: `(\w+)+\d` tries two to the power of the length of
a text. That engine gives up after ten million steps a match, by a panic that no `except Exception`
catches; a pattern below that limit may still take minutes a line. Replacements can double a text
with each step. So a tokenizer must cut texts of every kind of character within half a second each,
which real ones do in milliseconds.
"""

import sys
import time
from collections.abc import Callable, Iterable

_CHARACTERS = 1000  # of each text
_SECONDS = 0.5  # for each, of computing
_MOST_TOKENS = 64  # a character; bytes and byte fallback make four of one
LONGEST_PIECE = 4096  # characters; the longest published ones are some hundred blanks
_KINDS = (*"aZ1_ .-\n\té漢ば\u0301😀", " a", "aB1 ", "it's ", "Question: x\nAnswer: y\n\n")


def _check(encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]) -> None:
    for kind in _KINDS:
        text = (kind * _CHARACTERS)[:_CHARACTERS]
        since = time.process_time()
        try:
            ids = encode(text)
            decode(ids)
        except MemoryError:
            raise
        except BaseException as error:  # a panic is no `Exception`
            raise ValueError(f"it fails for {kind!r}, repeated: {error}") from error
        if time.process_time() - since > _SECONDS:
            raise ValueError(
                f"for {kind!r}, repeated, it takes a thousand times as long as others: a pattern "
                "in it backtracks"
            )
        if len(ids) > _MOST_TOKENS * _CHARACTERS:
            raise ValueError(f"it makes {len(ids):,} tokens of {_CHARACTERS:,} characters")


def _check_pieces(pieces: Iterable[str]) -> None:
    if (longest := max(map(len, pieces), default=0)) > LONGEST_PIECE:
        raise ValueError(f"it has a token of {longest:,} characters; at most {LONGEST_PIECE:,}")


def _json(path: str) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check_pieces(tokenizer.get_vocab())
    _check(lambda text: tokenizer.encode(text).ids, tokenizer.decode)


def _sentencepiece(path: str) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=path)
    _check_pieces(map(model.id_to_piece, range(model.get_piece_size())))
    _check(model.encode, model.decode)


if __name__ == "__main__":
    found = sys.argv[1]
    (_json if found.endswith(".json") else _sentencepiece)(found)
