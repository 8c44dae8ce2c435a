"""The page allocator: a buddy system over each zone.

Reproduces Linux 7.3's mm/page_alloc.c as far as its users can tell: blocks of 1 << order pages,
orders 0 to 10, split on allocation, merged with their buddies on free, found by walking the zones
of the wanted node and then of the others. Pages are runs all through: a host of 512 GiB that is
one free range is one entry here, and 200,000 huge pages are allocated as one run.

Happy path: `free_range` what memblock left over, then `alloc_pages` / `free_pages`, and
`alloc_bulk` / `free_run` for many at once, which give just what single calls would have.

Unhappy paths: no block is NoMemory; freeing what is free, or what was never here, is a ModelBug.

Simplifications, and what a test could notice:

- *No per-CPU lists*: order-0 pages merge at once; buddyinfo shows none missing.
- *Largest blocks go lowest address first*, as after boot; the kernel takes the newest first.
- *No reclaim, compaction, migration or OOM killer*: NoMemory comes as soon as no block is free. The
  kernel ends processes before it tells who fills a memfd ENOMEM, and panics if there is none.
- *CMA last*: movable pages enter CMA blocks when the rest of the zone is used up; the kernel
  balances the two once more than half of the free memory is CMA.
- *No watermarks* beyond `protected`, which keeps low zones for those who need them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from kernelmodel.errors import ModelBug, NoMemory
from kernelmodel.mm.mmzone import (
    MAX_ORDER_NR_PAGES,
    MAX_PAGE_ORDER,
    FreeArea,
    MigrateType,
    Node,
    Zone,
    layout_of,
    validate_zone,
)
from kernelmodel.mm.ranges import RangeSet

__all__ = ["LOWMEM_RESERVE_RATIO", "PageAllocator", "validate_page_alloc"]

#: A low zone keeps 1/256 of what lies in the zones above it. C: sysctl_lowmem_reserve_ratio.
LOWMEM_RESERVE_RATIO: Final = 256


class _Zonelists(dict[tuple[int, bool], list[Zone]]):
    """Which zones may serve, by node, and by whether its own alone may; made as they are asked for.

    Each node's zones from the highest down, then those of the nodes after it in a ring.
    """

    def __init__(self, nodes: dict[int, Node]) -> None:
        self._nodes = nodes

    def __missing__(self, key: tuple[int, bool]) -> list[Zone]:
        nid, thisnode = key
        if nid not in self._nodes:
            raise ModelBug(f"node {nid} does not exist")
        ring = [nid] if thisnode else sorted(self._nodes, key=lambda other: (other < nid, other))
        zones = [zone for other in ring for zone in self._nodes[other].zones[::-1]]
        self[key] = zones
        return zones


#: Page frames [start, end) of one zone and migrate type, and what keeps those that are free.
_Stretch = tuple[int, int, Zone, FreeArea]


class PageAllocator:
    """The page allocator of one kernel.

    `memory` gives every (start_pfn, nr_pages, nid) that exists; nothing is free to begin with.
    """

    __slots__ = ("_stretches", "_zonelists", "nodes")

    def __init__(self, memory: Iterable[tuple[int, int, int]]) -> None:
        layout = layout_of(tuple(memory))
        self.nodes: dict[int, Node] = {node.nid: Node(node) for node in layout.nodes}
        self._zonelists = _Zonelists(self.nodes)
        #: All page frames that exist, ascending. `(pfn + 1,)` sorts behind the stretch of `pfn`.
        self._stretches: list[_Stretch] = []
        for start, end, (nid, at) in zip(layout.starts, layout.ends, layout.zone_of, strict=True):
            zone = self.nodes[nid].zones[at]
            self._stretches.append((start, end, zone, zone.areas[MigrateType.OTHER]))

    # Setting up.

    def set_cma(self, start_pfn: int, nr_pages: int) -> None:
        """Make pageblocks CMA before any of them is freed. C: init_pageblock_migratetype().

        Raises:
            ModelBug: not cut at largest-order blocks, as scratch areas always are.
        """
        if start_pfn % MAX_ORDER_NR_PAGES or nr_pages % MAX_ORDER_NR_PAGES:
            raise ModelBug(f"CMA range {start_pfn:#x}+{nr_pages:#x} cuts a largest-order block")
        for start, end, zone, area in self._within(start_pfn, start_pfn + nr_pages):
            if area.free_page_in(start, end) is not None:
                raise ModelBug(f"CMA range {start:#x}-{end:#x} has free pages already")
            at = bisect_left(self._stretches, (start + 1,)) - 1
            low, high, _, _ = self._stretches[at]
            parts: list[_Stretch] = [(start, end, zone, zone.set_cma(start, end))]
            if low < start:
                parts.insert(0, (low, start, zone, area))
            if end < high:
                parts.append((end, high, zone, area))
            self._stretches[at : at + 1] = parts

    def free_range(self, start_pfn: int, nr_pages: int) -> None:
        """Hand over memory that the allocator never had. C: memblock_free_pages()."""
        for start, end, zone, area in self._within(start_pfn, start_pfn + nr_pages):
            zone.managed += end - start
            area.put_new(start, end)

    def adjust_managed(self, start_pfn: int, nr_pages: int) -> None:
        """Count pages as the allocator's own that are in use: no boot ever freed them to it.

        For pages restored from a handover and for gigantic boot pages, which may be freed like
        any other later. C: adjust_managed_page_count().
        """
        at = bisect_left(self._stretches, (start_pfn + 1,)) - 1
        _, end, zone, _ = self._stretches[at]
        if at >= 0 and start_pfn + nr_pages <= end:  # in one zone, as nearly always
            zone.managed += nr_pages
            return
        for start, stop, zone, _ in self._within(start_pfn, start_pfn + nr_pages):
            zone.managed += stop - start

    def setup_lowmem_reserve(self) -> None:
        """Protect low zones from those who need none. C: setup_per_zone_lowmem_reserve()."""
        for node in self.nodes.values():
            above = 0
            for zone in reversed(node.zones):
                zone.protected = above // LOWMEM_RESERVE_RATIO
                above += zone.managed

    # Allocating.

    def alloc_pages(
        self, order: int, nid: int = 0, *, movable: bool = False, thisnode: bool = False
    ) -> int:
        """One block of 1 << order pages; returns its first pfn. C: alloc_pages_node().

        Raises:
            NoMemory: no zone that may serve has such a block.
        """
        for zone in self._zonelists[nid, thisnode]:
            if zone.protected and zone.nr_free_pages - (1 << order) < zone.protected:
                continue
            pfn = zone.areas[0].take_one(order)
            if pfn is None and movable and len(zone.areas) > 1:
                pfn = zone.areas[MigrateType.CMA].take_one(order)
            if pfn is not None:
                return pfn
        raise NoMemory("no free block", order=order, nid=nid)

    def alloc_bulk(
        self, order: int, n: int, nid: int = 0, *, movable: bool = False
    ) -> list[tuple[int, int]]:
        """`n` blocks or none, as runs (first pfn, number of blocks).

        The same blocks in the same order as `n` calls of `alloc_pages`.

        Raises:
            NoMemory: fewer than `n` blocks are free.
        """
        runs, missing = self.alloc_upto(order, n, nid, movable=movable)
        if missing:
            for pfn, count in reversed(runs):
                self.free_run(pfn, count << order)
            raise NoMemory("too few free blocks", order=order, wanted=n, missing=missing, nid=nid)
        return runs

    def alloc_upto(
        self, order: int, n: int, nid: int = 0, *, movable: bool = False, thisnode: bool = False
    ) -> tuple[list[tuple[int, int]], int]:
        """As `alloc_bulk`, but keeps what there is; returns (runs, blocks missing)."""
        runs: list[tuple[int, int]] = []
        for zone in self._zonelists[nid, thisnode]:
            for area in zone.areas if movable else zone.areas[:1]:
                most = n
                if zone.protected:
                    most = min(n, max(0, zone.nr_free_pages - zone.protected) >> order)
                n -= most - area.take_many(order, most, runs)
                if not n:
                    return runs, 0
        return runs, n

    def alloc_contig(self, order: int, n: int, nid: int) -> tuple[list[tuple[int, int]], int]:
        """Up to `n` naturally aligned stretches of 1 << order pages on exactly this node.

        For orders above MAX_PAGE_ORDER, such as a 1 GiB huge page. Only ranges that are free
        already serve: see *no migration*. Returns (runs, stretches missing) as `alloc_upto`.
        C: alloc_contig_pages().
        """
        if order <= MAX_PAGE_ORDER:
            raise ModelBug(f"order {order} is the buddy allocator's own")
        runs: list[tuple[int, int]] = []
        for zone in self._zonelists[nid, True]:
            found = zone.areas[MigrateType.OTHER].take_contig(order, n)
            n -= sum(count for _, count in found)
            runs += found
        return runs, n

    def nr_available(self, order: int, nid: int) -> int:
        """Blocks of this order that unmovable allocations could get from exactly this node."""
        total = 0
        for zone in self._zonelists[nid, True]:
            room = zone.areas[MigrateType.OTHER].nr_available(order)
            if zone.protected and order <= MAX_PAGE_ORDER:
                room = min(room, max(0, zone.nr_free_pages - zone.protected) >> order)
            total += room
        return total

    # Freeing.

    def free_pages(self, pfn: int, order: int, *, new: bool = False) -> None:
        """Give one block back, or a `new` one, as `adjust_managed` counts it. C: __free_pages().

        Raises:
            ModelBug: a page of it is free already, or does not exist.
        """
        at = bisect_left(self._stretches, (pfn + 1,)) - 1
        _, end, zone, area = self._stretches[at]
        if order or at < 0 or pfn >= end:
            if new:
                self.adjust_managed(pfn, 1 << order)
            self.free_run(pfn, 1 << order)
            return
        if new:
            zone.managed += 1
        area.put_page(pfn)

    def free_run(self, pfn: int, nr_pages: int) -> None:
        """Give a run of pages back, however they were allocated.

        Raises:
            ModelBug: a page is free already, or does not exist.
        """
        for start, end, _, area in self._within(pfn, pfn + nr_pages):
            area.put(start, end)

    # Looking.

    def nr_free(self, order: int) -> int:
        """Free blocks of exactly this order."""
        return sum(area.nr_free(order) for zone in self.zones() for area in zone.areas)

    def nr_free_pages(self, nid: int | None = None) -> int:
        """Free pages, CMA included, on one node or all."""
        return sum(zone.nr_free_pages for zone in self.zones(nid))

    def nr_free_cma_pages(self) -> int:
        """Free pages in CMA blocks. C: NR_FREE_CMA_PAGES."""
        areas = [area for zone in self.zones() for area in zone.areas[MigrateType.CMA :]]
        return sum(area.nr_free_pages for area in areas)

    def managed_pages(self) -> int:
        """Pages that the allocator was ever given (MemTotal)."""
        return sum(zone.managed for zone in self.zones())

    def pfn_to_nid(self, pfn: int) -> int:
        """The node that a page frame belongs to.

        Raises:
            ModelBug: it does not exist.
        """
        for nid, node in self.nodes.items():
            if pfn in node.spans:
                return nid
        raise ModelBug(f"page frame {pfn:#x} does not exist")

    def pfn_valid(self, pfn: int, nr_pages: int = 1) -> bool:
        """Whether all of these page frames exist. C: pfn_to_online_page()."""
        found = sum(
            high - low
            for node in self.nodes.values()
            for low, high in node.spans.within(pfn, pfn + nr_pages)
        )
        return found == nr_pages

    def is_free(self, pfn: int, nr_pages: int = 1) -> bool:
        """Whether all of these page frames are free."""
        return all(
            area.nr_free_in(start, end) == end - start
            for start, end, _, area in self._within(pfn, pfn + nr_pages)
        )

    def any_free(self, pfn: int, nr_pages: int = 1) -> bool:
        """Whether any of these page frames is free."""
        return any(
            area.free_page_in(start, end) is not None
            for start, end, _, area in self._within(pfn, pfn + nr_pages)
        )

    def free_ranges(self) -> RangeSet:
        """Every free page frame. For checks: costs as much as there are fragments."""
        out = RangeSet()
        for zone in self.zones():
            for area in zone.areas:
                for start, end in area.ranges():
                    out.add(start, end)
        return out

    def buddyinfo(self) -> str:
        """As /proc/buddyinfo: free blocks by node, zone and order."""
        return "".join(zone.buddyinfo() for zone in self.zones())

    # Zones.

    def zones(self, nid: int | None = None) -> Iterator[Zone]:
        """The zones of one node or all, lowest first. C: for_each_zone()."""
        for node in self.nodes.values():
            if nid in (None, node.nid):
                yield from node.zones

    def _within(self, start: int, end: int) -> list[_Stretch]:
        """The stretches that make up a range of page frames, cut to it.

        Raises:
            ModelBug: part of it does not exist.
        """
        at = bisect_left(self._stretches, (start + 1,)) - 1
        low, high, zone, area = self._stretches[at]
        if low <= start < end <= high:  # one, as nearly always
            return [(start, end, zone, area)]
        parts: list[_Stretch] = []
        for low, high, zone, area in self._stretches[max(at, 0) :]:
            if start >= end:
                break
            if not low <= start < high:
                raise ModelBug(f"page frame {start:#x} and others before {end:#x} do not exist")
            parts.append((start, min(end, high), zone, area))
            start = high
        if start < end:
            raise ModelBug(f"page frame {start:#x} and others before {end:#x} do not exist")
        return parts


def validate_page_alloc(allocator: PageAllocator) -> None:
    """Every zone keeps the rules of `validate_zone`.

    Raises:
        ModelBug: one does not.
    """
    for zone in allocator.zones():
        validate_zone(zone)
