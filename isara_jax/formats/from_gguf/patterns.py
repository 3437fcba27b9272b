"""How texts are cut into pieces before a byte-level BPE merges within each.

A GGUF file holds only a name for it, `tokenizer.ggml.pre`. Names and patterns are those of
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, in the spelling of the
`tokenizer.json` that each was taken from.

transformers, which reads GGUF too, takes GPT-2's pattern for names that it does not know, `smollm`
among them: there a number behind a blank line or several spaces comes out differently than in the
published tokenizer, and less probable to the model.
"""

from typing import NamedTuple

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


class Cut(NamedTuple):
    """What the name of a pre-tokenisation stands for.

    Attributes:
      patterns: each cuts the pieces of the one before; what it matches is a piece, as is the rest.
      whole: a piece that is a token is that token, whatever the merges would make of it.
      bos: texts begin with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_NAMES = {
    Cut((_LLAMA3,), whole=True, bos=True): (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"
    ),
    Cut((_LLAMA3,)): "dbrx smaug-bpe",
    Cut((_QWEN2,)): ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open"),
    Cut((_GPT2,)): (
        "gpt-2 default mpt olmo phi-2 jais trillion exaone4 mellum gigachat granite-docling"
    ),
    Cut((r"\p{N}", _GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b",
    Cut((_TEKKEN,), whole=True, bos=True): "tekken",
    Cut((_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Cut(_DEEPSEEK_CODER): "deepseek-coder",
    Cut((_SEED_CODER,)): "seed-coder",
}
BY_NAME = {name: cut for cut, names in _NAMES.items() for name in names.split()}
