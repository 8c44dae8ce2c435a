"""Keys of the radix tree as whoever walks it gets them: in runs, and many short runs at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kernelmodel.mm.extents import Extents

__all__ = ["KeyBatch", "KeyRun", "KeyRuns", "single_runs"]


class KeyRun(NamedTuple):
    """`nr` consecutive blocks of one order, the first at `pfn`."""

    pfn: int
    order: int
    nr: int

    @property
    def end_pfn(self) -> int:
        """First frame behind the run."""
        return self.pfn + (self.nr << self.order)

    def extents(self) -> tuple[int, int]:
        """Its frames (pfn, nr_pages)."""
        return self.pfn, self.nr << self.order


@dataclass(frozen=True, slots=True, eq=False)
class KeyRuns:
    """Many runs of consecutive pages (order 0), ascending, as one bitmap has them."""

    pages: Extents

    def __iter__(self) -> Iterator[KeyRun]:
        return (KeyRun(pfn, 0, nr) for pfn, nr in self.pages)

    def extents(self) -> Extents:
        """Their frames."""
        return self.pages


#: What a walk yields: one run, as a `KeyRun` has it (pfn, order, nr), or many.
KeyBatch = tuple[int, int, int] | KeyRuns


def single_runs(batches: Iterable[KeyBatch]) -> Iterator[KeyRun]:
    """Batch or not, one run after the other."""
    for batch in batches:
        if isinstance(batch, KeyRuns):
            yield from batch
        else:
            yield KeyRun(*batch)
