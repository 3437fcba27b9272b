"""Rotary position embedding and its scalings (HF `modeling_rope_utils`)."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from isara_jax.models.fields import Fields, is_positive
from isara_jax.shell.terminal import line, quoted

# The parameters that each type takes beside rope_theta, and those that it may do without.
_PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), (),
    ),
    "yarn": (
        ("original_max_position_embeddings",),
        ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
         "truncate"),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "attention_factor"),
    ),
}  # fmt: skip
_PHI3 = {"su": "longrope", "yarn": "longrope"}  # what the first Phi-3 called it


class Turn(NamedTuple):
    """How a head is turned: radians a position of each pair `[P]` f32; a factor of the result."""

    frequencies: np.ndarray
    factor: float


@dataclasses.dataclass(frozen=True)
class Rope:
    """Frequencies of the rotary embedding.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: `default`; `linear` (positions divided by `factor`); `dynamic` (as `default` up to the
        model's length; beyond it this port does not go); `llama3` (long waves divided by `factor`);
        `yarn` (arXiv 2309.00071, the same by a ramp over the waves); `longrope` (arXiv 2402.13753,
        each wave divided by its own factor; the short ones, up to the original length).
      factor: of the stretching.
      low_freq_factor, high_freq_factor: waves longer than original / low are stretched whole, those
        shorter than original / high not at all, those between in part.
      original_max_position_embeddings: tokens, before the stretching.
      beta_fast, beta_slow, truncate: turns within the original length at which YaRN's ramp begins
        and ends, and whether its ends are moved to whole waves.
      short_factor, long_factor: of longrope, a number a wave.
      attention_factor: of what is turned.
      part: of each head is turned, the rest is not.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float = 1.0
    part: float = 1.0

    def turn(self, size: int) -> Turn:
        """How heads of `size` are turned."""
        turned = int(size * self.part)
        exponents = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
        plain = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        stretched = {
            "linear": lambda: plain / np.float32(self.factor),
            "llama3": lambda: self._llama3(plain),
            "yarn": lambda: self._yarn(plain, turned),
            "longrope": lambda: plain / np.asarray(self.short_factor, np.float32),
        }
        found = stretched[self.kind]() if self.kind in stretched else plain
        return Turn(found.astype(np.float32), self.attention_factor)

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        turns = self.original_max_position_embeddings * plain / (2 * np.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return kept * plain + (1 - kept) * plain / self.factor

    def _yarn(self, plain: np.ndarray, size: int) -> np.ndarray:
        def wave(turns: float) -> float:
            """The index of the wave that turns so often within the original length."""
            of_length = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return size * math.log(of_length) / (2 * math.log(self.theta))

        low, high = wave(self.beta_fast), wave(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        high += 0.001 if low == high else 0
        stretched = np.clip((np.arange(plain.size, dtype=np.float32) - low) / (high - low), 0, 1)
        return plain / self.factor * stretched + plain * (1 - stretched)


def from_hf(fields: Fields, size: int, theta: float = 10_000.0, *, phi3: bool = False) -> Rope:
    """Reads the places where an HF config may speak of RoPE, one for all layers.

    Args:
      fields: of the config; what is read is accounted for.
      size: of a head.
      theta: the family's, where the config has none.
      phi3: a part of each head may be turned, and the original length stands at the top, too.

    Raises:
      ValueError: a type or parameter this port does not compute.
    """
    places = {name: fields.take(name, None) for name in ("rope_parameters", "rope_scaling")}
    top = ("rope_theta", "partial_rotary_factor") if phi3 else ("rope_theta",)
    places |= {name: {name: fields.take(name, None)} for name in top}
    given = _merged(places, fields.source)
    if phi3:
        original = fields.count("original_max_position_embeddings", 4096)
        named = given.get("rope_type")
        given["rope_type"] = _PHI3.get(named, named) if isinstance(named, str) else named
        if given["rope_type"] == "longrope":
            given["original_max_position_embeddings"] = original
        elif given["rope_type"] not in (None, "default"):
            fields.fail("rope type", given["rope_type"], "default or longrope is expected")
    return _of(given, fields, size, theta, partial=phi3)


def by_kind(fields: Fields, size: int, older: str, theta: dict[str, float]) -> dict[str, Rope]:
    """The same, of a family whose windowed layers have another one (HF `Gemma3TextConfig`).

    Args:
      fields: of the config.
      size: of a head.
      older: where older files have theta of the windowed layers; "" where they have none.
      theta: the family's for each of `sliding_attention` and `full_attention`.

    Raises:
      ValueError: as `from_hf`.
    """
    newer, scaling = (fields.take(name, None) for name in ("rope_parameters", "rope_scaling"))
    tops = {"full_attention": fields.take("rope_theta", None)}
    tops["sliding_attention"] = fields.take(older, None) if older else None
    if newer is not None and (not isinstance(newer, dict) or set(newer) - set(theta)):
        fields.fail("rope_parameters", newer, f"an object with {' and '.join(theta)} is expected")
    found = {}
    for kind, default in theta.items():
        places = {
            f"rope_parameters[{kind!r}]": (newer or {}).get(kind),
            "rope_scaling": scaling if kind == "full_attention" else None,
            "rope_theta": {"rope_theta": tops[kind]},
        }
        merged = _merged(places, fields.source)
        if "truncate" in merged:
            fields.fail(
                "truncate", merged["truncate"], "transformers reads none of a kind of layer"
            )
        found[kind] = _of(merged, fields, size, default)
    return found


def _merged(places: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields of all places, `type` under its newer name."""
    merged: dict[str, Any] = {}
    for name, part in places.items():
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


def _of(
    given: dict[str, Any], fields: Fields, size: int, theta: float, *, partial: bool = False
) -> Rope:
    source, kind = fields.source, given.pop("rope_type", None) or "default"
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        raise ValueError(
            f"{source}: rope type {quoted(kind)} is not supported; supported: "
            f"{', '.join(_PARAMETERS)}"
        )
    part = given.pop("partial_rotary_factor", 1.0)
    if not is_positive(part) or part > 1 or (part != 1 and not partial):
        rule = "a number above 0 and up to 1" if partial else "only 1"
        raise ValueError(f"{source}: partial_rotary_factor {quoted(part)} is not supported; {rule}")
    needed, others = _PARAMETERS[kind]
    if "original_max_position_embeddings" in needed and kind == "yarn":
        given.setdefault("original_max_position_embeddings", fields.length)
    values = {"theta": given.pop("rope_theta", theta)}
    values |= {name: given.pop(name, None) for name in needed}
    values |= {name: given.pop(name) for name in others if name in given}
    if given:
        raise ValueError(
            f"{source}: rope type {kind!r} with {line(', '.join(sorted(given)))[:300]} is not "
            "supported; it would change the logits"
        )
    turned = int(size * part)
    if turned % 2:
        fields.fail("head_dim", turned, "RoPE turns pairs: an even number is expected")
    _check(values, kind, turned // 2, source)
    return Rope(kind=kind, part=float(part), **_resolved(values, kind, fields.length))


def _check(values: dict[str, Any], kind: str, pairs: int, source: str) -> None:
    for name, value in values.items():
        if name == "truncate":
            right, rule = isinstance(value, bool), "true or false is"
        elif name in ("short_factor", "long_factor"):
            right = isinstance(value, list) and all(is_positive(one) for one in value)
            right, rule = right and len(value) == pairs, f"a list of {pairs} numbers above 0 is"
        else:
            right, rule = is_positive(value), "a number above 0 is"
        if not right:
            raise ValueError(
                f"{source}: rope type {kind!r}: {name} is {quoted(value)}; {rule} expected"
            )
    above_one = {"yarn": "theta", "longrope": "original_max_position_embeddings"}.get(kind)
    if above_one and values[above_one] <= 1:  # its logarithm divides
        raise ValueError(f"{source}: rope type {kind!r}: {above_one} must be above 1")
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise ValueError(f"{source}: rope: high_freq_factor must be above low_freq_factor")


def _resolved(values: dict[str, Any], kind: str, length: int) -> dict[str, Any]:
    """With what follows from other values in its place, as transformers computes it."""
    if kind in ("yarn", "longrope"):
        original = values["original_max_position_embeddings"]
        factor = values.setdefault("factor", length / original)
        pair = values.pop("mscale", None), values.pop("mscale_all_dim", None)
        longrope = kind == "longrope"
        found = _of_longrope(factor, original) if longrope else _of_yarn(factor, pair)
        values.setdefault("attention_factor", found)
    return {
        name: tuple(map(float, value)) if isinstance(value, list)
        else value if isinstance(value, bool) else float(value)
        for name, value in values.items()
    }  # fmt: skip


def _of_longrope(factor: float, original: float) -> float:
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _of_yarn(factor: float, pair: tuple[float | None, float | None]) -> float:
    def of(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = pair
    return of(above) / of(below) if above and below else of(1.0)


def to_hf(rope: Rope) -> dict[str, Any]:
    """The fields of an HF config that `from_hf` reads back, for transformers 4 and 5."""
    scaling = _scaling(rope)
    theta = {"rope_theta": rope.theta, "rope_scaling": scaling if len(scaling) > 1 else None}
    return theta | ({"partial_rotary_factor": rope.part} if rope.part != 1 else {})


def parameters(rope: Rope) -> dict[str, Any]:
    """`rope_parameters` of one kind of layer, that `by_kind` reads back."""
    scaling = _scaling(rope)
    scaling.pop("truncate", None)
    return {"rope_theta": rope.theta} | scaling


def _scaling(rope: Rope) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    names = [*_PARAMETERS[rope.kind][0], *_PARAMETERS[rope.kind][1]]
    extra = {name: plain(getattr(rope, name)) for name in names if hasattr(rope, name)}
    if "original_max_position_embeddings" in extra:
        original = extra["original_max_position_embeddings"]
        extra["original_max_position_embeddings"] = int(original)
    return {"rope_type": rope.kind} | extra
