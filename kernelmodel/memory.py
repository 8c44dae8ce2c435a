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
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernelmodel.content import PAGE_SIZE, Content, GuestContent, Piece
from kernelmodel.errors import KernelPanic
from kernelmodel.fingerprint import content_digest
from kernelmodel.mm.extents import FEW_RUNS, Extents, Frames
from kernelmodel.mm.frame_set import FrameSet
from kernelmodel.mm.ranges import RangeMap, RangeSet
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
_put_u64, _u64_at = struct.Struct("<Q").pack_into, struct.Struct("<Q").unpack_from
#: Pages that are read from a file, or written to it, at a time.
_STRIDE = 256


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

    __slots__ = ("_frames", "_high", "_installed", "_low", "_pages", "_runs", "_scattered")

    def __init__(self, ranges: tuple[MemoryRange, ...]) -> None:
        self._installed = RangeSet((r.base >> PAGE_SHIFT, r.end >> PAGE_SHIFT) for r in ranges)
        # Most of it: what lies between these frames need not be looked for.
        self._low, self._high = max(self._installed, key=_length, default=(0, 0))
        # Frames that hold plain bytes, and their numbers in ascending order.
        self._pages: dict[int, bytes | bytearray] = {}
        self._frames: list[int] = []
        self._runs: RangeMap[tuple[Content, int]] = RangeMap()
        # Pages of content that lie scattered, if ever there were any. No frame is in two of these.
        self._scattered: ScatteredFrames | None = None

    def is_ram(self, pa: int, size: int = 1) -> bool:
        """Whether all of [pa, pa + size) is installed RAM."""
        return pa >= 0 and self._installed.contains(
            pa >> PAGE_SHIFT, (pa + size + PAGE_SIZE - 1) >> PAGE_SHIFT
        )

    def _check(self, pfn: int, end: int) -> None:
        if not self._installed.contains(pfn, end):
            pa = pfn << PAGE_SHIFT
            raise KernelPanic(f"unable to handle page fault: physical address {pa:#x}")

    def page(self, pfn: int) -> bytes | bytearray:
        """The 4096 bytes of one frame."""
        if pfn in self._pages:
            return self._pages[pfn]
        run = self._runs.get(pfn)
        if run is not None:
            content, base = run[2]
            return content.page(pfn - base)
        if self._scattered is not None and (cell := self._scattered.get(pfn)) is not None:
            return cell[0].page(cell[1])
        self._check(pfn, pfn + 1)
        return _ZERO_PAGE

    def read(self, pa: int, size: int) -> bytes:
        """`size` bytes from physical address `pa`."""
        pfn, offset = pa >> PAGE_SHIFT, pa & (PAGE_SIZE - 1)
        if offset + size <= PAGE_SIZE:
            page = self._pages[pfn] if pfn in self._pages else self.page(pfn)
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
        pfn, offset, size = pa >> PAGE_SHIFT, pa & (PAGE_SIZE - 1), len(data)
        if offset + size <= PAGE_SIZE:
            if size:
                page = self._pages.get(pfn)
                if type(page) is not bytearray:
                    page = self.writable(pfn)
                page[offset : offset + size] = data
            return
        at = 0
        while at < size:
            part = data[at : at + PAGE_SIZE - offset]
            self.writable(pfn)[offset : offset + len(part)] = part
            at += len(part)
            pfn, offset = pfn + 1, 0

    def writable(self, pfn: int) -> bytearray:
        """The 4096 bytes of one frame, to be changed in place.

        They are the frame's until it is cleared or filled: only its owner may keep them.
        """
        pages = self._pages
        if pfn in pages and type(page := pages[pfn]) is bytearray:
            return page
        fresh = bytearray(self.page(pfn))
        if pfn not in pages:
            self._hold(pfn)
        pages[pfn] = fresh
        return fresh

    def _hold(self, pfn: int) -> None:
        """A frame that held none is given plain bytes."""
        self._runs.clear(pfn, pfn + 1)
        if self._scattered is not None:
            self._scattered.clear(pfn, 1)
        insort(self._frames, pfn)

    def u64(self, pa: int) -> int:
        """The little-endian u64 at `pa`."""
        pfn, offset = pa >> PAGE_SHIFT, pa & (PAGE_SIZE - 1)
        if pfn not in self._pages or offset > PAGE_SIZE - 8:
            return int.from_bytes(self.read(pa, 8), "little")
        value: int = _u64_at(self._pages[pfn], offset)[0]
        return value

    def write_u64(self, pa: int, value: int) -> None:
        """Put a little-endian u64 at `pa`."""
        offset = pa & (PAGE_SIZE - 1)
        if offset > PAGE_SIZE - 8:
            self.write(pa, value.to_bytes(8, "little"))
        else:
            page = self._pages.get(pa >> PAGE_SHIFT)
            if type(page) is not bytearray:
                page = self.writable(pa >> PAGE_SHIFT)
            _put_u64(page, offset, value)

    def fill(self, pfn: int, nr_pages: int, content: Content, first: int = 0) -> None:
        """Let frames pfn … hold `content`, beginning with its page `first`."""
        end = pfn + nr_pages
        if not self._low <= pfn < end <= self._high:
            self._check(pfn, end)
        self._drop_pages(pfn, end)
        self._runs.put(pfn, end, (content, pfn - first))
        if self._scattered is not None:
            self._scattered.clear(pfn, nr_pages)

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
        for frame in self._frames[bisect_left(self._frames, low) : bisect_left(self._frames, high)]:
            if frame in wanted:
                self._drop_pages(frame, frame + 1)
        here = self._scattered = self._scattered or ScatteredFrames()
        for start, end, (content, base) in list(self._runs.within(low, high)):
            holes = [run for batch in wanted.runs(start, end) for run in batch]
            if len(holes) > FEW_RUNS:  # it is no run any more
                self._runs.clear(start, end)
                here.put(np.arange(start, end), content, np.arange(start, end) - base)
            else:
                for pfn, nr_pages in holes:
                    self._runs.clear(pfn, pfn + nr_pages)
        here.clear_frames(pfns)
        return here

    def zero(self, pfn: int, nr_pages: int) -> None:
        """Clear whole frames."""
        end = pfn + nr_pages
        if not self._low <= pfn < end <= self._high:
            self._check(pfn, end)
        self._drop_pages(pfn, end)
        self._runs.clear(pfn, end)
        if self._scattered is not None:
            self._scattered.clear(pfn, nr_pages)

    def clear_page(self, pfn: int) -> None:
        """Clear one frame, which is going to be written. C: clear_page()."""
        pages = self._pages
        if pfn not in pages:
            if not self._low <= pfn < self._high:
                self._check(pfn, pfn + 1)
            self._hold(pfn)
        pages[pfn] = bytearray(PAGE_SIZE)

    def _drop_pages(self, pfn: int, end: int) -> None:
        frames = self._frames
        first = bisect_left(frames, pfn)
        if first == len(frames) or frames[first] >= end:
            return
        last = bisect_left(frames, end, first)
        for frame in frames[first:last]:
            del self._pages[frame]
        del frames[first:last]

    def copy(self, source: int, target: int, nr_pages: int) -> None:
        """Copy whole frames; the two ranges do not overlap."""
        pieces = self.segments(source, nr_pages)
        self.zero(target, nr_pages)
        for pfn, frames, content, first in pieces:
            at = target + pfn - source
            if content is not None:
                self._runs.put(at, at + frames, (content, at - first))
            elif pfn in self._pages:
                self._hold(at)
                self._pages[at] = bytes(self._pages[pfn])

    def segments(self, pfn: int, nr_pages: int) -> list[Piece]:
        """What frames [pfn, pfn + nr_pages) hold, ascending, in as few pieces as there are.

        Pieces are (frame, frames, content, first page of the content); content is None for frames
        that hold plain bytes or nothing, which come one by one and in runs of zeroes.
        """
        end = pfn + nr_pages
        if not self._low <= pfn < end <= self._high:
            self._check(pfn, end)
        whole: list[Piece] = []
        at = pfn
        for low, high, (content, base) in self._runs.within(pfn, end):
            if at < low:
                whole += self._outside_runs(at, low)
            whole.append((low, high - low, content, low - base))
            at = high
        if at < end:
            whole += self._outside_runs(at, end)
        return whole

    def _outside_runs(self, pfn: int, end: int) -> list[Piece]:
        """As `segments`, for frames of which none is in a run."""
        frames = self._frames
        first = bisect_left(frames, pfn)
        pieces: list[Piece] = []
        at = pfn
        for frame in frames[first : bisect_left(frames, end, first)]:
            if at < frame:
                pieces.append((at, frame - at, None, 0))
            pieces.append((frame, 1, None, 0))
            at = frame + 1
        if at < end:
            pieces.append((at, end - at, None, 0))
        return pieces if self._scattered is None else self._scattered.among(pieces, self._pages)

    def content_digest(self, extents: Iterable[tuple[int, int] | Extents]) -> bytes:
        """A fingerprint of what the frames of `extents` (pfn, nr_pages) hold, in that order.

        It depends on content and order alone, not on where in memory the frames are or how the
        extents are cut: runs count as their rule and page numbers, other frames as their bytes.
        """
        return content_digest(list(extents), self.segments, self._pages, self._scattered)

    def save(self, path: Path) -> None:
        """Write every byte to a sparse file whose offsets are physical addresses."""
        top = max((end for _, end in self._installed), default=0) << PAGE_SHIFT
        with path.open("wb") as out:
            os.truncate(out.fileno(), top)
            for pfn in self._frames:
                os.pwrite(out.fileno(), self._pages[pfn], pfn << PAGE_SHIFT)
            for low, high, (content, base) in self._runs:
                for start in range(low, high, _STRIDE):
                    numbers = range(start - base, min(high, start + _STRIDE) - base)
                    pages = b"".join(map(content.page, numbers))
                    os.pwrite(out.fileno(), pages, start << PAGE_SHIFT)
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
                self._pages[pfn + (at >> PAGE_SHIFT)] = page.ljust(PAGE_SIZE, b"\0")
                self._frames.append(pfn + (at >> PAGE_SHIFT))  # a file is read upwards
