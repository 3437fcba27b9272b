"""The tokenizers of real checkpoints, read from files as published, without torch."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tiny
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from isara_jax.files import storage
from isara_jax.sampler import decode, sampling
from isara_jax.tasks import files
from isara_jax.text import packing, reading, stops, tokens

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "tokenizers"
# Llama 3's, from its tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>",
)  # fmt: skip


def made_up_lines():
    """A few words, often, some of them in awkward company: what BPE is trained on."""
    rng = np.random.default_rng(0)
    syllables = ["qu", "es", "tion", "an", "swer", "a", "the", "in", "ti", "re", "mo", "vi", "12"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(150)]
    lines = [" ".join(rng.choice(words, 8)).capitalize() + "." for _ in range(200)]
    awkward = ["Question: 漢字かな?\tAnswer: naïve café, 😀", "it's we'll  two   [INST] </s>"]
    return lines + 3 * awkward


CORPUS = made_up_lines()
# Of several lines, as documents are: so that pieces learn to end with newlines.
ENDS = (".", "!", "?", '."', ")", "...", "。", "😀", ":", ";", ".)", '?"', "'", "1.")
DOCUMENTS = [f"{line[:-1]}{ENDS[i % len(ENDS)]}\n\n{line}\nAn" for i, line in enumerate(CORPUS)]
N_TRAINED = 450  # tokens that are learnt from it, bytes included
HOME = tempfile.TemporaryDirectory()  # of the folders below, while the tests run

TEMPLATE_LIKE = (
    "Question: x", "see Question: x", "Answer:", "an Answer: y",
    "a\nquestion: b\nANSWER: c", "a\n\nQuestion", "x\rAnswer: y", "\n", "x\n\n",
)  # fmt: skip
HEADERS_IN_TEXT = (
    "a\n Question: indented", "x\nQuestion: y", "x\n\nQuestion: y", "x\nAnswer: y",
    "x\r\nAnswer:", "x\n\n\nQuestion:",
)  # fmt: skip
SPECIAL_LIKE = (
    "</s>", "a</s>b", " </s> <s>", "<s><unk><pad>", *LLAMA3_SPECIAL, "x<|eot_id|>\n",
    "[INST] x [/INST] <<SYS>>", "<|endoftext|>", "<0x0A>", "<0x3C>/s>", "madeupword0000",
)  # fmt: skip
AWKWARD = (
    *TEMPLATE_LIKE, *HEADERS_IN_TEXT, *SPECIAL_LIKE,
    "", " ", "  ", "   leading", "trailing   ", "\ttab\t\tab\t", "a\n\n\n\nb", "\r\n\r\nCRLF\r\n",
    "  \n x", "😀👍🏽", "👩‍👩‍👧‍👦 🇩🇪", "漢字かな 한국어", "e\u0301 \u0301starts", "नमस्ते",
    "zero\u200bwidth\u200d\ufeff", "\ufeffbom", "\x01\x1b[0m\x7f\x85", "nul\x00", "1234 0.5 ٣", "0",
    "'s it's 'LL", "\u00a0\u3000x", "\u2028\u2029", "ĠÿĀ", "\U0010ffff\ue000", ".", "\\n", "'\"`",
)  # fmt: skip


# --- folders as published ----------------------------------------------------------------------


def sentencepiece_folder(folder):
    """LLaMA's kind: `tokenizer.model` alone, trained as Meta's was."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=N_TRAINED, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        character_coverage=0.9995, minloglevel=2,
    )  # fmt: skip
    llama_config(folder)


def llama_config(folder):
    content = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    content |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    storage.write_json(folder / "tokenizer_config.json", content)


def shared_llama2_folder(folder):
    if not (SHARED / "llama2").is_dir():
        pytest.skip(f"{SHARED / 'llama2'} is not here")
    shutil.copy(SHARED / "llama2" / "tokenizer.model", folder)
    llama_config(folder)


def trained(tokenizer, special):
    trainer = trainers.BpeTrainer(
        vocab_size=N_TRAINED, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), min_frequency=2,
    )  # fmt: skip
    tokenizer.train_from_iterator([*CORPUS, *DOCUMENTS], trainer)


def llama3_folder(folder):
    """tiktoken's kind: byte-level BPE behind Llama 3's regex, special tokens at the end."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, [])
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(s, special=True, normalized=False) for s in LLAMA3_SPECIAL]
    )
    bos = LLAMA3_SPECIAL[0]
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        ),
    ])  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    content |= {"bos_token": bos, "eos_token": LLAMA3_SPECIAL[1], "model_max_length": 131072}
    storage.write_json(folder / "tokenizer_config.json", content)


def qwen2_folder(folder):
    """Qwen's kind: a digit a piece, letters composed, no BOS."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT.replace("{1,3}", "")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, [])
    tokenizer.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    storage.write_json(folder / "tokenizer_config.json", content)


def gemma_folder(folder):
    """Gemma's kind: SentencePiece's alphabet, no space before a text, newlines in pieces.

    Its pieces were learnt from words with what follows them, but nothing divides a text into words
    when it is read.
    """
    tokenizer = tokenizers.Tokenizer(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=N_TRAINED, special_tokens=[*special, *(f"<0x{b:02X}>" for b in range(256))],
        show_progress=False, limit_alphabet=90,
    )  # fmt: skip
    tokenizer.train_from_iterator([*CORPUS, *DOCUMENTS], trainer)
    content = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    byte_tokens = {f"<0x{b:02X}>" for b in range(256)}
    content["added_tokens"] = [
        t for t in content["added_tokens"] if t["content"] not in byte_tokens
    ]
    bos = {"id": 2, "special_token": "<bos>"}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1",
        special_tokens=[(bos["special_token"], bos["id"])],
    )  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"}
    content |= {"eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    storage.write_json(folder / "tokenizer_config.json", content)


def shared_folder(name):
    """A published folder, where it is."""

    def make(folder):
        if not (SHARED / name).is_dir():
            pytest.skip(f"{SHARED / name} is not here")
        shutil.copytree(SHARED / name, folder, dirs_exist_ok=True)
        storage.write_json(folder / "config.json", {"model_type": "llama"})
        if name == "gpt2":  # whose class knows its end; a file does not say it
            fields = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
            storage.write_json(folder / "tokenizer_config.json", fields)

    return make


def opt_folder(folder):
    """OPT's kind: GPT-2's BPE as vocab.json and merges.txt, "</s>" for everything."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained(tokenizer, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.model.save(str(folder))
    vocab = storage.read_json(folder / "vocab.json")
    vocab |= {f"madeupword{i:04}": len(vocab) + i for i in range(3)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False) | {"normalized": True}
    end = {"__type": "AddedToken", "content": "</s>"} | flags
    content = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace"}
    content |= {"bos_token": end, "eos_token": end, "unk_token": end}
    content |= {"pad_token": end | {"content": "<pad>"}, "add_prefix_space": False}
    storage.write_json(folder / "tokenizer_config.json", content)


# The folder's maker, its model_type, and the ids of BOS and EOS.
KINDS = {
    "sentencepiece": (sentencepiece_folder, "llama", 1, 2),
    "llama2": (shared_llama2_folder, "llama", 1, 2),
    "llama3": (llama3_folder, "llama", N_TRAINED, N_TRAINED + 1),
    "opt": (opt_folder, "opt", 2, 2),
    "qwen2": (qwen2_folder, "llama", None, N_TRAINED),
    "gemma": (gemma_folder, "llama", 2, 1),
    "smollm2": (shared_folder("smollm2"), "llama", None, 2),
    "gpt2": (shared_folder("gpt2"), "llama", None, 50256),
}
OWN = ["sentencepiece", "llama3", "opt", "qwen2", "gemma"]  # nothing else is needed for these
UNUSED = 7  # rows of the embedding without a token, as OPT's and padded LLaMAs' have


@functools.cache
def folder_of(kind):
    make, family, _, _ = KINDS[kind]
    folder = pathlib.Path(HOME.name, kind)
    storage.write_json(folder / "config.json", {"model_type": family})
    make(folder)
    return folder


@functools.cache
def vocabulary(kind):
    tokenizer = reading.load(folder_of(kind))
    return tokens.Vocabulary(tokenizer, len(tokenizer) + UNUSED, kind)


@pytest.fixture(params=KINDS)
def kind(request):
    folder_of(request.param)  # skips
    return request.param


# --- reading them ------------------------------------------------------------------------------


def test_special_tokens_are_the_published_ones(kind):
    """BOS, EOS and what never speaks; OPT's BOS is its EOS."""
    vocab = vocabulary(kind)
    assert (vocab.bos, vocab.eos) == KINDS[kind][2:]
    tokenizer = vocab.tokenizer
    if vocab.bos is not None:
        assert tokenizer.encode("x")[0] == vocab.bos  # where transformers adds one, it is ours
    roles = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    if kind == "llama3":
        roles += LLAMA3_SPECIAL
    for token in filter(None, roles):
        assert vocab.bytes[tokenizer.convert_tokens_to_ids(token)] == b""
    assert vocab.bytes[len(tokenizer) :] == [b""] * UNUSED


def inside(vocab, text):
    """The ids of a text that does not begin another."""
    head, ids = vocab.plain(["\n", f"\n{text}"])
    assert ids[: len(head)] == head
    return ids[len(head) :]


def test_bytes_are_what_transformers_decodes(kind):
    """Each token spells what its tokenizer prints for it behind a letter."""
    vocab = vocabulary(kind)
    anchor = inside(vocab, "a")
    assert len(anchor) == 1
    ids = range(len(vocab.tokenizer))
    shown = vocab.tokenizer.batch_decode(
        [[*anchor, i] for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert ["a" + vocab.bytes[i].decode("utf-8", "replace") for i in ids] == shown


@pytest.mark.parametrize("kind", ["sentencepiece", "llama2"])
def test_ids_are_those_of_sentencepiece(kind):
    """A `tokenizer.model` gives the ids that its own library gives, inside a text."""
    vocab = vocabulary(kind)
    theirs = sentencepiece.SentencePieceProcessor(str(folder_of(kind) / "tokenizer.model"))
    for text in (*AWKWARD, *CORPUS[:40]):
        # transformers 5 joins the spaces of a longer run in another order.
        if "  " not in text and not text[:1].isspace():
            ids = inside(vocab, text)
            assert ids == theirs.encode("\n" + text)[2:]
            assert theirs.decode([theirs.bos_id(), 13, *ids]) == "\n" + text


def test_none_of_them_needs_torch():
    """Where torch is not installed the same ids come out of the same folders."""
    program = """
        import json, pathlib, sys
        sys.modules["torch"] = None
        from isara_jax.text import reading, tokens
        texts, *folders = json.load(sys.stdin)
        for folder in folders:
            tokenizer = reading.load(pathlib.Path(folder))
            vocab = tokens.Vocabulary(tokenizer, len(tokenizer), folder)
            print(json.dumps(vocab.plain(texts)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=json.dumps([AWKWARD, *(str(folder_of(kind)) for kind in OWN)]),
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for kind, line in zip(OWN, done.stdout.splitlines(), strict=True):
        assert json.loads(line) == vocabulary(kind).plain(AWKWARD)


# --- text through token space ------------------------------------------------------------------

PAIRS, ROOM = 4, 72  # demonstrations and a question; tokens a text may have


@functools.partial(jax.jit, static_argnums=0)
def pack(template, pairs, question):
    """A prompt with all pairs, and the training sequences of the pairs."""
    room = 2 * ROOM + template.overhead(0) + 1
    shown = packing.concatenate([pairs.question.joined, pairs.answer.joined], room)
    capacity = (2 * PAIRS + 1) * ROOM + template.overhead(PAIRS)
    prompt = packing.prompts(template, shown, jnp.arange(PAIRS)[None], capacity, question)
    return prompt, packing.training_sequences(template, pairs, room)


def check_packed(vocab, texts):
    """That `2 * PAIRS + 1` texts are packed as the tokenizer itself encodes the template's text."""
    pairs, asked = list(zip(texts[::2], texts[1::2], strict=False)), texts[-1]
    encoded = packing.Pairs(
        tiny.texts(vocab, [q for q, _ in pairs], tokens.IN_QUESTION, ROOM),
        tiny.texts(vocab, [a for _, a in pairs], tokens.IN_ANSWER, ROOM),
    )
    question = tiny.texts(vocab, [asked], tokens.IN_QUESTION, ROOM).joined
    prompt, sequences = jax.device_get(pack(packing.Template.of(vocab), encoded, question))
    begin = list(vocab.begin)
    row = prompt.tokens[0, : prompt.lengths[0]].tolist()
    text = tokens.render(pairs, asked)
    assert row == begin + vocab.plain([text])[0]
    silent = {i for i, spelled in enumerate(vocab.bytes) if not spelled}
    assert not silent & set(row[len(begin) :])  # nothing but text behind BOS, no end above all
    composed = unicodedata.normalize("NFC", text)
    assert vocab.decode(row).removeprefix(" ") in (text, composed)
    for ids, length, at, (q, a) in zip(*sequences, pairs, strict=True):
        row = ids[:length].tolist()
        assert row == [*begin, *vocab.plain([f"{tokens.render([], q)} {a}"])[0], vocab.eos]
        assert row[:at] == [*begin, *vocab.plain([tokens.render([], q)])[0]]


def in_groups(texts):
    """Every text as a question, an answer and at the end."""
    size = 2 * PAIRS + 1
    for start in range(0, len(texts), 3):
        yield [texts[(start + i) % len(texts)] for i in range(size)]


def test_pieces_go_on_across_the_seams(kind):
    """A piece that ends with the newlines behind it, or the tests below would test nothing."""
    merging = kind in ("llama3", "qwen2", "gemma")
    vocab = vocabulary(kind)
    for place in (tokens.IN_QUESTION, tokens.IN_ANSWER):
        found = vocab.spellings(["the end", "the end."], place)
        assert [s.joined[: len(s.bare)] == s.bare for s in found] == [True, not merging]


def test_awkward_text_is_packed_as_the_tokenizer_has_it(kind):
    """Emoji, marks, white space, headers and special tokens as text; every end there is."""
    vocab = vocabulary(kind)
    ends = [f"a word{end}" for end in ENDS] + [f"1{end}" for end in ENDS]
    for group in in_groups([*AWKWARD, *ends]):
        check_packed(vocab, group)


def test_any_text_is_packed_as_the_tokenizer_has_it(kind):
    """The same for what nobody thought of."""
    vocab, place = vocabulary(kind), tokens.IN_ANSWER
    # U+2581 is SentencePiece's own sign for a space.
    anything = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=9)
    text = st.lists(st.one_of(anything, st.sampled_from(AWKWARD)), max_size=2).map("".join)
    # SmolLM2's vocabulary lacks some bytes of rare characters; elsewhere every text has a spelling.
    usable = lambda text: kind != "smollm2" or None not in vocab.try_spellings([text], place)  # noqa: E731
    short = text.filter(lambda text: len(text.encode()) < ROOM and usable(text))
    group = st.lists(short, min_size=2 * PAIRS + 1, max_size=2 * PAIRS + 1)
    run = given(group)(lambda texts: check_packed(vocab, texts))
    settings(max_examples=100, derandomize=True, database=None, deadline=None)(run)()


def test_what_sentencepiece_cannot_keep_is_refused():
    """Its sign for a space, written by somebody, would come back as a space."""
    with pytest.raises(ValueError, match="sentencepiece: 'a▁b' does not survive tokenization"):
        vocabulary("sentencepiece").spellings(["a▁b"], tokens.IN_ANSWER)


def stop_in(vocab, text):
    """The stop that a generation of `text` would meet."""
    table = stops.stop_table(vocab.bytes, (vocab.eos,), stops.ANSWER_STOPS[::-1])
    state = 0
    for token in vocab.spellings([text], tokens.IN_ANSWER)[0].bare:
        if table.stop[token, state] >= 0:
            return int(table.stop[token, state])
        state = table.next_state[token, state]
    return None


@pytest.mark.parametrize("kind", OWN)
def test_text_that_looks_like_the_template(kind, tmp_path):
    """As seeds it is accepted, and then never ends a text early, or refused by name."""
    vocab, path = vocabulary(kind), tmp_path / "seeds.jsonl"

    def read(text):
        rows = [{"question": text, "answer": text}, {"question": "q", "answer": "a"}]
        path.write_text("\n".join(map(json.dumps, rows)))
        return files.read_pairs(path)[0]

    for text in (*TEMPLATE_LIKE, *SPECIAL_LIKE):
        if text.strip():
            pair = read(text)
            assert pair.question == pair.answer == text.strip()
            assert stop_in(vocab, text) is None
            assert vocab.eos not in vocab.plain([text])[0]
    for text in HEADERS_IN_TEXT:
        with pytest.raises(files.SeedError, match="seeds.jsonl:1: question: found a line that"):
            read(text)
    # The refusal is needed: these would have ended early.
    assert stop_in(vocab, "x\n\nQuestion: y") == 1 and stop_in(vocab, "x\nAnswer: y") == 0


# --- generation --------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def generated(sampler, params, prompts, temperature, table):
    how = sampling.SamplingParams(temperature, jnp.int32(0), jnp.float32(1))
    return decode.generate(sampler, {"params": params}, prompts, jax.random.key(0), how, table)


def test_opt_generates_behind_a_bos_that_is_its_eos():
    """A prompt that begins with "</s>" has not ended, and rows without token are never drawn."""
    vocab, new = vocabulary("opt"), 24
    assert vocab.bos == vocab.eos == 2
    theirs = tiny.torch_opt(2, vocab_size=vocab.size, tie_word_embeddings=False)
    with torch.no_grad():  # what must not be drawn would win; EOS is drawn now and then
        theirs.lm_head.weight[-UNUSED:] *= 4
        theirs.lm_head.weight[vocab.eos] *= 2
    model, params = tiny.ported(theirs)
    texts = ["", "Question: x\nAnswer:", "</s>", "two words", "漢字", "Answer: 12", "a", "b"]
    rows = [[vocab.bos, *ids] for ids in vocab.plain(texts)]
    sampler = decode.Sampler(model, 4, 2, new, 1, tiny.mesh())
    prompts = packing.Prompts(*packing.pad(rows, max(map(len, rows))))
    table = stops.stop_table(vocab.bytes, (vocab.eos,), (stops.Stop("\0 never drawn"),))
    greedy = generated(sampler, params, prompts, jnp.float32(0), table)
    silent = [i for i, spelled in enumerate(vocab.bytes) if not spelled and i != vocab.eos]
    ends = []
    for row, mine, length in zip(rows, np.asarray(greedy.tokens), greedy.lengths, strict=True):
        how = {"do_sample": False, "pad_token_id": 1, "eos_token_id": vocab.eos}
        out, free = (
            theirs.generate(
                torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long),
                max_new_tokens=new, suppress_tokens=suppressed, **how,
            )[0, len(row) :].tolist()
            for suppressed in (silent, None)
        )  # fmt: skip
        assert max(free) >= len(vocab.tokenizer)  # left alone it draws rows without token
        ends.append(vocab.eos in out)
        assert mine[:length].tolist() == out
    assert any(ends) and not all(ends)
    assert (np.asarray(greedy.finish) == np.where(ends, stops.AT_EOS, stops.UNFINISHED)).all()
    drawn = generated(sampler, params, prompts, jnp.float32(2), table)
    assert int(drawn.lengths.sum()) > 40
    assert np.asarray(drawn.tokens).max() < len(vocab.tokenizer)
