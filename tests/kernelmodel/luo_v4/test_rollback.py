"""Every way back of PREPARE and FREEZE, step by step, quirks included."""

from __future__ import annotations

import pytest

from kernelmodel.errors import IoError, NoEntry, NoMemory, NoSpace
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SIZE
from tests.kernelmodel.luo_v4.hosts import (
    NORMAL,
    PREPARE,
    Agent,
    Log,
    failing,
    freeze,
    lose_property,
    luo_of,
    power_on,
    three,
    with_subsystems,
    with_toy,
)


def taken(log: Log) -> Log:
    found = log[:]
    log.clear()
    return found


def free_pages(kernel: Kernel) -> int:
    return kernel.page_alloc.nr_free_pages()


# PREPARE fails.


def test_prepare_of_the_third_cancels_the_first_two_in_order_of_registration() -> None:
    kernel, agent, log, ops = three()
    free = free_pages(kernel)
    ops["c"].fail["prepare"] = IoError()
    with pytest.raises(IoError):
        agent.set_event(PREPARE)
    assert taken(log) == [
        ("prepare", "a", 0),
        ("prepare", "b", 0),
        ("prepare", "c", 0),
        ("cancel", "a", 197),
        ("cancel", "b", 198),
    ]
    assert [h.data for h in luo_of(kernel).subsystems.registered] == [0, 0, 0, 0]
    assert free_pages(kernel) == free
    ops["c"].fail.clear()
    agent.set_event(PREPARE)


def test_prepare_of_the_first_cancels_nobody_but_sessions() -> None:
    kernel, agent, log, ops = three()
    toy = with_toy(kernel, log=log)
    agent.preserved(agent.create_session("s"), 1)
    log.clear()
    ops["a"].fail["prepare"] = IoError()
    with pytest.raises(IoError):
        agent.set_event(PREPARE)
    assert taken(log) == [("prepare", 1), ("prepare", "a", 0), ("cancel", 1)]
    assert toy.nr_files == 1


def test_sessions_that_fail_keep_the_others_from_being_asked() -> None:
    kernel, agent, log, _ = three()
    with_toy(kernel).fail["prepare"] = NoMemory()
    agent.preserved(agent.create_session("s"), 1)
    with pytest.raises(NoMemory):
        agent.set_event(PREPARE)
    assert log == []


def test_no_room_for_the_properties_cancels_all() -> None:
    kernel = power_on()
    names = [f"{index:03}-" + "x" * 40 for index in range(70)]
    log, _ = with_subsystems(kernel, *names)
    agent = Agent(kernel)
    free = free_pages(kernel)
    with pytest.raises(NoSpace):
        agent.set_event(PREPARE)
    assert [entry[:2] for entry in log] == [("prepare", name) for name in names] + [
        ("cancel", name) for name in names
    ]
    assert agent.state() is NORMAL
    assert free_pages(kernel) == free


def test_a_property_that_cannot_be_committed_cancels_all() -> None:
    kernel, agent, log, _ = three()
    failing(kernel, "luo_subsystems_commit_data_to_fdt", error=NoEntry())
    with pytest.raises(NoEntry):
        agent.set_event(PREPARE)
    assert [entry[:2] for entry in log[3:]] == [("cancel", "a"), ("cancel", "b"), ("cancel", "c")]
    assert agent.state() is NORMAL


def test_luos_page_is_gone_when_prepare_fails_half_way() -> None:
    kernel, agent, _, ops = three()
    free = free_pages(kernel)
    keys = kernel.kho.preserved_keys
    agent.preserve_fd(agent.create_session("s"), agent.memfd(PAGE_SIZE, b"x"), 1)
    free -= 1  # the memfd's page
    ops["b"].fail["prepare"] = IoError()
    for _ in range(3):
        with pytest.raises(IoError):
            agent.set_event(PREPARE)
    assert (free_pages(kernel), kernel.kho.preserved_keys) == (free, keys)


# FREEZE fails.


def test_freeze_of_the_second_leaves_it_and_the_third_without_a_cancel() -> None:
    """The quirk: b and c stay prepared though the system is NORMAL, and prepare once more."""
    kernel, agent, log, ops = three()
    agent.set_event(PREPARE)
    log.clear()
    ops["b"].fail["freeze"] = IoError()
    with pytest.raises(IoError):
        freeze(kernel)
    assert taken(log) == [("freeze", "a", 197), ("freeze", "b", 198), ("cancel", "a", 1197)]
    assert agent.state() is NORMAL
    known = {h.name: (h.prepared, h.data) for h in luo_of(kernel).subsystems.registered}
    assert known["a"] == (False, 0)
    assert known["b"] == (True, 198)
    assert known["c"] == (True, 199)
    ops["b"].fail.clear()
    agent.set_event(PREPARE)
    assert taken(log) == [("prepare", "a", 0), ("prepare", "b", 0), ("prepare", "c", 0)]


def test_the_cancel_that_was_missed_does_not_come_with_a_later_event() -> None:
    kernel, agent, log, ops = three()
    agent.set_event(PREPARE)
    ops["a"].fail["freeze"] = IoError()
    with pytest.raises(IoError):
        freeze(kernel)
    assert ("cancel", "b", 198) not in log
    log.clear()
    ops["a"].fail["prepare"] = IoError()
    with pytest.raises(IoError):
        agent.set_event(PREPARE)
    assert taken(log) == [("prepare", "a", 0)]


def test_freeze_of_the_last_cancels_all_before_it_sessions_first() -> None:
    kernel, agent, log, ops = three()
    with_toy(kernel, log=log)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    log.clear()
    ops["c"].fail["freeze"] = IoError()
    with pytest.raises(IoError):
        freeze(kernel)
    assert taken(log) == [
        ("freeze", 1),
        ("freeze", "a", 197),
        ("freeze", "b", 198),
        ("freeze", "c", 199),
        ("cancel", 1),
        ("cancel", "a", 1197),
        ("cancel", "b", 1198),
    ]


def test_a_property_that_is_missing_at_freeze_cancels_all() -> None:
    kernel, agent, log, _ = three()
    agent.set_event(PREPARE)
    log.clear()
    lose_property(kernel, luo_of(kernel).fdt.pa, "b")
    with pytest.raises(NoEntry):
        freeze(kernel)
    assert [entry[:2] for entry in log] == [(w, n) for w in ("freeze", "cancel") for n in "abc"]
    assert agent.state() is NORMAL
