"""Subsystems: registration, the order of calls, and what the next kernel asks of them."""

from __future__ import annotations

import pytest

from kernelmodel.errors import (
    Busy,
    Exists,
    KernelPanic,
    ModelBug,
    NoEntry,
)
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    NORMAL,
    PREPARE,
    UPDATED,
    Agent,
    Log,
    Toy,
    freeze,
    jump,
    jump_on,
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


# Registration.


def test_a_name_is_registered_once() -> None:
    kernel = power_on()
    subsystems = luo_of(kernel).subsystems
    first = Subsystem("name", SubsystemOps())
    subsystems.register(first)
    with pytest.raises(Exists):
        subsystems.register(Subsystem("name", SubsystemOps()))
    subsystems.unregister(first)
    with pytest.raises(NoEntry):
        subsystems.unregister(first)
    subsystems.register(Subsystem("name", SubsystemOps()))


def test_sessions_are_the_first_subsystem() -> None:
    assert [h.name for h in luo_of(power_on()).subsystems.registered] == ["luo-session"]


def test_operations_may_all_be_absent() -> None:
    kernel = power_on()
    luo_of(kernel).subsystems.register(Subsystem("quiet", SubsystemOps()))
    agent = Agent(kernel)
    agent.set_event(PREPARE)
    agent.set_event(CANCEL)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    quiet = Subsystem("quiet", SubsystemOps())
    luo_of(kernel).subsystems.register(quiet)
    assert luo_of(kernel).subsystems.data(quiet) == 0
    Agent(kernel).set_event(FINISH)


# The order of everything.


def test_files_come_before_subsystems_and_all_in_order_of_arrival() -> None:
    kernel = power_on()
    log, _ = with_subsystems(kernel, "a", "b")
    with_toy(kernel, log=log)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("one"), 5, 3)
    agent.preserved(agent.create_session("two"), 4)
    assert taken(log) == [("preserve", 5), ("preserve", 3), ("preserve", 4)]
    agent.set_event(PREPARE)
    assert taken(log) == [
        ("prepare", 5),
        ("prepare", 3),
        ("prepare", 4),
        ("prepare", "a", 0),
        ("prepare", "b", 0),
    ]
    freeze(kernel)
    assert taken(log) == [
        ("freeze", 5),
        ("freeze", 3),
        ("freeze", 4),
        ("freeze", "a", 197),
        ("freeze", "b", 198),
    ]
    agent.set_event(CANCEL)
    assert taken(log) == [
        ("cancel", 5),
        ("cancel", 3),
        ("cancel", 4),
        ("cancel", "a", 1197),
        ("cancel", "b", 1198),
    ]
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    log, _ = with_subsystems(kernel, "b", "a")
    toy = with_toy(kernel, log=log)
    assert taken(log) == [("boot", "b", 1198), ("boot", "a", 1197)]
    agent = Agent(kernel)
    session = agent.retrieve_session("one")
    agent.restore_fd(session, 3)
    agent.set_event(FINISH)
    assert taken(log) == [
        ("retrieve", 3),
        ("finish", 5, False),
        ("finish", 3, True),
        ("finish", 4, False),
        ("finish", "b", 1198),
        ("finish", "a", 1197),
    ]
    assert toy.nr_files == 0


# The next kernel.


def test_finish_panics_for_a_subsystem_that_the_previous_kernel_did_not_have() -> None:
    kernel = power_on()
    with_subsystems(kernel, "old")
    Agent(kernel).set_event(PREPARE)
    kernel = jump(kernel)
    log, _ = with_subsystems(kernel, "old", "new")
    assert log == [("boot", "old", 100 + ord("o") + 1000)]
    agent = Agent(kernel)
    with pytest.raises(NoEntry):
        luo_of(kernel).subsystems.data(luo_of(kernel).subsystems.registered[2])
    with pytest.raises(KernelPanic, match="no data for the subsystem 'new'"):
        agent.set_event(FINISH)


def test_a_subsystem_that_is_no_longer_there_is_not_missed() -> None:
    kernel = power_on()
    with_subsystems(kernel, "old")
    Agent(kernel).set_event(PREPARE)
    agent = Agent(jump(kernel))
    agent.set_event(FINISH)
    assert agent.state() is NORMAL


def test_a_property_lost_on_the_way_panics_at_finish() -> None:
    kernel, agent, _, _ = three()
    agent.set_event(PREPARE)
    freeze(kernel)
    lose_property(kernel, luo_of(kernel).fdt.pa, "b")
    kernel = jump_on(kernel)
    with_subsystems(kernel, "a", "b", "c")
    with pytest.raises(KernelPanic):
        Agent(kernel).set_event(FINISH)


def test_data_can_be_had_until_finish() -> None:
    kernel, agent, _, _ = three()
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    with_subsystems(kernel, "a", "b", "c")
    subsystems = luo_of(kernel).subsystems
    h = subsystems.registered[1]
    agent = Agent(kernel)
    assert (agent.state(), subsystems.data(h)) == (UPDATED, 1197)
    agent.set_event(FINISH)
    with pytest.raises(NoEntry):
        subsystems.data(h)


def test_ten_updates_leave_nothing_behind() -> None:
    kernel = power_on()
    with_subsystems(kernel, "a")
    agent = Agent(kernel)
    left = []
    for _ in range(10):
        agent.set_event(PREPARE)
        kernel = jump(kernel)
        log, _ops = with_subsystems(kernel, "a")
        agent = Agent(kernel)
        agent.set_event(FINISH)
        assert [entry[0] for entry in log] == ["boot", "finish"]
        left.append(sum(end - start for start, end, _ in kernel.kho.tags))
    assert left == [2] * 10  # the old kernel's FDT and metadata, until the next jump


class Meddler(SubsystemOps):
    """Calls back into LUO."""

    def __init__(self, kernel: Kernel, what: str) -> None:
        self.kernel, self.what = kernel, what

    def prepare(self, h: Subsystem) -> int:
        luo = luo_of(self.kernel)
        if self.what == "event":
            luo.cancel()
        luo.register_file_handler(Toy(self.kernel))
        return 0


def test_a_callback_that_raises_an_event_deadlocks() -> None:
    kernel = power_on()
    luo_of(kernel).subsystems.register(Subsystem("meddler", Meddler(kernel, "event")))
    with pytest.raises(ModelBug, match="taken twice"):
        Agent(kernel).set_event(PREPARE)


def test_while_preparing_the_state_is_still_normal() -> None:
    """What a callback may do is judged by the state, which only changes at the end."""
    kernel = power_on()
    luo_of(kernel).subsystems.register(Subsystem("meddler", Meddler(kernel, "handler")))
    agent = Agent(kernel)
    agent.set_event(PREPARE)
    with pytest.raises(Busy):
        luo_of(kernel).register_file_handler(Toy(kernel, "another-v1"))
