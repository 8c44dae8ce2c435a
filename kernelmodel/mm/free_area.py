"""Free memory of one zone and migrate type: the buddy system's free lists.

Reproduces struct free_area of Linux 7.3's include/linux/mmzone.h and what mm/page_alloc.c does
with it. Free memory is always held as the largest aligned blocks that it can be cut into, so
blocks of the largest order come in long runs and are kept as one `RangeSet`; smaller ones are few
and are kept in dicts, newest last.

Unhappy path: freeing what is free is a ModelBug.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from operator import contains
from typing import Final

import numpy as np

from kernelmodel.errors import ModelBug
from kernelmodel.mm.extents import Extents, Frames
from kernelmodel.mm.ranges import RangeSet

__all__ = [
    "MAX_ORDER_NR_PAGES",
    "MAX_PAGE_ORDER",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "FreeArea",
    "validate_free_area",
]

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
MAX_PAGE_ORDER: Final = 10
MAX_ORDER_NR_PAGES: Final = 1 << MAX_PAGE_ORDER
#: What is left of a page frame's number to begin the block of each smaller order that it lies in.
_HEADS: Final = tuple(-1 << order for order in range(MAX_PAGE_ORDER))
#: Beyond every page frame and block number.
_LAST: Final = 1 << 60
#: Runs of blocks: (first page frame, number of blocks).
_Runs = list[tuple[int, int]]


class FreeArea:
    """The free blocks of one zone and migrate type. C: struct free_area, for all orders."""

    __slots__ = ("low", "top")

    def __init__(self) -> None:
        #: Free blocks of the largest order, as numbers (pfn >> MAX_PAGE_ORDER).
        self.top = RangeSet()
        #: Free blocks of each smaller order by first pfn; the newest is last and goes first.
        self.low: list[dict[int, None]] = [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]

    @property
    def nr_free_pages(self) -> int:
        """Pages in all free blocks."""
        pages = self.top.total << MAX_PAGE_ORDER
        for order, blocks in enumerate(self.low):
            if blocks:
                pages += len(blocks) << order
        return pages

    def nr_free(self, order: int) -> int:
        """Free blocks of exactly this order."""
        return self.top.total if order == MAX_PAGE_ORDER else len(self.low[order])

    def nr_contig(self, order: int, start: int = 0, end: int = _LAST) -> int:
        """Free aligned stretches of an order above MAX_PAGE_ORDER in [start, end)."""
        shift = order - MAX_PAGE_ORDER
        blocks = self.top.within(start >> MAX_PAGE_ORDER, end >> MAX_PAGE_ORDER)
        return sum(max(0, (high >> shift) - (-(-low >> shift))) for low, high in blocks)

    def nr_available(self, order: int) -> int:
        """Blocks of this order that could be allocated, larger ones being split."""
        if order > MAX_PAGE_ORDER:
            return self.nr_contig(order)
        total = self.top.total << (MAX_PAGE_ORDER - order)
        for higher in range(order, MAX_PAGE_ORDER):
            total += len(self.low[higher]) << (higher - order)
        return total

    def take_contig(self, order: int, n: int, start: int = 0, end: int = _LAST) -> _Runs:
        """Up to `n` free aligned stretches of an order above MAX_PAGE_ORDER in [start, end)."""
        shift = order - MAX_PAGE_ORDER
        runs: _Runs = []
        for low, high in self.top.within(start >> MAX_PAGE_ORDER, end >> MAX_PAGE_ORDER):
            first = -(-low >> shift)
            take = min(n, (high >> shift) - first)
            if take > 0:
                self.top.remove(first << shift, (first + take) << shift)
                runs.append((first << order, take))
                n -= take
        return runs

    def take_one(self, order: int) -> int | None:
        """Take the newest smallest block that is large enough. C: __rmqueue_smallest()."""
        low, have = self.low, order
        try:
            while not low[have]:
                have += 1
            pfn = low[have].popitem()[0]
        except IndexError:  # none of a smaller order than the largest
            first = self.top.lowest()
            if first is None:
                return None
            self.top.remove(first[0], first[0] + 1)
            pfn = first[0] << MAX_PAGE_ORDER
        while have > order:
            have -= 1
            low[have][pfn + (1 << have)] = None
        return pfn

    def take_many(self, order: int, n: int, runs: _Runs) -> int:
        """Take up to `n` blocks, as runs appended to `runs`; returns how many are missing.

        Just what `n` calls of `take_one` would give and leave. The smallest block that is large
        enough falls into blocks of `order` from its start on; what nobody takes of it are halves
        of each order, of which there was none, or a smaller block would have been taken.
        """
        while n:
            for have in range(order, MAX_PAGE_ORDER):
                if self.low[have]:
                    pfn, _ = self.low[have].popitem()
                    count = 1 << (have - order)
                    break
            else:
                first = self.top.lowest()
                if first is None:
                    return n
                per_top = 1 << (MAX_PAGE_ORDER - order)
                whole = min(first[1] - first[0], -(-n // per_top))
                self.top.remove(first[0], first[0] + whole)
                pfn, count = first[0] << MAX_PAGE_ORDER, whole * per_top
            if count > n:
                at, end, size = pfn + (n << order), pfn + (count << order), 1 << order
                for blocks in self.low[order:]:
                    if at & size and at < end:
                        blocks[at] = None
                        at += size
                    size <<= 1
                count = n
            n -= count
            if runs and runs[-1][0] + (runs[-1][1] << order) == pfn:
                runs[-1] = (runs[-1][0], runs[-1][1] + count)
            else:
                runs.append((pfn, count))
        return 0

    def put(self, start: int, end: int) -> None:
        """Free the pages [start, end).

        Raises:
            ModelBug: one of them is free already.
        """
        clash = self.free_page_in(start, end)
        if clash is not None:
            raise ModelBug(f"double free of page frame {clash:#x} in {start:#x}-{end:#x}")
        self.put_new(start, end)

    def put_new(self, start: int, end: int) -> None:
        """Free pages that cannot be free: largest blocks as one run, the edges one by one."""
        low, high = -(-start >> MAX_PAGE_ORDER), end >> MAX_PAGE_ORDER
        if low >= high:
            self._put_edge(start, end)
            return
        self.top.add(low, high)
        if start < low << MAX_PAGE_ORDER:
            self._put_edge(start, low << MAX_PAGE_ORDER)
        if high << MAX_PAGE_ORDER < end:
            self._put_edge(high << MAX_PAGE_ORDER, end)

    def _put_edge(self, at: int, stop: int) -> None:
        """Free [at, stop), which holds no block of the largest order, as the fewest blocks."""
        low, base = self.low, at & -MAX_ORDER_NR_PAGES
        blocks = _fewest_blocks(at - base, stop - base)
        if any(map(contains, low, map((at - 1).__and__, _HEADS))) or any(
            map(contains, low, map(stop.__and__, _HEADS))
        ):  # with a page beside them free there may be buddies
            for first, order in blocks:
                self.put_one(base + first, order)
        else:
            for first, order in blocks:
                low[order][base + first] = None

    def put_many(self, pages: Extents) -> None:
        """As `put` for each of these runs, which ascend; no page beside one of them is free."""
        at, ends = pages.pfns, pages.ends
        found: list[list[Frames]] = [[] for _ in self.low]
        while len(at):
            align = np.bitwise_count((at & -at) - 1)
            orders = np.minimum(align, np.frexp(ends - at)[1] - 1)
            whole = orders >= MAX_PAGE_ORDER
            taken = np.where(whole, ends - at & -MAX_ORDER_NR_PAGES, 1 << orders)
            for first, nr in zip(at[whole].tolist(), taken[whole].tolist(), strict=True):
                self.top.add(first >> MAX_PAGE_ORDER, first + nr >> MAX_PAGE_ORDER)
            for order in np.flatnonzero(np.bincount(orders)).tolist():
                if order < MAX_PAGE_ORDER:
                    found[order].append(at[orders == order])
            at = at + taken
            left = at < ends
            at, ends = at[left], ends[left]
        for order, blocks in enumerate(found):
            if blocks:
                free = dict.fromkeys(np.sort(np.concatenate(blocks), kind="stable").tolist())
                self.low[order] = self.low[order] | free if self.low[order] else free

    def put_one(self, pfn: int, order: int) -> None:
        """Free one block and merge it with its buddies. C: __free_one_page().

        Raises:
            ModelBug: its first page is free already.
        """
        low = self.low
        if any(map(contains, low, map(pfn.__and__, _HEADS))) or pfn >> MAX_PAGE_ORDER in self.top:
            raise ModelBug(f"double free of page frame {pfn:#x}")
        size = 1 << order
        for blocks in low[order:]:
            buddy = pfn ^ size
            if buddy not in blocks:
                blocks[pfn] = None
                return
            del blocks[buddy]
            pfn &= buddy
            size <<= 1
        self.top.add(pfn >> MAX_PAGE_ORDER, (pfn >> MAX_PAGE_ORDER) + 1)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Every free block as page frames [start, end), largest blocks by runs."""
        for low, high in self.top:
            yield low << MAX_PAGE_ORDER, high << MAX_PAGE_ORDER
        for order, blocks in enumerate(self.low):
            for pfn in blocks:
                yield pfn, pfn + (1 << order)

    def free_page_in(self, start: int, end: int) -> int | None:
        """One of the page frames [start, end) that is free; None if none is."""
        first, last = start >> MAX_PAGE_ORDER, -(-end // MAX_ORDER_NR_PAGES)
        if self.top.overlaps(first, last):
            return max(start, self.top.within(first, last)[0][0] << MAX_PAGE_ORDER)
        if not any(self.low):
            return None
        size = 1
        for blocks in self.low:
            if blocks:
                heads = range(start & -size, end, size)
                if len(heads) < len(blocks):
                    found = filter(blocks.__contains__, heads)
                else:
                    found = filter(heads.__contains__, blocks)
                for pfn in found:
                    return max(start, pfn)
            size <<= 1
        return None

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The free parts of the page frames [start, end), in no particular order."""
        parts: list[tuple[int, int]] = []
        first, last = start >> MAX_PAGE_ORDER, -(-end // MAX_ORDER_NR_PAGES)
        for low, high in self.top.within(first, last):
            parts.append((max(start, low << MAX_PAGE_ORDER), min(end, high << MAX_PAGE_ORDER)))
        size = 1
        for blocks in self.low:
            if blocks:
                if len(blocks) * size <= end - start:
                    found: Iterable[int] = blocks
                else:
                    found = range(start & -size, end, size)
                parts += [
                    (max(start, pfn), min(end, pfn + size))
                    for pfn in found
                    if pfn in blocks and start < pfn + size and pfn < end
                ]
            size <<= 1
        return parts


@lru_cache(maxsize=4096)  # boots and tables of a fleet's hosts are alike
def _fewest_blocks(at: int, stop: int) -> tuple[tuple[int, int], ...]:
    """[at, stop) of a block of the largest order as the fewest (first page, order), ascending."""
    blocks: list[tuple[int, int]] = []
    while at < stop:
        order = (stop - at).bit_length() - 1
        if at:
            order = min(order, (at & -at).bit_length() - 1)
        blocks.append((at, order))
        at += 1 << order
    return tuple(blocks)


def validate_free_area(area: FreeArea) -> None:
    """Blocks are aligned, and none is free as is its buddy.

    Raises:
        ModelBug: they are not.
    """
    for order, blocks in enumerate(area.low):
        for pfn in blocks:
            if pfn & ((1 << order) - 1):
                raise ModelBug(f"block {pfn:#x} of order {order} is not aligned")
            if pfn ^ (1 << order) in blocks:
                raise ModelBug(f"block {pfn:#x} of order {order} is free as is its buddy")
