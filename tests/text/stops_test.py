"""What ends a text: in token space, against Python's own search in bytes."""

import functools
import re

import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isara_jax.text import stops, tokens

DRAWN = 10
# The template's, and stops that overlap, contain and continue one another.
SETS = {
    "question": stops.QUESTION_STOPS,
    "answer": stops.ANSWER_STOPS,
    "overlapping": tuple(map(stops.Stop, ("abab", "bab\n", "b"))),
    "nested": tuple(map(stops.Stop, ("\n\nQuestion:", "Quest", "\n\n\n"))),
    "suffixes": tuple(map(stops.Stop, ("aaab", "ab\n\n", "b\n\nQ"))),
    "mixed": (stops.Stop("Quest", True), stops.Stop("\n\n")),
    "single": (stops.Stop("é"),),
}


@functools.cache
def table(kind, name):
    vocabulary = tiny.vocabulary(kind)
    return stops.stop_table(vocabulary.bytes, (vocabulary.eos,), SETS[name])


@functools.cache
def interesting(kind, name):
    """Tokens that share a byte with a stop: sequences of them meet stops often."""
    letters = set("".join(stop.text + " \n" * stop.header for stop in SETS[name]).encode())
    spelled = tiny.vocabulary(kind).bytes
    return [i for i, text in enumerate(spelled) if letters & set(text)]


def follow(automaton, ids):
    """Reads tokens as the decoding loop does: those read, and how they ended."""
    state = 0
    for count, token in enumerate(ids, 1):
        if automaton.ends[token]:
            return ids[:count], stops.AT_EOS
        if (stop := int(automaton.stop[token, state])) >= 0:
            return ids[:count], stops.AT_STOP + stop
        state = automaton.next_state[token, state]
    return ids, stops.UNFINISHED


def search(text, ended):
    """Which stop completes first (the longest, if some do together), and what it leaves."""
    found = []
    for index, stop in enumerate(ended):
        written = re.escape(stop.text.encode())
        pattern = rb"[ \t\n\r\v\f]*\n[ \t\n\r\v\f]*" + written if stop.header else written
        if match := re.search(pattern, text):
            found.append((match.end(), match.start(), index))
    if not found:
        return stops.UNFINISHED, text
    _, start, index = min(found)
    return index, text[:start]


def check(kind, name, ids):
    spelled = tiny.vocabulary(kind).bytes
    read, finish = follow(table(kind, name), ids)
    text = b"".join(spelled[i] for i in ids)
    expected, kept = search(text, SETS[name])
    assert finish == expected
    assert stops.text_before(spelled, read, finish, SETS[name]) == kept
    if finish >= stops.AT_STOP:
        # Not a token too late: the stop was not complete before the last token read.
        before = b"".join(spelled[i] for i in read[:-1])
        assert search(before, SETS[name])[0] == stops.UNFINISHED
    return finish, kept


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_stop_and_cut_equal_a_search_in_bytes(kind, name):
    """Whatever tokens spell it, the first stop to complete is found and cut off to the byte."""
    spelled = tiny.vocabulary(kind).bytes
    every = [i for i, text in enumerate(spelled) if text]  # the sampler draws no other
    token = st.one_of(*[st.sampled_from(interesting(kind, name))] * 3, st.sampled_from(every))
    met = []

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.lists(token, max_size=DRAWN))
    @example([])
    def run(ids):
        met.append(check(kind, name, ids)[0])

    run()
    assert stops.UNFINISHED in met
    assert set(met) - {stops.UNFINISHED}  # or it would only have seen rows without a stop


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_stops_written_by_the_tokenizer(kind):
    """However the text around a header is merged into tokens, a model's output ends before it."""
    vocabulary = tiny.vocabulary(kind)
    for before in ("x", ".", "é", "ab?", "Question", "a\n\nQuest", "漢", "😀"):
        for place, name in ((tokens.IN_QUESTION, "question"), (tokens.IN_ANSWER, "answer")):
            (found,) = vocabulary.spellings([before], place)
            assert check(kind, name, found.joined) == (stops.AT_STOP, f" {before}".encode())


@pytest.mark.parametrize(
    "end",
    ["\n\nQuestion:", "\nQuestion:", "\n\n Question:", "\n \nQuestion:", "  \n\t\n  Question:",
     "\r\n\r\nQuestion:", "\n\n\n\nQuestion: and more", "\n" * 30 + "Question:"],
)  # fmt: skip
@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_white_space_around_a_header_makes_no_other_stop(kind, end):
    """A model that learnt another layout (a space, one line break) ends its answers too."""
    vocabulary = tiny.vocabulary(kind)
    (ids,) = vocabulary.plain([f"an answer.{end}"])
    finish, kept = check(kind, "answer", ids)
    assert finish == stops.AT_STOP and kept.strip() == b"an answer."


@pytest.mark.parametrize(
    "text", ["see Question: 3", "Question: 3", "a\nQuestion", "a\n\n> Question: 3", "\n\nquestion:"]
)
@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_a_header_inside_a_line_is_text(kind, text):
    """Only a header that begins a line ends a text."""
    (ids,) = tiny.vocabulary(kind).plain([text])
    assert check(kind, "answer", ids)[0] == stops.UNFINISHED


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
        ("answer", ("a", "\n\n\n", "Question", ":"), 0, "a"),  # white space of any length
        ("overlapping", ("aab", "ab"), 2, "aa"),  # the shortest completes first
        ("overlapping", ("bab\n",), 2, ""),  # two stops in one token
        ("nested", ("\n\nQuestion", ":"), 1, "\n\n"),  # one inside another
        ("suffixes", ("a", "a", "aab"), 0, "a"),  # a failed start that is itself a start
        ("suffixes", ("ab", ".\n\n", "ab", "\n\nQ"), 1, "ab.\n\n"),  # two in one token: b\n\nQ
    ],
)
def test_worked_examples(kind, name, drawn, stop, kept):
    """The cases one would get wrong by matching token sequences in place of bytes."""
    assert check(kind, name, ids_of(kind, *drawn)) == (stop, kept.encode())


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_every_end_of_a_model_ends_a_text(kind):
    """A chat model's <|im_end|> ends it as well as its EOS; neither is part of the text.

    What spells nothing is not drawn, unless it is an end.
    """
    vocabulary = tiny.vocabulary(kind)
    silent = len(vocabulary.bytes) - 1  # a row of the embedding without a token
    loud = ids_of(kind, "ab")[0]
    spelled = vocabulary.bytes
    automaton = stops.stop_table(spelled, (vocabulary.eos, silent, loud), SETS["answer"])
    ids = ids_of(kind, "abc", "\n\n", "Quest")
    for end in (vocabulary.eos, silent, loud):
        read, finish = follow(automaton, [*ids, end, *ids])
        assert (read, finish) == ([*ids, end], stops.AT_EOS)
        assert stops.text_before(spelled, read, finish, SETS["answer"]) == b"abc\n\nQuest"
    drawable = {i for i, text in enumerate(spelled) if text} | {vocabulary.eos, silent}
    assert np.flatnonzero(automaton.drawable).tolist() == sorted(drawable)
