"""How the slots of a generation are served; what is generated does not depend on it."""

from jax.sharding import Mesh

from isara_jax.devices import mesh as mesh_lib


def refill(slots: int, rows: int = 1) -> int:
    """Prompts read at once: an eighth of the slots, since so many stand free before they are read.

    Args:
      slots: sequences decoded at once, a multiple of `rows`.
      rows: devices that sequences are spread over; the result is a multiple of it.
    """
    return max(rows, slots // 8 // rows * rows)


def worth_a_refill(rows: int, devices: int) -> int:
    """Prompts that must find a free slot before `rows` are read at once.

    All of them on one device. Where sequences are spread over several, each fills its own slots,
    and to wait for the last device would cost more than to read a few rows in vain.
    """
    return rows if devices == 1 else -(-rows * 3 // 4)


def read_lengths(length: int, mesh: Mesh, *, grouped: bool) -> tuple[int, ...]:
    """How much of a cache of `length` rows a step may read: a half, three quarters, or all of it.

    Each is compiled apart. On a CPU, and where several queries share a key (`grouped`), the
    products copy what they read of a cache in part, which costs more than to read all.
    """
    if mesh_lib.on_cpu(mesh) or length < 512 or grouped:
        return (length,)
    return tuple(-(-length * quarters // 4) for quarters in (2, 3, 4))


def steps_per_check(mesh: Mesh) -> int:
    """Decoding steps between two looks for free slots.

    On an accelerator the host looks at a loop's condition; on a CPU that costs nothing.
    """
    return 1 if mesh_lib.on_cpu(mesh) else 16
