"""Gives the memory and speed of each generation of TPU, and the slices that Google rents.

The figures are from cloud.google.com/tpu/docs/v3 to v6e, as read in November 2026.
"""

import re
from typing import NamedTuple

from kmax_tf.errors import InputError


class Chip(NamedTuple):
    """One chip. A device of a chip runs one replica and has an equal part of memory and speed."""

    cores: int  # which the number in a slice's name counts
    devices: int  # v4 and v5p join their two cores to one device
    memory: int  # bytes
    bytes_per_second: float  # between memory and cores
    flops_per_second: float  # of bfloat16 products
    dimensions: int  # of the grid of chips


CHIPS = {
    "v3": Chip(2, 2, 32 * 2**30, 900e9, 123e12, 2),
    "v4": Chip(2, 1, 32 * 2**30, 1228e9, 275e12, 3),
    "v5e": Chip(1, 1, 16 * 2**30, 819e9, 197e12, 2),
    "v5p": Chip(2, 1, 95 * 2**30, 2765e9, 459e12, 3),
    "v6e": Chip(1, 1, 32 * 2**30, 1640e9, 918e12, 2),
}
SIXTEEN_CHIPS = ("v3-32", "v4-32", "v5e-16", "v5p-32", "v6e-16")  # slices to compare


class Slice(NamedTuple):
    """Chips of one generation that train together."""

    generation: str
    cores: int

    @property
    def name(self) -> str:
        """The name, such as "v5e-16"."""
        return f"{self.generation}-{self.cores}"

    @property
    def accelerator_type(self) -> str:
        """The name in Google's interfaces, such as "v5litepod-16"."""
        return self.name.replace("v5e", "v5litepod")

    @property
    def chip(self) -> Chip:
        """Each of its chips."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return self.cores // self.chip.cores

    @property
    def replicas(self) -> int:
        """The number of devices, each of which runs one replica."""
        return self.chips * self.chip.devices

    @property
    def memory(self) -> int:
        """The memory of a replica, in bytes."""
        return self.chip.memory // self.chip.devices

    @property
    def topology(self) -> str:
        """The name in libtpu, such as "v5e:4x4"."""
        sides = [1] * self.chip.dimensions
        for _ in range(self.chips.bit_length() - 1):
            sides[sides.index(min(sides))] *= 2
        sides.sort(key=lambda side: (side == 1, side))  # 2x2x1 and 2x2x4
        return f"{self.generation}:{'x'.join(map(str, sides))}"

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth of a replica's memory."""
        return self.chip.bytes_per_second / self.chip.devices

    @property
    def flops_per_second(self) -> float:
        """The speed of a replica, in bfloat16 products."""
        return self.chip.flops_per_second / self.chip.devices


def parse(name: str) -> Slice:
    """Returns the slice of a name such as "v3-32" or "v5litepod-16"; raises InputError."""
    match = re.fullmatch(r"(\w+)-(\d+)", name.replace("v5litepod", "v5e"))
    if match and match[1] in CHIPS:
        found = Slice(match[1], int(match[2]))
        if found.cores % found.chip.cores == 0 and found.chips.bit_count() == 1:
            return found
    raise InputError(
        f"slice {name!r} is unknown; give one such as {', '.join(SIXTEEN_CHIPS)} (16 chips each),"
        " or of another number of chips that is a power of two"
    )
