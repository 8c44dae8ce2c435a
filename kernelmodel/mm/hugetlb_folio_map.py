"""The page cache of a huge page file: which folio is at which page index, as runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kernelmodel.mm.hstate import Runs
from kernelmodel.mm.ranges import RangeMap, RangeSet

__all__ = ["HugetlbFolioMap"]

#: Beyond every page index.
_LAST: Final = 1 << 64


class HugetlbFolioMap:
    """Folios by page index, as runs. A run's value is its first folio less its first index."""

    __slots__ = ("_map", "order", "total")

    def __init__(self, order: int) -> None:
        self.order = order
        self.total = 0
        self._map: RangeMap[int] = RangeMap()

    def put(self, start: int, runs: Iterable[tuple[int, int]]) -> None:
        """Give the indices from `start` on the folios of these runs."""
        for pfn, n in runs:
            self._map.put(start, start + n, (pfn >> self.order) - start)
            self.total += n
            start += n

    def take(self, start: int, end: int) -> tuple[Runs, RangeSet]:
        """Take out what [start, end) holds; returns the folios and their indices."""
        runs: Runs = []
        indices = RangeSet()
        for low, high, shift in self._map.within(start, end):
            runs.append(((low + shift) << self.order, high - low))
            indices.add(low, high)
        self._map.clear(start, end)
        self.total -= indices.total
        return runs, indices

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) without folios, ascending."""
        parts: list[tuple[int, int]] = []
        for low, high, _ in self._map.within(start, end):
            if start < low:
                parts.append((start, low))
            start = high
        if start < end:
            parts.append((start, end))
        return parts

    def within(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """What [start, end) holds as (index, pfn, number of folios), ascending by index."""
        order, parts = self.order, self._map.within(start, end)
        return [(low, (low + shift) << order, high - low) for low, high, shift in parts]

    def runs(self) -> list[tuple[int, int, int]]:
        """Everything as (index, pfn, number of folios), ascending by index."""
        return self.within(0, _LAST)
