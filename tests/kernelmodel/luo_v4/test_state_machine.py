"""Every state, every event, every caller: what happens, and what is refused with which errno."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.errors import ERRNO_CLASSES, KernelError, NoEntry, NotSupported
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.handler import FileHandler
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
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
    Toy,
    freeze,
    jump,
    kernel_in,
    luo_of,
    power_on,
    with_subsystems,
    with_toy,
)

STATES = (NORMAL, PREPARED, FROZEN, UPDATED)
UNKNOWN = 4

#: An event by ioctl on the device: the state that it ends in, or the errno.
BY_DEVICE: dict[tuple[LiveupdateState, int], LiveupdateState | str] = {
    **{(state, event): "EOPNOTSUPP" for state in STATES for event in (FREEZE, UNKNOWN, 1 << 31)},
    (NORMAL, PREPARE): PREPARED,
    (NORMAL, CANCEL): "EINVAL",
    (NORMAL, FINISH): "EINVAL",
    (PREPARED, PREPARE): "EINVAL",
    (PREPARED, CANCEL): NORMAL,
    (PREPARED, FINISH): "EINVAL",
    (FROZEN, PREPARE): "EINVAL",
    (FROZEN, CANCEL): NORMAL,
    (FROZEN, FINISH): "EINVAL",
    (UPDATED, PREPARE): "EINVAL",
    (UPDATED, CANCEL): "EINVAL",
    (UPDATED, FINISH): NORMAL,
}

#: reboot(2) with an image: PREPARED alone moves.
BY_REBOOT = {NORMAL: NORMAL, PREPARED: FROZEN, FROZEN: FROZEN, UPDATED: UPDATED}

#: An event by ioctl on a session's descriptor, by the state of that session.
BY_SESSION: dict[tuple[LiveupdateState, int], LiveupdateState | str] = {
    **{(state, UNKNOWN): "EOPNOTSUPP" for state in STATES},
    (NORMAL, PREPARE): PREPARED,
    (NORMAL, FREEZE): "EBUSY",
    (NORMAL, CANCEL): NORMAL,
    (NORMAL, FINISH): NORMAL,
    (PREPARED, PREPARE): "EBUSY",
    (PREPARED, FREEZE): FROZEN,
    (PREPARED, CANCEL): NORMAL,
    (PREPARED, FINISH): PREPARED,
    (FROZEN, PREPARE): "EBUSY",
    (FROZEN, FREEZE): "EBUSY",
    (FROZEN, CANCEL): NORMAL,
    (FROZEN, FINISH): FROZEN,
    (UPDATED, PREPARE): "EBUSY",
    (UPDATED, FREEZE): "EBUSY",
    (UPDATED, CANCEL): UPDATED,
    (UPDATED, FINISH): NORMAL,
}

#: What the descriptors can do besides, by the system's state; "" is success.
BY_STATE: dict[str, dict[LiveupdateState, str]] = {
    "create a session": {NORMAL: "", PREPARED: "EAGAIN", FROZEN: "EAGAIN", UPDATED: ""},
    "create it twice": {NORMAL: "EEXIST", PREPARED: "EAGAIN", FROZEN: "EAGAIN", UPDATED: "EEXIST"},
    "retrieve a session": {
        NORMAL: "EAGAIN",
        PREPARED: "EAGAIN",
        FROZEN: "EAGAIN",
        UPDATED: "EADDRINUSE",  # by the agent that asks
    },
    "retrieve an unknown session": {
        NORMAL: "EAGAIN",
        PREPARED: "EAGAIN",
        FROZEN: "EAGAIN",
        UPDATED: "ENOENT",
    },
    "preserve in its session": {NORMAL: "", PREPARED: "EBUSY", FROZEN: "EBUSY", UPDATED: "EBUSY"},
    "unpreserve in its session": {NORMAL: "", PREPARED: "EBUSY", FROZEN: "EBUSY", UPDATED: "EBUSY"},
    "restore from its session": {
        NORMAL: "EBUSY",
        PREPARED: "EBUSY",
        FROZEN: "EBUSY",
        UPDATED: "",
    },
    "register a subsystem": {NORMAL: "", PREPARED: "EBUSY", FROZEN: "EBUSY", UPDATED: ""},
    "unregister a subsystem": {NORMAL: "", PREPARED: "EBUSY", FROZEN: "EBUSY", UPDATED: ""},
    "register a handler": {NORMAL: "", PREPARED: "EBUSY", FROZEN: "EBUSY", UPDATED: ""},
    "unregister a handler": {NORMAL: "", PREPARED: "EBUSY", FROZEN: "EBUSY", UPDATED: ""},
    "get a subsystem's data": {
        NORMAL: "ENOENT",
        PREPARED: "ENOENT",
        FROZEN: "ENOENT",
        UPDATED: "",
    },
    "open the device again": dict.fromkeys(STATES, "EBUSY"),
    "ask for the state": dict.fromkeys(STATES, ""),
}


def action(what: str, kernel: Kernel, agent: Agent, session: int) -> Callable[[], object]:
    luo = luo_of(kernel)
    sessions = luo.sessions.subsystem
    return {
        "create a session": lambda: agent.create_session("another"),
        "create it twice": lambda: agent.create_session("vm"),
        "retrieve a session": lambda: agent.retrieve_session("vm"),
        "retrieve an unknown session": lambda: agent.retrieve_session("nobody"),
        "preserve in its session": lambda: agent.preserve_fd(session, agent.memfd(1), 2),
        "unpreserve in its session": lambda: agent.unpreserve_fd(session, 1),
        "restore from its session": lambda: agent.restore_fd(session, 1),
        "register a subsystem": lambda: luo.subsystems.register(Subsystem("new", SubsystemOps())),
        "unregister a subsystem": lambda: luo.subsystems.unregister(sessions),
        "register a handler": lambda: luo.register_file_handler(FileHandler("new-v1")),
        "unregister a handler": lambda: luo.unregister_file_handler(luo.handlers[-1]),
        "get a subsystem's data": lambda: luo.subsystems.data(sessions),
        "open the device again": lambda: Task(kernel, "other").open(DEV_LIVEUPDATE),
        "ask for the state": agent.state,
    }[what]


def check(call: Callable[[], object], expected: LiveupdateState | str) -> None:
    if isinstance(expected, str) and expected:
        with pytest.raises(ERRNO_CLASSES[expected]):
            call()
    else:
        call()


def test_the_tables_have_every_state_and_event() -> None:
    events = (*LiveupdateEvent, UNKNOWN)
    assert set(BY_DEVICE) >= set(itertools.product(STATES, events))
    assert set(BY_SESSION) == set(itertools.product(STATES, events))
    assert all(set(row) == set(STATES) for row in BY_STATE.values())


@pytest.mark.parametrize(("state", "event"), list(BY_DEVICE), ids=str)
def test_an_event_from_the_device(state: LiveupdateState, event: LiveupdateEvent) -> None:
    _, agent, _ = kernel_in(state)
    expected = BY_DEVICE[state, event]
    check(lambda: agent.set_event(event), expected)
    assert agent.state() is (state if isinstance(expected, str) else expected)


@pytest.mark.parametrize("state", STATES)
def test_a_reboot_freezes_what_is_prepared_and_nothing_else(state: LiveupdateState) -> None:
    kernel, agent, session = kernel_in(state)
    log, _ = ([], {}) if state in {PREPARED, FROZEN} else with_subsystems(kernel, "s")
    freeze(kernel)
    assert agent.state() is BY_REBOOT[state]
    assert agent.session_state(session) is BY_REBOOT[state]
    assert log == []


@pytest.mark.parametrize(("state", "event"), list(BY_SESSION), ids=str)
def test_an_event_for_one_session(state: LiveupdateState, event: LiveupdateEvent) -> None:
    kernel, agent, session = kernel_in(UPDATED if state is UPDATED else NORMAL)
    for step in {PREPARED: [PREPARE], FROZEN: [PREPARE, FREEZE]}.get(state, []):
        agent.session_set_event(session, step)
    other = agent.create_session("bystander")
    expected = BY_SESSION[state, event]
    check(lambda: agent.session_set_event(session, event), expected)
    assert agent.session_state(session) is (state if isinstance(expected, str) else expected)
    assert agent.session_state(other) is NORMAL
    assert agent.state() is (UPDATED if state is UPDATED else NORMAL)
    assert kernel.tainted is False


@pytest.mark.parametrize(("what", "state"), list(itertools.product(BY_STATE, STATES)), ids=str)
def test_what_each_state_allows(what: str, state: LiveupdateState) -> None:
    kernel, agent, session = kernel_in(state)
    if state in {NORMAL, UPDATED} and what == "unregister a handler":
        with_toy(kernel)
    check(action(what, kernel, agent, session), BY_STATE[what][state])
    assert agent.state() is state


@pytest.mark.parametrize("state", [PREPARED, FROZEN])
def test_a_session_that_left_the_common_state_can_still_not_change(state: LiveupdateState) -> None:
    """System and session must both let files come and go."""
    kernel, agent, session = kernel_in(state)
    agent.session_set_event(session, CANCEL)
    assert agent.session_state(session) is NORMAL
    for call in (
        lambda: agent.preserve_fd(session, agent.null(), 5),
        lambda: agent.unpreserve_fd(session, 1),
    ):
        check(call, "EBUSY")
    assert agent.state() is state
    assert kernel.tainted is False


def test_a_session_settles_its_files_while_the_system_is_normal() -> None:
    _, agent, session = kernel_in(NORMAL)
    agent.session_set_event(session, PREPARE)
    check(lambda: agent.preserve_fd(session, agent.memfd(1), 2), "EBUSY")
    check(lambda: agent.unpreserve_fd(session, 1), "EBUSY")
    agent.session_set_event(session, CANCEL)
    agent.unpreserve_fd(session, 1)


def test_a_session_that_finished_takes_files_while_the_system_is_updated() -> None:
    _, agent, session = kernel_in(UPDATED)
    agent.session_set_event(session, FINISH)
    check(lambda: agent.restore_fd(session, 1), "EBUSY")
    agent.preserve_fd(session, agent.memfd(1), 1)
    agent.set_event(FINISH)
    agent.set_event(PREPARE)


@pytest.mark.parametrize("cmdline", ["liveupdate=off", "", "liveupdate=on kho=off"])
def test_without_live_update_there_is_nothing(cmdline: str) -> None:
    kernel = power_on(cmdline)
    luo = luo_of(kernel)
    assert luo.state == 0
    with pytest.raises(NoEntry):
        Agent(kernel)
    refused: list[Callable[[], object]] = [
        lambda: luo.subsystems.register(Subsystem("new", SubsystemOps())),
        lambda: luo.subsystems.unregister(luo.sessions.subsystem),
        lambda: luo.register_file_handler(Toy(kernel)),
        lambda: luo.unregister_file_handler(Toy(kernel)),
    ]
    for call in refused:
        with pytest.raises(NotSupported):
            call()
    freeze(kernel)


def test_one_opener_and_the_next_one_when_it_is_gone() -> None:
    kernel, agent, _ = kernel_in(NORMAL)
    check(lambda: Agent(kernel), "EBUSY")
    agent.task.exit()
    assert Agent(kernel).state() is NORMAL


@pytest.mark.parametrize("state", [NORMAL, UPDATED])
def test_a_reboot_that_was_not_prepared_loses_everything(state: LiveupdateState) -> None:
    """FREEZE is a silent no-op then, and KHO hands nothing over."""
    kernel, agent, session = kernel_in(state)
    del agent, session
    after = jump(kernel)
    agent = Agent(after)
    assert agent.state() is NORMAL
    check(lambda: agent.retrieve_session("vm"), "EAGAIN")
    assert after.kho.incoming is None
    assert after.kho.scratch != []


def test_the_merged_luo_is_off_on_such_a_release() -> None:
    kernel = power_on()
    assert not kernel.luo.enabled
    with pytest.raises(KernelError):
        kernel.luo.open()
