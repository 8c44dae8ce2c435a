"""Nodes and zones: where the page allocator keeps what is free.

Reproduces Linux 7.3's include/linux/mmzone.h on x86: each node has up to three zones, cut at
16 MiB and 4 GiB, and each zone has free lists by order (`free_area`).

Two migrate types are told apart: CMA, which KHO gives its scratch areas so that only movable
pages go there, and everything else.

Simplification, *no pageblock stealing*: unmovable, reclaimable and movable share one set of free
lists. A test that provokes external fragmentation by mixing them would notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from kernelmodel.errors import ModelBug
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.free_area import (
    MAX_ORDER_NR_PAGES,
    MAX_PAGE_ORDER,
    FreeArea,
    validate_free_area,
)
from kernelmodel.mm.ranges import RangeSet

__all__ = [
    "MAX_ORDER_NR_PAGES",
    "MAX_PAGE_ORDER",
    "FreeArea",
    "Layout",
    "MigrateType",
    "Node",
    "Zone",
    "ZoneType",
    "layout_of",
    "validate_zone",
]


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
_ABOVE_DMA32: Final = ZONE_BOUNDS[-1][2]
_PAGES_PER_SECTION: Final = 1 << 15


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
        #: What is free, by migrate type; that of CMA once the zone has such pages.
        self.areas = [FreeArea()]

    @property
    def nr_free_pages(self) -> int:
        """Free pages, CMA included."""
        return sum([area.nr_free_pages for area in self.areas])

    def set_cma(self, start: int, end: int) -> FreeArea:
        """Make these pages CMA; where they are kept when they are free."""
        self.cma.add(start, end)
        if len(self.areas) == 1:
            self.areas.append(FreeArea())
        return self.areas[MigrateType.CMA]

    def buddyinfo(self) -> str:
        """The zone's line in /proc/buddyinfo."""
        counts = (sum(area.nr_free(n) for area in self.areas) for n in range(MAX_PAGE_ORDER + 1))
        numbers = "".join(f"{count:6d} " for count in counts)
        return f"Node {self.nid}, zone {self.name:>8} {numbers}\n"


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Where a node has memory, and its zones as (name, first page frame, the one after it)."""

    nid: int
    #: Page frames that exist. C: node_present_pages.
    present_pages: int
    #: Those whose struct pages boot does not defer: below Normal, and a section of the last zone.
    #: C: defer_init().
    early_pages: int
    spans: RangeSet
    zones: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes of a memory map, and every stretch of page frames in one zone, ascending.

    A stretch is [starts[n], ends[n]); it lies on the node and in its zone of number zone_of[n].
    """

    nodes: tuple[NodeLayout, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    zone_of: tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)  # a fleet's hosts have few memory maps
def layout_of(memory: tuple[tuple[int, int, int], ...]) -> Layout:
    """Nodes and zones of a memory map of (first page frame, pages, node)."""
    spans: dict[int, RangeSet] = {}
    for start, nr_pages, nid in memory:
        spans.setdefault(nid, RangeSet()).add(start, start + nr_pages)
    nodes: list[NodeLayout] = []
    stretches: list[tuple[int, int, tuple[int, int]]] = []
    for nid in sorted(spans):
        zones: list[tuple[str, int, int]] = []
        for _, name, low, high in ZONE_BOUNDS:
            parts = spans[nid].within(low, high)
            stretches += [(start, end, (nid, len(zones))) for start, end in parts]
            if parts:
                zones.append((name, parts[0][0], parts[-1][1]))
        present, early = spans[nid].total, _PAGES_PER_SECTION
        if zones[-1][2] > _ABOVE_DMA32:
            early += sum(high - low for low, high in spans[nid].within(0, _ABOVE_DMA32))
        early = min(present, early)
        nodes.append(NodeLayout(nid, present, early, spans[nid], tuple(zones)))
    starts, ends, zone_of = zip(*sorted(stretches), strict=True) if stretches else ((), (), ())
    return Layout(tuple(nodes), starts, ends, zone_of)


class Node:
    """A NUMA node: its zones, lowest first. C: struct pglist_data."""

    __slots__ = ("layout", "nid", "spans", "zones")

    def __init__(self, layout: NodeLayout) -> None:
        self.layout = layout
        self.nid = layout.nid
        #: Page frames that belong to the node; not to be changed.
        self.spans = layout.spans
        self.zones = [Zone(self.nid, name, start, end) for name, start, end in layout.zones]

    def settle_kernel(self) -> None:
        """The kernel, as it comes up, takes pages of its own from the first block of all.

        Its slabs, stacks and page tables are neither modelled nor counted, but they never move: no
        run-time gigantic page lies around them. Smaller free blocks are too few to hold them.
        """
        for zone in reversed(self.zones):
            area = zone.areas[MigrateType.OTHER]
            first = area.top.lowest()
            if first is not None:
                area.kernels_own = first[0]
                return


def validate_zone(zone: Zone) -> None:
    """Free blocks are aligned, inside their zone, disjoint, of their migrate type, and merged.

    Raises:
        ModelBug: they are not.
    """
    seen = RangeSet()
    total = 0
    for kind, area in zip(MigrateType, zone.areas, strict=False):
        validate_free_area(area)
        for start, end in area.ranges():
            cma = zone.cma.contains(start, end)
            if cma != (kind is MigrateType.CMA) or (not cma and zone.cma.overlaps(start, end)):
                raise ModelBug(f"free range {start:#x}-{end:#x} has the wrong migrate type")
            if start < zone.start_pfn or end > zone.end_pfn:
                raise ModelBug(f"free range {start:#x}-{end:#x} leaves zone {zone.name}")
            seen.add(start, end)
            total += end - start
    if seen.total != total:
        raise ModelBug(f"zone {zone.name}: {total - seen.total} pages are free twice")
    if total > zone.managed:
        raise ModelBug(f"zone {zone.name}: {total} free of {zone.managed} managed pages")
