"""How texts begin and end for a model, as the files of its folder say.

Published folders speak of it in several places that need not agree:

| question | answered by |
|---|---|
| which token ends a text | the tokenizer; `tokenizer.model`; config.json; generation_config.json |
| which others end one, too | config.json and generation_config.json, each if it names that token; |
| | a list of several in generation_config.json in any case |
| does a text begin with BOS | what the tokenizer puts first; `add_bos_token`; else its kind |

Where the tokenizer's files do not say, SentencePiece's models (LLaMA 1 and 2) and OPT were trained
with a BOS, byte-level ones (GPT-2, Qwen 2, SmolLM2) without.
"""

import json
import pathlib
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import sentencepiece
from transformers import AddedToken, PreTrainedTokenizerBase

from isara_jax.devices import processes
from isara_jax.files import storage
from isara_jax.shell.terminal import quoted

Begin = Literal["auto", "always", "never"]
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SETTINGS, _MAP = "tokenizer_config.json", "special_tokens_map.json"
_VOCABULARIES = (_SETTINGS, _MAP, "tokenizer.json", "added_tokens.json", "vocab.json")
_MODEL = ("config.json", "generation_config.json")


class SpecialTokens(NamedTuple):
    """Token ids around a text.

    Attributes:
      bos: what it begins with, or None.
      eos: what ends it where texts are written for training.
      ends: all that end it when they are drawn, `eos` among them, in ascending order.
    """

    bos: int | None
    eos: int
    ends: tuple[int, ...]


def of(tokenizer: PreTrainedTokenizerBase, source: str) -> SpecialTokens:
    """As the tokenizer alone has it.

    Args:
      tokenizer: any.
      source: its folder, for messages.

    Raises:
      ValueError: it has no token that ends a text, or begins texts with several.
    """
    eos, first = _eos(tokenizer, source), _put_first(tokenizer, source)
    own = tokenizer.bos_token_id if _is_sentencepiece(tokenizer) else None
    return SpecialTokens(own if first is None else first, eos, (eos,))


def read(
    directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase, named: dict[str, list[int]],
    begin: Begin = "auto",
) -> SpecialTokens:  # fmt: skip
    """As the model was trained; what disagrees is said once.

    Args:
      directory: the model's folder.
      tokenizer: as `reading.load` reads it. Whatever ends a text becomes special in it,
        so that it stays text in somebody's text.
      named: what `named_ends` finds.
      begin: whether texts begin with BOS; "auto": as the model was trained.

    Raises:
      ValueError: no end is named, or there is no BOS to begin with.
    """
    eos = _eos(tokenizer, str(directory))
    # A list of several in generation_config.json is where transformers' `generate` stops: all ends.
    agreeing = {
        name: ids for name, ids in named.items()
        if eos in ids or (name == "generation_config.json" and len(ids) > 1)
    }  # fmt: skip
    if "generation_config.json" not in agreeing and len(agreeing) < len(named):
        _tell_of_ends(directory, tokenizer, eos, {n: named[n] for n in named if n not in agreeing})
    ends = tuple(sorted({eos}.union(*agreeing.values())))
    make_special(tokenizer, ends)
    return SpecialTokens(_bos(directory, tokenizer, begin), eos, ends)


def named_ends(directory: pathlib.Path, size: int) -> dict[str, list[int]]:
    """The tokens that end a text by the model's own files, by the file's name.

    Args:
      directory: the model's.
      size: rows of its embedding.

    Raises:
      ValueError: one of them is none of its tokens.
    """
    found = {name: _ends_in(directory / name, size) for name in _MODEL}
    return {name: ids for name, ids in found.items() if ids}


def show(tokenizer: PreTrainedTokenizerBase, ids: Collection[int]) -> str:
    """Tokens for people: `</s> (2)`; one without a text is its number."""
    texts = tokenizer.convert_ids_to_tokens(list(ids))
    return ", ".join(f"{t} ({i})" if t else str(i) for i, t in zip(ids, texts, strict=True))


def _eos(tokenizer: PreTrainedTokenizerBase, source: str) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{source}: the tokenizer has no eos_token, or an empty one, and no other file names "
            'the token that ends a text; write it into tokenizer_config.json, such as "eos_token": '
            '"</s>"'
        )
    return tokenizer.eos_token_id


def _ends_in(path: pathlib.Path, size: int) -> list[int]:
    found = storage.read_json(path).get("eos_token_id") if path.exists() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < size:
            raise ValueError(
                f"{path}: eos_token_id is {quoted(found)}; token ids below {size} are expected"
            )
    return ids


def _tell_of_ends(
    directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase, eos: int,
    others: dict[str, list[int]],
) -> None:  # fmt: skip
    said = ", ".join(f"{name} with {show(tokenizer, ids)}" for name, ids in others.items())
    both = sorted({eos}.union(*others.values()))
    processes.say_once(
        f"{directory}: the tokenizer ends texts with {show(tokenizer, [eos])}, {said}; the "
        "tokenizer's is taken. To settle it, write "
        f'"eos_token_id": {eos} (or {both}, if all of them end texts) into generation_config.json'
    )


def make_special(tokenizer: PreTrainedTokenizerBase, ids: Collection[int]) -> None:
    """Makes tokens special that were only added, as fine-tunes add theirs.

    They would else be read in anybody's text.
    """
    added = tokenizer.added_tokens_decoder
    plain = [added[i] for i in ids if i in added and not added[i].special]
    tokenizer.add_tokens(
        [AddedToken(t.content, normalized=False, special=True) for t in plain], special_tokens=True
    )


# --- the beginning -------------------------------------------------------------------------------


def _bos(directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase, begin: Begin) -> int | None:
    if begin == "never":
        return None
    first, own = _put_first(tokenizer, str(directory)), tokenizer.bos_token_id
    if first is not None:
        return first
    if begin == "always":
        if own is None:
            raise ValueError(
                f"{directory}: the tokenizer has no bos_token to begin texts with (bos='always'); "
                f'name one in {_SETTINGS}, such as "bos_token": "<s>", or choose auto or never'
            )
        return own
    said = _fields(directory / _SETTINGS).get("add_bos_token")
    if said is None:
        opt = _fields(directory / "config.json").get("model_type") == "opt"
        said = opt or _is_sentencepiece(tokenizer)
    return own if said else None


def _is_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether unknown characters fall back to bytes, as only SentencePiece's BPE does it."""
    return tokenizer.is_fast and "ByteFallback" in repr(tokenizer.backend_tokenizer.decoder)


def _put_first(tokenizer: PreTrainedTokenizerBase, source: str) -> int | None:
    """The token that the tokenizer itself puts before a text."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    if before > 1:
        raise ValueError(
            f"{source}: the tokenizer begins texts with {show(tokenizer, whole[:before])}; one "
            "token or none is supported"
        )
    return whole[0] if before else None


# --- what the tokenizer's files leave out --------------------------------------------------------


def of_empty(directory: pathlib.Path) -> dict[str, str | None]:
    """Arguments of `from_pretrained` for special tokens that files name by an empty text.

    Old conversions of LLaMA do, and transformers looks for that token without end. What is meant
    lies in `tokenizer.model`.
    """
    empty = set()
    for name in (_SETTINGS, _MAP):
        fields = _fields(directory / name)
        empty |= {role for role in _ROLES if _text(fields.get(f"{role}_token")) == ""}
    known = _in_sentencepiece(directory) if empty else {}
    return {f"{role}_token": known.get(role) for role in empty}


def made_up(tokenizer: PreTrainedTokenizerBase, directory: pathlib.Path) -> dict[str, None]:
    """Arguments of `from_pretrained` against tokens that no file knows.

    A tokenizer's class has defaults, and makes tokens of them that the model has never read.
    """
    tokens = {f"{role}_token": getattr(tokenizer, f"{role}_token") for role in _ROLES}
    added = {
        name: token for name, token in tokens.items()
        if token and tokenizer.convert_tokens_to_ids(token) >= tokenizer.vocab_size
    }  # fmt: skip
    for path in (directory / name for name in _VOCABULARIES if added):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        written = {t: (json.dumps(t), json.dumps(t, ensure_ascii=False)) for t in added.values()}
        added = {n: t for n, t in added.items() if not any(w in text for w in written[t])}
    return dict.fromkeys(added)


def complete(
    tokenizer: PreTrainedTokenizerBase, directory: pathlib.Path, left_out: Collection[str]
) -> None:
    """Tells the tokenizer of the end of a text where its own files do not.

    Args:
      tokenizer: changed.
      directory: the model's.
      left_out: `bos_token` if that is to be found out, too.
    """
    known: dict[str, str] | None = None
    for role in ("eos", "bos"):
        name = f"{role}_token"
        if getattr(tokenizer, name) or (role == "bos" and name not in left_out):
            continue
        known = _in_sentencepiece(directory) if known is None else known
        token = known.get(role) or _in_model(tokenizer, directory, f"{name}_id")
        if token in tokenizer.get_vocab():
            special = AddedToken(token, normalized=False, special=True)
            tokenizer.add_special_tokens({name: special})


def mend(directory: pathlib.Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes what the tokenizer's files leave out into a copy of them, for other programs.

    Args:
      directory: of the copy.
      tokenizer: which was read from the files.
    """
    settings, others = _fields(directory / _SETTINGS), _fields(directory / _MAP)
    empty = of_empty(directory)
    missing = set(empty) if "eos_token" in settings | others else {*empty, "eos_token"}
    known = {name: token for name in missing if (token := getattr(tokenizer, name))}
    for name, fields in ((_SETTINGS, settings), (_MAP, others)):
        kept = {key: value for key, value in fields.items() if key not in empty}
        kept |= known if name == _SETTINGS else {}
        if kept != fields:
            storage.write_json(directory / name, kept)


def _in_sentencepiece(directory: pathlib.Path) -> dict[str, str]:
    """Special tokens of `tokenizer.model`, by role."""
    path = directory / "tokenizer.model"
    if not path.exists():
        return {}
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = {"bos": model.bos_id(), "eos": model.eos_id(), "unk": model.unk_id()}
    return {role: model.id_to_piece(index) for role, index in ids.items() if index >= 0}


def _in_model(
    tokenizer: PreTrainedTokenizerBase, directory: pathlib.Path, field: str
) -> str | None:
    """The token that the model's own files name, the first if there are several."""
    for name in _MODEL:
        found = _fields(directory / name).get(field)
        found = found[:1] if isinstance(found, list) else [found]
        for index in found:
            if isinstance(index, int) and 0 <= index < len(tokenizer):
                return tokenizer.convert_ids_to_tokens(index)
    return None


def _text(token: Any) -> Any:
    """The text of a special token, which files write plain or with how it is matched."""
    return token.get("content") if isinstance(token, dict) else token


def _fields(path: pathlib.Path) -> dict[str, Any]:
    return storage.read_json(path) if path.exists() else {}
