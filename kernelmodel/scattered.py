"""Frames whose content is one page of a rule each, in no order: guests on scattered memory.

`PhysicalMemory` holds runs as ranges; where neighbours in memory are strangers in their file, a
range would be a page. Here a tile of 32,768 frames (128 MiB) has a number for each of them: which
rule, and which of its pages. Reading a frame gives what its rule says, as a run would.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernelmodel.content import Content, Piece
from kernelmodel.mm.extents import Frames
from kernelmodel.mm.frame_set import TILE_LOG2, by_tile

__all__ = ["PAGE_BITS", "ScatteredFrames"]

_TILE: Final = 1 << TILE_LOG2
#: A cell is rule << PAGE_BITS | page, rules counted from 1; 0 for a frame that is not here.
PAGE_BITS: Final = 44
_PAGE_MASK: Final = (1 << PAGE_BITS) - 1

Cells = NDArray[np.int64]


class ScatteredFrames:
    """The scattered frames of one physical memory, by frame."""

    __slots__ = ("_numbers", "_tiles", "contents")

    def __init__(self) -> None:
        self._tiles: dict[int, Cells] = {}
        #: The rules, in the order in which they came: the first is number 1.
        self.contents: list[Content] = []
        self._numbers: dict[bytes, int] = {}

    def put(self, pfns: Frames, content: Content, pages: Frames) -> None:
        """Let frame pfns[i] hold page pages[i] of `content`, whatever was here before."""
        number = self._numbers.setdefault(content.key(), len(self.contents) + 1)
        if number > len(self.contents):
            self.contents.append(content)
        cells = pages | number << PAGE_BITS
        for tile, at in by_tile(pfns):
            if tile not in self._tiles:
                self._tiles[tile] = np.zeros(_TILE, dtype=np.int64)
            self._tiles[tile][pfns[at] & _TILE - 1] = cells[at]

    def clear(self, pfn: int, nr_pages: int) -> None:
        """Whatever frames [pfn, pfn + nr_pages) hold, it is not here."""
        end = pfn + nr_pages
        for number in self._within(pfn, end):
            low = number << TILE_LOG2
            tile = self._tiles[number]
            if pfn <= low and low + _TILE <= end:
                del self._tiles[number]
            else:
                tile[max(0, pfn - low) : end - low] = 0

    def clear_frames(self, pfns: Frames) -> None:
        """Whatever these frames hold, it is not here."""
        for number, at in by_tile(pfns):
            tile = self._tiles.get(number)
            if tile is not None:
                tile[pfns[at] & _TILE - 1] = 0

    def get(self, pfn: int) -> tuple[Content, int] | None:
        """The rule and the page that a frame holds; None if that is not here."""
        tile = self._tiles.get(pfn >> TILE_LOG2)
        cell = 0 if tile is None else int(tile[pfn & _TILE - 1])
        return (self.contents[(cell >> PAGE_BITS) - 1], cell & _PAGE_MASK) if cell else None

    def cells(self, pfns: Frames) -> Cells:
        """The cell of each of these frames."""
        found = np.zeros(len(pfns), dtype=np.int64)
        for number, at in by_tile(pfns):
            tile = self._tiles.get(number)
            if tile is not None:
                found[at] = tile[pfns[at] & _TILE - 1]
        return found

    def pieces(self, pfn: int, nr_pages: int) -> Iterator[tuple[int, int, Content, int]]:
        """(frame, frames, rule, first page) of what is here of [pfn, pfn + nr_pages), ascending."""
        end = pfn + nr_pages
        for number in sorted(self._within(pfn, end)):
            low = number << TILE_LOG2
            first = max(0, pfn - low)
            cells = self._tiles[number][first : end - low]
            starts = np.flatnonzero(np.diff(cells, prepend=0) != 1)
            stops = np.append(starts[1:], len(cells))
            starts, stops = starts[cells[starts] > 0], stops[cells[starts] > 0]
            for at, stop, cell in zip(
                starts.tolist(), stops.tolist(), cells[starts].tolist(), strict=True
            ):
                content = self.contents[(cell >> PAGE_BITS) - 1]
                yield low + first + at, stop - at, content, cell & _PAGE_MASK

    def among(self, pieces: list[Piece], plain: Container[int]) -> list[Piece]:
        """`pieces` of a memory, with what is here in place of nothing; `plain` ones are bytes."""
        whole: list[Piece] = []
        for piece in pieces:
            at, frames, content, _ = piece
            if content is not None or at in plain:
                whole.append(piece)
                continue
            end = at + frames
            for low, count, rule, page in self.pieces(at, frames):
                if at < low:
                    whole.append((at, low - at, None, 0))
                whole.append((low, count, rule, page))
                at = low + count
            if at < end:
                whole.append((at, end - at, None, 0))
        return whole

    def _within(self, start: int, end: int) -> list[int]:
        first, last = start >> TILE_LOG2, -(-end // _TILE)
        if last - first < len(self._tiles):
            return [number for number in range(first, last) if number in self._tiles]
        return [number for number in self._tiles if first <= number < last]
