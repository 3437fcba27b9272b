"""How texts begin and end for a model: what the files of its folder say together.

| who names the end | what ends a text |
|---|---|
| the tokenizer, and config.json or generation_config.json too | all that these name |
| the tokenizer; config.json another (conversions of LLaMA 1) | the tokenizer's, with a note |
| not the tokenizer (Galactica) | what generation_config.json names, else config.json |

A text begins with BOS where the model was trained so: `add_bos_token` of tokenizer_config.json says
it, or the tokenizer's own encoding does; OPT, and LLaMA with its SentencePiece, always were.
"""

import pathlib
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from isara_jax import storage

Begin = Literal["auto", "always", "never"]


class SpecialTokens(NamedTuple):
    """Begin and ends of texts, as token ids.

    Attributes:
      bos: what every text begins with, or None.
      eos: what is written behind a text that is trained on.
      ends: what ends a text when it is drawn; `eos` is among them.
      note: what the files do not agree on, or empty.
    """

    bos: int | None
    eos: int
    ends: tuple[int, ...]
    note: str = ""


def read(
    directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase, rows: int, begin: Begin = "auto"
) -> SpecialTokens:
    """Begin and ends of texts for the model of a folder.

    Args:
      directory: with `config.json`, and perhaps `generation_config.json`.
      tokenizer: the folder's.
      rows: of the embedding.
      begin: `config.Model.bos`.

    Raises:
      ValueError: no file names an end, one names an id that is none, or a BOS is asked for that the
        tokenizer does not have.
    """
    stated = _ends(directory, "config.json", rows)
    generating = _ends(directory, "generation_config.json", rows)
    own, note = tokenizer.eos_token_id, ""
    if own is None:
        named = generating or stated
        if not named:
            raise ValueError(
                f"{directory}: neither the tokenizer nor config.json names the end of a text; add "
                'a line such as "eos_token": "</s>" to tokenizer_config.json'
            )
        own, ends = named[0], named
    elif own in generating or own in stated or not (*generating, *stated):
        ends = (own, *stated, *generating)
    else:
        ends = (own,)
        others = ", ".join(map(str, dict.fromkeys((*stated, *generating))))
        note = (
            f"{directory}: the tokenizer ends texts with token {own}, config.json with {others}; "
            f"{own} is taken; if that is wrong, mend eos_token in tokenizer_config.json"
        )
    bos = _bos(directory, tokenizer, begin)
    return SpecialTokens(bos, own, tuple(dict.fromkeys(ends)), note)


def of(tokenizer: PreTrainedTokenizerBase, source: str) -> SpecialTokens:
    """Begin and end as a tokenizer alone has them.

    Raises:
      ValueError: it names no end.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise ValueError(f"{source}: the tokenizer has no eos_token; generation needs one")
    begins = bos is not None and (
        tokenizer.encode("a")[:1] == [bos] or _is_sentencepiece(tokenizer)
    )
    return SpecialTokens(bos if begins else None, eos, (eos,))


def _is_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.is_fast and "ByteFallback" in repr(tokenizer.backend_tokenizer.decoder)


def _ends(directory: pathlib.Path, name: str, rows: int) -> tuple[int, ...]:
    """`eos_token_id` of a file, which may be one, several or none."""
    path = directory / name
    found = storage.read_json(path).get("eos_token_id") if path.exists() else None
    found = [] if found is None else found if isinstance(found, list) else [found]
    for end in found:
        if not isinstance(end, int) or isinstance(end, bool) or not 0 <= end < rows:
            raise ValueError(
                f"{path}: eos_token_id is {found}; token ids below {rows} are expected"
            )
    return tuple(found)


def _bos(directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase, begin: Begin) -> int | None:
    bos = tokenizer.bos_token_id
    if begin == "never" or (begin == "auto" and bos is None):
        return None
    if bos is None:
        raise ValueError(
            f"{directory}: the tokenizer has no bos_token for config.model.bos='always'; add it to "
            "tokenizer_config.json, or take 'auto'"
        )
    return bos if begin == "always" or _begins_with(bos, directory, tokenizer) else None


def _begins_with(bos: int, directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model was trained on texts that begin with `bos`."""
    path = directory / "tokenizer_config.json"
    said = storage.read_json(path).get("add_bos_token") if path.exists() else None
    if isinstance(said, bool):
        return said
    if tokenizer.encode("a")[:1] == [bos]:
        return True
    family = storage.read_json(directory / "config.json").get("model_type")
    return family == "opt" or _is_sentencepiece(tokenizer)
