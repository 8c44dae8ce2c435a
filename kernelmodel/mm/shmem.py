"""tmpfs inodes and the memfds on them: page cache, seals, size, and what freezing forbids.

The page cache holds runs: page index → frame, with the flags that preservation cares about.
Folios are single pages, as with the default policy `huge=never` of the internal mount.

Unhappy paths: seals refuse with EPERM, F_SEAL_WRITE on pinned pages with EBUSY; a frozen inode
(its file is preserved) refuses every change of layout with EPERM and takes writes in place.

C: mm/shmem.c, 7.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernelmodel.errors import FileTooBig, NoMemory, NotPermitted, NotSupported
from kernelmodel.fs import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    MAX_LFS_FILESIZE,
    File,
    Inode,
    PlainFileOperations,
)
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, Content
from kernelmodel.mm.extents import ScatteredPages, gathered
from kernelmodel.mm.ranges import RangeMap, RangeSet

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = [
    "F_ALL_SEALS",
    "F_SEAL_EXEC",
    "F_SEAL_FUTURE_WRITE",
    "F_SEAL_GROW",
    "F_SEAL_SEAL",
    "F_SEAL_SHRINK",
    "F_SEAL_WRITE",
    "PG_DIRTY",
    "PG_UPTODATE",
    "ShmemFileOperations",
    "ShmemInode",
    "tmpfs_file",
]

F_SEAL_SEAL: Final = 0x01
F_SEAL_SHRINK: Final = 0x02
F_SEAL_GROW: Final = 0x04
F_SEAL_WRITE: Final = 0x08
F_SEAL_FUTURE_WRITE: Final = 0x10
F_SEAL_EXEC: Final = 0x20
F_ALL_SEALS: Final = 0x3F

PG_DIRTY: Final = 1
PG_UPTODATE: Final = 2

#: Beyond every page index, those of a folio table that was tampered with included.
_LAST: Final = 1 << 64
#: The write path hands the filesystem pieces of at most the largest folio it could allocate.
_WRITE_CHUNK: Final = 2 << 20


class ShmemInode(Inode):
    """C: struct shmem_inode_info and its inode.

    `pages` maps page indexes to (where, PG_* flags): frame minus index, or frames that lie
    scattered. `seals` is None where none can be had. The file is `frozen` while a live update
    holds it, and `pinned` while its pages are.
    """

    __slots__ = ("executable", "frozen", "kernel", "pages", "pinned", "seals", "size")

    def __init__(self, kernel: Kernel, seals: int | None, *, nlink: int = 0) -> None:
        super().__init__(kernel.new_ino(), nlink)
        self.kernel = kernel
        self.seals = seals
        self.size = 0
        self.executable = True
        self.frozen = False
        self.pinned = False
        self.pages: RangeMap[tuple[int | ScatteredPages, int]] = RangeMap()

    @property
    def nr_size_pages(self) -> int:
        """Pages up to the size, the last one counted whole."""
        return -(-self.size // PAGE_SIZE)

    @property
    def has_writers(self) -> bool:
        """Whether there is a page that something pins."""
        return self.pinned and len(self.pages) > 0

    def _sealed(self, seals: int) -> bool:
        return bool((self.seals or 0) & seals)

    # Page cache.

    def extents(self, first: int, last: int) -> list[tuple[int, int, int, int]]:
        """(index, frame, pages, flags) of the pages in [first, last), ascending."""
        out: list[tuple[int, int, int, int]] = []
        for low, high, (where, flags) in self.pages.within(first, last):
            if isinstance(where, ScatteredPages):
                for pfn, nr_pages in where.extents(low, high):
                    out.append((low, pfn, nr_pages, flags))
                    low += nr_pages  # noqa: PLW2901 - the next run begins there
            else:
                out.append((low, low + where, high - low, flags))
        return out

    def holes(self, first: int, last: int) -> list[tuple[int, int]]:
        """Index ranges in [first, last) without a page."""
        out: list[tuple[int, int]] = []
        for low, high, _ in self.pages.within(first, last):
            if first < low:
                out.append((first, low))
            first = high
        if first < last:
            out.append((first, last))
        return out

    def allocate(
        self, first: int, last: int, flags: int, *, zeroed: bool = True, nid: int = 0
    ) -> int:
        """Fill the holes of [first, last), lowest index first; how many pages that took.

        Raises:
            NoMemory: not all of them; those that could be filled stay, and are zero.
        """
        taken = 0
        for low, high in self.holes(first, last):
            runs, missing = self.kernel.page_alloc.alloc_upto(0, high - low, nid, movable=True)
            for index, nr_pages, where in gathered(runs, low):
                if zeroed or missing:
                    self._zero(index, nr_pages, where)
                self.pages.put(index, index + nr_pages, (where, flags))
            if missing:
                raise NoMemory("no page for a file", missing=missing)
            taken += high - low
        return taken

    def _zero(self, index: int, nr_pages: int, where: int | ScatteredPages) -> None:
        if isinstance(where, ScatteredPages):
            self.kernel.memory.zero_scattered(where.cut(index, index + nr_pages))
        else:
            self.kernel.memory.zero(index + where, nr_pages)

    def preallocate(self, nid: int) -> None:
        """Give every page up to the size a frame, as a VMM's prealloc does. Raises: NoMemory."""
        self.allocate(0, self.nr_size_pages, PG_DIRTY | PG_UPTODATE, nid=nid)

    def add_to_page_cache(self, index: int, pfn: int, nr_pages: int, flags: int) -> None:
        """Put frames that are there already at an index."""
        self.pages.put(index, index + nr_pages, (pfn - index, flags))

    def drop_pages(self, first: int, last: int) -> None:
        """Free the pages of an index range."""
        for _, pfn, nr_pages, _ in self.extents(first, last):
            self.kernel.page_alloc.free_run(pfn, nr_pages)
        self.pages.clear(first, last)

    def migrate_from_scratch(self) -> None:
        """Move pages out of memory that cannot be pinned for long.

        C: memfd_pin_folios() through migrate_longterm_unpinnable_folios(). Raises: NoMemory.
        """
        kernel = self.kernel
        scratch = RangeSet(  # areas that a spoilt handover brought may overlap
            (area.addr >> PAGE_SHIFT, area.addr + area.size >> PAGE_SHIFT)
            for area in kernel.kho.scratch
        )
        inside = [
            extent
            for first, last, (where, _) in self.pages.within(0, self.nr_size_pages)
            if not isinstance(where, ScatteredPages) or where.meets(scratch)
            for extent in self.extents(first, last)
        ]
        for index, pfn, nr_pages, flags in inside:
            for low, high in scratch.within(pfn, pfn + nr_pages):
                at, source = index + low - pfn, low
                nid = kernel.page_alloc.pfn_to_nid(low)
                for new, count in kernel.page_alloc.alloc_bulk(0, high - low, nid):
                    kernel.memory.copy(source, new, count)
                    self.pages.put(at, at + count, (new - at, flags))
                    at, source = at + count, source + count
                kernel.page_alloc.free_run(low, high - low)

    # System calls on the file.

    def truncate(self, size: int) -> None:
        """ftruncate(2). C: shmem_setattr()."""
        if size == self.size:
            return
        if (size < self.size and self._sealed(F_SEAL_SHRINK)) or (
            size > self.size and self._sealed(F_SEAL_GROW)
        ):
            raise NotPermitted("sealed")
        if self.frozen:
            raise NotPermitted("file is preserved")
        if size < self.size:
            self._zero_tail(size)
            self.drop_pages(-(-size // PAGE_SIZE), _LAST)
        self.size = size

    def _zero_tail(self, size: int) -> None:
        """Clear what of the last page lies beyond the size."""
        offset = size % PAGE_SIZE
        for _, pfn, _, _ in self.extents(size >> PAGE_SHIFT, (size >> PAGE_SHIFT) + 1):
            if offset:
                self.kernel.memory.write((pfn << PAGE_SHIFT) + offset, bytes(PAGE_SIZE - offset))

    def write(self, offset: int, data: bytes) -> int:
        """pwrite(2); bytes written, fewer if what follows is refused. C: generic_perform_write().

        A piece may have the size of the largest folio and is judged whole; then it is written
        page by page, as far as there is memory. Raises: NotPermitted, NoMemory.
        """
        done = 0
        try:
            while done < len(data):
                at = offset + done
                take = min(len(data) - done, _WRITE_CHUNK - at % _WRITE_CHUNK)
                piece = data[done : done + take]
                self._check_write(at + take)
                try:
                    self._write_piece(at, piece)
                except NoMemory:
                    take = min(take, PAGE_SIZE - at % PAGE_SIZE)
                    self._write_piece(at, piece[:take])
                done += take
        except (NotPermitted, NoMemory):
            if done == 0:
                raise
        return done

    def _check_write(self, end: int) -> None:
        """C: shmem_write_begin(). Raises: NotPermitted."""
        if self._sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE):
            raise NotPermitted("sealed against writing")
        if end > self.size and (self.frozen or self._sealed(F_SEAL_GROW)):
            raise NotPermitted("write would grow the file")

    def _write_piece(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        first, last = offset >> PAGE_SHIFT, -(-end // PAGE_SIZE)
        self.allocate(first, last, PG_DIRTY | PG_UPTODATE)
        self.make_uptodate(first, last)
        at = 0
        for index, pfn, nr_pages, _ in self.extents(first, last):
            start = max(offset, index << PAGE_SHIFT)
            take = min(end, index + nr_pages << PAGE_SHIFT) - start
            target = (pfn << PAGE_SHIFT) + start - (index << PAGE_SHIFT)
            self.kernel.memory.write(target, data[at : at + take])
            at += take
        self.size = max(self.size, end)

    def read(self, offset: int, size: int) -> bytes:
        """pread(2): up to the file's size, holes and pages never written read as zero."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        out = bytearray(end - offset)
        for index, pfn, nr_pages, flags in self.extents(offset >> PAGE_SHIFT, -(-end // PAGE_SIZE)):
            if not flags & PG_UPTODATE:
                continue
            start = max(offset, index << PAGE_SHIFT)
            take = min(end, index + nr_pages << PAGE_SHIFT) - start
            source = (pfn << PAGE_SHIFT) + start - (index << PAGE_SHIFT)
            out[start - offset : start - offset + take] = self.kernel.memory.read(source, take)
        return bytes(out)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2). C: shmem_fallocate()."""
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            raise NotSupported("unsupported mode", mode=mode)
        if self.frozen:
            raise NotPermitted("file is preserved")
        end = offset + length
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._punch(offset, end)
            return
        if end > self.size and self._sealed(F_SEAL_GROW):
            raise NotPermitted("sealed against growing")
        if -(-end // PAGE_SIZE) > MAX_LFS_FILESIZE >> PAGE_SHIFT:
            raise FileTooBig("no file has the last page", end=end)
        first, last = offset >> PAGE_SHIFT, -(-end // PAGE_SIZE)
        holes = self.holes(first, last)
        try:
            self.allocate(first, last, 0, zeroed=False)
        except NoMemory:  # unlike a write or a fault, it takes back what it has done
            for low, high in holes:
                self.drop_pages(low, high)
            raise
        if not mode & FALLOC_FL_KEEP_SIZE:
            self.size = max(self.size, end)

    def _punch(self, offset: int, end: int) -> None:
        if self._sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE):
            raise NotPermitted("sealed against writing")
        first, last = -(-offset // PAGE_SIZE), end // PAGE_SIZE
        for edge, stop in (
            (offset, min(end, first * PAGE_SIZE)),
            (max(offset, last * PAGE_SIZE), end),
        ):
            for index, pfn, _, _ in self.extents(edge >> PAGE_SHIFT, (edge >> PAGE_SHIFT) + 1):
                if edge < stop:
                    target = (pfn << PAGE_SHIFT) + edge - (index << PAGE_SHIFT)
                    self.kernel.memory.write(target, bytes(stop - edge))
        if first < last:
            self.drop_pages(first, last)

    def guest_write(self, first: int, nr_pages: int, content: Content, content_page: int) -> None:
        """Stores through a mapping: whole pages get `content`. Raises: NoMemory."""
        self.allocate(first, first + nr_pages, PG_DIRTY | PG_UPTODATE, zeroed=False)
        memory = self.kernel.memory
        for low, high, (where, _) in self.pages.within(first, first + nr_pages):
            if isinstance(where, ScatteredPages):
                memory.fill_scattered(where.cut(low, high), content, content_page + low - first)
            else:
                memory.fill(low + where, high - low, content, content_page + low - first)

    def make_uptodate(self, first: int, last: int) -> None:
        """Clear pages that were never written, and mark all as written."""
        for low, high, (where, flags) in list(self.pages.within(first, last)):
            if not flags & PG_UPTODATE:
                self._zero(low, high - low, where)
            if flags != PG_DIRTY | PG_UPTODATE:
                self.pages.put(low, high, (where, PG_DIRTY | PG_UPTODATE))

    def evict(self) -> None:
        """The inode is gone. C: shmem_evict_inode()."""
        self.drop_pages(0, _LAST)


class ShmemFileOperations(PlainFileOperations):
    """Regular files on tmpfs, memfds among them."""

    def release(self, file: File) -> None:
        """An unlinked file's pages go with its last descriptor."""
        inode = file.inode
        if isinstance(inode, ShmemInode) and inode.nlink == 0:
            inode.evict()


def tmpfs_file(kernel: Kernel, *, nlink: int = 1) -> File:
    """An empty regular file on a mounted tmpfs; without links one of O_TMPFILE.

    Such files carry F_SEAL_SEAL from birth. C: shmem_get_inode().
    """
    return File(ShmemInode(kernel, F_SEAL_SEAL, nlink=nlink), ShmemFileOperations())
