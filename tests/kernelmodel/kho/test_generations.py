"""Chains of kexecs: what is reserved, what is lost for a while, what KHO switched off does."""

from __future__ import annotations

import pytest

from kernelmodel import kexec
from kernelmodel.errors import NoEntry
from kernelmodel.kernel import Kernel
from kernelmodel.memory import GIB, PAGE_SHIFT
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on, reboot


def waiting(kernel: Kernel) -> RangeSet:
    return RangeSet((low, high) for low, high, _ in kernel.kho.tags)


def preserved(kernel: Kernel) -> RangeSet:
    return RangeSet((run.pfn, run.end_pfn) for run in kernel.kho.outgoing_runs())


def own_pages(kernel: Kernel) -> RangeSet:
    """FDT, metadata and table of FLBs: what nobody ever restores."""
    metadata, _ = kernel.kho.outgoing_subtrees["kexec-metadata"]
    pages = (kernel.kho.fdt_pa, metadata, kernel.luo.flbs.outgoing_pa)
    return RangeSet((pa >> PAGE_SHIFT, (pa >> PAGE_SHIFT) + 1) for pa in pages)


def test_three_pages_a_kexec_are_lost_to_one_kernel_and_back_in_the_one_after() -> None:
    kernel, gone = power_on(), RangeSet()
    for _ in range(4):
        old = own_pages(kernel)
        assert old.total == 3
        kernel = reboot(kernel)
        assert waiting(kernel) == old
        for low, high in old:
            assert not kernel.page_alloc.any_free(low, high - low)
            assert not preserved(kernel).overlaps(low, high)
        for low, high in gone:  # those of the kernel before that
            assert not kernel.memblock.is_reserved(low << PAGE_SHIFT, high - low << PAGE_SHIFT)
        validate_kernel(kernel, [])
        gone = old


def test_memory_does_not_shrink_from_update_to_update() -> None:
    """The first KHO boot has less than the cold one, those after it have the same."""
    kernel = power_on()
    seen = []
    for _ in range(5):
        kernel = reboot(kernel)
        seen.append((kernel.page_alloc.managed_pages(), kernel.page_alloc.nr_free_pages()))
    assert len(set(seen)) == 1


def test_preserved_memory_counts_as_this_kernels_when_it_is_restored() -> None:
    kernel = power_on()
    pfn = kernel.page_alloc.alloc_pages(6)
    plain = reboot(power_on()).page_alloc.managed_pages()
    kernel.kho.preserve_folios(pfn, 6)
    fresh = reboot(kernel)
    assert fresh.page_alloc.managed_pages() == plain - 64
    assert fresh.kho.restore_folio(pfn << PAGE_SHIFT) == 6
    assert fresh.page_alloc.managed_pages() == plain
    fresh.page_alloc.free_pages(pfn, 6)
    validate_kernel(fresh, [])


def test_a_session_that_nobody_retrieves_is_held_for_one_kernel_and_lost_with_the_next() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.task.preserve_fd(agent.session("s"), agent.memfd(8 << PAGE_SHIFT, b"x"), 1)
    one = reboot(kernel)
    held = waiting(one)
    assert held.total > 8
    two = reboot(one)
    assert waiting(two) == own_pages(one)
    with pytest.raises(NoEntry):
        Agent(two).retrieve("s")
    assert one.kho.preserved_keys == two.kho.preserved_keys


def test_nodes_of_the_old_tree_are_ordinary_memory_once_it_is_read() -> None:
    kernel = power_on()
    nodes = [pa >> PAGE_SHIFT for _, pa in kernel.kho.outgoing_nodes()]
    fresh = reboot(kernel)
    assert not any(pfn in waiting(fresh) for pfn in nodes)
    assert not any(fresh.memblock.is_reserved(pfn << PAGE_SHIFT) for pfn in nodes)


def test_scratch_is_for_movable_pages_on_every_boot() -> None:
    kernel = power_on(node_bytes=(GIB,))
    areas = sum(area.size for area in kernel.kho.scratch) >> PAGE_SHIFT
    assert kernel.page_alloc.nr_free_cma_pages() == areas
    fresh = reboot(kernel)
    taken = sum(
        high - low
        for area in fresh.kho.scratch
        for low, high in _reserved(fresh, area.addr, area.addr + area.size)
    )
    # less what booting itself took of it
    assert fresh.page_alloc.nr_free_cma_pages() == areas - taken
    assert taken >= CONFIG.kernel_bytes >> PAGE_SHIFT


def _reserved(kernel: Kernel, base: int, end: int) -> list[tuple[int, int]]:
    taken = RangeSet()
    for region in kernel.memblock.reserved.within(base, end):
        taken.add(region.base >> PAGE_SHIFT, -(-region.end >> PAGE_SHIFT))
    return list(taken)


# KHO switched off, for a boot or by what the boot is.


def with_a_session() -> Kernel:
    kernel = power_on()
    agent = Agent(kernel)
    agent.task.preserve_fd(agent.session("s"), agent.memfd(8 << PAGE_SHIFT, b"x"), 1)
    return kernel


def test_kho_off_reserves_what_was_handed_over_and_never_gives_it_back() -> None:
    kernel = with_a_session()
    kept = preserved(kernel)
    off = reboot(kernel, cmdline=f"{CMDLINE} kho=off")
    assert off.kho.incoming is not None
    assert waiting(off) == kept
    assert (off.kho.enabled, off.luo.enabled, off.kho.fdt_pa) == (False, False, 0)
    assert any("KHO is disabled" in line for line in off.messages)
    with pytest.raises(NoEntry):
        Agent(off)
    # the next image may lie anywhere, and the kernel after is told nothing
    kexec.kexec_file_load(off, off.release, CMDLINE)
    assert off.kexec_image is not None
    assert off.kexec_image.segment("scratch") is None
    after = reboot(off, cmdline=CMDLINE)
    assert after.kho.incoming is None
    assert after.luo.liveupdate_num == 0
    assert after.kho.enabled
    assert after.page_alloc.managed_pages() > off.page_alloc.managed_pages()


def test_scratch_is_reserved_anew_when_kho_is_on_again() -> None:
    on = reboot(power_on("kho=off"), cmdline=CMDLINE)
    assert on.kho.incoming is None
    assert len(on.kho.scratch) == 3
    metadata = reboot(on).kho.kexec_metadata()
    assert metadata is not None
    assert metadata.kexec_count == 1


@pytest.mark.parametrize(
    ("words", "enabled"),
    [
        ("kho=off", False),
        ("kho=0", False),
        ("kho=on", True),
        ("kho=off kho=on", True),
        ("kho=off kho=perhaps", False),
        ("kho=perhaps", True),
        ("", True),
    ],
)
def test_the_last_word_about_kho_that_says_something_counts(words: str, enabled: bool) -> None:
    kernel = power_on(f"{CMDLINE} {words}")
    assert kernel.kho.enabled == enabled
    assert kernel.luo.enabled == enabled
    assert bool(kernel.kho.scratch) == enabled


def test_a_kdump_kernel_has_no_kho_and_reserves_nothing_of_a_handover() -> None:
    """As seen on a running 7.3.4 with elfcorehdr=, cold and with a handover."""
    cold = power_on(f"{CMDLINE} elfcorehdr=0x2000000")
    assert (cold.kho.enabled, cold.luo.enabled, cold.kho.scratch) == (False, False, [])
    kdump = reboot(with_a_session(), cmdline=f"{CMDLINE} elfcorehdr=0x2000000")
    assert kdump.kho.incoming is not None
    assert not kdump.kho.enabled
    assert not waiting(kdump)
    assert any("kdump" in line for line in kdump.messages)
    assert any("KHO is disabled" in line for line in kdump.messages)


def test_before_7_3_a_kdump_kernel_is_like_any_other() -> None:
    kernel = power_on(f"{CMDLINE} elfcorehdr=0x2000000", "7.2.13")
    assert kernel.kho.enabled
    assert kernel.kho.scratch
