"""Sorted memory regions with a node and flags, as memblock keeps them.

Reproduces the list handling of Linux 7.3's mm/memblock.c (struct memblock_type): adding never
changes what is there already, equal neighbours become one. Addresses and sizes are bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import Final, NamedTuple

__all__ = ["NUMA_NO_NODE", "MemblockFlags", "Region", "RegionList"]

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


# A region compares like the tuple that it is, so `(base,)` sorts just before one that begins at
# `base`: no key function has to be called at each step of a bisection.


def _first_beyond(regions: list[Region], base: int) -> int:
    """Index of the first region that ends after `base`."""
    at = bisect_left(regions, (base,))
    return at - 1 if at and regions[at - 1].end > base else at


def _first_from(regions: list[Region], base: int) -> int:
    """Index of the first region that ends at `base` or after it."""
    at = bisect_left(regions, (base,))
    return at - 1 if at and regions[at - 1].end >= base else at


def _merged(regions: Iterable[Region]) -> list[Region]:
    out: list[Region] = []
    for region in regions:
        last = out[-1] if out else None
        if last and last.end == region.base and last[2:] == region[2:]:
            out[-1] = Region(last.base, region.end, region.nid, region.flags)
        else:
            out.append(region)
    return out


class RegionList:
    """Sorted, disjoint regions; equal neighbours are merged. C: struct memblock_type."""

    __slots__ = ("_regions",)

    def __init__(self) -> None:
        self._regions: list[Region] = []

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def __reversed__(self) -> Iterator[Region]:
        return reversed(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    @property
    def total(self) -> int:
        """Bytes in all regions."""
        return sum(region.end - region.base for region in self._regions)

    def add(self, base: int, end: int, nid: int, flags: int) -> None:
        """Add [base, end); parts that are there already keep what they have.

        C: memblock_add_range().
        """
        if base >= end:
            return
        low = _first_from(self._regions, base)
        high = bisect_left(self._regions, (end + 1,))
        pieces: list[Region] = []
        at = base
        for region in self._regions[low:high]:
            if at < region.base:
                pieces.append(Region(at, min(region.base, end), nid, flags))
            pieces.append(region)
            at = max(at, region.end)
        if at < end:
            pieces.append(Region(at, end, nid, flags))
        self._regions[low:high] = _merged(pieces)

    def remove(self, base: int, end: int) -> None:
        """Take [base, end) out, whatever of it is there. C: memblock_remove_range()."""
        low = _first_beyond(self._regions, base)
        high = bisect_left(self._regions, (end,))
        pieces: list[Region] = []
        for region in self._regions[low:high]:
            if region.base < base:
                pieces.append(region._replace(end=base))
            if region.end > end:
                pieces.append(region._replace(base=end))
        self._regions[low:high] = pieces

    def change(self, base: int, end: int, *, on: int = 0, off: int = 0) -> None:
        """Set and clear flags on whatever of [base, end) is there. C: memblock_setclr_flag()."""
        low = _first_from(self._regions, base)
        high = bisect_left(self._regions, (end + 1,))
        pieces: list[Region] = []
        for region in self._regions[low:high]:
            inner = max(region.base, base), min(region.end, end)
            if inner[0] >= inner[1]:
                pieces.append(region)
                continue
            if region.base < inner[0]:
                pieces.append(region._replace(end=inner[0]))
            pieces.append(Region(*inner, region.nid, region.flags & ~off | on))
            if inner[1] < region.end:
                pieces.append(region._replace(base=inner[1]))
        self._regions[low:high] = _merged(pieces)

    def set_node(self, base: int, end: int, nid: int) -> None:
        """Give whatever of [base, end) is there this node. C: memblock_set_node()."""
        for region in list(self.within(base, end)):
            self.remove(region.base, region.end)
            self.add(region.base, region.end, nid, region.flags)

    def within(self, base: int, end: int) -> Iterator[Region]:
        """The parts of regions that lie in [base, end), ascending."""
        at = _first_beyond(self._regions, base)
        while at < len(self._regions) and self._regions[at].base < end:
            region = self._regions[at]
            yield Region(max(region.base, base), min(region.end, end), region.nid, region.flags)
            at += 1

    def gaps_down(self, base: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [base, end) that no region covers, descending."""
        regions = self._regions
        at = bisect_left(regions, (end,)) - 1
        while at >= 0 and regions[at].end > base:
            if regions[at].end < end:
                yield regions[at].end, end
            end = regions[at].base
            at -= 1
        if base < end:
            yield base, end
