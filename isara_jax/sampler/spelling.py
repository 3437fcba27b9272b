"""Generated texts in the tokenizer's own spelling.

What a model draws may end inside a token, where a stop begins; its last tokens are others once the
template goes on behind them; and it may spell a text as the tokenizer never would. So the host
reads it as text and encodes it again, as it does with seeds. Of two spellings the tokenizer's is
kept, the one that models have read, and the pool is what `tokens.render` of its texts would be.
"""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from isara_jax.devices import mesh as mesh_lib
from isara_jax.sampler import decode
from isara_jax.text import encoding, packing, stops, tokens


class Written(NamedTuple):
    """N generated texts.

    Attributes:
      drawn: as the model drew them.
      text: as the tokenizer spells them; empty where it cannot.
      spelled: `[N]` whether it can.
    """

    drawn: decode.Generation
    text: packing.Text
    spelled: jax.Array


def respell(
    vocabulary: tokens.Vocabulary,
    place: tokens.Place,
    ended: Sequence[stops.Stop],
    room: encoding.Room,
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
      The texts, and `[N]` whether each could be spelled: it is UTF-8, the tokenizer gives it back,
      and there is room. One that could not, or says nothing, is empty.
    """
    texts = [_as_utf8(*one) for one in _written(vocabulary, generated, ended)]
    # The space behind its header is no text: no filter could tell it from one of one token.
    sought = [text for text in texts if text]
    found = dict(zip(sought, vocabulary.try_spellings(sought, place), strict=True))
    empty = tokens.Spelling([], [])
    spelled = [found[text] if text else empty if text == "" else None for text in texts]
    fits = [
        one is not None and len(one.bare) <= room.bare and len(one.joined) <= room.joined
        for one in spelled
    ]
    kept = [one if good else empty for one, good in zip(spelled, fits, strict=True)]
    return encoding.as_text(kept, room), np.asarray(fits, bool)


def texts(
    vocabulary: tokens.Vocabulary, drawn: decode.Generation, ended: Sequence[stops.Stop]
) -> list[str]:
    """The texts of a generation on the host, without what ended them and white space around.

    Bytes that are no UTF-8 are shown as U+FFFD.
    """
    written = _written(vocabulary, (drawn.tokens, drawn.lengths, drawn.finish), ended)
    decoded = [(_as_utf8(*one), one[0]) for one in written]
    return [
        raw.decode("utf-8", errors="replace").strip() if text is None else text
        for text, raw in decoded
    ]


def _written(
    vocabulary: tokens.Vocabulary,
    generated: tuple[np.ndarray, np.ndarray, np.ndarray],
    ended: Sequence[stops.Stop],
) -> list[tuple[bytes, bool]]:
    """The bytes of each text without what ended it, and whether it was cut for want of room."""
    return [
        (stops.text_before(vocabulary.bytes, ids[:n], how, ended), how == stops.UNFINISHED)
        for ids, n, how in zip(*map(np.asarray, generated), strict=True)
    ]


def _as_utf8(written: bytes, cut: bool) -> str | None:
    """A text without white space around it, None where it is no UTF-8.

    One that was cut inside a character ends before it.
    """
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(written, final=not cut).strip()
    except UnicodeDecodeError:
        return None


def settled(
    vocabulary: tokens.Vocabulary | None,
    template: packing.Template,
    mesh: Mesh,
    place: tokens.Place,
    ended: Sequence[stops.Stop],
    drawn: decode.Generation,
) -> Written:
    """Inside jit: a generation in the tokenizer's own spelling.

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
    room = encoding.Room(width, width + template.seam(place))
    if vocabulary is None:
        wide = jnp.pad(drawn.tokens, ((0, 0), (0, room.joined - width)))
        bare, joined = packing.Part(drawn.tokens, drawn.lengths), packing.Part(wide, drawn.lengths)
        return Written(drawn, packing.Text(bare, joined), jnp.ones(n, bool))
    # A callback takes its operands from the first device; the result goes back to all of them.
    whole = mesh_lib.replicated(mesh)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    result = packing.Text(
        packing.Part(ints(n, room.bare), ints(n)), packing.Part(ints(n, room.joined), ints(n))
    )
    operands = (drawn.tokens, drawn.lengths, drawn.finish)
    text, spelled = jax.lax.with_sharding_constraint(
        jax.pure_callback(
            lambda *arrays: respell(vocabulary, place, ended, room, arrays),
            (result, jax.ShapeDtypeStruct((n,), jnp.bool_)),
            *jax.lax.with_sharding_constraint(operands, whole),
        ),
        whole,
    )
    return Written(drawn, text, spelled)
