"""Generated texts in the tokenizer's own spelling.

What a model draws may end inside a token, where a stop begins; its last tokens are others once the
template goes on behind them; and it may spell a text as the tokenizer never would. So the host
reads it as text and encodes it again, as it does with seeds. Of two spellings the tokenizer's is
kept, the one that models have read, and the pool is what `tokens.render` of its texts would be.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax import decode, packing, stops, tokens
from isara_jax import mesh as mesh_lib


class Room(NamedTuple):
    """Columns of a text's two spellings."""

    bare: int
    joined: int


def respell(
    vocabulary: tokens.Vocabulary,
    place: tokens.Place,
    ended: Sequence[stops.Stop],
    room: Room,
    generated: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[packing.Text, np.ndarray]:
    """The host side: texts without what ended them, encoded anew.

    Args:
      vocabulary: the tokenizer.
      place: where the texts will stand.
      ended: the stops that were looked for.
      room: columns of the result.
      generated: tokens `[N, L]`, lengths `[N]` and finish `[N]`, as of `decode.Generation`.

    Returns:
      The texts, and `[N]` whether each could be spelled in that room; one that could not, or says
      nothing, is empty.
    """
    texts = _texts(vocabulary, generated, ended)
    found = vocabulary.try_spellings(texts, place)
    fits = [
        text and one is not None and len(one.bare) <= room.bare and len(one.joined) <= room.joined
        for text, one in zip(texts, found, strict=True)
    ]
    empty = tokens.Spelling([], [])
    kept = [one if good else empty for one, good in zip(found, fits, strict=True)]
    return as_text(kept, room), np.asarray(fits, bool)


def texts(
    vocabulary: tokens.Vocabulary, drawn: decode.Generation, ended: Sequence[stops.Stop]
) -> list[str]:
    """The texts of a generation on the host, without what ended them and white space around."""
    return _texts(vocabulary, (drawn.tokens, drawn.lengths, drawn.finish), ended)


def _texts(
    vocabulary: tokens.Vocabulary,
    generated: tuple[np.ndarray, np.ndarray, np.ndarray],
    ended: Sequence[stops.Stop],
) -> list[str]:
    spelled = (
        stops.text_before(vocabulary.bytes, ids[:n], how, ended)
        for ids, n, how in zip(*map(np.asarray, generated), strict=True)
    )
    return [text.decode("utf-8", errors="replace").strip() for text in spelled]


def as_text(spellings: Sequence[tokens.Spelling], room: Room) -> packing.Text:
    """Right-padded rows, on the host.

    Raises:
      ValueError: a row is longer than its room.
    """
    return packing.Text(
        packing.pad([s.bare for s in spellings], room.bare),
        packing.pad([s.joined for s in spellings], room.joined),
    )


def settled(
    vocabulary: tokens.Vocabulary | None,
    template: packing.Template,
    mesh: Mesh,
    place: tokens.Place,
    ended: Sequence[stops.Stop],
    drawn: decode.Generation,
) -> tuple[packing.Text, decode.Generation]:
    """Inside jit: a generation's texts; what could not be spelled counts as unfinished.

    Args:
      vocabulary: the tokenizer; without one (programs compiled for devices that are not there and
        cannot call the host) the tokens stay as they were drawn.
      template: says how long a seam is, as a rule.
      mesh: the devices.
      place: where the texts will stand.
      ended: the stops that were looked for.
      drawn: N of them.
    """
    n, width = drawn.tokens.shape
    room = Room(width, width + template.seam(place))
    if vocabulary is None:
        wide = jnp.pad(drawn.tokens, ((0, 0), (0, room.joined - width)))
        bare, joined = packing.Part(drawn.tokens, drawn.lengths), packing.Part(wide, drawn.lengths)
        return packing.Text(bare, joined), drawn
    # A callback takes its operands from the first device; the result goes back to all of them.
    whole = mesh_lib.replicated(mesh)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    result = packing.Text(
        packing.Part(ints(n, room.bare), ints(n)), packing.Part(ints(n, room.joined), ints(n))
    )
    operands = (drawn.tokens, drawn.lengths, drawn.finish)
    text, fits = jax.lax.with_sharding_constraint(
        jax.pure_callback(
            lambda *arrays: respell(vocabulary, place, ended, room, arrays),
            (result, jax.ShapeDtypeStruct((n,), jnp.bool_)),
            *jax.lax.with_sharding_constraint(operands, whole),
        ),
        whole,
    )
    return text, drawn._replace(finish=jnp.where(fits, drawn.finish, stops.UNFINISHED))
