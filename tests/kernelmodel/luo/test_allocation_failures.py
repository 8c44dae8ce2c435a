"""Every allocation of every live-update call fails once: the call is undone, or leaves exactly
what the kernel leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernelmodel.boot import boot
from kernelmodel.errors import KernelError, KernelPanic, NoEntry, NoMemory, NotPermitted
from kernelmodel.kernel import Kernel
from kernelmodel.kexec import jump, kernel_kexec, kexec_file_load
from kernelmodel.memory import GIB, MIB, PAGE_SIZE, GuestContent
from kernelmodel.mm.guest_memfd import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
)
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.validate import validate_kernel, validate_nothing_leaked
from tests.kernelmodel.failing import Failing, fail_each
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on, reboot

HUGE = MFD_HUGETLB | 21 << MFD_HUGE_SHIFT
GUEST_HUGE = GUEST_MEMFD_FLAG_HUGETLB | 21 << 26


def huge_agent() -> Agent:
    return Agent(power_on(f"{CMDLINE} hugepagesz=2M hugepages=4", "7.3.4+hugetlb"))


def sparse(agent: Agent, pages: int = 6) -> int:
    """A file with holes."""
    fd = agent.memfd(pages * PAGE_SIZE - 100)
    agent.task.pwrite(fd, b"text", 2 * PAGE_SIZE)
    return fd


# What can be tried again.


@pytest.mark.parametrize("sessions", [0, 1, 50, 51])
def test_a_session_that_cannot_be_made(sessions: int) -> None:
    agent = Agent(power_on())
    for n in range(sessions):
        agent.session(f"s{n}")
    failures = list(fail_each(agent.kernel, [agent.task], lambda: agent.session("new")))
    sites = [site for site, _ in failures]
    block = ["kho_alloc_preserve", "alloc_pages"] if sessions in {0, 51} else []
    assert sites == ["luo_session_alloc", *block, "luo_session_getfile"]
    assert {type(error) for _, error in failures} == {NoMemory}


@pytest.mark.parametrize("before", [0, 1, 62, 63])
def test_a_file_that_cannot_be_preserved(before: int) -> None:
    agent = Agent(power_on())
    session = agent.session("s")
    for token in range(before):
        agent.task.preserve_fd(session, agent.memfd(0), token)
    fd = sparse(agent)
    failures = list(
        fail_each(agent.kernel, [agent.task], lambda: agent.task.preserve_fd(session, fd, 100))
    )
    sites = [site for site, _ in failures]
    assert (sites[0] == "kho_alloc_preserve") == (before in {0, 63})  # a block comes first
    assert set(sites) == {
        "xa_insert",
        "luo_preserve_file",
        "memfd_luo_preserve",
        "kho_alloc_preserve",
        "memfd_luo_preserve_folios",
        "kho_preserve_vmalloc",
        "alloc_pages",
        "alloc_upto",
    }
    assert {type(error) for _, error in failures} == {NoMemory}
    after = Agent(reboot(agent.kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 100)
    assert after.task.pread(fd, 4, 2 * PAGE_SIZE) == b"text"


def test_a_file_whose_table_needs_a_second_chunk() -> None:
    agent = Agent(power_on(node_bytes=(GIB,)))
    session, pages = agent.session("s"), 512 * 256
    fd = agent.memfd(pages * PAGE_SIZE)
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, ShmemInode)
    inode.guest_write(0, pages, GuestContent("vm", 1), 0)
    failures = list(
        fail_each(agent.kernel, [agent.task], lambda: agent.task.preserve_fd(session, fd, 1))
    )
    sites = [site for site, _ in failures]
    # behind the table there are two chunks
    assert sites[sites.index("kho_preserve_vmalloc") :].count("alloc_pages") >= 2


def test_a_file_of_huge_pages_that_cannot_be_preserved() -> None:
    agent = huge_agent()
    session, fd = agent.session("s"), agent.task.memfd_create(HUGE)
    agent.task.ftruncate(fd, 4 * MIB)
    failures = fail_each(agent.kernel, [agent.task], lambda: agent.task.preserve_fd(session, fd, 1))
    assert len(list(failures)) > 5
    (flb,) = agent.kernel.luo.flbs.registered
    assert flb.outgoing_count == 1


@pytest.mark.parametrize(("page", "flags"), [(PAGE_SIZE, 0), (2 * MIB, GUEST_HUGE)])
def test_guest_memory_that_cannot_be_preserved_can_still_be_changed(page: int, flags: int) -> None:
    agent = Agent(power_on(f"{CMDLINE} hugepages=4", "7.3.4+guest-memfd"))
    task, session = agent.task, agent.session("s")
    shared = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
    fd = task.kvm_create_guest_memfd(task.kvm_create_vm(), 2 * page, shared | flags)
    task.fallocate(fd, 1, 0, 2 * page)
    failed = []
    for site, error in fail_each(agent.kernel, [task], lambda: task.preserve_fd(session, fd, 1)):
        assert isinstance(error, NoMemory)
        task.fallocate(fd, 1, 0, page)
        failed.append(site)
    assert len(failed) > 5
    with pytest.raises(NotPermitted):
        task.fallocate(fd, 1, 0, page)


def test_memory_that_runs_out_makes_a_write_short_at_a_page() -> None:
    agent = Agent(power_on())
    task, fd = agent.task, agent.memfd(0)
    failing = Failing(agent.kernel)

    class Low(type(agent.kernel.page_alloc)):  # type: ignore[misc]
        """Has no two pages at once, and no more than three."""

        __slots__ = ()

        def alloc_upto(
            self, order: int, n: int, nid: int = 0, **how: bool
        ) -> tuple[list[tuple[int, int]], int]:
            if n > 1 or failing.sites.count("alloc_upto") >= 3:
                return [], n
            found: tuple[list[tuple[int, int]], int] = super().alloc_upto(order, n, nid, **how)
            return found

    agent.kernel.page_alloc.__class__ = Low
    assert task.pwrite(fd, b"x" * (8 * PAGE_SIZE), 100) == 3 * PAGE_SIZE - 100
    with pytest.raises(NoMemory):
        task.pwrite(fd, b"x", 3 * PAGE_SIZE)
    assert task.pread(fd, MIB, 0) == bytes(100) + b"x" * (3 * PAGE_SIZE - 100)
    validate_kernel(agent.kernel, [task])


# In the next kernel.


def handed_over(release: str = "7.3.4") -> Agent:
    """After a live update with a session of one sparse file of 6 pages."""
    agent = Agent(power_on(release=release))
    agent.task.preserve_fd(agent.session("s"), sparse(agent), 1)
    return Agent(reboot(agent.kernel))


def test_a_session_that_cannot_be_retrieved_now_can_be_later() -> None:
    agent = handed_over()
    failures = list(fail_each(agent.kernel, [agent.task], lambda: agent.retrieve("s")))
    assert [site for site, _ in failures] == ["luo_session_getfile"]


@pytest.mark.parametrize(
    ("at", "site", "lost"),
    [
        # nothing is known of the table: its page, its chunk and six folios stay lost
        (0, "memfd_alloc_file", 8),
        # the table is read: the folio that has no room and all after it are freed
        (1, "shmem_inode_acct_blocks", 0),
    ],
)
def test_a_retrieve_that_runs_out_of_memory_fails_for_ever(at: int, site: str, lost: int) -> None:
    agent = handed_over()
    session = agent.retrieve("s")
    failing = Failing(agent.kernel)
    failing.arm(at)
    for _ in range(2):
        with pytest.raises(NoMemory):
            agent.task.retrieve_fd(session, 1)
        assert failing.sites[-1] == site
    agent.task.close(session)
    validate_nothing_leaked(agent.kernel, [agent.task], lost_pages=lost)


@pytest.mark.parametrize(("at", "site"), [(0, "luo_session_alloc"), (1, "luo_file_deserialize")])
def test_sessions_that_cannot_be_read_are_lost_with_all_their_files(at: int, site: str) -> None:
    agent = Agent(power_on())
    agent.task.preserve_fd(agent.session("s"), sparse(agent), 1)
    kernel = reboot(agent.kernel)
    failing = Failing(kernel)
    failing.arm(at)
    for _ in range(2):
        with pytest.raises(KernelError, match="EIO"):
            Agent(kernel)
    assert failing.sites == [*failing.sites[:at], site]
    # entry, table, chunk and six folios; and the block of files if nobody got to know of it
    validate_nothing_leaked(kernel, [], lost_pages=9 + (site == "luo_session_alloc"))


# Boot.


def booted_with_a_failure(kernel: Kernel, at: int) -> Kernel:
    """The next kernel, whose allocation number `at` for KHO and LUO fails."""
    sites: list[str] = []

    def fail(function: str, **_context: object) -> None:
        if function == "kho_alloc_preserve":
            sites.append(function)
            if len(sites) == at + 1:
                raise NoMemory("injected")

    kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    given = jump(kernel, kernel_kexec(kernel))
    return boot(kernel.machine, *given, kernel.clock, config=CONFIG, fail_function=fail)


@pytest.mark.parametrize(
    ("at", "kho", "subtrees"),
    [
        (0, False, []),  # the FDT
        (1, False, []),  # the metadata
        (2, True, ["kexec-metadata"]),  # LUO's header
        (3, True, ["kexec-metadata"]),  # the table of FLBs
        (4, True, ["LUO", "kexec-metadata"]),
    ],
)
def test_a_kernel_without_memory_for_live_update_boots_without_it(
    at: int, kho: bool, subtrees: list[str]
) -> None:
    agent = Agent(power_on())
    agent.task.preserve_fd(agent.session("s"), sparse(agent), 1)
    kernel = booted_with_a_failure(agent.kernel, at)
    assert kernel.kho.enabled is kho
    assert kernel.luo.enabled is (at == 4)
    validate_kernel(kernel, [])
    if at < 4:
        with pytest.raises(NoEntry):
            Agent(kernel)
    if kho:
        after = reboot(kernel)
        names = [name for name in ("LUO", "kexec-metadata") if _has_subtree(after, name)]
        assert names == subtrees


def _has_subtree(kernel: Kernel, name: str) -> bool:
    try:
        kernel.kho.retrieve_subtree(name)
    except NoEntry:
        return False
    return True


def attempt(call: Callable[[], object]) -> str:
    """How a call ends."""
    try:
        call()
    except (KernelError, KernelPanic) as error:
        return type(error).__name__
    return "ok"


def test_without_its_own_header_a_kernel_still_answers_for_what_came_over() -> None:
    """The incoming side was read before: only the device is missing, and memory stays kept."""
    agent = Agent(power_on())
    agent.task.preserve_fd(agent.session("s"), sparse(agent), 1)
    kernel = booted_with_a_failure(agent.kernel, 2)
    assert kernel.luo.liveupdate_num == 1
    assert kernel.luo.sessions.incoming_blocks is not None
    assert attempt(lambda: Agent(kernel)) == "NoEntry"
    # FDT, metadata, table of FLBs; session block, file block; entry, table, chunk; six folios
    assert sum(high - low for low, high, _ in kernel.kho.tags) == 3 + 2 + 3 + 6
