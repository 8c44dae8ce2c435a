"""Sets of blocks that grow and shrink in any order, and what the next kernel reads of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.errors import Exists, NoEntry, NotSupported
from kernelmodel.kernel import Kernel
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, Agent, ToyHandler, power_on, reboot, with_toy

#: Three entries to a block.
ENTRY = (PAGE_SIZE - 16) // 3 // 8 * 8
PER_BLOCK = 3


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return power_on()


@settings(deadline=None, max_examples=100)
@given(steps=st.lists(st.integers(0, 14), max_size=20))
def test_a_set_has_just_the_blocks_that_its_entries_need(kernel: Kernel, steps: list[int]) -> None:
    keys = kernel.kho.preserved_keys
    blocks = KhoBlockSet(kernel.kho, ENTRY)
    assert blocks.capacity == PER_BLOCK
    entries = 0
    for wanted in steps:
        before = list(blocks.blocks)
        (blocks.grow if wanted > entries else blocks.shrink)(wanted)
        entries = wanted
        needed = -(-entries // PER_BLOCK)
        assert len(blocks.blocks) == needed
        assert blocks.blocks[: len(before)] == before[:needed]  # at its tail, nowhere else
        assert kernel.kho.preserved_keys == keys + needed
        at, chain = blocks.head_pa, []
        while at:
            chain.append(at)
            assert kernel.memory.u64(at + 8) == 0  # counts are the freeze's
            at = kernel.memory.u64(at)
        assert chain == blocks.blocks
    blocks.destroy()
    assert blocks.head_pa == 0
    validate_kernel(kernel, [])


@pytest.mark.parametrize("order", ["first", "last", "middle"])
def test_sessions_leave_in_any_order_and_those_that_stay_are_handed_over(order: str) -> None:
    agent = Agent(power_on())
    names = [f"s{n}" for n in range(120)]
    fds = {name: agent.session(name) for name in names}
    leave = {"first": names[:80], "last": names[40:], "middle": names[20:100]}[order]
    for name in leave:
        agent.task.close(fds[name])
        names.remove(name)
        validate_kernel(agent.kernel, [agent.task])
    fresh = reboot(agent.kernel)
    Agent(fresh)
    got = [session.name.rstrip(b"\0").decode() for session in fresh.luo.sessions.incoming]
    assert got == names


def test_an_incoming_set_shrinks_with_its_files_whatever_its_blocks_held() -> None:
    """A block that is not the last may have room left; entries are read all the same."""
    kernel = power_on()
    outgoing = KhoBlockSet(kernel.kho, ENTRY)
    outgoing.grow(3 * PER_BLOCK)
    for index in (0, 1, 3, 6, 7, 8):  # two entries, one, three
        at = outgoing.reserve_entry(index)
        kernel.memory.write_u64(at, index)
    head = outgoing.head_pa
    fresh = reboot(kernel)
    waiting = sum(high - low for low, high, _ in fresh.kho.tags)
    incoming = KhoBlockSet(fresh.kho, ENTRY)
    incoming.restore(head)
    assert [int.from_bytes(raw[:8], "little") for raw in incoming.entries()] == [0, 1, 3, 6, 7, 8]
    for entries, blocks in ((6, 2), (5, 2), (4, 2), (3, 1), (1, 1), (0, 0)):
        incoming.shrink(entries)
        assert len(incoming.blocks) == blocks
        assert sum(high - low for low, high, _ in fresh.kho.tags) == waiting - 3 + blocks
    validate_kernel(fresh, [])


def test_a_kernel_that_live_update_is_off_in_jumps_and_hands_nothing_over() -> None:
    agent = Agent(power_on())
    agent.session("s")
    off = reboot(agent.kernel, cmdline=f"{CMDLINE} liveupdate=off")
    with pytest.raises(NotSupported):
        with_toy(off)
    on = reboot(off, cmdline=CMDLINE)
    # the number is the kernel's that wrote the header, and this one's predecessor wrote none
    assert on.luo.liveupdate_num == 0
    with pytest.raises(NoEntry):
        Agent(on).retrieve("s")
    assert on.kho.incoming is not None


def test_a_compatible_string_names_one_handler() -> None:
    kernel = power_on()
    with_toy(kernel)
    with pytest.raises(Exists):
        kernel.luo.register_file_handler(ToyHandler(kernel))
    with pytest.raises(Exists):
        kernel.luo.register_file_handler(ToyHandler(kernel, "memfd-v2"))
    assert [handler.compatible for handler in kernel.luo.handlers] == ["memfd-v2", "toy-v1"]
