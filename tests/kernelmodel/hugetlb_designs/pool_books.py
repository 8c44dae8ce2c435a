"""Files of huge pages in any order of allocate, fault, preserve, cancel, kexec, retrieve, finish.

`PoolBooks` plays the order on a small host and keeps, for every file, what each page holds. After
every step all page frames are accounted for (`validate_kernel`), and the pool's books are right:

    pages that there should be = free + used by files + preserved and unclaimed

A subclass names the release that carries a design, and may say how far the design lets the pool
drift with each kexec (`drift`), and where unclaimed pages are (`unclaimed_in_pool`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernelmodel.errors import KernelError, NotPermitted
from kernelmodel.kernel import Kernel
from kernelmodel.memory import MIB, PAGE_SHIFT, GuestContent
from kernelmodel.mm.guest_memfd import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GuestHugetlbInode,
)
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot

__all__ = ["HUGE", "ORDER", "POOL", "PoolBooks"]

HUGE = 2 * MIB
ORDER = 9
POOL = 12
_GUEST = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED | GUEST_MEMFD_FLAG_HUGETLB | 21 << 26
#: Tokens: a file's own, and its VM's.
_VM = 100

INDEX = st.integers(0, 7)


@dataclass
class Known:
    """A file as it should be: which pages it has and which version of content is in each."""

    name: str
    size: int
    guest: bool
    fd: int
    vm: int = -1
    pages: dict[int, int] = field(default_factory=dict)

    @property
    def missing(self) -> set[int]:
        return set(range(self.size)) - set(self.pages)


@dataclass
class KnownSession:
    """A session: files by token; a descriptor while it has one."""

    name: str
    fd: int = -1
    files: dict[int, Known] = field(default_factory=dict)

    def nr_pages(self) -> int:
        return sum(file.size for file in self.files.values())


class PoolBooks(RuleBasedStateMachine):
    """Subclass it with a release."""

    release: ClassVar[str]
    #: Whether pages that nobody has claimed yet are in the pool already, in use.
    unclaimed_in_pool: ClassVar[bool] = False

    @initialize()
    def power_on(self) -> None:
        self.count = 0
        self.drift = 0
        self.asked = POOL
        self.start(power_on(f"{CMDLINE} hugepages={POOL}", self.release))
        self.new_memfd(2)
        self.new_guest(2)
        for which in (0, 1):
            self.new_session()
            self.preserve(which, which)

    def start(self, kernel: Kernel) -> None:
        self.agent = Agent(kernel)
        self.files: list[Known] = []
        self.outgoing: list[KnownSession] = []
        #: Sessions of the previous kernel: not retrieved yet, retrieved.
        self.incoming: list[KnownSession] = []
        self.retrieved: list[KnownSession] = []

    @property
    def kernel(self) -> Kernel:
        return self.agent.kernel

    def _next(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def _preserved(self, file: Known) -> bool:
        return any(other is file for session in self.outgoing for other in session.files.values())

    def _frozen(self, file: Known) -> bool:
        """Whether its layout may not change."""
        return self._preserved(file)

    def _held(self, file: Known) -> bool:
        return self._preserved(file) or any(
            other is file for session in self.retrieved for other in session.files.values()
        )

    def _inode(self, fd: int) -> HugetlbMemfdInode | GuestHugetlbInode:
        inode = self.agent.task.files.fget(fd).inode
        assert isinstance(inode, HugetlbMemfdInode | GuestHugetlbInode)
        return inode

    def _open(self) -> list[Known]:
        return [file for file in self.files if file.fd >= 0]

    # Allocate and fault.

    @rule(size=st.integers(0, 4))
    def new_memfd(self, size: int) -> None:
        fd = self.agent.task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
        self.agent.task.ftruncate(fd, size * HUGE)
        self.files.append(Known(self._next("memfd"), size, guest=False, fd=fd))

    @rule(size=st.integers(1, 4))
    def new_guest(self, size: int) -> None:
        vm = self.agent.task.kvm_create_vm()
        hstate = self.kernel.hugetlb.hstate(ORDER)
        fits = size <= hstate.available_huge_pages
        fd, why = -1, ""
        try:
            fd = self.agent.task.kvm_create_guest_memfd(vm, size * HUGE, _GUEST)
        except KernelError as error:
            why = error.name
        assert why == ("" if fits else "ENOMEM")
        if why:
            self.agent.task.close(vm)
        else:
            self.files.append(Known(self._next("guest"), size, guest=True, fd=fd, vm=vm))

    @precondition(lambda self: self._open())
    @rule(index=INDEX, page=st.integers(0, 3))
    def write(self, index: int, page: int) -> None:
        file = self._open()[index % len(self._open())]
        if page >= file.size:
            return
        inode, known = self._inode(file.fd), page in file.pages
        try:
            done = inode.hugetlb.populate(page, page + 1) if not file.guest else None
            if isinstance(inode, GuestHugetlbInode):
                done = inode.populate(page, page + 1)
        except NotPermitted:
            assert self._frozen(file)
            assert not known
            return
        if done == page + 1:
            self.count += 1
            inode.guest_write(page, 1, GuestContent(file.name, self.count), page << ORDER)
            file.pages[page] = self.count
        else:
            assert not known
            assert self.kernel.hugetlb.hstate(ORDER).available_huge_pages == 0

    @precondition(lambda self: self._open())
    @rule(index=INDEX, page=st.integers(0, 3))
    def punch(self, index: int, page: int) -> None:
        file = self._open()[index % len(self._open())]
        why = ""
        try:
            self.agent.task.fallocate(file.fd, 3, page * HUGE, HUGE)
        except KernelError as error:
            why = error.name
        assert why == ("EPERM" if self._frozen(file) else "")
        if not why:
            file.pages.pop(page, None)

    @precondition(lambda self: self._open())
    @rule(index=INDEX)
    def close_file(self, index: int) -> None:
        file = self._open()[index % len(self._open())]
        self.agent.task.close(file.fd)
        if file.vm >= 0:
            self.agent.task.close(file.vm)
        file.fd = file.vm = -1
        if not self._held(file):
            self.files.remove(file)

    # Preserve and cancel.

    @precondition(lambda self: self._open() and len(self.outgoing) < 3)
    @rule()
    def new_session(self) -> None:
        name = self._next("session")
        self.outgoing.append(KnownSession(name, self.agent.session(name)))

    @precondition(lambda self: self.outgoing and self._open())
    @rule(index=INDEX, which=INDEX)
    def preserve(self, index: int, which: int) -> None:
        file = self._open()[index % len(self._open())]
        session = self.outgoing[which % len(self.outgoing)]
        self.count += 1
        token = self.count
        if file.guest and not self._held(file):
            self.agent.task.preserve_fd(session.fd, file.vm, _VM + token)
        hstate = self.kernel.hugetlb.hstate(ORDER)
        room = len(file.missing) <= hstate.available_huge_pages or file.guest
        expected = "EBUSY" if self._held(file) else "" if room else "ENOSPC"
        why = ""
        try:
            self.agent.task.preserve_fd(session.fd, file.fd, token)
        except KernelError as error:
            why = error.name
        assert why == expected
        if not why:
            file.pages |= {page: file.pages.get(page, 0) for page in range(file.size)}
            session.files[token] = file
        elif why == "ENOSPC":  # what was filled in before stays
            for at, _, nr in self._inode(file.fd).hugetlb.folios.runs():
                file.pages |= {page: file.pages.get(page, 0) for page in range(at, at + nr)}

    @precondition(lambda self: self.outgoing)
    @rule(which=INDEX)
    def cancel(self, which: int) -> None:
        session = self.outgoing.pop(which % len(self.outgoing))
        self.agent.task.close(session.fd)
        self.files = [file for file in self.files if file.fd >= 0 or self._held(file)]

    # From kernel to kernel.

    @precondition(lambda self: any(session.files for session in self.outgoing))
    @rule()
    def kexec(self) -> None:
        handed_over = [KnownSession(session.name, -1, session.files) for session in self.outgoing]
        for session in handed_over:
            for file in session.files.values():
                file.fd = file.vm = -1
        self.drift += self.drift_of(handed_over)
        self.start(reboot(self.kernel))
        self.incoming = handed_over

    def drift_of(self, handed_over: list[KnownSession]) -> int:
        """By how many pages this design's pool grows (or shrinks) with this kexec."""
        return 0

    @precondition(lambda self: self.incoming and not self.outgoing)
    @rule()
    def kexec_with_nothing(self) -> None:
        """Files that came over and were not preserved again are gone; so are sessions."""
        self.kexec()

    @precondition(lambda self: self.incoming)
    @rule(which=INDEX)
    def retrieve_session(self, which: int) -> None:
        session = self.incoming.pop(which % len(self.incoming))
        session.fd = self.agent.retrieve(session.name)
        self.retrieved.append(session)

    @precondition(lambda self: self.retrieved)
    @rule(which=INDEX, index=INDEX)
    def retrieve(self, which: int, index: int) -> None:
        session = self.retrieved[which % len(self.retrieved)]
        waiting = [(t, f) for t, f in session.files.items() if f not in self.files]
        if not waiting:
            return
        token, file = waiting[index % len(waiting)]
        file.fd = self.agent.task.retrieve_fd(session.fd, token)
        if file.guest:
            file.vm = self.agent.task.retrieve_fd(session.fd, _VM + token)
        self.files.append(file)
        assert self._inode(file.fd).size == file.size * HUGE

    @precondition(lambda self: self.retrieved)
    @rule(which=INDEX)
    def finish(self, which: int) -> None:
        session = self.retrieved.pop(which % len(self.retrieved))
        self.agent.task.finish_session(session.fd)
        self.agent.task.close(session.fd)
        self.files = [file for file in self.files if file.fd >= 0 or self._held(file)]

    # What holds at every moment.

    def unclaimed(self) -> int:
        """Pages of files that came over and that nobody has retrieved or finished."""
        lists = (*self.incoming, *self.retrieved)
        return sum(
            file.size
            for session in lists
            for file in session.files.values()
            if not any(file is other for other in self.files)
        )

    @invariant()
    def every_page_frame_is_accounted_for(self) -> None:
        if hasattr(self, "agent"):
            validate_kernel(self.kernel, [self.agent.task])

    @invariant()
    def the_pools_books_are_right(self) -> None:
        if not hasattr(self, "agent"):
            return
        hstate = self.kernel.hugetlb.hstate(ORDER)
        used = sum(len(file.pages) for file in self.files)
        unclaimed = self.unclaimed()
        in_pool = unclaimed if self.unclaimed_in_pool else 0
        outside = sum(high - low for low, high, o in self.kernel.kho.tags if o == ORDER) >> ORDER
        assert hstate.nr_huge_pages == hstate.free_huge_pages + used + in_pool
        assert outside == unclaimed - in_pool
        assert hstate.free_huge_pages + used + unclaimed == self.asked + self.drift

    @invariant()
    def files_hold_what_was_written(self) -> None:
        if not hasattr(self, "agent"):
            return
        for file in self._open():
            found = {}
            for at, pfn, nr in self._inode(file.fd).hugetlb.folios.runs():
                for n in range(nr):
                    found[at + n] = self.kernel.memory.page(pfn + (n << ORDER) + 5)
            assert set(found) == set(file.pages)
            for page, version in file.pages.items():
                content = GuestContent(file.name, version).page((page << ORDER) + 5)
                assert not version or found[page] == content

    def teardown(self) -> None:
        """Everything closed: the whole pool is free, but for sessions nobody asked for."""
        if not hasattr(self, "agent"):
            return
        left = sum(session.nr_pages() for session in self.incoming)
        self.agent.task.exit()
        hstate = self.kernel.hugetlb.hstate(ORDER)
        in_pool = left if self.unclaimed_in_pool else 0
        assert hstate.free_huge_pages == self.asked + self.drift - left
        assert hstate.nr_huge_pages == hstate.free_huge_pages + in_pool
        assert hstate.resv_huge_pages == 0
        assert PAGE_SHIFT == 12
