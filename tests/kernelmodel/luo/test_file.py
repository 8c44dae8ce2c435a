"""The files of a session: what is refused and undone, and in which order callbacks come."""

from __future__ import annotations

import pytest

from kernelmodel.errors import (
    BadAddress,
    BadFileDescriptor,
    Busy,
    Exists,
    FileTooBig,
    IoError,
    KernelError,
    NoEntry,
    NoMemory,
    NoSpace,
)
from kernelmodel.kernel import Kernel
from kernelmodel.kexec import kernel_kexec, kexec_file_load
from kernelmodel.luo.handler import Flb
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot, with_toy

FILES_PER_BLOCK = 63


def blocks_of(kernel: Kernel, session: int = 0) -> int:
    return len(kernel.luo.sessions.outgoing[session].file_set.block_set.blocks)


class FlbOps:
    """Operations that record themselves; `fail` is raised by preserve."""

    def __init__(self, log: list[str], name: str, fail: KernelError | None = None) -> None:
        self.log, self.name, self.fail = log, name, fail

    def preserve(self) -> tuple[int, object]:
        self.log.append(f"preserve {self.name}")
        if self.fail is not None:
            raise self.fail
        return 5, "object"

    def unpreserve(self, data: int, obj: object) -> None:
        self.log.append(f"unpreserve {self.name}")

    def retrieve(self, data: int) -> object:
        self.log.append(f"retrieve {self.name}")
        return data

    def finish(self, data: int, obj: object) -> None:
        self.log.append(f"finish {self.name}")


# Preserving.


def test_a_used_token_is_refused_before_anything_else_is_looked_at() -> None:
    agent = Agent(power_on())
    with_toy(agent.kernel)
    session = agent.session("s")
    agent.task.preserve_fd(session, agent.null(), 1)
    with pytest.raises(Exists):
        agent.task.preserve_fd(session, 999, 1)


def test_room_in_the_blocks_is_looked_for_before_the_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(power_on())
    session = agent.session("s")
    monkeypatch.setattr("kernelmodel.kho.block.KHO_MAX_BLOCKS", 0)
    with pytest.raises(NoSpace):
        agent.task.preserve_fd(session, 999, 1)


@pytest.mark.parametrize("refused", ["descriptor", "handler", "object", "callback", "flb"])
def test_a_file_that_is_refused_leaves_nothing_behind(refused: str) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    toy = with_toy(kernel)
    log: list[str] = []
    kernel.luo.flbs.register(toy, Flb("one", FlbOps(log, "one")))
    fail = NoMemory("injected") if refused == "flb" else None
    kernel.luo.flbs.register(toy, Flb("two", FlbOps(log, "two", fail)))
    session, other = agent.session("s"), agent.session("other")
    fd = agent.null()
    wanted: type[KernelError] = NoMemory
    if refused == "descriptor":
        fd, wanted = 999, BadFileDescriptor
    elif refused == "handler":
        fd, wanted = agent.device, NoEntry
    elif refused == "object":
        agent.task.preserve_fd(other, fd, 9)
        wanted = Busy
    elif refused == "callback":
        toy.fail["preserve"] = FileTooBig("injected")
        wanted = FileTooBig
    keys, free = kernel.kho.preserved_keys, kernel.page_alloc.nr_free_pages()
    ids, references = set(kernel.luo.preserved_ids), [f.f_count for f in agent.task.files]
    counts = [flb.outgoing_count for flb in toy.flbs]
    log.clear()
    with pytest.raises(wanted):
        agent.task.preserve_fd(session, fd, 1)
    assert blocks_of(kernel) == 0
    assert (kernel.kho.preserved_keys, kernel.page_alloc.nr_free_pages()) == (keys, free)
    assert (kernel.luo.preserved_ids, [f.f_count for f in agent.task.files]) == (ids, references)
    assert [flb.outgoing_count for flb in toy.flbs] == counts
    assert log == {
        "callback": ["preserve one", "preserve two", "unpreserve two", "unpreserve one"],
        "flb": ["preserve one", "preserve two", "unpreserve one"],
    }.get(refused, [])


def test_the_64th_file_takes_a_second_block_and_gives_it_back() -> None:
    agent = Agent(power_on())
    with_toy(agent.kernel)
    session = agent.session("s")
    for token in range(FILES_PER_BLOCK):
        agent.task.preserve_fd(session, agent.null(), token)
    assert blocks_of(agent.kernel) == 1
    with pytest.raises(BadFileDescriptor):
        agent.task.preserve_fd(session, 999, 63)
    assert blocks_of(agent.kernel) == 1
    agent.task.preserve_fd(session, agent.null(), 63)
    assert blocks_of(agent.kernel) == 2


def test_closing_a_session_lets_files_go_last_first() -> None:
    agent = Agent(power_on())
    toy = with_toy(agent.kernel)
    session = agent.session("s")
    for token in (3, 1, 2):
        agent.task.preserve_fd(session, agent.null(), token)
    toy.take_log()
    agent.task.close(session)
    assert toy.log == [("unpreserve", 2), ("unpreserve", 1), ("unpreserve", 3)]
    assert not agent.kernel.luo.preserved_ids


def test_an_argument_that_is_shorter_than_it_says_is_a_bad_address() -> None:
    agent = Agent(power_on())
    with_toy(agent.kernel)
    session = agent.session("s")
    with pytest.raises(BadAddress):
        agent.task.ioctl(session, 0xBA40, bytearray(b"\x10\0"))
    with pytest.raises(BadAddress):
        agent.task.ioctl(session, 0xBA40, bytearray(b"\x10\0\0\0"))


# Freezing.


@pytest.mark.parametrize(("session", "token"), [(0, 1), (0, 2), (1, 3), (1, 5), (2, 6)])
def test_a_freeze_that_fails_is_undone_and_the_next_one_succeeds(session: int, token: int) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    toy = with_toy(kernel)
    tokens = {0: [1, 2], 1: [3, 4, 5], 2: [6]}
    for name, files in tokens.items():
        fd = agent.session(f"s{name}")
        for number in files:
            agent.task.preserve_fd(fd, agent.null(), number)
    toy.take_log()
    toy.fail["freeze", token] = IoError("injected")
    kexec_file_load(kernel, kernel.release, CMDLINE)
    with pytest.raises(IoError):
        kernel_kexec(kernel)
    before = [t for files in tokens.values() for t in files if t < token]
    frozen = [("freeze", t) for t in [*before, token]]
    # the failing session's files first to last, then whole sessions, last one first
    own = [("unfreeze", t) for t in tokens[session] if t < token]
    others = [("unfreeze", t) for s in range(session - 1, -1, -1) for t in tokens[s]]
    assert toy.take_log() == [*frozen, *own, *others]
    assert kernel.memory.u64(kernel.luo.luo_ser_pa + 16) == 0  # no sessions are handed over
    agent.task.preserve_fd(agent.session("later"), agent.null(), 7)
    toy.fail.clear()
    fresh = reboot(kernel)
    with_toy(fresh)
    after = Agent(fresh)
    everything = {"s0": [1, 2], "s1": [3, 4, 5], "s2": [6], "later": [7]}
    for handed_over, held in everything.items():
        incoming = after.retrieve(handed_over)
        for number in held:
            after.task.retrieve_fd(incoming, number)


def test_sessions_closed_after_a_failed_freeze_are_not_handed_over() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    toy = with_toy(kernel)
    sessions = [agent.session(f"s{n}") for n in range(3)]
    for fd in sessions:
        agent.task.preserve_fd(fd, agent.null(), 1)
    toy.fail["freeze"] = IoError("injected")
    kexec_file_load(kernel, kernel.release, CMDLINE)
    with pytest.raises(IoError):
        kernel_kexec(kernel)
    toy.fail.clear()
    agent.task.close(sessions[0])
    agent.task.close(sessions[2])
    fresh = reboot(kernel)
    with_toy(fresh)
    after = Agent(fresh)
    after.retrieve("s1")
    for gone in ("s0", "s2"):
        with pytest.raises(NoEntry):
            after.retrieve(gone)


# In the next kernel.


def handed_over(*tokens: int) -> Kernel:
    kernel = power_on()
    agent = Agent(kernel)
    with_toy(kernel)
    session = agent.session("s")
    for token in tokens:
        agent.task.preserve_fd(session, agent.null(), token)
    return reboot(kernel)


def test_a_retrieve_that_failed_fails_for_ever_in_the_same_way() -> None:
    kernel = handed_over(1, 2)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve("s")
    toy.fail["retrieve", 1] = NoMemory("injected")
    for _ in range(2):
        with pytest.raises(NoMemory):
            agent.task.retrieve_fd(session, 1)
        toy.fail.clear()
    assert toy.log == [("retrieve", 1)]
    assert agent.task.retrieve_fd(session, 2) >= 0


def test_a_second_retrieve_is_another_descriptor_of_the_same_open_file() -> None:
    kernel = handed_over(1)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve("s")
    one, two = (agent.task.retrieve_fd(session, 1) for _ in range(2))
    assert one != two
    assert agent.task.files.fget(one) is agent.task.files.fget(two)
    assert toy.take_log() == [("retrieve", 1)]


def test_finish_asks_all_first_and_then_goes_last_first() -> None:
    kernel = handed_over(1, 2, 3)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve("s")
    agent.task.retrieve_fd(session, 2)
    toy.take_log()
    toy.busy = True
    with pytest.raises(Busy):
        agent.task.finish_session(session)
    assert toy.take_log() == [("can_finish", 1)]
    assert agent.task.retrieve_fd(session, 3) >= 0
    toy.take_log()
    toy.busy = False
    agent.task.finish_session(session)
    asked = [("can_finish", 1), ("can_finish", 2), ("can_finish", 3)]
    assert toy.take_log() == [*asked, ("finish", 3), ("finish", 2), ("finish", 1)]
    with pytest.raises(NoEntry):
        agent.task.retrieve_fd(session, 2)
    agent.task.finish_session(session)  # nothing left, and no error


def test_a_session_that_cannot_finish_when_closed_stays_and_is_out_of_reach() -> None:
    kernel = handed_over(1)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve("s")
    toy.busy = True
    agent.task.close(session)
    assert any("cannot finish" in line for line in kernel.messages)
    with pytest.raises(KernelError, match="EINVAL"):
        agent.retrieve("s")


def test_one_file_without_a_handler_makes_every_open_fail() -> None:
    kernel = handed_over(1, 2)
    for _ in range(2):
        with pytest.raises(IoError):
            Agent(kernel)
    with_toy(kernel)  # too late: the first answer stays
    with pytest.raises(IoError):
        Agent(kernel)
    assert not kernel.luo.in_use


def test_the_whole_life_of_130_files_leaves_no_page_behind() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    with_toy(kernel)
    free = kernel.page_alloc.nr_free_pages()
    session = agent.session("s")
    for token in range(130):
        agent.task.preserve_fd(session, agent.null(), token)
    assert blocks_of(kernel) == 3
    kernel = reboot(kernel)
    toy = with_toy(kernel)
    agent = Agent(kernel)
    session = agent.retrieve("s")
    for token in range(0, 130, 7):
        agent.task.retrieve_fd(session, token)
    toy.take_log()
    agent.task.close(session)
    finished = [token for what, token in toy.log if what == "finish"]
    assert finished == list(range(129, -1, -1))
    # the old FDT, its metadata and LUO's FLB page are not given back before the next kexec;
    # radix nodes of order 0: the old kernel had them, the new one has its own
    left = sum(high - low for low, high, _ in kernel.kho.tags)
    assert left == 3
    assert abs(free - kernel.page_alloc.nr_free_pages()) < 16384  # another place for the kernel
