"""Ranges of pages: how they are cut, what undoes them, what comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmodel.errors import InvalidArgument, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.kho.pages import (
    blocks_by_node,
    blocks_of,
    preserve_pages,
    restore_pages,
    unpreserve_pages,
)
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, power_on, reboot


@pytest.mark.parametrize(
    ("pfn", "nr_pages", "orders"),
    [
        (0x100, 1, [0]),
        (0x101, 7, [0, 1, 2]),
        (0x100, 7, [2, 1, 0]),
        (0x3FFFF, (1 << 18) + 2, [0, 18, 0]),  # a gigabyte is one block
        (0, 5, [2, 0]),
        (7, 0, []),
    ],
)
def test_blocks_are_as_large_as_alignment_and_rest_allow(
    pfn: int, nr_pages: int, orders: list[int]
) -> None:
    assert [order for _, order in blocks_of(pfn, nr_pages)] == orders


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20))
def test_blocks_cover_the_range_once_and_are_aligned(pfn: int, nr_pages: int) -> None:
    at = pfn
    for first, order in blocks_of(pfn, nr_pages):
        assert first == at
        assert first % (1 << order) == 0
        at += 1 << order
    assert at == pfn + nr_pages


def keys(kernel: Kernel) -> set[tuple[int, int]]:
    return {
        (run.pfn + (n << run.order), run.order)
        for run in kernel.kho.outgoing_runs()
        for n in range(run.nr)
    }


def a_range(kernel: Kernel) -> tuple[int, int]:
    """Unaligned at both ends."""
    return kernel.page_alloc.alloc_pages(10) + 3, 1000


def test_a_range_is_there_again_and_can_be_freed() -> None:
    kernel = power_on()
    before = keys(kernel)
    pfn, nr_pages = a_range(kernel)
    preserve_pages(kernel.kho, pfn, nr_pages)
    assert keys(kernel) - before == set(blocks_of(pfn, nr_pages))
    kernel.memory.write(pfn + 999 << PAGE_SHIFT, b"last")
    fresh = reboot(kernel)
    assert not fresh.page_alloc.any_free(pfn, nr_pages)
    assert restore_pages(fresh.kho, pfn, nr_pages)
    assert fresh.memory.read(pfn + 999 << PAGE_SHIFT, 4) == b"last"
    fresh.page_alloc.free_run(pfn, nr_pages)
    validate_kernel(fresh, [])


def test_unpreserving_takes_the_same_keys_back() -> None:
    kernel = power_on()
    before = keys(kernel)
    pfn, nr_pages = a_range(kernel)
    preserve_pages(kernel.kho, pfn, nr_pages)
    unpreserve_pages(kernel.kho, pfn, nr_pages)
    assert keys(kernel) == before


@pytest.mark.parametrize("allowed", range(6))
def test_a_block_that_cannot_be_preserved_undoes_those_before_it(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = power_on()
    pfn, nr_pages = a_range(kernel)
    before = keys(kernel)
    preserve, calls = Kho.preserve_folios, [0]

    def limited(self: Kho, pfn: int, order: int, nr: int = 1) -> None:
        calls[0] += 1
        if calls[0] > allowed:
            raise NoMemory("injected")
        preserve(self, pfn, order, nr)

    monkeypatch.setattr(Kho, "preserve_folios", limited)
    with pytest.raises(NoMemory):
        preserve_pages(kernel.kho, pfn, nr_pages)
    assert keys(kernel) == before


def test_debug_checks_look_at_the_whole_range_before_anything_is_preserved() -> None:
    kernel = power_on()
    before = keys(kernel)
    area = kernel.kho.scratch[1]
    with pytest.raises(InvalidArgument):
        preserve_pages(kernel.kho, (area.addr >> PAGE_SHIFT) - 100, 101)
    assert keys(kernel) == before
    assert kernel.tainted


def test_no_block_lies_on_two_nodes() -> None:
    """Nodes that meet in the middle of a block: 1.5 GiB each, and a range of two gigabytes."""
    kernel = power_on(node_bytes=(3 * GIB // 2, 3 * GIB // 2))
    pfn, nr_pages = GIB // 2 >> PAGE_SHIFT, 2 * GIB >> PAGE_SHIFT
    blocks = list(blocks_by_node(kernel.kho, pfn, nr_pages))
    assert [order for _, order in blocks] == [17, 17, 17, 17]
    assert [order for _, order in blocks_of(pfn, nr_pages)] == [17, 18, 17]


def test_a_block_halved_between_nodes_comes_back_with_its_first_half_only() -> None:
    config = replace(CONFIG, kexec_handover_debug=False)
    # KHO's own pages lie on node 0, the range on the other two
    kernel = power_on(node_bytes=(GIB // 2, GIB, 3 * GIB // 2), config=config)
    pfn, nr_pages = GIB >> PAGE_SHIFT, GIB >> PAGE_SHIFT
    preserve_pages(kernel.kho, pfn, nr_pages)
    kho = reboot(kernel).kho
    assert restore_pages(kho, pfn, nr_pages)
    assert kho.tag_order(pfn) is None
    assert kho.tag_order(pfn + nr_pages // 2) == 17


def test_a_hole_ends_a_restore_and_what_came_before_stays_restored() -> None:
    kernel = power_on()
    pfn, nr_pages = a_range(kernel)
    preserve_pages(kernel.kho, pfn, nr_pages)
    blocks = list(blocks_of(pfn, nr_pages))
    kernel.kho.unpreserve_folios(*blocks[3])
    fresh = reboot(kernel)
    managed = fresh.page_alloc.managed_pages()
    assert not restore_pages(fresh.kho, pfn, nr_pages)
    assert fresh.page_alloc.managed_pages() == managed + sum(1 << o for _, o in blocks[:3])
    assert [fresh.kho.tag_order(at) for at, _ in blocks[4:]] == [order for _, order in blocks[4:]]


def test_preserved_scratch_is_overwritten_by_the_next_kernels_image() -> None:
    """Without debug checks it is accepted, restored and holds whatever boot put there."""
    config = replace(CONFIG, kexec_handover_debug=False)
    kernel = power_on(CMDLINE, config=config)
    area = kernel.kho.scratch[0]  # where segments are tried first
    first, nr_pages = area.addr >> PAGE_SHIFT, area.size >> PAGE_SHIFT
    for pfn in range(first, first + nr_pages):
        kernel.memory.write(pfn << PAGE_SHIFT, b"precious")
    preserve_pages(kernel.kho, first, nr_pages)
    assert not kernel.tainted
    fresh = reboot(kernel)
    kept = [
        pfn
        for pfn in range(first, first + nr_pages)
        if fresh.memory.read(pfn << PAGE_SHIFT, 8) == b"precious"
    ]
    assert 0 < len(kept) < nr_pages
    # what held an image or what boot allocated is gone, the rest is as it was
    assert nr_pages - len(kept) >= CONFIG.kernel_bytes >> PAGE_SHIFT
    assert fresh.firmware.kernel is not None
    assert not any(
        fresh.firmware.kernel[0] <= pfn << PAGE_SHIFT < sum(fresh.firmware.kernel) for pfn in kept
    )
    assert restore_pages(fresh.kho, first, nr_pages)


def test_one_preserved_page_in_scratch_may_be_spared() -> None:
    config = replace(CONFIG, kexec_handover_debug=False)
    kernel = power_on(CMDLINE, config=config)
    area = kernel.kho.scratch[2]  # the node's, which is tried last
    pa = area.addr + 2 * MIB
    kernel.memory.write(pa, b"lucky")
    kernel.kho.preserve_folios(pa >> PAGE_SHIFT, 0)
    fresh = reboot(kernel)
    assert fresh.kho.restore_folio(pa) == 0
    assert fresh.memory.read(pa, 5) == b"lucky"
