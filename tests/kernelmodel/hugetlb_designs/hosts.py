"""A host and an agent that do the same on either LUO, and which release carries which design."""

from __future__ import annotations

from dataclasses import dataclass

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import Busy
from kernelmodel.hugetlb_designs import DESIGNS
from kernelmodel.hugetlb_designs.base import HugetlbDesign
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.client import LiveupdateClient
from kernelmodel.memory import MIB
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.releases import CATALOGUE
from kernelmodel.syscalls import Task
from tests.kernelmodel.kernels import CMDLINE, power_on
from tests.kernelmodel.kernels import Agent as SessionsAgent
from tests.kernelmodel.luo_v4.hosts import FINISH, PREPARE

HUGE, ORDER, POOL = 2 * MIB, 9, 12
RELEASES = {
    release.hugetlb_design: name
    for name, release in CATALOGUE.items()
    if release.guest_hugetlb is not None and release.name.startswith("7.3.4")
}
V4 = [name for name, design in DESIGNS.items() if getattr(design, "luo", "") == "v4"]
ALL = list(DESIGNS)


@dataclass
class Host:
    """An agent of either LUO: what a test does is the same."""

    kernel: Kernel

    def __post_init__(self) -> None:
        self.v4: LiveupdateClient | None = None
        if self.kernel.luo_v4 is not None:
            self.task = Task(self.kernel, "agent")
            self.v4 = LiveupdateClient(self.task)
        else:
            agent = SessionsAgent(self.kernel)
            self.task, self.device = agent.task, agent.device

    @property
    def design(self) -> HugetlbDesign:
        assert self.kernel.hugetlb_design is not None
        return self.kernel.hugetlb_design

    @property
    def pool(self) -> tuple[int, int]:
        """Pages, and free ones."""
        hstate = self.kernel.hugetlb.hstate(ORDER)
        return hstate.nr_huge_pages, hstate.free_huge_pages

    def memfd(self, pages: int) -> int:
        fd = self.task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
        self.task.ftruncate(fd, pages * HUGE)
        return fd

    def session(self, name: str) -> int:
        if self.v4 is not None:
            return self.v4.create_session(name)
        return self.task.create_session(self.device, name)

    def preserve(self, session: int, fd: int, token: int = 1) -> None:
        if self.v4 is not None:
            self.v4.preserve_fd(session, fd, token)
        else:
            self.task.preserve_fd(session, fd, token)

    def prepare(self) -> None:
        if self.v4 is not None:
            self.v4.set_event(PREPARE)

    def reboot(self, cmdline: str | None = None, *, prepared: bool = False) -> Host:
        kernel = self.kernel
        if not prepared:
            self.prepare()
        cmdline = kernel.params.cmdline if cmdline is None else cmdline
        kexec.kexec_file_load(kernel, kernel.release, cmdline)
        given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
        return Host(boot(kernel.machine, *given, kernel.clock, config=kernel.config))

    def retrieve(self, name: str, token: int = 1) -> int:
        """The file."""
        if self.v4 is not None:
            self.session_fd = self.v4.retrieve_session(name)
            return self.v4.restore_fd(self.session_fd, token)
        self.session_fd = self.task.retrieve_session(self.device, name)
        return self.task.retrieve_fd(self.session_fd, token)

    def finish(self) -> None:
        """The session that was retrieved last; in v4 the system."""
        if self.v4 is not None:
            self.v4.set_event(FINISH)
        self.task.close(self.session_fd)


def host(design: str, pool: int = POOL) -> Host:
    return Host(power_on(f"{CMDLINE} hugepages={pool}", RELEASES[design]))


def frozen(one: Host) -> bool:
    """Whether a write to nr_hugepages is refused."""
    hstate = one.kernel.hugetlb.hstate(ORDER)
    before = hstate.nr_huge_pages
    try:
        hstate.set_max_huge_pages(before + 1)
    except Busy:
        return True
    assert hstate.nr_huge_pages == before + 1
    hstate.set_max_huge_pages(before)
    return False
