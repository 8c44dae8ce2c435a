"""Preserving memfds on huge pages: `huge-memfd-v1` of the RFC of Dec 2025. Not in Linux 7.3.

Happy path as with plain memfds, one entry for each huge page: preserve freezes the inode, fills
holes, writes the folio table, preserves folios and table and counts them in the FLB; retrieve
puts the folios back into a new file and into the books of their pool as used; finish gives
folios that nobody retrieved to the pool as free ones.

Unhappy paths: a hole that the pool cannot fill is ENOSPC. A retrieve that fails leaks the folios
on purpose: a device might still write to them.

Open in the RFC, decided here: `index` counts huge pages; a file whose size is no multiple of its
page size (fallocate can make one) is EINVAL; folios beyond the size stay behind; seals do not
cross (the structure has no field for them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.abi.hugetlb import HugemfdSer
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import Exists, InvalidArgument, IoError, KernelError, NoSpace
from kernelmodel.fs import File
from kernelmodel.handlers.folio_table import (
    PreservedFolios,
    folio_heads,
    preserve_folios,
    restore_folio_table,
)
from kernelmodel.hugetlb_designs.flb_counts import FlbCounts
from kernelmodel.luo.handler import FileHandler, LuoFile
from kernelmodel.mm.hugetlbfs import HugetlbInode
from kernelmodel.mm.memfd import HugetlbMemfdInode, hugetlb_memfd_file
from kernelmodel.mm.ranges import RangeSet

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["HugetlbMemfdHandler"]

_LOCK = "hugetlb_lock"


class HugetlbMemfdHandler(FileHandler):
    """The RFC's hugemfd handler with its FLB."""

    def __init__(self, kernel: Kernel, compatible: str, counts: FlbCounts) -> None:
        super().__init__(compatible)
        self.kernel = kernel
        self.counts = counts

    def can_preserve(self, file: File) -> bool:
        """A memfd on huge pages; files on a mounted hugetlbfs are not taken."""
        return isinstance(file.inode, HugetlbMemfdInode)

    def get_id(self, file: File) -> int:
        """The inode."""
        return file.inode.ino

    def preserve(self, luo_file: LuoFile) -> None:
        """Freeze, fill, count, write down, preserve."""
        kernel, inode = self.kernel, _inode(luo_file).hugetlb
        file = luo_file.file
        assert file is not None
        order = inode.hstate.order
        inode.frozen = True
        ser_pa = 0
        counted = 0
        try:
            ser_pa = kernel.kho.alloc_preserve(HugemfdSer.SIZE)
            nr_folios, rest = divmod(inode.size, inode.page_size)
            if rest:
                raise InvalidArgument("size is no multiple of the page size", size=inode.size)
            self._fill_holes(_inode(luo_file), nr_folios)
            runs = [
                FolioRun(pfn, index, nr, 1 << order, 1)
                for index, pfn, nr in inode.folios.within(0, nr_folios)
            ]
            kernel.charge("hugetlb_pin_folios", nr_folios)
            self.counts.add(order, nr_folios)
            counted = nr_folios
            kernel.charge("hugetlb_luo_folio_ser", nr_folios)
            private = preserve_folios(kernel, runs, order)
        except KernelError:
            if counted:
                self.counts.add(order, -counted)
            if ser_pa:
                kernel.kho.unpreserve_free(ser_pa)
            inode.frozen = False
            raise
        area = private.vmalloc
        ser = HugemfdSer(
            inode.size,
            file.f_pos,
            nr_folios,
            area.first,
            area.total_pages,
            area.flags,
            area.order,
            order,
        )
        kernel.memory.write(ser_pa, ser.pack())
        luo_file.data, luo_file.private = ser_pa, private

    def _fill_holes(self, inode: HugetlbMemfdInode, nr_folios: int) -> None:
        """Allocate what was never touched; new folios are cleared."""
        hugetlb = inode.hugetlb
        before = RangeSet((index, index + nr) for index, _, nr in hugetlb.folios.runs())
        if hugetlb.populate(0, nr_folios) < nr_folios:
            raise NoSpace("huge page pool exhausted while filling holes")
        for low, high in before.gaps(0, nr_folios):
            inode.clear(low, high)

    def freeze(self, luo_file: LuoFile) -> None:
        """The position as it is now."""
        assert luo_file.file is not None
        self.kernel.memory.write_u64(luo_file.data + 8, luo_file.file.f_pos)

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo preserve."""
        kernel, inode = self.kernel, _inode(luo_file).hugetlb
        private = luo_file.private
        assert isinstance(private, PreservedFolios)
        inode.frozen = False
        self.counts.add(private.order, -private.nr_folios)
        private.unpreserve(kernel)
        kernel.kho.unpreserve_free(luo_file.data)

    def _ser(self, luo_file: LuoFile) -> HugemfdSer:
        return HugemfdSer.unpack(self.kernel.memory.read(luo_file.data, HugemfdSer.SIZE))

    def retrieve(self, luo_file: LuoFile) -> File:
        """Make the file again; on any error the folios stay reserved."""
        kernel = self.kernel
        self.counts.load_incoming()
        ser = self._ser(luo_file)
        file, inode = hugetlb_memfd_file(kernel, ser.order)
        hugetlb = inode.hugetlb
        if ser.size % hugetlb.page_size:
            file.put()
            raise InvalidArgument("size is no multiple of the page size", size=ser.size)
        hugetlb.size = ser.size
        file.f_pos = ser.pos
        if ser.nr_folios:
            runs = restore_folio_table(kernel, _vmalloc_of(ser), ser.nr_folios)
            if runs is None:
                raise InvalidArgument("cannot restore the folio table")
            for run in folio_heads(runs, 1 << ser.order):
                self._add_run(hugetlb, run, ser.order)
            with kernel.clock.lock(_LOCK):
                kernel.charge("hugetlb_add_to_page_cache", ser.nr_folios)
        kernel.kho.restore_free(luo_file.data)
        return file

    def _add_run(self, hugetlb: HugetlbInode, run: FolioRun, order: int) -> None:
        taken = next(hugetlb.folios.within(run.index, run.index + run.nr), None)
        if taken is not None:
            raise Exists("two folios at one index", index=taken[0])
        if self.kernel.kho.restore_folios(run.pfn, order, run.nr) != run.nr:
            raise IoError("huge page is not preserved", pfn=run.pfn)
        hugetlb.add_preserved(run.index, [(run.pfn, run.nr)])

    def finish(self, luo_file: LuoFile) -> None:
        """Give folios that nobody retrieved to their pool."""
        kernel = self.kernel
        try:
            self.counts.load_incoming()
        except KernelError as error:  # finish cannot fail
            kernel.warn_on(f"cannot read the counts of huge pages: {error}")
        if luo_file.retrieve_status:
            return
        ser = self._ser(luo_file)
        hstate = kernel.hugetlb.hstates.get(ser.order)
        if ser.nr_folios and hstate is not None:
            runs = restore_folio_table(kernel, _vmalloc_of(ser), ser.nr_folios)
            for run in folio_heads(runs or [], 1 << ser.order):
                restored = kernel.kho.restore_folios(run.pfn, ser.order, run.nr)
                if not restored:
                    continue
                with kernel.clock.lock(_LOCK):
                    hstate.add_preserved([(run.pfn, restored)])
                    hstate.free_folios([(run.pfn, restored)])
                    kernel.charge("hugetlb_free_folio", restored)
        kernel.kho.restore_free(luo_file.data)


def _inode(luo_file: LuoFile) -> HugetlbMemfdInode:
    assert luo_file.file is not None
    inode = luo_file.file.inode
    assert isinstance(inode, HugetlbMemfdInode)
    return inode


def _vmalloc_of(ser: HugemfdSer) -> KhoVmalloc:
    return KhoVmalloc(ser.folios_first, ser.folios_total_pages, ser.folios_flags, ser.folios_order)
