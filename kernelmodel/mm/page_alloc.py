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
- *No reclaim, compaction or migration*: NoMemory comes as soon as no block is free.
- *CMA last*: movable pages enter CMA blocks when the rest of the zone is used up; the kernel
  balances the two once more than half of the free memory is CMA.
- *No watermarks* beyond `protected`, which keeps low zones for those who need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from kernelmodel.errors import ModelBug, NoMemory
from kernelmodel.mm.mmzone import (
    MAX_ORDER_NR_PAGES,
    MAX_PAGE_ORDER,
    FreeArea,
    MigrateType,
    Node,
    Zone,
)
from kernelmodel.mm.ranges import RangeSet

__all__ = ["LOWMEM_RESERVE_RATIO", "PageAllocator", "validate_page_alloc"]

_LAST: Final = 1 << 60
#: A low zone keeps 1/256 of what lies in the zones above it. C: sysctl_lowmem_reserve_ratio.
LOWMEM_RESERVE_RATIO: Final = 256
#: Migrate types to try, by whether the page may be moved.
_KINDS: Final = {
    False: (MigrateType.OTHER,),
    True: (MigrateType.OTHER, MigrateType.CMA),
}


class PageAllocator:
    """The page allocator of one kernel.

    `memory` gives every (start_pfn, nr_pages, nid) that exists; nothing is free to begin with.
    """

    __slots__ = ("_zonelists", "nodes")

    def __init__(self, memory: Iterable[tuple[int, int, int]]) -> None:
        spans: dict[int, RangeSet] = {}
        for start, nr_pages, nid in memory:
            spans.setdefault(nid, RangeSet()).add(start, start + nr_pages)
        self.nodes: dict[int, Node] = {nid: Node(nid, spans[nid]) for nid in sorted(spans)}
        # Each node's zones from the highest down, then those of the nodes after it in a ring.
        order = list(self.nodes)
        self._zonelists: dict[int, tuple[Zone, ...]] = {
            nid: tuple(
                zone
                for other in order[at:] + order[:at]
                for zone in reversed(self.nodes[other].zones)
            )
            for at, nid in enumerate(order)
        }

    # Setting up.

    def set_cma(self, start_pfn: int, nr_pages: int) -> None:
        """Make pageblocks CMA before any of them is freed. C: init_pageblock_migratetype().

        Raises:
            ModelBug: not cut at largest-order blocks, as scratch areas always are.
        """
        if start_pfn % MAX_ORDER_NR_PAGES or nr_pages % MAX_ORDER_NR_PAGES:
            raise ModelBug(f"CMA range {start_pfn:#x}+{nr_pages:#x} cuts a largest-order block")
        for zone, start, end in self._by_zone(start_pfn, start_pfn + nr_pages):
            if _free_in(zone, start, end):
                raise ModelBug(f"CMA range {start:#x}-{end:#x} has free pages already")
            zone.cma.add(start, end)

    def free_range(self, start_pfn: int, nr_pages: int) -> None:
        """Hand over memory that the allocator never had. C: memblock_free_pages()."""
        for zone, start, end in self._by_zone(start_pfn, start_pfn + nr_pages):
            zone.managed += end - start
        self.free_run(start_pfn, nr_pages)

    def adjust_managed(self, start_pfn: int, nr_pages: int) -> None:
        """Count pages as the allocator's own that are in use: no boot ever freed them to it.

        For pages restored from a handover and for gigantic boot pages, which may be freed like
        any other later. C: adjust_managed_page_count().
        """
        for zone, start, end in self._by_zone(start_pfn, start_pfn + nr_pages):
            zone.managed += end - start

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
        for zone in self._zonelist(nid, thisnode):
            if zone.protected and zone.nr_free_pages - (1 << order) < zone.protected:
                continue
            for kind in _KINDS[movable]:
                pfn = _take_one(zone.areas[kind], order)
                if pfn is not None:
                    return pfn
        raise NoMemory("no free block", order=order, nid=nid)

    def alloc_bulk(
        self, order: int, n: int, nid: int = 0, *, movable: bool = False, thisnode: bool = False
    ) -> list[tuple[int, int]]:
        """`n` blocks or none, as runs (first pfn, number of blocks).

        The same blocks in the same order as `n` calls of `alloc_pages`.

        Raises:
            NoMemory: fewer than `n` blocks are free.
        """
        runs, missing = self.alloc_upto(order, n, nid, movable=movable, thisnode=thisnode)
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
        for area, room in self._candidates(order, nid, movable, thisnode):
            take = min(n, room)
            n -= take
            _take_many(area, order, take, runs)
            if not n:
                break
        return runs, n

    def alloc_contig(self, order: int, n: int, nid: int) -> tuple[list[tuple[int, int]], int]:
        """Up to `n` naturally aligned stretches of 1 << order pages on exactly this node.

        For orders above MAX_PAGE_ORDER, such as a 1 GiB huge page. Only ranges that are free
        already serve: see *no migration*. Returns (runs, stretches missing) as `alloc_upto`.
        C: alloc_contig_pages().
        """
        shift = order - MAX_PAGE_ORDER
        if shift <= 0:
            raise ModelBug(f"order {order} is the buddy allocator's own")
        runs: list[tuple[int, int]] = []
        for zone in self._zonelist(nid, thisnode=True):
            top = zone.areas[MigrateType.OTHER].top
            for low, high in top:
                first = -(-low >> shift)
                take = min(n, (high >> shift) - first)
                if take > 0:
                    top.remove(first << shift, (first + take) << shift)
                    runs.append((first << order, take))
                    n -= take
        return runs, n

    def nr_available(self, order: int, nid: int) -> int:
        """Blocks of this order that unmovable allocations could get from exactly this node."""
        total = 0
        for zone in self._zonelist(nid, thisnode=True):
            room = zone.areas[MigrateType.OTHER].nr_available(order)
            if zone.protected and order <= MAX_PAGE_ORDER:
                room = min(room, max(0, zone.nr_free_pages - zone.protected) >> order)
            total += room
        return total

    # Freeing.

    def free_pages(self, pfn: int, order: int) -> None:
        """Give one block back. C: __free_pages().

        Raises:
            ModelBug: a page of it is free already, or does not exist.
        """
        zone, start, end = next(self._by_zone(pfn, pfn + (1 << order)))
        area = zone.areas[MigrateType.CMA if zone.cma and pfn in zone.cma else MigrateType.OTHER]
        size = 1 << order
        if end - start < size or pfn % size or order > MAX_PAGE_ORDER or any(area.low[:order]):
            self.free_run(pfn, 1 << order)
            return
        # No smaller block is free, so only one that is as large could hold this one.
        for larger in range(order, MAX_PAGE_ORDER):
            if pfn & -(1 << larger) in area.low[larger]:
                raise ModelBug(f"double free of page frame {pfn:#x}, order {order}")
        if pfn >> MAX_PAGE_ORDER in area.top:
            raise ModelBug(f"double free of page frame {pfn:#x}, order {order}")
        _put_one(area, pfn, order)

    def free_run(self, pfn: int, nr_pages: int) -> None:
        """Give a run of pages back, however they were allocated.

        Raises:
            ModelBug: a page is free already, or does not exist.
        """
        for zone, start, end in self._by_zone(pfn, pfn + nr_pages):
            clash = _free_in(zone, start, end)
            if clash:
                raise ModelBug(f"double free of page frame {clash[0]:#x} in {start:#x}-{end:#x}")
            for low, high in zone.cma.within(start, end):
                _put(zone.areas[MigrateType.CMA], low, high)
            for low, high in zone.cma.gaps(start, end):
                _put(zone.areas[MigrateType.OTHER], low, high)

    # Looking.

    def nr_free(self, order: int, nid: int | None = None) -> int:
        """Free blocks of exactly this order, on one node or all."""
        return sum(area.nr_free(order) for zone in self.zones(nid) for area in zone.areas)

    def nr_free_pages(self, nid: int | None = None) -> int:
        """Free pages, CMA included, on one node or all."""
        return sum(zone.nr_free_pages for zone in self.zones(nid))

    def nr_free_cma_pages(self, nid: int | None = None) -> int:
        """Free pages in CMA blocks. C: NR_FREE_CMA_PAGES."""
        return sum(zone.areas[MigrateType.CMA].nr_free_pages for zone in self.zones(nid))

    def managed_pages(self, nid: int | None = None) -> int:
        """Pages that the allocator was ever given (MemTotal)."""
        return sum(zone.managed for zone in self.zones(nid))

    def pfn_to_nid(self, pfn: int) -> int:
        """The node that a page frame belongs to.

        Raises:
            ModelBug: it does not exist.
        """
        for nid, node in self.nodes.items():
            if pfn in node.spans:
                return nid
        raise ModelBug(f"page frame {pfn:#x} does not exist")

    def is_free(self, pfn: int, nr_pages: int = 1) -> bool:
        """Whether all of these page frames are free."""
        return all(
            sum(high - low for low, high in _free_ranges(zone, start, end)) == end - start
            for zone, start, end in self._by_zone(pfn, pfn + nr_pages)
        )

    def any_free(self, pfn: int, nr_pages: int = 1) -> bool:
        """Whether any of these page frames is free."""
        return any(
            _free_in(zone, start, end) for zone, start, end in self._by_zone(pfn, pfn + nr_pages)
        )

    def free_ranges(self) -> RangeSet:
        """Every free page frame. For checks: costs as much as there are fragments."""
        out = RangeSet()
        for zone in self.zones():
            for start, end in _all_free(zone):
                out.add(start, end)
        return out

    def buddyinfo(self) -> str:
        """As /proc/buddyinfo: free blocks by node, zone and order."""
        lines = []
        for zone in self.zones():
            counts = (
                sum(area.nr_free(order) for area in zone.areas)
                for order in range(MAX_PAGE_ORDER + 1)
            )
            numbers = "".join(f"{count:6d} " for count in counts)
            lines.append(f"Node {zone.nid}, zone {zone.name:>8} {numbers}\n")
        return "".join(lines)

    # Zones.

    def zones(self, nid: int | None = None) -> Iterator[Zone]:
        """The zones of one node or all, lowest first. C: for_each_zone()."""
        for node in self.nodes.values():
            if nid in (None, node.nid):
                yield from node.zones

    def _zonelist(self, nid: int, thisnode: bool) -> tuple[Zone, ...]:
        if nid not in self._zonelists:
            raise ModelBug(f"node {nid} does not exist")
        zones = self._zonelists[nid]
        return zones[: len(self.nodes[nid].zones)] if thisnode else zones

    def _candidates(
        self, order: int, nid: int, movable: bool, thisnode: bool
    ) -> Iterator[tuple[FreeArea, int]]:
        """Free areas that may serve, in the order they are tried, with the blocks they can give."""
        for zone in self._zonelist(nid, thisnode):
            for kind in _KINDS[movable]:
                area = zone.areas[kind]
                room = area.nr_available(order)
                if zone.protected and room:
                    room = min(room, max(0, zone.nr_free_pages - zone.protected) >> order)
                yield area, room

    def _by_zone(self, start: int, end: int) -> Iterator[tuple[Zone, int, int]]:
        """Cut a range of page frames at zone borders.

        Raises:
            ModelBug: part of it does not exist.
        """
        left = end - start
        for node in self.nodes.values():
            if not left:
                return
            for low, high in node.spans.within(start, end):
                for zone in node.zones:
                    first, last = max(low, zone.start_pfn), min(high, zone.end_pfn)
                    if first < last:
                        left -= last - first
                        yield zone, first, last
        if left:
            raise ModelBug(f"page frames {start:#x}-{end:#x}: {left} of them do not exist")


def _take_one(area: FreeArea, order: int) -> int | None:
    """Take the newest smallest block that is large enough. C: __rmqueue_smallest()."""
    for have in range(order, MAX_PAGE_ORDER):
        if area.low[have]:
            pfn, _ = area.low[have].popitem()
            break
    else:
        first = next(area.top.within(0, _LAST), None)
        if first is None:
            return None
        area.top.remove(first[0], first[0] + 1)
        have, pfn = MAX_PAGE_ORDER, first[0] << MAX_PAGE_ORDER
    for half in range(have - 1, order - 1, -1):
        area.low[half][pfn + (1 << half)] = None
    return pfn


def _take_many(area: FreeArea, order: int, n: int, runs: list[tuple[int, int]]) -> None:
    """Take `n` blocks that are known to be there, appending to `runs`."""
    per_top = 1 << (MAX_PAGE_ORDER - order)
    while n:
        if n >= per_top and not any(area.low[order:]):
            # Whole largest-order blocks: what splitting each of them would give in turn.
            low, high = next(area.top.within(0, _LAST))
            high = min(high, low + n // per_top)
            area.top.remove(low, high)
            pfn, count = low << MAX_PAGE_ORDER, (high - low) * per_top
        else:
            one = _take_one(area, order)
            if one is None:
                raise ModelBug("a free area gave fewer blocks than it counted")
            pfn, count = one, 1
        n -= count
        if runs and runs[-1][0] + (runs[-1][1] << order) == pfn:
            runs[-1] = (runs[-1][0], runs[-1][1] + count)
        else:
            runs.append((pfn, count))


def _put(area: FreeArea, start: int, end: int) -> None:
    """Free [start, end) of one zone and migrate type: largest blocks as one run."""
    low = -(-start // MAX_ORDER_NR_PAGES)
    high = end // MAX_ORDER_NR_PAGES
    if low < high:
        area.top.add(low, high)
        pieces = ((start, low << MAX_PAGE_ORDER), (high << MAX_PAGE_ORDER, end))
    else:
        pieces = ((start, end), (end, end))
    for first, stop in pieces:
        at = first
        while at < stop:
            order = min(((at & -at) or MAX_ORDER_NR_PAGES).bit_length() - 1, MAX_PAGE_ORDER)
            order = min(order, (stop - at).bit_length() - 1)
            _put_one(area, at, order)
            at += 1 << order


def _put_one(area: FreeArea, pfn: int, order: int) -> None:
    """Free one block and merge it with its buddies. C: __free_one_page()."""
    while order < MAX_PAGE_ORDER:
        buddy = pfn ^ (1 << order)
        if buddy not in area.low[order]:
            area.low[order][pfn] = None
            return
        del area.low[order][buddy]
        pfn &= buddy
        order += 1
    area.top.add(pfn >> MAX_PAGE_ORDER, (pfn >> MAX_PAGE_ORDER) + 1)


def _free_ranges(zone: Zone, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The free parts of [start, end), in no particular order."""
    for area in zone.areas:
        first, last = start >> MAX_PAGE_ORDER, -(-end // MAX_ORDER_NR_PAGES)
        for low, high in area.top.within(first, last):
            yield max(start, low << MAX_PAGE_ORDER), min(end, high << MAX_PAGE_ORDER)
        for order, blocks in enumerate(area.low):
            if not blocks:
                continue
            size = 1 << order
            if len(blocks) <= (end - start) >> order:
                found: Iterable[int] = (pfn for pfn in blocks if start < pfn + size and pfn < end)
            else:
                found = (pfn for pfn in range(start & -size, end, size) if pfn in blocks)
            for pfn in found:
                yield max(start, pfn), min(end, pfn + size)


def _free_in(zone: Zone, start: int, end: int) -> tuple[int, int] | None:
    return next(_free_ranges(zone, start, end), None)


def _all_free(zone: Zone) -> Iterator[tuple[int, int]]:
    return _free_ranges(zone, 0, _LAST)


def validate_page_alloc(allocator: PageAllocator) -> None:
    """Free blocks are aligned, inside their zone, disjoint, of their migrate type, and merged.

    Raises:
        ModelBug: they are not.
    """
    for zone in allocator.zones():
        seen = RangeSet()
        total = 0
        for kind, area in zip(MigrateType, zone.areas, strict=True):
            _validate_blocks(area)
            for start, end in _area_ranges(area):
                inside = zone.cma.contains if kind is MigrateType.CMA else _not(zone.cma)
                if not inside(start, end):
                    raise ModelBug(f"free range {start:#x}-{end:#x} has the wrong migrate type")
                if start < zone.start_pfn or end > zone.end_pfn:
                    raise ModelBug(f"free range {start:#x}-{end:#x} leaves zone {zone.name}")
                seen.add(start, end)
                total += end - start
        if seen.total != total:
            raise ModelBug(f"zone {zone.name}: {total - seen.total} pages are free twice")
        if total > zone.managed:
            raise ModelBug(f"zone {zone.name}: {total} free of {zone.managed} managed pages")


def _not(ranges: RangeSet) -> Callable[[int, int], bool]:
    return lambda start, end: not ranges.overlaps(start, end)


def _validate_blocks(area: FreeArea) -> None:
    for order, blocks in enumerate(area.low):
        for pfn in blocks:
            if pfn & ((1 << order) - 1):
                raise ModelBug(f"block {pfn:#x} of order {order} is not aligned")
            if pfn ^ (1 << order) in blocks:
                raise ModelBug(f"block {pfn:#x} of order {order} is free as is its buddy")


def _area_ranges(area: FreeArea) -> Iterator[tuple[int, int]]:
    for low, high in area.top:
        yield low << MAX_PAGE_ORDER, high << MAX_PAGE_ORDER
    for order, blocks in enumerate(area.low):
        for pfn in blocks:
            yield pfn, pfn + (1 << order)
