"""What a freeze writes, and what one that fails leaves in the blocks."""

from __future__ import annotations

import pytest

from kernelmodel.abi.luo import LuoFileSer, LuoFlbHeaderSer, LuoSessionSer
from kernelmodel.errors import Exists, InvalidArgument, IoError, ModelBug, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.kexec import kernel_kexec, kexec_file_load
from kernelmodel.luo.session import LuoSession
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.validate import validate_kernel, validate_nothing_leaked
from tests.kernelmodel.kernels import CMDLINE, Agent, ToyHandler, power_on, reboot, with_toy

HEADER = 16
PER_BLOCK = 51
FILES_PER_BLOCK = 63


def count(kernel: Kernel, block: int) -> int:
    return kernel.memory.u64(block + 8)


def session_entry(kernel: Kernel, index: int) -> LuoSessionSer:
    block, slot = divmod(index, PER_BLOCK)
    at = kernel.luo.sessions.outgoing_blocks.blocks[block] + HEADER + slot * LuoSessionSer.SIZE
    return LuoSessionSer.unpack(kernel.memory.read(at, LuoSessionSer.SIZE))


def session(kernel: Kernel, index: int) -> LuoSession:
    return kernel.luo.sessions.outgoing[index]


def file_blocks(kernel: Kernel, index: int) -> list[int]:
    return session(kernel, index).file_set.block_set.blocks


def sessions_pa(kernel: Kernel) -> int:
    return kernel.memory.u64(kernel.luo.luo_ser_pa + 16)


class Host:
    """Sessions `s0`, `s1`, … with so many toy files each; tokens count through all of them."""

    def __init__(self, *files: int) -> None:
        self.agent = Agent(power_on())
        self.kernel = self.agent.kernel
        self.toy: ToyHandler = with_toy(self.kernel)
        self.sessions = [self.agent.session(f"s{n}") for n in range(len(files))]
        token = 0
        for fd, number in zip(self.sessions, files, strict=True):
            for _ in range(number):
                self.agent.task.preserve_fd(fd, self.agent.null(), token)
                token += 1
        self.toy.take_log()
        kexec_file_load(self.kernel, self.kernel.release, CMDLINE)

    def fail_at(self, token: int, error: type[Exception] = IoError) -> None:
        """A jump that ends with the freeze of this token."""
        self.toy.fail["freeze", token] = IoError("injected")
        with pytest.raises(error):
            kernel_kexec(self.kernel)
        self.toy.fail.clear()
        validate_kernel(self.kernel, [self.agent.task])


def test_entries_are_written_in_the_order_of_creation_and_of_preserving() -> None:
    host = Host(2, 0, 1)
    kernel = host.kernel
    (block,) = kernel.luo.sessions.outgoing_blocks.blocks
    assert (count(kernel, block), sessions_pa(kernel)) == (0, 0)  # only a freeze writes
    kernel_kexec(kernel)
    assert (count(kernel, block), sessions_pa(kernel)) == (3, block)
    assert [session_entry(kernel, n).name.rstrip(b"\0") for n in range(3)] == [b"s0", b"s1", b"s2"]
    assert [session_entry(kernel, n).count for n in range(3)] == [2, 0, 1]
    assert session_entry(kernel, 1).files == 0  # a session without files has no block
    (files,) = file_blocks(kernel, 0)
    raw = kernel.memory.read(files + HEADER, 3 * LuoFileSer.SIZE)
    entries = [LuoFileSer.unpack(raw, at * LuoFileSer.SIZE) for at in range(3)]
    assert [(entry.token, entry.data) for entry in entries] == [(0, 1000), (1, 1001), (0, 0)]
    assert entries[0].compatible == b"toy-v1".ljust(48, b"\0")


def test_what_a_failed_freeze_leaves_in_memory() -> None:
    """Session 2 of 4 fails at its 65th file."""
    host = Host(1, 64, 70, 1)
    kernel = host.kernel
    host.fail_at(1 + 64 + 64)
    (block,) = kernel.luo.sessions.outgoing_blocks.blocks
    # the failed session's slot stays counted, names and file sets before it are zeroed
    assert (count(kernel, block), sessions_pa(kernel)) == (3, 0)
    for index in range(4):
        assert session_entry(kernel, index) == LuoSessionSer(bytes(64), 0, 0)
    for index in (0, 1, 2, 3):
        blocks = file_blocks(kernel, index)
        for at, following in zip(blocks, [*blocks[1:], 0], strict=True):
            assert kernel.memory.u64(at) == following  # the chain is kept …
            assert kernel.memory.read(at + 8, PAGE_SIZE - 8) == bytes(PAGE_SIZE - 8)  # … empty
    header = kernel.memory.read(kernel.luo.flbs.outgoing_pa, LuoFlbHeaderSer.SIZE)
    assert LuoFlbHeaderSer.unpack(header) == LuoFlbHeaderSer(1, 0)


@pytest.mark.parametrize("token", [0, 1, 2, 3, 4, 5])
def test_every_call_of_a_rollback_comes_in_its_order(token: int) -> None:
    """Files 0 1 | 2 3 4 | | 5: forth through all, back session by session, last one first."""
    files = [[0, 1], [2, 3, 4], [], [5]]
    host = Host(*map(len, files))
    host.fail_at(token)
    at = next(n for n, tokens in enumerate(files) if token in tokens)
    expected = [("freeze", t) for t in range(token + 1)]
    expected += [("unfreeze", t) for t in files[at] if t < token]
    for index in range(at - 1, -1, -1):
        expected += [("unfreeze", t) for t in files[index]]
    assert host.toy.take_log() == expected
    # and once more, with the leftovers of the first attempt in the blocks
    host.agent.task.preserve_fd(host.sessions[2], host.agent.null(), 9)
    host.fail_at(5)
    host.toy.take_log()
    fresh = reboot(host.kernel)
    assert host.toy.take_log() == [("freeze", t) for t in (0, 1, 2, 3, 4, 9, 5)]
    with_toy(fresh)
    after = Agent(fresh)
    for n, tokens in enumerate([[0, 1], [2, 3, 4], [9], [5]]):
        fd = after.retrieve(f"s{n}")
        for t in tokens:
            after.task.retrieve_fd(fd, t)
        after.task.close(fd)
    validate_nothing_leaked(fresh, [after.task])


def test_a_retry_with_fewer_sessions_rewrites_the_counts() -> None:
    """The failed attempt had counted into a second block, which is gone by the next one."""
    host = Host(*[0] * PER_BLOCK, 1)
    kernel = host.kernel
    first, second = kernel.luo.sessions.outgoing_blocks.blocks
    host.fail_at(0)
    assert (count(kernel, first), count(kernel, second)) == (PER_BLOCK, 1)
    for fd in host.sessions[10:]:
        host.agent.task.close(fd)
    assert kernel.luo.sessions.outgoing_blocks.blocks == [first]
    fresh = reboot(kernel)
    assert count(kernel, first) == 10
    after = Agent(fresh)
    assert [s.name.rstrip(b"\0").decode() for s in fresh.luo.sessions.incoming] == [
        f"s{n}" for n in range(10)
    ]
    assert after.device >= 0


def test_a_retry_with_more_sessions_goes_into_the_next_block() -> None:
    host = Host(*[0] * (PER_BLOCK - 1), 1)
    host.fail_at(0)
    for n in range(3):
        host.agent.session(f"new{n}")
    blocks = list(host.kernel.luo.sessions.outgoing_blocks.blocks)
    fresh = reboot(host.kernel)
    assert [count(fresh, block) for block in blocks] == [PER_BLOCK, 3]
    with_toy(fresh)
    Agent(fresh).retrieve("new2")


def test_closing_all_sessions_after_a_failed_freeze_leaves_nothing() -> None:
    host = Host(3, 64)
    host.fail_at(60)
    host.agent.task.exit()
    validate_nothing_leaked(host.kernel, [])
    assert sessions_pa(host.kernel) == 0
    fresh = reboot(host.kernel)
    assert fresh.luo.sessions.incoming_blocks is None


def test_a_handler_may_replace_its_data_at_the_last_moment() -> None:
    host = Host(1)

    def freeze(luo_file: object) -> None:
        host.kernel.luo.sessions.outgoing[0].file_set.files[0].data = 0xABCD

    host.toy.freeze = freeze  # type: ignore[method-assign]
    kernel_kexec(host.kernel)
    (block,) = file_blocks(host.kernel, 0)
    raw = host.kernel.memory.read(block + HEADER, LuoFileSer.SIZE)
    assert LuoFileSer.unpack(raw).data == 0xABCD


def test_a_jump_without_an_image_freezes_nothing() -> None:
    agent = Agent(power_on())
    toy = with_toy(agent.kernel)
    agent.task.preserve_fd(agent.session("s"), agent.null(), 1)
    toy.take_log()
    with pytest.raises(InvalidArgument):
        kernel_kexec(agent.kernel)
    assert toy.take_log() == []


def test_after_a_freeze_that_succeeded_no_session_changes() -> None:
    """In the kernel the caller would sleep until the jump; here it must not even try."""
    host = Host(1)
    kernel_kexec(host.kernel)
    with pytest.raises(InvalidArgument):  # what is refused before the lock is still refused
        host.agent.task.finish_session(host.sessions[0])
    for call in (
        lambda: host.agent.session("late"),
        lambda: host.agent.retrieve("late"),
        lambda: host.agent.task.preserve_fd(host.sessions[0], host.agent.null(), 7),
        lambda: host.agent.task.close(host.sessions[0]),
    ):
        with pytest.raises(ModelBug, match="would block"):
            call()


def test_an_empty_block_that_a_duplicate_left_is_repaired_by_the_next_session() -> None:
    agent = Agent(power_on())
    for n in range(PER_BLOCK):
        agent.session(f"s{n}")
    with pytest.raises(Exists):
        agent.session("s0")
    agent.session("last")
    after = Agent(reboot(agent.kernel))
    after.retrieve("last")


def test_an_empty_block_that_a_duplicate_left_is_repaired_by_closing_any_session() -> None:
    agent = Agent(power_on())
    fds = [agent.session(f"s{n}") for n in range(PER_BLOCK)]
    with pytest.raises(Exists):
        agent.session("s0")
    agent.task.close(fds[20])
    assert len(agent.kernel.luo.sessions.outgoing_blocks.blocks) == 1
    after = Agent(reboot(agent.kernel))
    after.retrieve("s50")


def test_a_memfd_fails_to_freeze_and_keeps_its_new_position() -> None:
    """Freezing a memfd only writes its position down; there is nothing to undo."""
    agent = Agent(power_on())
    task, one = agent.task, agent.session("one")
    toy = with_toy(agent.kernel)
    memfd = agent.memfd(PAGE_SIZE, b"text")
    task.preserve_fd(one, memfd, 1)
    task.preserve_fd(one, agent.null(), 2)
    task.lseek(memfd, 100)
    toy.fail["freeze"] = NoMemory("injected")
    kexec_file_load(agent.kernel, agent.kernel.release, CMDLINE)
    with pytest.raises(NoMemory):
        kernel_kexec(agent.kernel)
    data = session(agent.kernel, 0).file_set.files[0].data
    assert agent.kernel.memory.u64(data) == 100
    task.lseek(memfd, 3)
    toy.fail.clear()
    fresh = reboot(agent.kernel)
    with_toy(fresh)
    after = Agent(fresh)
    assert after.task.lseek_cur(after.task.retrieve_fd(after.retrieve("one"), 1)) == 3
