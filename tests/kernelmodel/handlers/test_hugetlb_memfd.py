"""Memfds on huge pages across kexec, counted in an FLB: pools come out right, or say why not."""

from __future__ import annotations

import pytest

from kernelmodel.abi.hugetlb import HugetlbHstateSer, HugetlbSer
from kernelmodel.errors import (
    Busy,
    Exists,
    InvalidArgument,
    IoError,
    NoDevice,
    NoEntry,
    NoSpace,
    NotPermitted,
)
from kernelmodel.hugetlb_designs.flb_counts import FlbCounts
from kernelmodel.kernel import Kernel
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, GuestContent
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot

HUGE = 2 * MIB
RELEASE = "7.3.4+hugetlb"
POOL = 16
WITH_POOL = f"{CMDLINE} hugepagesz=2M hugepages={POOL}"


def start(cmdline: str = WITH_POOL, node_bytes: tuple[int, ...] = (256 * MIB,)) -> Agent:
    return Agent(power_on(cmdline, RELEASE, node_bytes))


def huge_memfd(agent: Agent, pages: int, log2: int = 21) -> int:
    fd = agent.task.memfd_create(MFD_HUGETLB | log2 << MFD_HUGE_SHIFT)
    agent.task.ftruncate(fd, pages << log2)
    return fd


def inode_of(agent: Agent, fd: int) -> HugetlbMemfdInode:
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, HugetlbMemfdInode)
    return inode


def fill(agent: Agent, fd: int, pages: int, version: int = 1) -> None:
    inode = inode_of(agent, fd)
    assert inode.hugetlb.populate(0, pages) == pages
    inode.guest_write(0, pages, GuestContent("vm", version), 0)


def holds(agent: Agent, fd: int, pages: int, version: int = 1) -> bool:
    inode = inode_of(agent, fd)
    order = inode.hugetlb.hstate.order
    found = 0
    for index, pfn, nr in inode.hugetlb.folios.within(0, pages):
        for n in range(nr):
            for page in (0, 1, (1 << order) - 1):
                content = GuestContent("vm", version).page((index + n << order) + page)
                if agent.kernel.memory.page(pfn + (n << order) + page) != content:
                    return False
            found += 1
    return found == pages


def pool(kernel: Kernel, order: int = 9) -> tuple[int, int]:
    """Pages in the pool, and those of them that are free."""
    hstate = kernel.hugetlb.hstate(order)
    return hstate.nr_huge_pages, hstate.free_huge_pages


def counted(kernel: Kernel) -> dict[int, int]:
    """What the FLB says, by order."""
    flb = kernel.luo.flbs.registered[0]
    if flb.outgoing_count == 0:
        return {}
    ser = HugetlbSer.unpack(kernel.memory.read(flb.outgoing_data, HugetlbSer.SIZE))
    return {h.order: h.nr_pages for h in ser.hstates}


# Refusals.


def test_the_released_kernel_refuses_huge_pages() -> None:
    agent = Agent(power_on(WITH_POOL))
    with pytest.raises(NoEntry):
        agent.task.preserve_fd(agent.session("s"), huge_memfd(agent, 1), 1)


@pytest.mark.parametrize("refused", ["hole", "size", "slot"])
def test_a_refused_preserve_is_undone(refused: str) -> None:
    agent = start()
    kernel, session = agent.kernel, agent.session("s")
    fd = huge_memfd(agent, POOL + 1)
    wanted: type[Exception] = NoSpace
    if refused == "size":
        agent.task.ftruncate(fd, 0)
        agent.task.fallocate(fd, 0, 0, HUGE + 4096)
        wanted = InvalidArgument
    elif refused == "slot":
        agent.task.ftruncate(fd, HUGE)
        other = agent.session("other")
        agent.task.preserve_fd(other, huge_memfd(agent, 1), 1)
        counts = kernel.hugetlb_design
        assert isinstance(counts, FlbCounts)
        for order in (30, 31, 32):
            counts.add(order, 1)
        flb = kernel.luo.flbs.registered[0]
        ser = HugetlbSer.unpack(kernel.memory.read(flb.outgoing_data, HugetlbSer.SIZE))
        kernel.memory.write(flb.outgoing_data + 8, b"\x14")  # the first slot is another size's
        assert len(ser.hstates) == 4
    keys, counts_before = kernel.kho.preserved_keys, counted(kernel)
    with pytest.raises(wanted):
        agent.task.preserve_fd(session, fd, 1)
    assert (kernel.kho.preserved_keys, counted(kernel)) == (keys, counts_before)
    assert not inode_of(agent, fd).hugetlb.frozen
    validate_kernel(kernel, [agent.task])


def test_layout_is_frozen_while_preserved() -> None:
    agent = start()
    session, fd = agent.session("s"), huge_memfd(agent, 2)
    agent.task.preserve_fd(session, fd, 1)
    with pytest.raises(NotPermitted):
        agent.task.ftruncate(fd, HUGE)
    with pytest.raises(NotPermitted):
        agent.task.fallocate(fd, 3, 0, HUGE)
    with pytest.raises(Busy):
        agent.task.preserve_fd(session, agent.task.dup(fd), 2)
    agent.task.close(session)
    agent.task.ftruncate(fd, HUGE)


# Counting.


def test_counts_follow_files_in_and_out() -> None:
    agent = start()
    kernel = agent.kernel
    one, two = agent.session("one"), agent.session("two")
    agent.task.preserve_fd(one, huge_memfd(agent, 3), 1)
    agent.task.preserve_fd(two, huge_memfd(agent, 2), 1)
    agent.task.preserve_fd(two, huge_memfd(agent, 0), 2)
    assert counted(kernel) == {9: 5}
    agent.task.close(one)
    assert counted(kernel) == {9: 2}
    keys = kernel.kho.preserved_keys
    agent.task.close(two)
    assert counted(kernel) == {}
    assert kernel.kho.preserved_keys < keys
    validate_kernel(kernel, [agent.task])


def test_pages_beyond_the_size_are_not_counted() -> None:
    agent = start()
    fd = huge_memfd(agent, 1)
    agent.task.fallocate(fd, 1, 0, 3 * HUGE)
    session = agent.session("s")
    agent.task.preserve_fd(session, fd, 1)
    assert counted(agent.kernel) == {9: 1}
    agent.task.close(session)
    validate_kernel(agent.kernel, [agent.task])


def test_the_next_kernel_takes_fewer_pages_by_those_that_come_back() -> None:
    agent = start()
    fd = huge_memfd(agent, 5)
    fill(agent, fd, 5)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    agent.task.lseek(fd, 77)
    fresh = reboot(agent.kernel)
    assert pool(fresh) == (POOL - 5, POOL - 5)
    after = Agent(fresh)
    session = after.retrieve("s")
    fd = after.task.retrieve_fd(session, 1)
    assert pool(fresh) == (POOL, POOL - 5)
    assert holds(after, fd, 5)
    assert after.task.lseek_cur(fd) == 77
    assert inode_of(after, fd).hugetlb.size == 5 * HUGE
    validate_kernel(fresh, [after.task])
    after.task.finish_session(session)
    assert fresh.luo.flbs.registered[0].incoming_finished
    after.task.close(fd)
    assert pool(fresh) == (POOL, POOL)
    validate_kernel(fresh, [after.task])


def test_files_that_nobody_retrieves_go_to_the_pool_as_free_pages() -> None:
    agent = start()
    session = agent.session("s")
    agent.task.preserve_fd(session, huge_memfd(agent, 5), 1)
    agent.task.preserve_fd(session, huge_memfd(agent, 0), 2)
    fresh = reboot(agent.kernel)
    after = Agent(fresh)
    after.task.close(after.retrieve("s"))
    assert pool(fresh) == (POOL, POOL)
    assert sum(high - low for low, high, _ in fresh.kho.tags) == 3
    validate_kernel(fresh, [after.task])


def test_a_session_that_is_never_retrieved_leaves_the_pool_short_until_the_next_kexec() -> None:
    agent = start()
    agent.task.preserve_fd(agent.session("s"), huge_memfd(agent, 5), 1)
    fresh = reboot(agent.kernel)
    Agent(fresh)
    assert pool(fresh) == (POOL - 5, POOL - 5)
    assert pool(reboot(fresh)) == (POOL, POOL)


def test_ten_updates_leave_the_pool_as_it_was() -> None:
    agent = start()
    fd = huge_memfd(agent, 6)
    fill(agent, fd, 6)
    plain = agent.memfd(5 * 4096, b"plain")
    for update in range(10):
        session = agent.session("vm")
        agent.task.preserve_fd(session, fd, 1)
        agent.task.preserve_fd(session, plain, 2)
        agent = Agent(reboot(agent.kernel))
        assert agent.kernel.luo.liveupdate_num == update + 1
        session = agent.retrieve("vm")
        fd, plain = agent.task.retrieve_fd(session, 1), agent.task.retrieve_fd(session, 2)
        agent.task.close(session)
        assert pool(agent.kernel) == (POOL, POOL - 6)
        assert holds(agent, fd, 6)
        assert agent.task.pread(plain, 5, 0) == b"plain"
        assert not agent.kernel.tainted
        validate_kernel(agent.kernel, [agent.task])


def test_more_pages_than_asked_for_raise_the_pool_with_a_warning() -> None:
    agent = start()
    agent.task.preserve_fd(agent.session("s"), huge_memfd(agent, 6), 1)
    fresh = reboot(agent.kernel, cmdline=f"{CMDLINE} hugepagesz=2M hugepages=4")
    assert pool(fresh) == (0, 0)
    assert any("6 pages preserved, 4 asked for" in line for line in fresh.messages)
    after = Agent(fresh)
    after.task.retrieve_fd(after.retrieve("s"), 1)
    assert pool(fresh) == (6, 0)
    validate_kernel(fresh, [after.task])


def test_gigantic_pages_cross_alike() -> None:
    cmdline = f"{CMDLINE} hugepagesz=1G hugepages=3 hugepagesz=2M hugepages=4"
    agent = start(cmdline, (3 * GIB, 3 * GIB))
    assert pool(agent.kernel, 18) == (3, 3)
    fd = huge_memfd(agent, 2, 30)
    fill(agent, fd, 2)
    session = agent.session("s")
    agent.task.preserve_fd(session, fd, 1)
    agent.task.preserve_fd(session, huge_memfd(agent, 1), 2)
    assert counted(agent.kernel) == {18: 2, 9: 1}
    fresh = reboot(agent.kernel)
    assert (pool(fresh, 18), pool(fresh)) == ((1, 1), (3, 3))
    after = Agent(fresh)
    session = after.retrieve("s")
    fd = after.task.retrieve_fd(session, 1)
    assert holds(after, fd, 2)
    after.task.close(session)
    assert (pool(fresh, 18), pool(fresh)) == ((3, 1), (4, 4))
    validate_kernel(fresh, [after.task])


# What goes wrong in the next kernel.


def test_a_kernel_without_the_proposal_cannot_open_the_device() -> None:
    agent = start()
    agent.task.preserve_fd(agent.session("s"), huge_memfd(agent, 5), 1)
    fresh = reboot(agent.kernel, "7.3.4")
    assert pool(fresh) == (POOL, POOL)  # it knows nothing of the counts and takes all anew
    with pytest.raises(IoError):
        Agent(fresh)


def test_a_kernel_with_another_hugetlb_string_does_not_subtract() -> None:
    agent = start()
    agent.task.preserve_fd(agent.session("s"), huge_memfd(agent, 5), 1)
    flb = agent.kernel.luo.flbs.registered[0]
    flb.name = "hugetlb-v0"
    fresh = reboot(agent.kernel)
    assert pool(fresh) == (POOL, POOL)
    after = Agent(fresh)
    session = after.retrieve("s")
    for _ in range(2):  # no counts, no file; the pages are leaked on purpose
        with pytest.raises(NoEntry):
            after.task.retrieve_fd(session, 1)
    after.task.close(session)
    assert pool(fresh) == (POOL, POOL)
    assert any("shared state of huge pages" in line for line in fresh.messages)


def test_counts_of_a_size_that_the_next_kernel_does_not_have_are_passed_over() -> None:
    agent = start()
    agent.task.preserve_fd(agent.session("s"), huge_memfd(agent, 5), 1)
    flb = agent.kernel.luo.flbs.registered[0]
    agent.kernel.memory.write(flb.outgoing_data + HugetlbHstateSer.SIZE - 1, b"\x0d")
    assert pool(reboot(agent.kernel)) == (POOL, POOL)


@pytest.mark.parametrize("broken", ["folio", "twice", "table", "size", "order"])
def test_a_retrieve_that_fails_leaks_its_pages_on_purpose(broken: str) -> None:
    agent = start()
    kernel = agent.kernel
    session, fd = agent.session("s"), huge_memfd(agent, 4)
    fill(agent, fd, 4)
    agent.task.preserve_fd(session, fd, 1)
    agent.task.preserve_fd(session, huge_memfd(agent, 1), 2)
    entry = kernel.luo.sessions.outgoing[0].file_set.files[0].data
    chunk = kernel.memory.u64(entry + 24)
    wanted: type[Exception] = IoError
    if broken == "folio":
        word = kernel.memory.u64(kernel.memory.u64(chunk + 8) + 16 * 2)
        kernel.kho.unpreserve_folios(word & (1 << 52) - 1, 9)
    elif broken == "twice":  # the third says that it is the second
        kernel.memory.write_u64(kernel.memory.u64(chunk + 8) + 16 * 2 + 8, 1)
        wanted = Exists
    elif broken == "table":
        kernel.kho.unpreserve_folios(chunk >> PAGE_SHIFT, 0)
        wanted = InvalidArgument
    elif broken == "size":
        kernel.memory.write_u64(entry, 4 * HUGE + 1)
        wanted = InvalidArgument
    else:
        kernel.memory.write(entry + 40, b"\x0b")
        wanted = NoDevice
    fresh = reboot(kernel)
    after = Agent(fresh)
    incoming = after.retrieve("s")
    for _ in range(2):
        with pytest.raises(wanted):
            after.task.retrieve_fd(incoming, 1)
    good = after.task.retrieve_fd(incoming, 2)
    after.task.close(incoming)
    after.task.close(good)
    in_pool, free = pool(fresh)
    assert free == POOL - 5 + 1  # none of the four is anybody's
    assert in_pool - free in (0, 2)  # two had joined the pool before the third was missed
