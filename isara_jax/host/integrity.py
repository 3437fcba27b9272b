"""What is kept for a restart says what it is, so that damage is found before it is computed with.

Arrays are vouched for by a checksum taken on the device: of any mesh, whatever format they are
stored in. JSON is sealed: with the version of its format, and a hash of its content.
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.shell import endings

FORMAT = 1  # of checkpoints and of what lies beside them; a change that older code misreads adds 1


class DamagedError(Exception):
    """Something kept is not what was written."""


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """A number for each array of a tree, `[leaves]` uint32, that any changed bit changes.

    The bits of each element times an odd number that depends on its place, added up modulo 2^32:
    the order of adding, and with it the mesh, is no matter, nor are rows of zeros at the end (a
    pool may be restored with more room).
    """
    return jnp.stack([_checksum(x) for x in jax.tree.leaves(tree)])


def _checksum(x: jax.Array) -> jax.Array:
    kind = jnp.uint8 if x.dtype == jnp.bool_ else f"uint{8 * x.dtype.itemsize}"
    bits = x.astype(kind) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, kind)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # as MurmurHash3 ends
        place = (place ^ (place >> shift)) * jnp.uint32(factor)
    return jnp.sum(bits.astype(jnp.uint32) * (place | 1), dtype=jnp.uint32)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """JSON with its format and hash."""
    return {"format": FORMAT, "sha256": _hash(content), "content": content}


def opened(found: Any, where: str) -> dict[str, Any]:
    """The content of sealed JSON.

    Args:
      found: what was read.
      where: it was read from.

    Raises:
      config.UserError: a newer version has written it.
      DamagedError: it is something else, or has changed.
    """
    version = found.get("format") if isinstance(found, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise config.UserError(
            f"{where}: of format {version}, and this isara_jax reads up to {FORMAT}; install the "
            "version that wrote it, or choose another --workdir"
        )
    if version != FORMAT:
        raise DamagedError(f"no format {FORMAT} in it")
    if found.get("sha256") != _hash(found.get("content")):
        raise DamagedError("its content is not what its hash says")
    return found["content"]


def read(path: pathlib.Path, otherwise: str) -> dict[str, Any] | None:
    """The content of a file of sealed JSON; None where it is missing, or damaged, which is said.

    Args:
      path: the file.
      otherwise: what becomes of what is damaged.

    Raises:
      config.UserError: a newer version has written it.
    """
    try:
        return opened(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        return None
    except (DamagedError, ValueError, RecursionError) as error:
        if isinstance(error, config.UserError):
            raise
        processes.say_once(f"{path} is damaged ({endings.one_line(error)}); {otherwise}")
        return None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
