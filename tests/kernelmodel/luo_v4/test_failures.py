"""Transitions that fail: killed, KHO that refuses, callbacks that fail; and what state is left."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.errors import Again, IoError, NoMemory
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


@dataclass
class NthAllocation:
    """Fails one of the allocations of preserved memory."""

    nth: int
    seen: int = 0

    def __call__(self, function: str, **context: object) -> None:
        if function in {"kho_alloc_preserve", "kho_preserve_vmalloc"}:
            self.seen += 1
            if self.seen == self.nth:
                raise NoMemory


def test_whichever_allocation_of_prepare_fails_all_is_as_before() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    for name in ("one", "two"):
        session = agent.create_session(name)
        for token in range(2):
            agent.preserve_fd(session, agent.memfd(5000, b"x"), token)
    agent.set_event(PREPARE)  # so that holes are filled, which stays
    agent.set_event(CANCEL)
    before = (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys)
    for nth in range(1, 100):
        kernel.fail_function = failure = NthAllocation(nth)
        try:
            agent.set_event(PREPARE)
        except NoMemory:
            assert agent.state() is NORMAL
            assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == before
            validate_kernel(kernel, [agent.task])
            continue
        break
    # LUO's page, the sessions' array, two arrays of files, four entries with table and chunk
    assert failure.seen == nth - 1 >= 8
    assert agent.state() is PREPARED


@pytest.mark.parametrize("site", ["luo_session_alloc", "luo_preserve_file"])
def test_no_memory_for_what_luo_itself_keeps(site: str) -> None:
    kernel, agent, session = kernel_in(NORMAL)
    failing(kernel, ("should_failslab", site), error=NoMemory())
    fd = agent.memfd(1)
    if site == "luo_session_alloc":
        with pytest.raises(NoMemory):
            agent.create_session("another")
    else:
        with pytest.raises(NoMemory):
            agent.preserve_fd(session, fd, 2)
    assert agent.task.files.fget(fd).f_count == 1
    validate_kernel(kernel, [agent.task])


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
