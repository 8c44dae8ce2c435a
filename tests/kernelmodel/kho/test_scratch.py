"""Scratch: what `kho_scratch=` may say, how large areas become, and what happens without room."""

from __future__ import annotations

import pytest

from kernelmodel.errors import AddressNotAvailable, NoEntry
from kernelmodel.kexec import kexec_file_load
from kernelmodel.kho.scratch import KHO_SCRATCH_ALIGN, ScratchParam, memparse, reserve_scratch
from kernelmodel.memory import GIB, KIB, MIB
from kernelmodel.mm.memblock import Memblock, MemblockFlags
from tests.kernelmodel.kernels import Agent, power_on, reboot

KERN = MemblockFlags.RSRV_KERN


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 * MIB),
        ("0x10K", 16 * KIB),
        ("010", 8),
        ("1g", GIB),
        ("0", 0),
        ("", None),
        ("M", None),
        ("09", None),
        ("1MB", None),
        ("-1", None),
    ],
)
def test_sizes_are_read_as_the_kernel_reads_them(text: str, size: int | None) -> None:
    assert memparse(text) == size


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("150%", ScratchParam(150)),
        ("0%", ScratchParam(0)),
        ("4294967295%", ScratchParam(4294967295)),
        ("32M,128M,16M", ScratchParam(None, 32 * MIB, 128 * MIB, 16 * MIB)),
        ("0,0,1", ScratchParam(None, 0, 0, 1)),
        ("4294967296%", None),
        ("99999999999%", None),
        ("-5%", None),
        ("5 %", None),
        ("0,0,0", None),
        ("1M,2M", None),
        ("1M,2M,3M,4M", None),
        ("1M,2M,3Mx", None),
        ("1M;2M;3M", None),
        ("all", None),
        ("", None),
    ],
)
def test_both_forms_and_nothing_else_are_understood(text: str, param: ScratchParam | None) -> None:
    assert ScratchParam.parse(text) == param


def two_nodes() -> Memblock:
    memblock = Memblock()
    memblock.add(0, 3 * GIB, 0)
    memblock.add(4 * GIB, 4 * GIB, 1)
    return memblock


def test_percent_counts_what_the_kernel_took_huge_pages_left_out() -> None:
    memblock = two_nodes()
    memblock.reserve(MIB, 10 * MIB, flags=KERN)  # below 4 GiB, on no node in particular
    memblock.reserve(2 * GIB, 7 * MIB, nid=0, flags=KERN)
    memblock.reserve(5 * GIB, 20 * MIB, nid=1, flags=KERN)
    memblock.reserve(6 * GIB, GIB, nid=1, flags=KERN | MemblockFlags.RSRV_HUGETLB)
    memblock.reserve(100 * MIB, 50 * MIB)  # not the kernel's own
    array, areas = reserve_scratch(memblock, ScratchParam(150), [0, 1])
    # the array is one page that the kernel takes before; each area counts for those after it
    low = 17 * MIB * 150 // 100
    everything = (37 * MIB + 4096) * 150 // 100
    expected = [low, everything - low, 7 * MIB * 150 // 100, 20 * MIB * 150 // 100]
    # areas on a named node are recorded with that node, the array and the first two with none
    assert [area.size for area in areas] == [round_up(size) for size in expected]
    assert array % 4096 == 0
    assert areas[0].addr + areas[0].size <= 4 * GIB
    assert areas[2].addr < 3 * GIB
    assert areas[3].addr >= 4 * GIB
    assert all(area.addr % KHO_SCRATCH_ALIGN == 0 for area in areas)


def round_up(size: int) -> int:
    return -(-size // (4 * MIB)) * 4 * MIB


def test_sizes_given_are_rounded_to_4_mib_and_pernode_counts_for_each_node() -> None:
    memblock = two_nodes()
    _, areas = reserve_scratch(memblock, ScratchParam(None, 1, 5 * MIB, 8 * MIB), [0, 1])
    assert [area.size for area in areas] == [4 * MIB, 8 * MIB, 8 * MIB, 8 * MIB]
    # top-down: the highest address that fits
    assert areas[0].addr == 3 * GIB - 4 * MIB
    assert areas[1].addr == 8 * GIB - 4 * MIB - 8 * MIB  # the array lies above it
    assert areas[3].addr == areas[1].addr - 8 * MIB


@pytest.mark.parametrize(
    "sizes", ["8G,1M,1M", "1M,8G,1M", "1M,1M,3G"], ids=["low", "global", "node 0"]
)
def test_no_room_for_one_area_gives_all_of_them_back_and_disables_kho(sizes: str) -> None:
    kernel = power_on(f"liveupdate=on kho_scratch={sizes}", node_bytes=(GIB, GIB))
    assert not kernel.kho.enabled
    assert kernel.kho.scratch == []
    assert any("disabling KHO" in line for line in kernel.messages)
    plain = power_on("kho=off", node_bytes=(GIB, GIB))
    assert kernel.page_alloc.nr_free_pages() == plain.page_alloc.nr_free_pages()
    with pytest.raises(NoEntry):
        Agent(kernel)
    # the next kernel is loaded anywhere and told nothing
    assert reboot(kernel).kho.incoming is None


def test_a_parameter_that_cannot_be_read_leaves_the_default() -> None:
    kernel = power_on("kho_scratch=lots", node_bytes=(GIB,))
    default = power_on("", node_bytes=(GIB,))
    assert kernel.kho.scratch == default.kho.scratch
    assert any("kho_scratch=lots" in line for line in kernel.messages)


def test_areas_of_no_size_take_no_image() -> None:
    kernel = power_on("liveupdate=on kho_scratch=0%")
    assert [area.size for area in kernel.kho.scratch] == [0, 0, 0]
    with pytest.raises(AddressNotAvailable):
        kexec_file_load(kernel, kernel.release, "")


def test_scratch_is_handed_on_unchanged_and_only_movable_memory_uses_it() -> None:
    kernel = power_on()
    areas = kernel.kho.scratch
    for _ in range(3):
        kernel = reboot(kernel, cmdline="liveupdate=on kho_scratch=4M,4M,4M")
        assert kernel.kho.scratch == areas
    runs, missing = kernel.page_alloc.alloc_upto(0, 1 << 20)
    assert missing
    assert not any(kernel.kho.scratch_overlap(pfn, nr) for pfn, nr in runs)
    movable, _ = kernel.page_alloc.alloc_upto(0, 1 << 20, movable=True)
    assert any(kernel.kho.scratch_overlap(pfn, nr) for pfn, nr in movable)
