"""Global state of file handlers: created with the first file, destroyed with the last."""

from __future__ import annotations

import struct

import pytest

from kernelmodel.errors import IoError, KernelPanic, ModelBug, NoEntry, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.early import global_state_early, subsystem_early
from kernelmodel.luo_v4.global_state import FH_STATES_SUBSYSTEM, GlobalStateOps
from kernelmodel.luo_v4.handler import FileHandler, LuoFile
from kernelmodel.memory import PAGE_SIZE
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    PREPARE,
    Agent,
    Log,
    Toy,
    freeze,
    jump,
    jump_on,
    luo_of,
    power_on,
    with_subsystems,
)


class Counter(GlobalStateOps):
    """A page with a u64 in it that files add their tokens to."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.log: Log = []
        self.fail: dict[str, IoError | NoMemory] = {}

    def _called(self, what: str, *more: object) -> None:
        self.log.append((what, *more))
        if what in self.fail:
            raise self.fail[what]

    def global_state_create(self, h: FileHandler) -> tuple[int, object]:
        self._called("create")
        pa = self.kernel.kho.alloc_preserve(PAGE_SIZE)
        return pa, [pa]

    def global_state_restore(self, h: FileHandler, data: int) -> object:
        self._called("restore", self.kernel.memory.u64(data))
        return [data]

    def global_state_destroy(
        self, h: FileHandler, data: int, obj: object, *, incoming: bool
    ) -> None:
        self._called("destroy", obj is not None, incoming)
        if incoming:
            self.kernel.kho.restore_free(data)
        else:
            self.kernel.kho.unpreserve_free(data)


class Counting(Toy):
    """A toy whose files count themselves in, in the way of the proposal."""

    def __init__(self, kernel: Kernel, compatible: str = "toy-v1") -> None:
        super().__init__(kernel, compatible)
        self.counter = Counter(kernel)
        self.global_state = self.counter

    def _add(self, amount: int) -> None:
        with luo_of(self.kernel).global_states.get(self) as obj:
            assert isinstance(obj, list)
            memory = self.kernel.memory
            memory.write_u64(obj[0], memory.u64(obj[0]) + amount)

    def preserve(self, luo_file: LuoFile) -> None:
        super().preserve(luo_file)
        self._add(luo_file.token)

    def unpreserve(self, luo_file: LuoFile) -> None:
        self._add(-luo_file.token)
        super().unpreserve(luo_file)

    def value(self, *, incoming: bool = False) -> int:
        with luo_of(self.kernel).global_states.get(self, incoming=incoming) as obj:
            assert isinstance(obj, list)
            return self.kernel.memory.u64(obj[0])


def counting(kernel: Kernel, compatible: str = "toy-v1") -> Counting:
    handler = Counting(kernel, compatible)
    luo_of(kernel).register_file_handler(handler)
    return handler


def test_the_state_lives_from_the_first_file_to_the_last() -> None:
    kernel = power_on()
    toy = counting(kernel)
    agent = Agent(kernel)
    before = (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys)
    one, two = agent.create_session("one"), agent.create_session("two")
    assert toy.counter.log == []
    agent.preserved(one, 5)
    agent.preserved(two, 6)
    assert toy.counter.log == [("create",)]
    assert toy.value() == 11
    agent.unpreserve_fd(one, 5)
    assert toy.value() == 6
    agent.task.close(two)
    assert toy.counter.log == [("create",), ("destroy", True, False)]
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == before
    with pytest.raises(NoEntry):
        toy.value()
    agent.preserved(one, 5)
    assert toy.counter.log[2:] == [("create",)]


def test_a_state_that_cannot_be_created_fails_the_preserve() -> None:
    kernel = power_on()
    toy = counting(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    toy.counter.fail["create"] = NoMemory()
    fd = agent.null()
    with pytest.raises(NoMemory):
        agent.preserve_fd(session, fd, 1)
    assert agent.task.files.fget(fd).f_count == 1
    toy.counter.fail.clear()
    agent.preserve_fd(session, fd, 1)


def test_a_first_file_that_fails_destroys_the_state() -> None:
    kernel = power_on()
    toy = counting(kernel)
    agent = Agent(kernel)
    toy.fail["preserve"] = IoError()
    with pytest.raises(IoError):
        agent.preserved(agent.create_session("s"), 1)
    assert toy.counter.log == [("create",), ("destroy", True, False)]


def test_nothing_is_stored_without_files() -> None:
    kernel = power_on()
    counting(kernel)
    Agent(kernel).set_event(PREPARE)
    kernel = jump(kernel)
    assert subsystem_early(kernel, FH_STATES_SUBSYSTEM) == 0
    assert global_state_early(kernel, "toy-v1") is None
    toy = counting(kernel)
    with pytest.raises(NoEntry):
        toy.value(incoming=True)
    Agent(kernel).set_event(FINISH)


def test_the_state_crosses_and_ends_with_the_last_file() -> None:
    kernel = power_on()
    counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("one"), 5)
    agent.preserved(agent.create_session("two"), 6, 7)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    early = global_state_early(kernel, "toy-v1")
    assert early is not None
    assert kernel.memory.u64(early) == 18
    toy = counting(kernel)
    agent = Agent(kernel)
    one, two = agent.retrieve_session("one"), agent.retrieve_session("two")
    assert toy.counter.log == []
    assert toy.value(incoming=True) == 18
    assert toy.value(incoming=True) == 18
    assert toy.counter.log == [("restore", 18)]
    agent.task.close(one)
    agent.session_set_event(two, FINISH)
    assert toy.counter.log == [("restore", 18), ("destroy", True, True)]
    agent.set_event(FINISH)
    with pytest.raises(NoEntry):
        toy.value(incoming=True)


def test_a_state_that_nobody_asked_for_is_destroyed_all_the_same() -> None:
    kernel = power_on()
    counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 5)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = counting(kernel)
    Agent(kernel).set_event(FINISH)
    assert toy.counter.log == [("destroy", False, True)]
    assert sum(end - start for start, end, _ in kernel.kho.tags) == 2


def test_a_restore_that_fails_is_tried_again_at_the_next_look() -> None:
    kernel = power_on()
    counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 5)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = counting(kernel)
    Agent(kernel)
    toy.counter.fail["restore"] = IoError()
    for _ in range(2):
        with pytest.raises(IoError):
            toy.value(incoming=True)
    toy.counter.fail.clear()
    assert toy.value(incoming=True) == 5


@pytest.mark.parametrize("finished", [False, True])
def test_a_handler_that_registers_again_finds_no_state_of_the_past(finished: bool) -> None:
    kernel = power_on()
    counting(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 5)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = counting(kernel)
    agent = Agent(kernel)
    agent.task.close(agent.retrieve_session("s"))
    if finished:
        agent.set_event(FINISH)
    luo_of(kernel).unregister_file_handler(toy)
    toy = counting(kernel)
    with pytest.raises(NoEntry):
        toy.value(incoming=True)


def test_the_two_directions_never_mix() -> None:
    """In UPDATED there is what came over and what will go."""
    kernel = power_on()
    counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 5)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("next"), 9)
    assert (toy.value(incoming=True), toy.value()) == (5, 9)
    agent.set_event(FINISH)
    assert toy.value() == 9
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = counting(kernel)
    Agent(kernel)
    assert toy.value(incoming=True) == 9


def test_cancel_keeps_the_state_and_prepare_writes_it_again() -> None:
    kernel = power_on()
    toy = counting(kernel)
    agent = Agent(kernel)
    session = agent.create_session("s")
    agent.preserved(session, 5)
    for _ in range(3):
        agent.set_event(PREPARE)
        agent.set_event(CANCEL)
    assert toy.counter.log == [("create",)]
    agent.preserved(session, 6)
    agent.set_event(PREPARE)
    kernel = jump(kernel)
    toy = counting(kernel)
    Agent(kernel)
    assert toy.value(incoming=True) == 11


def test_a_state_whose_last_file_goes_after_prepare_is_not_handed_over() -> None:
    kernel = power_on()
    counting(kernel)
    second = counting(kernel, "toy-v2")
    agent = Agent(kernel)
    agent.preserved(agent.create_session("kept"), 1)
    luo_of(kernel).handlers.reverse()
    closed = agent.create_session("closed")
    agent.preserved(closed, 2)
    assert second.value() == 2
    agent.set_event(PREPARE)
    agent.task.close(closed)
    freeze(kernel)
    pa = luo_of(kernel).global_states.subsystem.data
    assert kernel.memory.read(pa, 64) == struct.pack(
        "<Q48sQ", 1, b"toy-v1", luo_of(kernel).global_states._outgoing["toy-v1"].data
    )


def test_a_subsystem_cannot_reach_into_it_from_within() -> None:
    """The lock is held while a file works on the state: asking again deadlocks."""
    kernel = power_on()
    toy = counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 5)
    with luo_of(kernel).global_states.get(toy), pytest.raises(ModelBug, match="taken twice"):
        toy.value()


def test_a_kernel_that_is_the_first_with_such_a_handler_panics_at_finish() -> None:
    kernel = power_on()
    Agent(kernel).set_event(PREPARE)
    kernel = jump(kernel)
    counting(kernel)
    with pytest.raises(KernelPanic, match=FH_STATES_SUBSYSTEM):
        Agent(kernel).set_event(FINISH)


def test_absurd_counts_panic() -> None:
    kernel = power_on()
    counting(kernel)
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 5)
    agent.set_event(PREPARE)
    freeze(kernel)
    kernel.memory.write_u64(luo_of(kernel).global_states.subsystem.data, 1 << 40)
    kernel = jump_on(kernel)
    with pytest.raises(KernelPanic, match="global states"):
        counting(kernel)


def test_states_are_written_after_all_files_and_before_later_subsystems() -> None:
    kernel = power_on()
    toy = counting(kernel)
    log, _ = with_subsystems(kernel, "z")
    toy.log = log
    agent = Agent(kernel)
    agent.preserved(agent.create_session("s"), 5)
    log.clear()
    agent.set_event(PREPARE)
    assert [h.name for h in luo_of(kernel).subsystems.registered] == [
        "luo-session",
        FH_STATES_SUBSYSTEM,
        "z",
    ]
    assert [entry[0] for entry in log] == ["prepare", "prepare"]
