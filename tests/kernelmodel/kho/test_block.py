"""Chains of blocks: they grow and shrink with their entries, and a reader checks them."""

from __future__ import annotations

import pytest

from kernelmodel.errors import InvalidArgument, KernelPanic, NoSpace
from kernelmodel.kernel import Kernel
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.validate import validate_kernel
from tests.conformance.kho_reader import blocks
from tests.kernelmodel.kernels import power_on, reboot

ENTRY = 80
CAPACITY = 51


def chain(kernel: Kernel, entries: int) -> KhoBlockSet:
    block_set = KhoBlockSet(kernel.kho, ENTRY)
    block_set.grow(entries)
    for index in range(entries):
        kernel.memory.write(block_set.reserve_entry(index), bytes([index % 255 + 1]) * ENTRY)
    return block_set


@pytest.mark.parametrize(
    ("size", "capacity"), [(80, 51), (64, 63), (4080, 1), (2041, 1), (2040, 2)]
)
def test_entries_that_fit_a_block(size: int, capacity: int) -> None:
    assert KhoBlockSet(power_on().kho, size).capacity == capacity


def test_blocks_come_when_the_last_is_full_and_go_when_it_is_empty() -> None:
    kernel = power_on()
    block_set = KhoBlockSet(kernel.kho, ENTRY)
    keys, free = kernel.kho.preserved_keys, kernel.page_alloc.nr_free_pages()
    assert block_set.head_pa == 0
    for entries, nr in ((1, 1), (51, 1), (52, 2), (102, 2), (103, 3), (1, 3)):
        block_set.grow(entries)
        assert len(block_set.blocks) == nr
        assert kernel.kho.preserved_keys == keys + nr
    for entries, nr in ((103, 3), (102, 2), (52, 2), (51, 1), (1, 1), (0, 0)):
        block_set.shrink(entries)
        assert len(block_set.blocks) == nr
        if block_set.blocks:
            assert kernel.memory.u64(block_set.blocks[-1]) == 0  # the last one ends the chain
    assert (kernel.kho.preserved_keys, kernel.page_alloc.nr_free_pages()) == (keys, free)


def test_growing_beyond_the_limit_takes_back_what_it_added(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = power_on()
    block_set = KhoBlockSet(kernel.kho, ENTRY)
    block_set.grow(CAPACITY + 1)
    monkeypatch.setattr("kernelmodel.kho.block.KHO_MAX_BLOCKS", 4)
    with pytest.raises(NoSpace):
        block_set.grow(5 * CAPACITY)
    assert len(block_set.blocks) == 2
    assert kernel.memory.u64(block_set.blocks[-1]) == 0
    with pytest.raises(NoSpace):
        block_set.reserve_entry(2 * CAPACITY)


def test_entries_cross_in_order_and_the_blocks_are_freed() -> None:
    kernel = power_on()
    block_set = chain(kernel, 120)
    expected = [bytes([n % 255 + 1]) * ENTRY for n in range(120)]
    assert list(blocks(kernel.memory.read, block_set.head_pa, ENTRY)) == expected
    fresh = reboot(kernel)
    incoming = KhoBlockSet(fresh.kho, ENTRY)
    incoming.restore(block_set.head_pa)
    assert list(incoming.entries()) == expected
    incoming.shrink(52)
    assert len(incoming.blocks) == 2
    incoming.destroy()
    assert not fresh.tainted
    validate_kernel(fresh, [])
    empty = KhoBlockSet(fresh.kho, ENTRY)
    empty.restore(0)
    assert list(empty.entries()) == []


def test_a_count_that_changes_after_restore_leads_behind_the_page() -> None:
    kernel = power_on()
    block_set = chain(kernel, CAPACITY)
    fresh = reboot(kernel)
    incoming = KhoBlockSet(fresh.kho, ENTRY)
    incoming.restore(block_set.head_pa)
    assert 16 + CAPACITY * ENTRY == PAGE_SIZE
    fresh.memory.write(block_set.head_pa + PAGE_SIZE, b"b" * ENTRY)
    fresh.memory.write_u64(block_set.head_pa + 8, CAPACITY + 1)
    assert list(incoming.entries())[CAPACITY - 1 :] == [bytes([CAPACITY]) * ENTRY, b"b" * ENTRY]
    fresh.memory.write_u64(block_set.head_pa + 8, 1 << 60)
    assert next(iter(incoming.entries())) == b"\1" * ENTRY


def test_a_block_before_the_last_may_be_half_full() -> None:
    kernel = power_on()
    block_set = chain(kernel, 60)
    kernel.memory.write_u64(block_set.blocks[0] + 8, 3)
    incoming = KhoBlockSet(reboot(kernel).kho, ENTRY)
    incoming.restore(block_set.head_pa)
    assert [entry[0] for entry in incoming.entries()] == [1, 2, 3, *range(52, 61)]


@pytest.mark.parametrize("count", [0, 52, 1 << 63])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_an_absurd_count_is_refused_and_the_whole_chain_given_back(block: int, count: int) -> None:
    kernel = power_on()
    block_set = chain(kernel, 3 * CAPACITY)
    kernel.memory.write_u64(block_set.blocks[block] + 8, count)
    fresh = reboot(kernel)
    waiting = sum(high - low for low, high, _ in fresh.kho.tags)
    incoming = KhoBlockSet(fresh.kho, ENTRY)
    with pytest.raises(InvalidArgument):
        incoming.restore(block_set.head_pa)
    assert incoming.blocks == []
    assert sum(high - low for low, high, _ in fresh.kho.tags) == waiting - 3
    assert not fresh.tainted
    validate_kernel(fresh, [])


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_a_ring_is_refused_and_nothing_freed(back_to: int) -> None:
    kernel = power_on()
    block_set = chain(kernel, 3 * CAPACITY)
    kernel.memory.write_u64(block_set.blocks[2], block_set.blocks[back_to])
    fresh = reboot(kernel)
    waiting = sum(high - low for low, high, _ in fresh.kho.tags)
    with pytest.raises(InvalidArgument, match="never ends"):
        KhoBlockSet(fresh.kho, ENTRY).restore(block_set.head_pa)
    assert sum(high - low for low, high, _ in fresh.kho.tags) == waiting


def test_more_blocks_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = power_on()
    block_set = chain(kernel, 3 * CAPACITY)
    fresh = reboot(kernel)
    monkeypatch.setattr("kernelmodel.kho.block.KHO_MAX_BLOCKS", 2)
    with pytest.raises(NoSpace):
        KhoBlockSet(fresh.kho, ENTRY).restore(block_set.head_pa)
    validate_kernel(fresh, [])


def test_a_chain_that_leads_out_of_memory_faults() -> None:
    kernel = power_on()
    block_set = chain(kernel, 10)
    kernel.memory.write_u64(block_set.head_pa, 1 << 50)
    with pytest.raises(KernelPanic, match="page fault"):
        KhoBlockSet(reboot(kernel).kho, ENTRY).restore(block_set.head_pa)


def test_clearing_keeps_the_chain_and_nothing_else() -> None:
    kernel = power_on()
    block_set = chain(kernel, 60)
    block_set.clear()
    first, second = (kernel.memory.read(block, PAGE_SIZE) for block in block_set.blocks)
    assert first == block_set.blocks[1].to_bytes(8, "little") + bytes(PAGE_SIZE - 8)
    assert second == bytes(PAGE_SIZE)
