"""KHO: what is handed over, what the next kernel checks, and what can be restored once."""

from __future__ import annotations

import pytest

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import (
    Exists,
    InvalidArgument,
    KernelPanic,
    NoEntry,
    NoMemory,
    TooBig,
)
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.machine import Firmware
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on, reboot


def handed_over(kernel: Kernel) -> tuple[Kernel, Firmware]:
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
    _, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    return kernel, firmware


def next_kernel(kernel: Kernel, firmware: Firmware) -> Kernel:
    return boot(kernel.machine, kernel.release, firmware, kernel.clock, config=CONFIG)


def test_a_fresh_kernel_preserves_its_own_four_pages() -> None:
    kernel = power_on()
    assert kernel.kho.preserved_keys == 4
    names = [node.name for node in kernel.kho._fdt.root.subnodes]
    assert names == ["LUO", "kexec-metadata"]
    assert power_on("").kho.preserved_keys == 2
    assert power_on("kho=off").kho.preserved_keys == 0


def test_the_strings_that_the_fdts_writer_left_stand_at_the_end_of_the_page() -> None:
    kernel = power_on()
    page = kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE)
    assert page[4064:] == b"preserved-memory-map\0compatible\0"
    assert not any(page[285:4064])


@pytest.mark.parametrize(
    ("before", "skip", "value", "why"),
    [
        (b"", 0, b"\0", "magic"),
        (b"kho-v4", 5, b"3", "compatible"),
        (b"kho-v4", 0, b"\0", "compatible"),
        (b"\0\0\0\x08\0\0\0\0", 3, b"\7", "preserved-memory-map"),
        (b"\0\0\0\x08\0\0\0\0", 8, bytes(8), "preserved-memory-map"),
    ],
)
def test_a_handover_that_fails_a_check_is_ignored_and_everything_is_free_memory(
    before: bytes, skip: int, value: bytes, why: str
) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.task.preserve_fd(agent.session("s"), agent.memfd(PAGE_SIZE), 1)
    kernel, firmware = handed_over(kernel)
    at = kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE).index(before) + skip
    kernel.memory.write(kernel.kho.fdt_pa + at, value)
    fresh = next_kernel(kernel, firmware)
    assert fresh.kho.incoming is None
    assert any("disabling KHO revival" in line and why in line for line in fresh.messages)
    assert not list(fresh.kho.tags)
    assert fresh.luo.liveupdate_num == 0
    with pytest.raises(NoEntry):
        Agent(fresh).retrieve("s")


def test_what_is_preserved_can_be_restored_once_by_its_head() -> None:
    kernel = power_on()
    pa = kernel.kho.alloc_preserve(3 * PAGE_SIZE)  # order 2
    single = kernel.kho.alloc_preserve(1)
    kernel.memory.write(pa + 5000, b"kept")
    fresh = reboot(kernel)
    kho, pfn = fresh.kho, pa >> PAGE_SHIFT
    assert fresh.memory.read(pa + 5000, 4) == b"kept"
    assert fresh.page_alloc.nr_free_pages()
    assert not fresh.page_alloc.any_free(pfn, 4)
    assert kho.tag_order(pfn) == 2
    assert kho.tag_order(pfn + 1) is None
    assert kho.restore_folios(pfn + 1, 2) == 0  # not the head
    assert kho.restore_folios(pfn, 0) == 0  # another order than its tag's
    managed = fresh.page_alloc.managed_pages()
    assert kho.restore_folios(pfn, 2) == 1
    assert fresh.page_alloc.managed_pages() == managed + 4
    assert kho.restore_folios(pfn, 2) == 0  # restored already
    fresh.page_alloc.free_pages(pfn, 2)
    kho.restore_free(single)
    assert not any("WARNING" in line for line in fresh.messages)
    kho.restore_free(single)
    assert any("WARNING" in line for line in fresh.messages)
    validate_kernel(fresh, [])


def test_a_run_is_restored_up_to_the_first_page_that_is_not_preserved() -> None:
    kernel = power_on()
    pfn = kernel.page_alloc.alloc_pages(3)
    kernel.kho.preserve_folios(pfn, 0, 3)
    kernel.kho.preserve_folios(pfn + 4, 0, 4)
    kernel.kho.preserve_folios(pfn + 5, 0)  # twice is silent
    fresh = reboot(kernel)
    assert fresh.kho.restore_folios(pfn, 0, 8) == 3
    assert fresh.kho.restore_folios(pfn + 4, 0, 9) == 4


@pytest.mark.parametrize(
    ("size", "order"), [(1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (4 * MIB, 10)]
)
def test_blocks_are_as_large_as_they_must_be(size: int, order: int) -> None:
    kernel = power_on()
    free, keys = kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys
    pa = kernel.kho.alloc_preserve(size)  # and up to five nodes
    assert free - kernel.page_alloc.nr_free_pages() - (1 << order) in range(6)
    assert kernel.kho.outgoing_tree.has(pa >> PAGE_SHIFT, order)  # type: ignore[union-attr]
    kernel.kho.unpreserve_free(pa, order)
    assert kernel.kho.preserved_keys == keys


def test_blocks_of_no_size_or_too_large_a_size_are_refused() -> None:
    kernel = power_on()
    with pytest.raises(InvalidArgument):
        kernel.kho.alloc_preserve(0)
    with pytest.raises(TooBig):
        kernel.kho.alloc_preserve(4 * MIB + 1)


@pytest.mark.parametrize("debug", [True, False])
def test_scratch_is_refused_only_by_a_debug_build(debug: bool) -> None:
    config = KernelConfig(kexec_handover_debug=debug, kernel_bytes=8 * MIB, initrd_bytes=2 * MIB)
    kernel = power_on(config=config)
    area = kernel.kho.scratch[1]
    last = (area.addr + area.size >> PAGE_SHIFT) - 1
    if not debug:
        kernel.kho.preserve_folios(last, 0)
        assert reboot(kernel).kho.tag_order(last) == 0
        return
    for pfn, order in ((last, 0), (area.addr >> PAGE_SHIFT, 0), (last + 1 - 1024, 10)):
        with pytest.raises(InvalidArgument):
            kernel.kho.preserve_folios(pfn, order)
    lowest = min(area.addr for area in kernel.kho.scratch)
    kernel.kho.preserve_folios((lowest >> PAGE_SHIFT) - 1, 0)
    assert kernel.tainted


def test_subtrees_have_names_of_their_own_and_must_fit_the_page() -> None:
    kernel = power_on()
    with pytest.raises(Exists):
        kernel.kho.add_subtree("LUO", 0, 8)
    added = 0
    while len(kernel.kho._fdt.pack()) + 80 < PAGE_SIZE:
        kernel.kho.add_subtree(f"subtree-{added}", added, 8)
        added += 1
    with pytest.raises(NoMemory):
        kernel.kho.add_subtree("x" * 100, added, 8)
    fresh = reboot(kernel)
    assert fresh.kho.retrieve_subtree(f"subtree-{added - 1}") == (added - 1, 8)
    with pytest.raises(NoEntry):
        fresh.kho.retrieve_subtree(f"subtree-{added}")
    with pytest.raises(NoEntry):
        kernel.kho.retrieve_subtree("LUO")  # that one came up cold


def test_a_subtree_with_a_property_of_the_wrong_length_is_invalid() -> None:
    kernel, firmware = handed_over(power_on())
    at = kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE).index(b"LUO\0") + 4
    kernel.memory.write(kernel.kho.fdt_pa + at + 4, b"\0\0\0\4")  # length of blob-size
    kernel.memory.write(kernel.kho.fdt_pa + at + 16, b"\0\0\0\4")  # and a no-op behind it
    with pytest.raises(KernelPanic, match="cannot read the handover"):
        next_kernel(kernel, firmware)


def test_kexecs_and_releases_are_counted_in_the_metadata() -> None:
    kernel = power_on(release="7.3.2")
    assert kernel.kho.kexec_metadata() is None
    for count, release in ((1, "7.3.4"), (2, "7.2.13"), (3, "7.3.4")):
        before = kernel.release.name
        kernel = reboot(kernel, release)
        metadata = kernel.kho.kexec_metadata()
        assert metadata is not None
        assert metadata.kexec_count == count
        assert metadata.previous_release.rstrip(b"\0").decode() == before


@pytest.mark.parametrize("broken", ["version", "size"])
def test_metadata_that_cannot_be_read_starts_counting_anew(broken: str) -> None:
    kernel = reboot(reboot(power_on()))
    node = kernel.kho._fdt.root.subnode("kexec-metadata")
    assert node is not None
    pa = node.u64("preserved-data")
    assert pa is not None
    if broken == "version":
        kernel.memory.write(pa, b"\2")
    else:
        at = kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE).index((73).to_bytes(8, "little"))
        kernel.memory.write_u64(kernel.kho.fdt_pa + at, 72)
    fresh = reboot(kernel)
    assert fresh.kho.kexec_metadata() is None
    again = reboot(fresh).kho.kexec_metadata()
    assert again is not None
    assert again.kexec_count == 1


def test_a_gigabyte_with_anything_preserved_in_it_is_no_scratch() -> None:
    kernel = power_on(node_bytes=(6 * GIB,))
    pfn = (5 * GIB >> PAGE_SHIFT) + 77
    kernel.kho.preserve_folios(pfn, 0)
    nodes = {pa >> 30 for _, pa in kernel.kho.outgoing_nodes()}
    held = {run.pfn << PAGE_SHIFT >> 30 for run in kernel.kho.outgoing_runs()}
    fresh = reboot(kernel)
    marked = {
        block
        for base, end in fresh.memblock.kho_scratch()
        for block in range(-(-base >> 30), end >> 30)
    }
    ram = {1, 2, 4, 5, 6}  # block 0 has a hole
    assert 5 in held
    assert marked == ram - nodes - held


def test_a_gigabyte_with_a_node_of_the_tree_is_no_scratch_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = power_on(node_bytes=(6 * GIB,))
    ((pfn, _),), _ = kernel.page_alloc.alloc_contig(18, 1, 0)
    pages = iter(range(pfn, pfn + 10))

    def page_there() -> int:
        return next(pages) << PAGE_SHIFT

    monkeypatch.setattr(kernel.kho.outgoing_tree, "_alloc_page", page_there)
    held = {run.pfn << PAGE_SHIFT >> 30 for run in kernel.kho.outgoing_runs()}
    block = pfn << PAGE_SHIFT >> 30
    assert block not in held
    kernel.kho.preserve_folios(min(held) << 18, 9)
    fresh = reboot(kernel)
    scratch = list(fresh.memblock.kho_scratch())
    assert scratch
    start, end = block << 30, block + 1 << 30
    # but for the areas that were scratch all along
    marked = [(low, high) for low, high in scratch if low < end and start < high]
    areas = {(area.addr, area.addr + area.size) for area in fresh.kho.scratch}
    assert all(any(a <= low and high <= b for a, b in areas) for low, high in marked)


def test_kho_that_cannot_start_turns_itself_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Kho, _name: str, _pa: int, _size: int) -> None:
        raise NoMemory("injected")

    monkeypatch.setattr(Kho, "add_subtree", refuse)
    kernel = power_on()
    assert not kernel.kho.enabled
    assert kernel.kho.fdt_pa == 0
    assert kernel.kho.preserved_keys == 0
    assert not kernel.luo.enabled or kernel.luo.luo_ser_pa == 0
    validate_kernel(kernel, [])
    with pytest.raises(NoEntry):
        Agent(kernel)
    monkeypatch.undo()
    assert reboot(kernel).kho.incoming is None


@pytest.mark.parametrize("allowed", range(9))
def test_kho_comes_up_whole_or_not_at_all(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, FDT, five nodes, metadata: without one of the eight pages all of it is undone."""
    init, alloc = Kho.init, PageAllocator.alloc_pages

    def failing(kho: Kho) -> None:
        calls = [0]

        def limited(self: PageAllocator, order: int, nid: int = 0) -> int:
            calls[0] += 1
            if calls[0] > allowed:
                raise NoMemory("injected")
            return alloc(self, order, nid)

        with monkeypatch.context() as patch:
            patch.setattr(PageAllocator, "alloc_pages", limited)
            init(kho)

    monkeypatch.setattr(Kho, "init", failing)
    kernel = power_on()
    validate_kernel(kernel, [])
    assert kernel.kho.enabled == (allowed == 8)
    assert kernel.luo.enabled == kernel.kho.enabled
    assert bool(kernel.kho.outgoing_nodes()) == kernel.kho.enabled
    # scratch is for movable pages, or memory like any other
    assert bool(kernel.page_alloc.nr_free_cma_pages()) == kernel.kho.enabled
    monkeypatch.undo()
    assert (reboot(kernel).kho.incoming is None) != (allowed == 8)


def test_keys_beyond_memory_fault_while_the_handover_is_read() -> None:
    kernel, firmware = handed_over(power_on())
    kernel.kho.outgoing_tree.add_run(1 << 40, 0)  # type: ignore[union-attr]
    with pytest.raises(KernelPanic, match="page fault"):
        next_kernel(kernel, firmware)


@pytest.mark.parametrize("nr", [100, 2000])  # read one by one, and many at once
def test_of_pages_here_and_there_the_first_one_beyond_memory_faults(nr: int) -> None:
    kernel, firmware = handed_over(power_on(node_bytes=(320 * MIB,)))
    end = 320 * MIB >> PAGE_SHIFT
    for pfn in range(end - nr, end + 10, 2):
        kernel.kho.outgoing_tree.add_run(pfn, 0)  # type: ignore[union-attr]
    with pytest.raises(KernelPanic, match=f"page fault: no memory map for {end:#x}"):
        next_kernel(kernel, firmware)


def test_preserving_needs_a_tree() -> None:
    with pytest.raises(InvalidArgument):
        power_on("kho=off").kho.preserve_folios(1000, 0)


def test_a_node_that_cannot_be_had_leaves_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = power_on()
    keys = kernel.kho.preserved_keys

    def none_left() -> int:
        raise NoMemory("injected")

    monkeypatch.setattr(kernel.kho.outgoing_tree, "_alloc_page", none_left)
    with pytest.raises(NoMemory):
        kernel.kho.preserve_folios(32_768 - 10, 0, 40)
    assert kernel.kho.preserved_keys == keys
    assert sum(run.nr for run in kernel.kho.outgoing_runs()) == keys
