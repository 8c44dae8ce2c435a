"""The folio table of a file, in vmalloc memory: written, preserved, restored.

memfd and the hugetlb proposal share it: 16 bytes a folio, in plain vmalloc pages that KHO
preserves as an area. C: mm/memfd_luo.c, 7.3; hugemfd of the RFC of Dec 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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


class FolioOwner(Protocol):
    """Who sees to the folios themselves, where it is not the file alone."""

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Preserve all or, with the error that it raises, none."""
        ...

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Undo that."""
        ...


class PlainFolios:
    """Folios that belong to their file and nothing else."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def preserve_folios(self, order: int, runs: Sequence[FolioRun | FolioRuns]) -> None:
        """Raises what preserving raises; nothing stays preserved then."""
        done: list[FolioRun | FolioRuns] = []
        try:
            for batch in runs:
                if isinstance(batch, FolioRuns) and preserve_many(self.kernel.kho, batch.pages):
                    done.append(batch)
                    continue
                for run in single_folio_runs([batch]):
                    self.kernel.kho.preserve_folios(run.pfn, order, run.nr)
                    done.append(run)
        except KernelError:
            self.unpreserve_folios(order, done[::-1])
            raise

    def unpreserve_folios(self, order: int, runs: Sequence[FolioRun | FolioRuns]) -> None:
        """Take the keys back."""
        for run in single_folio_runs(runs):
            self.kernel.kho.unpreserve_folios(run.pfn, order, run.nr)


@dataclass(frozen=True, slots=True)
class PreservedFolios:
    """The folios of one file, preserved: what its handler keeps to undo that.

    `runs` in file order, all of `order`; `table` holds their entries, None for an empty file.
    """

    runs: Sequence[FolioRun | FolioRuns]
    order: int
    owner: FolioOwner | PlainFolios
    table: VmallocArea | None
    vmalloc: KhoVmalloc

    @property
    def nr_folios(self) -> int:
        """Folios of the file."""
        return sum(run.nr for run in self.runs)

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
        _unpreserve(self.owner, self.order, self.runs)
        vfree(kernel.page_alloc, self.table)


def _preserve(
    owner: FolioOwner | PlainFolios, order: int, runs: Sequence[FolioRun | FolioRuns]
) -> None:
    if isinstance(owner, PlainFolios):
        owner.preserve_folios(order, runs)
    else:
        owner.preserve_folios(order, list(single_folio_runs(runs)))


def _unpreserve(
    owner: FolioOwner | PlainFolios, order: int, runs: Sequence[FolioRun | FolioRuns]
) -> None:
    if isinstance(owner, PlainFolios):
        owner.unpreserve_folios(order, runs)
    else:
        owner.unpreserve_folios(order, list(single_folio_runs(runs)))


def _alloc_table(kernel: Kernel, runs: Sequence[FolioRun | FolioRuns]) -> VmallocArea:
    nr_folios = sum(run.nr for run in runs)
    area = vmalloc(kernel.page_alloc, nr_folios * FOLIO_SER_SIZE)
    kernel.charge("vmalloc", area.nr_pages)
    table = FolioTable(tuple(runs))
    page = 0
    for pfn, nr_pages in area.extents:
        kernel.memory.fill(pfn, nr_pages, table, page)
        page += nr_pages
    return area


def preserve_folios(
    kernel: Kernel,
    runs: Sequence[FolioRun | FolioRuns],
    order: int,
    owner: FolioOwner | PlainFolios | None = None,
) -> PreservedFolios:
    """Preserve the folios and a table that lists them.

    Raises what preserving raises; nothing stays preserved or allocated then.
    """
    owner = PlainFolios(kernel) if owner is None else owner
    if not runs:
        return PreservedFolios([], order, owner, None, KhoVmalloc(0, 0, 0, 0))
    area = _alloc_table(kernel, runs)
    try:
        _preserve(owner, order, runs)
        try:
            ser = preserve_vmalloc(kernel.kho, area)
        except KernelError:
            _unpreserve(owner, order, runs)
            raise
    except KernelError:
        vfree(kernel.page_alloc, area)
        raise
    return PreservedFolios(runs, order, owner, area, ser)


def restore_folio_table(kernel: Kernel, ser: KhoVmalloc, nr_folios: int) -> list[FolioRun] | None:
    """As `restore_folio_runs`, one run after the other."""
    runs = restore_folio_runs(kernel, ser, nr_folios)
    return None if runs is None else list(single_folio_runs(runs))


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
    if nr_folios * FOLIO_SER_SIZE > area.nr_pages * PAGE_SIZE:
        raise KernelPanic("unable to handle page fault: behind the folio table")
    runs = parse_folio_table(kernel.memory, list(area.extents), nr_folios)
    vfree(kernel.page_alloc, area)
    return runs


def folio_heads(runs: Iterable[FolioRun], nr_pages: int) -> list[FolioRun]:
    """`runs` cut so that each is a block of adjacent folios of `nr_pages` in file order.

    A run that steps otherwise (a table that was tampered with) falls into single entries.
    """
    out: list[FolioRun] = []
    for run in runs:
        if run.nr == 1 or (run.step == nr_pages and run.index_step == 1):
            out.append(run)
        else:
            out.extend(run.cut(at, at + 1) for at in range(run.nr))
    return out
