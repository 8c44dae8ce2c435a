"""Sets of page frames that lie scattered: a tile of flags for each 128 MiB in which there are any.

What `RangeSet` is for runs. Adding or asking for millions of frames at once costs nanoseconds for
each, whatever their order; one frame costs a look into a dict.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernelmodel.mm.extents import Extents, Frames

__all__ = ["TILE_LOG2", "FrameSet", "by_tile", "flag_runs"]

#: A tile has as many frames as a bitmap of KHO's radix tree has keys.
TILE_LOG2: Final = 15
_TILE: Final = 1 << TILE_LOG2


def by_tile(pfns: Frames) -> Iterator[tuple[int, slice | Frames]]:
    """Tiles that the frames lie in, ascending, each with the positions of its frames."""
    tiles = pfns >> TILE_LOG2
    if not len(tiles):
        return
    if (tiles[1:] >= tiles[:-1]).all():  # in order, as they are when a kernel looks for them
        cuts = [0, *(np.flatnonzero(np.diff(tiles)) + 1).tolist(), len(tiles)]
        for first, last in pairwise(cuts):
            yield int(tiles[first]), slice(first, last)
        return
    low = int(tiles.min())
    if int(tiles.max()) - low < 1 << 16:  # small numbers are sorted digit by digit
        order = np.argsort((tiles - low).astype(np.uint16), kind="stable")
    else:
        order = np.argsort(tiles, kind="stable")
    tiles = tiles[order]
    cuts = [0, *(np.flatnonzero(np.diff(tiles)) + 1).tolist(), len(tiles)]
    for first, last in pairwise(cuts):
        yield int(tiles[first]), order[first:last]


def flag_runs(flags: NDArray[np.bool_]) -> tuple[Frames, Frames]:
    """Where runs of set flags begin and end."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return edges[::2], edges[1::2]


class FrameSet:
    """A set of page frames."""

    __slots__ = ("_tiles",)

    def __init__(self) -> None:
        self._tiles: dict[int, NDArray[np.bool_]] = {}

    def __bool__(self) -> bool:
        return bool(self._tiles)

    def __contains__(self, pfn: int) -> bool:
        tile = self._tiles.get(pfn >> TILE_LOG2)
        return tile is not None and bool(tile[pfn & _TILE - 1])

    @property
    def total(self) -> int:
        """Frames in the set."""
        return sum(int(np.count_nonzero(tile)) for tile in self._tiles.values())

    def add(self, pfns: Frames) -> None:
        """Put frames in."""
        for number, at in by_tile(pfns):
            tile = self._tiles.get(number)
            if tile is None:
                tile = self._tiles[number] = np.zeros(_TILE, dtype=np.bool_)
            tile[pfns[at] & _TILE - 1] = True

    def has(self, pfns: Frames) -> NDArray[np.bool_]:
        """Which of these frames are in the set."""
        found = np.zeros(len(pfns), dtype=np.bool_)
        for number, at in by_tile(pfns):
            tile = self._tiles.get(number)
            if tile is not None:
                found[at] = tile[pfns[at] & _TILE - 1]
        return found

    def discard(self, pfns: Frames) -> None:
        """Take frames out, whichever of them are there."""
        for number, at in by_tile(pfns):
            tile = self._tiles.get(number)
            if tile is not None:
                tile[pfns[at] & _TILE - 1] = False

    def discard_run(self, start: int, end: int) -> None:
        """Take [start, end) out, whatever of it is there."""
        for number in self._numbers(start, end):
            low = number << TILE_LOG2
            self._tiles[number][max(0, start - low) : end - low] = False

    def run_length(self, pfn: int, most: int) -> int:
        """How many frames, `most` at most, are in the set one after the other from pfn on."""
        found = 0
        while found < most:
            tile = self._tiles.get(pfn + found >> TILE_LOG2)
            if tile is None:
                break
            first = pfn + found & _TILE - 1
            part = tile[first : first + most - found]
            stop = int(part.argmin())  # the first that is not set, 0 if all are
            if not part[stop]:
                return found + stop
            found += len(part)
        return found

    def runs(self, start: int = 0, end: int = 1 << 60) -> Iterator[Extents]:
        """The set within [start, end), ascending, a batch for each tile."""
        for number in sorted(self._numbers(start, end)):
            low = number << TILE_LOG2
            first = max(0, start - low)
            firsts, lasts = flag_runs(self._tiles[number][first : end - low])
            if len(firsts):
                yield Extents(firsts + (low + first), lasts - firsts)

    def _numbers(self, start: int, end: int) -> list[int]:
        first, last = start >> TILE_LOG2, -(-end // _TILE)
        if last - first < len(self._tiles):
            return [number for number in range(first, last) if number in self._tiles]
        return [number for number in self._tiles if first <= number < last]
