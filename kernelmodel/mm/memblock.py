"""Memory before the page allocator: which ranges exist, and which are taken.

Reproduces Linux 7.3's mm/memblock.c as far as boot, KHO and hugetlb see it. Two sorted lists of
regions: `memory` (what the firmware map gives, with node and marks) and `reserved` (what nobody
may allocate, with the reason as flags). An allocation searches the memory that is not reserved
from the top down and reserves what it finds.

What is searched are plain ranges, of what is free and of what is marked as scratch; the lists are
made from that and from what was reserved, and why, once somebody looks at them.

Happy path: `add` memory, `reserve` image and handover, `alloc_range` what early boot wants,
then `free_ranges` feed the page allocator.

Unhappy path: no room is NoMemory. While `kho_scratch_only` holds, everything but memory marked
as KHO scratch counts as taken, because what lies in it has not been read from the handover yet.

All addresses and sizes here are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np

from kernelmodel.errors import NoMemory
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.memblock_regions import (
    NUMA_NO_NODE,
    MemblockFlags,
    RegionList,
    validate_regions,
)
from kernelmodel.mm.ranges import RangeSet

__all__ = ["NUMA_NO_NODE", "Memblock", "MemblockFlags", "validate_memblock"]

#: Page zero is never allocated, so that address 0 can mean failure.
_LOWEST: Final = 4096
# Plain integers for the hot paths: arithmetic on IntFlag members costs microseconds.
_RSRV_NOINIT: Final = int(MemblockFlags.RSRV_NOINIT)
_RSRV_KERN: Final = int(MemblockFlags.RSRV_KERN)
_KHO_SCRATCH: Final = int(MemblockFlags.KHO_SCRATCH)
_RSRV_HUGETLB: Final = int(MemblockFlags.RSRV_HUGETLB)


class Memblock:
    """The boot-time allocator of one kernel. C: struct memblock."""

    __slots__ = (
        "_free",
        "_later",
        "_memory",
        "_ram",
        "_reserved",
        "_scattered",
        "_scratch",
        "current_limit",
        "kho_scratch_only",
    )

    def __init__(self) -> None:
        #: Memory without marks; with them, if anybody asked since they changed.
        self._ram = RegionList()
        self._memory: RegionList | None = None
        #: Memory that is not reserved, and addresses that are marked as scratch.
        self._free = RangeSet()
        self._scratch = RangeSet()
        #: The list of what is reserved, and what has yet to be done to it.
        self._reserved = RegionList()
        self._later: list[partial[None]] = []
        #: Reserved pages besides, which lie scattered, until somebody wants a list of them.
        self._scattered: Extents | None = None
        #: Allocations that name no end stay below this. C: memblock.current_limit.
        self.current_limit = 1 << 52
        self.kho_scratch_only = False

    # What exists.

    @property
    def memory(self) -> RegionList:
        """Everything that exists."""
        memory = self._memory
        if memory is None:
            memory = self._memory = RegionList()
            for base, end, nid, _ in self._ram.regions:
                for low, high in self._scratch.within(base, end):
                    if base < low:
                        memory.regions.append((base, low, nid, 0))
                    memory.regions.append((low, high, nid, _KHO_SCRATCH))
                    base = high  # noqa: PLW2901 - the rest of it
                if base < end:
                    memory.regions.append((base, end, nid, 0))
        return memory

    def add(self, base: int, size: int, nid: int = 0) -> None:
        """Memory that exists. C: memblock_add_node()."""
        self._ram.add(base, base + size, nid, 0)
        self._memory = None
        self._free.add(base, base + size)
        if self._later or self._reserved.regions:
            for region in self.reserved.within(base, base + size):
                self._free.remove(region.base, region.end)

    def mark_kho_scratch(self, base: int, size: int) -> None:
        """Let scratch-only allocations use this memory. C: memblock_mark_kho_scratch()."""
        self._scratch.add(base, base + size)
        self._memory = None

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
        self._list_scattered()
        for change in self._later:
            change()
        self._later.clear()
        return self._reserved

    def _list_scattered(self) -> None:
        scattered, self._scattered = self._scattered, None
        if scattered is not None:
            starts, ends = scattered.pfns << PAGE_SHIFT, scattered.ends << PAGE_SHIFT
            self.reserve_noinit(list(zip(starts.tolist(), ends.tolist(), strict=True)))

    def _then(self, change: partial[None]) -> None:
        """Do this to the list of what is reserved, after all that came before."""
        self._list_scattered()
        self._later.append(change)

    def reserve_noinit(self, ranges: Sequence[tuple[int, int]]) -> None:
        """`reserve` and `mark_noinit` for each of these ranges (base, end)."""
        for base, end in ranges:
            self._free.remove(base, end)
        self._then(partial(self._reserved.add_all, ranges, _RSRV_NOINIT))

    def reserve_noinit_pages(self, pages: Extents) -> None:
        """`reserve_noinit` for runs of pages, which ascend and do not touch."""
        starts, ends = pages.pfns << PAGE_SHIFT, pages.ends << PAGE_SHIFT
        apart = np.ones(len(pages), dtype=np.bool_)
        # what touches one that is taken is for the list to sort out
        for base, end, _, _ in self.reserved.regions:
            first = np.searchsorted(ends, base, "left")
            apart[first : np.searchsorted(starts, end, "right")] = False
        near = zip(starts[~apart].tolist(), ends[~apart].tolist(), strict=True)
        self.reserve_noinit(list(near))
        self._scattered = Extents(pages.pfns[apart], pages.counts[apart])

    def reserve(self, base: int, size: int, nid: int = NUMA_NO_NODE, flags: int = 0) -> None:
        """Take a range; parts already taken keep their reason. C: memblock_reserve()."""
        self._free.remove(base, base + size)
        self._then(partial(self._reserved.add, base, base + size, nid, int(flags)))

    def mark_noinit(self, base: int, size: int) -> None:
        """Tell boot to leave the page structures of a taken range alone.

        C: memblock_reserved_mark_noinit().
        """
        self._then(partial(self._reserved.change, base, base + size, on=_RSRV_NOINIT))

    def free(self, base: int, size: int) -> None:
        """Give a range back. C: memblock_phys_free()."""
        self._then(partial(self._reserved.remove, base, base + size))
        for region in self._ram.within(base, base + size):
            self._free.add(region.base, region.end)

    def set_reserved_nodes(self) -> None:
        """Record for everything that is taken by now on which node it lies.

        Done once, when the nodes become known: kernel image, initrd and page tables count for
        their node from then on, what is allocated later for the node that was asked for.
        C: numa_clear_kernel_node_hotplug().
        """
        self._then(partial(self._reserved.change_nodes, tuple(self._ram.regions)))

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

    def free_ranges(self, nid: int | None = None) -> list[tuple[int, int, int]]:
        """Memory that is free as (base, end, nid), ascending. C: for_each_free_mem_range()."""
        self._list_scattered()
        return [
            (low, high, region_nid)
            for base, end, region_nid, _ in self.memory.regions
            if nid is None or nid == region_nid
            for low, high in self._free.within(base, end)
        ]

    def _from_the_top(self, nid: int) -> Iterator[tuple[int, int]]:
        """What may be allocated (on `nid`), highest first. C: for_each_free_mem_range_reverse()."""
        self._list_scattered()
        marks = _KHO_SCRATCH if self.kho_scratch_only else 0
        for base, end, region_nid, flags in reversed(self.memory.regions):
            if flags & marks == marks and nid in (NUMA_NO_NODE, region_nid):
                yield from reversed(self._free.within(base, end))

    def free_pages(self) -> list[tuple[int, int]]:
        """Whole pages of `free_ranges` as (frame, pages), unless `free_extents` has them."""
        if self._scattered is not None:
            return []
        return [
            (start, stop - start)
            for base, end, _ in self.free_ranges()
            if (start := -(-base >> PAGE_SHIFT)) < (stop := end >> PAGE_SHIFT)
        ]

    def free_extents(self) -> list[Extents]:
        """As `free_pages`, many short runs at once, where reserved pages lie scattered."""
        if self._scattered is None:
            return []
        return [
            self._scattered.between(
                (-(-low >> PAGE_SHIFT), high >> PAGE_SHIFT)
                for low, high in self._free.within(base, end)
            )
            for base, end, _, _ in self.memory.regions
        ]

    def find_in_range(
        self, size: int, align: int, start: int = 0, end: int | None = None, nid: int = NUMA_NO_NODE
    ) -> int | None:
        """The highest aligned free address, or None. C: memblock_find_in_range_node()."""
        start = max(start, _LOWEST)
        end = self.current_limit if end is None else min(end, self.current_limit)
        for low, high in self._from_the_top(nid):
            found = min(high, end) - size & -align
            if found >= low and found >= start:
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
        self.reserve(found, size, nid, _RSRV_KERN)
        return found

    def alloc_hugetlb(
        self, size: int, nr: int, nid: int, avoid: Iterable[tuple[int, int]] = ()
    ) -> list[tuple[int, int]]:
        """Up to `nr` naturally aligned pages of `size` bytes on exactly `nid`, as `alloc_runs`.

        `avoid` are KHO's real scratch areas (base, end): a page there could not be preserved later,
        so hugetlb passes them over, while it may use scratch that was extended for this boot.
        """
        return self.alloc_runs(size, nr, size, nid, avoid, _RSRV_KERN | _RSRV_HUGETLB)

    def alloc_runs(
        self,
        size: int,
        nr: int,
        align: int,
        nid: int,
        avoid: Iterable[tuple[int, int]] = (),
        flags: int = _RSRV_KERN,
    ) -> list[tuple[int, int]]:
        """Up to `nr` times `size` bytes, a multiple of `align`, on exactly `nid`.

        Returns runs (address, number), highest first, as single top-down allocations would have
        given them; fewer than `nr` when the node has no more room.
        """
        runs: list[tuple[int, int]] = []
        taken = RangeSet(avoid)
        for low, high in self._from_the_top(nid):
            parts = taken.gaps(max(low, _LOWEST), min(high, self.current_limit))
            for base, end in reversed(parts):
                top = end & -align
                take = min(nr, (top - base) // size)
                if take > 0:
                    runs.append((top - take * size, take))
                    nr -= take
            if not nr:
                break
        for address, count in runs:
            self.reserve(address, count * size, nid, flags)
        return runs


def validate_memblock(memblock: Memblock) -> None:
    """Regions are sorted, disjoint, not empty, and equal neighbours are merged.

    Raises:
        ModelBug: they are not.
    """
    validate_regions("memory", memblock.memory)
    validate_regions("reserved", memblock.reserved)
