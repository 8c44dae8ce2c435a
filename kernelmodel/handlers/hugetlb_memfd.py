"""Preserving memfds on huge pages: `huge-memfd-v1` of the RFC of Dec 2025. Not in Linux 7.3.

Happy path as with plain memfds, one entry for each huge page: preserve freezes the inode, fills
holes, writes the folio table, preserves folios and table; retrieve puts the folios back into a
new file and into the books of their pool as used; finish gives folios that nobody retrieved to
the pool as free ones. What hugetlb's shared state needs beside is the design's.

Unhappy paths: see `hugetlb_folios`. A refused preserve leaves the file as it was.

Open in the RFC, decided here: `index` counts huge pages; a file whose size is no multiple of its
page size (fallocate can make one) is EINVAL; folios beyond the size stay behind; seals do not
cross (the structure has no field for them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.hugetlb import HugemfdSer
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import InvalidArgument
from kernelmodel.fs import File
from kernelmodel.handlers.hugetlb_folios import HugetlbFolios
from kernelmodel.luo.handler import FileHandler, LuoFile
from kernelmodel.mm.memfd import HugetlbMemfdInode, hugetlb_memfd_file

if TYPE_CHECKING:
    from kernelmodel.hugetlb_designs import HugetlbDesign
    from kernelmodel.kernel import Kernel

__all__ = ["HugetlbMemfdHandler"]

_pack, _unpack = HugemfdSer.FORMAT.pack, HugemfdSer.FORMAT.unpack


class HugetlbMemfdHandler(FileHandler):
    """The RFC's hugemfd handler."""

    def __init__(self, kernel: Kernel, compatible: str, design: HugetlbDesign) -> None:
        super().__init__(compatible)
        self.kernel = kernel
        self.folios = HugetlbFolios(kernel, design)

    def can_preserve(self, file: File) -> bool:
        """A memfd on huge pages; files on a mounted hugetlbfs are not taken."""
        return isinstance(file.inode, HugetlbMemfdInode) and file.inode.mount is None

    def get_id(self, file: File) -> int:
        """The inode."""
        return file.inode.ino

    def preserve(self, luo_file: LuoFile) -> None:
        """Freeze, fill, write down, preserve."""
        file = luo_file.file
        assert file is not None
        inode = file.inode
        assert isinstance(inode, HugetlbMemfdInode)
        ser_pa, private = self.folios.preserve(inode, HugemfdSer.SIZE)
        area = private.vmalloc
        ser = _pack(
            inode.hugetlb.size,
            file.f_pos,
            private.nr_folios,
            area.first,
            area.total_pages,
            area.flags,
            area.order,
            private.order,
        )
        self.kernel.memory.write(ser_pa, ser)
        luo_file.data, luo_file.private = ser_pa, private

    def freeze(self, luo_file: LuoFile) -> None:
        """The position as it is now."""
        file = luo_file.file
        assert file is not None
        self.folios.freeze(luo_file.private)
        self.kernel.memory.write_u64(luo_file.data + 8, file.f_pos)

    def unfreeze(self, luo_file: LuoFile) -> None:
        """Nothing of the file's own."""
        self.folios.unfreeze(luo_file.private)

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo preserve."""
        assert luo_file.file is not None
        inode = luo_file.file.inode
        assert isinstance(inode, HugetlbMemfdInode)
        self.folios.unpreserve(inode, luo_file.data, luo_file.private)

    def _read_ser(self, luo_file: LuoFile) -> tuple[int, int, KhoVmalloc, int, int]:
        """What a HugemfdSer says: size, position, folio table, its entries, order."""
        raw = self.kernel.memory.read(luo_file.data, HugemfdSer.SIZE)
        size, pos, nr_folios, first, total_pages, flags, block_order, order = _unpack(raw)
        return size, pos, KhoVmalloc(first, total_pages, flags, block_order), nr_folios, order

    def retrieve(self, luo_file: LuoFile) -> File:
        """Make the file again; on any error the folios stay reserved."""
        kernel = self.kernel
        self.folios.design.file_incoming()
        size, pos, table, nr_folios, order = self._read_ser(luo_file)
        file, inode = hugetlb_memfd_file(kernel, order)
        hugetlb = inode.hugetlb
        if size % hugetlb.page_size:
            file.put()
            raise InvalidArgument("size is no multiple of the page size", size=size)
        hugetlb.size = size
        file.f_pos = pos
        self.folios.retrieve(hugetlb, table, nr_folios)
        kernel.kho.restore_free(luo_file.data)
        return file

    def finish(self, luo_file: LuoFile) -> None:
        """Give folios that nobody retrieved to their pool."""
        self.folios.look_at_incoming()
        if luo_file.retrieve_status:
            return
        _, _, table, nr_folios, order = self._read_ser(luo_file)
        self.folios.discard(order, table, nr_folios)
        self.kernel.kho.restore_free(luo_file.data)
