"""The tokenizer of a GGUF file, as `tokenizer.json` and `tokenizer_config.json`.

| `tokenizer.ggml.model` | tokenizer |
|---|---|
| `llama` | SentencePiece's BPE: pieces with scores, byte fallback, a space before the text |
| `gpt2` | byte-level BPE: merges, over pieces that patterns cut the text into |

The patterns are not in the file, only their name, `tokenizer.ggml.pre`. Names and patterns: those of
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, in the spelling of the
`tokenizer.json` that each was taken from.
"""

import pathlib
from typing import Any, NamedTuple

import tokenizers
from absl import logging
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from isara_jax import storage
from isara_jax.from_gguf.file import GgufFile

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # `tokenizer.ggml.token_type`
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # by HF's name, GGUF's
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's, where a file says nothing
_SPACE = "▁"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + _WORDS + r"|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTION + _WORDS + r"|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
)  # fmt: skip
_SLASHED = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_TEKKEN = "|".join(_CASED) + r"|\p{N}" + _SLASHED
_GPT4O = "|".join(f"{word}{_CONTRACTION}?" for word in _CASED) + r"|\p{N}{1,3}" + _SLASHED
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_SEED_CODER = _CONTRACTION + _WORDS + r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"


class _Pre(NamedTuple):
    """What the name of a pre-tokenisation stands for.

    Attributes:
      patterns: each cuts the pieces of the one before; what it matches is a piece, as is the rest.
      whole: a piece that is a token is that token, whatever the merges would make of it.
      bos: texts begin with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_BYTE_LEVEL = {
    name: pre
    for names, pre in (
        ("llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2", _Pre((_LLAMA3,), True, True)),
        ("dbrx smaug-bpe", _Pre((_LLAMA3,))),
        ("qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan", _Pre((_QWEN2,))),
        ("gpt-2 default mpt olmo phi-2 jais trillion exaone4 mellum gigachat", _Pre((_GPT2,))),
        ("smollm starcoder refact command-r codeshell minerva-7b", _Pre((r"\p{N}", _GPT2))),
        ("tekken", _Pre((_TEKKEN,), True, True)),
        ("gpt-4o llama4 kanana2", _Pre((_GPT4O,))),
        ("deepseek-coder", _Pre(_DEEPSEEK_CODER)),
        ("seed-coder", _Pre((_SEED_CODER,))),
    )
    for name in names.split()
}


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
        raise ValueError(
            f"{file.path}: tokenizer.ggml.tokens is missing; the file has no tokenizer"
        )
    vocabulary = _Vocabulary(file, words, kind)
    try:
        build = _sentencepiece if kind == "llama" else _byte_level
        backend, add_bos = build(file, vocabulary)
        backend.add_special_tokens(vocabulary.added(special=True))
        backend.add_tokens(vocabulary.added(special=False))
    except ValueError:
        raise
    except Exception as error:  # the Rust library raises plain `Exception`
        raise ValueError(f"{file.path}: its tokenizer is damaged ({error})") from error
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
        default = _SENTENCEPIECE_IDS if kind == "llama" else {}
        found = {role: self._id(name, default.get(role)) for role, name in _ROLES.items()}
        self.ids = {role: i for role, i in found.items() if i is not None}
        # What llama.cpp's converter fills gaps with, where the embedding has more rows than tokens.
        self._filled = {
            i for i, word in enumerate(words)
            if self._types[i] == _UNUSED and word == f"[PAD{i}]"
        }  # fmt: skip
        self.by_word = {w: i for i, w in enumerate(words) if i not in self._filled}
        if len(self.by_word) + len(self._filled) != len(words):
            raise ValueError(f"{file.path}: tokenizer.ggml.tokens holds a token twice")

    def _id(self, name: str, default: int | None) -> int | None:
        """The id of a special token; one outside the vocabulary, often 2**32 - 1, says none."""
        found = self._file.get(f"tokenizer.ggml.{name}_token_id", int, default)
        return found if found is not None and 0 <= found < len(self.words) else None

    def ends(self) -> list[int]:
        """What ends a text: EOS, and the ends of a turn and of a message where they are named."""
        found = [self.ids.get("eos"), self._id("eot", None), self._id("eom", None)]
        return list(dict.fromkeys(i for i in found if i is not None))

    def added(self, special: bool) -> list[AddedToken]:
        """Tokens that are found in a text before anything else, special ones or others."""
        marked = {*self.ids.values(), *self.ends()}
        return [
            AddedToken(word, special=special, normalized=False)
            for i, word in enumerate(self.words)
            if (self._types[i] in (_CONTROL, _UNKNOWN) or i in marked) == special
            and (special or self._types[i] == _USER_DEFINED)
        ]

    def is_normal(self, index: int) -> bool:
        return self._types[index] == _NORMAL


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """GPT-2's kind, and whether it puts BOS in front where the file does not say."""
    name = file.get("tokenizer.ggml.pre", str)
    if name not in _BYTE_LEVEL:
        file.fail("tokenizer.ggml.pre", name, f"supported: {', '.join(_BYTE_LEVEL)}")
    if name == "default":
        logging.warning(
            "%s: tokenizer.ggml.pre is 'default', so its converter did not know how texts are cut; "
            "GPT-2's pattern is taken. A file made by a newer converter says it", file.path,
        )  # fmt: skip
    pre = _BYTE_LEVEL[name]
    lines = file.array("tokenizer.ggml.merges", str)
    if lines is None:
        raise ValueError(f"{file.path}: tokenizer.ggml.merges is missing; the file is not complete")
    merges = [tuple(line.split(" ")) for line in lines]
    for i, merge in enumerate(merges):
        if len(merge) != 2:
            file.fail(f"tokenizer.ggml.merges, number {i},", lines[i], "two tokens are expected")
    backend = tokenizers.Tokenizer(models.BPE(vocabulary.by_word, merges, ignore_merges=pre.whole))
    cuts = [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in pre.patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_])
    backend.decoder = decoders.ByteLevel()
    return backend, pre.bos


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """SentencePiece's BPE as LLaMA 1 and 2 have it, and that it puts BOS in front."""
    for name in ("remove_extra_whitespaces", "normalizer.lowercase"):
        if file.get(f"tokenizer.ggml.{name}", bool, False):
            file.fail(f"tokenizer.ggml.{name}", True, "only false, as of LLaMA, is supported")
    scores = file.array("tokenizer.ggml.scores", float, len(vocabulary.words))
    if scores is None:
        raise ValueError(f"{file.path}: tokenizer.ggml.scores is missing; the file is not complete")
    unknown = vocabulary.words[vocabulary.ids["unk"]] if "unk" in vocabulary.ids else None
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary.by_word, _merges(vocabulary, scores),
            unk_token=unknown, fuse_unk=True, byte_fallback=True,
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


def _merges(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Merges that do what the scores do: the best piece of any two neighbours is made first."""
    pieces = {w: i for w, i in vocabulary.by_word.items() if vocabulary.is_normal(i)}
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
    roles = [role for role, add in (("bos", add_bos_token), ("eos", add_eos_token)) if add]
    special = {vocabulary.words[vocabulary.ids[role]]: vocabulary.ids[role] for role in roles}
    around = [vocabulary.words[vocabulary.ids[role]] for role in roles]
    before = around[:1] if add_bos_token else []
    after = around[-1:] if add_eos_token else []
    first, second = (
        [*(f"{t}:{i}" for t in before), f"${'AB'[i]}:{i}", *(f"{t}:{i}" for t in after)]
        for i in (0, 1)
    )
    return processors.TemplateProcessing(first, first + second, list(special.items()))


def _chat_templates(file: GgufFile) -> dict[str, Any]:
    """The template of a conversation, or several by name, as `tokenizer_config.json` has them."""
    default = file.get("tokenizer.chat_template", str, None)
    named = {"default": default} if default is not None else {}
    for name in file.array("tokenizer.chat_templates", str) or []:
        named[name] = file.get(f"tokenizer.chat_template.{name}", str)
    if set(named) <= {"default"}:
        return {"chat_template": text for text in named.values()}
    return {"chat_template": [{"name": n, "template": text} for n, text in named.items()]}
