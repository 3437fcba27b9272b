"""GGUF files to Hugging Face folders, against transformers' own reading of the same files."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
import tracemalloc

import gguf
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
import tiny
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from isara_jax.formats import pretrained, weights
from isara_jax.formats.from_gguf import conversion, patterns, tokenizer
from isara_jax.formats.from_gguf.file import GgufFile
from isara_jax.text import reading
from tests.gguf_files import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    Words,
    add,
    convert,
    finish,
    llamas_words,
    metadata,
    read_by_transformers,
    rounded,
    same_model,
    tensors,
    written,
)  # fmt: skip

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
SIZES = {
    "vocab_size": 326, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 50_000.0,
}  # fmt: skip

AWKWARD = (
    "", " ", "  ", " a", "  a", "a ", "a  ", "\n", "\n\n", "a\n\nb", "a \n b", "a\n\n1. b",
    "\t\ta\r\n\r\nb", "Hello, World!", "it's WE'LL don't I'M", "x=1234567, y=12.5e-3",
    "a   12  345", "3\n\n4", "(a).\n\n(b)!\n", "naïve café e\u0301", "漢字とかな。한국어",
    "Ünïcödé Ωμέγα ЖЗ", "😀👍🏽 👨\u200d👩\u200d👧", "\u200b\u00a0\u3000x", "१२३ ٣٤ Ⅷ ½",
    "snake_case CamelCase HTTPServer iPhone", "http://a.b/c?d=e&f//g/\n/h",
    "<s> </s> <|user|> [PAD3]", "Question: q?\nAnswer: a.\n\nQuestion:", "▁ already",
    "\x00\x01\x7f", "a" * 40, "…“q” — ‘r’",
)  # fmt: skip
text = st.text(
    st.one_of(
        st.sampled_from("aAe ab12\n\n  .,'!?-_/\t\r"),
        st.characters(exclude_categories=("Cs",), exclude_characters="▁"),
    ),
    max_size=40,
)


llama = functools.partial(tiny.torch_llama, **SIZES)


@pytest.fixture(scope="module")
def theirs():
    return llama(tie_word_embeddings=False)


# --- weights and config ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1,
                                  Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q6_K])  # fmt: skip
def test_every_tensor_is_the_one_transformers_reads(kind, theirs, tmp_path):
    """Dequantised, under its name, and queries and keys (here grouped) in their order again."""
    path = written(tmp_path / "model.gguf", theirs, kind=kind)
    same_model(convert(path, tmp_path / "out"), read_by_transformers(path))


def test_the_original_comes_back(tmp_path):
    """Through bf16 nothing is lost, so that the whole way is checked without another reader."""
    theirs = rounded(llama(tie_word_embeddings=False))
    folder = convert(written(tmp_path / "a.gguf", theirs, kind=Type.BF16), tmp_path / "out")
    same_model(folder, theirs)


def test_tied_heads_and_mixed_types(tmp_path):
    """Without `output.weight` the head is the embedding; each tensor has its own type."""
    theirs = llama(tie_word_embeddings=True)
    mixed = {"token_embd.weight": Type.Q8_0, "blk.0.attn_q.weight": Type.F16}
    path = written(tmp_path / "a.gguf", theirs, kind=lambda name: mixed.get(name, Type.Q4_1))
    folder = convert(path, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in safetensors.numpy.load_file(folder / "model.safetensors")
    same_model(folder, read_by_transformers(path))


def test_biases_and_heads_of_another_size(tmp_path):
    """Biases of queries and keys are reordered too; a head need not be width / heads."""
    theirs = llama(attention_bias=True, mlp_bias=True, head_dim=64, tie_word_embeddings=False)
    theirs = rounded(theirs)
    keys = {"llama.attention.key_length": 64, "llama.attention.value_length": 64}
    path = written(tmp_path / "a.gguf", theirs, changed=keys)
    same_model(convert(path, tmp_path / "out"), theirs)


def test_the_config_says_what_the_file_says(theirs, tmp_path):
    """Numbers come back in the digits they were written in."""
    absent = {"tokenizer.ggml.padding_token_id": 2**32 - 1}  # as some converters say it
    folder = convert(written(tmp_path / "a.gguf", theirs, changed=absent), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    for name, value in SIZES.items():
        assert config[name] == value, name
    assert config["torch_dtype"] == "bfloat16" and config["num_key_value_heads"] == 2
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert "pad_token_id" not in config
    assert pretrained.stored_dtype(folder) == "bfloat16"
    pretrained.read_language_model(str(folder))  # all of it fits together


def test_absent_metadata_means_what_it_means_to_llama_cpp(tmp_path):
    """Without these, a LLaMA 1: as many keys as queries, base 10,000, BOS 1, EOS 2."""
    theirs = llama(num_key_value_heads=8, rope_theta=10_000.0, tie_word_embeddings=False)
    absent = ["llama.attention.head_count_kv", "llama.rope.freq_base", "llama.vocab_size",
              "llama.rope.dimension_count", "tokenizer.ggml.bos_token_id",
              "tokenizer.ggml.eos_token_id", "tokenizer.ggml.pre"]  # fmt: skip
    theirs = rounded(theirs)
    path = written(tmp_path / "a.gguf", theirs, changed=dict.fromkeys(absent))
    folder = convert(path, tmp_path / "out")
    same_model(folder, theirs)
    ours = reading.load(folder)
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)


# --- RoPE --------------------------------------------------------------------------------------


def factors(config):
    """`rope_freqs.weight` as the converter computes it from a config of Llama 3's kind."""
    scaling, size = config.rope_parameters, config.head_dim
    result = []
    for i in range(0, size, 2):
        wave = 2 * np.pi * scaling["rope_theta"] ** (i / size)
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = np.clip((original / wave - low) / (high - low), 0, 1)
        result.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.asarray(result, np.float32)


@pytest.mark.parametrize(("factor", "original"), [(8.0, 8192), (32.0, 8192), (4.0, 2048)])
def test_llama_3s_scaling_is_recovered(factor, original, tmp_path):
    """The parameters that made the tensor, and the frequencies that transformers makes of them."""
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original, "rope_theta": 500_000.0,
    }  # fmt: skip
    theirs = llama(rope_theta=None, rope_parameters=scaling, tie_word_embeddings=False)
    theirs = rounded(theirs)
    more = {"rope_freqs.weight": factors(theirs.config)}
    folder = convert(written(tmp_path / "a.gguf", theirs, more=more), tmp_path / "out")
    again = transformers.AutoConfig.from_pretrained(folder)
    assert {k: again.rope_parameters[k] for k in scaling} == scaling
    same_model(folder, theirs)


def test_linear_scaling(tmp_path):
    """Under its old name too; factors that are all 1 are none."""
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    theirs = llama(rope_theta=None, rope_parameters=scaling, tie_word_embeddings=False)
    theirs = rounded(theirs)
    more = {"rope_freqs.weight": np.ones(16, np.float32)}
    for i, changed in enumerate((
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    )):  # fmt: skip
        path = written(tmp_path / f"{i}.gguf", theirs, changed=changed, more=more)
        same_model(convert(path, tmp_path / f"out{i}"), theirs)


# --- the folder --------------------------------------------------------------------------------


def test_shards_and_chunks_do_not_show(theirs, tmp_path, monkeypatch):
    """The same bits in several files, read back by their index."""
    path = written(tmp_path / "a.gguf", theirs, kind=Type.Q8_0)
    whole = convert(path, tmp_path / "whole")
    monkeypatch.setattr(weights, "SHARD_BYTES", 600_000)
    monkeypatch.setattr(conversion, "_CHUNK_BYTES", 7 * 4 * 256)
    files = conversion.convert(path, tmp_path / "parts")
    assert len(files) > 3 and all(file.stat().st_size < 700_000 for file in files)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    parts = {}
    for file in files:
        found = safetensors.numpy.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in found)
        parts |= found
    expected = safetensors.numpy.load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert {n: t.tobytes() for n, t in parts.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }
    tiny.load(tmp_path / "parts")


def test_a_model_in_parts(theirs, tmp_path):
    """Large models come as NAME-00001-of-00003.gguf: any of them stands for all."""
    whole = convert(written(tmp_path / "a.gguf", theirs), tmp_path / "whole")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama", split_max_tensors=9)
    for name, value in (metadata(theirs.config) | llamas_words().fields()).items():
        add(writer, name, value)
    for name, values in tensors(theirs):
        writer.add_tensor(name, values)
    finish(writer)
    parts = sorted(tmp_path.glob("b-*.gguf"))
    assert len(parts) == 3
    folder = convert(parts[1], tmp_path / "out")
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    parts[2].rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="b-00003-of-00003.gguf of the same model must lie beside"):
        conversion.convert(parts[0], tmp_path / "again")


def test_memory_is_a_few_rows(tmp_path):
    """Of an embedding of 32 MB in f32, no more than a fraction is ever there."""
    theirs = llama(vocab_size=32_000, tie_word_embeddings=True, num_hidden_layers=1)
    path = written(tmp_path / "a.gguf", theirs, kind=Type.Q8_0)
    convert(path, tmp_path / "first")  # imports, and what is traced once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "_CHUNK_BYTES", 1 << 20)
        tracemalloc.start()
        convert(path, tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16e6


# --- tokenizers --------------------------------------------------------------------------------


def tokenizer_of(words, folder, name="a model"):
    """Our tokenizer of a file that holds nothing but `words` and a name, and the file."""
    path = folder / "words.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    for name, value in words.fields().items():
        add(writer, name, value)
    finish(writer)
    (folder / "ours").mkdir()
    (folder / "ours" / "config.json").write_text('{"model_type": "llama"}')
    tokenizer.read(GgufFile(path), 128).save(folder / "ours")
    return reading.load(folder / "ours"), path


@functools.cache
def learnt():
    """Byte-level merges learnt over whole lines: across spaces, digits, case and punctuation.

    So what two tokenizers cut differently they encode differently.
    """
    lines = [*AWKWARD, "a\n\n1. b\n\n2. c", "The Cat's 12 345  6789 WE'LL ab.\n\nCd! /x/\n"] * 8
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(lines, how)
    model = json.loads(made.to_str())["model"]
    return model["vocab"], model["merges"]


def byte_level_words(pre, **extra):
    vocab, merges = learnt()
    words = [*sorted(vocab, key=vocab.get), "<|bos|>", "<|eos|>", "<think>"]
    types = [NORMAL] * len(vocab) + [CONTROL, CONTROL, USER]
    n = len(vocab)
    extra = {"ggml.pre": pre, "ggml.bos_token_id": n, "ggml.eos_token_id": n + 1} | extra
    merges = tuple(" ".join(pair) for pair in merges)
    return Words("gpt2", tuple(words), tuple(types), merges, extra=extra)


def published(pre, reference):
    """The reference with the pre-tokenisation of the published tokenizer.json, if it has another.

    transformers knows some names only, and takes GPT-2's pattern for the others.
    """
    digits = ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b")
    if pre in digits:
        reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )  # fmt: skip
    return reference


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2", "tekken", "gpt-4o", "smollm"])
def test_texts_are_cut_as_in_the_published_tokenizer(pre, tmp_path):
    """Id for id, as transformers' reading of the same file or the published parts of it do."""
    ours, path = tokenizer_of(byte_level_words(pre, **{"ggml.add_bos_token": True}), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs = published(pre, theirs)
    # Whole words that are tokens are not merged anew in these two (`ignore_merges`).
    theirs.backend_tokenizer.model.ignore_merges = pre in ("llama-bpe", "tekken")
    assert ours.get_vocab().items() <= theirs.get_vocab().items()  # it may add its own

    @settings(max_examples=80, deadline=None)
    @given(text)
    def compare(one):
        assert ours.encode(one) == theirs.encode(one)
        assert ours.decode(ours.encode(one), skip_special_tokens=True) == one

    compare()
    for one in (*AWKWARD, "a <|eos|><think> b"):
        assert ours.encode(one) == theirs.encode(one), one


def test_patterns_are_those_that_transformers_has():
    """Character by character, for every name that both know."""
    theirs = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS
    both = set(theirs) & set(patterns.BY_NAME)
    assert len(both) > 15
    assert {n: patterns.BY_NAME[n].patterns for n in both} == {n: (theirs[n],) for n in both}


def test_every_pattern_is_one_that_the_library_reads(tmp_path):
    """Each once: nothing of a text is lost between the pieces."""
    for i, pre in enumerate({cut: name for name, cut in patterns.BY_NAME.items()}.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        ours, _ = tokenizer_of(byte_level_words(pre), folder)
        for one in AWKWARD:
            ids = ours.encode(one, add_special_tokens=False)
            assert ours.decode(ids) == one, (pre, one)


def number_behind_space(one):
    """Whether a number stands behind more than one space, or another numeral behind any."""
    triples = zip(f" {one}", one, one[1:], strict=False)
    return any(
        b.isspace() and c.isnumeric() and (a.isspace() or not c.isascii()) for a, b, c in triples
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the tokenizers are not here")
def test_smollm2s_own_tokenizer(tmp_path):
    """Its vocabulary and merges, the name `smollm`, and nothing else: id for id its tokenizer.

    The file at hand was written by transformers from a GGUF file, without the published `Digits`;
    they are one but for numbers behind white space.
    """
    saved = json.loads((SHARED / "smollm2" / "tokenizer.json").read_text())
    model, special = saved["model"], {token["content"] for token in saved["added_tokens"]}
    words = sorted(model["vocab"], key=model["vocab"].get)
    types = [CONTROL if word in special else NORMAL for word in words]
    merges = tuple(" ".join(pair) for pair in model["merges"])
    extra = {"ggml.pre": "smollm", "ggml.bos_token_id": 1, "ggml.eos_token_id": 2,
             "ggml.unknown_token_id": 0, "ggml.padding_token_id": 2,
             "ggml.add_bos_token": False}  # fmt: skip
    ours, _ = tokenizer_of(Words("gpt2", tuple(words), tuple(types), merges, extra=extra), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(SHARED / "smollm2")
    more = (*AWKWARD, "<|im_start|>user\nHi<|im_end|>\n", "<file_sep>a <repo_name>")
    same = [one for one in more if not number_behind_space(one)]
    assert len(same) > 25
    for one in same:
        assert ours.encode(one) == theirs.encode(one), one
    theirs = published("smollm", theirs)

    @settings(max_examples=80, deadline=None)
    @given(text)
    def compare(one):
        assert ours.encode(one) == theirs.encode(one)

    compare()
    for one in more:
        assert ours.encode(one) == theirs.encode(one), one
        split = {"split_special_tokens": True}
        assert ours.encode(one, **split) == theirs.encode(one, **split), one
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map


def trained(folder, **how):
    """A SentencePiece model of LLaMA's kind."""
    lines = [one for one in AWKWARD if one.strip() and "\x00" not in one] * 4
    prefix = str(folder / "model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=prefix, model_type="bpe", vocab_size=400,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, hard_vocab_limit=False, minloglevel=2, **how,
    )  # fmt: skip
    return pathlib.Path(f"{prefix}.model")


def pieces_of(path, **extra):
    """What the converter takes from a SentencePiece model."""
    model = sentencepiece.SentencePieceProcessor(str(path))
    ids = range(model.vocab_size())
    kinds = [(model.is_unknown, UNKNOWN), (model.is_control, CONTROL), (model.is_byte, BYTE),
             (model.is_unused, UNUSED)]  # fmt: skip
    types = [next((kind for is_it, kind in kinds if is_it(i)), NORMAL) for i in ids]
    words, scores = [model.id_to_piece(i) for i in ids], [model.get_score(i) for i in ids]
    return model, Words("llama", tuple(words), tuple(types), scores=tuple(scores), extra=extra)


def is_sentencepiece(path, tmp_path, **extra):
    """Ids and texts are the library's, whose file it is."""
    model, words = pieces_of(path, **extra)
    ours, _ = tokenizer_of(words, tmp_path)
    vocabulary = set(words.words)

    @settings(max_examples=80, deadline=None)
    @given(text)
    def compare(one):
        if not any(special in one for special in ("<s>", "</s>", "<unk>")):
            assert ours.encode(one) == [1, *model.encode(one)]

    compare()
    for one in AWKWARD:
        if "<s>" in one or one.startswith("▁"):
            continue  # as text there, as a token here
        ids = model.encode(one)
        assert ours.encode(one) == [1, *ids], one
        assert ours.decode(ids) == model.decode(ids)
    assert "▁" in "".join(vocabulary)


def test_sentencepiece(tmp_path):
    """Merges that follow from scores are the scores: ids are those of the library."""
    is_sentencepiece(trained(tmp_path), tmp_path)


def test_sentencepiece_without_a_space_in_front(tmp_path):
    """`add_space_prefix`."""
    path = trained(tmp_path, add_dummy_prefix=False)
    is_sentencepiece(path, tmp_path, **{"ggml.add_space_prefix": False})


def test_sentencepiece_of_the_gemmas(tmp_path):
    """Runs of white space and tags are tokens wherever they stand; there is no space in front."""
    runs = [c * n for n in (2, 3, 5) for c in "\n\t▁"] + ["\n", "\t", "<h1>"]
    path = trained(tmp_path, add_dummy_prefix=False, user_defined_symbols=runs)
    model, words = pieces_of(path, **{"ggml.add_space_prefix": False})
    user = set(map(model.piece_to_id, runs))
    assert len(user) == len(runs) and 0 not in user
    types = tuple(USER if i in user else kind for i, kind in enumerate(words.types))
    # As the converter writes them.
    spelled = tuple(w.replace("▁", " ") if i in user else w for i, w in enumerate(words.words))
    ours, _ = tokenizer_of(dataclasses.replace(words, words=spelled, types=types), tmp_path)

    @settings(max_examples=80, deadline=None)
    @given(text)
    def compare(one):
        if not any(special in one for special in ("<s>", "</s>", "<unk>")):
            assert ours.encode(one) == [1, *model.encode(one)]
            assert ours.decode(model.encode(one)) == model.decode(model.encode(one))

    compare()
    for one in (*AWKWARD, "\n" * 13 + "x" + " " * 13 + "y", "a<h1>  b</h1>\n\n\t\t\tc"):
        if "<s>" not in one and "▁" not in one:
            assert ours.encode(one) == [1, *model.encode(one)], one


def test_white_space_behind_special_tokens_of_phi3(tmp_path):
    """Is left out, as in the published tokenizer; llama.cpp knows these models by their name."""
    for name, kept in (("Phi 3.5", True), ("Phi-3 mini", False)):
        (folder := tmp_path / name).mkdir()
        ours, _ = tokenizer_of(llamas_words(), folder, name=name)
        plain, spaced = ("<|user|>ab", "<|user|>\n ab")
        assert (ours.encode(plain) != ours.encode(spaced)) is kept
        assert ours.encode("<s>\nab") != ours.encode("<s>ab")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the tokenizers are not here")
def test_llama_2s_own_tokenizer(tmp_path):
    """32,000 pieces."""
    is_sentencepiece(SHARED / "llama2" / "tokenizer.model", tmp_path)


def test_what_is_around_a_text(tmp_path):
    """`add_bos_token` and `add_eos_token`, and what stands for them where the file is silent."""
    cases = {
        (None, None, "llama-bpe"): (True, False), (None, None, "qwen2"): (False, False),
        (False, None, "llama-bpe"): (False, False), (True, True, "gpt-2"): (True, True),
        (False, True, "gpt-2"): (False, True),
    }  # fmt: skip
    for i, ((bos, eos, pre), (first, last)) in enumerate(cases.items()):
        given_ = {"ggml.add_bos_token": bos, "ggml.add_eos_token": eos}
        words = byte_level_words(pre, **{k: v for k, v in given_.items() if v is not None})
        (tmp_path / str(i)).mkdir()
        ours, path = tokenizer_of(words, tmp_path / str(i))
        ids = ours.encode("ab", add_special_tokens=False)
        wanted = [ours.bos_token_id] * first + ids + [ours.eos_token_id] * last
        assert ours.encode("ab") == wanted
        # Without the class's own doing too: as other programs read tokenizer.json.
        plain = tokenizers.Tokenizer.from_file(str(path.parent / "ours" / "tokenizer.json"))
        assert plain.encode("ab").ids == wanted


def test_kinds_of_tokens(theirs, tmp_path):
    """Special tokens are special, the user's are found whole, what fills gaps is left out."""
    folder = convert(written(tmp_path / "a.gguf", theirs), tmp_path / "out")
    ours = reading.load(folder)
    words = llamas_words().words
    user, tab = words.index("<|user|>"), words.index("  tab")
    assert len(ours) == tab + 1
    added = ours.added_tokens_decoder
    assert {i for i in added if added[i].special} == {0, 1, 2, user}
    assert {i for i in added if not added[i].special} == {tab}
    ids = ours.encode("ab<|user|>  tabcd", add_special_tokens=False)
    assert user in ids and tab in ids
    assert [ours.decode([i]) for i in ids if i == user] == ["<|user|>"]


def test_ends_and_chat_templates(theirs, tmp_path):
    """The end of a turn ends a text too; templates by name stay apart."""
    user = llamas_words().words.index("<|user|>")
    one = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    extra = {"ggml.eot_token_id": user, "chat_template": one}
    folder = convert(written(tmp_path / "a.gguf", theirs, llamas_words(**extra)), tmp_path / "a")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, user]
    ours = reading.load(folder)
    chat = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(chat, tokenize=False) == "[x]"
    extra |= {"chat_templates": ["tools"], "chat_template.tools": "tools: " + one}
    folder = convert(written(tmp_path / "b.gguf", theirs, llamas_words(**extra)), tmp_path / "b")
    ours = reading.load(folder)
    assert ours.apply_chat_template(chat, tokenize=False) == "[x]"
    assert ours.apply_chat_template(chat, chat_template="tools", tokenize=False) == "tools: [x]"


# --- what is refused ---------------------------------------------------------------------------


def _nan():
    values = np.zeros((512, 256), np.float32)
    values[3, 5] = np.nan
    return values


WORDS = llamas_words()
# What is changed in a good file, and words of the message.
REFUSED = {
    "other architecture": (
        {"changed": {"general.architecture": "mamba"}}, "is 'mamba'; supported: llama, qwen2"),
    "an adapter": ({"changed": {"general.type": "adapter"}}, "general.type is 'adapter'; a whole"),
    "experts": ({"changed": {"llama.expert_count": 8}}, "llama.expert_count is 8; it is not supp"),
    "unknown scaling": (
        {"changed": {"llama.rope.scaling.type": "ntk"}}, "rope.scaling.type is 'ntk'; supported"),
    "half of yarn": (
        {"changed": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                     "llama.rope.scaling.yarn_ext_factor": 0.5}}, "yarn_ext_factor is 0.5; only 1"),
    "windows": ({"changed": {"llama.attention.sliding_window": 64}}, "sliding_window is 64; it is"),
    "part of a head": ({"changed": {"llama.attention.key_length": 64}}, "dimension_count is 32"),
    "wide values": ({"changed": {"llama.attention.value_length": 64}}, "value_length is 64"),
    "not causal": ({"changed": {"llama.attention.causal": False}}, "only a causal model"),
    "scaled logits": ({"changed": {"llama.logit_scale": 0.5}}, "llama.logit_scale is 0.5"),
    "no layers": ({"changed": {"llama.block_count": 0}}, "num_hidden_layers would be 0"),
    "layers as text": ({"changed": {"llama.block_count": "2"}}, "is '2'; a whole number"),
    "no width": ({"changed": {"llama.embedding_length": None}}, "embedding_length is missing"),
    "more layers": (
        {"changed": {"llama.block_count": 3}}, "missing: model.layers.2.input_layernorm.weight"),
    "fewer layers": ({"changed": {"llama.block_count": 1}}, "blk.1.* are none of the supported"),
    "other width": (
        {"changed": {"llama.feed_forward_length": 510}}, r"shape \(256, 512\), .* \(256, 510\)"),
    "keys": ({"changed": {"llama.attention.head_count_kv": 3}}, "num_key_value_heads is 3"),
    "unknown tensor": ({"more": {"blk.0.extra": np.ones(3, np.float32)}}, "blk.0.extra are none"),
    "unknown factors": (
        {"more": {"rope_freqs.weight": np.linspace(1, 5, 16, dtype=np.float32)}},
        "rope_freqs.weight .16 values, 1 to 5. is no scaling of Llama 3"),
    "other vocabulary": ({"words": llamas_words(330)}, "has 330 tokens, the embedding 326 rows"),
    "other kind": ({"changed": {"tokenizer.ggml.model": "t5"}}, "ggml.model is 't5'; supported"),
    "no tokens": ({"changed": {"tokenizer.ggml.tokens": None}}, "no tokenizer, tokenizer.ggml.tok"),
    "tokens of numbers": (
        {"changed": {"tokenizer.ggml.tokens": [1, 2]}}, r"tokens is \[1, 2\]; a list, each a text"),
    "fewer types": (
        {"changed": {"tokenizer.ggml.token_type": [1, 2]}}, "token_type has 2 values; 326 are exp"),
    "a token twice": (
        {"changed": {"tokenizer.ggml.tokens": ["a"] * 326}}, "holds a token twice"),
    "no scores": ({"changed": {"tokenizer.ggml.scores": None}}, "scores is missing"),
    "other spaces": (
        {"changed": {"tokenizer.ggml.remove_extra_whitespaces": True}},
        "remove_extra_whitespaces is True; only false"),
    "other cut": (
        {"changed": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2"}},
        "pre is 'kimi-k2'; supported: llama-bpe"),
    "no cut": (
        {"changed": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": None}},
        "tokenizer.ggml.pre is missing"),
    "no merges": (
        {"changed": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}},
        "merges is missing"),
    "merges of three": (
        {"changed": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
                     "tokenizer.ggml.merges": ["a b", "a b c"]}}, "merges, number 1, is 'a b c'"),
    "merges of others": (
        {"changed": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
                     "tokenizer.ggml.merges": ["zz b"]}}, "its tokenizer is damaged .*zz"),
    "split": ({"changed": {"split.count": 3}}, "part of a model of 3 files"),
}  # fmt: skip


def said(path, folder):
    """The one line in which a conversion ends; nothing is left of it."""
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError) as stopped:
        conversion.convert(path, folder / "out")
    assert sorted(folder.iterdir()) == before
    message = str(stopped.value)
    assert "\n" not in message and str(path) in message, message
    return message


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(case, theirs, tmp_path):
    """Each names the file and the field."""
    how, words = REFUSED[case]
    message = said(written(tmp_path / "a.gguf", theirs, **how), tmp_path)
    assert re.search(words, message), message


def test_damage_is_one_line(theirs, tmp_path):
    """A file cut anywhere, lengths that cannot be, and what is no GGUF file at all."""
    path = written(tmp_path / "a.gguf", theirs, kind=Type.Q4_0)
    data = path.read_bytes()
    for end in (0, 3, 4, 23, 24, 100, 1000, 5000, 9000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        assert re.search("no GGUF file|damaged, not whole", said(path, tmp_path))
    at = data.index(b"tokenizer.ggml.scores") + len("tokenizer.ggml.scores") + 8
    for length in (2**40, 2**63, 2**64 - 1):
        path.write_bytes(data[:at] + length.to_bytes(8, "little") + data[at + 8 :])
        assert re.search("damaged, not whole.*an array of", said(path, tmp_path))
    for version in (1, 4, 3 << 24):
        path.write_bytes(data[:4] + version.to_bytes(4, "little") + data[8:])
        assert f"GGUF version {version}" in said(path, tmp_path)
    path.write_bytes(data.replace(b"<|user|>", b"<|us\xffr|>"))
    assert "tokenizer.ggml.tokens is no UTF-8" in said(path, tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "a pointer in place of one" in said(path, tmp_path)
    path.unlink()
    assert "cannot be read (No such file" in said(path, tmp_path)


def test_no_damage_is_a_traceback(theirs, tmp_path):
    """Some bytes changed anywhere in the part that says what is where."""
    path, folder = tmp_path / "a.gguf", tmp_path / "out"
    data = written(path, theirs, kind=Type.Q4_0).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        at, noise = int(rng.integers(8, 9000)), rng.bytes(int(rng.integers(1, 5)))
        path.write_bytes(data[:at] + noise + data[at + len(noise) :])
        try:
            conversion.convert(path, folder)
        except ValueError as error:
            assert "\n" not in str(error) and not folder.exists()
        else:
            shutil.rmtree(folder)
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused(theirs, tmp_path):
    """The tensor is named."""
    theirs = llama(tie_word_embeddings=False)
    with torch.no_grad():
        theirs.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    message = said(written(tmp_path / "a.gguf", theirs), tmp_path)
    assert "blk.1.ffn_up.weight holds infinities or NaNs" in message


def test_no_room(theirs, tmp_path, monkeypatch):
    """Before anything is written."""
    path = written(tmp_path / "a.gguf", theirs)
    usage = conversion.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"the model takes 0\.\d\d GB there, and 0.00 GB are free"):
        conversion.convert(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_stays(theirs, tmp_path):
    """A folder that holds something is not written into."""
    path = written(tmp_path / "a.gguf", theirs)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="out: exists already"):
        conversion.convert(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes"]


def test_a_gguf_in_place_of_a_folder(tmp_path):
    """What to do with it is said where a model is asked for."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    for given_ in (path, tmp_path):
        with pytest.raises(ValueError, match=f"isara_jax.convert {path} --output=DIR"):
            weights.load_config(given_)
