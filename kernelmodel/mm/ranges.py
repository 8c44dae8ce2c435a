"""Sets and maps of integer ranges: the cheap form of everything that comes in runs.

A host of 512 GiB has 134 million page frames, but what happens to them happens in runs. A
`RangeSet` holds the bounds of disjoint half-open ranges in one sorted list; a `RangeMap` gives
each range a value. Look-ups cost a bisection; a change costs two and a move of list entries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["RangeMap", "RangeSet"]

V = TypeVar("V")


class RangeSet:
    """A set of integers as sorted, disjoint, non-adjacent half-open ranges.

    `_bounds` is start, end, start, end, ... of the ranges, ascending. The number of bounds that are
    not above an integer is odd if it lies in a range and even if it does not; so much for the
    parities below.
    """

    __slots__ = ("_bounds",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._bounds: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._bounds[::2], self._bounds[1::2], strict=True)

    def __reversed__(self) -> Iterator[tuple[int, int]]:
        return zip(self._bounds[-2::-2], self._bounds[::-2], strict=True)

    def __len__(self) -> int:
        """Number of ranges (not of integers: see `total`)."""
        return len(self._bounds) // 2

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def __eq__(self, other: object) -> bool:
        return self._bounds == other._bounds if isinstance(other, RangeSet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"

    @property
    def total(self) -> int:
        """Number of integers in the set."""
        return sum(self._bounds[1::2]) - sum(self._bounds[::2])

    def copy(self) -> RangeSet:
        """An independent copy."""
        other = RangeSet()
        other._bounds = self._bounds.copy()
        return other

    def add(self, start: int, end: int) -> None:
        """Add [start, end)."""
        bounds = self._bounds
        if start >= end:
            return
        if not bounds or bounds[-1] < start:  # behind all others, as what is added in order
            bounds += (start, end)
        else:
            first, last = bisect_left(bounds, start), bisect_right(bounds, end)
            # a bound inside a range that is there, or at its edge, is none of the new one's
            bounds[first:last] = (start, end)[first & 1 : 2 - (last & 1)]

    def remove(self, start: int, end: int) -> None:
        """Remove [start, end), whatever of it is there."""
        if start < end:
            bounds = self._bounds
            first, last = bisect_left(bounds, start), bisect_right(bounds, end)
            # what is left of a range before it ends at its start, what is left behind begins at end
            bounds[first:last] = (start, end)[1 - (first & 1) : 1 + (last & 1)]

    def take(self, start: int, end: int) -> bool:
        """Remove [start, end), at least one integer, if all of it is there; whether it was."""
        bounds = self._bounds
        at = bisect_right(bounds, start)
        if at & 1 == 0 or bounds[at] < end:
            return False
        if bounds[at - 1] < start:
            bounds[at : at + 1] = (start,) if bounds[at] == end else (start, end, bounds[at])
        elif bounds[at] == end:
            del bounds[at - 1 : at + 1]
        else:
            bounds[at - 1] = end
        return True

    def __contains__(self, value: int) -> bool:
        return bisect_right(self._bounds, value) & 1 == 1

    def contains(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in the set."""
        at = bisect_right(self._bounds, start)
        return at & 1 == 1 and end <= self._bounds[at]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of [start, end) is in the set."""
        at = bisect_right(self._bounds, start)
        return at & 1 == 1 or (at < len(self._bounds) and self._bounds[at] < end)

    def lowest(self) -> tuple[int, int] | None:
        """The first range; None if there is none."""
        return (self._bounds[0], self._bounds[1]) if self._bounds else None

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of the set that lie in [start, end), ascending."""
        bounds = self._bounds
        first, last = bisect_right(bounds, start), bisect_left(bounds, end)
        if first >= last:  # inside one range or none, as most often
            return [(start, end)] if first & 1 and start < end else []
        inside = bounds[first:last]
        if first & 1:
            inside.insert(0, start)
        if last & 1:
            inside.append(end)
        return list(zip(inside[::2], inside[1::2], strict=True))

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
        starts, ends = self._starts, self._ends
        if not ends or start >= ends[-1]:  # behind all others, as what is put in order
            starts.append(start)
            ends.append(end)
            self._values.append(value)
        else:
            self._splice(bisect_right(ends, start), start, end, [start], [end], [value])

    def clear(self, start: int, end: int) -> None:
        """Take [start, end) out."""
        starts, ends = self._starts, self._ends
        if not ends or start >= ends[-1] or end <= starts[0] or start >= end:
            return
        first = bisect_right(ends, start)
        if starts[first] < end:
            self._splice(first, start, end, [], [], [])

    def _splice(
        self,
        first: int,
        start: int,
        end: int,
        new_starts: list[int],
        new_ends: list[int],
        new: list[V],
    ) -> None:
        """Put ranges in the place of [start, end); `first` is the first that ends behind start."""
        starts, ends, values = self._starts, self._ends, self._values
        last = first
        if starts[first] < end:
            last = bisect_left(starts, end, first)
            if starts[first] < start:
                new_starts, new_ends = [starts[first], *new_starts], [start, *new_ends]
                new = [values[first], *new]
            if ends[last - 1] > end:
                new_starts, new_ends = [*new_starts, end], [*new_ends, ends[last - 1]]
                new = [*new, values[last - 1]]
        starts[first:last] = new_starts
        ends[first:last] = new_ends
        values[first:last] = new

    def get(self, point: int) -> tuple[int, int, V] | None:
        """The range that `point` lies in, whole, with its value; None if there is none."""
        at = bisect_right(self._starts, point) - 1
        if at < 0 or self._ends[at] <= point:
            return None
        return self._starts[at], self._ends[at], self._values[at]

    def within(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """The ranges that meet [start, end), cut to it, ascending."""
        starts, ends, values = self._starts, self._ends, self._values
        if not ends or start >= ends[-1] or end <= starts[0]:
            return []
        at, nr = bisect_right(ends, start), len(ends)
        parts: list[tuple[int, int, V]] = []
        while at < nr and starts[at] < end:
            parts.append((starts[at], ends[at], values[at]))
            at += 1
        if parts:
            low, high, value = parts[0]
            if low < start:
                parts[0] = (start, high, value)
            low, high, value = parts[-1]
            if high > end:
                parts[-1] = (low, end, value)
        return parts
