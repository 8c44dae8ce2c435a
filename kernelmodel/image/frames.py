"""Frames of physical memory that come from a file, and what a search for KHO's FDT finds in them.

A frame that the source does not hold is absent: `frame` says None, and a reader takes it for zero.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kernelmodel.abi.kexec_handover import KHO_PROP_MEMORY_MAP
from kernelmodel.abi.layout import cstring
from kernelmodel.kho.fdt import FDT_MAGIC, Fdt, FdtError
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["Frames", "Image", "Span", "SpanFrames", "SparseFrames", "find_fdts"]

#: Frames that one look for a magic number takes in.
_STRIDE = 1 << 16


class Frames(Protocol):
    """Some frames of physical memory, by page frame number."""

    def frame(self, pfn: int) -> bytes | None:
        """The 4096 bytes of a frame, None if it is absent."""
        ...

    def held(self, pfn: int, nr_pages: int) -> Iterator[tuple[int, int]]:
        """What of [pfn, pfn + nr_pages) is there, as ascending (first, end)."""
        ...

    @property
    def total(self) -> int:
        """Number of frames."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """Frames and the address of the root FDT among them.

    `others` are further FDTs of KHO that a search came across: those of kernels before. `remarks`
    say what is wrong with the file itself.
    """

    frames: Frames
    fdt_pa: int
    others: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


class SparseFrames:
    """Frames each of which is held by itself; `pages` must not change afterwards."""

    __slots__ = ("_pages", "_runs")

    def __init__(self, pages: Mapping[int, bytes]) -> None:
        self._pages = pages
        self._runs: tuple[list[int], list[int]] | None = None

    def frame(self, pfn: int) -> bytes | None:
        """The frame's bytes."""
        return self._pages.get(pfn)

    @property
    def total(self) -> int:
        """Number of frames."""
        return len(self._pages)

    def held(self, pfn: int, nr_pages: int) -> Iterator[tuple[int, int]]:
        """What of the range is there."""
        if self._runs is None:
            self._runs = _runs_of(sorted(self._pages))
        starts, ends = self._runs
        end = pfn + nr_pages
        at = bisect_right(ends, pfn)
        while at < len(starts) and starts[at] < end:
            yield max(pfn, starts[at]), min(end, ends[at])
            at += 1


def _runs_of(numbers: list[int]) -> tuple[list[int], list[int]]:
    starts: list[int] = []
    ends: list[int] = []
    for number in numbers:
        if ends and ends[-1] == number:
            ends[-1] += 1
        else:
            starts.append(number)
            ends.append(number + 1)
    return starts, ends


@dataclass(frozen=True, slots=True)
class Span:
    """Frames [pfn, pfn + nr_pages) stand at `offset` of a file."""

    pfn: int
    nr_pages: int
    offset: int


class SpanFrames:
    """Frames in a file that is mapped (or read): `data` at ascending, disjoint `spans`.

    `written` are the spans in which something other than zero can be, all unless said otherwise.
    """

    __slots__ = ("_data", "_starts", "_written", "spans")

    def __init__(
        self, data: memoryview, spans: list[Span], written: list[Span] | None = None
    ) -> None:
        self._data = data
        self.spans = spans
        self._written = spans if written is None else written
        self._starts = [span.pfn for span in spans]

    def frame(self, pfn: int) -> bytes | None:
        """The frame's bytes."""
        at = bisect_right(self._starts, pfn) - 1
        if at < 0 or pfn >= self.spans[at].pfn + self.spans[at].nr_pages:
            return None
        offset = self.spans[at].offset + (pfn - self.spans[at].pfn << PAGE_SHIFT)
        return bytes(self._data[offset : offset + PAGE_SIZE])

    @property
    def total(self) -> int:
        """Number of frames."""
        return sum(span.nr_pages for span in self.spans)

    def held(self, pfn: int, nr_pages: int) -> Iterator[tuple[int, int]]:
        """What of the range is there."""
        end = pfn + nr_pages
        at = max(0, bisect_left(self._starts, pfn) - 1)
        for span in self.spans[at:]:
            if span.pfn >= end:
                return
            low, high = max(pfn, span.pfn), min(end, span.pfn + span.nr_pages)
            if low < high:
                yield low, high

    def heads(self, magic: int) -> Iterator[int]:
        """Numbers of the frames that start with this big-endian u32."""
        for span in self._written:
            for first in range(0, span.nr_pages, _STRIDE):
                nr_pages = min(_STRIDE, span.nr_pages - first)
                offset = span.offset + (first << PAGE_SHIFT)
                part = self._data[offset : offset + (nr_pages << PAGE_SHIFT)]
                words = np.frombuffer(part, dtype=">u4")[:: PAGE_SIZE // 4]
                for hit in np.flatnonzero(words == magic).tolist():
                    yield span.pfn + first + hit


def find_fdts(frames: SpanFrames) -> list[int]:
    """Addresses of root FDTs of KHO, ascending: pages with a tree that says so."""
    return [
        pfn << PAGE_SHIFT
        for pfn in frames.heads(FDT_MAGIC)
        if _is_kho_fdt(frames.frame(pfn) or b"")
    ]


def _is_kho_fdt(page: bytes) -> bool:
    try:
        root = Fdt.parse(page).root
    except FdtError:
        return False
    compatible = cstring(root.props.get("compatible", b""))
    return compatible.startswith(b"kho-v") and KHO_PROP_MEMORY_MAP in root.props
