"""The page cache of a huge page file: which folio is at which page index, as runs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Final

from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hstate_pool import Runs
from kernelmodel.mm.ranges import RangeSet

__all__ = ["HugetlbFolioMap"]

#: Beyond every page index.
_LAST: Final = 1 << 64


class HugetlbFolioMap:
    """Folios by page index, as runs; neighbours stay apart as they came."""

    __slots__ = ("_runs", "order", "total")

    def __init__(self, order: int) -> None:
        self.order = order
        self.total = 0
        #: (index, pfn, number of folios), ascending. Most files have one.
        self._runs: list[tuple[int, int, int]] = []

    def put(self, start: int, runs: Iterable[tuple[int, int]]) -> int:
        """Give the indices from `start` on, which have none, these folios; the first after them."""
        for pfn, n in runs:
            insort(self._runs, (start, pfn, n))
            self.total += n
            start += n
        return start

    def take(self, start: int, end: int) -> tuple[Runs, RangeSet]:
        """Take out what [start, end) holds; returns the folios and their indices."""
        taken = self.within(start, end)
        indices = RangeSet((index, index + n) for index, _, n in taken)
        if taken:  # a hole of less than a page ends before it starts
            self._runs = [*self.within(0, start), *self.within(end, _LAST)]
            self.total -= indices.total
        return [(pfn, n) for _, pfn, n in taken], indices

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) without folios, ascending."""
        if not self._runs:
            return [(start, end)] if start < end else []
        parts: list[tuple[int, int]] = []
        for index, _, n in self.within(start, end):
            if start < index:
                parts.append((start, index))
            start = index + n
        if start < end:
            parts.append((start, end))
        return parts

    def within(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """What [start, end) holds as (index, pfn, number of folios), ascending by index."""
        held = self._runs
        if not held or start >= end:
            return []
        index, pfn, n = held[0]
        if index <= start and end <= index + n:  # in one run, as most often
            return [(start, pfn + (start - index << self.order), end - start)]
        if start <= index and held[-1][0] + held[-1][2] <= end:
            return held[:]
        first = max(0, bisect_left(held, (start + 1, 0, 0)) - 1)
        parts = held[first : bisect_left(held, (end, 0, 0), first)]
        if parts and parts[0][0] < start:  # its end may lie before the start, too
            index, pfn, n = parts[0]
            skip = start - index
            parts[:1] = [(start, pfn + (skip << self.order), n - skip)] if skip < n else []
        if parts and parts[-1][0] + parts[-1][2] > end:
            index, pfn, n = parts[-1]
            parts[-1] = (index, pfn, end - index)
        return parts

    def extents(self, size: int) -> list[tuple[int, int]] | None:
        """The frames of a file of `size` bytes as (pfn, pages); None if there are not just these.

        In file order.
        """
        held, order = self._runs, self.order
        end = held[-1][0] + held[-1][2] if held else 0
        if end != self.total or end << order + PAGE_SHIFT != size:
            return None
        return [(pfn, n << order) for _, pfn, n in held]

    def runs(self) -> list[tuple[int, int, int]]:
        """Everything as (index, pfn, number of folios), ascending by index."""
        return self._runs[:]
