"""Prompts and training sequences, packed inside jit from token arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax.text import tokens


class Prompts(NamedTuple):
    """Right-padded prompts: `tokens [N, P]`, `lengths [N]` (at least 1)."""

    tokens: jax.Array
    lengths: jax.Array


class Part(NamedTuple):
    """A ragged segment of every row: right-padded `ids [N, L]`, `lengths [N]`."""

    ids: jax.Array
    lengths: jax.Array


def pad(rows: Sequence[Sequence[int]], width: int) -> Part:
    """Rows of token ids on the host, with zeros behind them.

    Raises:
      ValueError: a row is longer than `width`.
    """
    ids = np.zeros((len(rows), width), np.int32)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return Part(ids, np.asarray([len(row) for row in rows], np.int32))


class Text(NamedTuple):
    """N questions, or N answers, as `tokens.Spelling` has them.

    Attributes:
      bare: behind a header, `[N, L]`.
      joined: with the seam that follows in the template, `[N, L + S]`.
    """

    bare: Part
    joined: Part


class Pairs(NamedTuple):
    """Question–answer pairs as tokens."""

    question: Text
    answer: Text

    def take(self, rows: jax.Array) -> "Pairs":
        """The pairs at `rows`, of any shape."""
        return jax.tree.map(lambda x: x[rows], self)


class Template(NamedTuple):
    """What does not depend on the texts, as Python values: constants of the program.

    Attributes:
      bos: what begins a text: one token, or none.
      eos: what ends it.
      start: the first question's header; of a chat's template all before a question.
      to_answer: tokens of the seam behind a question, as a rule.
      to_question: of the seam behind an answer, or behind a question that stands alone.
      form: the template as text.
    """

    bos: tuple[int, ...]
    eos: int
    start: tuple[int, ...]
    to_answer: int
    to_question: int
    form: tokens.Form = tokens.PLAIN

    @classmethod
    def of(cls, vocabulary: tokens.Vocabulary) -> "Template":
        form = vocabulary.form

        def seam(place: tokens.Place) -> int:
            ((bare, joined),) = vocabulary.spellings(["a"], place)
            return len(joined) - len(bare)

        return cls(
            bos=vocabulary.begin,
            eos=vocabulary.eos,
            start=tuple(vocabulary.head(form.question)),
            to_answer=seam(form.question),
            to_question=max(seam(place) for place in (form.answer, form.alone) if place),
            form=form,
        )

    @property
    def pair(self) -> int:
        """Tokens of a demonstration that are neither question nor answer."""
        return self.to_answer + self.to_question

    def overhead(self, k: int) -> int:
        """Tokens of a prompt with k demonstrations that are neither question nor answer."""
        first = max(len(self.start) - self.to_question, 0)
        return len(self.bos) + first + (k + 1) * self.pair

    def seam(self, place: tokens.Place) -> int:
        """Tokens that `place` puts behind a text, as a rule."""
        return self.to_answer if place.seam == self.form.question.seam else self.to_question


def concatenate(parts: list[Part], capacity: int) -> Part:
    """Joins ragged parts into right-padded rows.

    Args:
      parts: of one N; a length of 0 leaves a part out of its row.
      capacity: tokens a row of the result holds.

    Returns:
      tokens `[N, capacity]`, padded with 0, and lengths `[N]`; what does not fit is cut at the end.
    """
    widest = max(ids.shape[1] for ids, _ in parts)
    segments = jnp.stack([jnp.pad(i, ((0, 0), (0, widest - i.shape[1]))) for i, _ in parts], axis=1)
    lengths = jnp.stack([length for _, length in parts], axis=1)
    ends = jnp.cumsum(lengths, axis=1)
    position = jnp.arange(capacity)
    group = jnp.sum(position[None, :, None] >= ends[:, None, :], axis=-1)
    group = jnp.minimum(group, segments.shape[1] - 1)
    offset = position - jnp.take_along_axis(ends - lengths, group, axis=1)
    flat = segments.reshape(segments.shape[0], -1)
    index = group * segments.shape[2] + jnp.clip(offset, 0, segments.shape[2] - 1)
    total = jnp.minimum(ends[:, -1], capacity)
    ids = jnp.take_along_axis(flat, index, axis=1)
    return Part(jnp.where(position < total[:, None], ids, 0), total)


def _constant(ids: tuple[int, ...], rows: int) -> Part:
    return Part(
        jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (rows, len(ids))), jnp.full(rows, len(ids))
    )


def _head(template: Template, rows: int) -> Part:
    """What every text begins with."""
    return _constant((*template.bos, *template.start), rows)


def that_fit(
    template: Template,
    shown: Part,
    chosen: jax.Array,
    capacity: int,
    question: Part | None = None,
) -> jax.Array:
    """`chosen`, with -1 for what `prompts` drops for want of room. Arguments as there."""
    around = len(template.bos) + len(template.start)
    if question is not None:
        around += question.lengths[:, None]
    lengths = jnp.where(chosen >= 0, shown.lengths[jnp.maximum(chosen, 0)], 0)
    # Room needed by demonstration i and all that follow it: dropped as soon as that is too much.
    needed = around + jnp.cumsum(lengths[:, ::-1], axis=1)[:, ::-1]
    return jnp.where(needed <= capacity, chosen, -1)


def prompts(
    template: Template,
    shown: Part,
    chosen: jax.Array,
    capacity: int,
    question: Part | None = None,
) -> Prompts:
    """Prompts for new questions or, with `question`, for the answers to these.

    Args:
      template: the fixed ids.
      shown: the pool's demonstrations, each up to the next question's header, `[C, D]`.
      chosen: `[N, k]` rows of the pool, most important last; -1 for none.
      capacity: P. Demonstrations that do not fit are dropped whole, the first ones first.
      question: up to the answer's header, `[N, Q]`.

    Returns:
      prompts `[N, P]` that end with the header of what is to be generated.
    """
    chosen = that_fit(template, shown, chosen, capacity, question)
    rows, k = chosen.shape
    lengths = jnp.where(chosen >= 0, shown.lengths[jnp.maximum(chosen, 0)], 0)
    ids = shown.ids[jnp.maximum(chosen, 0)]
    body = [Part(ids[:, i], lengths[:, i]) for i in range(k)]
    tail = [] if question is None else [question]
    return Prompts(*concatenate([_head(template, rows), *body, *tail], capacity))


def no_demonstrations(rows: int) -> tuple[Part, jax.Array]:
    """`shown` and `chosen` of prompts that show nothing."""
    return _constant((0,), 1), jnp.full((rows, 0), -1, jnp.int32)


def training_sequences(
    template: Template, pairs: Pairs, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""`Question: q\nAnswer: a` with BOS, if the model has one, and EOS; or as chats have it.

    Returns:
      ids `[N, capacity]`, lengths `[N]`, and `[N]` where the answer begins: the loss is on it and
      on EOS.
    """
    rows = pairs.question.bare.lengths.shape[0]
    head = [_head(template, rows), pairs.question.joined]
    begin = sum(part.lengths for part in head)
    ids, lengths = concatenate(
        [*head, pairs.answer.bare, _constant((template.eos,), rows)], capacity
    )
    return ids, lengths, begin


class Streams(NamedTuple):
    """Sequences laid end to end in P streams of C tokens; their answers in P lists of M places.

    A stream of three sequences, and what the loss reads of it (`|` answers begin, `.` EOS):

        ids       a a|a . b b b|b . c|c c . 0 0
        segments  1 1 1 1 2 2 2 2 2 3 3 3 3 0 0
        positions 0 1 2 3 0 1 2 3 4 0 1 2 3 0 0
        before      1 2       6 7   9 10 11          and the ids that follow: targets

    Attributes:
      ids, segments, positions: `[P, C]`; segment 0 is padding.
      before, targets, inside: `[P, M]`: places in the stream, the ids to be predicted there, and
        whether there is one.
    """

    ids: jax.Array
    segments: jax.Array
    positions: jax.Array
    before: jax.Array
    targets: jax.Array
    inside: jax.Array


def streams(
    ids: jax.Array, lengths: jax.Array, begin: jax.Array, *, rows: int, span: int
) -> tuple[Streams, jax.Array]:
    """Packs sequences without padding between them; none is cut, and their order is kept.

    Args:
      ids: `[B, T]`.
      lengths: `[B]`, 0 for none.
      begin: `[B]` where the answers begin, at least 1.
      rows: a stream has room for so many of the longest sequences: C = rows * T tokens and
        M = rows * span places of answers.
      span: the most tokens of an answer with its EOS.

    Returns:
      The streams, and how many of them hold anything: int32 scalar.
    """
    batch, longest = ids.shape
    capacity, places, most = rows * longest, rows * span, -(-batch // rows)
    answers = jnp.clip(lengths - begin, 0, span)

    def place(last: tuple, size: tuple) -> tuple:
        stream, tokens, taken = last
        full = (tokens + size[0] > capacity) | (taken + size[1] > places)
        at = (stream + full, jnp.where(full, 0, tokens), jnp.where(full, 0, taken))
        return (at[0], at[1] + size[0], at[2] + size[1]), at

    zero = jnp.int32(0)
    last, (stream, start, first) = jax.lax.scan(place, (zero, zero, zero), (lengths, answers))

    def lay(values: jax.Array, at: jax.Array, inside: jax.Array, size: int) -> jax.Array:
        """Writes `values [B, L]` at `stream` and `at [B, L]` of `[P, size]` zeros."""
        target = jnp.where(inside, stream[:, None] * size + at, most * size)
        flat = jnp.zeros(most * size, values.dtype)
        return flat.at[target].set(values, mode="drop").reshape(most, size)

    column, answer = jnp.arange(longest), jnp.arange(span)
    real, at = column < lengths[:, None], start[:, None] + column
    segment = jnp.broadcast_to(1 + jnp.arange(batch)[:, None], ids.shape)
    answered, to = answer < answers[:, None], first[:, None] + answer
    read = begin[:, None] + answer
    targets = jnp.take_along_axis(ids, jnp.minimum(read, longest - 1), axis=1)
    laid = Streams(
        ids=lay(ids, at, real, capacity),
        segments=lay(segment, at, real, capacity),
        positions=lay(jnp.broadcast_to(column, ids.shape), at, real, capacity),
        before=lay(start[:, None] + read - 1, to, answered, places),
        targets=lay(targets, to, answered, places),
        inside=lay(answered, to, answered, places),
    )
    return laid, last[0] + 1
