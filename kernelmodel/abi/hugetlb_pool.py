"""What designs that list folios by number leave in memory. None of it is in Linux.

A `HugetlbPoolSer` has, for each page size, how many folios its list has, how many of them files
preserved, and where the list is: one u64 a folio in vmalloc pages, {pfn:52, flags:12}, in
ascending order. Lists of millions of folios are runs; `PfnList` is the memory content that they
yield and `parse_pfn_list` the way back, from runs where memory still holds them, from bytes
everywhere else.

`HugetlbSizesSer` has three numbers for each page size instead.

Ours throughout: the arguments of October 2025 (J. Gunthorpe, P. Yadav, P. Tatashin) name what is
written and not how.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, Final

import numpy as np

from kernelmodel.abi.hugetlb import HUGETLB_SER_MAX_HSTATES
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.abi.layout import Ser
from kernelmodel.memory import PAGE_SIZE, PhysicalMemory

__all__ = [
    "PFN_PRESERVED",
    "PFN_SER_SIZE",
    "HugetlbPoolHstateSer",
    "HugetlbPoolSer",
    "HugetlbSizeSer",
    "HugetlbSizesSer",
    "PfnList",
    "PfnRun",
    "parse_pfn_list",
]

PFN_SER_SIZE: Final = 8
#: A file preserved this folio; the others of a list are the pool's.
PFN_PRESERVED: Final = 1
_PER_PAGE: Final = PAGE_SIZE // PFN_SER_SIZE
_PFN_MASK: Final = (1 << 52) - 1


@dataclass(frozen=True, slots=True)
class HugetlbPoolHstateSer(Ser):
    """One page size; four of the fields are the list's struct kho_vmalloc."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQQIHHB")
    SIZE: ClassVar[int] = 33
    nr_folios: int
    nr_preserved: int
    list_first: int
    list_total_pages: int
    list_flags: int
    list_order: int
    order: int

    @property
    def vmalloc(self) -> KhoVmalloc:
        """Where the list is."""
        return KhoVmalloc(self.list_first, self.list_total_pages, self.list_flags, self.list_order)


@dataclass(frozen=True, slots=True)
class HugetlbPoolSer:
    """Four page sizes, how many of them are used, and the address of a next such structure."""

    SIZE: ClassVar[int] = HUGETLB_SER_MAX_HSTATES * HugetlbPoolHstateSer.SIZE + 1 + 8
    hstates: tuple[HugetlbPoolHstateSer, ...] = ()
    next: int = 0

    def pack(self) -> bytes:
        """The bytes that the kernel would write."""
        used = b"".join(h.pack() for h in self.hstates)
        return (
            used.ljust(self.SIZE - 9, b"\0")
            + bytes([len(self.hstates)])
            + self.next.to_bytes(8, "little")
        )

    @classmethod
    def unpack(cls, data: bytes) -> HugetlbPoolSer:
        """Read the structure; a count beyond the array is cut to the array."""
        nr, size = min(data[cls.SIZE - 9], HUGETLB_SER_MAX_HSTATES), HugetlbPoolHstateSer.SIZE
        return cls(
            tuple(HugetlbPoolHstateSer.unpack(data, i * size) for i in range(nr)),
            int.from_bytes(data[cls.SIZE - 8 : cls.SIZE], "little"),
        )


@dataclass(frozen=True, slots=True)
class PfnRun:
    """`nr` entries: pfn, pfn + step, …, all with `flags`."""

    pfn: int
    nr: int
    step: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class PfnList:
    """A list as memory content; behind the last entry its pages are zero."""

    runs: tuple[PfnRun, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(run.nr for run in self.runs)))

    def slice(self, first: int, last: int) -> Iterator[PfnRun]:
        """The runs of entries [first, last), cut to it."""
        at = bisect_right(self._ends, first)
        while at < len(self.runs) and first < last:
            run, end = self.runs[at], self._ends[at]
            skip = first - (end - run.nr)
            nr = min(last, end) - first
            yield PfnRun(run.pfn + skip * run.step, nr, run.step, run.flags)
            first, at = end, at + 1

    def page(self, index: int) -> bytes:
        """The bytes of the list's page `index`."""
        out = np.zeros(_PER_PAGE, dtype="<u8")
        at = 0
        for run in self.slice(index * _PER_PAGE, (index + 1) * _PER_PAGE):
            steps = np.arange(run.nr, dtype=np.uint64) * np.uint64(run.step)
            out[at : at + run.nr] = np.uint64(run.pfn | run.flags << 52) + steps
            at += run.nr
        return out.tobytes()

    def key(self) -> bytes:
        """All fields of all runs."""
        return b"pfns" + b"".join(
            struct.pack("<QQQQ", r.pfn, r.nr, r.step, r.flags) for r in self.runs
        )


def parse_pfn_list(
    memory: PhysicalMemory, extents: list[tuple[int, int]], nr: int, step: int
) -> list[PfnRun]:
    """Read `nr` entries from a list of folios of `step` pages that lies in `extents` (pfn, pages).

    Returns runs in the list's order, each of adjacent folios with one set of flags.
    """
    runs: list[PfnRun] = []
    left = nr
    for pfn, nr_pages in extents:
        for frame, frames, content, first in memory.segments(pfn, nr_pages):
            take = min(left, frames * _PER_PAGE)
            if take <= 0:
                return runs
            if isinstance(content, PfnList):
                entry = first * _PER_PAGE
                for run in content.slice(entry, entry + take):
                    _append(runs, run, step)
            else:
                for page in range(-(-take // _PER_PAGE)):
                    entries = np.frombuffer(bytes(memory.page(frame + page)), dtype="<u8")
                    for word in entries[: take - page * _PER_PAGE].tolist():
                        _append(runs, PfnRun(word & _PFN_MASK, 1, step, word >> 52), step)
            left -= take
    return runs


def _append(runs: list[PfnRun], run: PfnRun, step: int) -> None:
    """Add a run, joined to the last one where it goes on as that did."""
    if runs and run.step == step:
        last = runs[-1]
        if last.flags == run.flags and run.pfn == last.pfn + last.nr * step:
            runs[-1] = PfnRun(last.pfn, last.nr + run.nr, step, last.flags)
            return
    runs.append(run)


@dataclass(frozen=True, slots=True)
class HugetlbSizeSer(Ser):
    """One page size: preserved pages, what the command line asked for, and the pool's size now."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<BIII")
    SIZE: ClassVar[int] = 13
    order: int
    nr_preserved: int
    nr_asked: int
    nr_wanted: int


@dataclass(frozen=True, slots=True)
class HugetlbSizesSer:
    """As many page sizes as are used, and how many that is: 27 bytes on x86."""

    SIZE: ClassVar[int] = 1 + HUGETLB_SER_MAX_HSTATES * HugetlbSizeSer.SIZE
    sizes: tuple[HugetlbSizeSer, ...] = ()

    def pack(self) -> bytes:
        """The bytes that the kernel would write."""
        return bytes([len(self.sizes)]) + b"".join(size.pack() for size in self.sizes)

    @classmethod
    def unpack(cls, data: bytes) -> HugetlbSizesSer:
        """Read the structure; a count beyond the array is cut to the array."""
        nr = min(data[0], HUGETLB_SER_MAX_HSTATES)
        size = HugetlbSizeSer.SIZE
        return cls(tuple(HugetlbSizeSer.unpack(data, 1 + i * size) for i in range(nr)))
