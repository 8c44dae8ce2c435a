"""The radix tree of preserved memory against a plain set of keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.errors import KernelPanic, NoMemory
from kernelmodel.kho.radix_pages import bit_runs, decode_key
from kernelmodel.kho.radix_tree import KeyRun, KhoRadixTree, encode_key
from kernelmodel.memory import GIB, PAGE_SIZE, MemoryRange, PhysicalMemory
from tests.conformance.kho_reader import order_and_pfn, radix_keys

ROOT = 16 * PAGE_SIZE


class Pages:
    """Hands out zeroed pages behind the root; `left` of them."""

    def __init__(self, left: int = 1000) -> None:
        self.memory = PhysicalMemory((MemoryRange(0, GIB, 0),))
        self.next = ROOT + PAGE_SIZE
        self.left = left
        self.out: set[int] = set()

    def alloc(self) -> int:
        if not self.left:
            raise NoMemory("none left")
        self.left -= 1
        self.next += PAGE_SIZE
        self.memory.zero(self.next // PAGE_SIZE, 1)
        self.out.add(self.next)
        return self.next

    def free(self, pa: int) -> None:
        self.out.remove(pa)
        self.left += 1

    def tree(self) -> KhoRadixTree:
        return KhoRadixTree(self.memory, ROOT, self.alloc, self.free)


ORDERS = st.sampled_from([0, 1, 2, 9, 10, 18])
RUNS = st.builds(
    lambda order, start, nr: (start << order, order, nr),
    ORDERS,
    st.one_of(
        st.integers(0, 70_000),
        st.integers((1 << 24) - 40, 1 << 24),
        st.integers(0, 9_000).map(lambda n: 8 * n),
    ),
    st.one_of(
        st.integers(1, 5), st.integers(1, 40_000), st.integers(1, 5_000).map(lambda n: 8 * n)
    ),
)
CHANGES = st.lists(st.tuples(st.booleans(), RUNS), max_size=8)


@settings(max_examples=40, deadline=None)
@given(CHANGES)
def test_runs_are_what_single_keys_would_be(
    changes: list[tuple[bool, tuple[int, int, int]]],
) -> None:
    pages = Pages()
    tree = pages.tree()
    expected: set[tuple[int, int]] = set()
    for present, (pfn, order, nr) in changes:
        keys = {(order, pfn + (n << order)) for n in range(nr)}
        if present:
            tree.add_run(pfn, order, nr)
            expected |= keys
        else:
            tree.del_run(pfn, order, nr)
            expected -= keys
        assert tree.has(pfn, order) == present
        assert tree.nr_keys == len(expected)
    found = [(run.order, run.pfn + (n << run.order)) for run in tree.runs() for n in range(run.nr)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    # the largest orders first, by address within an order, as the keys ascend
    assert found == sorted(expected, key=lambda key: (-key[0], key[1]))
    nodes = [pa for _, pa in tree.nodes()]
    assert set(nodes) == {ROOT, *pages.out}
    assert len(nodes) == len(pages.out) + 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), ORDERS), max_size=12))
def test_another_reader_finds_the_same_keys_in_the_bytes(keys: list[tuple[int, int]]) -> None:
    pages = Pages()
    tree = pages.tree()
    for start, order in keys:
        tree.add_run(start << order, order)
    found = {order_and_pfn(key) for key in radix_keys(pages.memory.read, ROOT)}
    assert found == {(order, start << order) for start, order in keys}


@settings(deadline=None)
@given(st.integers(0, (1 << 52) - 1), st.integers(0, 20))
def test_keys_are_decoded_to_what_they_were_made_of(pfn: int, order: int) -> None:
    pfn = pfn >> order << order
    assert decode_key(encode_key(pfn, order)) == (pfn, order)


def test_the_key_of_the_first_pages() -> None:
    assert encode_key(0, 0) == 1 << 52
    assert encode_key(0x200, 9) == 1 << 43 | 1
    assert [level for level, _ in Pages().tree().nodes()] == [5]


@pytest.mark.parametrize("left", range(10))
def test_without_pages_for_nodes_no_key_is_set_and_no_page_is_lost(left: int) -> None:
    pages = Pages(left)
    tree = pages.tree()
    before = set(pages.out)
    try:
        tree.add_run(32_768 * 7 - 5, 0, 40_000)  # three bitmaps
    except NoMemory:
        assert list(tree.runs()) == []
        assert left < 7
        # nodes that were complete stay and are handed over; half a path is taken back
        assert {pa for _, pa in tree.nodes()} == {ROOT, *pages.out}
        assert len(pages.out - before) in (0, 5, 6)
    else:
        assert left >= 7
        assert list(tree.runs()) == [
            KeyRun(32_768 * 7 - 5, 0, 5),
            KeyRun(32_768 * 7, 0, 32_768),
            KeyRun(32_768 * 8, 0, 7_227),
        ]


def test_adding_twice_is_silent_and_deleting_leaves_the_nodes() -> None:
    pages = Pages()
    tree = pages.tree()
    tree.add_run(5, 0)
    tree.add_run(5, 0)
    nodes = set(pages.out)
    tree.del_run(5, 0)
    tree.del_run(5, 0)
    tree.del_run(1 << 30, 0)
    assert list(tree.runs()) == []
    assert pages.out == nodes
    tree.memory.zero(ROOT // PAGE_SIZE, 1)


def test_destroy_frees_every_node() -> None:
    pages = Pages()
    root = pages.alloc()
    tree = KhoRadixTree(pages.memory, root, pages.alloc, pages.free)
    for order in (0, 9, 18):
        tree.add_run(0, order, 3)
    tree.destroy()
    assert not pages.out


def test_a_bitmap_with_more_runs_than_are_walked_bit_by_bit() -> None:
    pages = Pages()
    tree = pages.tree()
    for pfn in range(0, 2_000, 3):
        tree.add_run(pfn, 0, 2)
    assert [(run.pfn, run.nr) for run in tree.runs()] == [(pfn, 2) for pfn in range(0, 2_000, 3)]


def test_what_no_kernel_wrote_ends_as_a_fault() -> None:
    pages = Pages()
    tree = pages.tree()
    tree.add_run(0, 0)
    pages.memory.write_u64(ROOT + 8 * 3, 1 << 45)  # beyond all memory
    with pytest.raises(KernelPanic, match="page fault"):
        list(tree.runs())
    pages.memory.write_u64(ROOT + 8 * 3, 0)
    first = pages.memory.u64(ROOT + 8 * 2)
    pages.memory.write_u64(ROOT + 8 * 4, first)  # keys above order 0
    with pytest.raises(KernelPanic, match="no order"):
        list(tree.runs())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 32_767), st.integers(1, 5_000)), max_size=70))
def test_the_runs_of_a_bitmap_are_those_of_its_bits(pieces: list[tuple[int, int]]) -> None:
    """Few runs and many are found in two ways."""
    bits = 0
    for first, nr in pieces:
        bits |= (1 << min(nr, 32_768 - first)) - 1 << first
    expected: list[tuple[int, int]] = []
    for at in range(32_768):
        if bits >> at & 1:
            if expected and expected[-1][1] == at:
                expected[-1] = (expected[-1][0], at + 1)
            else:
                expected.append((at, at + 1))
    assert bit_runs(bits.to_bytes(PAGE_SIZE, "little")) == tuple(expected)
