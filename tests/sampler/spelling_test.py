"""Generated texts, encoded anew: against the tokenizer's ids of the rendered text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from isara_jax.sampler import decode, spelling
from isara_jax.text import packing, stops, tokens

N, LENGTH = 8, 24
ENDED = {tokens.IN_QUESTION: stops.QUESTION_STOPS, tokens.IN_ANSWER: stops.ANSWER_STOPS}


@functools.partial(jax.jit, static_argnums=(0, 1))
def settled(kind, place, drawn):
    vocabulary = tiny.vocabulary(kind)
    template = packing.Template.of(vocabulary)
    return spelling.settled(vocabulary, template, tiny.mesh(), place, ENDED[place], drawn)


def settle(kind, place, rows, finish):
    """Of at most N rows of drawn tokens: `bare` and `joined` ids, and whether it was spelled."""
    ids, lengths = packing.pad([*rows, *[[]] * (N - len(rows))], LENGTH)
    ends = np.asarray([*finish, *[stops.UNFINISHED] * (N - len(rows))], np.int32)
    score = jnp.zeros(N)
    _, text, spelled = jax.device_get(
        settled(kind, place, decode.Generation(ids, lengths, ends, score, jnp.int32(0)))
    )
    bare, joined = (
        [row[:n].tolist() for row, n in zip(*part, strict=True)]
        for part in (text.bare, text.joined)
    )
    return list(zip(bare, joined, spelled.tolist(), strict=True))[: len(rows)]


def ids_of(kind, *texts):
    spelled = tiny.vocabulary(kind).bytes
    return [spelled.index(text.encode()) for text in texts]


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_a_text_is_spelled_as_the_tokenizer_spells_it(kind):
    """Cut inside a token, ended by EOS, byte by byte: the pool holds what models have read."""
    vocabulary, place = tiny.vocabulary(kind), tokens.IN_ANSWER
    drawn = {
        "a b.": [(" ", "a", " ", "b", ".\n\n", "Question", ":"), stops.AT_STOP],
        "ab.": [(" ", "a", "b", "."), stops.AT_EOS],
        "abc": [(" ", "ab", "c", "\n", "\n", " Question", ":"), stops.AT_STOP],
        "ba": [("\n", "ba", "\n", "\n"), stops.UNFINISHED],
    }
    rows = [
        ids_of(kind, *pieces) + [vocabulary.eos] * (end == stops.AT_EOS)
        for pieces, end in drawn.values()
    ]
    found = settle(kind, place, rows, [end for _, end in drawn.values()])
    for text, (bare, joined, spelled) in zip(drawn, found, strict=True):
        assert spelled
        (head, whole, shown) = vocabulary.plain(
            [f"Answer:{rest}" for rest in ("", f" {text}", f" {text}\n\nQuestion:")]
        )
        assert head + bare == whole and head + joined == shown


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_any_tokens_make_a_prompt_that_the_tokenizer_would_make(kind):
    """Whatever a model draws, in a prompt it reads as the tokenizer's own ids of that text."""
    vocabulary = tiny.vocabulary(kind)
    every = [i for i, text in enumerate(vocabulary.bytes) if text]
    rows = st.lists(st.lists(st.sampled_from(every), max_size=8), min_size=2, max_size=2)
    template = packing.Template.of(vocabulary)

    def run(pair):
        asked, said = (
            settle(kind, place, [row], [stops.UNFINISHED])[0]
            for row, place in zip(pair, ENDED, strict=True)
        )
        question, answer = (vocabulary.decode(part[0])[1:] for part in (asked, said))
        if asked[1] and said[1]:  # both could be spelled
            (whole,) = vocabulary.plain([tokens.render([(question, answer)])])
            assert [*template.start, *asked[1], *said[1]] == whole

    given(rows)(settings(max_examples=100, derandomize=True, database=None, deadline=None)(run))()


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_a_text_without_room_is_given_up(kind):
    """A spelling longer than the row is not cut: the sample is given up, and told."""
    full = ids_of(kind, *["abc"] * LENGTH)  # behind a header a space comes before it
    vocabulary = tiny.vocabulary(kind)
    given_up, kept = settle(
        kind,
        tokens.IN_ANSWER,
        [[*full[1:], full[0]], [*full[2:], vocabulary.eos]],
        [stops.UNFINISHED, stops.AT_EOS],
    )
    assert given_up == ([], [], False)
    assert vocabulary.decode(kept[0]) == " " + "abc" * (LENGTH - 2)
    assert kept[2]


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_what_says_nothing_is_empty(kind):
    """Not even the space behind a header: no filter could tell it from a text of one token."""
    vocabulary = tiny.vocabulary(kind)
    rows = [[vocabulary.eos], ids_of(kind, "\n\nQuestion", ":"), ids_of(kind, " ", "\n\n\n")]
    ends = [stops.AT_EOS, stops.AT_STOP, stops.UNFINISHED]
    for found in settle(kind, tokens.IN_ANSWER, rows, ends):
        assert found == ([], [], True)


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_only_utf8_is_text(kind):
    """No U+FFFD that the model never drew is kept; a cut inside a character ends before it."""
    vocabulary, place = tiny.vocabulary(kind), tokens.IN_ANSWER
    single = {text: i for i, text in enumerate(vocabulary.bytes) if len(text) == 1}
    euro = [single[bytes([byte])] for byte in "€".encode()]
    head = ids_of(kind, "ab")
    rows = {
        "ab€": (head + euro + [vocabulary.eos], stops.AT_EOS),
        "ab": (head + euro[:2], stops.UNFINISHED),
        "ab\ufffd": (head + euro[:2] + [vocabulary.eos], stops.AT_EOS),
        "ab\ufffda": (head + euro[1:2] + ids_of(kind, "a"), stops.UNFINISHED),
    }
    found = settle(kind, place, [row for row, _ in rows.values()], [e for _, e in rows.values()])
    assert [spelled for *_, spelled in found] == [True, True, False, False]
    assert [vocabulary.decode(bare) for bare, *_ in found] == [" ab€", " ab", "", ""]
    ids, lengths = packing.pad([row for row, _ in rows.values()], LENGTH)
    ends = np.asarray([end for _, end in rows.values()])
    drawn = decode.Generation(ids, lengths, ends, None, None)
    assert spelling.texts(vocabulary, drawn, ENDED[place]) == list(rows)  # as people read them
