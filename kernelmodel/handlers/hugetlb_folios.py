"""Files on huge pages across a live update: what a memfd and a guest_memfd have in common.

None of it is in Linux 7.3. A file handler knows its kind of file; the folios of every kind go
through here to the design that keeps hugetlb's shared state, whichever it is.

Happy path: `preserve` fills holes, writes the folio table and preserves; `retrieve` puts the
folios of a table into a new file; `discard` gives those that nobody retrieved to their pool.

Unhappy paths: a hole that the pool cannot fill is ENOSPC, a size that is no multiple of the page
size EINVAL. A retrieve that fails leaks the folios on purpose: a device might still write there.

Simplification: folios that come back are charged to no cgroup; handlers are not told for which
task they retrieve. The RFC charges them.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from kernelmodel.abi.folio_runs import FolioRun
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import Exists, InvalidArgument, IoError, KernelError, NoSpace
from kernelmodel.handlers.folio_table import (
    PreservedFolios,
    folio_heads,
    preserve_folios,
    restore_folio_runs,
)
from kernelmodel.mm.hugetlb_file import HugetlbFile
from kernelmodel.mm.hugetlbfs import HugetlbInode

if TYPE_CHECKING:
    from kernelmodel.hugetlb_designs import HugetlbDesign
    from kernelmodel.kernel import Kernel

__all__ = ["HugetlbFolios"]

_LOCK = "hugetlb_lock"
_NR = attrgetter("nr")


class HugetlbFolios:
    """The folios of files on huge pages, under one design."""

    def __init__(self, kernel: Kernel, design: HugetlbDesign) -> None:
        self.kernel = kernel
        self.design = design

    def preserve(self, inode: HugetlbFile, entry_size: int) -> tuple[int, PreservedFolios]:
        """Freeze, fill, write down, preserve every page below the size.

        Returns the address of `entry_size` bytes for the file's own entry, and what was preserved.

        Raises:
            InvalidArgument: the size is no multiple of the page size. NoSpace: the pool cannot
            fill a hole. Others: of the design. Nothing stays preserved; filled holes stay.
        """
        kho = self.kernel.kho
        inode.hugetlb.frozen = True
        entry_pa = 0
        try:
            entry_pa = kho.alloc_preserve(entry_size)
            return entry_pa, self._preserve(inode)
        except KernelError:
            if entry_pa:
                kho.unpreserve_free(entry_pa)
            inode.hugetlb.frozen = False
            raise

    def unpreserve(self, inode: HugetlbFile, entry_pa: int, folios: PreservedFolios) -> None:
        """Undo `preserve`."""
        inode.hugetlb.frozen = False
        folios.unpreserve(self.kernel)
        self.kernel.kho.unpreserve_free(entry_pa)

    def _preserve(self, inode: HugetlbFile) -> PreservedFolios:
        kernel, hugetlb = self.kernel, inode.hugetlb
        order = hugetlb.hstate.order
        nr_folios, rest = divmod(hugetlb.size, hugetlb.page_size)
        if rest:
            raise InvalidArgument("size is no multiple of the page size", size=hugetlb.size)
        runs = _runs(hugetlb, nr_folios)
        if sum(map(_NR, runs)) < nr_folios:
            self._fill_holes(inode, nr_folios)
            runs = _runs(hugetlb, nr_folios)
        kernel.charge("hugetlb_pin_folios", nr_folios)
        kernel.charge("hugetlb_luo_folio_ser", nr_folios)
        return preserve_folios(kernel, runs, order, self.design)

    def _fill_holes(self, inode: HugetlbFile, nr_folios: int) -> None:
        """Allocate what was never touched; new folios are cleared."""
        holes = inode.hugetlb.folios.gaps(0, nr_folios)
        if inode.hugetlb.populate(0, nr_folios) < nr_folios:
            raise NoSpace("huge page pool exhausted while filling holes")
        for low, high in holes:
            inode.clear(low, high)

    def freeze(self, folios: PreservedFolios) -> None:
        """The file is frozen. Raises what the design raises."""
        self.design.freeze_folios(folios.order, folios.runs)

    def unfreeze(self, folios: PreservedFolios) -> None:
        """Undo `freeze`."""
        self.design.unfreeze_folios(folios.order, folios.runs)

    def retrieve(self, hugetlb: HugetlbInode, table: KhoVmalloc, nr_folios: int) -> None:
        """Put the folios of a table into a new, empty file.

        Raises:
            InvalidArgument: there is no such table. Exists: two folios at one index.
            IoError: a folio was not preserved.
        """
        if not nr_folios:
            return
        kernel, order, folios = self.kernel, hugetlb.hstate.order, hugetlb.folios
        runs = restore_folio_runs(kernel, table, nr_folios)
        if runs is None:
            raise InvalidArgument("cannot restore the folio table")
        kernel.fail_function("hugetlb_retrieve_folios", order=order)
        try:
            for run in folio_heads(runs, 1 << order):
                pfn, index, nr = run.pfn, run.index, run.nr
                if folios.total and (taken := folios.within(index, index + nr)):
                    raise Exists("two folios at one index", index=taken[0][0])
                restored = self.design.retrieve_folios(order, pfn, nr)
                if restored != nr:
                    kernel.kho.leaked.add(pfn, pfn + (restored << order))
                    raise IoError("huge page is not preserved", pfn=pfn)
                hugetlb.add_folios(index, [(pfn, nr)])
        except KernelError:
            kernel.hugetlb.lost_files.append(hugetlb)
            raise
        kernel.clock.charge_locked(_LOCK, "hugetlb_add_to_page_cache", nr_folios)

    def discard(self, order: int, table: KhoVmalloc, nr_folios: int) -> None:
        """Give folios that nobody retrieved to their pool; of unknown size, they stay lost."""
        if not nr_folios or order not in self.kernel.hugetlb.hstates:
            return
        runs = restore_folio_runs(self.kernel, table, nr_folios)
        for run in folio_heads(runs or [], 1 << order):
            self.design.discard_folios(order, run.pfn, run.nr)

    def look_at_incoming(self) -> None:
        """As the design's `file_incoming`, at finish: what it raises is a warning."""
        try:
            self.design.file_incoming()
        except KernelError as error:  # finish cannot fail
            self.kernel.warn_on(f"cannot read the shared state of huge pages: {error}")


def _runs(hugetlb: HugetlbInode, nr_folios: int) -> list[FolioRun]:
    """The first `nr_folios` folios of a file, as far as they are there."""
    step = 1 << hugetlb.hstate.order
    return [
        FolioRun(pfn, index, nr, step, 1) for index, pfn, nr in hugetlb.folios.within(0, nr_folios)
    ]
