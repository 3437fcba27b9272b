"""What ends a text: strings tracked over bytes inside jit, and the cut on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from isara_jax.text import marked, tokens

UNFINISHED, AT_EOS, AT_STOP = -2, -1, 0  # how a text ended; AT_STOP + i: by the i-th stop
_NEWLINE, _BLANK = frozenset(b"\n"), frozenset(b" \t\n\r\v\f")


class Stop(NamedTuple):
    r"""A string that ends a text and is no part of it.

    Attributes:
      text: as it is written.
      header: a header of the template, which stands on a line of its own: any white space with a
        newline in it belongs to the stop, `\n\n Question:` as well as `\nQuestion:`.
    """

    text: str
    header: bool = False

    @property
    def steps(self) -> list[tuple[frozenset[int], frozenset[int]]]:
        """Of each byte to be read: which it may be, and which may come any number of times then."""
        read = [(frozenset({byte}), frozenset()) for byte in self.text.encode()]
        return [(_NEWLINE, _BLANK), *read] if self.header else read

    def before(self, text: bytes) -> bytes:
        """What stands before the first such stop in `text`, and before a header's white space."""
        sought, start = self.text.encode(), 0
        while (at := text.find(sought, start)) >= 0:
            kept = text[:at].rstrip() if self.header else text[:at]
            if not self.header or b"\n" in text[len(kept) : at]:
                return kept
            start = at + 1
        return text


def of_question(form: tokens.Form) -> tuple[Stop, ...]:
    """The strings that end a question: the header that follows it, then the other one.

    None where a special token stands between, which ends the text by itself.
    """
    return _of(form, form.question, form.answer)


def of_answer(form: tokens.Form) -> tuple[Stop, ...]:
    """As `of_question`, of an answer."""
    return _of(form, form.answer, form.question)


def _of(form: tokens.Form, *places: tokens.Place) -> tuple[Stop, ...]:
    own, other = (_first(form, place.seam) for place in places)
    return tuple(filter(None, dict.fromkeys((own, other)))) if own else ()


def _first(form: tokens.Form, seam: str) -> Stop | None:
    """What stands behind a text, before a special token; None if that is nothing."""
    text = marked.pattern(form.special).split(seam)[0]
    blank = text[: len(text) - len(text.lstrip())]
    return Stop(text.strip(), "\n" in blank) if text.strip() else None


QUESTION_STOPS, ANSWER_STOPS = of_question(tokens.PLAIN), of_answer(tokens.PLAIN)


class StopTable(NamedTuple):
    """Stops as one automaton over token ids, and which tokens end a text by themselves.

    BPE merges newlines with what stands before them, so a stop is no token sequence; it may begin
    and end inside tokens. State 0 is where nothing of a stop has been read.

    Attributes:
      next_state: `[V, N]` the state after token v read in state n.
      stop: `[V, N]` which stop completes within v, -1 where none does.
      ends: `[V]` whether v is an end of text.
      drawable: `[V]` whether v may be drawn: it spells something, or ends the text.
    """

    next_state: np.ndarray | jax.Array
    stop: np.ndarray | jax.Array
    ends: np.ndarray | jax.Array
    drawable: np.ndarray | jax.Array


def _byte_automaton(stops: Sequence[Stop]) -> tuple[np.ndarray, np.ndarray]:
    """Transitions `[N, 256]`, and the stop complete in each state, -1 for none.

    A state is the set of places (stop, bytes read of it) that the text so far may stand at, so
    this is the usual construction of a deterministic automaton (Rabin and Scott 1959).
    """
    steps = [stop.steps for stop in stops]
    start: frozenset[tuple[int, int]] = frozenset()
    number, queue, delta, complete = {start: 0}, [start], [], []
    for state in queue:  # grows
        done = [i for i, place in state if place == len(steps[i])]
        complete.append(min(done, default=-1))
        row = np.zeros(256, np.int32)
        for byte in range(256):
            places = [*((i, 0) for i in range(len(stops))), *state]
            further = {
                (i, j + 1) for i, j in places if j < len(steps[i]) and byte in steps[i][j][0]
            }
            further |= {(i, j) for i, j in state if byte in steps[i][j - 1][1]}
            following = frozenset(further)
            if following not in number:
                number[following] = len(number)
                queue.append(following)
            row[byte] = number[following]
        delta.append(row)
    return np.stack(delta), np.asarray(complete, np.int32)


def stop_table(spelled: Sequence[bytes], ends: Sequence[int], stops: Sequence[Stop]) -> StopTable:
    """The automaton for `stops` over a vocabulary, on the host.

    Args:
      spelled: the bytes of each token.
      ends: tokens that end a text.
      stops: other ends.
    """
    delta, complete = _byte_automaton(stops)
    n_bytes = np.asarray([len(b) for b in spelled], np.int32)
    state = np.broadcast_to(np.arange(len(delta)), (len(spelled), len(delta))).astype(np.int32)
    stop = np.full_like(state, -1)
    for place in range(int(n_bytes.max())):
        rows = np.flatnonzero(n_bytes > place)
        byte = np.asarray([spelled[r][place] for r in rows])
        moved = delta[state[rows], byte[:, None]]
        first = (stop[rows] < 0) & (complete[moved] >= 0)
        stop[rows] = np.where(first, complete[moved], stop[rows])
        state[rows] = moved
    ending = np.isin(np.arange(len(spelled)), ends)
    return StopTable(state, stop, ending, (n_bytes > 0) | ending)


def text_before(
    spelled: Sequence[bytes], ids: Sequence[int], finish: int, ended: Sequence[Stop]
) -> bytes:
    """What was written before the end of text or the stop that ended it.

    Args:
      spelled: the bytes of each token.
      ids: the tokens drawn, with those of the end.
      finish: how they ended.
      ended: the stops that were looked for.
    """
    kept = ids[:-1] if finish == AT_EOS else ids
    text = b"".join(spelled[int(i)] for i in kept)
    return ended[finish].before(text) if finish >= AT_STOP else text
