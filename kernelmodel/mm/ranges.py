"""Sets and maps of integer ranges: the cheap form of everything that comes in runs.

A host of 512 GiB has 134 million page frames, but what happens to them happens in runs. A
`RangeSet` holds disjoint half-open ranges in two sorted lists; a `RangeMap` adds a value to
each. Look-ups cost a bisection; a change costs a bisection and a move of list entries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, Generic, TypeVar

__all__ = ["RangeMap", "RangeSet"]

V = TypeVar("V")

#: What a set that holds nothing has for lists, as most sets of a host do for all their life; the
#: first range brings lists of its own.
_NOTHING: Final[list[int]] = []


class RangeSet:
    """A set of integers as sorted, disjoint, non-adjacent half-open ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts = self._ends = _NOTHING
        if ranges:
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
        if not ends:
            self._starts, self._ends = [start], [end]
            return
        if start > ends[-1]:  # behind all others, as what is added in order
            starts.append(start)
            ends.append(end)
            return
        if start >= starts[-1] and end > ends[-1]:  # the last one goes on
            ends[-1] = end
            return
        first = bisect_left(ends, start)
        last = bisect_right(starts, end, first)
        if first < last:
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
        starts[first:last] = [start]
        ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Remove [start, end), whatever of it is there."""
        starts, ends = self._starts, self._ends
        if not ends or start >= ends[-1] or end <= starts[0] or start >= end:
            return
        first = bisect_right(ends, start)
        if starts[first] >= end:
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
        starts, ends = self._starts, self._ends
        if not starts or value < starts[0] or value >= ends[-1]:
            return False
        return value < ends[bisect_right(starts, value) - 1]

    def contains(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in the set."""
        starts = self._starts
        if not starts or start < starts[0]:
            return False
        if start >= starts[-1]:
            return end <= self._ends[-1]
        return end <= self._ends[bisect_right(starts, start) - 1]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of [start, end) is in the set."""
        starts, ends = self._starts, self._ends
        if not ends or start >= ends[-1] or end <= starts[0]:
            return False
        return starts[bisect_right(ends, start)] < end

    def lowest(self) -> tuple[int, int] | None:
        """The first range; None if there is none."""
        return (self._starts[0], self._ends[0]) if self._starts else None

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of the set that lie in [start, end), ascending."""
        starts, ends = self._starts, self._ends
        if not ends or start >= ends[-1] or end <= starts[0]:
            return []
        first = bisect_right(ends, start)
        if starts[first] >= end:
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
