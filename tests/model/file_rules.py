"""Rules about files and memory: what processes do with memfds, plain and on huge pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from kernelmodel.errors import KernelError, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import (
    MFD_ALLOW_SEALING,
    MFD_HUGE_SHIFT,
    MFD_HUGETLB,
    MFD_NOEXEC_SEAL,
    HugetlbMemfdInode,
)
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.syscalls import Task
from tests.kernelmodel.failing import Failing
from tests.model.known import (
    CONTENT_SEALS,
    F_SEAL_EXEC,
    HUGE,
    OFFSETS,
    PICK,
    SEALS,
    SIZES,
    File,
    Huge,
    Plain,
)

T = TypeVar("T")
NOT_OPEN = 999
POOL = 12


class FileRules(RuleBasedStateMachine):
    """The state and the calls that all rules share, and those about files."""

    kernel: Kernel
    task: Task
    other: Task
    failing: Failing
    files: dict[int, File]
    #: A file that takes nearly all memory, and the allocation of the next call that is to fail.
    hog: int | None
    armed: int | None
    version: int

    def attempt(self, call: Callable[[], T], why: str = "", *, pool: bool = False) -> T | None:
        """Make a call that must fail with the errno `why`, or must succeed.

        Where memory is short, or the pool may be, it may fail for that. Returns None then.
        """
        short = self.hog is not None or self.armed is not None or pool
        if self.armed is not None:
            self.failing.arm(self.armed)
        try:
            result = call()
        except KernelError as error:
            if error.name != why and not (short and error.name in {"ENOMEM", "ENOSPC"}):
                raise
            return None
        finally:
            self.failing.arm(-1)
            self.armed = None
        assert not why, f"{why} expected"
        return result

    def why_no_fd(self, why: str = "") -> str:
        """The errno of a call that needs a descriptor, or that of what comes after."""
        return "EMFILE" if len(self.task.files) >= self.task.files.limit else why

    def has(self, kind: type[File]) -> bool:
        """Whether such a file is open."""
        return any(isinstance(file, kind) for file in self.files.values())

    def pick_file(self, pick: int, kind: type[File] | None = None) -> int:
        """A descriptor of a file, or now and then one that is not open."""
        fds = [fd for fd, file in self.files.items() if kind is None or isinstance(file, kind)]
        return fds[pick % len(fds)] if fds and pick < 49 else NOT_OPEN

    def plain(self, pick: int) -> tuple[int, Plain | None]:
        """A plain file, or a descriptor that is not open and None."""
        fd = self.pick_file(pick, Plain)
        file = self.files.get(fd)
        return fd, file if isinstance(file, Plain) else None

    # What makes things scarce.

    @rule(at=st.integers(0, 12))
    def fail_an_allocation(self, at: int) -> None:
        """The next call's allocation number `at` fails."""
        self.armed = at

    @rule(left=st.integers(0, 6))
    def limit_descriptors(self, left: int) -> None:
        """RLIMIT_NOFILE."""
        self.task.files.limit = len(self.task.files) + left if left < 3 else 1024

    @rule(left=st.integers(0, 8))
    def hog_memory(self, left: int) -> None:
        """A file takes all memory but a few pages."""
        if self.hog is not None or len(self.files) <= 3 or self.armed is not None:
            return
        if self.why_no_fd():
            return
        self.hog = self.task.memfd_create()
        inode = self.task.files.fget(self.hog).inode
        assert isinstance(inode, ShmemInode)
        free = self.kernel.page_alloc.nr_free_pages()
        while free:
            try:
                self.task.fallocate(self.hog, 0, inode.size, free * PAGE_SIZE)
            except NoMemory:
                free //= 2
        self.task.ftruncate(self.hog, max(0, inode.size - left * PAGE_SIZE))

    @precondition(lambda self: self.hog is not None)
    @rule()
    def release_memory(self) -> None:
        assert self.hog is not None
        self.task.close(self.hog)
        self.hog = None

    @precondition(lambda self: 9 in self.kernel.hugetlb.hstates)
    @rule(pages=st.integers(0, 2 * POOL))
    def resize_pool(self, pages: int) -> None:
        self.kernel.hugetlb.hstate(9).set_max_huge_pages(pages)

    # Files.

    @rule(flags=st.sampled_from([0, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL]), size=SIZES)
    def new_memfd(self, flags: int, size: int) -> None:
        fd = self.attempt(lambda: self.task.memfd_create(flags), self.why_no_fd())
        if fd is not None:
            self.task.ftruncate(fd, size)
            seals = self.task.get_seals(fd)
            self.files[fd] = Plain(bytearray(size), seals, executable=not flags & MFD_NOEXEC_SEAL)

    @rule(pages=st.integers(0, 3), touched=st.sets(st.integers(0, 2)))
    def new_huge_memfd(self, pages: int, touched: set[int]) -> None:
        flags = MFD_HUGETLB | 21 << MFD_HUGE_SHIFT
        fd = self.attempt(lambda: self.task.memfd_create(flags), self.why_no_fd())
        if fd is not None:
            self.task.ftruncate(fd, pages * HUGE)
            file = self.files[fd] = Huge([0] * pages)
            for page in sorted(touched & set(range(pages))):
                self._store(fd, file, page)

    def _store(self, fd: int, file: Huge, page: int) -> None:
        inode = self.task.files.fget(fd).inode
        assert isinstance(inode, HugetlbMemfdInode)
        if inode.hugetlb.populate(page, page + 1) == page + 1:
            self.version += 1
            inode.guest_write(page, 1, GuestContent("vm", self.version), page << 9)
            file.pages[page] = self.version

    @precondition(lambda self: self.has(Huge))
    @rule(pick=PICK, page=st.integers(0, 2))
    def huge_store(self, pick: int, page: int) -> None:
        fd = self.pick_file(pick, Huge)
        file = self.files.get(fd)
        if isinstance(file, Huge) and page < len(file.pages):
            self._store(fd, file, page)

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, offset=OFFSETS, size=SIZES, byte=st.integers(1, 255))
    def pwrite(self, pick: int, offset: int, size: int, byte: int) -> None:
        fd, file = self.plain(pick)
        why = file.why_no_write(offset, size) if file is not None else "EBADF"
        data = bytes([byte]) * size
        done = self.attempt(lambda: self.task.pwrite(fd, data, offset), why)
        if done is not None and file is not None:
            file.write(offset, data[:done])

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, size=SIZES)
    def ftruncate(self, pick: int, size: int) -> None:
        fd, file = self.plain(pick)
        why = file.why_no_truncate(size) if file is not None else "EBADF"
        self.attempt(lambda: self.task.ftruncate(fd, size), why)
        if file is not None and not why:
            file.resize(size)

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, mode=st.sampled_from([0, 1, 2, 3]), offset=OFFSETS, size=SIZES)
    def fallocate(self, pick: int, mode: int, offset: int, size: int) -> None:
        fd, file = self.plain(pick)
        why = file.why_no_fallocate(mode, offset, size) if file is not None else "EBADF"
        done: list[bool] = []

        def call() -> None:
            self.task.fallocate(fd, mode, offset, size)
            done.append(True)

        self.attempt(call, why)
        if not done or file is None:
            return
        end = offset + size
        if mode == 3:
            hole = max(0, min(end, len(file.content)) - offset)
            file.content[offset : offset + hole] = bytes(hole)
        elif mode == 0:
            file.resize(max(end, len(file.content)))

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, seals=SEALS)
    def add_seals(self, pick: int, seals: int) -> None:
        fd, file = self.plain(pick)
        why = file.why_no_seal(seals) if file is not None else "EBADF"
        self.attempt(lambda: self.task.add_seals(fd, seals), why)
        if file is not None and not why:
            file.seals |= seals
            if seals & F_SEAL_EXEC and file.executable:
                file.seals |= CONTENT_SEALS

    @precondition(lambda self: self.files)
    @rule(pick=PICK, position=OFFSETS)
    def lseek(self, pick: int, position: int) -> None:
        fd = self.pick_file(pick)
        why = "" if fd in self.files else "EBADF"
        self.attempt(lambda: self.task.lseek(fd, position), why)
        if not why:
            self.files[fd].position = position

    # Descriptors.

    @precondition(lambda self: self.files)
    @rule(pick=PICK)
    def dup(self, pick: int) -> None:
        fd = self.pick_file(pick)
        why = self.why_no_fd() if fd in self.files else "EBADF"
        copied = self.attempt(lambda: self.task.dup(fd), why)
        if copied is not None:
            self.files[copied] = self.files[fd]

    @precondition(lambda self: self.files)
    @rule(pick=PICK)
    def send_to_another_process(self, pick: int) -> None:
        fd = self.pick_file(pick)
        if fd in self.files:
            self.task.send_fd(fd, self.other)

    @rule()
    def another_process_dies(self) -> None:
        self.other.exit()

    @precondition(lambda self: self.files)
    @rule(pick=PICK)
    def close_file(self, pick: int) -> None:
        fd = self.pick_file(pick)
        self.attempt(lambda: self.task.close(fd), "" if fd in self.files else "EBADF")
        self.files.pop(fd, None)
