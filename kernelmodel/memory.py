"""Physical memory: sparse, in bytes, and all that a kernel leaves to the next.

A frame that nobody wrote reads as zero; a frame written byte by byte holds its 4096 bytes; and a
run of frames may hold a `Content`, a rule that yields each frame's bytes when somebody reads them:
gigabytes of guest RAM, a folio table of a million entries. A run is a cheaper way of holding bytes
and never a different answer: `read` returns exactly what would stand there, and a write into a run
turns that frame into plain bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kernelmodel.errors import KernelPanic
from kernelmodel.mm.ranges import RangeMap, RangeSet

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
PAGE_SIZE = 1 << PAGE_SHIFT
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_ZERO_PAGE = bytes(PAGE_SIZE)
_U64 = struct.Struct("<Q")
#: Pages that are read from a file, or written to it, at a time.
_STRIDE = 256


class Content(Protocol):
    """A rule for the bytes of a run of frames. Values: equal contents yield equal bytes."""

    def page(self, index: int) -> bytes:
        """The 4096 bytes of the run's page `index`."""
        ...

    def key(self) -> bytes:
        """A name for the rule; two rules with one key are one rule."""
        ...


@dataclass(frozen=True, slots=True)
class GuestContent:
    """What a guest keeps in its RAM: a seeded function of (VM, page, version).

    Page `index` is guest page `index`; a guest that writes to a page moves it to the next
    version. The bytes are those of SHAKE-128 over the three, so no page equals another.
    """

    vm: str
    version: int

    def page(self, index: int) -> bytes:
        """The bytes of guest page `index` in this version."""
        seed = f"{self.vm}\0{self.version}\0{index}".encode()
        return hashlib.shake_128(seed).digest(PAGE_SIZE)

    def key(self) -> bytes:
        """VM and version."""
        return f"guest\0{self.vm}\0{self.version}".encode()


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

    __slots__ = ("_installed", "_pages", "_runs")

    def __init__(self, ranges: tuple[MemoryRange, ...]) -> None:
        self._installed = RangeSet((r.base >> PAGE_SHIFT, r.end >> PAGE_SHIFT) for r in ranges)
        self._pages: dict[int, bytes | bytearray] = {}
        self._runs: RangeMap[tuple[Content, int]] = RangeMap()

    def is_ram(self, pa: int, size: int = 1) -> bool:
        """Whether all of [pa, pa + size) is installed RAM."""
        return pa >= 0 and self._installed.contains(
            pa >> PAGE_SHIFT, (pa + size + PAGE_SIZE - 1) >> PAGE_SHIFT
        )

    def _check(self, pa: int, size: int) -> None:
        if not self.is_ram(pa, size):
            raise KernelPanic(f"unable to handle page fault: physical address {pa:#x}")

    def page(self, pfn: int) -> bytes | bytearray:
        """The 4096 bytes of one frame."""
        found = self._pages.get(pfn)
        if found is not None:
            return found
        run = self._runs.get(pfn)
        if run is not None:
            content, base = run[2]
            return content.page(pfn - base)
        self._check(pfn << PAGE_SHIFT, PAGE_SIZE)
        return _ZERO_PAGE

    def read(self, pa: int, size: int) -> bytes:
        """`size` bytes from physical address `pa`."""
        pfn, offset = pa >> PAGE_SHIFT, pa & (PAGE_SIZE - 1)
        if offset + size <= PAGE_SIZE:
            page = self._pages.get(pfn)
            if page is None:
                page = self.page(pfn)
            return bytes(page[offset : offset + size])
        parts = []
        while size > 0:
            part = self.page(pfn)[offset : offset + size]
            parts.append(bytes(part))
            size -= len(part)
            pfn, offset = pfn + 1, 0
        return b"".join(parts)

    def write(self, pa: int, data: bytes | bytearray) -> None:
        """Put `data` at physical address `pa`."""
        size, offset = len(data), pa & (PAGE_SIZE - 1)
        if offset + size <= PAGE_SIZE:
            if size:
                self._writable(pa >> PAGE_SHIFT)[offset : offset + size] = data
            return
        at = 0
        while at < size:
            pfn, offset = (pa + at) >> PAGE_SHIFT, (pa + at) & (PAGE_SIZE - 1)
            part = data[at : at + PAGE_SIZE - offset]
            self._writable(pfn)[offset : offset + len(part)] = part
            at += len(part)

    def _writable(self, pfn: int) -> bytearray:
        page = self._pages.get(pfn)
        if type(page) is bytearray:
            return page
        fresh = bytearray(self.page(pfn))
        if page is None:
            self._runs.clear(pfn, pfn + 1)
        self._pages[pfn] = fresh
        return fresh

    def u64(self, pa: int) -> int:
        """The little-endian u64 at `pa`."""
        offset = pa & (PAGE_SIZE - 1)
        page = self._pages.get(pa >> PAGE_SHIFT)
        if page is None or offset > PAGE_SIZE - _U64.size:
            return int.from_bytes(self.read(pa, _U64.size), "little")
        value: int = _U64.unpack_from(page, offset)[0]
        return value

    def write_u64(self, pa: int, value: int) -> None:
        """Put a little-endian u64 at `pa`."""
        self.write(pa, _U64.pack(value))

    def fill(self, pfn: int, nr_pages: int, content: Content, first: int = 0) -> None:
        """Let frames pfn … hold `content`, beginning with its page `first`."""
        self.zero(pfn, nr_pages)
        self._runs.put(pfn, pfn + nr_pages, (content, pfn - first))

    def zero(self, pfn: int, nr_pages: int) -> None:
        """Clear whole frames."""
        self._check(pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
        if nr_pages == 1:
            if self._pages.pop(pfn, None) is not None:
                return
        elif nr_pages <= len(self._pages):
            for frame in range(pfn, pfn + nr_pages):
                self._pages.pop(frame, None)
        else:
            for frame in [f for f in self._pages if pfn <= f < pfn + nr_pages]:
                del self._pages[frame]
        self._runs.clear(pfn, pfn + nr_pages)

    def copy(self, source: int, target: int, nr_pages: int) -> None:
        """Copy whole frames; the two ranges do not overlap."""
        pieces = list(self.segments(source, nr_pages))
        self.zero(target, nr_pages)
        for pfn, frames, content, first in pieces:
            at = target + pfn - source
            if content is not None:
                self._runs.put(at, at + frames, (content, at - first))
            elif pfn in self._pages:
                self._pages[at] = bytes(self._pages[pfn])

    def segments(self, pfn: int, nr_pages: int) -> Iterator[tuple[int, int, Content | None, int]]:
        """What frames [pfn, pfn + nr_pages) hold, ascending, in as few pieces as there are.

        Yields (frame, frames, content, first page of the content); content is None for frames
        that hold plain bytes or nothing, which come one by one and in runs of zeroes.
        """
        self._check(pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
        end = pfn + nr_pages
        if self._pages and nr_pages <= len(self._pages):
            explicit = [f for f in range(pfn, end) if f in self._pages]
        else:
            explicit = sorted(f for f in self._pages if pfn <= f < end)
        cuts = iter([*explicit, end])
        cut = next(cuts)
        at = pfn
        for low, high, (content, base) in [*self._runs.within(pfn, end), (end, end, (None, 0))]:
            while at < low:
                if at == cut:
                    yield at, 1, None, 0
                    at, cut = at + 1, next(cuts)
                else:
                    stop = min(low, cut)
                    yield at, stop - at, None, 0
                    at = stop
            if content is not None:
                yield low, high - low, content, low - base
                at = high

    def content_digest(self, extents: Iterable[tuple[int, int]]) -> bytes:
        """A fingerprint of what the frames of `extents` (pfn, nr_pages) hold, in that order.

        It depends on content and order alone, not on where in memory the frames are or how the
        extents are cut: runs count as their rule and page numbers, other frames as their bytes.
        """
        digest = hashlib.blake2b(digest_size=16)
        pending: tuple[bytes, int, int] | None = None  # key, first page, pages
        for pfn, nr_pages in extents:
            for frame, frames, content, first in self.segments(pfn, nr_pages):
                if content is not None:
                    piece = (content.key(), first, frames)
                elif frame in self._pages:
                    piece = (bytes(self._pages[frame]), 0, 1)
                    if piece[0] == _ZERO_PAGE:
                        piece = (b"", 0, 1)
                else:
                    piece = (b"", 0, frames)
                if (
                    pending is not None
                    and pending[0] == piece[0]
                    and (piece[0] == b"" or piece[1] == pending[1] + pending[2])
                ):
                    pending = (pending[0], pending[1], pending[2] + piece[2])
                    continue
                if pending is not None:
                    _absorb(digest, pending)
                pending = piece
        if pending is not None:
            _absorb(digest, pending)
        return digest.digest()

    def save(self, path: Path) -> None:
        """Write every byte to a sparse file whose offsets are physical addresses."""
        top = max((end for _, end in self._installed), default=0) << PAGE_SHIFT
        with path.open("wb") as out:
            os.truncate(out.fileno(), top)
            for pfn in sorted(self._pages):
                os.pwrite(out.fileno(), self._pages[pfn], pfn << PAGE_SHIFT)
            for low, high, (content, base) in self._runs:
                for start in range(low, high, _STRIDE):
                    numbers = range(start - base, min(high, start + _STRIDE) - base)
                    pages = b"".join(map(content.page, numbers))
                    os.pwrite(out.fileno(), pages, start << PAGE_SHIFT)

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


def _absorb(digest: hashlib.blake2b, piece: tuple[bytes, int, int]) -> None:
    key, first, pages = piece
    digest.update(struct.pack("<QQQ", len(key), first, pages))
    digest.update(key)
