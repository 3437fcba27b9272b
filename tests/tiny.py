"""Tiny random models and tokenizers for the tests, written by `transformers` and `tokenizers`."""

import functools
import itertools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from isara_jax.devices import mesh as mesh_lib
from isara_jax.formats import weights
from isara_jax.models import decoder, families
from isara_jax.text import encoding, packing, tokens

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 326,  # the rows of vocabulary("byte_level")
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
OPT_SIZES = {
    "vocab_size": 326,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
PAD, BOS, EOS = 0, 1, 2
# Tokens inside which stop strings begin and end; the last are UTF-8 cut in the middle of "é".
MERGED = (
    *(".\n\n", "\n\nQuestion", ":\n", "x\nAnswer:y", "\n\n\n", "Question", "Answer:", "\nAns"),
    *(" Question", "er: ", "Quest", "ion:", "\n\nQ", "ab", "abc", "ba", "aab", "bab\n", " the"),
)


def torch_model(kind: type, seed: int = 0, **changed) -> transformers.PreTrainedModel:
    """A random model of a `transformers` class; every tensor matters, biases and norms included."""
    sizes = OPT_SIZES if kind.config_class is transformers.OPTConfig else SIZES | _SPECIAL
    settings = kind.config_class(**sizes | changed, attn_implementation="eager")
    torch.manual_seed(seed)
    return randomise(kind(settings).eval())


# Some families have end and padding above this vocabulary.
_SPECIAL = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
torch_llama = functools.partial(torch_model, transformers.LlamaForCausalLM)
torch_opt = functools.partial(torch_model, transformers.OPTForCausalLM)
TORCH = {
    name: functools.partial(torch_model, getattr(transformers, family.architecture))
    for name, family in families.FAMILIES.items()
    if family.alone is None
}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Draws every parameter anew, in sizes at which the model does not repeat itself."""
    tied = hasattr(model, "lm_head") and model.config.tie_word_embeddings
    # Gemma's embeddings are scaled by the root of the width; its weights of norms are added to 1.
    gemma = type(model).__name__.startswith("Gemma")
    embed = (0.1 if tied else 0.7) * (0.15 if gemma else 1)
    scales, norm = {"embed_positions": 1.5, "embed": embed, "": 0.2}, 0.0 if gemma else 1.0
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = next(s for part, s in scales.items() if part in name)
            value.normal_(norm if name.endswith("norm.weight") else 0.0, scale)
    return model


@functools.cache
def mesh():
    return mesh_lib.make()


def load(directory: pathlib.Path) -> tuple[decoder.Decoder, dict]:
    """Our reading of a Hugging Face directory."""
    model = families.build(weights.load_config(directory))
    return model, weights.load(directory, model, mesh())


def ported(theirs: transformers.PreTrainedModel) -> tuple[decoder.Decoder, dict]:
    """A torch model in JAX, by way of its files."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load(pathlib.Path(folder))


@functools.partial(jax.jit, static_argnums=0)
def _everything(model, params, ids):
    return model.apply({"params": params}, ids, method="everything")


def logits(model: decoder.Decoder, params: dict, ids) -> np.ndarray:
    """Logits, or a judge's scores, at every position."""
    return np.asarray(_everything(model, params, jnp.asarray(ids)))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two arrays, as a share of the largest value of the second."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def torch_logits(model: torch.nn.Module, ids) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids), dtype=torch.long)).logits.float().numpy()


def _chains(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges that build each word from its characters, from the left."""
    steps = dict.fromkeys((w[:i], w[i]) for w in words for i in range(1, len(w)))
    return ["".join(pair) for pair in steps], list(steps)


def _fast(tokenizer: tokenizers.Tokenizer, **special) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **special
    )


def byte_level_tokenizer(merged=MERGED) -> transformers.PreTrainedTokenizerFast:
    """GPT-2's kind: 256 bytes and `merged`, across blank lines too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ["".join(piece for piece, _ in split.pre_tokenize_str(w)) for w in merged]
    built, merges = _chains(spelled)
    names = dict.fromkeys(["<pad>", "<s>", "</s>", *alphabet, *built])
    vocab = dict(zip(names, itertools.count(), strict=False))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    return _fast(tokenizer, pad_token="<pad>")


def byte_fallback_tokenizer(merged=MERGED) -> transformers.PreTrainedTokenizerFast:
    """LLaMA's kind: SentencePiece's alphabet with "▁" for a space, other bytes as `<0x..>`."""
    spelled = [w.replace(" ", "▁") for w in merged]
    # As in LLaMA's vocabulary, a line break is <0x0A>, unless a longer piece holds it.
    characters = sorted({c for w in spelled for c in w} | set("▁abcdefghijklmnop?!,é漢"))
    built, merges = _chains(spelled)
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    names = dict.fromkeys(["<unk>", "<s>", "</s>", *bytes_, *characters, *built])
    vocab = dict(zip(names, itertools.count(), strict=False))
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer, unk_token="<unk>")


TOKENIZERS = {"byte_level": byte_level_tokenizer, "byte_fallback": byte_fallback_tokenizer}


@functools.cache
def vocabulary(kind: str) -> tokens.Vocabulary:
    """The vocabulary `kind` of `TOKENIZERS`, with some rows of the embedding left unused."""
    tokenizer = TOKENIZERS[kind]()
    return tokens.Vocabulary(tokenizer, len(tokenizer) + 5, f"tests/{kind}")


def texts(vocabulary, written, place, capacity) -> packing.Text:
    """Questions or answers of at most `capacity` tokens as they stand at `place`, on the host."""
    seam = packing.Template.of(vocabulary).seam(place)
    room = encoding.Room(capacity, capacity + seam)
    return encoding.as_text(vocabulary.spellings(written, place), room)
