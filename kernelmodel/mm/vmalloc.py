"""vmalloc areas: virtually contiguous memory whose pages lie where the page allocator had some.

Only what a user can tell apart is kept: which frames, in which order, mapped in blocks of which
order. C: mm/vmalloc.c, 7.3.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.page_alloc import PageAllocator

__all__ = ["VmFlags", "VmallocArea", "vfree", "vmalloc"]


class VmFlags(IntFlag):
    """What an area is. C: the VM_* of include/linux/vmalloc.h, as far as anybody asks."""

    IOREMAP = 0x1
    ALLOC = 0x2
    MAP = 0x4
    USERMAP = 0x8
    ALLOW_HUGE_VMAP = 0x400


class VmallocArea(NamedTuple):
    """Frames of the area in mapping order as runs (pfn, pages); `order` of its blocks."""

    extents: tuple[tuple[int, int], ...]
    order: int = 0
    flags: int = int(VmFlags.ALLOC)

    @property
    def nr_pages(self) -> int:
        """Pages of the area."""
        total = 0
        for _, nr in self.extents:
            total += nr
        return total


def vmalloc(allocator: PageAllocator, size: int) -> VmallocArea:
    """Allocate `size` bytes in single pages; the caller zeroes or fills them.

    Raises:
        NoMemory: there are not enough pages.
    """
    if 0 < size <= PAGE_SIZE:
        return VmallocArea(((allocator.alloc_pages(0), 1),))
    return VmallocArea(tuple(allocator.alloc_bulk(0, -(-size // PAGE_SIZE))))


def vfree(allocator: PageAllocator, area: VmallocArea) -> None:
    """Give the pages back."""
    for pfn, nr_pages in area.extents:
        if nr_pages == 1:
            allocator.free_pages(pfn, 0)
        else:
            allocator.free_run(pfn, nr_pages)
