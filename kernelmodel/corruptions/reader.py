"""Reading physical memory, whoever's it is, and saying what to write into it."""

from __future__ import annotations

import struct
from typing import Protocol

__all__ = ["MemoryReader", "Overlay", "Write", "u64"]

#: Bytes to put at a physical address.
Write = tuple[int, bytes]


def u64(pa: int, value: int) -> Write:
    """A little-endian u64 at `pa`."""
    return pa, struct.pack("<Q", value)


class MemoryReader(Protocol):
    """Physical memory, to be read."""

    def read(self, pa: int, size: int) -> bytes:
        """`size` bytes from physical address `pa`."""
        ...


class Overlay:
    """A reader as it will be once some writes are made."""

    def __init__(self, memory: MemoryReader, writes: list[Write]) -> None:
        self._memory = memory
        self._writes = list(writes)

    def read(self, pa: int, size: int) -> bytes:
        """`size` bytes from physical address `pa`."""
        data = bytearray(self._memory.read(pa, size))
        for at, new in self._writes:
            low, high = max(pa, at), min(pa + size, at + len(new))
            if low < high:
                data[low - pa : high - pa] = new[low - at : high - at]
        return bytes(data)
