"""Runs of entries in a folio table, one by one and many short ones at once."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernelmodel.mm.extents import Extents

__all__ = ["FolioRun", "FolioRuns", "single_folio_runs"]

_KEY: Final = struct.Struct("<QQQQQQ")


@dataclass(slots=True, unsafe_hash=True)  # a value, if not frozen: that is too slow to make
class FolioRun:
    """`nr` entries: pfn, pfn + step, … at index, index + index_step, …, all with `flags`."""

    pfn: int
    index: int
    nr: int
    step: int
    index_step: int
    flags: int = 0

    def cut(self, first: int, last: int) -> FolioRun:
        """Entries [first, last) of the run."""
        return FolioRun(
            self.pfn + first * self.step,
            self.index + first * self.index_step,
            last - first,
            self.step,
            self.index_step,
            self.flags,
        )

    def entries(self) -> NDArray[np.uint64]:
        """The run's entries, a row of two words each."""
        out = np.empty((self.nr, 2), dtype="<u8")
        steps = np.arange(self.nr, dtype=np.uint64)
        out[:, 0] = np.uint64(self.pfn | self.flags << 52) + steps * np.uint64(self.step)
        out[:, 1] = np.uint64(self.index) + steps * np.uint64(self.index_step)
        return out

    def key(self) -> bytes:
        """All fields."""
        return _KEY.pack(self.pfn, self.index, self.nr, self.step, self.index_step, self.flags)


@dataclass(frozen=True, slots=True, eq=False)
class FolioRuns:
    """Runs of single pages side by side, at page `index` and on, all with `flags`."""

    pages: Extents
    index: int
    flags: int

    def __iter__(self) -> Iterator[FolioRun]:
        index = self.index
        for pfn, nr in self.pages:
            yield FolioRun(pfn, index, nr, 1, 1, self.flags)
            index += nr

    @property
    def nr(self) -> int:
        """Entries of all runs."""
        return self.pages.total

    def cut(self, first: int, last: int) -> FolioRuns:
        """Entries [first, last)."""
        pfns, counts = self.pages.pfns, self.pages.counts
        ends = np.cumsum(counts)
        low, high = np.searchsorted(ends, first, "right"), np.searchsorted(ends, last) + 1
        pfns, counts, ends = pfns[low:high].copy(), counts[low:high].copy(), ends[low:high]
        before = first - (int(ends[0]) - int(counts[0]))
        pfns[0] += before
        counts[0] -= before
        counts[-1] -= int(ends[-1]) - last
        return FolioRuns(Extents(pfns, counts), self.index + first, self.flags)

    def entries(self) -> NDArray[np.uint64]:
        """The entries, a row of two words each."""
        pfns = self.pages.frames()
        out = np.empty((len(pfns), 2), dtype="<u8")
        out[:, 0] = pfns | self.flags << 52
        out[:, 1] = np.arange(self.index, self.index + len(pfns))
        return out

    def key(self) -> bytes:
        """All fields of all runs, as of single ones."""
        pfns, counts = self.pages.pfns, self.pages.counts
        out = np.ones((len(pfns), 6), dtype="<u8")
        out[:, 0] = pfns
        out[:, 1] = np.cumsum(counts) - counts + self.index
        out[:, 2] = counts
        out[:, 5] = self.flags
        return out.tobytes()


def single_folio_runs(runs: Iterable[FolioRun | FolioRuns]) -> list[FolioRun]:
    """One run after the other."""
    return [one for run in runs for one in (run if isinstance(run, FolioRuns) else (run,))]
