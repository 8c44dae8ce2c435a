"""Many short runs of page frames at once: what scattered memory comes in.

A host whose free memory is in crumbs hands a file one page here and one there: millions of runs
that nothing joins. Whoever works on them run by run takes microseconds for each; as arrays they
take nanoseconds. `Extents` is such a batch; everything that takes it gives what single runs, one
after the other, would have given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEW_RUNS", "Extents", "Frames", "ScatteredPages", "expanded", "gathered"]

#: Up to so many runs are dealt with one by one.
FEW_RUNS: Final = 256
#: Pages from which a run stands for itself.
_LONG_RUN: Final = 64

Frames = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Runs of page frames: `counts[i]` frames from `pfns[i]` on, in their owner's order."""

    pfns: Frames
    counts: Frames

    def __len__(self) -> int:
        return len(self.pfns)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.pfns.tolist(), self.counts.tolist(), strict=True)

    @property
    def ends(self) -> Frames:
        """First frame behind each run."""
        return self.pfns + self.counts

    @property
    def total(self) -> int:
        """Frames of all runs."""
        return int(self.counts.sum())

    def between(self, ranges: Iterable[tuple[int, int]]) -> Extents:
        """What these runs leave of ranges (start, end); the ranges ascend, as do the runs.

        A run lies in one of the ranges or in none.
        """
        lows, highs = np.array([*ranges], dtype=np.int64).reshape(-1, 2).T
        if not len(lows):
            return Extents(lows, highs)
        pfns, ends = self.pfns, self.ends
        first = np.searchsorted(ends, lows[0], "right")
        last = np.searchsorted(pfns, highs[-1], "left")
        starts = np.append(lows, ends[first:last])
        stops = np.append(highs, pfns[first:last])
        starts.sort()
        stops.sort()
        stops -= starts  # 0 or less where a run lies at the edge of its range
        return Extents(starts[stops > 0], stops[stops > 0])

    def frames(self) -> Frames:
        """Every frame, run after run."""
        return expanded(self.pfns, self.counts)

    def ends_by_block(self, order: int) -> tuple[Frames, NDArray[np.bool_]]:
        """Blocks of 1 << order frames in which a run begins or ends: (numbers, frames in runs).

        A row of flags for each block. The runs ascend, and none is empty.
        """
        first, last = self.pfns >> order, self.ends - 1 >> order
        cut = first != last
        at, stop = np.repeat(self.pfns, 1 + cut), np.repeat(self.ends, 1 + cut)
        behind = np.flatnonzero(cut) + np.arange(1, np.count_nonzero(cut) + 1)
        stop[behind - 1] = first[cut] + 1 << order
        at[behind] = last[cut] << order
        new = np.diff(at >> order, prepend=-1) != 0
        numbers = at[new] >> order
        # frames as if there were no blocks but these
        starts = (np.cumsum(new) - 1 << order) + (at & (1 << order) - 1)
        edges = np.stack([starts, starts + stop - at], axis=1).ravel()
        lengths = np.diff(edges, prepend=0, append=len(numbers) << order)
        inside = np.zeros(len(lengths), dtype=np.bool_)
        inside[1::2] = True
        return numbers, np.repeat(inside, lengths).reshape(-1, 1 << order)


def expanded(firsts: Frames, counts: Frames) -> Frames:
    """first, first + 1, … of each run, run after run."""
    if len(firsts) == int(counts.sum()):
        return firsts
    offsets = np.cumsum(counts) - counts
    return np.repeat(firsts - offsets, counts) + np.arange(int(counts.sum()))


@dataclass(frozen=True, slots=True, eq=False)
class ScatteredPages:
    """Where each page of a stretch of a file lies: page `first + i` in frame `pfns[i]`."""

    first: int
    pfns: Frames

    def cut(self, low: int, high: int) -> Frames:
        """The frames of pages [low, high)."""
        return self.pfns[low - self.first : high - self.first]

    def extents(self, low: int, high: int) -> Extents:
        """The same as runs of adjacent frames."""
        pfns = self.cut(low, high)
        starts = np.flatnonzero(np.diff(pfns, prepend=pfns[:1] - 2) != 1)
        return Extents(pfns[starts], np.diff(starts, append=len(pfns)))

    def meets(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether any of the frames lies in one of these ranges."""
        return any(bool(((self.pfns >= low) & (self.pfns < high)).any()) for low, high in ranges)


def gathered(
    runs: list[tuple[int, int]], index: int
) -> Iterator[tuple[int, int, int | ScatteredPages]]:
    """Runs (pfn, pages) that a file gets from page `index` on, as (index, pages, where).

    `where` is frame minus index for a run that stands for itself, and the frames themselves for a
    stretch of many short ones.
    """
    if len(runs) <= FEW_RUNS:
        for pfn, nr in runs:
            yield index, nr, pfn - index
            index += nr
        return
    pfns, counts = np.array(runs, dtype=np.int64).T
    cuts = np.flatnonzero(np.diff(counts < _LONG_RUN)) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(runs)], strict=True):
        if last - first <= FEW_RUNS:
            for pfn, nr in runs[first:last]:
                yield index, nr, pfn - index
                index += nr
        else:
            stretch = expanded(pfns[first:last], counts[first:last])
            yield index, len(stretch), ScatteredPages(index, stretch)
            index += len(stretch)
