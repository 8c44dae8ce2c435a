"""guest_memfd: memory that belongs to a VM, with a descriptor and, if it is shared, a mapping.

Reproduces Linux 7.3's virt/kvm/guest_memfd.c for fully shared memory on 4 KiB pages as far as a
VMM sees it, and adds huge pages: ours, after what has been proposed (a flag and the page size, as
with memfd_create); 7.3 has none. A guest_memfd belongs to one VM, which it keeps alive, and never
changes its size. Its pages are the kernel's to place: they are never moved, so never in scratch.

Happy path: `KvmVm`, `guest_memfd_file` on it, `populate` for what host or guest touch,
`fallocate` to allocate or to punch holes.

Unhappy paths: a size that is no multiple of the page size, or unknown flags, is EINVAL; without
the flag MMAP a mapping is ENODEV, without INIT_SHARED a touch a SIGBUS; a range beyond the size is
EINVAL. ftruncate is EINVAL always. While `frozen` (preserved), `fallocate` and every page that is
not there yet are EPERM.

On huge pages the whole size is promised when the file is made (ENOMEM if it cannot be), so that no
guest ever lacks a page: our choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernelmodel.errors import (
    InvalidArgument,
    NoDevice,
    NoMemory,
    NotPermitted,
    NotSupported,
)
from kernelmodel.fs import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    File,
    Inode,
    PlainFileOperations,
)
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, Content
from kernelmodel.mm.hugetlb_file import HugetlbFile
from kernelmodel.mm.hugetlbfs import HugetlbInode
from kernelmodel.mm.ranges import RangeMap, RangeSet

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = [
    "GUEST_MEMFD_FLAG_HUGETLB",
    "GUEST_MEMFD_FLAG_INIT_SHARED",
    "GUEST_MEMFD_FLAG_MMAP",
    "GuestHugetlbInode",
    "GuestMemfdInode",
    "KvmVm",
    "KvmVmInode",
    "guest_hugetlb_file",
    "guest_memfd_file",
    "kvm_vm_file",
]

GUEST_MEMFD_FLAG_MMAP: Final = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED: Final = 1 << 1
#: Not in Linux: huge pages, of the size whose binary logarithm stands in bits 26 to 31.
GUEST_MEMFD_FLAG_HUGETLB: Final = 1 << 2
_HUGE_SHIFT: Final = 26
_HUGE_MASK: Final = 0x3F << _HUGE_SHIFT
_SHARED: Final = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
#: Beyond every page index.
_LAST: Final = 1 << 64


class KvmVm:
    """A VM as its memory knows it. C: struct kvm."""

    __slots__ = ("vm_type",)

    def __init__(self, vm_type: int) -> None:
        #: KVM_X86_DEFAULT_VM and so on.
        self.vm_type = vm_type


class KvmVmInode(Inode):
    """What a VM's descriptor stands for."""

    __slots__ = ("kvm",)

    def __init__(self, kernel: Kernel, kvm: KvmVm) -> None:
        super().__init__(kernel.new_ino())
        self.kvm = kvm


def kvm_vm_file(kernel: Kernel, vm_type: int = 0) -> File:
    """KVM_CREATE_VM."""
    return File(KvmVmInode(kernel, KvmVm(vm_type)), PlainFileOperations())


class _GuestInode(Inode):
    """What both kinds share; `size` in bytes never changes."""

    __slots__ = ("flags", "kernel", "kvm", "size")

    def __init__(self, kernel: Kernel, kvm: KvmVm, size: int, flags: int) -> None:
        super().__init__(kernel.new_ino())
        self.kernel = kernel
        self.kvm = kvm
        self.size = size
        self.flags = flags

    @property
    def page_size(self) -> int:
        """Bytes of one page."""
        raise NotImplementedError

    @property
    def is_shared(self) -> bool:
        """Whether host and guest share all of it, the only kind that can be preserved."""
        return self.flags & _SHARED == _SHARED

    @property
    def is_frozen(self) -> bool:
        """Whether a live update holds it."""
        raise NotImplementedError

    def mmap(self) -> None:
        """Whether it may be mapped. C: kvm_gmem_mmap(). Raises: NoDevice."""
        if not self.flags & GUEST_MEMFD_FLAG_MMAP:
            raise NoDevice("guest memory without the flag MMAP")

    def touch(self, page: int, nr: int) -> int:
        """Write through a mapping; how many pages before a SIGBUS (or all).

        C: kvm_gmem_fault_user_mapping().
        """
        if not self.flags & GUEST_MEMFD_FLAG_INIT_SHARED:
            return 0
        last = min(page + nr, self.size // self.page_size)
        try:
            return max(0, self.populate(page, last) - page) if page < last else 0
        except NotPermitted:
            return self.gaps(page, last)[0][0] - page

    def gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """Ranges of page indices without a page."""
        raise NotImplementedError

    def populate(self, first: int, last: int, nid: int = 0) -> int:
        """Give every index of [first, last) a cleared page, as the guest's faults do.

        Returns the first index left without. Raises: NotPermitted, the file is frozen and a page
        is missing; NoMemory.
        """
        if self.is_frozen and self.gaps(first, last):
            raise NotPermitted("file is preserved")
        return self._populate(first, last, nid)

    def _populate(self, first: int, last: int, nid: int) -> int:
        raise NotImplementedError

    def _punch(self, first: int, last: int) -> None:
        raise NotImplementedError

    def truncate(self, size: int) -> None:
        """ftruncate(2). C: kvm_gmem_setattr()."""
        raise InvalidArgument("guest memory keeps its size", size=size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2). C: kvm_gmem_fallocate().

        Raises:
            NotSupported: a mode without KEEP_SIZE, or unknown. InvalidArgument: not whole pages,
            or beyond the size. NotPermitted: the file is preserved. NoMemory.
        """
        if mode not in {FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE}:
            raise NotSupported("fallocate mode", mode=mode)
        if offset % self.page_size or length % self.page_size:
            raise InvalidArgument("not whole pages", offset=offset, length=length)
        if self.is_frozen:
            raise NotPermitted("file is preserved")
        first, last = offset // self.page_size, (offset + length) // self.page_size
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._punch(first, last)
            return
        if offset + length > self.size:
            raise InvalidArgument("beyond the size", end=offset + length)
        self._populate(first, last, 0)


class GuestMemfdInode(_GuestInode):
    """Guest memory on 4 KiB pages. `pages`: page index → frame less index, as runs."""

    __slots__ = ("frozen", "pages")

    def __init__(self, kernel: Kernel, kvm: KvmVm, size: int, flags: int) -> None:
        super().__init__(kernel, kvm, size, flags)
        self.frozen = False
        self.pages: RangeMap[int] = RangeMap()

    @property
    def page_size(self) -> int:
        """Bytes of one page."""
        return PAGE_SIZE

    @property
    def is_frozen(self) -> bool:
        """Whether a live update holds it."""
        return self.frozen

    def extents(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """(index, frame, pages) of what is there, ascending."""
        return [
            (low, low + delta, high - low) for low, high, delta in self.pages.within(first, last)
        ]

    def gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """Ranges of page indices without a page."""
        there = RangeSet((low, high) for low, high, _ in self.pages.within(first, last))
        return list(there.gaps(first, last))

    def _populate(self, first: int, last: int, nid: int) -> int:
        for low, high in self.gaps(first, last):
            index = low
            for pfn, nr_pages in self.kernel.page_alloc.alloc_bulk(0, high - low, nid):
                self.kernel.memory.zero(pfn, nr_pages)
                self.add_pages(index, pfn, nr_pages)
                index += nr_pages
        return last

    def add_pages(self, index: int, pfn: int, nr_pages: int) -> None:
        """Put frames that are there already at an index."""
        self.pages.put(index, index + nr_pages, pfn - index)

    def _punch(self, first: int, last: int) -> None:
        for _, pfn, nr_pages in self.extents(first, last):
            self.kernel.page_alloc.free_run(pfn, nr_pages)
        self.pages.clear(first, last)

    def guest_write(self, first: int, nr: int, content: Content, content_page: int) -> None:
        """Stores of the guest to pages [first, first + nr), which are there."""
        for index, pfn, count in self.extents(first, first + nr):
            self.kernel.memory.fill(pfn, count, content, content_page + index - first)

    def evict(self) -> None:
        """The inode is gone. C: kvm_gmem_release()."""
        self._punch(0, _LAST)


class GuestHugetlbInode(HugetlbFile, _GuestInode):
    """Guest memory on huge pages: its books are `hugetlb`."""

    __slots__ = ("hugetlb",)

    def __init__(self, kernel: Kernel, kvm: KvmVm, flags: int, hugetlb: HugetlbInode) -> None:
        super().__init__(kernel, kvm, hugetlb.size, flags)
        self.hugetlb = hugetlb

    @property
    def page_size(self) -> int:
        """Bytes of one page."""
        return self.hugetlb.page_size

    @property
    def is_frozen(self) -> bool:
        """Whether a live update holds it."""
        return self.hugetlb.frozen

    def gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """Ranges of page indices without a page."""
        return list(self.hugetlb.folios.gaps(first, last))

    def _populate(self, first: int, last: int, nid: int) -> int:
        gaps = self.gaps(first, last)
        done = self.hugetlb.populate(first, last, nid)
        for low, high in gaps:
            self.clear(low, min(high, done))
        return done

    def _punch(self, first: int, last: int) -> None:
        size = self.page_size
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        self.hugetlb.fallocate(mode, first * size, (last - first) * size)
        self.hugetlb.reserve(first, min(last, self.size // size))  # the size stays promised


class _GuestFileOperations(PlainFileOperations):
    def release(self, file: File) -> None:
        """The last descriptor is gone."""
        if isinstance(file.inode, GuestMemfdInode):
            file.inode.evict()
        elif isinstance(file.inode, GuestHugetlbInode):
            file.inode.hugetlb.put()


def guest_memfd_file(kernel: Kernel, kvm: KvmVm, size: int, flags: int) -> File:
    """KVM_CREATE_GUEST_MEMFD.

    Raises:
        InvalidArgument: unknown flags, or not whole pages. NoDevice: no huge pages of that size.
        NoMemory: the pool cannot promise them.
    """
    huge = flags & GUEST_MEMFD_FLAG_HUGETLB
    known = _SHARED | (GUEST_MEMFD_FLAG_HUGETLB | _HUGE_MASK if huge else 0)
    if flags & ~known or size <= 0 or size % PAGE_SIZE:
        raise InvalidArgument("bad size or flags", size=size, flags=flags)
    if not huge:
        return File(GuestMemfdInode(kernel, kvm, size, flags), _GuestFileOperations())
    order = (flags >> _HUGE_SHIFT & 0x3F) - PAGE_SHIFT
    file, inode = guest_hugetlb_file(kernel, kvm, order, size, flags)
    try:
        inode.hugetlb.reserve(0, size // inode.page_size)
    except NoMemory:
        file.put()
        raise
    return file


def guest_hugetlb_file(
    kernel: Kernel, kvm: KvmVm, order: int, size: int, flags: int
) -> tuple[File, GuestHugetlbInode]:
    """An empty file of guest memory on huge pages, nothing promised yet.

    Raises:
        NoDevice: no huge pages of that size. InvalidArgument: not whole ones.
    """
    if order not in kernel.hugetlb.hstates:
        raise NoDevice("no huge pages of this size", order=order)
    hugetlb = HugetlbInode(kernel.hugetlb.hstates[order])
    if size % hugetlb.page_size:
        raise InvalidArgument("size is no multiple of the page size", size=size)
    hugetlb.size = size
    inode = GuestHugetlbInode(kernel, kvm, flags, hugetlb)
    return File(inode, _GuestFileOperations()), inode
