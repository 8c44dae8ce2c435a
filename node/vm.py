"""A VM as its host sees it: a VMM process, a memfd with guest memory, running or not.

Guest memory is real to the model: it lies in frames of the host's physical memory, and the VM
remembers a fingerprint of what it held when it was paused. After an update the fingerprint of
what came back must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from kernelmodel.errors import KernelError, ModelBug, NoMemory
from kernelmodel.fs import File
from kernelmodel.kernel import Kernel
from kernelmodel.memory import MIB, PAGE_SHIFT, GuestContent, PhysicalMemory
from kernelmodel.mm.extents import Extents, ScatteredPages
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.mm.shmem import PG_UPTODATE, ShmemInode
from kernelmodel.syscalls import Task
from node.api import Backing, VmSpec

__all__ = ["MEMORY_TOKEN", "Vm", "VmState", "memory_extents"]

#: The token under which a VMM preserves its guest's memory.
MEMORY_TOKEN: Final = 1
#: Part of its memory that a guest writes to between two looks at it: one page in …
_DIRTY_PART: Final = 16

#: Inodes of files that guests have for memory.
_GUEST_MEMORY: Final = (HugetlbMemfdInode, ShmemInode)

_MEMFD_FLAGS: Final = {
    Backing.MEMFD: 0,
    Backing.HUGETLB_2M: MFD_HUGETLB | 21 << MFD_HUGE_SHIFT,
    Backing.HUGETLB_1G: MFD_HUGETLB | 30 << MFD_HUGE_SHIFT,
}


class VmState(StrEnum):
    """What a VM is doing."""

    RUNNING = "running"  # its vCPUs run
    PAUSED = "paused"  # it has memory, its vCPUs stand still
    STOPPED = "stopped"  # it has no memory on this kernel


_NEXT: Final = {
    VmState.RUNNING: {VmState.PAUSED, VmState.STOPPED},
    VmState.PAUSED: {VmState.RUNNING, VmState.STOPPED},
    VmState.STOPPED: {VmState.RUNNING, VmState.PAUSED},
}


def memory_extents(file: File) -> list[tuple[int, int]] | None:
    """The frames of a memory file in file order as (pfn, pages); None if pages are missing."""
    batches = _memory_batches(file)
    if batches is None:
        return None
    return [run for part in batches for run in (part if isinstance(part, Extents) else [part])]


def _memory_batches(file: File) -> Sequence[tuple[int, int] | Extents] | None:
    """As `memory_extents`, and many short runs at once."""
    inode = file.inode
    if isinstance(inode, HugetlbMemfdInode):
        hugetlb = inode.hugetlb
        return hugetlb.folios.extents(hugetlb.size)
    if isinstance(inode, ShmemInode):
        extents: list[tuple[int, int] | Extents] = []
        expected = 0
        for index, end, (where, flags) in inode.pages.within(0, inode.nr_size_pages):
            if index != expected or not flags & PG_UPTODATE:
                return None  # a page that is not up to date is cleared at its first access
            if isinstance(where, ScatteredPages):
                extents.append(where.extents(index, end))
            else:
                extents.append((index + where, end - index))
            expected = end
        return extents if expected == inode.nr_size_pages else None
    raise ModelBug("guest memory is neither a memfd nor a hugetlb memfd")


class Vm:
    """One VM on its host."""

    __slots__ = (
        "_small",
        "fd",
        "fingerprint",
        "nid",
        "nr_pages",
        "spec",
        "state",
        "task",
        "version",
        "vmm",
    )

    def __init__(self, spec: VmSpec, nid: int) -> None:
        self.spec = spec
        self.nid = nid
        #: Guest memory in pages of its backing.
        self.nr_pages = spec.memory_bytes // spec.backing.page_bytes
        #: Pages of 4 KiB in one of its backing.
        self._small = spec.backing.page_bytes >> PAGE_SHIFT
        #: Its VMM's name, which is also the name of the lane on which that runs.
        self.vmm = f"vmm:{spec.name}"
        self.state = VmState.STOPPED
        self.task: Task | None = None
        self.fd = -1
        #: Counts what the guest wrote: the content of its memory is a function of it.
        self.version = 0
        #: Of guest memory when it was last paused.
        self.fingerprint = b""

    def advance(self, to: VmState) -> None:
        """Change state."""
        if to not in _NEXT[self.state]:
            raise ModelBug(f"{self.spec.name}: {self.state} -> {to}")
        self.state = to

    @property
    def file(self) -> File:
        """The memory file, through the VMM's descriptor."""
        if self.task is None:
            raise ModelBug(f"{self.spec.name} has no VMM")
        return self.task.files.fdt[self.fd]

    def start_vmm(self, kernel: Kernel) -> Task:
        """The process of a VMM that is given a VM, its own or a new one."""
        kernel.charge("vmm_start")
        return Task(kernel, self.vmm)

    def start(self, kernel: Kernel) -> None:
        """Start a VMM and boot a guest in fresh memory.

        Raises:
            NoMemory, NoSpace: the host does not have the memory; nothing is left behind.
        """
        task = self.start_vmm(kernel)
        try:
            self.fd = task.memfd_create(_MEMFD_FLAGS[self.spec.backing])
            task.ftruncate(self.fd, self.spec.memory_bytes)
            inode = task.files.fdt[self.fd].inode
            if isinstance(inode, HugetlbMemfdInode):
                inode.hugetlb.reserve(0, self.nr_pages)
                if inode.hugetlb.populate(0, self.nr_pages, self.nid) < self.nr_pages:
                    raise NoMemory("huge page pool exhausted", vm=self.spec.name)
            elif isinstance(inode, ShmemInode):
                inode.preallocate(self.nid)
        except KernelError:
            task.exit()
            raise
        if self.spec.backing is Backing.MEMFD:
            kernel.charge("shmem_fault", self.nr_pages)
        else:  # clearing dominates: its unit is 2 MiB, whatever the page size
            kernel.charge("hugetlb_fault", self.spec.memory_bytes // (2 * MIB))
        self.task = task
        self.version += 1
        self._write(0, self.nr_pages)
        self.advance(VmState.RUNNING)

    def _write(self, first: int, nr: int) -> None:
        """Guest stores to pages (of the backing) [first, first + nr)."""
        inode = self.file.inode
        content = GuestContent(self.spec.name, self.version)
        if isinstance(inode, _GUEST_MEMORY):
            inode.guest_write(first, nr, content, first * self._small)

    def run(self) -> None:
        """Let the guest do something: a stretch of its memory gets new content."""
        self.version += 1
        nr = max(1, self.nr_pages // _DIRTY_PART)
        self._write((self.version * nr) % max(1, self.nr_pages - nr + 1), nr)

    def read_fingerprint(self, memory: PhysicalMemory) -> bytes:
        """Of what guest memory holds now; empty if pages are missing."""
        if self.task is None:
            raise ModelBug(f"{self.spec.name} has no VMM")
        extents = _memory_batches(self.task.files.fdt[self.fd])
        return memory.content_digest(extents) if extents is not None else b""

    def forget(self) -> None:
        """The kernel under it is gone, and with it the VMM; memory is another question."""
        self.task = None
        self.fd = -1
        if self.state is not VmState.STOPPED:
            self.advance(VmState.STOPPED)

    def stop(self) -> None:
        """The VMM exits."""
        if self.task is not None:
            self.task.exit()
        self.forget()
