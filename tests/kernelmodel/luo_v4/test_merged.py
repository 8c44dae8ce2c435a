"""Handlers of the merged LUO under LUO v4: work at PREPARE, or at PRESERVE_FD."""

from __future__ import annotations

from collections import Counter

import pytest

from kernelmodel.errors import Busy, IoError, NotPermitted
from kernelmodel.handlers.memfd import MemfdHandler
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.merged import MergedHandler
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import ToyHandler
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    PREPARE,
    Agent,
    freeze,
    jump,
    luo_of,
    power_on,
)


def early(kernel: Kernel) -> MergedHandler:
    """memfds that are preserved at PRESERVE_FD, in place of those at PREPARE."""
    luo = luo_of(kernel)
    luo.unregister_file_handler(luo.handlers[0])
    handler = MergedHandler(MemfdHandler(kernel, "memfd-v1"), at_preserve_fd=True)
    luo.register_file_handler(handler)
    return handler


def with_merged_toy(kernel: Kernel, *, at_preserve_fd: bool) -> ToyHandler:
    toy = ToyHandler(kernel)
    luo_of(kernel).register_file_handler(MergedHandler(toy, at_preserve_fd=at_preserve_fd))
    return toy


CALLS = {
    False: {
        "preserve": [],
        "prepare": ["preserve"],
        "cancel": ["unpreserve"],
        "freeze": ["freeze"],
        "cancel frozen": ["unfreeze", "unpreserve"],
        "close": [],
    },
    True: {
        "preserve": ["preserve"],
        "prepare": [],
        "cancel": [],
        "freeze": ["freeze"],
        "cancel frozen": ["unfreeze"],
        "close": ["unpreserve"],
    },
}


@pytest.mark.parametrize("at_preserve_fd", [False, True])
def test_who_is_asked_when(at_preserve_fd: bool) -> None:
    kernel = power_on()
    toy = with_merged_toy(kernel, at_preserve_fd=at_preserve_fd)
    agent = Agent(kernel)
    calls = {}

    def done(step: str) -> None:
        calls[step] = [what for what, _ in toy.take_log()]

    session = agent.create_session("s")
    agent.preserved(session, 1)
    done("preserve")
    agent.set_event(PREPARE)
    done("prepare")
    agent.set_event(CANCEL)
    done("cancel")
    agent.set_event(PREPARE)
    toy.take_log()
    freeze(kernel)
    done("freeze")
    agent.set_event(CANCEL)
    done("cancel frozen")
    agent.task.close(session)
    done("close")
    assert calls == CALLS[at_preserve_fd]


@pytest.mark.parametrize("at_preserve_fd", [False, True])
def test_the_next_kernel_asks_alike(at_preserve_fd: bool) -> None:
    kernel = power_on()
    with_merged_toy(kernel, at_preserve_fd=at_preserve_fd)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1, 2, 3)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = with_merged_toy(kernel, at_preserve_fd=at_preserve_fd)
    agent = Agent(kernel)
    session = agent.retrieve_session("s")
    agent.restore_fd(session, 1)
    toy.fail["retrieve"] = IoError()
    for _ in range(2):
        with pytest.raises(IoError):
            agent.restore_fd(session, 2)
    agent.set_event(FINISH)
    assert toy.take_log() == [
        ("retrieve", 1),
        ("retrieve", 2),
        ("finish", 1),
        ("finish", 2),
        ("finish", 3),
    ]


def test_early_work_freezes_the_file_at_once_and_cancel_keeps_it() -> None:
    kernel = power_on()
    early(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    fd = agent.memfd(3 * PAGE_SIZE, b"early")
    before = (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys)
    agent.preserve_fd(session, fd, 1)
    with pytest.raises(NotPermitted):
        agent.task.ftruncate(fd, 1)
    for _ in range(3):
        agent.set_event(PREPARE)
        agent.set_event(CANCEL)
        validate_kernel(kernel, [agent.task])
    with pytest.raises(NotPermitted):
        agent.task.ftruncate(fd, 1)
    agent.unpreserve_fd(session, 1)
    agent.task.ftruncate(fd, 4 * PAGE_SIZE)
    used = 2  # the pages that filled the file's holes stay its own
    free, keys = before
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == (free - used, keys)


def test_early_work_crosses() -> None:
    kernel = power_on()
    for _ in range(3):
        early(kernel)
        agent = Agent(kernel)
        agent.preserve_fd(agent.create_session("s"), agent.memfd(9000, b"early", 4090), 7)
        agent.set_event(PREPARE)
        validate_kernel(kernel, [agent.task])
        kernel = jump(kernel)
        agent = Agent(kernel)
        session = agent.retrieve_session("s")
        fd = agent.restore_fd(session, 7)
        assert agent.task.pread(fd, 5, 4090) == b"early"
        agent.set_event(FINISH)
        validate_kernel(kernel, [agent.task])
        agent.task.exit()


@pytest.mark.parametrize("at_preserve_fd", [False, True])
def test_one_object_twice_is_refused_where_the_work_is_done(at_preserve_fd: bool) -> None:
    kernel = power_on()
    if at_preserve_fd:
        early(kernel)
    agent = Agent(kernel)
    session, other = agent.create_session("s"), agent.create_session("other")
    fd = agent.memfd(PAGE_SIZE, b"x")
    agent.preserve_fd(session, fd, 1)
    if at_preserve_fd:
        with pytest.raises(Busy):
            agent.preserve_fd(other, fd, 1)
    else:
        agent.preserve_fd(other, fd, 1)
        with pytest.raises(Busy):
            agent.set_event(PREPARE)
        agent.unpreserve_fd(other, 1)
    agent.set_event(PREPARE)


def test_early_work_leaves_prepare_nothing_to_do() -> None:
    kernel = power_on()
    early(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    fd = agent.memfd(500 * PAGE_SIZE, b"x")
    charges: Counter[str] = Counter()
    charge = kernel.clock.charge

    def counting(op: str, units: int = 1) -> None:
        charges[op] += units
        charge(op, units)

    kernel.charge = counting
    agent.preserve_fd(session, fd, 1)
    assert charges["memfd_pin_folios"] == 500
    charges.clear()
    agent.set_event(PREPARE)
    assert not any(op.startswith("memfd") for op in charges)
