"""Tags of preserved entries: what overlapping keys of different orders come to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernelmodel.errors import OutOfRange
from kernelmodel.kernel import Kernel
from kernelmodel.kho.tags import PageTags
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.extents import Extents
from tests.kernelmodel.kernels import power_on, reboot


def test_adjacent_entries_of_one_order_are_one_run() -> None:
    tags = PageTags()
    tags.put(8, 2, 2)
    tags.put(16, 2)
    assert list(tags) == [(8, 20, 2)]
    assert tags.count(8, 2, 9) == 3
    assert tags.count(12, 2, 1) == 1
    assert tags.count(4, 2, 3) == 0  # the first of them is not there
    assert tags.count(9, 2, 1) == 0  # not the head of one
    assert [tags.order(pfn) for pfn in (8, 9, 12, 20)] == [2, None, 2, None]


def test_where_two_begin_at_one_frame_the_smaller_order_stands() -> None:
    tags = PageTags()
    tags.put(0x200, 9, 2)
    tags.put(0x400, 0)
    assert tags.order(0x200) == 9
    assert tags.order(0x400) == 0
    assert list(tags) == [(0x200, 0x400, 9), (0x400, 0x401, 0)]


def test_entries_that_overlap_keep_a_tag_each_until_one_is_taken() -> None:
    tags = PageTags()
    tags.put(0x200, 9)
    tags.put(0x205, 0, 3)
    assert tags.order(0x200) == 9
    assert tags.order(0x206) == 0
    tags.take(0x200, 9, 1)
    assert not list(tags)


LARGER = st.lists(st.tuples(st.integers(0, 7), st.sampled_from([1, 2, 3])), max_size=6)
PAGES = st.lists(st.integers(0, 71), min_size=1, unique=True)


def tags_of(tags: PageTags) -> object:
    """All that they say."""
    return [tags.order(pfn) for pfn in range(80)], list(tags.untagged), tags.nr_pages


@given(larger=LARGER, pages=PAGES, taken=st.lists(st.integers(0, 71), min_size=1, max_size=6))
@example(larger=[(1, 3)], pages=[1, 8, 9, 30], taken=[8])
@example(larger=[], pages=[1, 2, 3, 4], taken=[1, 3, 1])
def test_many_pages_at_once_are_as_one_after_the_other(
    larger: list[tuple[int, int]], pages: list[int], taken: list[int]
) -> None:
    many, single = PageTags(), PageTags()
    for number, order in sorted(set(larger), key=lambda entry: (-entry[1], entry[0])):
        many.put(number << order, order)
        single.put(number << order, order)
    for pfn in sorted(pages):
        single.put(pfn, 0)
    few, rest = sorted(pages)[: len(pages) // 2], sorted(pages)[len(pages) // 2 :]
    for pfn in few:
        many.put(pfn, 0)
    frames = np.array(rest)
    many.put_pages(Extents(frames, np.ones_like(frames)))
    assert tags_of(many) == tags_of(single)
    shared = {pfn for n, order in larger for pfn in range(n << order, n + 1 << order)}
    alone = set(pages) - shared
    whole = len(set(taken)) == len(taken) and alone.issuperset(taken)
    before = tags_of(many)
    assert many.take_pages(np.array(taken)) == whole
    if whole:
        assert [single.take_entry(pfn) for pfn in taken] == [0] * len(taken)
        assert tags_of(many) == tags_of(single)
    else:
        assert tags_of(many) == before


def overlapping() -> tuple[Kernel, int]:
    """An entry of order 3, one of order 0 inside, and one of order 1 at the head of another."""
    kernel = power_on()
    pfn = kernel.page_alloc.alloc_pages(4)
    kernel.kho.preserve_folios(pfn + 5, 0)
    kernel.kho.preserve_folios(pfn, 3, 2)
    kernel.kho.preserve_folios(pfn + 8, 1)
    return kernel, pfn


def test_one_tree_takes_keys_of_several_orders_for_the_same_frames() -> None:
    kernel, pfn = overlapping()
    runs = [(run.pfn, run.order, run.nr) for run in kernel.kho.outgoing_runs()]
    # the walk: large orders first, whatever was preserved first
    assert runs[:2] == [(pfn, 3, 2), (pfn + 8, 1, 1)]
    assert (pfn + 5, 0, 1) in runs[2:]


def test_all_of_them_are_reserved_and_the_last_one_met_names_the_order() -> None:
    kernel, pfn = overlapping()
    fresh = reboot(kernel)
    kho = fresh.kho
    assert fresh.memblock.is_reserved(pfn << PAGE_SHIFT, 16 << PAGE_SHIFT)
    assert not fresh.page_alloc.any_free(pfn, 16)
    assert [kho.tag_order(pfn + n) for n in range(16)] == (
        [3, None, None, None, None, 0, None, None] + [1] + [None] * 7
    )
    managed = fresh.page_alloc.managed_pages()
    assert kho.restore_folio(pfn + 8 << PAGE_SHIFT) == 1  # two pages of the eight
    assert kho.restore_folio(pfn << PAGE_SHIFT) == 3
    assert fresh.page_alloc.managed_pages() == managed + 10
    assert kho.restore_folio(pfn + 5 << PAGE_SHIFT) is None  # its page is the other's by now
    assert fresh.tainted
    # what was cut off at the frames behind is lost to this kernel
    assert not fresh.page_alloc.any_free(pfn + 10, 6)


def test_preserving_twice_is_silent_and_one_key() -> None:
    kernel = power_on()
    keys = kernel.kho.preserved_keys
    pfn = kernel.page_alloc.alloc_pages(0)
    kernel.kho.preserve_folios(pfn, 0)
    kernel.kho.preserve_folios(pfn, 0)
    assert kernel.kho.preserved_keys == keys + 1
    kernel.kho.unpreserve_folios(pfn, 0)
    assert kernel.kho.preserved_keys == keys
    kernel.kho.unpreserve_folios(pfn, 0)
    assert kernel.kho.preserved_keys == keys
    assert reboot(kernel).kho.tag_order(pfn) is None


def test_nodes_stay_when_the_last_key_is_gone_and_are_handed_over_empty() -> None:
    kernel = power_on()
    nodes = len(kernel.kho.outgoing_nodes())
    pfn = kernel.page_alloc.alloc_pages(9)
    kernel.kho.preserve_folios(pfn, 9)
    more = kernel.kho.outgoing_nodes()
    assert len(more) == nodes + 5  # a path of its own for the order
    kernel.kho.unpreserve_folios(pfn, 9)
    assert kernel.kho.outgoing_nodes() == more
    fresh = reboot(kernel)
    # the tree's pages are not in the tree: ordinary memory once it has been read
    assert all(fresh.kho.tag_order(pa >> PAGE_SHIFT) is None for _, pa in more)


@pytest.mark.parametrize("pfn", [1 << 53, (1 << 53) - 1])
def test_no_key_has_more_bits_than_those_of_order_0(pfn: int) -> None:
    kernel = power_on()
    keys = kernel.kho.preserved_keys
    with pytest.raises(OutOfRange):
        kernel.kho.preserve_folios(pfn, 0, 2)
    assert kernel.kho.preserved_keys == keys
