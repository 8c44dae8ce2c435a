"""Transitions that fail: killed, KHO that refuses, callbacks that fail; and what state is left."""

from __future__ import annotations

import pytest

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.errors import Again, IoError
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
    failing,
    freeze,
    jump,
    kernel_in,
    luo_of,
    power_on,
    with_subsystems,
)


@pytest.mark.parametrize(
    ("state", "event"), [(NORMAL, PREPARE), (PREPARED, CANCEL), (UPDATED, FINISH)], ids=str
)
def test_killed_while_waiting_for_the_state(state: LiveupdateState, event: LiveupdateEvent) -> None:
    kernel, agent, _ = kernel_in(state)
    failures = failing(kernel, "down_write_killable", error=IoError())
    with pytest.raises(Again):
        agent.set_event(event)
    assert agent.state() is state
    failures.errors.clear()
    agent.set_event(event)


def test_a_reboot_killed_while_waiting_stays_prepared() -> None:
    kernel, agent, _ = kernel_in(PREPARED)
    failures = failing(kernel, "down_write_killable", error=IoError())
    with pytest.raises(Again):
        freeze(kernel)
    assert agent.state() is PREPARED
    failures.errors.clear()
    assert Agent(jump(kernel)).state() is UPDATED


def test_finalising_fails_and_the_state_is_prepared_all_the_same() -> None:
    kernel, agent, session = kernel_in(NORMAL)
    failures = failing(kernel, "kho_finalize", error=IoError())
    with pytest.raises(IoError):
        agent.set_event(PREPARE)
    assert agent.state() is agent.session_state(session) is PREPARED
    failures.errors.clear()
    agent.set_event(CANCEL)
    assert agent.state() is agent.session_state(session) is NORMAL


def test_prepared_but_not_finalised_hands_nothing_over() -> None:
    kernel, agent, _ = kernel_in(NORMAL)
    failing(kernel, "kho_finalize", error=IoError())
    with pytest.raises(IoError):
        agent.set_event(PREPARE)
    kernel = jump(kernel)
    assert Agent(kernel).state() is NORMAL
    assert any("disabling KHO revival" in line for line in kernel.messages)


@pytest.mark.parametrize("state", [PREPARED, FROZEN])
def test_a_cancel_that_cannot_abort_kho_does_nothing(state: LiveupdateState) -> None:
    kernel, agent, session = kernel_in(state)
    failing(kernel, "kho_abort", error=IoError())
    with pytest.raises(IoError):
        agent.set_event(CANCEL)
    assert agent.state() is agent.session_state(session) is state


def test_a_freeze_that_fails_fails_the_reboot_and_the_system_can_try_again() -> None:
    kernel, agent, session = kernel_in(PREPARED)
    failures = failing(kernel, "luo_file_freeze", error=IoError())
    with pytest.raises(IoError):
        freeze(kernel)
    assert agent.state() is agent.session_state(session) is NORMAL
    agent.preserve_fd(session, agent.memfd(5), 2)
    failures.errors.clear()
    agent.set_event(PREPARE)
    assert Agent(jump(kernel)).state() is UPDATED


@pytest.mark.parametrize("event", [PREPARE, FREEZE])
def test_a_callback_that_fails_leaves_the_system_normal(event: LiveupdateEvent) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    _, ops = with_subsystems(kernel, "a", "b")
    if event is FREEZE:
        agent.set_event(PREPARE)
        ops["b"].fail["freeze"] = IoError()
        with pytest.raises(IoError):
            freeze(kernel)
    else:
        ops["b"].fail["prepare"] = IoError()
        with pytest.raises(IoError):
            agent.set_event(PREPARE)
    assert agent.state() is NORMAL
    assert luo_of(kernel).fdt.pa == 0
