"""Memblock keeps what the first reason said, and finds memory from the top down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmodel.errors import NoMemory
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.memblock import NUMA_NO_NODE, Memblock, MemblockFlags, validate_memblock
from kernelmodel.mm.ranges import RangeSet

PAGE = 4096
GIB = 1 << 30


def two_nodes() -> Memblock:
    memblock = Memblock()
    memblock.add(0, 4 * GIB, 0)
    memblock.add(4 * GIB, 4 * GIB, 1)
    return memblock


SPAN = st.tuples(st.integers(0, 31), st.integers(1, 8))


@given(st.lists(st.tuples(SPAN, st.sampled_from([0, 0x20, 0xA0, None])), max_size=25))
def test_reserved_ranges_keep_their_first_reason(
    steps: list[tuple[tuple[int, int], int | None]],
) -> None:
    memblock = two_nodes()
    model: dict[int, int] = {}
    for (page, nr), flags in steps:
        if flags is None:
            memblock.free(page * PAGE, nr * PAGE)
        else:
            memblock.reserve(page * PAGE, nr * PAGE, flags=flags)
        for at in range(page, page + nr):
            if flags is None:
                model.pop(at, None)
            else:
                model.setdefault(at, flags)
        validate_memblock(memblock)
    held = {
        at: region.flags
        for region in memblock.reserved
        for at in range(region.base // PAGE, region.end // PAGE)
    }
    assert held == model
    kern = sum(PAGE for flags in model.values() if flags == 0x20)
    assert memblock.reserved_kern_size() == kern
    free = RangeSet((base // PAGE, end // PAGE) for base, end, _ in memblock.free_ranges(0))
    assert [page in free for page in range(40)] == [page not in model for page in range(40)]


@given(
    st.lists(SPAN, max_size=12),
    st.integers(1, 6),
    st.sampled_from([1, 2, 4, 8]),
)
def test_an_allocation_is_the_highest_aligned_free_range(
    taken: list[tuple[int, int]], nr: int, align: int
) -> None:
    memblock = Memblock()
    memblock.add(0, 40 * PAGE)
    busy = {0}
    for page, count in taken:
        memblock.reserve(page * PAGE, count * PAGE)
        busy |= set(range(page, page + count))
    fits = [page for page in range(0, 41 - nr, align) if not busy & set(range(page, page + nr))]
    if fits:
        got = memblock.alloc_range(nr * PAGE, align * PAGE)
        assert got == fits[-1] * PAGE
        assert memblock.is_reserved(got, nr * PAGE)
    else:
        with pytest.raises(NoMemory):
            memblock.alloc_range(nr * PAGE, align * PAGE)


def test_another_node_serves_unless_the_node_is_exact() -> None:
    memblock = two_nodes()
    memblock.reserve(4 * GIB, 4 * GIB)
    assert memblock.alloc_range(GIB, GIB, nid=1) == 3 * GIB
    with pytest.raises(NoMemory):
        memblock.alloc_range(GIB, GIB, nid=1, exact_nid=True)


def test_an_end_and_the_current_limit_bound_the_search() -> None:
    memblock = two_nodes()
    assert memblock.alloc_range(PAGE, PAGE, end=GIB) == GIB - PAGE
    memblock.current_limit = 2 * GIB
    assert memblock.alloc_range(PAGE, PAGE) == 2 * GIB - PAGE


def test_scratch_only_mode_sees_marked_memory_alone() -> None:
    memblock = two_nodes()
    memblock.mark_kho_scratch(GIB, 4 * PAGE)
    memblock.set_kho_scratch_only()
    assert memblock.alloc_range(4 * PAGE, PAGE, nid=1) == GIB
    with pytest.raises(NoMemory):
        memblock.alloc_range(PAGE, PAGE)
    memblock.clear_kho_scratch_only()
    assert memblock.alloc_range(PAGE, PAGE) == 8 * GIB - PAGE
    assert list(memblock.kho_scratch()) == [(GIB, GIB + 4 * PAGE)]


def test_huge_pages_do_not_count_as_the_kernels_own() -> None:
    memblock = two_nodes()
    memblock.alloc_range(GIB, GIB, nid=0)
    memblock.alloc_hugetlb(GIB, 2, 1)
    assert memblock.reserved_kern_size() == GIB
    assert memblock.reserved_kern_size(nid=0) == GIB
    assert memblock.reserved_kern_size(nid=1) == 0
    assert memblock.reserved_kern_size(limit=3 * GIB + PAGE) == PAGE


def test_huge_pages_pass_real_scratch_over_and_come_from_the_top() -> None:
    memblock = two_nodes()
    scratch = RangeSet([(6 * GIB + PAGE, 6 * GIB + 2 * PAGE)])
    assert memblock.alloc_hugetlb(GIB, 9, 1, scratch) == [(7 * GIB, 1), (4 * GIB, 2)]
    assert memblock.alloc_hugetlb(GIB, 1, 1, scratch) == []
    # Page zero is nobody's, so the lowest GiB is none for a huge page.
    assert memblock.alloc_hugetlb(GIB, 9, 0) == [(GIB, 3)]


def test_huge_pages_taken_one_by_one_are_the_same() -> None:
    bulk, single = two_nodes(), two_nodes()
    for memblock in (bulk, single):
        memblock.reserve(5 * GIB + 12345 * PAGE, PAGE)
        memblock.reserve(7 * GIB, 7 * PAGE)
    runs = bulk.alloc_hugetlb(2 << 20, 1500, 1)
    pages = {base + at * (2 << 20) for base, n in runs for at in range(n)}
    ones = [single.alloc_hugetlb(2 << 20, 1, 1)[0][0] for _ in range(1500)]
    assert pages == set(ones)
    assert list(bulk.reserved) == list(single.reserved)


def test_marks_split_regions_and_merge_again() -> None:
    memblock = two_nodes()
    memblock.reserve(GIB, GIB, flags=MemblockFlags.RSRV_KERN)
    memblock.mark_noinit(GIB + PAGE, PAGE)
    assert [region.flags for region in memblock.reserved] == [0x20, 0x30, 0x20]
    memblock.mark_noinit(GIB, GIB)
    assert [tuple(region) for region in memblock.reserved] == [(GIB, 2 * GIB, NUMA_NO_NODE, 0x30)]


@given(st.lists(st.tuples(SPAN, st.sampled_from([0, 0x10, 0x20])), max_size=9), SPAN)
def test_a_range_is_reserved_and_marked_at_once_as_in_two_steps(
    taken: list[tuple[tuple[int, int], int]], span: tuple[int, int]
) -> None:
    once, twice = two_nodes(), two_nodes()
    for memblock in (once, twice):
        for (page, nr), flags in taken:
            memblock.reserve(page * PAGE, nr * PAGE, flags=flags)
    base, size = span[0] * PAGE, span[1] * PAGE
    once.reserve_noinit([(base, base + size)])
    twice.reserve(base, size)
    twice.mark_noinit(base, size)
    assert list(once.reserved) == list(twice.reserved)
    validate_memblock(once)


@pytest.mark.parametrize("then", ["reserve", "free", "mark_noinit"])
def test_scattered_pages_are_reserved_before_what_comes_after_them(then: str) -> None:
    later, listed = two_nodes(), two_nodes()
    pages = Extents(np.arange(0, 100, 2), np.ones(50, dtype=np.int64))
    for memblock in (later, listed):
        memblock.reserve_noinit_pages(pages)
        if memblock is listed:
            assert len(list(memblock.reserved)) == 50
        getattr(memblock, then)(10 * PAGE, 21 * PAGE)
    assert list(later.reserved) == list(listed.reserved)
    assert later.free_ranges() == listed.free_ranges()


def test_a_reserved_range_can_be_given_its_node() -> None:
    memblock = two_nodes()
    memblock.reserve(GIB, 2 * PAGE, flags=MemblockFlags.RSRV_KERN)
    memblock.reserved.change(0, GIB + PAGE, nid=0)
    assert [region.nid for region in memblock.reserved] == [0, NUMA_NO_NODE]
