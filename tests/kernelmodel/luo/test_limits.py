"""The limits as they are, not scaled down: 10,000 blocks, 630,000 files, 510,000 sessions."""

from __future__ import annotations

import pytest

from kernelmodel.abi.luo import LuoFileSer
from kernelmodel.errors import InvalidArgument, NoSpace
from kernelmodel.kernel import Kernel
from kernelmodel.kho.block import KHO_MAX_BLOCKS, KhoBlockSet
from kernelmodel.luo.handler import LuoFile
from kernelmodel.luo.session import LuoSession
from tests.kernelmodel.kernels import Agent, power_on, reboot, with_toy

FILES, SESSIONS = 630_000, 510_000


def blocks_of(kernel: Kernel) -> KhoBlockSet:
    return KhoBlockSet(kernel.kho, LuoFileSer.SIZE)


def fill(blocks: KhoBlockSet) -> None:
    """Every block says that it has one entry."""
    for index in range(len(blocks.blocks)):
        blocks.reserve_entry(index * blocks.capacity)


def test_10000_blocks_are_a_chain_and_one_more_is_none() -> None:
    kernel = power_on()
    free, keys = kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys
    blocks = blocks_of(kernel)
    blocks.grow(FILES)
    assert len(blocks.blocks) == KHO_MAX_BLOCKS
    with pytest.raises(NoSpace):
        blocks.grow(FILES + 1)
    assert len(blocks.blocks) == KHO_MAX_BLOCKS
    fill(blocks)
    head = blocks.head_pa
    fresh = reboot(kernel)
    incoming = blocks_of(fresh)
    incoming.restore(head)
    assert sum(1 for _ in incoming.entries()) == KHO_MAX_BLOCKS
    with pytest.raises(InvalidArgument):
        incoming.grow(FILES)  # what came over does not grow
    incoming.destroy()
    assert kernel.kho.preserved_keys == keys + KHO_MAX_BLOCKS
    assert free - kernel.page_alloc.nr_free_pages() >= KHO_MAX_BLOCKS


@pytest.mark.parametrize(("extra", "why"), [(1, NoSpace), (KHO_MAX_BLOCKS + 1, InvalidArgument)])
def test_a_longer_chain_is_refused_and_given_back(extra: int, why: type[Exception]) -> None:
    """From twice the limit on, the search for a cycle gives up first and gives nothing back."""
    kernel = power_on()
    blocks = blocks_of(kernel)
    blocks.grow(FILES)
    more = blocks_of(kernel)
    more.grow(min(extra, KHO_MAX_BLOCKS) * more.capacity)
    last = blocks_of(kernel)
    last.grow(max(0, extra - KHO_MAX_BLOCKS) * last.capacity)
    for part in (blocks, more, last):
        fill(part)
    kernel.memory.write_u64(blocks.blocks[-1], more.head_pa)
    kernel.memory.write_u64(more.blocks[-1], last.head_pa)
    head = blocks.head_pa
    fresh = reboot(kernel)
    before = sum(high - low for low, high, _ in fresh.kho.tags)
    incoming = blocks_of(fresh)
    with pytest.raises(why):
        incoming.restore(head)
    after = sum(high - low for low, high, _ in fresh.kho.tags)
    assert before - after == (KHO_MAX_BLOCKS + extra if why is NoSpace else 0)


def test_a_session_holds_630000_files_and_looks_at_the_next_ones_descriptor_too_late() -> None:
    agent = Agent(power_on())
    toy = with_toy(agent.kernel)
    fd = agent.session("s")
    file_set = agent.kernel.luo.sessions.outgoing[0].file_set
    file_set.files = [LuoFile(toy, 1)] * (FILES - 1)
    agent.task.preserve_fd(fd, agent.null(), 2)
    assert len(file_set.block_set.blocks) == KHO_MAX_BLOCKS
    with pytest.raises(NoSpace):
        agent.task.preserve_fd(fd, 999, 3)


def test_there_are_510000_sessions_and_no_more() -> None:
    agent = Agent(power_on())
    sessions = agent.kernel.luo.sessions
    sessions.outgoing = [LuoSession(agent.kernel.luo, b"many")] * (SESSIONS - 1)
    agent.session("last")
    assert len(sessions.outgoing_blocks.blocks) == KHO_MAX_BLOCKS
    with pytest.raises(NoSpace):
        agent.session("one more")
