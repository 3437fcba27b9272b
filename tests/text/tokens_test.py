"""Text to tokens and back, and prompts packed from tokens, against the text itself."""

import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import tiny
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isara_jax.text import packing, reading, tokens

GPT2 = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "gpt2"
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
    return tokens.Vocabulary(reading.load(GPT2), 50257, str(GPT2))


@pytest.fixture(params=KINDS)
def vocab(request):
    return vocabulary(request.param)


PLACES = (tokens.IN_QUESTION, tokens.IN_ANSWER, tokens.ALONE)


# --- the vocabulary ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_text_survives(kind, place):
    """Every text comes back to the letter, or it would change on its way through token space."""
    vocab = vocabulary(kind)

    def run(text):
        (found,) = vocab.spellings([text], place)
        assert vocab.decode(found.bare) == f" {text}"
        assert vocab.spell(found.joined) == f" {text}{place.seam}".encode()

    for text in AWKWARD:
        run(text)
    # U+2581 is SentencePiece's own sign for a space.
    random_text = st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]))
    given(random_text)(settings(max_examples=50, derandomize=True, database=None)(run))()


def test_special_tokens_as_text_stay_text(vocab):
    """Somebody's "</s>" never becomes an end of sequence."""
    special = {vocab.eos, *vocab.begin, *vocab.tokenizer.all_special_ids}
    for text in ("</s>", "a <s>b</s><unk><pad><|endoftext|>", vocab.tokenizer.eos_token):
        assert not special & set(vocab.plain([text])[0])
    for index in special:
        assert vocab.bytes[index] == b""


def inside(vocab, text):
    """The ids of a text that does not begin another."""
    head, ids = vocab.plain(["0", f"0{text}"])
    assert ids[: len(head)] == head
    return ids[len(head) :]


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_bytes_are_what_the_tokenizer_decodes(kind):
    """Each token spells what its tokenizer prints for it behind a letter."""
    vocab = vocabulary(kind)
    anchor = inside(vocab, "a")
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
    (ids,) = vocab.plain([written])
    assert vocab.decode(ids) == written
    assert text in ids and reserved not in ids


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
    anchor = inside(vocab, "a")
    assert len(new) > 5
    for index in new.values():
        shown = tokenizer.decode([*anchor, index], clean_up_tokenization_spaces=False)
        assert "a" + vocab.bytes[index].decode("utf-8", "replace") == shown


def test_lossy_tokenizers_are_refused():
    """A normalizer that changes text is found at the first text it changes, by name."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()
    vocab = tokens.Vocabulary(tokenizer, 400, "some/folder")
    assert vocab.decode(vocab.spellings(["plain"], tokens.IN_ANSWER)[0].bare) == " plain"
    with pytest.raises(tokens.UnspellableError, match=r"some/folder: 'ﬁsh' does not survive"):
        vocab.spellings(["plain", "ﬁsh"], tokens.IN_ANSWER)


def test_a_composed_letter_is_the_same_text():
    """Qwen's normalizer composes letters: text from a Mac is not refused for it."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    vocab = tokens.Vocabulary(tokenizer, 400, "some/folder")
    (found,) = vocab.spellings(["caf" + "e\u0301"], tokens.IN_ANSWER)
    assert vocab.decode(found.bare) == " caf\u00e9"


def test_a_text_that_joins_its_header_is_refused():
    """Where ": a" is one token, a model that has read "Answer:" cannot go on as it has learnt."""
    vocab = tokens.Vocabulary(tiny.byte_level_tokenizer((*tiny.MERGED, ": ")), 400, "here")
    with pytest.raises(tokens.UnspellableError, match="here: 'a' does not .* joins the colon"):
        vocab.spellings(["a"], tokens.IN_QUESTION)


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


def test_template_is_the_papers():
    """Demonstrations are question and answer under two headers, and the prompt ends in one."""
    pairs = [("q1", "a1"), ("q2", "a2")]
    shown = "Question: q1\nAnswer: a1\n\nQuestion: q2\nAnswer: a2\n\n"
    assert tokens.render(pairs) == shown + "Question:"
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
        tiny.texts(vocab, [q for q, _ in pairs], tokens.IN_QUESTION, Q),
        tiny.texts(vocab, [a for _, a in pairs], tokens.IN_ANSWER, A),
    )


def asked(vocab, pairs):
    """Questions, each up to the header of its answer."""
    return tiny.texts(vocab, [q for q, _ in pairs], tokens.IN_QUESTION, Q).joined


def demonstrations(pairs):
    return packing.concatenate([pairs.question.joined, pairs.answer.joined], Q + A + 40)


@functools.partial(jax.jit, static_argnames=("template", "capacity"))
def pack(template, shown, chosen, question, capacity):
    return packing.prompts(template, shown, chosen, capacity, question)


def some_choices(seed, k=4):
    """Distinct rows of the pool for each prompt, here and there none."""
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.permutation(POOL)[:k] for _ in range(ROWS)])
    return np.where(rng.random(chosen.shape) < 0.2, -1, chosen).astype(np.int32)


def rows_of(vocab, prompts):
    """The packed rows behind their BOS, if there is one; nothing stands behind their end."""
    start = len(vocab.begin)
    for row, length in zip(np.asarray(prompts.tokens), np.asarray(prompts.lengths), strict=True):
        assert tuple(row[:start]) == vocab.begin and start < length <= len(row)
        assert not row[length:].any()
        yield row[start:length].tolist()


@pytest.mark.parametrize("question", [True, False])
def test_packed_prompts_are_the_tokenizers_own_ids(vocab, question):
    """Tokens joined on the device are what the tokenizer makes of the template's text."""
    template = packing.Template.of(vocab)
    texts, new, chosen = random_pairs(0), random_pairs(1), some_choices(2)
    new = new * (ROWS // POOL)
    encoded = asked(vocab, new) if question else None
    shown = demonstrations(as_pairs(vocab, texts))
    prompts = pack(template, shown, chosen, encoded, 4 * 80 + 40)
    for row, picks, (q, _) in zip(rows_of(vocab, prompts), chosen, new, strict=True):
        examples = [texts[i] for i in picks if i >= 0]
        text = tokens.render(examples, q if question else None)
        assert row == vocab.plain([text])[0]
        assert vocab.decode(row).removeprefix(" ") == text  # SentencePiece's space before a text
        # No instruction: no word but those of the pairs and the two headers.
        own = " ".join(f" {x} " for pair in [*examples, (q, "")] for x in pair)
        assert set(re.findall(r"\w+", text)) <= set(re.findall(r"\w+", own)) | {
            "Question", "Answer",
        }  # fmt: skip


@pytest.mark.parametrize("capacity", [60, 90, 130, 180, 240])
def test_demonstrations_without_room_are_dropped_whole_and_first_first(vocab, capacity):
    """Short of room, the farthest (first) demonstrations go, whole; the rest stays as it was."""
    template = packing.Template.of(vocab)
    texts, new, chosen = random_pairs(3), random_pairs(4), some_choices(5)
    new = new * (ROWS // POOL)
    shown = demonstrations(as_pairs(vocab, texts))
    prompts = pack(template, shown, chosen, asked(vocab, new), capacity)
    for row, picks, (q, _) in zip(rows_of(vocab, prompts), chosen, new, strict=True):
        kept = []
        for index in [i for i in picks if i >= 0][::-1]:
            (longer,) = vocab.plain([tokens.render([texts[index], *kept], q)])
            if len(vocab.begin) + len(longer) > capacity:
                break
            kept.insert(0, texts[index])
        assert row == vocab.plain([tokens.render(kept, q)])[0]


def test_training_sequences_are_the_tokenizers_own_ids_and_mark_the_answer(vocab):
    """A sequence is BOS, the pair under the headers, EOS; the loss begins at the answer."""
    template, texts = packing.Template.of(vocab), random_pairs(8)
    capacity = Q + A + template.overhead(0) + 1
    ids, lengths, begin = jax.jit(packing.training_sequences, static_argnums=(0, 2))(
        template, as_pairs(vocab, texts), capacity
    )
    start = len(vocab.begin)
    for row, length, at, (q, a) in zip(np.asarray(ids), lengths, begin, texts, strict=True):
        assert tuple(row[:start]) == vocab.begin and row[length - 1] == vocab.eos
        assert not row[length:].any()
        assert row[start : length - 1].tolist() == vocab.plain([f"{tokens.render([], q)} {a}"])[0]
        # What generation draws after the same prompt is what was trained on.
        assert row[start:at].tolist() == vocab.plain([tokens.render([], q)])[0]


concatenated = jax.jit(packing.concatenate, static_argnums=1)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data(), st.sampled_from([1, 7, 30]))
@example(None, 7)
def test_concatenate_equals_a_loop(data, capacity):
    """Ragged parts are joined in order, empty ones left out, and the end cut at the capacity."""
    rng = np.random.default_rng(0 if data is None else data.draw(st.integers(0, 2**32 - 1)))
    widths, rows = (3, 1, 0, 8, 5), 6
    parts = [
        packing.Part(rng.integers(1, 99, (rows, w)).astype(np.int32), rng.integers(0, w + 1, rows))
        for w in widths
    ]
    ids, lengths = concatenated(parts, capacity)
    for row in range(rows):
        joined = [int(x) for tokens_, sizes in parts for x in tokens_[row, : sizes[row]]]
        joined = joined[:capacity]
        assert int(lengths[row]) == len(joined)
        assert np.asarray(ids)[row].tolist() == joined + [0] * (capacity - len(joined))
