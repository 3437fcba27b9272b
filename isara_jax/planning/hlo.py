"""What compiled programs do, read from their text: data that is only moved, and collectives."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_MOVES = {
    *("copy", "copy-done", "transpose", "convert", "reshape", "concatenate", "slice"),
    *("dynamic-slice", "all-gather", "all-gather-done", "all-to-all"),
}
_NOTHING = {"parameter", "constant", "bitcast", "broadcast", "tuple", "get-tuple-element"}
_COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    "ragged-all-to-all",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]+\d*)[a-z\d]*\[([\d,]*)\](\S*)")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|\w+_computations?)=(?:%?([\w.\-]+)|\{([^{}=]*)\})"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Devices of an exchange are listed, counted, or named by axes of a mesh, or by parts of axes.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_NAMED = re.compile(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}")
_AXIS_SIZE = re.compile(r"'(\w+)'=(\d+)")
_AXIS_USED = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")


class Move(NamedTuple):
    """An instruction that computes nothing: a copy, a transpose, a gather or a conversion."""

    bytes: int
    kind: str
    shape: str


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
      kind: such as `all-gather`.
      group: devices that take part.
      bytes: that a device sends, if the exchange goes round in a ring.
      times: it is done, as far as trip counts are known; else once a loop.
      shape: of the result.
    """

    kind: str
    group: int
    bytes: float
    times: int
    shape: str


class _Instruction(NamedTuple):
    kind: str
    shape: str
    body: str  # of a while loop
    called: tuple[str, ...]
    trips: int
    group: int


def moves(hlo: str, at_least: int) -> list[Move]:
    """What the loops of a compiled program only move, in arrays of so many bytes, largest first.

    A fusion counts where nothing in it computes. What a TPU fetches into its on-chip memory does
    not count.
    """
    computations, _ = _parse(hlo)
    waiting = [i.body for body in computations.values() for i in body if i.body]
    result, reached = [], set()
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for instruction in computations[name]:
            kinds = _kinds(computations, instruction)
            size = _largest(instruction.shape)
            if kinds and kinds <= _MOVES and size >= at_least:
                result.append(Move(size, "+".join(sorted(kinds)), instruction.shape))
            if instruction.kind != "fusion":
                waiting += instruction.called
    return sorted(result, reverse=True)


def collectives(hlo: str) -> list[Collective]:
    """The exchanges of a compiled program, the most bytes first."""
    computations, entry = _parse(hlo)

    def reached(name: str, times: int) -> Iterator[Collective]:
        for i in computations[name]:
            kind = i.kind.removesuffix("-start")
            if kind in _COLLECTIVES:
                sent = _sent(kind, i)
                yield Collective(kind, i.group, sent, times, i.shape)
            for called in i.called:
                yield from reached(called, times * i.trips)

    found = reached(entry, 1)
    return sorted((c for c in found if c.group > 1), key=lambda c: -c.bytes * c.times)


def _sent(kind: str, instruction: _Instruction) -> float:
    """Bytes that each device of a group of n sends round a ring."""
    arrays, n = _sizes(instruction.shape), instruction.group
    size = sum(arrays)
    started = instruction.kind.endswith("-start") and len(arrays) > 1
    if kind == "collective-permute":
        return max(arrays)
    if kind == "all-gather":  # of the whole; what is started carries its operand too
        return (size * n / (n + 1) if started else size) * (n - 1) / n
    if kind == "reduce-scatter":  # of a part
        return (size / (n + 1) if started else size) * (n - 1)
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _kinds(computations: dict[str, list[_Instruction]], instruction: _Instruction) -> set[str]:
    """What an instruction does; a fusion, what is fused."""
    if instruction.kind != "fusion":
        return {instruction.kind} - _NOTHING
    inside = (i for name in instruction.called for i in computations[name])
    return set().union(*(_kinds(computations, i) for i in inside))


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Computations by name, and the name of the one that is called first."""
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found.group(2), [])
            entry = found.group(2) if found.group(1) else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(line, *found.groups()))
    return computations, entry


def _instruction(line: str, shape: str, kind: str) -> _Instruction:
    body, called = "", []
    for key, one, many in _CALLED.findall(line):
        names = [name.strip(" %") for name in (one or many).split(",")]
        body = names[0] if key == "body" else body
        called += names
    found = _TRIPS.search(line)
    trips = int(found.group(1)) if found else 1
    return _Instruction(kind, shape, body, tuple(called), trips, _group(line))


def _group(line: str) -> int:
    """How many devices take part in an exchange; 1 where there is none."""
    if found := _LISTED.search(line):
        return len(found.group(1).split(","))
    if found := _COUNTED.search(line):
        return int(found.group(1))
    if found := _NAMED.search(line):
        sizes = dict(_AXIS_SIZE.findall(found.group(1)))
        used = _AXIS_USED.findall(found.group(2))
        return math.prod(int(part or sizes[name]) for name, part in used)
    return 2 if "source_target_pairs" in line else 1


def _largest(shape: str) -> int:
    """Bytes of the largest array of a result that lies in the device's main memory."""
    return max(_sizes(shape, on_chip=False), default=0)


def _sizes(shape: str, *, on_chip: bool = True) -> list[int]:
    """Bytes of the arrays of a result."""
    sizes = []
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if on_chip or "S(1)" not in layout:
            bits = re.search(r"\d+", dtype)
            each = int(bits.group()) / 8 if bits else 1  # pred
            sizes.append(int(each * math.prod(int(d) for d in dimensions.split(",") if d)))
    return sizes
