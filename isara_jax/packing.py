"""Prompts and training sequences, packed inside jit from token arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isara_jax import tokens


class Prompts(NamedTuple):
    """Right-padded prompts: `tokens [N, P]`, `lengths [N]` (at least 1)."""

    tokens: jax.Array
    lengths: jax.Array


class Pairs(NamedTuple):
    """Question–answer pairs as tokens: `question [N, Q]`, `answer [N, A]`, lengths `[N]`."""

    question: jax.Array
    question_length: jax.Array
    answer: jax.Array
    answer_length: jax.Array

    def take(self, rows: jax.Array) -> "Pairs":
        """The pairs at `rows`, of any shape."""
        return Pairs(*(field[rows] for field in self))


class Template(NamedTuple):
    """The template's fixed token ids, as Python tuples: constants of the program."""

    bos: int
    eos: int
    question: tuple[int, ...]
    answer: tuple[int, ...]
    separator: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: tokens.Vocabulary) -> "Template":
        return cls(vocabulary.bos, vocabulary.eos, *vocabulary.segments)

    def overhead(self, k: int) -> int:
        """Tokens of a prompt with k demonstrations that are neither question nor answer."""
        pair = len(self.question) + len(self.answer) + len(self.separator)
        return 1 + (k + 1) * pair


Part = tuple[jax.Array, jax.Array]
"""A ragged segment of every row: ids `[N, L]`, lengths `[N]`."""


def concatenate(parts: list[Part], capacity: int) -> tuple[jax.Array, jax.Array]:
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
    return jnp.where(position < total[:, None], ids, 0), total


def _constant(ids: tuple[int, ...], rows: int) -> Part:
    return jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (rows, len(ids))), jnp.full(rows, len(ids))


def _demonstration(template: Template, pairs: Pairs, show_answer: bool) -> list[Part]:
    rows = pairs.question.shape[0]
    parts = [_constant(template.question, rows), (pairs.question, pairs.question_length)]
    if show_answer:
        parts += [_constant(template.answer, rows), (pairs.answer, pairs.answer_length)]
    return [*parts, _constant(template.separator, rows)]


def demonstrations(
    template: Template, pairs: Pairs, *, capacity: int, show_answers: bool = True
) -> Part:
    r"""Renders each pair as a segment `Question: q\nAnswer: a\n\n` of at most `capacity` ids."""
    return concatenate(_demonstration(template, pairs, show_answers), capacity)


def _tail(template: Template, rows: int, question: Part | None) -> list[Part]:
    """What follows the demonstrations."""
    tail = [_constant(template.question, rows)]
    if question is not None:
        tail += [question, _constant(template.answer, rows)]
    return tail


def that_fit(
    template: Template,
    shown: Part,
    chosen: jax.Array,
    capacity: int,
    question: Part | None = None,
) -> jax.Array:
    """`chosen`, with -1 for what `prompts` drops for want of room. Arguments as there."""
    tail = sum(length for _, length in _tail(template, chosen.shape[0], question))
    lengths = jnp.where(chosen >= 0, shown[1][jnp.maximum(chosen, 0)], 0)
    # Room needed by demonstration i and all that follow it: dropped as soon as that is too much.
    needed = 1 + tail[:, None] + jnp.cumsum(lengths[:, ::-1], axis=1)[:, ::-1]
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
      shown: the pool's demonstrations, `[C, D]` ids and `[C]` lengths.
      chosen: `[N, k]` rows of the pool, most important last; -1 for none.
      capacity: P. Demonstrations that do not fit are dropped whole, the first ones first.
      question: `[N, Q]` ids and `[N]` lengths.

    Returns:
      prompts `[N, P]` that end with the header of what is to be generated.
    """
    chosen = that_fit(template, shown, chosen, capacity, question)
    rows, k = chosen.shape
    tail = _tail(template, rows, question)
    lengths = jnp.where(chosen >= 0, shown[1][jnp.maximum(chosen, 0)], 0)
    ids = shown[0][jnp.maximum(chosen, 0)]
    body = [(ids[:, i], lengths[:, i]) for i in range(k)]
    return Prompts(*concatenate([_constant((template.bos,), rows), *body, *tail], capacity))


def training_sequences(
    template: Template, pairs: Pairs, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""`Question: q\nAnswer: a` with BOS and EOS.

    Returns:
      ids `[N, capacity]`, lengths `[N]`, and `[N]` where the answer begins: the loss is on it and
      on EOS.
    """
    rows = pairs.question.shape[0]
    head = [
        _constant((template.bos,), rows),
        _constant(template.question, rows),
        (pairs.question, pairs.question_length),
        _constant(template.answer, rows),
    ]
    begin = sum(length for _, length in head)
    ids, lengths = concatenate(
        [*head, (pairs.answer, pairs.answer_length), _constant((template.eos,), rows)], capacity
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
