"""System calls and kexecs in any order: the kernel stays consistent, and files keep their content.

A small machine runs the release with the hugetlb proposal. The test keeps, for every file, what a
plain list of bytes would hold, carries it over each kexec for what was preserved in an open
session, and accounts for every page frame after every step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import IoError, KernelError, NoMemory
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import MIB, PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import (
    MFD_ALLOW_SEALING,
    MFD_HUGE_SHIFT,
    MFD_HUGETLB,
    MFD_NOEXEC_SEAL,
    HugetlbMemfdInode,
)
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from kernelmodel.validate import validate_kernel

RELEASE = CATALOGUE["7.3.4+hugetlb"]
POOL = 12
CMDLINE = f"liveupdate=on kho_scratch=16M,24M,8M hugepagesz=2M hugepages={POOL}"
CONFIG = KernelConfig(
    kexec_handover_debug=True, liveupdate_test=True, kernel_bytes=8 * MIB, initrd_bytes=2 * MIB
)
HUGE = 2 * MIB
SIZES = st.sampled_from([0, 1, 100, PAGE_SIZE, PAGE_SIZE + 1, 5 * PAGE_SIZE])
OFFSETS = st.sampled_from([0, 7, PAGE_SIZE - 1, PAGE_SIZE, 3 * PAGE_SIZE])
TOKENS = st.sampled_from([0, 1, 2, (1 << 64) - 1])
NAMES = st.sampled_from(["a", "b", "c"])
SEALS = st.sampled_from([1, 2, 4, 8, 16, 32])
PICK = st.integers(0, 50)


@dataclass
class Plain:
    """A memfd as the test knows it."""

    content: bytearray = field(default_factory=bytearray)
    seals: int = 0
    position: int = 0


@dataclass
class Huge:
    """A memfd on huge pages: the version of the content that each page holds, 0 for zeroes."""

    pages: list[int] = field(default_factory=list)
    position: int = 0


File = Plain | Huge


class KernelMachine(RuleBasedStateMachine):
    @initialize()
    def power_on(self) -> None:
        self.machine = Machine(MachineSpec((160 * MIB, 96 * MIB), 2))
        self.clock = Clock(CostModel.load(), 2, 0)
        self.kernel = self.boot(RELEASE, self.machine.cold_firmware(CMDLINE))
        self.version = 0
        self.incoming: dict[str, dict[int, File]] = {}
        self.start_process()

    def boot(self, release: Release, firmware: Firmware) -> Kernel:
        return boot(self.machine, release, firmware, self.clock, config=CONFIG)

    def start_process(self) -> None:
        self.task = Task(self.kernel, "agent")
        self.device = self.task.open(DEV_LIVEUPDATE)
        self.files: dict[int, File] = {}
        self.sessions: dict[int, tuple[str, dict[int, File]]] = {}
        self.retrieved: dict[int, tuple[str, dict[int, File]]] = {}
        self.hog: int | None = None
        self.create_session("a")
        self.memfd(MFD_ALLOW_SEALING, PAGE_SIZE + 1)
        self.huge_memfd(2, {0})

    def file(self, pick: int, kind: type[File] | None = None) -> int:
        """A descriptor of a file, or one that is not open."""
        fds = [fd for fd, file in self.files.items() if kind is None or isinstance(file, kind)]
        return fds[pick % len(fds)] if fds else 999

    def has(self, kind: type[File]) -> bool:
        return any(isinstance(file, kind) for file in self.files.values())

    def session(self, pick: int, first: str = "sessions") -> int:
        """A session's descriptor, mostly of the kind that an operation is for."""
        fds = [*self.sessions, *self.retrieved]
        if first == "retrieved":
            fds.reverse()
        return fds[max(0, pick % (2 * len(fds)) - len(fds))] if fds else 998

    # Files.

    @rule(flags=st.sampled_from([0, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL]), size=SIZES)
    def new_memfd(self, flags: int, size: int) -> None:
        self.memfd(flags, size)

    def memfd(self, flags: int, size: int) -> None:
        fd = self.task.memfd_create(flags)
        self.task.ftruncate(fd, size)
        self.files[fd] = Plain(bytearray(size), self.task.get_seals(fd))

    @rule(pages=st.integers(0, 3), touched=st.sets(st.integers(0, 2)))
    def new_huge_memfd(self, pages: int, touched: set[int]) -> None:
        self.huge_memfd(pages, touched)

    def huge_memfd(self, pages: int, touched: set[int]) -> None:
        fd = self.task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
        self.task.ftruncate(fd, pages * HUGE)
        file = Huge([0] * pages)
        self.files[fd] = file
        for page in sorted(touched & set(range(pages))):
            self.store(fd, file, page)

    def store(self, fd: int, file: Huge, page: int) -> None:
        inode = self.task.files.fget(fd).inode
        assert isinstance(inode, HugetlbMemfdInode)
        if inode.hugetlb.populate(page, page + 1) == page + 1:
            self.version += 1
            inode.guest_write(page, 1, GuestContent("vm", self.version), page << 9)
            file.pages[page] = self.version

    @precondition(lambda self: self.has(Huge))
    @rule(pick=PICK, page=st.integers(0, 2))
    def huge_store(self, pick: int, page: int) -> None:
        fd = self.file(pick, Huge)
        file = self.files.get(fd)
        if isinstance(file, Huge) and page < len(file.pages):
            self.store(fd, file, page)

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, offset=OFFSETS, size=SIZES, byte=st.integers(1, 255))
    def pwrite(self, pick: int, offset: int, size: int, byte: int) -> None:
        fd = self.file(pick, Plain)
        try:
            done = self.task.pwrite(fd, bytes([byte]) * size, offset)
        except KernelError:
            return
        file = self.files[fd]
        assert isinstance(file, Plain)
        if done:
            file.content.extend(bytes(max(0, offset + done - len(file.content))))
            file.content[offset : offset + done] = bytes([byte]) * done

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, size=SIZES)
    def ftruncate(self, pick: int, size: int) -> None:
        fd = self.file(pick, Plain)
        try:
            self.task.ftruncate(fd, size)
        except KernelError:
            return
        file = self.files[fd]
        assert isinstance(file, Plain)
        del file.content[size:]
        file.content.extend(bytes(size - len(file.content)))

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, mode=st.sampled_from([0, 1, 2, 3]), offset=OFFSETS, size=SIZES)
    def fallocate(self, pick: int, mode: int, offset: int, size: int) -> None:
        fd = self.file(pick, Plain)
        try:
            self.task.fallocate(fd, mode, offset, size)
        except KernelError:
            return
        file = self.files[fd]
        assert isinstance(file, Plain)
        end = offset + size
        if mode == 3:
            hole = max(0, min(end, len(file.content)) - offset)
            file.content[offset : offset + hole] = bytes(hole)
        elif mode == 0:
            file.content.extend(bytes(max(0, end - len(file.content))))

    @precondition(lambda self: self.has(Plain))
    @rule(pick=PICK, seals=SEALS)
    def add_seals(self, pick: int, seals: int) -> None:
        fd = self.file(pick, Plain)
        try:
            self.task.add_seals(fd, seals)
        except KernelError:
            return
        file = self.files[fd]
        assert isinstance(file, Plain)
        file.seals = self.task.get_seals(fd)
        assert file.seals & seals == seals

    @precondition(lambda self: self.files)
    @rule(pick=PICK, position=OFFSETS)
    def lseek(self, pick: int, position: int) -> None:
        fd = self.file(pick)
        if fd in self.files:
            self.task.lseek(fd, position)
            self.files[fd].position = position

    @precondition(lambda self: self.files)
    @rule(pick=PICK)
    def dup(self, pick: int) -> None:
        fd = self.file(pick)
        if fd in self.files:
            self.files[self.task.dup(fd)] = self.files[fd]

    @precondition(lambda self: self.files)
    @rule(pick=PICK)
    def close_file(self, pick: int) -> None:
        fd = self.file(pick)
        if fd in self.files:
            self.task.close(fd)
            del self.files[fd]

    # What makes memory and pools run out.

    @rule(left=st.integers(0, 8))
    def hog_memory(self, left: int) -> None:
        """A file takes all memory but a few pages."""
        if self.hog is None and len(self.files) > 3:
            self.hog = self.task.memfd_create()
            free = self.kernel.page_alloc.nr_free_pages()
            while free:
                try:
                    size = self.task.files.fget(self.hog).inode.size  # type: ignore[attr-defined]
                    self.task.fallocate(self.hog, 0, size, free * PAGE_SIZE)
                except NoMemory:
                    free //= 2
            size = self.task.files.fget(self.hog).inode.size  # type: ignore[attr-defined]
            self.task.ftruncate(self.hog, max(0, size - left * PAGE_SIZE))

    @precondition(lambda self: self.hog is not None)
    @rule()
    def release_memory(self) -> None:
        assert self.hog is not None
        self.task.close(self.hog)
        self.hog = None

    @rule(pages=st.integers(0, 2 * POOL))
    def resize_pool(self, pages: int) -> None:
        self.kernel.hugetlb.hstate(9).set_max_huge_pages(pages)

    # Sessions.

    @rule(name=NAMES)
    def new_session(self, name: str) -> None:
        self.create_session(name)

    def create_session(self, name: str) -> None:
        try:
            fd = self.task.create_session(self.device, name)
        except KernelError:
            return
        assert name not in {other for other, _ in self.sessions.values()}
        self.sessions[fd] = name, {}

    @precondition(lambda self: self.files and self.sessions)
    @rule(pick=PICK, file=PICK, token=TOKENS)
    def preserve(self, pick: int, file: int, token: int) -> None:
        fd, session = self.file(file), self.session(pick)
        free = self.kernel.page_alloc.nr_free_pages()
        keys = self.kernel.kho.preserved_keys
        try:
            self.task.preserve_fd(session, fd, token)
        except KernelError:
            assert self.kernel.kho.preserved_keys == keys
            assert self.kernel.page_alloc.nr_free_pages() <= free  # holes may be filled by then
            return
        _, files = self.sessions[session]
        assert token not in files
        assert not any(self.files[fd] is held for _, held in self.all_preserved())
        files[token] = self.files[fd]
        if isinstance(self.files[fd], Plain):
            self.seals_at_preserve[id(self.files[fd])] = self.files[fd].seals  # type: ignore[union-attr]

    @property
    def seals_at_preserve(self) -> dict[int, int]:
        seals: dict[int, int] = self.__dict__.setdefault("_seals", {})
        return seals

    def all_preserved(self) -> list[tuple[int, File]]:
        return [entry for _, files in self.sessions.values() for entry in files.items()]

    @precondition(lambda self: self.incoming)
    @rule()
    def retrieve_everything(self) -> None:
        """As an agent does after a live update."""
        for name in sorted(self.incoming):
            self.retrieve_session(name)
        for fd, (_, files) in self.retrieved.items():
            for token in sorted(files):
                self.files[self.task.retrieve_fd(fd, token)] = files[token]

    @precondition(lambda self: self.sessions or self.retrieved)
    @rule(pick=PICK)
    def close_session(self, pick: int) -> None:
        fd = self.session(pick)
        if fd in self.sessions or fd in self.retrieved:
            self.task.close(fd)
            self.sessions.pop(fd, None)
            self.retrieved.pop(fd, None)

    @precondition(lambda self: self.incoming)
    @rule(name=NAMES)
    def take_session(self, name: str) -> None:
        self.retrieve_session(name)

    def retrieve_session(self, name: str) -> None:
        try:
            fd = self.task.retrieve_session(self.device, name)
        except KernelError:
            assert name not in self.incoming
            return
        self.retrieved[fd] = name, self.incoming.pop(name)

    @precondition(lambda self: self.retrieved)
    @rule(pick=PICK, token=TOKENS)
    def retrieve_fd(self, pick: int, token: int) -> None:
        session = self.session(pick, "retrieved")
        known = self.retrieved.get(session, ("", {}))[1]
        try:
            fd = self.task.retrieve_fd(session, token)
        except KernelError:
            if token in known and self.hog is None:
                raise
            return
        self.files[fd] = known[token]

    @precondition(lambda self: self.retrieved)
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        session = self.session(pick, "retrieved")
        try:
            self.task.finish_session(session)
        except KernelError:
            assert session not in self.retrieved
            return
        self.retrieved[session][1].clear()

    @precondition(lambda self: self.all_preserved() or not self.files)
    @rule(fail_at=st.none() | st.integers(0, 3))
    def kexec(self, fail_at: int | None) -> None:
        self.fail_freeze_at(fail_at)
        kexec.kexec_file_load(self.kernel, RELEASE, CMDLINE)
        if fail_at is not None and fail_at < len(self.all_preserved()):
            try:
                kexec.kernel_kexec(self.kernel)
            except IoError:
                return
            raise AssertionError("a freeze that fails lets the reboot go on")
        given = kexec.jump(self.kernel, kexec.kernel_kexec(self.kernel))
        handed_over = copy.deepcopy([*self.sessions.values()])
        seals = [
            {t: self.seals_at_preserve.get(id(f), 0) for t, f in files.items()}
            for _, files in self.sessions.values()
        ]
        self.kernel = self.boot(*given)
        self.start_process()
        self.incoming = {}
        for (name, files), saved in zip(handed_over, seals, strict=True):
            for token, file in files.items():
                if isinstance(file, Plain):
                    file.seals = saved[token]
                    if file.seals & 0x20:  # sealing an executable file's mode seals it whole
                        file.seals |= 0x1E
            self.incoming[name] = files
        self.seals_at_preserve.clear()

    def fail_freeze_at(self, at: int | None) -> None:
        calls = 0

        def fail(function: str, **_context: object) -> None:
            nonlocal calls
            if function == "luo_file_freeze":
                calls += 1
                if at is not None and calls == at + 1:
                    raise IoError("injected")

        self.kernel.fail_function = fail

    @invariant()
    def every_page_frame_is_accounted_for(self) -> None:
        if hasattr(self, "task"):
            validate_kernel(self.kernel, [self.task])

    @invariant()
    def files_hold_what_was_written(self) -> None:
        for fd, file in getattr(self, "files", {}).items():
            assert self.task.lseek_cur(fd) == file.position
            if isinstance(file, Plain):
                assert self.task.pread(fd, 1 << 20, 0) == bytes(file.content)
                assert self.task.get_seals(fd) == file.seals
                continue
            inode = self.task.files.fget(fd).inode
            assert isinstance(inode, HugetlbMemfdInode)
            assert inode.hugetlb.size == len(file.pages) * HUGE
            for page, version in enumerate(file.pages):
                for _, pfn, _ in inode.hugetlb.folios.within(page, page + 1):
                    held = self.kernel.memory.page(pfn + 99)
                    content = GuestContent("vm", version).page((page << 9) + 99)
                    assert version == 0 or held == content


KernelMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True, print_blob=True
)
TestKernelMachine = KernelMachine.TestCase
