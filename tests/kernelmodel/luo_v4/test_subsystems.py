"""Subsystems: registration, the order of calls, and every way back, step by step."""

from __future__ import annotations

import pytest

from kernelmodel.errors import (
    Busy,
    Exists,
    IoError,
    KernelPanic,
    ModelBug,
    NoEntry,
    NoMemory,
    NoSpace,
)
from kernelmodel.kernel import Kernel
from kernelmodel.kho.fdt import Fdt
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps
from kernelmodel.memory import PAGE_SIZE
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    NORMAL,
    PREPARE,
    UPDATED,
    Agent,
    Log,
    Recorder,
    Toy,
    failing,
    freeze,
    jump,
    jump_on,
    luo_of,
    power_on,
    with_subsystems,
    with_toy,
)


def three() -> tuple[Kernel, Agent, Log, dict[str, Recorder]]:
    kernel = power_on()
    return kernel, Agent(kernel), *with_subsystems(kernel, "a", "b", "c")


def taken(log: Log) -> Log:
    found = log[:]
    log.clear()
    return found


def free_pages(kernel: Kernel) -> int:
    return kernel.page_alloc.nr_free_pages()


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


def lose_property(kernel: Kernel, pa: int, name: str) -> None:
    tree = Fdt.parse(kernel.memory.read(pa, PAGE_SIZE))
    node = tree.root.subnode("subsystems")
    assert node is not None
    del node.props[name]
    kernel.memory.write(pa, tree.pack())


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
