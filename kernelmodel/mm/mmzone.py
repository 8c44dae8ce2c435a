"""Nodes and zones: where the page allocator keeps what is free.

Reproduces Linux 7.3's include/linux/mmzone.h on x86: each node has up to three zones, cut at
16 MiB and 4 GiB, and each zone has free lists by order. Free memory is always held as the
largest aligned blocks that it can be cut into, so blocks of the largest order come in long runs
and are kept as one `RangeSet`; smaller ones are few and are kept in dicts, newest last.

Two migrate types are told apart: CMA, which KHO gives its scratch areas so that only movable
pages go there, and everything else.

Simplification, *no pageblock stealing*: unmovable, reclaimable and movable share one set of free
lists. A test that provokes external fragmentation by mixing them would notice.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from kernelmodel.mm.ranges import RangeSet

__all__ = [
    "MAX_ORDER_NR_PAGES",
    "MAX_PAGE_ORDER",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "FreeArea",
    "MigrateType",
    "Node",
    "Zone",
    "ZoneType",
]

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
MAX_PAGE_ORDER: Final = 10
MAX_ORDER_NR_PAGES: Final = 1 << MAX_PAGE_ORDER


class MigrateType(IntEnum):
    """What may be allocated from a block. C: enum migratetype, as far as modelled."""

    OTHER = 0
    CMA = 1


class ZoneType(IntEnum):
    """C: enum zone_type on x86-64."""

    DMA = 0
    DMA32 = 1
    NORMAL = 2


#: Zone, name in /proc, first page frame, first page frame after it.
ZONE_BOUNDS: Final[tuple[tuple[ZoneType, str, int, int], ...]] = (
    (ZoneType.DMA, "DMA", 0, (16 << 20) >> PAGE_SHIFT),
    (ZoneType.DMA32, "DMA32", (16 << 20) >> PAGE_SHIFT, (4 << 30) >> PAGE_SHIFT),
    (ZoneType.NORMAL, "Normal", (4 << 30) >> PAGE_SHIFT, 1 << 52),
)


class FreeArea:
    """The free blocks of one zone and migrate type. C: struct free_area, for all orders."""

    __slots__ = ("low", "top")

    def __init__(self) -> None:
        #: Free blocks of the largest order, as numbers (pfn >> MAX_PAGE_ORDER).
        self.top = RangeSet()
        #: Free blocks of each smaller order by first pfn; the newest is last and goes first.
        self.low: list[dict[int, None]] = [{} for _ in range(MAX_PAGE_ORDER)]

    @property
    def nr_free_pages(self) -> int:
        """Pages in all free blocks."""
        low = sum(len(blocks) << order for order, blocks in enumerate(self.low))
        return low + (self.top.total << MAX_PAGE_ORDER)

    def nr_free(self, order: int) -> int:
        """Free blocks of exactly this order."""
        return self.top.total if order == MAX_PAGE_ORDER else len(self.low[order])

    def nr_available(self, order: int) -> int:
        """Blocks of this order that could be allocated, larger ones being split.

        An order above MAX_PAGE_ORDER counts aligned stretches of largest blocks.
        """
        if order > MAX_PAGE_ORDER:
            shift = order - MAX_PAGE_ORDER
            return sum(max(0, (high >> shift) - (-(-low >> shift))) for low, high in self.top)
        total = self.top.total << (MAX_PAGE_ORDER - order)
        for higher in range(order, MAX_PAGE_ORDER):
            total += len(self.low[higher]) << (higher - order)
        return total


class Zone:
    """A zone of a node. Page frames throughout. C: struct zone."""

    __slots__ = ("areas", "cma", "end_pfn", "managed", "name", "nid", "protected", "start_pfn")

    def __init__(self, nid: int, name: str, start_pfn: int, end_pfn: int) -> None:
        self.nid = nid
        self.name = name
        self.start_pfn = start_pfn
        self.end_pfn = end_pfn
        #: Pages that the allocator was ever given.
        self.managed = 0
        #: Pages that allocations which could use a higher zone leave here. C: lowmem_reserve.
        self.protected = 0
        #: Pages whose pageblocks are MIGRATE_CMA.
        self.cma = RangeSet()
        self.areas = (FreeArea(), FreeArea())

    @property
    def nr_free_pages(self) -> int:
        """Free pages, CMA included."""
        return self.areas[0].nr_free_pages + self.areas[1].nr_free_pages


class Node:
    """A NUMA node: its zones, lowest first. C: struct pglist_data."""

    __slots__ = ("nid", "spans", "zones")

    def __init__(self, nid: int, spans: RangeSet) -> None:
        self.nid = nid
        #: Page frames that belong to the node.
        self.spans = spans
        self.zones: list[Zone] = []
        for _, name, start, end in ZONE_BOUNDS:
            parts = list(spans.within(start, end))
            if parts:
                self.zones.append(Zone(nid, name, parts[0][0], parts[-1][1]))
