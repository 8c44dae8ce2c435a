"""The folio table of a file, in vmalloc memory: written, preserved, restored.

memfd and the hugetlb proposal share it: 16 bytes a folio, in plain vmalloc pages that KHO
preserves as an area. C: mm/memfd_luo.c, 7.3; hugemfd of the RFC of Dec 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.abi.folio_table import (
    FOLIO_SER_SIZE,
    FolioRun,
    FolioRuns,
    FolioTable,
    parse_folio_table,
)
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.kho.many import preserve_many
from kernelmodel.kho.vmalloc import preserve_vmalloc, restore_vmalloc, unpreserve_vmalloc
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.vmalloc import VmallocArea, vfree, vmalloc
from kernelmodel.owners import Preserved

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = [
    "FolioOwner",
    "PlainFolios",
    "PreservedFolios",
    "folio_heads",
    "preserve_folios",
    "restore_folio_runs",
    "restore_folio_table",
]


#: What an owner takes: one run after the other, or many short ones at once, too.
R = TypeVar("R", FolioRun, FolioRun | FolioRuns)
_NR: Final = attrgetter("nr")
_NO_TABLE: Final = KhoVmalloc(0, 0, 0, 0)


class FolioOwner(Protocol[R]):
    """Who sees to the folios themselves."""

    def preserve_folios(self, order: int, runs: list[R]) -> None:
        """Preserve all or, with the error that it raises, none."""
        ...

    def unpreserve_folios(self, order: int, runs: list[R]) -> None:
        """Undo that."""
        ...


class PlainFolios:
    """Folios that belong to their file and nothing else."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def preserve_folios(self, order: int, runs: Sequence[FolioRun | FolioRuns]) -> None:
        """Raises what preserving raises; nothing stays preserved then."""
        kho = self.kernel.kho
        done: list[FolioRun | FolioRuns] = []
        try:
            for batch in runs:
                if isinstance(batch, FolioRun):
                    kho.preserve_folios(batch.pfn, order, batch.nr)
                    done.append(batch)
                elif preserve_many(kho, batch.pages):
                    done.append(batch)
                else:
                    for run in batch:
                        kho.preserve_folios(run.pfn, order, run.nr)
                        done.append(run)
        except KernelError:
            self.unpreserve_folios(order, done[::-1])
            raise

    def unpreserve_folios(self, order: int, runs: Sequence[FolioRun | FolioRuns]) -> None:
        """Take the keys back."""
        for run in single_folio_runs(runs):
            self.kernel.kho.unpreserve_folios(run.pfn, order, run.nr)


@dataclass(slots=True)  # nobody changes one, but to freeze it is slow
class PreservedFolios:
    """The folios of one file, preserved: what its handler keeps to undo that.

    `runs` in file order, all of `order`; `table` holds their entries, None for an empty file.
    """

    runs: list[Any]  # FolioRun, and FolioRuns if the owner takes them
    nr_folios: int
    order: int
    owner: FolioOwner[Any]
    table: VmallocArea | None
    vmalloc: KhoVmalloc

    def preserved_pages(self, kernel: Kernel) -> Iterator[Preserved]:
        """The folios, which are the file's, the table and the chunks that list its pages."""
        for run in single_folio_runs(self.runs):
            yield Preserved("folios", run.pfn, self.order, run.nr, own=False)
        for pfn, nr_pages in self.table.extents if self.table is not None else ():
            yield Preserved("folio table", pfn, 0, nr_pages)
        chunk = self.vmalloc.first
        while chunk:
            yield Preserved("chunk of the folio table", chunk >> PAGE_SHIFT)
            chunk = kernel.memory.u64(chunk)

    def unpreserve(self, kernel: Kernel) -> None:
        """Take all keys back and free the table."""
        if self.table is None:
            return
        unpreserve_vmalloc(kernel.kho, self.vmalloc, self.table)
        self.owner.unpreserve_folios(self.order, self.runs)
        vfree(kernel.page_alloc, self.table)


def preserve_folios(
    kernel: Kernel, runs: list[R], order: int, owner: FolioOwner[R]
) -> PreservedFolios:
    """Preserve the folios and a table that lists them.

    Raises what preserving raises; nothing stays preserved or allocated then.
    """
    if not runs:
        return PreservedFolios([], 0, order, owner, None, _NO_TABLE)
    nr_folios: int = sum(map(_NR, runs))
    size = nr_folios * FOLIO_SER_SIZE
    area = vmalloc(kernel.page_alloc, size)
    kernel.charge("vmalloc", -(-size // PAGE_SIZE))
    table, page = FolioTable(tuple(runs)), 0
    for pfn, nr_pages in area.extents:
        kernel.memory.fill(pfn, nr_pages, table, page)
        page += nr_pages
    try:
        owner.preserve_folios(order, runs)
        try:
            ser = preserve_vmalloc(kernel.kho, area)
        except KernelError:
            owner.unpreserve_folios(order, runs)
            raise
    except KernelError:
        vfree(kernel.page_alloc, area)
        raise
    return PreservedFolios(runs, nr_folios, order, owner, area, ser)


def restore_folio_table(kernel: Kernel, ser: KhoVmalloc, nr_folios: int) -> list[FolioRun] | None:
    """As `restore_folio_runs`, one run after the other."""
    runs = restore_folio_runs(kernel, ser, nr_folios)
    return None if runs is None else single_folio_runs(runs)


def restore_folio_runs(
    kernel: Kernel, ser: KhoVmalloc, nr_folios: int
) -> list[FolioRun | FolioRuns] | None:
    """Read the table of the previous kernel and free it; None if its area cannot be restored.

    Raises:
        KernelPanic: the table is shorter than it is said to be; reading on faults.
    """
    area = restore_vmalloc(kernel.kho, ser)
    if area is None:
        return None
    if nr_folios * FOLIO_SER_SIZE > ser.total_pages * PAGE_SIZE:
        raise KernelPanic("unable to handle page fault: behind the folio table")
    runs = parse_folio_table(kernel.memory, area.extents, nr_folios)
    vfree(kernel.page_alloc, area)
    return runs


def folio_heads(runs: Iterable[FolioRun | FolioRuns], nr_pages: int) -> list[FolioRun]:
    """`runs` as blocks of adjacent folios of `nr_pages` in file order, each as long as can be.

    The same entries make the same blocks however they were gathered, so that what they cost does
    not depend on how memory holds their table. A run that steps otherwise (pages that lie
    scattered, a table that was tampered with) falls into single entries, as does one that begins
    with page frame 0, which is no folio.
    """
    out: list[FolioRun] = []
    for run in single_folio_runs(runs):
        adjacent = run.step == nr_pages and run.index_step == 1 and run.pfn
        whole = run.nr == 1 or adjacent
        for part in [run] if whole else [run.cut(at, at + 1) for at in range(run.nr)]:
            last = out[-1] if out else None
            if (
                last is not None
                and part.pfn == last.pfn + last.nr * nr_pages
                and part.index == last.index + last.nr
                and part.flags == last.flags
                and last.pfn
            ):
                nr = last.nr + part.nr
                out[-1] = FolioRun(last.pfn, last.index, nr, nr_pages, 1, last.flags)
            else:
                out.append(part)
    return out
