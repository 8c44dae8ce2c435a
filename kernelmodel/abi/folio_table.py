"""Tables of folio entries: 16 bytes each, {u64 pfn:52, flags:12; u64 index}.

memfd (struct memfd_luo_folio_ser) and the hugetlb proposal (struct hugemfd_folio_ser, whose
upper 12 bits are reserved) share the layout. A VM's table has an entry per folio, a quarter of
a million for a gigabyte of 4 KiB pages, but its entries come in runs in which pfn and index
grow evenly. `FolioRun` is such a run, `FolioTable` the memory content that a list of them
yields, and `parse_folio_table` the way back: from content rules where memory still holds them,
from plain bytes everywhere else, with the same result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import attrgetter

import numpy as np

from kernelmodel.abi.folio_runs import FolioRun, FolioRuns
from kernelmodel.memory import PAGE_SIZE, PhysicalMemory

__all__ = ["FOLIO_SER_SIZE", "FolioRun", "FolioRuns", "FolioTable", "parse_folio_table"]

FOLIO_SER_SIZE = 16
_PER_PAGE = PAGE_SIZE // FOLIO_SER_SIZE
_PFN_MASK = (1 << 52) - 1
_NR = attrgetter("nr")


class FolioTable:
    """The table as memory content; behind the last entry its pages are zero."""

    __slots__ = ("_ends", "_runs")

    def __init__(self, runs: tuple[FolioRun | FolioRuns, ...]) -> None:
        self._runs = runs
        self._ends = tuple(accumulate(map(_NR, runs)))

    def slice(self, first: int, last: int) -> list[FolioRun | FolioRuns]:
        """The runs of entries [first, last), cut to it; entries behind the last run are zero."""
        runs, ends = self._runs, self._ends
        if not first and ends[-1:] == (last,):  # the whole table, as most often
            return list(runs)
        parts: list[FolioRun | FolioRuns] = []
        at = bisect_right(ends, first)
        while at < len(runs) and first < last:
            run, stop = runs[at], min(last, ends[at])
            base = ends[at] - run.nr
            parts.append(run.cut(first - base, stop - base))
            first, at = stop, at + 1
        if first < last:
            parts.append(FolioRun(0, 0, last - first, 0, 0))
        return parts

    def page(self, index: int) -> bytes:
        """The bytes of the table's page `index`."""
        out = np.zeros((_PER_PAGE, 2), dtype="<u8")
        at = 0
        for run in self.slice(index * _PER_PAGE, (index + 1) * _PER_PAGE):
            out[at : at + run.nr] = run.entries()
            at += run.nr
        return out.tobytes()

    def key(self) -> bytes:
        """All fields of all runs."""
        return b"folios" + b"".join([run.key() for run in self._runs])


def parse_folio_table(
    memory: PhysicalMemory, extents: Iterable[tuple[int, int]], nr_folios: int
) -> list[FolioRun | FolioRuns]:
    """Read `nr_folios` entries from a table that lies in `extents` (pfn, nr_pages).

    Returns runs in table order; how entries are gathered into runs depends on how memory holds
    them and is not part of the result's meaning.
    """
    runs: list[FolioRun | FolioRuns] = []
    left = nr_folios
    for pfn, nr_pages in extents:
        for frame, frames, content, first in memory.segments(pfn, nr_pages):
            take = min(left, frames * _PER_PAGE)
            if take <= 0:
                break
            if type(content) is FolioTable:
                entry = first * _PER_PAGE
                runs += content.slice(entry, entry + take)
            elif content is None and frames > 1:
                runs.append(FolioRun(0, 0, take, 0, 0))
            else:
                for page in range(-(-take // _PER_PAGE)):
                    part = min(take - page * _PER_PAGE, _PER_PAGE)
                    runs += _parse_page(memory.page(frame + page), part)
            left -= take
    return runs if len(runs) < 2 else _joined(runs)


def _joined(runs: Iterable[FolioRun | FolioRuns]) -> list[FolioRun | FolioRuns]:
    """The same runs, each joined to the one before where it goes on as that did."""
    out: list[FolioRun | FolioRuns] = []
    for run in runs:
        last = out[-1] if out else None
        if type(last) is not FolioRun or type(run) is not FolioRun:
            out.append(run)
            continue
        step = last.step if last.nr > 1 else run.pfn - last.pfn
        index_step = last.index_step if last.nr > 1 else run.index - last.index
        if (
            last.flags == run.flags
            and run.pfn == last.pfn + step * last.nr
            and run.index == last.index + index_step * last.nr
            and (run.nr == 1 or (run.step, run.index_step) == (step, index_step))
            and step > 0
            and index_step > 0
        ):
            nr = last.nr + run.nr
            out[-1] = FolioRun(last.pfn, last.index, nr, step, index_step, run.flags)
        else:
            out.append(run)
    return out


def _parse_page(page: bytes | bytearray, nr: int) -> Iterator[FolioRun]:
    entries = np.frombuffer(bytes(page), dtype="<u8").reshape(_PER_PAGE, 2)[:nr]
    words, indexes = entries[:, 0], entries[:, 1]
    if nr == 1:
        cuts = np.zeros(0, dtype=np.intp)
    else:
        word_steps, index_steps = np.diff(words), np.diff(indexes)
        changes = (word_steps[1:] != word_steps[:-1]) | (index_steps[1:] != index_steps[:-1])
        cuts = np.flatnonzero(changes) + 2
    first = 0
    for last in [*cuts.tolist(), nr]:
        if last <= first:
            continue
        word, index = int(words[first]), int(indexes[first])
        steps = (0, 0)
        if last - first > 1:
            # u64 wraps round; an entry that runs backwards makes a negative step
            steps = (
                _signed(int(words[first + 1]) - word),
                _signed(int(indexes[first + 1]) - index),
            )
        flags = word >> 52
        end_word = word + steps[0] * (last - first - 1)
        end_index = index + steps[1] * (last - first - 1)
        if 0 <= end_index < 1 << 64 and 0 <= end_word < 1 << 64 and end_word >> 52 == flags:
            yield FolioRun(word & _PFN_MASK, index, last - first, steps[0], steps[1], flags)
        else:  # a step that wraps round or runs through the flag bits: entry by entry
            for at in range(first, last):
                word = int(words[at])
                yield FolioRun(word & _PFN_MASK, int(indexes[at]), 1, 0, 0, word >> 52)
        first = last


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
