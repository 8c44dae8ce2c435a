"""Preserving plain memfds. C: mm/memfd_luo.c, Linux 7.3, `memfd-v2`: its only file handler.

Happy path: preserve freezes the inode, pins and fills every page up to the size, writes the folio
table and preserves folios and table; freeze notes the last position; retrieve makes a new memfd
from the entry and puts the folios into its page cache; finish frees what nobody retrieved.

Unhappy paths: unknown seals are EOPNOTSUPP, more than UINT_MAX pages EFBIG, a file of 1 TiB or
more ENOMEM: the array of its folios would be larger than kvmalloc() gives. A retrieve that
fails before its table is restored leaks table and folios: they stay reserved until the next
kexec. One that fails at a folio frees that folio and the later ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kernelmodel.abi.folio_runs import FolioRun, FolioRuns, single_folio_runs
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.abi.memfd import MEMFD_LUO_FOLIO_DIRTY, MEMFD_LUO_FOLIO_UPTODATE, MemfdLuoSer
from kernelmodel.errors import (
    Exists,
    FileTooBig,
    InvalidArgument,
    IoError,
    KernelError,
    NoMemory,
    NotSupported,
)
from kernelmodel.fs import File
from kernelmodel.handlers.folio_table import (
    PlainFolios,
    PreservedFolios,
    folio_heads,
    preserve_folios,
    restore_folio_runs,
    restore_folio_table,
)
from kernelmodel.kho.many import restore_many
from kernelmodel.luo.handler import FileHandler, LuoFile
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.extents import ScatteredPages
from kernelmodel.mm.memfd import add_seals, memfd_file
from kernelmodel.mm.shmem import F_ALL_SEALS, PG_DIRTY, PG_UPTODATE, ShmemInode

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["MOST_FOLIOS", "MemfdHandler"]

_UINT_MAX = (1 << 32) - 1
_POINTER = 8
#: Pointers in what one kvmalloc() gives at most, INT_MAX bytes: one less than the pages of 1 TiB.
MOST_FOLIOS = ((1 << 31) - 1) // _POINTER
_FLAGS = MEMFD_LUO_FOLIO_DIRTY | MEMFD_LUO_FOLIO_UPTODATE


class MemfdHandler(FileHandler):
    """C: memfd_luo_file_ops."""

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(compatible)
        self.kernel = kernel
        self.folios = PlainFolios(kernel)

    def can_preserve(self, file: File) -> bool:
        """A tmpfs file without a link, as memfds are. C: memfd_luo_can_preserve()."""
        return isinstance(file.inode, ShmemInode) and file.inode.nlink == 0

    def get_id(self, file: File) -> int:
        """The inode: two descriptors of one memfd are one object."""
        return file.inode.ino

    def preserve(self, luo_file: LuoFile) -> None:
        """C: memfd_luo_preserve()."""
        kernel, inode = self.kernel, _inode(luo_file)
        kernel.fail_function("memfd_luo_preserve")
        file = luo_file.file
        assert file is not None
        inode.frozen = True
        try:
            ser_pa = kernel.kho.alloc_preserve(MemfdLuoSer.SIZE)
        except KernelError:
            inode.frozen = False
            raise
        try:
            seals = inode.seals or 0
            if seals & ~F_ALL_SEALS:
                raise NotSupported("unknown seals", seals=seals)
            if inode.nr_size_pages > _UINT_MAX:
                raise FileTooBig("too many pages", size=inode.size)
            private = self._preserve_folios(inode)
        except KernelError:
            kernel.kho.unpreserve_free(ser_pa)
            inode.frozen = inode.pinned = False
            raise
        area = private.vmalloc
        ser = MemfdLuoSer(
            file.f_pos,
            inode.size,
            seals,
            0,
            private.nr_folios,
            area.first,
            area.total_pages,
            area.flags,
            area.order,
        )
        kernel.memory.write(ser_pa, ser.pack())
        luo_file.data, luo_file.private = ser_pa, private

    def _preserve_folios(self, inode: ShmemInode) -> PreservedFolios:
        """Pin, fill, write down, preserve. C: memfd_luo_preserve_folios()."""
        nr_pages = inode.nr_size_pages
        kernel = self.kernel
        runs: list[FolioRun | FolioRuns] = []
        if nr_pages == 0:
            return preserve_folios(kernel, runs, 0, self.folios)
        kernel.fail_function("should_failslab", site="memfd_luo_preserve_folios")
        self._check_array(nr_pages)
        kernel.fail_function("memfd_pin_folios")
        inode.allocate(0, nr_pages, PG_DIRTY | PG_UPTODATE)
        inode.migrate_from_scratch()
        inode.pinned = True
        kernel.charge("memfd_pin_folios", nr_pages)
        inode.make_uptodate(0, nr_pages)
        for low, high, (where, _) in inode.pages.within(0, nr_pages):
            if isinstance(where, ScatteredPages):
                runs.append(FolioRuns(where.extents(low, high), low, _FLAGS))
            else:
                runs.append(FolioRun(low + where, low, high - low, 1, 1, _FLAGS))
        kernel.charge("memfd_luo_folio_ser", nr_pages)
        return preserve_folios(kernel, runs, 0, self.folios)

    def _check_array(self, nr_pages: int) -> None:
        """Room for a pointer to each folio while they are pinned; no page is filled without it.

        C: kvmalloc_array() in memfd_luo_preserve_folios(), which refuses more than INT_MAX bytes,
        and more than the memory that there is. As seen on the running kernel.

        Raises:
            NoMemory: the array is too large.
        """
        size = nr_pages * _POINTER
        if nr_pages > MOST_FOLIOS or -(-size // PAGE_SIZE) > self.kernel.page_alloc.managed_pages():
            raise NoMemory("too many folios for one array", size=size)

    def freeze(self, luo_file: LuoFile) -> None:
        """The position as it is now. C: memfd_luo_freeze()."""
        if luo_file.data == 0 or luo_file.file is None:
            raise InvalidArgument("nothing is preserved")
        self.kernel.memory.write_u64(luo_file.data, luo_file.file.f_pos)

    def unpreserve(self, luo_file: LuoFile) -> None:
        """C: memfd_luo_unpreserve()."""
        kernel, inode = self.kernel, _inode(luo_file)
        private = luo_file.private
        assert isinstance(private, PreservedFolios)
        inode.frozen = inode.pinned = False
        private.unpreserve(kernel)
        kernel.kho.unpreserve_free(luo_file.data)

    def _ser(self, luo_file: LuoFile) -> MemfdLuoSer:
        return MemfdLuoSer.unpack(self.kernel.memory.read(luo_file.data, MemfdLuoSer.SIZE))

    def retrieve(self, luo_file: LuoFile) -> File:
        """C: memfd_luo_retrieve()."""
        kernel = self.kernel
        ser = self._ser(luo_file)
        try:
            if ser.seals & ~F_ALL_SEALS:
                raise NotSupported("unknown seals", seals=ser.seals)
            file, inode = memfd_file(kernel)
            add_seals(file, inode, ser.seals)
            if ser.pos < 1 << 63:
                file.f_pos = ser.pos
            inode.size = ser.size
            try:
                self._retrieve_folios(ser, inode)
            except KernelError:
                file.put()
                raise
        finally:
            kernel.kho.restore_free(luo_file.data)
        return file

    def _retrieve_folios(self, ser: MemfdLuoSer, inode: ShmemInode) -> None:
        """C: memfd_luo_retrieve_folios()."""
        if ser.nr_folios == 0:
            return
        kernel = self.kernel
        runs = restore_folio_runs(kernel, _vmalloc_of(ser), ser.nr_folios)
        if runs is None:
            raise InvalidArgument("cannot restore the folio table")
        pending = deque(_heads(runs))
        while pending:
            run = pending.popleft()
            if isinstance(run, FolioRuns):
                pending.extendleft(reversed(self._retrieve_many(run, inode)))
                continue
            if run.pfn == 0:
                continue
            pages, entries = self._restore(run)
            if entries < run.nr:
                pending.appendleft(run.cut(entries, run.nr))
            try:
                kernel.fail_function("shmem_inode_acct_blocks", index=run.index)
            except KernelError:
                kernel.page_alloc.free_run(pages.pfn, pages.nr)
                self._discard(pending)
                raise
            taken = next(iter(inode.extents(pages.index, pages.index + pages.nr)), None)
            if taken is not None:
                room = max(0, taken[0] - pages.index) if pages.nr == entries else 0
                _insert(inode, pages, room)
                kernel.page_alloc.free_run(pages.pfn + room, pages.nr - room)
                self._discard(pending)
                raise Exists("two folios at one index", index=taken[0])
            if not entries:
                self._discard(pending)
                raise IoError("folio is not preserved", pfn=run.pfn)
            _insert(inode, pages, pages.nr)
        kernel.charge("shmem_add_to_page_cache", ser.nr_folios)

    def _retrieve_many(self, runs: FolioRuns, inode: ShmemInode) -> list[FolioRun]:
        """All of these pages at once; what comes back is left to be done one by one."""
        last = runs.index + runs.nr
        if (
            self.kernel.injects_failures
            or inode.pages.within(runs.index, last)
            or not restore_many(self.kernel.kho, runs.pages)
        ):
            return list(runs)
        where = ScatteredPages(runs.index, runs.pages.frames())
        inode.pages.put(runs.index, last, (where, _page_flags(runs.flags)))
        return []

    def _restore(self, run: FolioRun) -> tuple[FolioRun, int]:
        """Take back what of a run comes as pages, or its first folio, if that is a larger one.

        Returns the pages and how many entries of the run they are. The order is that of the tag,
        and a large folio lies at an index that its size divides.
        """
        kho = self.kernel.kho
        order = kho.tag_order(run.pfn)
        if not order:
            restored = kho.restore_folios(run.pfn, 0, run.nr)
            return run.cut(0, restored), restored
        kho.restore_folios(run.pfn, order)
        nr_pages = 1 << order
        return FolioRun(run.pfn, run.index & -nr_pages, nr_pages, 1, 1, run.flags), 1

    def _discard(self, runs: Iterable[FolioRun | FolioRuns]) -> None:
        """Free folios that nobody will get."""
        for run in single_folio_runs(runs):
            at = 0
            while run.pfn and at < run.nr:
                pages, entries = self._restore(run.cut(at, run.nr))
                self.kernel.page_alloc.free_run(pages.pfn, pages.nr)
                self.kernel.charge("kho_unpreserve_free", pages.nr)
                at += max(entries, 1)  # one that is not preserved is passed over

    def finish(self, luo_file: LuoFile) -> None:
        """Free what was not retrieved. C: memfd_luo_finish()."""
        if luo_file.retrieve_status:
            return
        kernel = self.kernel
        ser = self._ser(luo_file)
        if ser.nr_folios:
            runs = restore_folio_table(kernel, _vmalloc_of(ser), ser.nr_folios)
            self._discard(folio_heads(runs or [], 1))
        kernel.kho.restore_free(luo_file.data)


def _heads(runs: Iterable[FolioRun | FolioRuns]) -> Iterator[FolioRun | FolioRuns]:
    """The blocks of `folio_heads`, and many at once between the first and the last of a batch."""
    blocks: list[FolioRun] = []
    for run in runs:
        if isinstance(run, FolioRun):
            blocks.append(run)
            continue
        # what lies before a batch may go on with its first run, its last with what follows
        first, last = int(run.pages.counts[0]), run.nr - int(run.pages.counts[-1])
        if last <= first:
            blocks += run
            continue
        yield from folio_heads([*blocks, *run.cut(0, first)], 1)
        yield run.cut(first, last)
        blocks = [*run.cut(last, run.nr)]
    yield from folio_heads(blocks, 1)


def _insert(inode: ShmemInode, run: FolioRun, nr: int) -> None:
    if nr:
        inode.add_to_page_cache(run.index, run.pfn, nr, _page_flags(run.flags))


def _page_flags(flags: int) -> int:
    return (PG_DIRTY if flags & MEMFD_LUO_FOLIO_DIRTY else 0) | (
        PG_UPTODATE if flags & MEMFD_LUO_FOLIO_UPTODATE else 0
    )


def _inode(luo_file: LuoFile) -> ShmemInode:
    assert luo_file.file is not None
    inode = luo_file.file.inode
    assert isinstance(inode, ShmemInode)
    return inode


def _vmalloc_of(ser: MemfdLuoSer) -> KhoVmalloc:
    return KhoVmalloc(ser.folios_first, ser.folios_total_pages, ser.folios_flags, ser.folios_order)
