"""The tokenizer of a GGUF file, as `tokenizer.json` and `tokenizer_config.json`.

| `tokenizer.ggml.model` | tokenizer |
|---|---|
| `llama` | SentencePiece's BPE: pieces with scores, byte fallback, a space before the text |
| `gpt2` | byte-level BPE: merges, over pieces that patterns cut the text into (`patterns`) |
"""

import pathlib
from typing import Any, NamedTuple

import tokenizers
from absl import logging
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from isara_jax.files import storage
from isara_jax.formats.from_gguf import patterns
from isara_jax.formats.from_gguf.file import GgufFile
from isara_jax.text import trial

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # `tokenizer.ggml.token_type`
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # by HF's name, GGUF's
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's, where a file says nothing
_SPACE = "▁"
_KEEP_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # behind them, in a Phi-3


class Tokenizer(NamedTuple):
    """A tokenizer before it is written.

    Attributes:
      backend: what goes into `tokenizer.json`.
      ids: of the special tokens that the file names, by `bos`, `eos`, `unk`, `pad`.
      ends: ids that end a text, EOS first.
      settings: what goes into `tokenizer_config.json`.
      size: of the vocabulary.
    """

    backend: tokenizers.Tokenizer
    ids: dict[str, int]
    ends: list[int]
    settings: dict[str, Any]
    size: int

    def save(self, folder: pathlib.Path) -> None:
        """Writes both files."""
        data = self.backend.to_str(pretty=True).encode()
        storage.atomic_write(folder / "tokenizer.json", data)
        storage.write_json(folder / "tokenizer_config.json", self.settings)


def read(file: GgufFile, max_length: int) -> Tokenizer:
    """Makes the tokenizer of a file.

    Args:
      file: its metadata is read.
      max_length: tokens that the model takes.

    Raises:
      ValueError: its kind or its pre-tokenisation is not supported, or it is damaged; the message
        names the field.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in ("llama", "gpt2"):
        file.fail("tokenizer.ggml.model", kind, "supported: llama, gpt2")
    words = file.array("tokenizer.ggml.tokens", str)
    if not words:
        raise ValueError(f"{file.path}: no tokenizer, tokenizer.ggml.tokens is missing")
    vocabulary = _Vocabulary(file, words, kind)
    try:
        build = _sentencepiece if kind == "llama" else _byte_level
        backend, add_bos = build(file, vocabulary)
        backend.add_special_tokens(vocabulary.added(special=True))
        backend.add_tokens(vocabulary.added(special=False))
    except ValueError:
        raise
    except Exception as error:  # the Rust library raises plain `Exception`
        reason = " ".join(str(error).split())
        raise ValueError(f"{file.path}: its tokenizer is damaged ({reason})") from error
    named = {f"{role}_token": words[i] for role, i in vocabulary.ids.items()}
    adds = {
        "add_bos_token": "bos" in vocabulary.ids
        and file.get("tokenizer.ggml.add_bos_token", bool, add_bos),
        "add_eos_token": "eos" in vocabulary.ids
        and file.get("tokenizer.ggml.add_eos_token", bool, False),
    }
    backend.post_processor = _template(vocabulary, **adds)
    # The generic class takes tokenizer.json as it is; that of the model's type would rebuild it.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | named | adds
    settings |= {"clean_up_tokenization_spaces": False, "model_max_length": max_length}
    settings |= _chat_templates(file)
    return Tokenizer(backend, vocabulary.ids, vocabulary.ends(), settings, len(words))


class _Vocabulary:
    """The tokens of a file by kind."""

    def __init__(self, file: GgufFile, words: list[str], kind: str) -> None:
        self._file, self.words = file, words
        types = file.array("tokenizer.ggml.token_type", int, len(words))
        self._types = types or [_NORMAL] * len(words)
        # llama.cpp's converter fills gaps: the embedding may have more rows than there are tokens.
        filled = [
            not word or (word == f"[PAD{i}]" and self._types[i] == _UNUSED)
            for i, word in enumerate(words)
        ]
        self.by_word = {w: i for i, w in enumerate(words) if not filled[i]}
        if len(self.by_word) + sum(filled) != len(words):
            raise ValueError(f"{file.path}: tokenizer.ggml.tokens holds a token twice")
        default = _SENTENCEPIECE_IDS if kind == "llama" else {}
        found = {role: self._id(name, default.get(role)) for role, name in _ROLES.items()}
        self.ids = {role: i for role, i in found.items() if i is not None}
        # As llama.cpp tells it: no field says that white space behind special tokens is left out.
        name = file.get("general.name", str, "").lower()
        self._phi3 = "phi-3" in name or "phi3" in name

    def _id(self, name: str, default: int | None) -> int | None:
        """The id of a special token; one outside the vocabulary, often 2**32 - 1, says none."""
        found = self._file.get(f"tokenizer.ggml.{name}_token_id", int, default)
        if found is None or not 0 <= found < len(self.words):
            return None
        return self.by_word.get(self.words[found])

    def ends(self) -> list[int]:
        """What ends a text: EOS, and the ends of a turn and of a message where they are named."""
        found = [self.ids.get("eos"), self._id("eot", None), self._id("eom", None)]
        return list(dict.fromkeys(i for i in found if i is not None))

    def added(self, special: bool) -> list[AddedToken]:
        """Tokens that are found in a text before anything else, special ones or others."""
        marked = self.of_type(_CONTROL) | self.of_type(_UNKNOWN)
        marked |= {*self.ids.values(), *self.ends()}
        chosen = marked if special else self.of_type(_USER_DEFINED) - marked
        return [
            AddedToken(
                word,
                special=special,
                normalized=False,
                rstrip=self._phi3 and word not in _KEEP_SPACE,
            )
            for word in (self.words[i] for i in sorted(chosen))
        ]

    def of_type(self, kind: int) -> set[int]:
        """The ids of a `tokenizer.ggml.token_type`."""
        return {i for i in self.by_word.values() if self._types[i] == kind}


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """GPT-2's kind, and whether it puts BOS in front where the file does not say."""
    name = file.get("tokenizer.ggml.pre", str)
    if name not in patterns.BY_NAME:
        file.fail("tokenizer.ggml.pre", name, f"supported: {', '.join(patterns.BY_NAME)}")
    cut = patterns.BY_NAME[name]
    if name == "default":
        logging.warning(
            "%s: tokenizer.ggml.pre is 'default', so its converter did not know how texts are cut; "
            "GPT-2's pattern is taken. A file made by a newer converter says it", file.path,
        )  # fmt: skip
    merges = _merges(file)
    if merges is None:
        raise ValueError(f"{file.path}: tokenizer.ggml.merges is missing; the file is not complete")
    backend = tokenizers.Tokenizer(models.BPE(vocabulary.by_word, merges, ignore_merges=cut.whole))
    splits = [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in cut.patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    backend.decoder = decoders.ByteLevel()
    return backend, cut.bos


def _merges(file: GgufFile) -> list[tuple[str, str]] | None:
    lines = file.array("tokenizer.ggml.merges", str)
    merges = [tuple(line.split(" ")) for line in lines or []]
    for i, merge in enumerate(merges):
        if len(merge) != 2:
            file.fail(f"tokenizer.ggml.merges, number {i},", lines[i], "two tokens are expected")
    return merges if lines is not None else None


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """SentencePiece's BPE as LLaMA 1 and 2 and the Gemmas have it, and that it puts BOS in front.

    Runs of white space that are the user's tokens, as of the Gemmas, are found before anything else
    and from the left, the longest first, as SentencePiece does; they stand in the file with spaces.
    """
    for name in ("remove_extra_whitespaces", "normalizer.lowercase"):
        if file.get(f"tokenizer.ggml.{name}", bool, False):
            file.fail(f"tokenizer.ggml.{name}", True, "only false is supported")
    scores = file.array("tokenizer.ggml.scores", float, len(vocabulary.words))
    merges = _merges(file)
    if scores is None and merges is None:
        raise ValueError(f"{file.path}: tokenizer.ggml.scores is missing; the file is not complete")
    merges = _merges_by_score(vocabulary, scores, file.path) if merges is None else merges
    unknown = vocabulary.words[vocabulary.ids["unk"]] if "unk" in vocabulary.ids else None
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary.by_word, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )  # fmt: skip
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    # Not `Metaspace`, which adds no space to a text that begins with one; SentencePiece does.
    first = [normalizers.Prepend(_SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", _SPACE)])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    return backend, True


def _merges_by_score(
    vocabulary: _Vocabulary, scores: list[float], path: pathlib.Path
) -> list[tuple[str, str]]:
    """Merges that do what the scores do: the best piece of any two neighbours is made first.

    Of equal scores the lower id is better: some converters write one score for all.
    """
    pieces = {vocabulary.words[i]: i for i in sorted(vocabulary.of_type(_NORMAL))}
    if (longest := max(map(len, pieces), default=0)) > trial.LONGEST_PIECE:  # each is halved anew
        raise ValueError(
            f"{path}: tokenizer.ggml.tokens holds a token of {longest:,} characters; at most "
            f"{trial.LONGEST_PIECE:,} are expected"
        )
    result = []
    for word in sorted(pieces, key=lambda word: -scores[pieces[word]]):
        halves = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
        halves = [half for half in halves if half[0] in pieces and half[1] in pieces]
        result += sorted(halves, key=lambda half: (pieces[half[0]], pieces[half[1]]))
    return result


def _template(
    vocabulary: _Vocabulary, add_bos_token: bool, add_eos_token: bool
) -> processors.TemplateProcessing:
    """What stands around a text, and around each of two."""
    tokens = {role: vocabulary.words[i] for role, i in vocabulary.ids.items()}
    before = [tokens["bos"]] if add_bos_token else []
    after = [tokens["eos"]] if add_eos_token else []
    one, two = (
        [f"{piece}:{i}" for piece in (*before, f"${name}", *after)] for i, name in enumerate("AB")
    )
    special = [(token, vocabulary.by_word[token]) for token in (*before, *after)]
    return processors.TemplateProcessing(one, one + two, special)


def _chat_templates(file: GgufFile) -> dict[str, Any]:
    """The template of a conversation, or several by name, as `tokenizer_config.json` has them."""
    default = file.get("tokenizer.chat_template", str, None)
    named = {"default": default} if default is not None else {}
    for name in file.array("tokenizer.chat_templates", str) or []:
        named[name] = file.get(f"tokenizer.chat_template.{name}", str)
    if not named:
        return {}
    if set(named) == {"default"}:
        return {"chat_template": default}
    return {"chat_template": [{"name": n, "template": text} for n, text in named.items()]}
