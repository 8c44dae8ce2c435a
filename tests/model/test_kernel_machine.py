"""System calls, failures and kexecs in any order: the kernel stays consistent, and files keep
their content.

A small machine of two nodes runs one release after the other. The test keeps, for every file, what
a plain list of bytes would hold, knows which calls must be refused and why, carries what was
preserved over each kexec, and accounts for every page frame after every step; at the end, when all
sessions are closed, nothing may have leaked.

`LUFLEET_MODEL_EXAMPLES` sets how many sequences are tried, each another one then, and
`LUFLEET_MODEL_STEPS` how long they are; without them it is a few, always the same.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import IoError, KernelError
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import MIB, PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, HugetlbMemfdInode
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from kernelmodel.validate import validate_kernel, validate_nothing_leaked
from tests.kernelmodel.failing import Failing
from tests.model.file_rules import POOL
from tests.model.known import HUGE, NAMES, Huge, Plain
from tests.model.session_rules import SessionRules

FIRST = "7.3.4+hugetlb"
#: The first one often, so that chains of it come to pass.
RELEASES = st.sampled_from([FIRST] * 6 + ["7.3.2+hugetlb", "7.3.4", "7.2.13", "6.19", "6.16"])
CMDLINE = f"liveupdate=on kho_scratch=16M,24M,8M hugepagesz=2M hugepages={POOL}"
CONFIG = KernelConfig(
    kexec_handover_debug=True, liveupdate_test=True, kernel_bytes=8 * MIB, initrd_bytes=2 * MIB
)


class KernelMachine(SessionRules):
    @initialize(updated=st.booleans())
    def power_on(self, updated: bool) -> None:
        self.machine = Machine(MachineSpec((160 * MIB, 96 * MIB), 2))
        self.clock = Clock(CostModel.load(), 2, 0)
        self.version = 0
        self.start(self.boot(CATALOGUE[FIRST], self.machine.cold_firmware(CMDLINE)))
        self.open_device()
        self.populate()
        if updated:
            self.live_update(FIRST, "b", take=False)

    def boot(self, release: Release, firmware: Firmware) -> Kernel:
        return boot(self.machine, release, firmware, self.clock, config=CONFIG)

    def start(self, kernel: Kernel) -> None:
        """A kernel is up, and its processes know of nothing yet."""
        self.kernel = kernel
        self.failing = Failing(kernel)
        self.task, self.other = Task(kernel, "agent"), Task(kernel, "other")
        self.files = {}
        self.sessions, self.retrieved, self.incoming = {}, {}, {}
        self.hog = self.armed = self.device = None
        self.losses = False

    def open_device(self, why: str = "") -> None:
        """It must fail with the errno `why`, or must succeed."""
        try:
            self.device = self.task.open(DEV_LIVEUPDATE)
        except KernelError as error:
            if error.name != why:
                raise
        else:
            assert not why, f"{why} expected"

    # From kernel to kernel.

    @precondition(lambda self: self.device is not None)
    @rule(release=RELEASES, name=NAMES, take=st.booleans())
    def live_update(self, release: str, name: str, take: bool) -> None:
        """All that an agent does, of which other rules do a part each."""
        self.preserve_everything(name)
        self.kexec(release)
        if take:
            self.retrieve_everything()

    @precondition(lambda self: self.held_files() or not self.files)
    @rule(release=RELEASES)
    def kexec(self, release: str) -> None:
        self.armed = None
        target = CATALOGUE[release]
        kexec.kexec_file_load(self.kernel, target, CMDLINE)
        given = kexec.jump(self.kernel, kexec.kernel_kexec(self.kernel))
        before = self.kernel.release
        crossed = before.kho == target.kho and None not in (before.luo, target.luo)
        handed_over = [session.handed_over() for session in self.sessions.values()]
        del self.task  # it is gone with its kernel
        self.start(self.boot(*given))
        huge = any(isinstance(f, Huge) for s in handed_over for f in s.files.values())
        why = ""
        if target.luo is None:
            why = "ENOENT"
        elif crossed and huge and target.hugemfd is None:
            why = "EIO"  # a file without a handler spoils the device for ever
        self.open_device(why)
        if why:
            self.open_device(why)  # the answer stays
        if crossed and not why:
            self.incoming = {session.name: session for session in handed_over}
        # without LUO, or with one that cannot read its files, what came over stays kept
        self.losses = bool(why) and before.kho == target.kho
        self.populate()

    def populate(self) -> None:
        """So that there is something to do things with."""
        if self.device is not None:
            self.create_session("a", read_only=False)
        self.new_memfd(MFD_ALLOW_SEALING, PAGE_SIZE + 1)
        self.new_huge_memfd(2, {0})

    @precondition(lambda self: self.device is not None)
    @rule(fail_at=st.integers(0, 3))
    def kexec_that_fails(self, fail_at: int) -> None:
        """One file cannot be frozen: the reboot is refused and everything goes on."""
        calls = 0
        self.armed = None

        def fail(function: str, **_context: object) -> None:
            nonlocal calls
            calls += function == "luo_file_freeze"
            if calls == fail_at + 1:
                raise IoError("injected")

        if sum(len(session.files) for session in self.sessions.values()) <= fail_at:
            return
        kexec.kexec_file_load(self.kernel, self.kernel.release, CMDLINE)
        usual, self.kernel.fail_function = self.kernel.fail_function, fail
        try:
            kexec.kernel_kexec(self.kernel)
        except IoError:
            return
        finally:
            self.kernel.fail_function = usual
        raise AssertionError("a freeze that fails lets the reboot go on")

    # What holds at every moment.

    @invariant()
    def every_page_frame_is_accounted_for(self) -> None:
        if hasattr(self, "task"):
            validate_kernel(self.kernel, [self.task, self.other])

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

    def teardown(self) -> None:
        """Everything is retrieved and everybody leaves: nothing is left."""
        if not hasattr(self, "task"):
            return
        self.armed = None
        self.task.files.limit = 1024
        for name in sorted(self.incoming):
            self.retrieve_session(name, read_only=False)
        self.task.exit()
        self.other.exit()
        validate_kernel(self.kernel, [])
        if not self.losses:
            validate_nothing_leaked(self.kernel, [])
            for hstate in self.kernel.hugetlb.hstates.values():
                assert hstate.nr_huge_pages == hstate.free_huge_pages


EXAMPLES = os.environ.get("LUFLEET_MODEL_EXAMPLES")
KernelMachine.TestCase.settings = settings(
    max_examples=int(EXAMPLES or 40),
    stateful_step_count=int(os.environ.get("LUFLEET_MODEL_STEPS", "40")),
    deadline=None,
    derandomize=EXAMPLES is None,
    print_blob=True,
    suppress_health_check=list(HealthCheck) if EXAMPLES else [],
)
TestKernelMachine = KernelMachine.TestCase
#: A long run takes what it takes.
pytestmark = [pytest.mark.timeout(0)] if EXAMPLES else []
