"""Files in a session: what is refused, whose callbacks are called, what happens to the rest."""

from __future__ import annotations

import pytest

from kernelmodel.abi.luo_v4 import LuoFileSer
from kernelmodel.errors import (
    AddressInUse,
    Again,
    BadFileDescriptor,
    Busy,
    Exists,
    IoError,
    KernelPanic,
    NoEntry,
    NoMemory,
    TooBig,
)
from kernelmodel.kernel import Kernel
from kernelmodel.mm.memfd import MFD_HUGETLB
from tests.kernelmodel.luo_v4.hosts import (
    FINISH,
    NORMAL,
    PREPARE,
    UPDATED,
    Agent,
    Toy,
    failing,
    freeze,
    jump,
    luo_of,
    power_on,
    with_toy,
)

#: Entries of a block of the largest order.
MOST_FILES = (4 << 20) // LuoFileSer.SIZE


def test_preserve_looks_at_the_descriptor_the_handler_and_the_token() -> None:
    kernel = power_on("liveupdate=on kho_scratch=16M,32M,8M hugepages=1")
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserve_fd(session, agent.memfd(1), 1)
    with pytest.raises(BadFileDescriptor):
        agent.preserve_fd(session, 999, 1)
    for fd in (agent.null(), session, agent.device, agent.task.memfd_create(MFD_HUGETLB)):
        with pytest.raises(NoEntry):
            agent.preserve_fd(session, fd, 1)
    with pytest.raises(NoEntry):
        agent.preserve_fd(session, agent.task.open_tmpfs(linked=True), 2)
    with pytest.raises(Exists):
        agent.preserve_fd(session, agent.memfd(1), 1)
    agent.preserve_fd(agent.create_session("other"), agent.memfd(1), 1)


def test_a_token_is_free_again_after_unpreserve() -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 7)
    agent.unpreserve_fd(session, 7)
    with pytest.raises(NoEntry):
        agent.unpreserve_fd(session, 7)
    agent.preserved(session, 7)
    assert toy.take_log() == [("preserve", 7), ("unpreserve", 7), ("preserve", 7)]
    assert toy.nr_files == 1


def test_a_preserve_that_fails_leaves_no_reference() -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    fd = agent.null()
    toy.fail["preserve"] = NoMemory()
    with pytest.raises(NoMemory):
        agent.preserve_fd(session, fd, 1)
    assert agent.task.files.fget(fd).f_count == 1
    assert toy.nr_files == 0
    toy.fail.clear()
    agent.preserve_fd(session, fd, 1)
    assert agent.task.files.fget(fd).f_count == 2


def test_the_first_handler_that_takes_a_file_has_it() -> None:
    kernel = power_on()
    first, second = with_toy(kernel), with_toy(kernel, "toy-v2")
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    assert (first.nr_files, second.nr_files) == (1, 0)


def raise_event(kernel: Kernel, agent: Agent, event: str) -> None:
    if event == "freeze":
        freeze(kernel)
    else:
        agent.set_event(PREPARE)


@pytest.mark.parametrize("event", ["prepare", "freeze"])
def test_one_file_that_fails_cancels_the_files_of_its_session(event: str) -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 1, 2, 3)
    free, keys = kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys
    toy.take_log()
    if event == "freeze":
        agent.set_event(PREPARE)
        toy.take_log()
    toy.fail[event, 2] = IoError()
    with pytest.raises(IoError):
        raise_event(kernel, agent, event)
    # at freeze all of them are prepared; at prepare only those before the one that failed
    undone = [1, 2, 3] if event == "freeze" else [1]
    expected = [(event, 1), (event, 2), *(("cancel", token) for token in undone)]
    assert toy.take_log() == expected
    (known,) = luo_of(kernel).sessions.sessions
    assert {(luo_file.data, luo_file.state) for luo_file in known.files.files.values()} == {
        (0, NORMAL)
    }
    assert agent.session_state(session) is NORMAL
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == (free, keys)
    toy.fail.clear()
    agent.set_event(PREPARE)


@pytest.mark.parametrize("token", [1, 2])
def test_a_failure_in_luo_itself_undoes_the_same(token: int) -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1, 2)
    toy.take_log()
    failing(kernel, ("luo_file_prepare", token), error=NoMemory())
    with pytest.raises(NoMemory):
        agent.set_event(PREPARE)
    assert toy.take_log() == [] if token == 1 else [("prepare", 1), ("cancel", 1)]


def test_more_files_than_an_array_can_hold() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    fd = agent.null()
    for token in range(MOST_FILES + 1):
        agent.preserve_fd(session, fd, token)
    with pytest.raises(TooBig):
        agent.set_event(PREPARE)
    assert agent.state() is NORMAL
    agent.unpreserve_fd(session, 0)
    agent.set_event(PREPARE)


def test_a_file_is_restored_once() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1, 2)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve_session("s")
    with pytest.raises(NoEntry):
        agent.restore_fd(session, 3)
    fd = agent.restore_fd(session, 2)
    with pytest.raises(AddressInUse):
        agent.restore_fd(session, 2)
    agent.task.close(fd)
    with pytest.raises(AddressInUse):
        agent.restore_fd(session, 2)
    agent.set_event(FINISH)
    assert toy.take_log() == [("retrieve", 2), ("finish", 1, False), ("finish", 2, True)]


def test_a_restore_that_failed_may_be_tried_again() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve_session("s")
    toy.fail["retrieve"] = IoError()
    with pytest.raises(IoError):
        agent.restore_fd(session, 1)
    toy.fail.clear()
    agent.restore_fd(session, 1)


def test_a_restored_file_outlives_finish_as_long_as_somebody_has_it() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    with_toy(kernel)
    agent = Agent(kernel)
    fd = agent.restore_fd(agent.retrieve_session("s"), 1)
    assert agent.task.files.fget(fd).f_count == 2
    agent.set_event(FINISH)
    assert agent.task.files.fget(fd).f_count == 1


# Handlers.


def test_registering_a_handler() -> None:
    kernel = power_on()
    with_toy(kernel)
    with pytest.raises(Exists):
        with_toy(kernel)
    going = Toy(kernel, "going-v1")
    going.module_gone = True
    with pytest.raises(Again):
        luo_of(kernel).register_file_handler(going)


def test_a_handler_with_files_stays() -> None:
    kernel = power_on()
    toy = with_toy(kernel)
    luo = luo_of(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 1)
    with pytest.raises(Busy):
        luo.unregister_file_handler(toy)
    agent.unpreserve_fd(session, 1)
    luo.unregister_file_handler(toy)
    with pytest.raises(NoEntry):
        luo.unregister_file_handler(toy)
    with pytest.raises(NoEntry):
        agent.preserved(session, 1)
    luo.register_file_handler(toy)


def test_a_handler_with_incoming_files_stays_until_finish() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    assert agent.state() is UPDATED
    with pytest.raises(Busy):
        luo_of(kernel).unregister_file_handler(toy)
    agent.set_event(FINISH)
    luo_of(kernel).unregister_file_handler(toy)


# Panics.


def test_a_handler_that_the_next_kernel_lacks_panics() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1)
    agent.set_event(PREPARE)
    with pytest.raises(KernelPanic, match="no handler for an incoming file"):
        Agent(jump(kernel))


def test_a_token_that_comes_twice_panics() -> None:
    kernel = power_on()
    with_toy(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 1, 2)
    agent.set_event(PREPARE)
    luo_of(kernel).sessions.sessions[0].files.files[2].token = 1
    kernel = jump(kernel)
    with_toy(kernel)
    with pytest.raises(KernelPanic, match="comes twice"):
        Agent(kernel)


def test_a_token_is_any_u64() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("s")
    tokens = [0, 1 << 63, (1 << 64) - 1]
    for token in tokens:
        agent.preserve_fd(session, agent.memfd(8, token.to_bytes(8, "little")), token)
    agent.set_event(PREPARE)
    agent = Agent(jump(kernel))
    session = agent.retrieve_session("s")
    for token in tokens:
        fd = agent.restore_fd(session, token)
        assert agent.task.pread(fd, 8, 0) == token.to_bytes(8, "little")
