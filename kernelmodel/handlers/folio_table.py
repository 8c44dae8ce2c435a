"""The folio table of a file, in vmalloc memory: written, preserved, restored.

memfd and the hugetlb proposal share it: 16 bytes a folio, in plain vmalloc pages that KHO
preserves as an area. C: mm/memfd_luo.c, 7.3; hugemfd of the RFC of Dec 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelmodel.abi.folio_table import (
    FOLIO_SER_SIZE,
    FolioRun,
    FolioTable,
    parse_folio_table,
)
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.kho.vmalloc import preserve_vmalloc, restore_vmalloc, unpreserve_vmalloc
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.vmalloc import VmallocArea, vfree, vmalloc

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["PreservedFolios", "folio_heads", "preserve_folios", "restore_folio_table"]


@dataclass(frozen=True, slots=True)
class PreservedFolios:
    """The folios of one file, preserved: what its handler keeps to undo that.

    `runs` in file order, all of `order`; `table` holds their entries, None for an empty file.
    """

    runs: list[FolioRun]
    order: int
    table: VmallocArea | None
    vmalloc: KhoVmalloc

    @property
    def nr_folios(self) -> int:
        """Folios of the file."""
        return sum(run.nr for run in self.runs)

    def unpreserve(self, kernel: Kernel) -> None:
        """Take all keys back and free the table."""
        if self.table is None:
            return
        unpreserve_vmalloc(kernel.kho, self.vmalloc, self.table)
        for run in self.runs:
            kernel.kho.unpreserve_folios(run.pfn, self.order, run.nr)
        vfree(kernel.page_alloc, self.table)


def _alloc_table(kernel: Kernel, runs: list[FolioRun]) -> VmallocArea:
    nr_folios = sum(run.nr for run in runs)
    area = vmalloc(kernel.page_alloc, nr_folios * FOLIO_SER_SIZE)
    kernel.charge("vmalloc", area.nr_pages)
    table = FolioTable(tuple(runs))
    page = 0
    for pfn, nr_pages in area.extents:
        kernel.memory.fill(pfn, nr_pages, table, page)
        page += nr_pages
    return area


def preserve_folios(kernel: Kernel, runs: list[FolioRun], order: int) -> PreservedFolios:
    """Preserve the folios and a table that lists them.

    Raises what preserving raises; nothing stays preserved or allocated then.
    """
    if not runs:
        return PreservedFolios([], order, None, KhoVmalloc(0, 0, 0, 0))
    area = _alloc_table(kernel, runs)
    done: list[FolioRun] = []
    try:
        for run in runs:
            kernel.kho.preserve_folios(run.pfn, order, run.nr)
            done.append(run)
        ser = preserve_vmalloc(kernel.kho, area)
    except KernelError:
        for run in reversed(done):
            kernel.kho.unpreserve_folios(run.pfn, order, run.nr)
        vfree(kernel.page_alloc, area)
        raise
    return PreservedFolios(runs, order, area, ser)


def restore_folio_table(kernel: Kernel, ser: KhoVmalloc, nr_folios: int) -> list[FolioRun] | None:
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


def folio_heads(runs: list[FolioRun], nr_pages: int) -> list[FolioRun]:
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
