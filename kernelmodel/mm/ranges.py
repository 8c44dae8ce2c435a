"""Sets and maps of integer ranges: the cheap form of everything that comes in runs.

A host of 512 GiB has 134 million page frames, but what happens to them happens in runs. A
`RangeSet` holds disjoint half-open ranges in two sorted lists; a `RangeMap` adds a value to
each. Look-ups cost a bisection; a change costs a bisection and a move of list entries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["RangeMap", "RangeSet"]

V = TypeVar("V")


class RangeSet:
    """A set of integers as sorted, disjoint, non-adjacent half-open ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __reversed__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(reversed(self._starts), reversed(self._ends), strict=True)))

    def __len__(self) -> int:
        """Number of ranges (not of integers: see `total`)."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"

    @property
    def total(self) -> int:
        """Number of integers in the set."""
        return sum(self._ends) - sum(self._starts)

    def copy(self) -> RangeSet:
        """An independent copy."""
        other = RangeSet()
        other._starts, other._ends = self._starts.copy(), self._ends.copy()
        return other

    def add(self, start: int, end: int) -> None:
        """Add [start, end)."""
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, start)
        if first == len(ends):  # behind all others, as what is added in order
            starts.append(start)
            ends.append(end)
            return
        last = bisect_right(starts, end, first)
        if first < last:
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
        starts[first:last] = [start]
        ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Remove [start, end), whatever of it is there."""
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start)
        if first == len(starts) or starts[first] >= end:
            return
        last = bisect_left(starts, end, first)
        left, right = starts[first], ends[last - 1]
        starts[first:last] = ([left] if left < start else []) + ([end] if right > end else [])
        ends[first:last] = ([start] if left < start else []) + ([right] if right > end else [])

    def take(self, start: int, end: int) -> bool:
        """Remove [start, end), at least one integer, if all of it is there; whether it was."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start) - 1
        if at < 0 or ends[at] < end:
            return False
        if starts[at] == start:
            if ends[at] == end:
                del starts[at], ends[at]
            else:
                starts[at] = end
            return True
        if ends[at] > end:
            starts.insert(at + 1, end)
            ends.insert(at + 1, ends[at])
        ends[at] = start
        return True

    def __contains__(self, value: int) -> bool:
        at = bisect_right(self._starts, value) - 1
        return at >= 0 and self._ends[at] > value

    def contains(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in the set."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._ends[at] >= end

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of [start, end) is in the set."""
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end

    def lowest(self) -> tuple[int, int] | None:
        """The first range; None if there is none."""
        return (self._starts[0], self._ends[0]) if self._starts else None

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of the set that lie in [start, end), ascending."""
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start)
        if first == len(starts) or starts[first] >= end:
            return []
        if starts[first] <= start and ends[first] >= end:  # inside one range, as most often
            return [(start, end)]
        last = bisect_left(starts, end, first)
        parts = list(zip(starts[first:last], ends[first:last], strict=True))
        if starts[first] < start:
            parts[0] = (start, ends[first])
        if ends[last - 1] > end:
            parts[-1] = (parts[-1][0], end)
        return parts

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are not in the set, ascending."""
        parts: list[tuple[int, int]] = []
        for low, high in self.within(start, end):
            if start < low:
                parts.append((start, low))
            start = high
        if start < end:
            parts.append((start, end))
        return parts


class RangeMap(Generic[V]):
    """Disjoint half-open integer ranges, each with a value; equal neighbours stay apart."""

    __slots__ = ("_ends", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return iter(list(zip(self._starts, self._ends, self._values, strict=True)))

    def put(self, start: int, end: int, value: V) -> None:
        """Give all of [start, end) this value, whatever it had before."""
        if start >= end:
            return
        at = self.clear(start, end)
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self._values.insert(at, value)

    def clear(self, start: int, end: int) -> int:
        """Take [start, end) out; returns the index at which it would stand."""
        first = bisect_right(self._ends, start)
        if start >= end or first == len(self._starts) or self._starts[first] >= end:
            return first
        last = bisect_left(self._starts, end, first)
        starts: list[int] = []
        ends: list[int] = []
        values: list[V] = []
        at = first
        if self._starts[first] < start:
            starts.append(self._starts[first])
            ends.append(start)
            values.append(self._values[first])
            at += 1
        if self._ends[last - 1] > end:
            starts.append(end)
            ends.append(self._ends[last - 1])
            values.append(self._values[last - 1])
        self._starts[first:last] = starts
        self._ends[first:last] = ends
        self._values[first:last] = values
        return at

    def get(self, point: int) -> tuple[int, int, V] | None:
        """The range that `point` lies in, whole, with its value; None if there is none."""
        at = bisect_right(self._starts, point) - 1
        if at < 0 or self._ends[at] <= point:
            return None
        return self._starts[at], self._ends[at], self._values[at]

    def within(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """The ranges that meet [start, end), cut to it, ascending."""
        starts, ends, values = self._starts, self._ends, self._values
        first = bisect_right(ends, start)
        if first == len(starts) or starts[first] >= end:
            return []
        if starts[first] <= start and ends[first] >= end:  # inside one range, as most often
            return [(start, end, values[first])]
        last = bisect_left(starts, end, first)
        held = values[first:last]
        parts = list(zip(starts[first:last], ends[first:last], held, strict=True))
        if starts[first] < start:
            parts[0] = (start, ends[first], held[0])
        if ends[last - 1] > end:
            parts[-1] = (parts[-1][0], end, held[-1])
        return parts
