"""Trees of rubbish: walked in bounded time, with the same keys as the kernel would meet."""

from __future__ import annotations

import random
import struct
import time

import pytest

from kernelmodel.errors import KernelPanic
from kernelmodel.kho.radix_tree import KhoRadixTree
from kernelmodel.kho.radix_walk import IncomingTree
from kernelmodel.memory import MIB, PAGE_SHIFT, PAGE_SIZE, MemoryRange, PhysicalMemory

END_PFN = 128 * MIB >> PAGE_SHIFT


def memory() -> PhysicalMemory:
    return PhysicalMemory((MemoryRange(0, 128 * MIB, 0),))


def tree_in(ram: PhysicalMemory) -> KhoRadixTree:
    """An empty tree whose nodes are the frames from 0x100 on."""
    pages = iter(range(0x101, 0x1000))
    return KhoRadixTree(ram, 0x100 << PAGE_SHIFT, lambda: next(pages) << PAGE_SHIFT)


def walk(ram: PhysicalMemory) -> IncomingTree:
    return IncomingTree(ram, 0x100 << PAGE_SHIFT, END_PFN)


def test_of_a_sound_tree_it_finds_what_was_put_there_in_the_order_of_keys() -> None:
    ram = memory()
    tree = tree_in(ram)
    rng = random.Random(1)
    for _ in range(300):
        order = rng.choice((0, 0, 0, 1, 3, 9, 10))
        tree.add_run(rng.randrange(END_PFN >> order) << order, order)
    found = walk(ram)
    assert list(found.runs()) == list(tree.runs())
    assert sorted(found.node_frames()) == sorted(pa >> PAGE_SHIFT for _, pa in tree.nodes())


def test_keys_behind_the_end_of_memory_are_told_once_and_last() -> None:
    ram = memory()
    tree = tree_in(ram)
    for pfn in range(0, 1 << 30, 1 << 25):
        tree.add_run(pfn | 7, 0, 5)
    first, *others = walk(ram).runs()
    assert (first.pfn, first.order, first.nr) == (7, 0, 5)
    assert [(run.order, run.pfn >= END_PFN) for run in others] == [(0, True)]


def test_a_page_that_is_not_aligned_is_noticed_to_have_changed_by_its_own_bytes() -> None:
    ram = memory()
    tree = tree_in(ram)
    tree.add_run(7, 0)
    # a table points eight bytes into a page of zeroes: its last slot is in the page behind
    table = next(pa for level, pa in tree.nodes() if level == 1)
    slots = [slot for slot in range(table, table + PAGE_SIZE, 8) if ram.u64(slot)]
    ram.write_u64(slots[0], (0x2000 << PAGE_SHIFT) + 8)
    found = walk(ram)
    ram.write_u64(0x2001 << PAGE_SHIFT, 1)
    assert not found.is_as_it_was
    assert list(walk(ram).runs()) != list(found.runs())


def test_a_tree_that_was_written_to_since_is_noticed_at_any_level() -> None:
    ram = memory()
    tree = tree_in(ram)
    tree.add_run(7, 0)
    tree.add_run(0, 9, 3)
    found = walk(ram)
    for _, pa in tree.nodes():
        before = ram.u64(pa + 8 * 500)
        ram.write_u64(pa + 8 * 500, 1)
        assert not found.is_as_it_was
        ram.write_u64(pa + 8 * 500, before)
        assert found.is_as_it_was
    assert list(found.runs()) == list(found.runs()) == list(tree.runs())


def test_a_pointer_to_where_there_is_no_memory_faults() -> None:
    ram = memory()
    ram.write_u64((0x100 << PAGE_SHIFT) + 8 * 300, 1 << 40)
    with pytest.raises(KernelPanic, match="page fault"):
        walk(ram)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_tree_of_a_few_pages_that_takes_for_ever_is_a_hang_at_once(hangs: bool) -> None:
    """Whether it is one depends on what the kernel meets first: the endless part, or a fault."""
    ram = memory()
    for pfn in range(0x100, 0x105):
        ram.write(pfn << PAGE_SHIFT, struct.pack("<Q", pfn + 1 << PAGE_SHIFT) * 512)
    at = 511 if hangs else 0
    ram.write_u64((0x100 << PAGE_SHIFT) + 8 * at, 1 << 40)
    began = time.process_time()
    with pytest.raises(KernelPanic, match="hang" if hangs else "page fault"):
        walk(ram)
    assert time.process_time() - began < 1


def test_what_a_kernel_walks_in_seconds_is_no_hang() -> None:
    """All 262,144 bitmaps are one page; those of memory have keys, the others fault later."""
    ram = memory()
    for pfn, child, first in ((0x100, 0x101, 2), (0x101, 0x102, 0), (0x102, 0x103, 0)):
        ram.write_u64((pfn << PAGE_SHIFT) + 8 * first, child << PAGE_SHIFT)
    for pfn in (0x103, 0x104):
        ram.write(pfn << PAGE_SHIFT, struct.pack("<Q", pfn + 1 << PAGE_SHIFT) * 512)
    ram.write(0x105 << PAGE_SHIFT, b"\x55" * PAGE_SIZE)
    began = time.process_time()
    runs = list(walk(ram).runs())
    assert time.process_time() - began < 1
    assert len(runs) == END_PFN // 2 + 1
    assert [run.pfn >= END_PFN for run in runs[-2:]] == [False, True]


def test_rubbish_full_of_pointers_is_looked_at_in_bounded_time() -> None:
    ram = memory()
    rng = random.Random(2)
    for pfn in range(0x100, 0x100 + 1000):
        targets = (0x100 + rng.randrange(1000) << PAGE_SHIFT for _ in range(512))
        ram.write(pfn << PAGE_SHIFT, struct.pack("<512Q", *targets))
    began = time.process_time()
    with pytest.raises(KernelPanic, match="hang"):
        walk(ram)
    assert time.process_time() - began < 5
