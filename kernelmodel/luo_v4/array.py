"""Contiguous arrays in preserved memory: what v4 writes sessions and files into.

One block of the page allocator each, so that an array ends where the largest order ends (E2BIG).
An empty array has no block: address 0, no pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kernelmodel.abi.layout import Ser
from kernelmodel.errors import KernelPanic
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["NO_ARRAY", "SerArray", "alloc_array", "take_array"]

_S = TypeVar("_S", bound=Ser)


@dataclass(frozen=True, slots=True)
class SerArray:
    """Where an outgoing array lies: its address and its pages."""

    pa: int
    pgcnt: int

    def write(self, kernel: Kernel, entries: Iterable[Ser]) -> None:
        """Write the entries back to back; there must be room for them."""
        if self.pgcnt:
            kernel.memory.write(self.pa, b"".join(entry.pack() for entry in entries))

    def free(self, kernel: Kernel) -> None:
        """Give the block back."""
        if self.pgcnt:
            kernel.kho.unpreserve_free(self.pa, self.pgcnt.bit_length() - 1)


NO_ARRAY = SerArray(0, 0)


def alloc_array(kernel: Kernel, size: int) -> SerArray:
    """A zeroed, preserved block of at least `size` bytes; none at all for 0.

    Raises:
        TooBig: above the largest order. NoMemory. Busy: KHO is finalised.
    """
    if size == 0:
        return NO_ARRAY
    pages = -(-size >> PAGE_SHIFT)
    return SerArray(kernel.kho.alloc_preserve(size), 1 << (pages - 1).bit_length())


def take_array(kernel: Kernel, of: type[_S], pa: int, pgcnt: int, count: int) -> list[_S]:
    """Read an array of the previous kernel and free it.

    Raises:
        KernelPanic: it is longer than its block, or not in memory.
    """
    if count == pgcnt == 0:
        return []
    if count * of.SIZE > pgcnt * PAGE_SIZE or not kernel.memory.is_ram(pa, pgcnt << PAGE_SHIFT):
        raise KernelPanic(f"luo: {count} entries in {pgcnt} pages at {pa:#x}")
    data = kernel.memory.read(pa, count * of.SIZE)
    kernel.kho.restore_free(pa)
    return [of.unpack(data, at) for at in range(0, len(data), of.SIZE)]
