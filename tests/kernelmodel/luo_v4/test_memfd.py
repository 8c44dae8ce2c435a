"""Plain memfds under LUO v4: what they hold, when they may change, and what it costs."""

from __future__ import annotations

from collections import Counter

import pytest

from kernelmodel.errors import Busy, IoError, NotPermitted
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING
from kernelmodel.mm.shmem import F_SEAL_GROW, ShmemInode
from kernelmodel.validate import validate_kernel
from tests.kernelmodel import kernels
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    NORMAL,
    PREPARE,
    UPDATED,
    Agent,
    freeze,
    jump,
    jump_on,
    power_on,
)


def content(index: int) -> bytes:
    return bytes((index * 7 + n) % 251 for n in range(3 * PAGE_SIZE + 100))


def test_memory_comes_back_update_after_update() -> None:
    """Ten in a row: retrieved, checked, written to, finished, preserved again."""
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("vm")
    held = [content(index) for index in range(3)]
    fds = [agent.memfd(len(data), data) for data in held]
    used = []
    for number in range(10):
        for token, fd in enumerate(fds):
            agent.task.lseek(fd, 11 * number + token)
            agent.preserve_fd(session, fd, token)
        agent.set_event(PREPARE)
        agent.task.pwrite(fds[0], b"paused late", PAGE_SIZE - 3)  # content may change, layout not
        held[0] = held[0][: PAGE_SIZE - 3] + b"paused late" + held[0][PAGE_SIZE + 8 :]
        validate_kernel(kernel, [agent.task])
        kernel = jump(kernel)
        agent = Agent(kernel)
        assert agent.state() is UPDATED
        session = agent.retrieve_session("vm")
        fds = [agent.restore_fd(session, token) for token in range(3)]
        for token, fd in enumerate(fds):
            assert agent.task.pread(fd, 1 << 20, 0) == held[token]
            assert agent.task.lseek_cur(fd) == 11 * number + token
        agent.set_event(FINISH)
        assert agent.state() is NORMAL
        validate_kernel(kernel, [agent.task])
        held[1] = held[1][:5] + bytes([number]) + held[1][6:]
        agent.task.pwrite(fds[1], bytes([number]), 5)
        used.append(kernel.page_alloc.nr_free_pages())
    assert max(used[1:]) - min(used[1:]) < 64  # the place of the kernel moves, nothing adds up


def test_a_file_may_change_in_every_way_until_prepare() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("vm")
    fd = agent.memfd(PAGE_SIZE, b"one")
    agent.preserve_fd(session, fd, 1)
    agent.task.ftruncate(fd, 5 * PAGE_SIZE)
    agent.task.pwrite(fd, b"five", 4 * PAGE_SIZE)
    agent.set_event(PREPARE)
    with pytest.raises(NotPermitted):
        agent.task.ftruncate(fd, PAGE_SIZE)
    agent.set_event(CANCEL)
    agent.task.ftruncate(fd, 6 * PAGE_SIZE)
    agent.set_event(PREPARE)
    agent.task.lseek(fd, 99)
    agent = Agent(jump(kernel))
    fd = agent.restore_fd(agent.retrieve_session("vm"), 1)
    data = agent.task.pread(fd, 1 << 20, 0)
    assert (len(data), data[:3], data[4 * PAGE_SIZE :][:4]) == (6 * PAGE_SIZE, b"one", b"five")
    assert agent.task.lseek_cur(fd) == 99


def test_seals_and_empty_files_survive() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("vm")
    sealed = agent.task.memfd_create(MFD_ALLOW_SEALING)
    agent.task.add_seals(sealed, F_SEAL_GROW)
    agent.preserve_fd(session, sealed, 1)
    agent.set_event(PREPARE)
    agent = Agent(jump(kernel))
    fd = agent.restore_fd(agent.retrieve_session("vm"), 1)
    assert agent.task.get_seals(fd) == F_SEAL_GROW
    assert agent.task.pread(fd, 10, 0) == b""


def test_what_nobody_retrieved_is_free_memory_after_finish() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("vm")
    agent.preserve_fd(session, agent.memfd(64 * PAGE_SIZE, b"x"), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    agent = Agent(kernel)
    waiting = sum(end - start for start, end, _ in kernel.kho.tags)
    free = kernel.page_alloc.nr_free_pages()
    agent.set_event(FINISH)
    left = sum(end - start for start, end, _ in kernel.kho.tags)
    assert waiting - left >= 64
    assert kernel.page_alloc.nr_free_pages() == free + waiting - left
    validate_kernel(kernel, [agent.task])


def test_one_memfd_twice_is_noticed_at_prepare() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    fd = agent.memfd(PAGE_SIZE, b"x")
    agent.preserve_fd(agent.create_session("one"), fd, 1)
    two = agent.create_session("two")
    agent.preserve_fd(two, agent.task.dup(fd), 1)
    with pytest.raises(Busy):
        agent.set_event(PREPARE)
    agent.task.ftruncate(fd, 2 * PAGE_SIZE)  # nothing stayed frozen
    agent.unpreserve_fd(two, 1)
    agent.set_event(PREPARE)


def test_a_retrieve_that_failed_has_used_up_the_file() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("vm")
    fd = agent.memfd(2 * PAGE_SIZE, b"x")
    agent.preserve_fd(session, fd, 1)
    agent.set_event(PREPARE)
    freeze(kernel)
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, ShmemInode)
    kernel.kho.unpreserve_folios(inode.extents(0, 1)[0][1], 0)
    kernel = jump_on(kernel)
    agent = Agent(kernel)
    session = agent.retrieve_session("vm")
    for _ in range(2):
        with pytest.raises(IoError):
            agent.restore_fd(session, 1)
    agent.set_event(FINISH)
    assert agent.state() is NORMAL


# Costs.


def charged(kernel: Kernel) -> Counter[str]:
    counts: Counter[str] = Counter()
    charge = kernel.clock.charge

    def counting(op: str, units: int = 1) -> None:
        counts[op] += units
        charge(op, units)

    kernel.charge = counting
    return counts


def test_the_work_on_a_memfd_is_charged_as_in_the_merged_luo() -> None:
    """What differs is when: PRESERVE_FD there, PREPARE here."""
    pages = 300
    merged = kernels.power_on()
    other = kernels.Agent(merged)
    session, fd = other.session("s"), other.memfd(pages * PAGE_SIZE, b"x")
    expected = charged(merged)
    other.task.preserve_fd(session, fd, 1)
    kernel = power_on()
    agent = Agent(kernel)
    session, fd = agent.create_session("s"), agent.memfd(pages * PAGE_SIZE, b"x")
    early = charged(kernel)
    agent.preserve_fd(session, fd, 1)
    assert early == Counter(luo_preserve_file=1)
    late = charged(kernel)
    agent.set_event(PREPARE)
    assert late["memfd_pin_folios"] == pages
    heavy = {op: n for op, n in expected.items() if op.startswith(("memfd", "vmalloc", "kho_pre"))}
    assert heavy
    assert {op: late[op] for op in heavy} == heavy


def test_prepare_is_work_outside_the_blackout_and_freeze_little() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("s")
    for token in range(20):
        agent.preserve_fd(session, agent.memfd(200 * PAGE_SIZE, b"x"), token)
    clock = kernel.clock
    start = clock.now_ns
    agent.set_event(PREPARE)
    prepared = clock.now_ns
    freeze_start = clock.now_ns
    kernel.live_update.reboot()
    assert clock.now_ns - freeze_start < (prepared - start) / 4
