"""Memory before the page allocator: which ranges exist, and which are taken.

Reproduces Linux 7.3's mm/memblock.c as far as boot, KHO and hugetlb see it. Two sorted lists of
regions: `memory` (what the firmware map gives, with node and marks) and `reserved` (what nobody
may allocate, with the reason as flags). An allocation searches the memory that is not reserved
from the top down and reserves what it finds.

Happy path: `add` memory, `reserve` image and handover, `alloc_range` what early boot wants,
then `free_ranges` feed the page allocator.

Unhappy path: no room is NoMemory. While `kho_scratch_only` holds, everything but memory marked
as KHO scratch counts as taken, because what lies in it has not been read from the handover yet.

All addresses and sizes here are bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from kernelmodel.errors import ModelBug, NoMemory
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.memblock_regions import (
    NUMA_NO_NODE,
    MemblockFlags,
    Region,
    RegionList,
    merged,
)
from kernelmodel.mm.ranges import RangeSet

__all__ = ["NUMA_NO_NODE", "Memblock", "MemblockFlags", "Region", "RegionList", "validate_memblock"]

PAGE_SHIFT: Final = 12
#: Page zero is never allocated, so that address 0 can mean failure.
_LOWEST: Final = 4096
# Plain integers for the hot paths: arithmetic on IntFlag members costs microseconds.
_NOMAP: Final = int(MemblockFlags.NOMAP)
_RSRV_NOINIT: Final = int(MemblockFlags.RSRV_NOINIT)
_RSRV_KERN: Final = int(MemblockFlags.RSRV_KERN)
_KHO_SCRATCH: Final = int(MemblockFlags.KHO_SCRATCH)
_RSRV_HUGETLB: Final = int(MemblockFlags.RSRV_HUGETLB)


class Memblock:
    """The boot-time allocator of one kernel. C: struct memblock."""

    __slots__ = ("_reserved", "_scattered", "current_limit", "kho_scratch_only", "memory")

    def __init__(self) -> None:
        self.memory = RegionList()
        self._reserved = RegionList()
        #: Reserved pages besides, which lie scattered, until somebody wants a list of them.
        self._scattered: Extents | None = None
        #: Allocations that name no end stay below this. C: memblock.current_limit.
        self.current_limit = 1 << 52
        self.kho_scratch_only = False

    # What exists.

    def add(self, base: int, size: int, nid: int = 0) -> None:
        """Memory that exists. C: memblock_add_node()."""
        self.memory.add(base, base + size, nid, 0)

    def mark_kho_scratch(self, base: int, size: int) -> None:
        """Let scratch-only allocations use this memory. C: memblock_mark_kho_scratch()."""
        self.memory.change(base, base + size, on=_KHO_SCRATCH)

    def clear_kho_scratch(self, base: int, size: int) -> None:
        """C: memblock_clear_kho_scratch()."""
        self.memory.change(base, base + size, off=_KHO_SCRATCH)

    def set_kho_scratch_only(self) -> None:
        """From now on only marked memory is allocated. C: memblock_set_kho_scratch_only()."""
        self.kho_scratch_only = True

    def clear_kho_scratch_only(self) -> None:
        """C: memblock_clear_kho_scratch_only()."""
        self.kho_scratch_only = False

    def kho_scratch(self) -> Iterator[tuple[int, int]]:
        """Marked memory as (base, end), ascending; extended scratch included."""
        for base, end, _, flags in self.memory.regions:
            if flags & _KHO_SCRATCH:
                yield base, end

    # What is taken.

    @property
    def reserved(self) -> RegionList:
        """Everything that is taken."""
        if self._scattered is not None:
            scattered, self._scattered = self._scattered, None
            for pfn, nr_pages in scattered:
                self.reserve_noinit(pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
        return self._reserved

    def reserve_noinit(self, base: int, size: int) -> None:
        """`reserve` and `mark_noinit` at once."""
        reserved = self.reserved
        if reserved.overlaps(base, base + size):
            reserved.add(base, base + size, NUMA_NO_NODE, 0)
            reserved.change(base, base + size, on=_RSRV_NOINIT)
        else:  # nothing of it was taken, as nearly always
            reserved.add(base, base + size, NUMA_NO_NODE, _RSRV_NOINIT)

    def reserve_noinit_pages(self, pages: Extents) -> None:
        """`reserve_noinit` for each of these runs, which ascend and do not touch."""
        starts, ends = pages.pfns << PAGE_SHIFT, pages.ends << PAGE_SHIFT
        apart = np.ones(len(pages), dtype=np.bool_)
        # what touches one that is taken is for the list to sort out
        for base, end, _, _ in self.reserved.regions:
            first = np.searchsorted(ends, base, "left")
            apart[first : np.searchsorted(starts, end, "right")] = False
        for pfn, nr_pages in Extents(pages.pfns[~apart], pages.counts[~apart]):
            self.reserve_noinit(pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
        self._scattered = Extents(pages.pfns[apart], pages.counts[apart])

    def reserve(self, base: int, size: int, nid: int = NUMA_NO_NODE, flags: int = 0) -> None:
        """Take a range; parts already taken keep their reason. C: memblock_reserve()."""
        self.reserved.add(base, base + size, nid, int(flags))

    def mark_noinit(self, base: int, size: int) -> None:
        """Tell boot to leave the page structures of a taken range alone.

        C: memblock_reserved_mark_noinit().
        """
        self.reserved.change(base, base + size, on=_RSRV_NOINIT)

    def free(self, base: int, size: int) -> None:
        """Give a range back. C: memblock_phys_free()."""
        self.reserved.remove(base, base + size)

    phys_free = free

    def set_reserved_nodes(self) -> None:
        """Record for everything that is taken by now on which node it lies.

        Done once, when the nodes become known: kernel image, initrd and page tables count for
        their node from then on, what is allocated later for the node that was asked for.
        C: numa_clear_kernel_node_hotplug().
        """
        reserved = self.reserved
        for base, end, nid, _ in merged([(*entry[:3], 0) for entry in self.memory.regions]):
            reserved.change(base, end, nid=nid)

    def is_reserved(self, base: int, size: int = 1) -> bool:
        """Whether any of the range is taken. C: memblock_is_region_reserved()."""
        return self.reserved.overlaps(base, base + size)

    def reserved_kern_size(
        self, limit: int | None = None, nid: int = NUMA_NO_NODE, *, with_hugetlb: bool = False
    ) -> int:
        """Bytes that the kernel itself allocated below `limit` (on `nid`).

        C: memblock_reserved_kern_size(). The base of KHO's scratch size; `with_hugetlb` as
        releases before 7.3 reckon.
        """
        total = 0
        for base, end, region_nid, flags in self.reserved.regions:
            if limit is not None and base > limit:
                break
            if not flags & _RSRV_KERN or (flags & _RSRV_HUGETLB and not with_hugetlb):
                continue
            if nid in (NUMA_NO_NODE, region_nid):
                total += (end if limit is None else min(end, limit)) - base
        return total

    # Searching and allocating.

    def free_ranges(self, nid: int | None = None, *, marks: int = 0) -> list[tuple[int, int, int]]:
        """Memory that is not reserved as (base, end, nid), ascending.

        C: for_each_free_mem_range(). It has all `marks`; memory without a kernel mapping (NOMAP)
        is left out.
        """
        reserved = self.reserved
        taken = reserved.regions
        found: list[tuple[int, int, int]] = []
        for base, end, region_nid, flags in self.memory.regions:
            if flags & (_NOMAP | marks) != marks or nid not in (None, region_nid):
                continue
            at = base
            for first, last, _, _ in taken[reserved.first_beyond(at) : bisect_left(taken, (end,))]:
                if at < first:
                    found.append((at, first, region_nid))
                at = last
            if at < end:
                found.append((at, end, region_nid))
        return found

    def free_pages(self) -> Sequence[tuple[int, int] | Extents]:
        """Whole pages of `free_ranges` as (frame, pages), many short runs at once."""
        if self._scattered is None:
            ranges = self.free_ranges()
            pages = [(-(-base >> PAGE_SHIFT), end >> PAGE_SHIFT) for base, end, _ in ranges]
            return [(start, stop - start) for start, stop in pages if start < stop]
        return list(self._free_extents(self._scattered))

    def _free_extents(self, scattered: Extents) -> Iterator[Extents]:
        for region in self.memory:
            if region.flags & _NOMAP:
                continue
            listed = self._reserved.within(region.base, region.end)
            first = np.searchsorted(scattered.ends << PAGE_SHIFT, region.base, "right")
            last = np.searchsorted(scattered.pfns << PAGE_SHIFT, region.end, "left")
            bases = [region.base, *(taken.base for taken in listed), region.end]
            ends = [region.base, *(taken.end for taken in listed), region.end]
            at = np.searchsorted(bases[1:-1], scattered.pfns[first:last] << PAGE_SHIFT) + 1
            taken = np.insert(bases, at, scattered.pfns[first:last] << PAGE_SHIFT)
            until = np.insert(ends, at, scattered.ends[first:last] << PAGE_SHIFT)
            starts = -(-until[:-1] >> PAGE_SHIFT)
            counts = (taken[1:] >> PAGE_SHIFT) - starts
            yield Extents(starts[counts > 0], counts[counts > 0])

    def find_in_range(
        self, size: int, align: int, start: int = 0, end: int | None = None, nid: int = NUMA_NO_NODE
    ) -> int | None:
        """The highest aligned free address, or None. C: memblock_find_in_range_node()."""
        start = max(start, _LOWEST)
        end = self.current_limit if end is None else min(end, self.current_limit)
        marks = _KHO_SCRATCH if self.kho_scratch_only else 0
        taken = self.reserved.regions
        for base, stop, region_nid, flags in reversed(self.memory.regions):
            if base >= end or nid not in (NUMA_NO_NODE, region_nid):
                continue
            if flags & (_NOMAP | marks) != marks:
                continue
            low, high = max(base, start), min(stop, end)
            at = bisect_left(taken, (high,)) - 1
            while at >= 0 and taken[at][1] > low:
                found = (high - size) & -align
                if found >= taken[at][1] < high:
                    return found
                high = taken[at][0]
                at -= 1
            found = (high - size) & -align
            if found >= low < high:
                return found
        return None

    def alloc_range(
        self,
        size: int,
        align: int,
        start: int = 0,
        end: int | None = None,
        nid: int = NUMA_NO_NODE,
        *,
        exact_nid: bool = False,
        flags: int = _RSRV_KERN,
    ) -> int:
        """Allocate from the top down; returns the physical address.

        Another node serves when `nid` is full unless `exact_nid`. C: memblock_alloc_range_nid().

        Raises:
            NoMemory: no free range of that size and alignment.
        """
        found = self.find_in_range(size, align, start, end, nid)
        if found is None and nid != NUMA_NO_NODE and not exact_nid:
            found = self.find_in_range(size, align, start, end)
        if found is None:
            raise NoMemory("memblock has no such range", size=size, align=align, nid=nid)
        self._reserved.add(found, found + size, nid, int(flags))
        return found

    def alloc_hugetlb(
        self, size: int, nr: int, nid: int, avoid: RangeSet | None = None
    ) -> list[tuple[int, int]]:
        """Up to `nr` naturally aligned pages of `size` bytes on exactly `nid`.

        Returns runs (address, number of pages), highest first, as single top-down allocations
        would have given them; fewer than `nr` pages when the node has no more room. `avoid`
        holds KHO's real scratch areas (bytes): a page there could not be preserved later, so
        hugetlb passes them over, while it may use scratch that was extended for this boot.
        """
        runs: list[tuple[int, int]] = []
        marks = _KHO_SCRATCH if self.kho_scratch_only else 0
        for low, high, _ in reversed(self.free_ranges(nid, marks=marks)):
            for base, end in _outside(avoid, max(low, _LOWEST), min(high, self.current_limit)):
                first, last = -(-base // size), end // size
                take = min(nr, last - first)
                if take > 0:
                    runs.append(((last - take) * size, take))
                    nr -= take
        flags = _RSRV_KERN | _RSRV_HUGETLB
        for address, count in runs:
            self.reserved.add(address, address + count * size, nid, flags)
        return runs


def _outside(avoid: RangeSet | None, low: int, high: int) -> list[tuple[int, int]]:
    if not avoid:
        return [(low, high)]
    return list(avoid.gaps(low, high))[::-1]


def validate_memblock(memblock: Memblock) -> None:
    """Regions are sorted, disjoint, not empty, and equal neighbours are merged.

    Raises:
        ModelBug: they are not.
    """
    for name, regions in (("memory", memblock.memory), ("reserved", memblock.reserved)):
        last: Region | None = None
        for region in regions:
            if region.base >= region.end:
                raise ModelBug(f"memblock.{name}: empty region {region}")
            if last and last.end > region.base:
                raise ModelBug(f"memblock.{name}: {last} and {region} overlap")
            if last and last.end == region.base and last[2:] == region[2:]:
                raise ModelBug(f"memblock.{name}: {last} and {region} should be one")
            last = region
