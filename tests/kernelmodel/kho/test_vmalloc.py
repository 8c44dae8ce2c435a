"""vmalloc areas across kexec: chunks of 511 entries, and chains that do not add up."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import KernelPanic, NoMemory, NotSupported
from kernelmodel.kernel import Kernel
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.kho.vmalloc import (
    _chunk_runs,
    _entries,
    preserve_vmalloc,
    restore_vmalloc,
    unpreserve_vmalloc,
)
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.vmalloc import VmallocArea, VmFlags, vfree, vmalloc
from kernelmodel.validate import validate_kernel
from tests.conformance.kho_reader import vmalloc_bytes
from tests.kernelmodel.kernels import power_on, reboot

PER_CHUNK = 511


def chunks(kernel: Kernel, ser: KhoVmalloc) -> list[int]:
    found, at = [], ser.first
    while at:
        found.append(at)
        at = kernel.memory.u64(at)
    return found


def preserved(pages: int) -> tuple[Kernel, KhoVmalloc]:
    kernel = power_on()
    area = vmalloc(kernel.page_alloc, pages * PAGE_SIZE)
    index = 0
    for pfn, nr in area.extents:
        for frame in range(pfn, pfn + nr):
            kernel.memory.write_u64(frame << PAGE_SHIFT, index)
            index += 1
    return kernel, preserve_vmalloc(kernel.kho, area)


@pytest.mark.parametrize(
    ("pages", "nr_chunks"),
    [(1, 1), (510, 1), (511, 2), (512, 2), (1021, 2), (1022, 3), (1023, 3)],
)
def test_a_list_of_a_multiple_of_511_ends_with_an_empty_chunk(pages: int, nr_chunks: int) -> None:
    kernel, ser = preserved(pages)
    found = chunks(kernel, ser)
    assert len(found) == nr_chunks
    entries = [sum(map(bool, page_words(kernel, chunk)[1:])) for chunk in found]
    assert entries == [min(PER_CHUNK, pages - n * PER_CHUNK) for n in range(nr_chunks)]
    data = vmalloc_bytes(kernel.memory.read, ser.pack())
    assert [
        int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), PAGE_SIZE)
    ] == list(range(pages))
    fresh = reboot(kernel)
    area = restore_vmalloc(fresh.kho, ser)
    assert area is not None
    assert area.nr_pages == pages
    first, _ = area.extents[0]
    assert fresh.memory.u64(first << PAGE_SHIFT) == 0
    vfree(fresh.page_alloc, area)
    validate_kernel(fresh, [])


def page_words(kernel: Kernel, pa: int) -> list[int]:
    page = kernel.memory.read(pa, PAGE_SIZE)
    return [int.from_bytes(page[at : at + 8], "little") for at in range(0, PAGE_SIZE, 8)]


def test_unpreserving_gives_the_chunks_back_and_leaves_the_area() -> None:
    kernel = power_on()
    free, keys = kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys
    area = vmalloc(kernel.page_alloc, 600 * PAGE_SIZE)
    ser = preserve_vmalloc(kernel.kho, area)
    assert kernel.kho.preserved_keys == keys + 602
    unpreserve_vmalloc(kernel.kho, ser, area)
    assert kernel.kho.preserved_keys == keys
    vfree(kernel.page_alloc, area)
    assert kernel.page_alloc.nr_free_pages() == free
    validate_kernel(kernel, [])


@pytest.mark.parametrize("allowed", range(5))
def test_a_preserve_that_fails_half_way_is_undone(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = power_on()
    area = vmalloc(kernel.page_alloc, 1000 * PAGE_SIZE)
    unpreserve_vmalloc(kernel.kho, preserve_vmalloc(kernel.kho, area), area)  # nodes stay
    free, keys = kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys
    preserve, calls = Kho.preserve_folios, [0]

    def limited(self: Kho, pfn: int, order: int, nr: int = 1) -> None:
        calls[0] += 1
        if calls[0] > allowed:
            raise NoMemory("injected")
        preserve(self, pfn, order, nr)

    monkeypatch.setattr(Kho, "preserve_folios", limited)
    if allowed < 4:  # chunk, 511 pages, chunk, the rest
        with pytest.raises(NoMemory):
            preserve_vmalloc(kernel.kho, area)
    monkeypatch.undo()
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == (free, keys)
    vfree(kernel.page_alloc, area)
    validate_kernel(kernel, [])


@pytest.mark.parametrize(
    "broken",
    ["too few pages", "too many pages", "no pages", "not preserved", "chunk is lost", "a ring"],
)
def test_a_chain_that_is_not_what_it_says_restores_nothing(broken: str) -> None:
    kernel, ser = preserved(600)
    _, second = chunks(kernel, ser)
    if broken == "too few pages":
        ser = replace(ser, total_pages=601)
    elif broken == "too many pages":
        ser = replace(ser, total_pages=599)
    elif broken == "no pages":
        ser = KhoVmalloc(0, 0, 1, 0)
    elif broken == "not preserved":
        kernel.kho.unpreserve_folios(page_words(kernel, second)[5] >> PAGE_SHIFT, 0)
    elif broken == "chunk is lost":
        kernel.kho.unpreserve_folios(second >> PAGE_SHIFT, 0)
    else:
        kernel.memory.zero(second >> PAGE_SHIFT, 1)
        kernel.memory.write_u64(second, second)
    fresh = reboot(kernel)
    assert restore_vmalloc(fresh.kho, ser) is None


def test_a_chunk_that_is_lost_costs_the_pages_that_it_names() -> None:
    """They are restored before the chunk itself is found to be nobody's, and leak."""
    kernel, ser = preserved(3)
    pages = [word >> PAGE_SHIFT for word in page_words(kernel, ser.first)[1:4]]
    kernel.kho.unpreserve_folios(ser.first >> PAGE_SHIFT, 0)
    fresh = reboot(kernel)
    managed = fresh.page_alloc.managed_pages()
    assert restore_vmalloc(fresh.kho, ser) is None
    assert fresh.page_alloc.managed_pages() == managed + 3
    assert [fresh.kho.tag_order(pfn) for pfn in pages] == [None] * 3
    assert not any(fresh.page_alloc.any_free(pfn) for pfn in pages)


def test_a_chunk_behind_all_memory_faults() -> None:
    kernel, ser = preserved(3)
    with pytest.raises(KernelPanic, match="page fault"):
        restore_vmalloc(reboot(kernel).kho, replace(ser, first=1 << 50))


@pytest.mark.parametrize("flags", [VmFlags.IOREMAP, VmFlags.MAP, VmFlags.ALLOC | VmFlags.USERMAP])
def test_only_allocated_memory_can_be_preserved(flags: int) -> None:
    kernel = power_on()
    keys = kernel.kho.preserved_keys
    area = vmalloc(kernel.page_alloc, PAGE_SIZE)._replace(flags=flags)
    with pytest.raises(NotSupported):
        preserve_vmalloc(kernel.kho, area)
    assert kernel.kho.preserved_keys == keys


@pytest.mark.parametrize("order", [1, 3, 9])
def test_areas_of_larger_blocks_have_a_key_and_an_entry_for_each(order: int) -> None:
    kernel = power_on()
    keys = kernel.kho.preserved_keys
    runs = kernel.page_alloc.alloc_bulk(order, 5)
    flags = VmFlags.ALLOC | VmFlags.ALLOW_HUGE_VMAP
    area = VmallocArea(tuple((pfn, nr << order) for pfn, nr in runs), order, flags)
    last = area.extents[-1][0] + area.extents[-1][1] - 1 << PAGE_SHIFT
    kernel.memory.write(last, b"end")
    unpreserve_vmalloc(kernel.kho, preserve_vmalloc(kernel.kho, area), area)
    assert kernel.kho.preserved_keys == keys
    ser = preserve_vmalloc(kernel.kho, area)
    assert (ser.total_pages, ser.flags, ser.order) == (5 << order, 3, order)
    assert kernel.kho.preserved_keys == keys + 5 + 1
    blocks = [pfn + (n << order) for pfn, nr in runs for n in range(nr)]
    assert [word >> PAGE_SHIFT for word in page_words(kernel, ser.first)[1:7]] == [*blocks, 0]
    fresh = reboot(kernel)
    back = restore_vmalloc(fresh.kho, ser)
    assert back is not None
    assert (back.order, back.flags, back.nr_pages) == (order, flags, 5 << order)
    assert fresh.memory.read(last, 3) == b"end"
    vfree(fresh.page_alloc, back)
    validate_kernel(fresh, [])


def test_unknown_flags_are_passed_over() -> None:
    kernel, ser = preserved(3)
    assert restore_vmalloc(reboot(kernel).kho, replace(ser, flags=0xFFFF)) is not None


@pytest.mark.parametrize("order", [1, 5, 10, 31, 63, 65535])
def test_an_absurd_order_restores_nothing(order: int) -> None:
    kernel, ser = preserved(3)
    assert restore_vmalloc(reboot(kernel).kho, replace(ser, order=order)) is None


@pytest.mark.parametrize("nr", [0, 1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("order", [0, 3])
def test_a_short_list_is_written_and_read_as_a_long_one(nr: int, order: int) -> None:
    """Adjacent blocks, then single ones: the list's length says how it is handled."""
    kernel = power_on()
    chunk = kernel.get_zeroed_page()
    blocks = [0x1000 + (n << order) for n in range(nr // 2)]
    blocks += [0x9000 + (2 * n << order) for n in range(nr - nr // 2)]
    for slot, pfn in enumerate(blocks, 1):
        kernel.memory.write_u64(chunk + 8 * slot, pfn << PAGE_SHIFT)
    page = kernel.memory.read(chunk, PAGE_SIZE)
    for most in (0, 1, nr // 2, nr, PER_CHUNK, PER_CHUNK + 1):  # so many are needed
        runs = _chunk_runs(page, order, most)
        assert [pfn + (n << order) for pfn, found in runs for n in range(found)] == blocks
        assert len(runs) == (nr > 1) + nr - nr // 2
    adjacent = b"".join(
        (0x1000 + (n << order) << PAGE_SHIFT).to_bytes(8, "little") for n in range(nr)
    )
    assert _entries(0x1000, order, nr) == adjacent


@pytest.mark.parametrize("nr", [1, 2, 16, 17, 510, 511])
@pytest.mark.parametrize("order", [0, 3])
def test_adjacent_blocks_are_one_run_whatever_is_asked_for(nr: int, order: int) -> None:
    page = (bytes(8) + _entries(0x1000, order, nr)).ljust(PAGE_SIZE, b"\0")
    for most in (0, nr - 1, nr, nr + 1, 600):
        assert _chunk_runs(page, order, most) == [(0x1000, nr)]


def test_entries_that_no_kernel_wrote_are_taken_as_they_are() -> None:
    odd = [(1 << 64) - 1, 0x5123, 0x6FFF]  # behind all memory, or not the address of a page
    page = struct.pack("<4Q", 0, *odd).ljust(PAGE_SIZE, b"\0")
    expected = [((1 << 52) - 1, 1), (5, 2)]
    assert [_chunk_runs(page, 0, most) for most in range(4)] == [expected] * 4
