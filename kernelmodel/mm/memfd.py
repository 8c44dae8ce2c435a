"""memfd_create(2): unlinked files on tmpfs or on huge pages. C: mm/memfd.c, 7.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kernelmodel.errors import Busy, InvalidArgument, NoDevice, NotPermitted
from kernelmodel.fs import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    File,
    Inode,
    PlainFileOperations,
    check_mmap,
)
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hugetlb_file import HugetlbFile
from kernelmodel.mm.hugetlbfs import HugetlbInode, HugetlbMapping
from kernelmodel.mm.shmem import (
    F_ALL_SEALS,
    F_SEAL_EXEC,
    F_SEAL_FUTURE_WRITE,
    F_SEAL_GROW,
    F_SEAL_SEAL,
    F_SEAL_SHRINK,
    F_SEAL_WRITE,
    ShmemFileOperations,
    ShmemInode,
)

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.mm.hugetlbfs_mount import HugetlbfsMount

__all__ = [
    "MFD_ALLOW_SEALING",
    "MFD_EXEC",
    "MFD_HUGETLB",
    "MFD_HUGE_SHIFT",
    "MFD_NOEXEC_SEAL",
    "HugetlbFileOperations",
    "HugetlbMemfdInode",
    "add_seals",
    "check_memfd_flags",
    "hugetlb_memfd_file",
    "memfd_create",
    "memfd_file",
]

MFD_CLOEXEC: Final = 0x1
MFD_ALLOW_SEALING: Final = 0x2
MFD_HUGETLB: Final = 0x4
MFD_NOEXEC_SEAL: Final = 0x8
MFD_EXEC: Final = 0x10
MFD_HUGE_SHIFT: Final = 26
_MFD_HUGE_MASK: Final = 0x3F
_ALL_FLAGS: Final = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_NOEXEC_SEAL | MFD_EXEC


class HugetlbMemfdInode(HugetlbFile, Inode):
    """A hugetlb memfd: its books are `hugetlb`, its seals its own. C: fs/hugetlbfs/inode.c.

    A file of a mounted hugetlbfs is the same thing with a `mount`.
    """

    __slots__ = ("executable", "hugetlb", "kernel", "mount", "seals")

    def __init__(
        self,
        kernel: Kernel,
        hugetlb: HugetlbInode,
        seals: int,
        mount: HugetlbfsMount | None = None,
    ) -> None:
        super().__init__(kernel.new_ino())
        self.mount = mount
        self.kernel = kernel
        self.hugetlb = hugetlb
        self.seals: int | None = seals
        self.executable = True

    @property
    def size(self) -> int:
        """Bytes."""
        return self.hugetlb.size

    @property
    def block_bytes(self) -> int:
        """Bytes in a huge page."""
        return self.hugetlb.page_size

    @property
    def has_writers(self) -> bool:
        """Whether a page is pinned by a live update, or the file is mapped for writing."""
        return self.hugetlb.mappings > 0 or (self.hugetlb.frozen and self.hugetlb.folios.total > 0)

    def _check_sealed(self, seals: int) -> None:
        if (self.seals or 0) & seals:
            raise NotPermitted("sealed")

    def truncate(self, size: int) -> None:
        """ftruncate(2). Raises: NotPermitted, and as `HugetlbInode.ftruncate()`."""
        hugetlb, forbidden = self.hugetlb, 0
        if size != hugetlb.size:
            forbidden = F_SEAL_SHRINK if size < hugetlb.size else F_SEAL_GROW
        if (self.seals or 0) & forbidden and size % hugetlb.page_size == 0:
            raise NotPermitted("sealed")
        hugetlb.ftruncate(size)

    def mmap(self, start: int, nr: int, *, noreserve: bool = False) -> HugetlbMapping:
        """mmap(2), shared and writable, in huge pages.

        Raises: NotPermitted, and as `check_mmap()` and `HugetlbInode.mmap()`.
        C: memfd_check_seals_mmap().
        """
        check_mmap(start * self.block_bytes, nr * self.block_bytes)
        self._check_sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)
        return self.hugetlb.mmap(start, nr, noreserve=noreserve)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Raises: NotPermitted, and as `HugetlbInode.fallocate()`."""
        if mode == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
            self._check_sealed(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)
        elif mode in {0, FALLOC_FL_KEEP_SIZE} and offset + length > self.size:
            self._check_sealed(F_SEAL_GROW)
        page, end = self.hugetlb.page_size, offset + length
        holes = self.hugetlb.folios.gaps(offset // page, -(-end // page))
        try:
            self.hugetlb.fallocate(mode, offset, length)
        finally:
            for low, high in holes:
                self.clear(low, high)
        if mode & FALLOC_FL_PUNCH_HOLE:
            edge = min(end, -(-offset // page) * page)
            self._zero(offset, edge)
            self._zero(max(edge, end // page * page), end)

    def _zero(self, start: int, end: int) -> None:
        """Zero bytes of one huge page, if it is there. C: hugetlbfs_zero_partial_page()."""
        page = self.hugetlb.page_size
        for index, pfn, _ in self.hugetlb.folios.within(start // page, -(-end // page)):
            pa = (pfn << PAGE_SHIFT) + start - index * page
            low, high = -(-pa >> PAGE_SHIFT), pa + end - start >> PAGE_SHIFT
            if low < high:
                self.kernel.memory.zero(low, high - low)
            edge = min(pa + end - start, low << PAGE_SHIFT)
            self.kernel.memory.write(pa, bytes(edge - pa))
            rest = max(edge, high << PAGE_SHIFT)
            self.kernel.memory.write(rest, bytes(pa + end - start - rest))

    def read(self, offset: int, size: int) -> bytes:
        """pread(2): up to the file's size, holes read as zero."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        out = bytearray(end - offset)
        page = self.hugetlb.page_size
        for index, pfn, count in self.hugetlb.folios.within(offset // page, -(-end // page)):
            start = max(offset, index * page)
            take = min(end, (index + count) * page) - start
            source = (pfn << PAGE_SHIFT) + start - index * page
            out[start - offset : start - offset + take] = self.kernel.memory.read(source, take)
        return bytes(out)


class HugetlbFileOperations(PlainFileOperations):
    """Files of huge pages."""

    def release(self, file: File) -> None:
        """The last descriptor is gone."""
        if isinstance(file.inode, HugetlbMemfdInode):
            file.inode.hugetlb.put()


_SHMEM_OPS = ShmemFileOperations()
_HUGETLB_OPS = HugetlbFileOperations()


def memfd_file(kernel: Kernel, seals: int = 0) -> tuple[File, ShmemInode]:
    """An empty plain memfd. C: memfd_alloc_file(). Raises: NoMemory."""
    kernel.fail_function("should_failslab", site="memfd_alloc_file")
    inode = ShmemInode(kernel, seals)
    return File(inode, _SHMEM_OPS), inode


def hugetlb_memfd_file(
    kernel: Kernel, order: int, seals: int = 0
) -> tuple[File, HugetlbMemfdInode]:
    """An empty memfd on huge pages of `order`. Raises: NoDevice if there are none such."""
    if order not in kernel.hugetlb.hstates:
        raise NoDevice("no huge pages of this size", order=order)
    inode = HugetlbMemfdInode(kernel, HugetlbInode(kernel.hugetlb.hstates[order]), seals)
    return File(inode, _HUGETLB_OPS), inode


def check_memfd_flags(flags: int) -> None:
    """What memfd_create(2) refuses before it takes a descriptor. C: sanitize_flags().

    Raises:
        InvalidArgument: unknown flags, or two that exclude each other.
    """
    known = _ALL_FLAGS | (_MFD_HUGE_MASK << MFD_HUGE_SHIFT if flags & MFD_HUGETLB else 0)
    if flags & ~known or (flags & MFD_EXEC and flags & MFD_NOEXEC_SEAL):
        raise InvalidArgument("bad flags", flags=flags)


def memfd_create(kernel: Kernel, flags: int) -> File:
    """memfd_create(2), of flags that were checked.

    Raises:
        NoDevice: no huge pages of the wanted size.
    """
    size_log2 = flags >> MFD_HUGE_SHIFT & _MFD_HUGE_MASK
    seals = 0 if flags & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) else F_SEAL_SEAL
    if flags & MFD_NOEXEC_SEAL:
        seals |= F_SEAL_EXEC
    if flags & MFD_HUGETLB:
        order = size_log2 - PAGE_SHIFT if size_log2 else kernel.hugetlb.default_order
        file, huge = hugetlb_memfd_file(kernel, order, seals)
        huge.executable = not flags & MFD_NOEXEC_SEAL
        return file
    file, inode = memfd_file(kernel, seals)
    inode.executable = not flags & MFD_NOEXEC_SEAL
    return file


class _Sealable(Protocol):
    seals: int | None
    executable: bool

    @property
    def has_writers(self) -> bool: ...


def add_seals(file: File, inode: _Sealable, seals: int) -> None:
    """fcntl(F_ADD_SEALS). C: memfd_add_seals().

    Raises:
        NotPermitted: descriptor not writable, or F_SEAL_SEAL is set. InvalidArgument: no memfd,
            or unknown seals. Busy: F_SEAL_WRITE while somebody can write all the same.
    """
    if not file.writable:
        raise NotPermitted("not open for writing")
    if seals & ~F_ALL_SEALS or inode.seals is None:
        raise InvalidArgument("bad seals", seals=seals)
    if inode.seals & F_SEAL_SEAL:
        raise NotPermitted("sealed against sealing")
    if seals & F_SEAL_EXEC and inode.executable:
        # sealing an executable seals its content with it
        seals |= F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
    if seals & F_SEAL_WRITE and not inode.seals & F_SEAL_WRITE and inode.has_writers:
        raise Busy("pages are pinned, or mapped for writing")
    inode.seals |= seals
