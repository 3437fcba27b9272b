"""Text to tokens and back, and prompts packed from tokens, against the text itself."""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isara_jax import packing, tokens, weights

GPT2 = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers" / "gpt2"
KINDS = (*tiny.TOKENIZERS, "gpt2")
AWKWARD = (
    "",
    " ",
    "   three before, two after  ",
    "\n",
    "\n\n\n",
    "a\tb\r\n\u2028c\x00d\x7f",
    "😀 👩‍👩‍👧‍👦 漢字かな é é",
    "</s> <s> <unk> <|endoftext|> <0x0A> <pad>",
    "a</s>b<s><|eot_id|><|end_of_text|>[INST]<<SYS>>",
    "Question: x\nAnswer: y\n\nQuestion:",
    "see Question: x or \n Answer: y",
    'He said "hi", i++; {"a": [1, 2]} \\n',
    "ab.\n\nabcba abab\n",
    "ÿĀĠĊ",
)


@functools.cache
def vocabulary(kind):
    if kind != "gpt2":
        return tiny.vocabulary(kind)
    if not GPT2.is_dir():
        pytest.skip(f"{GPT2} is not here")
    return tokens.Vocabulary(weights.load_tokenizer(GPT2), 50257, str(GPT2))


@pytest.fixture(params=KINDS)
def vocab(request):
    return vocabulary(request.param)


# --- the vocabulary ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_text_survives(kind):
    """Every text comes back to the letter, or it would change on its way through token space."""
    vocab = vocabulary(kind)

    def run(text):
        ids = vocab.encode(text)
        assert vocab.decode(ids) == text
        assert vocab.spell(ids) == text.encode()

    for text in AWKWARD:
        run(text)
    # U+2581 is SentencePiece's own sign for a space.
    random_text = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]))
    given(random_text)(settings(max_examples=150, derandomize=True, database=None)(run))()


def test_pieces_join_to_the_text(vocab):
    """Texts encoded apart decode to their concatenation: what packing on the device relies on."""
    for left in AWKWARD:
        for right in AWKWARD:
            assert vocab.decode(vocab.encode(left) + vocab.encode(right)) == left + right


def test_special_tokens_as_text_stay_text(vocab):
    """Somebody's "</s>" never becomes an end of sequence."""
    special = {vocab.eos, vocab.bos, *vocab.tokenizer.all_special_ids}
    for text in ("</s>", "a <s>b</s><unk><pad><|endoftext|>", vocab.tokenizer.eos_token):
        assert not special & set(vocab.encode(text))
    for index in special:
        assert vocab.bytes[index] == b""


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_bytes_are_what_the_tokenizer_decodes(kind):
    """Each token spells what its tokenizer prints for it behind a letter."""
    vocab = vocabulary(kind)
    anchor = vocab.encode("a")
    assert len(anchor) == 1
    for index in range(3, len(vocab.tokenizer)):
        shown = vocab.tokenizer.decode([*anchor, index], clean_up_tokenization_spaces=False)
        assert "a" + vocab.bytes[index].decode("utf-8", "replace") == shown
    assert vocab.bytes[len(vocab.tokenizer) :] == [b""] * 5  # rows of the embedding without token


def test_added_tokens_speak_only_where_they_are_text():
    """LLaMA 3's <|eot_id|> is special without a role: it must spell nothing, or it would be drawn.

    Added text, on the other hand, is not written in the byte alphabet.
    """
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.add_tokens([tokenizers.AddedToken("<|eot_id|>", special=True)], special_tokens=True)
    tokenizer.add_tokens(["two words é"])
    reserved, text = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "two words é"])
    assert reserved not in tokenizer.all_special_ids  # else this would test nothing
    vocab = tokens.Vocabulary(tokenizer, len(tokenizer), "added")
    assert vocab.bytes[reserved] == b""
    assert vocab.bytes[text] == "two words é".encode()
    written = "a two words é <|eot_id|>"
    assert vocab.decode(vocab.encode(written)) == written
    assert text in vocab.encode(written) and reserved not in vocab.encode(written)


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_tokens_outside_the_alphabet_are_written_as_they_read(kind):
    """A token that breaks the rules of its kind spells what the tokenizers library prints."""
    strange = {"two words", "漢漢", "Ġ漢", "é", "ÃĠ", "\u00ad", "<0xZZ>", "<0x4a>", "<0x041>"}
    content = json.loads(tiny.TOKENIZERS[kind]().backend_tokenizer.to_str())
    known = content["model"]["vocab"]
    gap = len(known) + 7  # ids need not follow one another
    new = {token: gap + i for i, token in enumerate(sorted(strange - set(known)))}
    known |= new
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(content)), eos_token="</s>"
    )
    rows = max(new.values()) + 1
    assert rows > len(tokenizer)
    with pytest.raises(ValueError, match=f"{rows} tokens, .* {len(tokenizer)} rows"):
        tokens.Vocabulary(tokenizer, len(tokenizer), "strange")
    vocab = tokens.Vocabulary(tokenizer, rows, "strange")
    anchor = vocab.encode("a")
    assert len(new) > 5
    for index in new.values():
        shown = tokenizer.decode([*anchor, index], clean_up_tokenization_spaces=False)
        assert "a" + vocab.bytes[index].decode("utf-8", "replace") == shown


def test_lossy_tokenizers_are_refused():
    """A normalizer that changes text is found at the first text it changes, by name."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()
    vocab = tokens.Vocabulary(tokenizer, 400, "some/folder")
    assert vocab.decode(vocab.encode("plain")) == "plain"
    with pytest.raises(ValueError, match=r"some/folder: 'ﬁsh' does not survive"):
        vocab.encode("ﬁsh")


def test_unusable_tokenizers_are_refused():
    """Too small an embedding, no EOS, tokens without known bytes: each says what is wrong."""
    tokenizer = tiny.byte_level_tokenizer()
    with pytest.raises(ValueError, match="here: the tokenizer has 321 tokens.* 320 rows"):
        tokens.Vocabulary(tokenizer, 320, "here")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="here: the tokenizer has no eos_token"):
        tokens.Vocabulary(tokenizer, 400, "here")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    for unreadable in (words, transformers.ByT5Tokenizer()):  # the second is one in Python
        with pytest.raises(ValueError, match="here: neither a byte-level nor a byte-fallback"):
            tokens.Vocabulary(unreadable, 400, "here")


def test_bos_falls_back_to_eos():
    """A tokenizer without BOS (GPT-2's kind) starts prompts with EOS."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.bos_token = None
    assert tokens.Vocabulary(tokenizer, 400, "here").bos == tiny.EOS


def test_template_is_the_papers():
    """Demonstrations are question and answer under two headers, and the prompt ends in one."""
    pairs = [("q1", "a1"), ("q2", "a2")]
    shown = "Question: q1\nAnswer: a1\n\nQuestion: q2\nAnswer: a2\n\n"
    assert tokens.render(pairs) == shown
    assert tokens.render(pairs, "q3") == shown + "Question: q3\nAnswer:"


# --- packing -----------------------------------------------------------------------------------

Q, A, POOL, ROWS = 24, 32, 12, 24
WORDS = ("ab", "abc.\n\n", "Question", "é", "漢", "</s>", "x\n", "Answer:", "\t", "the", "😀", "?")


def random_pairs(seed):
    rng = np.random.default_rng(seed)

    def text(most):
        return " ".join(rng.choice(WORDS, rng.integers(1, most)))

    pairs = []
    while len(pairs) < POOL:
        pair = text(4), text(5)
        if all(len(part.encode()) < Q for part in pair):
            pairs.append(pair)
    return pairs


def as_pairs(vocab, pairs):
    return packing.Pairs(
        *tiny.contents(vocab, [q for q, _ in pairs], Q),
        *tiny.contents(vocab, [a for _, a in pairs], A),
    )


@functools.partial(jax.jit, static_argnames=("template", "capacity", "show_answers"))
def pack(template, pairs, chosen, question, capacity, show_answers=True):
    room = Q + A + template.overhead(0)
    shown = packing.demonstrations(template, pairs, capacity=room, show_answers=show_answers)
    return packing.prompts(template, shown, chosen, capacity, question)


def some_choices(seed, k=4):
    """Distinct rows of the pool for each prompt, here and there none."""
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.permutation(POOL)[:k] for _ in range(ROWS)])
    return np.where(rng.random(chosen.shape) < 0.2, -1, chosen).astype(np.int32)


def rows_of(vocab, prompts):
    """The packed rows as text; BOS leads each and nothing stands behind its end."""
    for row, length in zip(np.asarray(prompts.tokens), np.asarray(prompts.lengths), strict=True):
        assert row[0] == vocab.bos and 1 < length <= len(row)
        assert not row[length:].any()
        yield vocab.decode(row[1:length])


@pytest.mark.parametrize("question", [True, False])
def test_packed_prompts_decode_to_the_rendered_text(vocab, question):
    """Tokens joined on the device read exactly as the template written on the host."""
    template = packing.Template.of(vocab)
    texts, new, chosen = random_pairs(0), random_pairs(1), some_choices(2)
    asked = new * (ROWS // POOL)
    encoded = tiny.contents(vocab, [q for q, _ in asked], Q) if question else None
    prompts = pack(template, as_pairs(vocab, texts), chosen, encoded, 4 * 80 + 40)
    for row, picks, (q, _) in zip(rows_of(vocab, prompts), chosen, asked, strict=True):
        demonstrations = [texts[i] for i in picks if i >= 0]
        if question:
            assert row == tokens.render(demonstrations, q)
        else:
            assert row == tokens.render(demonstrations) + "Question:"
        # No instruction: no word but those of the pairs and the two headers.
        own = " ".join(f" {x} " for pair in [*demonstrations, (q, "")] for x in pair)
        assert set(re.findall(r"\w+", row)) <= set(re.findall(r"\w+", own)) | {"Question", "Answer"}


@pytest.mark.parametrize("capacity", [60, 90, 130, 180, 240])
def test_demonstrations_without_room_are_dropped_whole_and_first_first(vocab, capacity):
    """Short of room, the farthest (first) demonstrations go, whole; the rest stays as it was."""
    template = packing.Template.of(vocab)
    texts, new, chosen = random_pairs(3), random_pairs(4), some_choices(5)
    asked = new * (ROWS // POOL)
    encoded = tiny.contents(vocab, [q for q, _ in asked], Q)
    prompts = pack(template, as_pairs(vocab, texts), chosen, encoded, capacity)
    rows = rows_of(vocab, prompts)
    for row, length, picks, (q, _) in zip(rows, prompts.lengths, chosen, asked, strict=True):
        kept, used = [], 1 + size(vocab, "Question:", f" {q}", "\nAnswer:")
        for index in [i for i in picks if i >= 0][::-1]:
            demo = texts[index]
            used += size(vocab, "Question:", f" {demo[0]}", "\nAnswer:", f" {demo[1]}", "\n\n")
            if used > capacity:
                break
            kept.insert(0, demo)
        assert row == tokens.render(kept, q)
        assert int(length) <= capacity


def size(vocab, *texts):
    return sum(len(vocab.encode(text)) for text in texts)


def test_questions_alone_can_be_shown(vocab):
    """Without answers a demonstration is its question under the header."""
    template = packing.Template.of(vocab)
    texts, chosen = random_pairs(6), some_choices(7)
    prompts = pack(template, as_pairs(vocab, texts), chosen, None, 300, show_answers=False)
    for row, picks in zip(rows_of(vocab, prompts), chosen, strict=True):
        shown = "".join(f"Question: {texts[i][0]}\n\n" for i in picks if i >= 0)
        assert row == shown + "Question:"


def test_training_sequences_show_the_pair_and_mark_the_answer(vocab):
    """A sequence is BOS, the pair under the headers, EOS; the loss begins at the answer."""
    template, texts = packing.Template.of(vocab), random_pairs(8)
    capacity = Q + A + template.overhead(0) + 1
    ids, lengths, begin = jax.jit(packing.training_sequences, static_argnums=(0, 2))(
        template, as_pairs(vocab, texts), capacity
    )
    for row, length, start, (q, a) in zip(np.asarray(ids), lengths, begin, texts, strict=True):
        assert row[0] == vocab.bos and row[length - 1] == vocab.eos
        assert not row[length:].any()
        assert vocab.decode(row[1:start]) == f"Question: {q}\nAnswer:"
        assert vocab.decode(row[start : length - 1]) == f" {a}"
        # What generation draws after the same prompt is what was trained on.
        prompt = np.asarray(packing.prompts(
            template, (jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)),
            jnp.full((1, 0), -1), capacity, tiny.contents(vocab, [q], Q),
        ).tokens)[0]  # fmt: skip
        assert row[:start].tolist() == prompt[:start].tolist()


concatenated = jax.jit(packing.concatenate, static_argnums=1)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data(), st.sampled_from([1, 7, 30]))
@example(None, 7)
def test_concatenate_equals_a_loop(data, capacity):
    """Ragged parts are joined in order, empty ones left out, and the end cut at the capacity."""
    rng = np.random.default_rng(0 if data is None else data.draw(st.integers(0, 2**32 - 1)))
    widths, rows = (3, 1, 0, 8, 5), 6
    parts = [
        (rng.integers(1, 99, (rows, w)).astype(np.int32), rng.integers(0, w + 1, rows))
        for w in widths
    ]
    ids, lengths = concatenated(parts, capacity)
    for row in range(rows):
        joined = [int(x) for tokens_, sizes in parts for x in tokens_[row, : sizes[row]]]
        joined = joined[:capacity]
        assert int(lengths[row]) == len(joined)
        assert np.asarray(ids)[row].tolist() == joined + [0] * (capacity - len(joined))
