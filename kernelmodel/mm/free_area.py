"""Free memory of one zone and migrate type: the buddy system's free lists.

Reproduces struct free_area of Linux 7.3's include/linux/mmzone.h and what mm/page_alloc.c does
with it. Free memory is always held as the largest aligned blocks that it can be cut into, so
blocks of the largest order come in long runs and are kept as one `RangeSet`; smaller ones are few
and are kept in dicts, newest last. Whether a page is free, whatever block holds it, says a bitmap
of each largest-order block that is free in part.

Unhappy path: freeing what is free is a ModelBug.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

import numpy as np

from kernelmodel.errors import ModelBug
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.ranges import RangeSet

__all__ = [
    "MAX_ORDER_NR_PAGES",
    "MAX_PAGE_ORDER",
    "FreeArea",
    "validate_free_area",
]

MAX_PAGE_ORDER: Final = 10
MAX_ORDER_NR_PAGES: Final = 1 << MAX_PAGE_ORDER
#: What is left of a page frame's number within a largest-order block.
_PLACE: Final = MAX_ORDER_NR_PAGES - 1
#: Bitmaps of the pages of a block, by its order.
_PAGES: Final = tuple((1 << (1 << order)) - 1 for order in range(MAX_PAGE_ORDER + 1))
#: Runs that are freed at once where there are many: arrays of all of them fit no cache.
_AT_ONCE: Final = 1 << 14
#: Beyond every page frame and block number.
_LAST: Final = 1 << 60
#: Runs of blocks: (first page frame, number of blocks).
_Runs = list[tuple[int, int]]


class FreeArea:
    """The free blocks of one zone and migrate type. C: struct free_area, for all orders."""

    __slots__ = ("_pages", "kernels_own", "low", "top")

    def __init__(self) -> None:
        #: Free blocks of the largest order, as numbers (pfn >> MAX_PAGE_ORDER).
        self.top = RangeSet()
        #: Free blocks of each smaller order by first pfn; the newest is last and goes first.
        self.low: list[dict[int, None]] = [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]
        # The pages of all smaller blocks, as bitmaps by the largest-order block that they lie in.
        self._pages: dict[int, int] = {}
        #: A block of the largest order in which the kernel has pages of its own that are not
        #: modelled; -1 if there is none. Nothing larger than the block is free around it.
        self.kernels_own = -1

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

    def _contig(self, order: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs [first, last) of free stretches of an order above MAX_PAGE_ORDER, as numbers."""
        shift = order - MAX_PAGE_ORDER
        own = self.kernels_own >> shift
        for low, high in self.top.within(start >> MAX_PAGE_ORDER, end >> MAX_PAGE_ORDER):
            first, last = -(-low >> shift), high >> shift
            if first <= own < last:
                yield first, own
                first = own + 1
            yield first, last

    def nr_contig(self, order: int, start: int = 0, end: int = _LAST) -> int:
        """Free aligned stretches of an order above MAX_PAGE_ORDER in [start, end)."""
        return sum(max(0, last - first) for first, last in self._contig(order, start, end))

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
        for first, last in self._contig(order, start, end):
            take = min(n, last - first)
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
            if order == MAX_PAGE_ORDER:
                return pfn
            self._pages[first[0]] = _PAGES[MAX_PAGE_ORDER]
        self._pages[pfn >> MAX_PAGE_ORDER] ^= _PAGES[order] << (pfn & _PLACE)
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
        low, pages, have = self.low, self._pages, order
        while n:
            while have < MAX_PAGE_ORDER and not low[have]:
                have += 1
            if have < MAX_PAGE_ORDER:
                pfn, count = low[have].popitem()[0], 1 << have - order
                pages[pfn >> MAX_PAGE_ORDER] ^= _PAGES[have] << (pfn & _PLACE)
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
                number, rest = at >> MAX_PAGE_ORDER, (1 << end - at) - 1 << (at & _PLACE)
                pages[number] = pages.get(number, 0) | rest
                for blocks in low[order:]:
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
        if low > high:  # it begins and ends in the same one
            self._put_edge(start, end)
            return
        self.top.add(low, high)
        if start < low << MAX_PAGE_ORDER:
            self._put_edge(start, low << MAX_PAGE_ORDER)
        if high << MAX_PAGE_ORDER < end:
            self._put_edge(high << MAX_PAGE_ORDER, end)

    def _put_edge(self, at: int, stop: int) -> None:
        """Free [at, stop), a part of a largest-order block, as the fewest blocks."""
        low, number, first = self.low, at >> MAX_PAGE_ORDER, at & _PLACE
        pages, blocks = _fewest_blocks(first, first + stop - at)
        self._pages[number] = self._pages.get(number, 0) | pages
        for place, order, size in blocks:
            pfn = at - first + place
            if pfn ^ size in low[order]:
                self._merge(pfn, order)
            else:
                low[order][pfn] = None

    def put_page(self, pfn: int) -> None:
        """Free one page.

        Raises:
            ModelBug: it is free already.
        """
        number, fresh = pfn >> MAX_PAGE_ORDER, 1 << (pfn & _PLACE)
        pages = self._pages.get(number, 0)
        if pages & fresh or number in self.top:
            raise ModelBug(f"double free of page frame {pfn:#x}")
        self._pages[number] = pages | fresh
        self._merge(pfn, 0)

    def _merge(self, pfn: int, order: int) -> None:
        """List a block that became free, merged with its buddies. C: __free_one_page()."""
        low, size = self.low, 1 << order
        while order < MAX_PAGE_ORDER:
            blocks, buddy = low[order], pfn ^ size
            if buddy not in blocks:
                blocks[pfn] = None
                return
            del blocks[buddy]
            pfn &= buddy
            size <<= 1
            order += 1
        number = pfn >> MAX_PAGE_ORDER
        del self._pages[number]
        self.top.add(number, number + 1)

    def put_many(self, pages: Extents) -> None:
        """As `put` for each of these runs, which ascend; no page beside one of them is free."""
        for at in range(0, len(pages), _AT_ONCE):
            part = slice(at, at + _AT_ONCE)
            self._put_many(Extents(pages.pfns[part], pages.counts[part]))

    def _put_many(self, pages: Extents) -> None:
        first, last = pages.pfns >> MAX_PAGE_ORDER, pages.ends - 1 >> MAX_PAGE_ORDER
        long = last - first > 1
        for low, high in zip(first[long].tolist(), last[long].tolist(), strict=True):
            self.top.add(low + 1, high)
        numbers, free = pages.ends_by_block(MAX_PAGE_ORDER)
        bitmaps = np.packbits(free, axis=1, bitorder="little")
        for order, blocks in enumerate(self.low):
            pairs = free[:, ::2] & free[:, 1::2]
            alone = np.flatnonzero(free & ~np.repeat(pairs, 2, axis=1))
            rows, places = alone >> MAX_PAGE_ORDER - order, alone << order & _PLACE
            found = dict.fromkeys(((numbers[rows] << MAX_PAGE_ORDER) + places).tolist())
            blocks.update(found)
            free = pairs
        whole = free[:, 0]
        for number in numbers[whole].tolist():
            self.top.add(number, number + 1)
        for number, bitmap in zip(numbers[~whole].tolist(), bitmaps[~whole], strict=True):
            here = int.from_bytes(bitmap.tobytes(), "little")
            self._pages[number] = self._pages.get(number, 0) | here

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
        for base, pages in self._parts(start, end):
            return base + (pages & -pages).bit_length() - 1
        return None

    def nr_free_in(self, start: int, end: int) -> int:
        """How many of the page frames [start, end) are free."""
        nr = sum(pages.bit_count() for _, pages in self._parts(start, end))
        for low, high in self.top.within(start >> MAX_PAGE_ORDER, -(-end // MAX_ORDER_NR_PAGES)):
            nr += min(end, high << MAX_PAGE_ORDER) - max(start, low << MAX_PAGE_ORDER)
        return nr

    def _parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """Bitmaps of free pages of [start, end) in smaller blocks, each with its first frame."""
        first, last = start >> MAX_PAGE_ORDER, end - 1 >> MAX_PAGE_ORDER
        numbers: Iterable[int] = range(first, last + 1)
        if last - first >= len(self._pages):
            numbers = [number for number in self._pages if first <= number <= last]
        parts: list[tuple[int, int]] = []
        for number in numbers:
            base = number << MAX_PAGE_ORDER
            asked = (1 << min(end - base, MAX_ORDER_NR_PAGES)) - (1 << max(start - base, 0))
            pages = self._pages.get(number, 0) & asked
            if pages:
                parts.append((base, pages))
        return parts


@lru_cache(maxsize=4096)  # boots and tables of a fleet's hosts are alike
def _fewest_blocks(at: int, stop: int) -> tuple[int, list[tuple[int, int, int]]]:
    """The pages [at, stop) of a largest-order block as a bitmap, and as the fewest blocks.

    Blocks are (first page, order, number of pages), ascending.
    """
    pages = (1 << stop) - (1 << at)
    blocks: list[tuple[int, int, int]] = []
    while at < stop:
        size = 1 << (stop - at).bit_length() - 1
        if at:
            size = min(size, at & -at)
        blocks.append((at, size.bit_length() - 1, size))
        at += size
    return pages, blocks


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
            if area.nr_free_in(pfn, pfn + (1 << order)) != 1 << order:
                raise ModelBug(f"block {pfn:#x} of order {order} is free, but not its pages")
    if area.nr_free_in(0, _LAST) != area.nr_free_pages:
        raise ModelBug("pages are free that no block holds")
