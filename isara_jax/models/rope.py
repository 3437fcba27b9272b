"""Rotary position embedding and its scalings (HF `modeling_rope_utils`)."""

import dataclasses
from typing import Any

import numpy as np

from isara_jax.models import fields as fields_lib
from isara_jax.shell.terminal import line, quoted

# The parameters each type takes beside rope_theta.
_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rope:
    """Frequencies of the rotary embedding.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: `default`; `linear` (positions divided by `factor`); `dynamic` (as `default` up to the
        model's length; beyond it this port does not go); `llama3` (long waves divided by `factor`).
      factor: of the stretching.
      low_freq_factor, high_freq_factor: waves longer than original / low are stretched whole, those
        shorter than original / high not at all, those between in part.
      original_max_position_embeddings: tokens, before the stretching.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192.0

    def inverse_frequencies(self, size: int) -> np.ndarray:
        """Radians a position for each pair of a head of `size`: `[size / 2]` f32."""
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        plain = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            return self._llama3(plain)
        return plain

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        turns = self.original_max_position_embeddings * plain / (2 * np.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (kept * plain + (1 - kept) * plain / self.factor).astype(np.float32)


def from_hf(parameters: Any, scaling: Any, theta: Any, source: str) -> Rope:
    """Reads the three places where an HF config may speak of RoPE.

    Args:
      parameters: `rope_parameters` of newer files, or None.
      scaling: `rope_scaling` of older files, or None.
      theta: `rope_theta` at the top level, or None.
      source: the file's name, for messages.

    Raises:
      ValueError: a type or parameter this port does not compute.
    """
    fields = _merged(parameters, scaling, theta, source)
    kind = fields.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        raise ValueError(
            f"{source}: rope type {quoted(kind)} is not supported; supported: "
            f"{', '.join(_PARAMETERS)}"
        )
    whole = fields.pop("partial_rotary_factor", None)
    if whole not in (None, 1, 1.0):
        raise ValueError(
            f"{source}: partial_rotary_factor {quoted(whole)} is not supported; only 1"
        )
    values = {"theta": fields.pop("rope_theta", None)}
    values |= {name: fields.pop(name, None) for name in _PARAMETERS[kind]}
    if fields:
        raise ValueError(
            f"{source}: rope type {kind!r} with {line(', '.join(sorted(fields)))[:300]} is not "
            "supported; it would change the logits"
        )
    return Rope(kind=kind, **_checked(values, kind, source))


def _merged(parameters: Any, scaling: Any, theta: Any, source: str) -> dict[str, Any]:
    """The fields of all three places, `type` under its newer name."""
    merged: dict[str, Any] = {}
    places = {"rope_parameters": parameters, "rope_scaling": scaling}
    for name, part in (places | {"rope_theta": {"rope_theta": theta}}).items():
        if not isinstance(part, dict | None):
            raise ValueError(f"{source}: {name} is {quoted(part)}; an object is expected")
        for key, value in (part or {}).items():
            key = "rope_type" if key == "type" else key
            if value is not None and merged.setdefault(key, value) != value:
                raise ValueError(
                    f"{source}: {key} is given twice, as {quoted(merged[key])} and as "
                    f"{quoted(value)}; remove the wrong one"
                )
    return merged


def _checked(values: dict[str, Any], kind: str, source: str) -> dict[str, float]:
    if values["theta"] is None:
        values.pop("theta")  # the default
    for name, value in values.items():
        if not fields_lib.is_positive(value):
            raise ValueError(
                f"{source}: rope type {kind!r}: {name} is {quoted(value)}; a number above 0 is "
                "expected"
            )
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise ValueError(f"{source}: rope: high_freq_factor must be above low_freq_factor")
    return {name: float(value) for name, value in values.items()}


def to_hf(rope: Rope) -> dict[str, Any]:
    """The fields of an HF config that `from_hf` reads back, for transformers 4 and 5."""
    extra = {name: getattr(rope, name) for name in _PARAMETERS[rope.kind]}
    if rope.kind == "llama3":
        original = extra["original_max_position_embeddings"]
        extra["original_max_position_embeddings"] = int(original)
    scaling = {"rope_type": rope.kind} | extra if extra else None
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
