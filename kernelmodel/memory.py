"""Physical memory: sparse, in bytes, and all that a kernel leaves to the next.

A frame that nobody wrote reads as zero; a frame written byte by byte holds its 4096 bytes; and a
run of frames may hold a `Content`, a rule that yields each frame's bytes when somebody reads them:
gigabytes of guest RAM, a folio table of a million entries. A run is a cheaper way of holding bytes
and never a different answer: `read` returns exactly what would stand there, and a write into a run
turns that frame into plain bytes.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from kernelmodel.content import PAGE_SIZE, Content, GuestContent, Piece
from kernelmodel.errors import KernelPanic
from kernelmodel.fingerprint import content_digest, scattered_digest
from kernelmodel.mm.extents import FEW_RUNS, Extents, Frames
from kernelmodel.mm.frame_set import FrameSet
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.scattered import ScatteredFrames

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "Content",
    "GuestContent",
    "MemoryRange",
    "PhysicalMemory",
]

PAGE_SHIFT = 12
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_ZERO_PAGE = bytes(PAGE_SIZE)
_IN_PAGE = PAGE_SIZE - 1
_put_u64, _u64_at = struct.Struct("<Q").pack_into, struct.Struct("<Q").unpack_from
#: Pages that are read from a file, or written to it, at a time.
_STRIDE = 256


_frames_of: Callable[[Piece], int] = itemgetter(1)


def _length(pair: tuple[int, int]) -> int:
    return pair[1] - pair[0]


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """One usable range of the memory map, in bytes, with the node that owns it."""

    base: int
    size: int
    nid: int

    @property
    def end(self) -> int:
        """First byte behind the range."""
        return self.base + self.size


class PhysicalMemory:
    """Sparse physical memory, addressed in bytes; runs of content are in page frames.

    An access outside the installed RAM is what it is for the kernel: a fault in kernel mode,
    hence a `KernelPanic`.
    """

    __slots__ = ("_bounds", "_installed", "_pages", "_pieces", "_scattered", "_usual")

    def __init__(self, ranges: tuple[MemoryRange, ...]) -> None:
        self._installed = RangeSet((r.base >> PAGE_SHIFT, r.end >> PAGE_SHIFT) for r in ranges)
        # Most of it, while nothing is scattered: neither need be looked at for these frames.
        self._usual = range(*max(self._installed, key=_length, default=(0, 0)))
        # All that is not zero, ascending: runs of content, and single frames of plain bytes.
        self._pieces: list[Piece] = []
        # First frame of each piece and the one behind its last: start, end, start, end, ... The
        # number of bounds that are not above a frame is odd if it is in a piece, in number // 2.
        self._bounds: list[int] = []
        # The plain bytes, by frame.
        self._pages: dict[int, bytearray] = {}
        # Pages of content that lie scattered, if ever there were any; none of them is in a piece.
        self._scattered: ScatteredFrames | None = None

    def is_ram(self, pa: int, size: int = 1) -> bool:
        """Whether all of [pa, pa + size) is installed RAM."""
        return self._installed.contains(pa >> PAGE_SHIFT, pa + size + _IN_PAGE >> PAGE_SHIFT)

    def _check(self, pfn: int, end: int) -> None:
        if not self._installed.contains(pfn, end):
            pa = pfn << PAGE_SHIFT
            raise KernelPanic(f"unable to handle page fault: physical address {pa:#x}")

    def page(self, pfn: int) -> bytes | bytearray:
        """The 4096 bytes of one frame."""
        page = self._pages.get(pfn)
        if page is not None:
            return page
        at = bisect_right(self._bounds, pfn)
        if at & 1:
            start, _, content, first = self._pieces[at >> 1]
            assert content is not None  # as it is no plain page
            return content.page(first + pfn - start)
        if self._scattered is not None and (cell := self._scattered.get(pfn)) is not None:
            return cell[0].page(cell[1])
        self._check(pfn, pfn + 1)
        return _ZERO_PAGE

    def read(self, pa: int, size: int) -> bytes:
        """`size` bytes from physical address `pa`."""
        pfn, offset = pa >> PAGE_SHIFT, pa & _IN_PAGE
        if offset + size <= PAGE_SIZE:
            page = self._pages.get(pfn) or self.page(pfn)
            return bytes(page if size == PAGE_SIZE else page[offset : offset + size])
        parts = []
        while size > 0:
            part = self.page(pfn)[offset : offset + size]
            parts.append(bytes(part))
            size -= len(part)
            pfn, offset = pfn + 1, 0
        return b"".join(parts)

    def write(self, pa: int, data: bytes | bytearray) -> None:
        """Put `data` at physical address `pa`."""
        offset = pa & _IN_PAGE
        end = offset + len(data)
        if end <= PAGE_SIZE and (page := self._pages.get(pa >> PAGE_SHIFT)):
            page[offset:end] = data
            return
        at = 0
        while at < len(data):
            part = data[at : at + PAGE_SIZE - offset]
            self.writable(pa + at >> PAGE_SHIFT)[offset : offset + len(part)] = part
            at, offset = at + len(part), 0

    def writable(self, pfn: int) -> bytearray:
        """The 4096 bytes of one frame, to be changed in place.

        They are the frame's until it is cleared or filled: only its owner may keep them.
        """
        page = self._pages.get(pfn)
        if page is None:
            page = bytearray(self.page(pfn))
            self.clear_page(pfn)
            self._pages[pfn] = page
        return page

    def u64(self, pa: int) -> int:
        """The little-endian u64 at `pa`."""
        page, offset = self._pages.get(pa >> PAGE_SHIFT), pa & _IN_PAGE
        if page is None or offset > PAGE_SIZE - 8:
            return int.from_bytes(self.read(pa, 8), "little")
        value: int = _u64_at(page, offset)[0]
        return value

    def write_u64(self, pa: int, value: int) -> None:
        """Put a little-endian u64 at `pa`."""
        page, offset = self._pages.get(pa >> PAGE_SHIFT), pa & _IN_PAGE
        if page is None or offset > PAGE_SIZE - 8:
            self.write(pa, value.to_bytes(8, "little"))
        else:
            _put_u64(page, offset, value)

    def fill(self, pfn: int, nr_pages: int, content: Content, first: int = 0) -> None:
        """Let frames pfn … hold `content`, beginning with its page `first`."""
        if nr_pages:
            self._replace(pfn, pfn + nr_pages, (pfn, nr_pages, content, first))

    def fill_scattered(self, pfns: Frames, content: Content, first: int = 0) -> None:
        """As `fill` for each of these frames in turn, with one page of `content` each."""
        pages = np.arange(first, first + len(pfns))
        self.zero_scattered(pfns).put(pfns, content, pages)

    def zero_scattered(self, pfns: Frames) -> ScatteredFrames:
        """Clear many frames that lie anywhere; where scattered content is to be put."""
        low, high = int(pfns.min()), int(pfns.max()) + 1
        self._check(low, low + 1)
        self._check(high - 1, high)
        wanted = FrameSet()
        wanted.add(pfns)
        here = self._scattered = self._scattered or ScatteredFrames()
        self._usual = range(0)
        at, last = bisect_right(self._bounds, low) >> 1, bisect_left(self._bounds, high) + 1 >> 1
        for frame, frames, content, first in self._pieces[at:last]:
            if content is None:
                if frame in wanted:
                    self.zero(frame, 1)
                continue
            start, end = max(frame, low), min(frame + frames, high)
            holes = [run for batch in wanted.runs(start, end) for run in batch]
            if len(holes) > FEW_RUNS:  # it is no run any more
                self.zero(start, end - start)
                pages = np.arange(start - frame, end - frame) + first
                here.put(np.arange(start, end), content, pages)
            else:
                for pfn, nr_pages in holes:
                    self.zero(pfn, nr_pages)
        here.clear_frames(pfns)
        return here

    def zero(self, pfn: int, nr_pages: int) -> None:
        """Clear whole frames."""
        if nr_pages:
            self._replace(pfn, pfn + nr_pages, None)

    def clear_page(self, pfn: int) -> None:
        """Clear one frame, which is going to be written. C: clear_page()."""
        if pfn not in self._pages:
            at = bisect_right(self._bounds, pfn)
            if at & 1 or pfn not in self._usual:
                self._replace(pfn, pfn + 1, (pfn, 1, None, 0))
            else:
                self._bounds[at:at] = (pfn, pfn + 1)
                self._pieces.insert(at >> 1, (pfn, 1, None, 0))
        self._pages[pfn] = bytearray(PAGE_SIZE)

    def _replace(self, pfn: int, end: int, piece: Piece | None) -> None:
        """Let `piece` be what frames [pfn, end) hold; None for zeroes."""
        if pfn not in self._usual or end > self._usual.stop:
            self._check(pfn, end)
            if self._scattered is not None:
                self._scattered.clear(pfn, end - pfn)
        bounds = self._bounds
        at, last = bisect_right(bounds, pfn), bisect_left(bounds, end)
        if at == last and at & 1 == 0:  # nothing is there
            if piece is not None:
                bounds[at:at] = (pfn, end)
                self._pieces.insert(at >> 1, piece)
            return
        pieces, edges = ([], []) if piece is None else ([piece], [pfn, end])
        met = self._pieces[at >> 1 : last + 1 >> 1]
        start, _, content, first = met[0]
        if start < pfn:
            pieces.insert(0, (start, pfn - start, content, first))
            edges[:0] = (start, pfn)
        start, frames, content, first = met[-1]
        if end < start + frames:
            pieces.append((end, start + frames - end, content, first + end - start))
            edges += (end, start + frames)
        for start, _, content, _ in met:
            if content is None:
                del self._pages[start]
        self._pieces[at >> 1 : last + 1 >> 1] = pieces
        bounds[at & -2 : last + 1 & -2] = edges

    def copy(self, source: int, target: int, nr_pages: int) -> None:
        """Copy whole frames; the two ranges do not overlap."""
        pieces = self.segments(source, nr_pages)
        self.zero(target, nr_pages)
        for pfn, frames, content, first in pieces:
            at = target + pfn - source
            if content is not None:
                self.fill(at, frames, content, first)
            elif pfn in self._pages:
                self.write(at << PAGE_SHIFT, self._pages[pfn])

    def segments(self, pfn: int, nr_pages: int) -> list[Piece]:
        """What frames [pfn, pfn + nr_pages) hold, ascending, in as few pieces as there are.

        Pieces are (frame, frames, content, first page of the content); content is None for frames
        that hold plain bytes or nothing, which come one by one and in runs of zeroes.
        """
        if not nr_pages:
            return []
        bounds, end = self._bounds, pfn + nr_pages
        at, last = bisect_right(bounds, pfn), bisect_left(bounds, end)
        pieces = self._pieces[at >> 1 : last + 1 >> 1]
        if at & 1 and pieces[0][0] < pfn:
            start, frames, content, first = pieces[0]
            pieces[0] = (pfn, start + frames - pfn, content, first + pfn - start)
        if last & 1 and bounds[last] > end:
            start, _, content, first = pieces[-1]
            pieces[-1] = (start, end - start, content, first)
        if sum(map(_frames_of, pieces)) == nr_pages:
            return pieces
        self._check(pfn, end)
        whole: list[Piece] = []
        at = pfn
        for piece in pieces:
            if at < piece[0]:
                whole.append((at, piece[0] - at, None, 0))
            whole.append(piece)
            at = piece[0] + piece[1]
        if at < end:
            whole.append((at, end - at, None, 0))
        return whole if self._scattered is None else self._scattered.among(whole, self._pages)

    def content_digest(self, extents: Iterable[tuple[int, int] | Extents]) -> bytes:
        """A fingerprint of what the frames of `extents` (pfn, nr_pages) hold, in that order.

        It depends on content and order alone, not on where in memory the frames are or how the
        extents are cut: runs count as their rule and page numbers, other frames as their bytes.
        """
        if Extents in map(type, those := list(extents)):
            return scattered_digest(those, self.segments, self._pages, self._scattered)
        return content_digest(those, self.segments, self._pages)  # type: ignore[arg-type]

    def save(self, path: Path) -> None:
        """Write every byte to a sparse file whose offsets are physical addresses."""
        top = max((end for _, end in self._installed), default=0) << PAGE_SHIFT
        with path.open("wb") as out:
            os.truncate(out.fileno(), top)
            for pfn, frames, _, _ in self._pieces:
                for start in range(pfn, pfn + frames, _STRIDE):
                    numbers = range(start, min(pfn + frames, start + _STRIDE))
                    os.pwrite(out.fileno(), b"".join(map(self.page, numbers)), start << PAGE_SHIFT)
            if self._scattered is not None:
                for pfn, frames, content, first in self._scattered.pieces(0, top >> PAGE_SHIFT):
                    pages = b"".join(map(content.page, range(first, first + frames)))
                    os.pwrite(out.fileno(), pages, pfn << PAGE_SHIFT)

    @classmethod
    def load(cls, path: Path, ranges: tuple[MemoryRange, ...]) -> PhysicalMemory:
        """Read such a file back: plain bytes, no runs; what is not in the ranges is passed over."""
        memory = cls(ranges)
        with path.open("rb") as source:
            fd, size = source.fileno(), os.fstat(source.fileno()).st_size
            at = 0
            while at < size:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA) & ~(PAGE_SIZE - 1)
                except OSError:  # ENXIO: only holes from here on
                    break
                hole = os.lseek(fd, at, os.SEEK_HOLE)
                while at < hole:
                    memory._load(at >> PAGE_SHIFT, os.pread(fd, _STRIDE << PAGE_SHIFT, at))
                    at += _STRIDE << PAGE_SHIFT
        return memory

    def _load(self, pfn: int, data: bytes) -> None:
        for at in range(0, len(data), PAGE_SIZE):
            page = data[at : at + PAGE_SIZE]
            if page != _ZERO_PAGE and self.is_ram((pfn << PAGE_SHIFT) + at):
                self.write((pfn << PAGE_SHIFT) + at, page)
