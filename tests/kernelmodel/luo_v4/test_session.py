"""Sessions: names, lifetimes, and what one session's trouble does to the others."""

from __future__ import annotations

import pytest

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState, LuoSessionSer
from kernelmodel.errors import (
    AddressInUse,
    Busy,
    Exists,
    InvalidArgument,
    IoError,
    KernelPanic,
    NoEntry,
    TooBig,
)
from kernelmodel.syscalls import Task
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    FREEZE,
    FROZEN,
    NORMAL,
    PREPARE,
    PREPARED,
    UPDATED,
    Agent,
    freeze,
    jump,
    jump_on,
    kernel_in,
    luo_of,
    power_on,
    with_toy,
)


@pytest.mark.parametrize(("name", "fits"), [("", False), ("A" * 55, True), ("A" * 56, False)])
def test_names_are_1_to_55_bytes(name: str, fits: bool) -> None:
    agent = Agent(power_on())
    if fits:
        agent.create_session(name)
        return
    with pytest.raises(InvalidArgument):
        agent.create_session(name)
    with pytest.raises(InvalidArgument):
        agent.retrieve_session(name)


def test_a_name_is_free_again_when_its_session_is_closed() -> None:
    agent = Agent(power_on())
    session = agent.create_session("s")
    with pytest.raises(Exists):
        agent.create_session("s")
    agent.task.close(session)
    agent.create_session("s")


def test_an_incoming_session_has_its_name_before_anybody_retrieves_it() -> None:
    kernel, _, _ = kernel_in(PREPARED)
    agent = Agent(jump(kernel))
    with pytest.raises(Exists):
        agent.create_session("vm")


def test_a_session_is_taken_once_and_gone_when_closed() -> None:
    kernel, _, _ = kernel_in(PREPARED)
    agent = Agent(jump(kernel))
    session = agent.retrieve_session("vm")
    with pytest.raises(AddressInUse):
        agent.retrieve_session("vm")
    agent.task.close(session)
    with pytest.raises(NoEntry):
        agent.retrieve_session("vm")


def test_a_session_created_after_the_update_is_taken_from_the_start() -> None:
    _, agent, _ = kernel_in(UPDATED)
    agent.create_session("new")
    with pytest.raises(AddressInUse):
        agent.retrieve_session("new")


def test_sessions_outlive_the_devices_opener() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    other = Task(kernel, "other")
    agent.task.send_fd(agent.create_session("s"), other)
    agent.task.exit()
    assert luo_of(kernel).sessions.sessions[0].name == b"s"
    other.exit()
    assert luo_of(kernel).sessions.sessions == []


@pytest.mark.parametrize(
    ("state", "called"),
    [
        (NORMAL, ["unpreserve", "unpreserve"]),
        (PREPARED, ["cancel", "cancel", "unpreserve", "unpreserve"]),
        (FROZEN, ["cancel", "cancel", "unpreserve", "unpreserve"]),
        (UPDATED, ["finish", "finish"]),
    ],
)
def test_what_closing_does_by_the_sessions_state(state: LiveupdateState, called: list[str]) -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 1, 2)
    if state is not NORMAL:
        agent.set_event(PREPARE)
    if state is FROZEN:
        freeze(kernel)
    if state is UPDATED:
        kernel = jump(kernel)
        toy = with_toy(kernel)
        agent = Agent(kernel)
        session = agent.retrieve_session("s")
    toy.take_log()
    agent.task.close(session)
    assert [entry[0] for entry in toy.log] == called
    assert luo_of(kernel).sessions.sessions == []
    assert toy.nr_files == 0


def test_a_session_closed_after_prepare_is_not_handed_over() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    kept, closed = agent.create_session("kept"), agent.create_session("closed")
    agent.preserve_fd(kept, agent.memfd(5000, b"kept"), 1)
    agent.preserve_fd(closed, agent.memfd(5000, b"closed"), 1)
    agent.set_event(PREPARE)
    agent.task.close(closed)
    agent = Agent(jump(kernel))
    with pytest.raises(NoEntry):
        agent.retrieve_session("closed")
    fd = agent.restore_fd(agent.retrieve_session("kept"), 1)
    assert agent.task.pread(fd, 4, 0) == b"kept"


def test_an_agent_that_dies_after_prepare_takes_its_sessions_along() -> None:
    """The system stays PREPARED, and what it hands over is an update without sessions."""
    kernel, agent, _ = kernel_in(PREPARED)
    agent.task.exit()
    assert luo_of(kernel).state is PREPARED
    validate_kernel(kernel, [agent.task])
    kernel = jump(kernel)
    agent = Agent(kernel)
    assert agent.state() is UPDATED
    with pytest.raises(NoEntry):
        agent.retrieve_session("vm")
    agent.set_event(FINISH)
    assert sum(end - start for start, end, _ in kernel.kho.tags) == 2  # FDT and metadata


def test_the_third_session_that_fails_cancels_the_first_two_in_their_order() -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    sessions = [agent.create_session(name) for name in ("a", "b", "c")]
    for token, session in enumerate(sessions):
        agent.preserved(session, 10 * token, 10 * token + 1)
    toy.take_log()
    toy.fail["prepare", 21] = IoError()
    with pytest.raises(IoError):
        agent.set_event(PREPARE)
    assert toy.take_log() == [
        ("prepare", 0),
        ("prepare", 1),
        ("prepare", 10),
        ("prepare", 11),
        ("prepare", 20),
        ("prepare", 21),
        ("cancel", 20),
        ("cancel", 0),
        ("cancel", 1),
        ("cancel", 10),
        ("cancel", 11),
    ]
    assert [agent.session_state(session) for session in sessions] == [NORMAL] * 3


def test_a_session_whose_freeze_fails_cancels_all_sessions() -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    sessions = [agent.create_session(name) for name in ("a", "b", "c")]
    for token, session in enumerate(sessions):
        agent.preserved(session, token)
    agent.set_event(PREPARE)
    toy.take_log()
    toy.fail["freeze", 1] = IoError()
    with pytest.raises(IoError):
        freeze(kernel)
    assert toy.take_log() == [
        ("freeze", 0),
        ("freeze", 1),
        ("cancel", 1),
        ("cancel", 0),
        ("cancel", 2),
    ]
    assert [agent.session_state(session) for session in sessions] == [NORMAL] * 3


@pytest.mark.parametrize("steps", [[PREPARE], [PREPARE, FREEZE]])
def test_a_session_that_went_ahead_by_itself_stops_the_systems_prepare(
    steps: list[LiveupdateEvent],
) -> None:
    kernel, agent, session = kernel_in(NORMAL)
    other = agent.create_session("earlier")
    del other
    for step in steps:
        agent.session_set_event(session, step)
    with pytest.raises(Busy):
        agent.set_event(PREPARE)
    assert agent.state() is NORMAL
    agent.session_set_event(session, CANCEL)
    agent.set_event(PREPARE)
    assert kernel.tainted is False


def test_a_session_that_went_back_by_itself_fails_the_reboot() -> None:
    kernel, agent, session = kernel_in(PREPARED)
    agent.session_set_event(session, CANCEL)
    with pytest.raises(Busy):
        freeze(kernel)
    assert agent.state() is NORMAL


def test_a_session_cannot_prepare_again_once_kho_is_finalised() -> None:
    _, agent, session = kernel_in(PREPARED)
    agent.session_set_event(session, CANCEL)
    with pytest.raises(Busy):
        agent.session_set_event(session, PREPARE)
    assert agent.session_state(session) is NORMAL


def test_sessions_that_nobody_retrieved_go_with_finish() -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    for name in ("taken", "left"):
        agent.preserved(agent.create_session(name), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    taken = agent.retrieve_session("taken")
    agent.set_event(FINISH)
    assert toy.take_log() == [("finish", 1, False), ("finish", 1, False)]
    assert [session.name for session in luo_of(kernel).sessions.sessions] == [b"taken"]
    assert agent.session_state(taken) is NORMAL
    agent.create_session("left")


def test_a_kept_descriptor_serves_the_next_update() -> None:
    kernel, agent, session = kernel_in(UPDATED)
    fd = agent.restore_fd(session, 1)
    agent.set_event(FINISH)
    agent.preserve_fd(session, fd, 9)
    agent.set_event(PREPARE)
    agent = Agent(jump(kernel))
    fd = agent.restore_fd(agent.retrieve_session("vm"), 9)
    assert agent.task.pread(fd, 5, 0) == b"guest"


def test_incoming_sessions_are_read_at_the_first_open() -> None:
    """Until then handlers may still register."""
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    assert luo_of(kernel).sessions.sessions == []
    with_toy(kernel)
    agent = Agent(kernel)
    assert agent.restore_fd(agent.retrieve_session("s"), 1) >= 0


def test_two_incoming_sessions_of_one_name_panic() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.create_session("one")
    agent.create_session("two")
    agent.set_event(PREPARE)
    luo_of(kernel).sessions.sessions[1].name = b"one"
    with pytest.raises(KernelPanic, match="comes twice"):
        Agent(jump(kernel))


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_session_that_goes_back_after_freeze_leaves_a_stale_entry(how: str) -> None:
    """Nothing writes the array any more: it names memory that is free."""
    kernel, agent, session = kernel_in(FROZEN)
    if how == "cancel":
        agent.session_set_event(session, CANCEL)
    else:
        agent.task.close(session)
    kernel = jump_on(kernel)
    with pytest.raises(KernelPanic, match="no handler"):
        Agent(kernel)


def test_an_empty_session_crosses() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.create_session("empty")
    agent.set_event(PREPARE)
    agent = Agent(jump(kernel))
    session = agent.retrieve_session("empty")
    with pytest.raises(NoEntry):
        agent.restore_fd(session, 0)


def test_more_sessions_than_an_array_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.create_session("s")
    monkeypatch.setattr(LuoSessionSer, "SIZE", (4 << 20) + 1)
    with pytest.raises(TooBig):
        agent.set_event(PREPARE)
    assert agent.state() is NORMAL


def test_hundreds_of_sessions_cross_in_one_array() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    for index in range(300):
        agent.preserve_fd(agent.create_session(f"vm-{index}"), agent.memfd(100, b"%d" % index), 0)
    agent.set_event(PREPARE)
    agent.set_event(CANCEL)  # nodes of the radix tree stay
    before = (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys)
    agent.set_event(PREPARE)
    array = luo_of(kernel).sessions.array
    assert array.pgcnt == 8  # six pages of entries in a block of the next order
    agent.set_event(CANCEL)
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == before
    agent.set_event(PREPARE)
    freeze(kernel)
    agent = Agent(jump_on(kernel))
    for index in (0, 51, 299):
        fd = agent.restore_fd(agent.retrieve_session(f"vm-{index}"), 0)
        assert agent.task.pread(fd, 3, 0).rstrip(b"\0") == b"%d" % index
