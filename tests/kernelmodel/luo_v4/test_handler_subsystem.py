"""Subsystems bound to file handlers: counted by LUO, shared by handlers, absent without files."""

from __future__ import annotations

import pytest

from kernelmodel.errors import Exists, IoError, NoEntry
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.early import subsystem_early
from kernelmodel.luo_v4.subsystems import Subsystem
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    PREPARE,
    Agent,
    Log,
    Recorder,
    Toy,
    freeze,
    jump,
    luo_of,
    power_on,
)


def bound(kernel: Kernel, handlers: int = 1) -> tuple[Log, Subsystem, list[Toy]]:
    """Handlers that name one subsystem, `hugetlb`; the first one takes all files."""
    log: Log = []
    h = Subsystem("hugetlb", Recorder(log))
    toys = [Toy(kernel, f"toy-v{index}", log) for index in range(handlers)]
    for toy in toys:
        toy.subsystem = h
        luo_of(kernel).register_file_handler(toy)
    return log, h, toys


def test_without_files_it_is_not_asked_and_leaves_nothing() -> None:
    kernel = power_on()
    log, h, _ = bound(kernel)
    agent = Agent(kernel)
    agent.set_event(PREPARE)
    agent.set_event(CANCEL)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    assert (log, h.active) == ([], False)
    assert subsystem_early(kernel, "hugetlb") is None
    log, h, _ = bound(kernel)
    Agent(kernel).set_event(FINISH)  # no data, and no panic
    assert log == []


def test_with_files_it_comes_after_all_of_them() -> None:
    kernel = power_on()
    log, _, _ = bound(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("a"), 1)
    agent.preserved(agent.create_session("b"), 2)
    log.clear()
    agent.set_event(PREPARE)
    assert [entry[:2] for entry in log] == [("prepare", 1), ("prepare", 2), ("prepare", "hugetlb")]
    freeze(kernel)
    kernel = jump(kernel)
    value = 100 + ord("h") + 1000
    assert subsystem_early(kernel, "hugetlb") == value
    log, h, _ = bound(kernel)
    assert log == [("boot", "hugetlb", value)]
    assert luo_of(kernel).subsystems.data(h) == value
    agent = Agent(kernel)
    agent.set_event(FINISH)
    assert log[1:] == [
        ("finish", 1, False),
        ("finish", 2, False),
        ("finish", "hugetlb", value),
    ]


def test_handlers_share_it_and_their_files_count_together() -> None:
    kernel = power_on()
    _, h, toys = bound(kernel, handlers=2)
    agent = Agent(kernel)
    one, two = agent.create_session("one"), agent.create_session("two")
    agent.preserved(one, 1)
    luo_of(kernel).handlers.reverse()
    agent.preserved(two, 2)
    assert ([toy.nr_files for toy in toys], h.users) == ([1, 1], 2)
    agent.unpreserve_fd(one, 1)
    assert h.active
    agent.task.close(two)
    assert not h.active


def test_it_registers_with_its_first_handler_and_goes_with_the_last() -> None:
    kernel = power_on()
    luo = luo_of(kernel)
    _, h, toys = bound(kernel, handlers=2)
    assert luo.subsystems.registered[-1] is h
    with pytest.raises(Exists):
        luo.subsystems.register(h)
    luo.unregister_file_handler(toys[0])
    assert h in luo.subsystems.registered
    luo.unregister_file_handler(toys[1])
    assert h not in luo.subsystems.registered


def test_a_name_that_is_taken_keeps_the_handler_out() -> None:
    kernel = power_on()
    bound(kernel)
    other = Toy(kernel, "other-v1")
    other.subsystem = Subsystem("hugetlb", Recorder([]))
    with pytest.raises(Exists):
        luo_of(kernel).register_file_handler(other)
    assert other not in luo_of(kernel).handlers


def test_the_last_file_that_goes_after_prepare_cancels_it() -> None:
    kernel = power_on()
    log, h, _ = bound(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 1)
    agent.set_event(PREPARE)
    log.clear()
    agent.task.close(session)
    assert log == [("cancel", 1), ("unpreserve", 1), ("cancel", "hugetlb", 100 + ord("h"))]
    log.clear()
    freeze(kernel)
    assert log == []
    kernel = jump(kernel)
    assert subsystem_early(kernel, "hugetlb") is None
    assert not h.prepared


@pytest.mark.parametrize("event", ["prepare", "freeze"])
def test_its_failure_rolls_back_like_any_subsystems(event: str) -> None:
    kernel = power_on()
    log, h, _ = bound(kernel)
    ops = h.ops
    assert isinstance(ops, Recorder)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    ops.fail[event] = IoError()
    if event == "freeze":
        agent.set_event(PREPARE)
    log.clear()
    with pytest.raises(IoError):
        freeze(kernel) if event == "freeze" else agent.set_event(PREPARE)
    assert log[-1] == ("cancel", 1)
    assert h.users == 1


def test_a_preserve_that_fails_is_not_counted() -> None:
    kernel = power_on()
    _, h, toys = bound(kernel)
    toys[0].fail["preserve"] = IoError()
    agent = Agent(kernel)
    with pytest.raises(IoError):
        agent.preserved(agent.create_session("s"), 1)
    assert h.users == 0


def test_files_preserved_before_finish_belong_to_the_next_update() -> None:
    kernel = power_on()
    log, h, _ = bound(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    log, h, _ = bound(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("next"), 2)
    agent.set_event(FINISH)
    assert ("cancel", "hugetlb", 0) not in log
    log.clear()
    agent.set_event(PREPARE)
    assert log == [("prepare", 2), ("prepare", "hugetlb", 0)]
    with pytest.raises(NoEntry):
        luo_of(kernel).subsystems.data(h)
