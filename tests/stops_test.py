"""Stop strings in token space, against Python's own search in bytes."""

import functools

import jax
import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isara_jax import stops, tokens

LENGTH = 16  # of rows; a cut inside a token may need a few more tokens than were drawn
DRAWN = 10
# The template's, and stops that overlap, contain and continue one another.
SETS = {
    "question": (tokens.QUESTION_STOP, tokens.ANSWER_STOP),
    "answer": (tokens.ANSWER_STOP, tokens.QUESTION_STOP),
    "overlapping": ("abab", "bab\n", "b"),
    "nested": ("\n\nQuestion:", "Quest", "\n\n\n"),
    "suffixes": ("aaab", "ab\n\n", "b\n\nQ"),
    "single": ("é",),
}
cut = jax.jit(stops.cut_at_stop)


@functools.cache
def table(kind, name):
    return stops.stop_table(tiny.vocabulary(kind), SETS[name])


@functools.cache
def interesting(kind, name):
    """Tokens that share a byte with a stop: sequences of them meet stops often."""
    letters = set("".join(SETS[name]).encode())
    spelled = tiny.vocabulary(kind).bytes
    return [i for i, text in enumerate(spelled) if letters & set(text)]


def follow(automaton, vocabulary, ids):
    """Reads tokens as the decoding loop does: those read, which stop, and the bytes to keep."""
    state, n_bytes = 0, 0
    for count, token in enumerate(ids, 1):
        stop = int(automaton.stop[token, state])
        if stop >= 0:
            return ids[:count], stop, n_bytes + int(automaton.overrun[token, state])
        state = automaton.next_state[token, state]
        n_bytes += len(vocabulary.bytes[token])
    return ids, -1, np.iinfo(np.int32).max


def search(text, strings):
    """Where the stop that completes first begins (the longest, if some complete together)."""
    found = [(text.find(s) + len(s), -len(s), i) for i, s in enumerate(strings) if s in text]
    if not found:
        return -1, len(text)
    end, minus_length, index = min(found)
    return index, end + minus_length


def cut_row(automaton, ids, kept, length=LENGTH):
    row = np.zeros((1, length), np.int32)
    row[0, : len(ids)] = ids
    result, lengths = cut(row, np.array([len(ids)]), np.array([kept], np.int32), automaton)
    return np.asarray(result)[0, : int(lengths[0])].tolist()


def check(kind, name, ids):
    vocabulary, automaton = tiny.vocabulary(kind), table(kind, name)
    strings = [s.encode() for s in SETS[name]]
    read, stop, kept = follow(automaton, vocabulary, ids)
    text = vocabulary.spell(ids)
    expected_stop, expected_length = search(text, strings)
    assert stop == expected_stop
    assert vocabulary.spell(cut_row(automaton, read, kept)) == text[:expected_length]
    if stop >= 0:
        # Not a token too late: the stop was not complete before the last token read.
        assert search(vocabulary.spell(read[:-1]), strings)[0] == -1
    return read, stop


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_stop_and_cut_equal_a_search_in_bytes(kind, name):
    """Whatever tokens spell it, the first stop to complete is found and cut off to the byte."""
    spelled = tiny.vocabulary(kind).bytes
    every = [i for i, text in enumerate(spelled) if text]  # the sampler draws no other
    token = st.one_of(st.sampled_from(interesting(kind, name)), st.sampled_from(every))
    met = []

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.lists(token, max_size=DRAWN))
    @example([])
    def run(ids):
        met.append(check(kind, name, ids)[1])

    run()
    assert -1 in met
    assert set(met) - {-1}  # or the test would only have seen rows without a stop


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_stops_written_by_the_tokenizer(kind):
    """However the text around a header is merged into tokens, a model's output ends before it."""
    vocabulary = tiny.vocabulary(kind)
    for before in ("", " ", "x", ".", "é", "ab?\n", "\n", "\n\n", "Question", " a\n\nQuest"):
        for name, after in (("answer", " b"), ("question", "y"), ("question", "")):
            ids = vocabulary.encode(before + SETS[name][0] + after)
            read, stop = check(kind, name, ids)
            assert stop == 0
            kept = cut_row(table(kind, name), read, follow(table(kind, name), vocabulary, read)[2])
            assert vocabulary.decode(kept) == before


def ids_of(kind, *texts):
    spelled = tiny.vocabulary(kind).bytes
    return [spelled.index(text.encode()) for text in texts]


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
@pytest.mark.parametrize(
    ("name", "drawn", "stop", "kept"),
    [
        ("question", ("x\nAnswer:y",), 0, "x"),  # begins and ends inside one token
        ("question", ("\nAns", "w", "e", "r", ":"), 0, ""),  # at the very start
        ("answer", ("a", ".\n\n", "Quest", "ion:"), 0, "a."),  # completes in the last token
        ("answer", ("a", "\n\n\n", "Question", ":"), 0, "a\n"),  # begins late in a token
        ("overlapping", ("aab", "ab"), 2, "aa"),  # the shortest completes first
        ("overlapping", ("bab\n",), 2, ""),  # two stops in one token
        ("nested", ("\n\nQuestion", ":"), 1, "\n\n"),  # one inside another
        ("suffixes", ("a", "a", "aab"), 0, "a"),  # a failed start that is itself a start
        ("suffixes", ("ab", ".\n\n", "ab", "\n\nQ"), 1, "ab.\n\n"),  # two in one token: b\n\nQ
    ],
)
def test_worked_examples(kind, name, drawn, stop, kept):
    """The cases one would get wrong by matching token sequences in place of bytes."""
    ids = ids_of(kind, *drawn)
    read, found = check(kind, name, ids)
    assert found == stop
    automaton = table(kind, name)
    bytes_kept = follow(automaton, tiny.vocabulary(kind), ids)[2]
    assert tiny.vocabulary(kind).decode(cut_row(automaton, read, bytes_kept)) == kept


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_end_of_sequence_is_no_text(kind):
    """EOS behind the last token is dropped; a row that holds nothing else becomes empty."""
    vocabulary, everything = tiny.vocabulary(kind), np.iinfo(np.int32).max
    ids = ids_of(kind, "abc", "\n\n", "Quest")
    assert cut_row(table(kind, "answer"), [*ids, vocabulary.eos], everything) == ids
    assert cut_row(table(kind, "answer"), [vocabulary.eos], everything) == []
    assert cut_row(table(kind, "answer"), [], everything) == []


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_full_row_is_cut_within_its_capacity(kind):
    """A stop in the last column is cut in place; what has no room is left out, never garbled."""
    vocabulary, automaton = tiny.vocabulary(kind), table(kind, "question")
    ids = ids_of(kind, "abc", "ba", "x\nAnswer:y")
    read, _, kept = follow(automaton, vocabulary, ids)
    assert vocabulary.decode(cut_row(automaton, read, kept, length=3)) == "abcbax"
    # "\n\nQue" takes three tokens where one was drawn.
    ids, text = ids_of(kind, "ab", "Question", "\n\nQuestion"), b"abQuestion\n\nQue"
    automaton = table(kind, "nested")
    assert vocabulary.spell(cut_row(automaton, ids, len(text))) == text
    cropped = vocabulary.spell(cut_row(automaton, ids, len(text), length=3))
    assert text.startswith(cropped) and len(cropped) >= len(b"abQuestion")


def test_rows_are_cut_independently():
    """A batch of rows with and without stops gives what each row gives alone."""
    vocabulary, automaton = tiny.vocabulary("byte_level"), table("byte_level", "answer")
    rng = np.random.default_rng(0)
    pieces = interesting("byte_level", "answer")
    rows, lengths, kept, alone = np.zeros((64, LENGTH), np.int32), [], [], []
    for row in rows:
        ids, _, keep = follow(automaton, vocabulary, rng.choice(pieces, DRAWN).tolist())
        row[: len(ids)] = ids
        lengths.append(len(ids))
        kept.append(keep)
        alone.append(cut_row(automaton, ids, keep))
    together, sizes = cut(rows, np.array(lengths), np.array(kept, np.int32), automaton)
    for row, size, expected in zip(np.asarray(together), np.asarray(sizes), alone, strict=True):
        assert row[:size].tolist() == expected
