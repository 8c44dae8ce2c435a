"""The page allocator never gives a page twice, and merges whatever can be merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernelmodel.errors import ModelBug, NoMemory
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.mmzone import MAX_ORDER_NR_PAGES, MAX_PAGE_ORDER, FreeArea
from kernelmodel.mm.page_alloc import PageAllocator, validate_page_alloc
from kernelmodel.mm.ranges import RangeSet

#: The first page of the zone that has neither ISA nor 32-bit devices to think of.
NORMAL = (4 << 30) >> 12
NODE = 5000


def two_nodes() -> PageAllocator:
    pages = PageAllocator([(NORMAL, NODE, 0), (NORMAL + NODE, NODE, 1)])
    pages.set_cma(NORMAL + MAX_ORDER_NR_PAGES, MAX_ORDER_NR_PAGES)
    pages.free_range(NORMAL, 2 * NODE)
    return pages


class BuddyMachine(RuleBasedStateMachine):
    """Against a set of free page frames."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = two_nodes()
        self.free = set(range(NORMAL, NORMAL + 2 * NODE))
        self.held: list[tuple[int, int]] = []

    def take(self, pfn: int, nr_pages: int) -> None:
        taken = set(range(pfn, pfn + nr_pages))
        assert taken <= self.free
        self.free -= taken
        self.held.append((pfn, nr_pages))

    @rule(order=st.integers(0, MAX_PAGE_ORDER), nid=st.integers(0, 1), movable=st.booleans())
    def alloc(self, order: int, nid: int, movable: bool) -> None:
        try:
            pfn = self.pages.alloc_pages(order, nid, movable=movable)
        except NoMemory:
            return
        assert pfn % (1 << order) == 0
        if not movable:
            assert not NORMAL + 1024 <= pfn < NORMAL + 2048
        self.take(pfn, 1 << order)

    @rule(order=st.integers(0, 10), n=st.integers(1, 700), nid=st.integers(0, 1))
    def alloc_bulk(self, order: int, n: int, nid: int) -> None:
        try:
            runs = self.pages.alloc_bulk(order, n, nid, movable=True)
        except NoMemory:
            return
        assert sum(count for _, count in runs) == n
        for pfn, count in runs:
            self.take(pfn, count << order)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        pfn, nr_pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if nr_pages.bit_count() == 1 and nr_pages <= 1024 and data.draw(st.booleans()):
            self.pages.free_pages(pfn, nr_pages.bit_length() - 1)
        else:
            cut = data.draw(st.integers(0, nr_pages))
            self.pages.free_run(pfn + cut, nr_pages - cut)
            self.pages.free_run(pfn, cut)
        self.free |= set(range(pfn, pfn + nr_pages))

    @invariant()
    def free_pages_are_those_that_nobody_holds(self) -> None:
        validate_page_alloc(self.pages)
        got = {pfn for low, high in self.pages.free_ranges() for pfn in range(low, high)}
        assert got == self.free
        assert self.pages.nr_free_pages() == len(self.free)


BuddyMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestBuddy = BuddyMachine.TestCase


@pytest.mark.parametrize("order", [0, 3, 9, 10])
def test_many_blocks_at_once_are_what_single_calls_give(order: int) -> None:
    one, many = two_nodes(), two_nodes()
    for pages in (one, many):
        held = [pages.alloc_pages(order % 4, 0) for _ in range(9)]
        for pfn in held[::2]:
            pages.free_pages(pfn, order % 4)
    n = many.nr_free_pages() >> order >> 1
    runs = many.alloc_bulk(order, n, 1, movable=True)
    singles = [one.alloc_pages(order, 1, movable=True) for _ in range(n)]
    assert [pfn + (at << order) for pfn, count in runs for at in range(count)] == singles
    assert many.buddyinfo() == one.buddyinfo()


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 300)), max_size=12),
    st.integers(0, MAX_PAGE_ORDER),
    st.integers(0, 3000),
)
def test_many_blocks_leave_the_free_lists_that_single_calls_leave(
    holes: list[tuple[int, int]], order: int, n: int
) -> None:
    """The order of the free lists decides every later address."""
    one, many = FreeArea(), FreeArea()
    taken = RangeSet((start, start + nr) for start, nr in holes)
    for area in (one, many):
        for start, end in taken.gaps(0, 5000):
            area.put(start, end)
    runs: list[tuple[int, int]] = []
    missing = many.take_many(order, n, runs)
    singles = [pfn for pfn in (one.take_one(order) for _ in range(n)) if pfn is not None]
    assert [pfn + (at << order) for pfn, count in runs for at in range(count)] == singles
    assert missing == n - len(singles)
    assert [list(blocks) for blocks in many.low] == [list(blocks) for blocks in one.low]
    assert many.top == one.top


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 2500)), max_size=12))
def test_many_runs_leave_the_free_lists_that_single_ones_leave(
    holes: list[tuple[int, int]],
) -> None:
    runs = RangeSet((start, start + nr) for start, nr in holes).gaps(3, 12_000)
    one, many = FreeArea(), FreeArea()
    for start, end in runs:
        one.put(start, end)
    starts, ends = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    many.put_many(Extents(starts, ends - starts))
    assert [list(blocks) for blocks in many.low] == [list(blocks) for blocks in one.low]
    assert many.top == one.top


def test_all_or_nothing_leaves_the_allocator_as_it_was() -> None:
    pages = two_nodes()
    before = pages.free_ranges()
    with pytest.raises(NoMemory):
        pages.alloc_bulk(9, 1000)
    assert pages.free_ranges() == before
    validate_page_alloc(pages)


def test_the_own_node_comes_first_and_the_next_one_helps() -> None:
    pages = two_nodes()
    assert pages.pfn_to_nid(pages.alloc_pages(10, 1)) == 1
    while pages.nr_available(10, 1):
        pages.alloc_pages(10, 1, thisnode=True)
    with pytest.raises(NoMemory):
        pages.alloc_pages(10, 1, thisnode=True)
    assert pages.pfn_to_nid(pages.alloc_pages(10, 1)) == 0


def test_scratch_serves_movable_pages_alone_and_last() -> None:
    pages = two_nodes()
    ordinary = 2 * NODE - MAX_ORDER_NR_PAGES
    pages.alloc_bulk(0, ordinary, 0)
    with pytest.raises(NoMemory):
        pages.alloc_pages(0, 0)
    assert pages.alloc_pages(0, 0, movable=True) == NORMAL + MAX_ORDER_NR_PAGES
    assert pages.nr_free_cma_pages() == MAX_ORDER_NR_PAGES - 1


def test_low_zones_keep_a_part_for_those_who_need_it() -> None:
    pages = PageAllocator([(1 << 12, 1 << 12, 0), (NORMAL, 1 << 19, 0)])
    pages.free_range(1 << 12, 1 << 12)
    pages.free_range(NORMAL, 1 << 19)
    pages.setup_lowmem_reserve()
    assert [zone.protected for zone in pages.zones()] == [2048, 0]
    pages.alloc_bulk(0, (1 << 19) + 2048)
    with pytest.raises(NoMemory):
        pages.alloc_pages(0)
    assert pages.nr_free_pages() == 2048


def test_zones_are_cut_at_16_mib_and_4_gib() -> None:
    pages = PageAllocator([(1, NORMAL * 2, 0)])
    pages.free_range(1, NORMAL * 2)
    assert pages.buddyinfo() == (
        "Node 0, zone      DMA      1      1      1      1      1      1      1      1      1"
        "      1      3 \n"
        "Node 0, zone    DMA32      0      0      0      0      0      0      0      0      0"
        "      0   1020 \n"
        "Node 0, zone   Normal      1      0      0      0      0      0      0      0      0"
        "      0   1024 \n"
    )


def test_gigantic_stretches_are_aligned_and_skip_what_is_taken() -> None:
    gib = 1 << 18
    pages = PageAllocator([(NORMAL, 4 * gib, 0)])
    pages.free_range(NORMAL, 4 * gib)
    hole = pages.alloc_pages(0)
    assert hole == NORMAL
    assert pages.nr_available(18, 0) == 3
    assert pages.alloc_contig(18, 4, 0) == ([(NORMAL + gib, 3)], 1)
    pages.free_run(NORMAL + gib, 3 * gib)
    pages.free_pages(hole, 0)
    assert pages.nr_free(MAX_PAGE_ORDER) == 4 * gib >> MAX_PAGE_ORDER


@pytest.mark.parametrize(("pfn", "order"), [(NORMAL, 0), (NORMAL + 8, 3), (NORMAL + 1024, 10)])
def test_a_double_free_is_found(pfn: int, order: int) -> None:
    pages = two_nodes()
    with pytest.raises(ModelBug, match="double free"):
        pages.free_pages(pfn, order)
    pages.alloc_bulk(10, 2)
    with pytest.raises(ModelBug, match="double free"):
        pages.free_run(NORMAL, 3000)


def test_pages_that_do_not_exist_cannot_be_freed() -> None:
    assert two_nodes().pfn_valid(NORMAL, 2 * NODE)
    assert not two_nodes().pfn_valid(NORMAL - 1, 2)
    with pytest.raises(ModelBug, match="do not exist"):
        two_nodes().free_run(NORMAL - 1, 1)


def test_cma_comes_in_whole_blocks_and_before_the_pages() -> None:
    pages = two_nodes()
    with pytest.raises(ModelBug, match="cuts"):
        pages.set_cma(NORMAL + 512, 1024)
    with pytest.raises(ModelBug, match="free pages already"):
        pages.set_cma(NORMAL, 1024)


def test_a_large_host_is_a_few_entries() -> None:
    pages = PageAllocator([(NORMAL, 1 << 27, 0)])
    pages.free_range(NORMAL, 1 << 27)
    assert pages.alloc_bulk(9, 200_000) == [(NORMAL, 200_000)]
    assert pages.is_free(NORMAL + (200_000 << 9), 1 << 20)
    assert not pages.any_free(NORMAL, 200_000 << 9)
    assert [len(zone.areas[0].top) for zone in pages.zones()] == [1]
