"""The folio table of a file, in vmalloc memory: written, preserved, restored.

memfd and the hugetlb proposal share it: 16 bytes a folio, in plain vmalloc pages that KHO
preserves as an area. C: mm/memfd_luo.c, 7.3; hugemfd of the RFC of Dec 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.folio_table import (
    FOLIO_SER_SIZE,
    FolioRun,
    FolioTable,
    parse_folio_table,
)
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import KernelError
from kernelmodel.mm.vmalloc import VmallocArea, vfree, vmalloc

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["alloc_folio_table", "folio_heads", "preserve_folio_table", "restore_folio_table"]


def alloc_folio_table(kernel: Kernel, runs: list[FolioRun]) -> VmallocArea:
    """Write the table of `runs`. Raises: NoMemory."""
    nr_folios = sum(run.nr for run in runs)
    area = vmalloc(kernel.page_alloc, nr_folios * FOLIO_SER_SIZE)
    kernel.charge("vmalloc", area.nr_pages)
    table = FolioTable(tuple(runs))
    page = 0
    for pfn, nr_pages in area.extents:
        kernel.memory.fill(pfn, nr_pages, table, page)
        page += nr_pages
    return area


def preserve_folio_table(
    kernel: Kernel, runs: list[FolioRun], order: int
) -> tuple[VmallocArea, KhoVmalloc]:
    """Preserve the folios (of `order`) and the table that lists them.

    Raises what preserving raises; nothing stays preserved or allocated then.
    """
    area = alloc_folio_table(kernel, runs)
    done: list[FolioRun] = []
    try:
        for run in runs:
            kernel.kho.preserve_folios(run.pfn, order, run.nr)
            done.append(run)
        ser = kernel.kho.preserve_vmalloc(area)
    except KernelError:
        for run in reversed(done):
            kernel.kho.unpreserve_folios(run.pfn, order, run.nr)
        vfree(kernel.page_alloc, area)
        raise
    return area, ser


def restore_folio_table(kernel: Kernel, ser: KhoVmalloc, nr_folios: int) -> list[FolioRun] | None:
    """Read the table of the previous kernel and free it; None if its area cannot be restored."""
    area = kernel.kho.restore_vmalloc(ser)
    if area is None:
        return None
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
