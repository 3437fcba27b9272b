"""RoPE's base and scaling, which llama.cpp keeps in metadata and in tensors.

What is made are the parameters of Hugging Face's `rope_parameters`: `rope_theta`, `rope_type`, and
those of the type.
"""

import dataclasses
from typing import Any

import numpy as np

from isara_jax.formats.from_gguf import file as file_lib
from isara_jax.formats.from_gguf.metadata import Metadata
from isara_jax.models import rope as rope_lib
from isara_jax.models.rope import Rope

FACTORS = "rope_freqs.weight"
LONGROPE = {f"rope_factors_{which}.weight": f"{which}_factor" for which in ("short", "long")}
# Llama 3.1's; 3.2 differs in the factor, which the longest waves show.
_LLAMA3 = Rope(kind="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
_ORIGINALS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)  # tokens; Llama 3's first
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}


def parameters(meta: Metadata, size: int, *, partial: bool = False) -> dict[str, Any]:
    """The parameters of the layers that see everything.

    Args:
      meta: of the file.
      size: of a head.
      partial: a part of each head may be turned, and the rest not.

    Raises:
      ValueError: a scaling that is not supported, or two of them.
    """
    turned = meta.get("rope.dimension_count", int, size)
    if turned != size and not (partial and 0 < turned < size):
        meta.fail("rope.dimension_count", turned, f"only {size}, the size of a head, is supported")
    found = _scaled(meta, turned)
    return found | ({"partial_rotary_factor": turned / size} if turned != size else {})


def _scaled(meta: Metadata, size: int) -> dict[str, Any]:
    """The same of what is turned, `size` values of a head."""
    plain = {"rope_theta": meta.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    kind = meta.get("rope.scaling.type", str, "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        meta.fail("rope.scaling.type", kind, "supported: none, linear, yarn, longrope")
    factor = meta.number("rope.scale_linear", 1.0)  # of files from before 2024
    factor = meta.number("rope.scaling.factor", factor) or 1.0
    scaled = kind in ("linear", "yarn") and factor != 1.0
    longrope = kind == "longrope" or not set(LONGROPE).isdisjoint(meta.file.tensors)
    factors = _factors(meta)
    if scaled and (longrope or factors is not None):
        raise ValueError(f"{meta.file.path}: both tensors of factors and a {kind} scaling of RoPE")
    if longrope:
        return plain | _longrope(meta)
    if factors is not None:
        return _llama3(meta, plain["rope_theta"], size, factors)
    if not scaled:
        return plain
    more = _yarn(meta) if kind == "yarn" else {}
    return plain | {"rope_type": kind, "factor": factor} | more


def _factors(meta: Metadata) -> np.ndarray | None:
    """What each frequency is divided by, where a tensor says so."""
    if FACTORS not in meta.file.tensors:
        return None
    factors = file_lib.rows(meta.file.tensors[FACTORS])[0]
    return None if np.all(factors == 1) else factors


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """Parameters that hold for all layers, as the fields that transformers 4 and 5 both read."""
    top = ("rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in found.items() if name not in top}
    plain = scaling == {"rope_type": "default"}
    return {name: found[name] for name in top if name in found} | {
        "rope_scaling": None if plain else scaling
    }


def original(meta: Metadata) -> int:
    """Tokens that the model took before the stretching."""
    return meta.get("rope.scaling.original_context_length", int, meta.get("context_length", int))


def _attention_factor(meta: Metadata) -> dict[str, float]:
    """What the result is multiplied by; it follows from the other parameters where nothing says."""
    names = ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor")
    found = [value for name in names if (value := meta.number(name, 0.0))]
    return {"attention_factor": found[0]} if found else {}


def _yarn(meta: Metadata) -> dict[str, Any]:
    meta.only("rope.scaling.yarn_ext_factor", 1.0, "only 1, all of YaRN, is supported")
    found = {"original_max_position_embeddings": original(meta)} | _attention_factor(meta)
    given = {ours: meta.number(f"rope.scaling.{theirs}", 0.0) for theirs, ours in _YARN.items()}
    return found | {name: value for name, value in given.items() if value}


def _longrope(meta: Metadata) -> dict[str, Any]:
    factors = {
        ours: [float(str(x)) for x in file_lib.rows(meta.file.tensor(theirs))[0]]
        for theirs, ours in LONGROPE.items()
    }
    found = {"rope_type": "longrope", "original_max_position_embeddings": original(meta)}
    return found | factors | _attention_factor(meta)


def _llama3(meta: Metadata, theta: float, size: int, factors: np.ndarray) -> dict[str, Any]:
    """The parameters of Llama 3's scaling, from what it divides each frequency by.

    Equal frequencies are an equal model, so parameters that reproduce the tensor are right whatever
    the original ones were.
    """
    frequencies = Rope(theta=theta).turn(size).frequencies
    for length in _ORIGINALS:
        rope = dataclasses.replace(
            _LLAMA3,
            theta=theta,
            factor=float(factors.max()),
            original_max_position_embeddings=length,
        )
        again = frequencies / rope.turn(size).frequencies
        if again.shape == factors.shape and np.allclose(again, factors, rtol=1e-4):
            return rope_lib.parameters(rope)
    raise ValueError(
        f"{meta.file.path}: {FACTORS} ({len(factors)} values, {factors.min():g} to "
        f"{factors.max():g}) is no scaling of Llama 3's kind; others are not supported"
    )
