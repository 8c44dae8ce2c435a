"""Sorted memory regions with a node and flags, as memblock keeps them.

Reproduces the list handling of Linux 7.3's mm/memblock.c (struct memblock_type): adding never
changes what is there already, equal neighbours become one. Addresses and sizes are bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import Final, NamedTuple

from kernelmodel.errors import ModelBug

__all__ = ["NUMA_NO_NODE", "MemblockFlags", "Region", "RegionList", "validate_regions"]

NUMA_NO_NODE: Final = -1


class MemblockFlags(IntFlag):
    """Marks on a region. C: enum memblock_flags."""

    NONE = 0
    HOTPLUG = 0x1
    MIRROR = 0x2
    NOMAP = 0x4
    DRIVER_MANAGED = 0x8
    RSRV_NOINIT = 0x10
    RSRV_KERN = 0x20
    KHO_SCRATCH = 0x40
    RSRV_HUGETLB = 0x80


class Region(NamedTuple):
    """[base, end) in bytes, its node (or NUMA_NO_NODE) and its flags."""

    base: int
    end: int
    nid: int
    flags: int

    @property
    def size(self) -> int:
        """Bytes in the region."""
        return self.end - self.base


#: A region as a list holds it; a plain tuple is made and taken apart faster than a `Region`.
#: `(base,)` sorts just before one that begins at `base`, so no bisection needs a key function.
_Entry = tuple[int, int, int, int]


def _merged(pieces: list[_Entry]) -> list[_Entry]:
    """The same, ascending regions, equal neighbours as one."""
    out = pieces[:1]
    for piece in pieces[1:]:
        base, end, nid, flags = out[-1]
        if end == piece[0] and nid == piece[2] and flags == piece[3]:
            out[-1] = base, piece[1], nid, flags
        else:
            out.append(piece)
    return out


class RegionList:
    """Sorted, disjoint regions; equal neighbours are merged. C: struct memblock_type."""

    __slots__ = ("regions",)

    def __init__(self) -> None:
        #: Every region as (base, end, nid, flags), for those who look at many; not to be changed.
        self.regions: list[_Entry] = []

    def __iter__(self) -> Iterator[Region]:
        return map(Region._make, self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def total(self) -> int:
        """Bytes in all regions."""
        return sum(end - base for base, end, _, _ in self.regions)

    def first_beyond(self, base: int) -> int:
        """Index of the first region that ends after `base`."""
        at = bisect_left(self.regions, (base,))
        return at - 1 if at and self.regions[at - 1][1] > base else at

    def add(self, base: int, end: int, nid: int, flags: int) -> None:
        """Add [base, end); parts that are there already keep what they have.

        C: memblock_add_range().
        """
        if base >= end:
            return
        regions = self.regions
        low = bisect_left(regions, (base,))
        if low and regions[low - 1][1] >= base:
            low -= 1
        elif low == len(regions) or regions[low][0] > end:  # it touches none
            regions.insert(low, (base, end, nid, flags))
            return
        elif regions[low] == (end, regions[low][1], nid, flags):  # one grows downwards
            regions[low] = (base, regions[low][1], nid, flags)
            return
        high = bisect_left(regions, (end + 1,), low)
        pieces: list[_Entry] = []
        at = base
        for region in regions[low:high]:
            if at < region[0]:
                pieces.append((at, region[0], nid, flags))
            pieces.append(region)
            at = region[1]
        if at < end:
            pieces.append((at, end, nid, flags))
        regions[low:high] = _merged(pieces)

    def add_all(self, ranges: Iterable[tuple[int, int]], flags: int) -> None:
        """Add these ranges (base, end), and set flags on all that is there of them."""
        for base, end in ranges:
            self.add(base, end, NUMA_NO_NODE, 0)
            self.change(base, end, on=flags)

    def remove(self, base: int, end: int) -> None:
        """Take [base, end) out, whatever of it is there. C: memblock_remove_range()."""
        low = self.first_beyond(base)
        high = bisect_left(self.regions, (end,))
        pieces: list[_Entry] = []
        for first, last, nid, flags in self.regions[low:high]:
            if first < base:
                pieces.append((first, base, nid, flags))
            if last > end:
                pieces.append((end, last, nid, flags))
        self.regions[low:high] = pieces

    def change(self, base: int, end: int, *, on: int = 0, nid: int | None = None) -> None:
        """Set flags and give a node, on whatever of [base, end) is there.

        C: memblock_setclr_flag(), memblock_set_node().
        """
        if base >= end:
            return
        regions = self.regions
        low = bisect_left(regions, (base,))
        if low and regions[low - 1][1] >= base:
            low -= 1
        high = bisect_left(regions, (end + 1,), low)
        if low == high:
            return
        pieces: list[_Entry] = []
        for region in regions[low:high]:
            first, last, was, flags = region
            if last <= base or end <= first:  # a neighbour, which the changed may come to equal
                pieces.append(region)
                continue
            if first < base:
                pieces.append((first, base, was, flags))
                first = base
            node, changed = was if nid is None else nid, flags | on
            if end < last:
                pieces.append((first, end, node, changed))
                pieces.append((end, last, was, flags))
            else:
                pieces.append((first, last, node, changed))
        regions[low:high] = _merged(pieces)

    def change_nodes(self, of: Iterable[_Entry]) -> None:
        """Give everything the node of that one of these regions in which it lies."""
        for base, end, nid, _ in of:
            self.change(base, end, nid=nid)

    def overlaps(self, base: int, end: int) -> bool:
        """Whether any of [base, end) is there."""
        at = bisect_left(self.regions, (end,))
        return at > 0 and self.regions[at - 1][1] > base and base < end

    def within(self, base: int, end: int) -> list[Region]:
        """The parts of regions that lie in [base, end), ascending."""
        at, high = self.first_beyond(base), bisect_left(self.regions, (end,))
        return [
            Region(max(first, base), min(last, end), nid, flags)
            for first, last, nid, flags in self.regions[at:high]
        ]


def validate_regions(name: str, regions: RegionList) -> None:
    """Regions are sorted, disjoint, not empty, and equal neighbours are merged.

    Raises:
        ModelBug: they are not.
    """
    last: Region | None = None
    for region in regions:
        if region.base >= region.end:
            raise ModelBug(f"memblock.{name}: empty region {region}")
        if last and last.end > region.base:
            raise ModelBug(f"memblock.{name}: {last} and {region} overlap")
        if last and last.end == region.base and last[2:] == region[2:]:
            raise ModelBug(f"memblock.{name}: {last} and {region} should be one")
        last = region
