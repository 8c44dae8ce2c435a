"""Scratch: what `kho_scratch=` may say, how large areas become, and what happens without room."""

from __future__ import annotations

import pytest

from kernelmodel.errors import AddressNotAvailable, NoEntry, NoMemory
from kernelmodel.kexec import kexec_file_load
from kernelmodel.kho.radix_walk import IncomingTree
from kernelmodel.kho.scratch import (
    KHO_SCRATCH_ALIGN,
    ScratchParam,
    extend_scratch,
    memparse,
    reserve_scratch,
)
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, MemoryRange, PhysicalMemory
from kernelmodel.mm.memblock import Memblock, MemblockFlags
from tests.kernelmodel.kernels import CONFIG, Agent, power_on, reboot

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
        ("0x", None),
        ("017M", 15 * MIB),
        ("99999999999999999999", (1 << 64) - 1),  # more than 64 bits is as much as they hold
        ("18446744073709551615K", (1 << 64) - 1),
        ("16E", (1 << 64) - 1),
        ("15E", 15 << 60),
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
        ("+5%", ScratchParam(5)),
        ("0000000050%", ScratchParam(50)),
        ("+000000050%", ScratchParam(50)),
        ("0x800000,8M,8k", ScratchParam(None, 8 * MIB, 8 * MIB, 8 * KIB)),
        ("18446744073709551615,1,8M", ScratchParam(None, (1 << 64) - 1, 1, 8 * MIB)),
        ("18446744073709551615,1,0", None),  # the sum is 0, in 64 bits
        ("00000000050%", None),  # eleven characters are too many
        ("+0000000050%", None),
        ("0x10%", None),
        ("%", None),
        ("200%x", None),
        ("8M,,4M", None),
        ("8M,4M,", None),
        ("8M, 4M,4M", None),
        ("8M,8M,-8M", None),
        ("M,8M,8M", None),
        ("08M,8M,8M", None),
        ("1M", None),
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


def test_the_areas_of_a_running_7_3_4_with_two_nodes_come_out_of_what_it_reserved() -> None:
    """Its log had these sums; without the nodes of image and initrd node 1 would get 36 MiB."""
    memblock = Memblock()
    memblock.add(MIB, GIB - MIB, 0)
    memblock.add(GIB, GIB, 1)
    memblock.reserve(0x69800000, 0x800000, flags=KERN)  # image
    memblock.reserve(0x7FBF3000, 0x3ED000, flags=KERN)  # initrd
    memblock.set_reserved_nodes()
    memblock.reserve(16 * MIB, 0x102C380, nid=0, flags=KERN)
    memblock.reserve(GIB, 0x1028380, nid=1, flags=KERN)
    memblock.reserve(64 * MIB, 0x11CEA8, flags=KERN)
    _, areas = reserve_scratch(memblock, ScratchParam(), [0, 1])
    assert [area.size for area in areas] == [0x5C00000, 0, 0x2400000, 0x3C00000]


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


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ("kho_scratch=8M,8M,8M kho_scratch=bad", [8, 8, 8]),
        ("kho_scratch=20% kho_scratch=8M,8M,8M", [8, 8, 8]),
        ("kho_scratch=1,1,1", [4, 4, 4]),
        ("kho_scratch=0,0,1", [0, 0, 4]),
        # rounding up what is nearly 2**64 gives nothing
        ("kho_scratch=18446744073709551615,1,8M", [0, 4, 8]),
    ],
)
def test_the_last_word_that_can_be_read_counts(words: str, sizes: list[int]) -> None:
    kernel = power_on(f"liveupdate=on {words}")
    assert [area.size // MIB for area in kernel.kho.scratch] == sizes


def test_a_percentage_after_sizes_counts_too() -> None:
    sizes = power_on("kho_scratch=48M,44M,44M kho_scratch=20%", node_bytes=(GIB,)).kho.scratch
    assert sizes == power_on("kho_scratch=20%", node_bytes=(GIB,)).kho.scratch


@pytest.mark.parametrize("percent", [50, 100, 200])
def test_the_default_is_200_percent_of_what_boot_took_and_of_each_nodes_share(
    percent: int,
) -> None:
    """Most of it is struct pages, a 64th of memory, and that is the node's: 400 % in all."""
    kernel = power_on(
        "" if percent == 200 else f"kho_scratch={percent}%", node_bytes=(8 * GIB, 24 * GIB)
    )
    low, globl, *per_node = [area.size for area in kernel.kho.scratch]
    memmap = 32 * GIB // 64
    image = CONFIG.kernel_bytes  # on node 0; page tables and CPUs' areas are 2 MiB
    assert low + globl == pytest.approx((memmap + image) * percent / 100, abs=10 * MIB)
    for size, own in zip(per_node, (8 * GIB // 64 + image, 24 * GIB // 64), strict=True):
        assert size == pytest.approx(own * percent / 100, abs=5 * MIB)
        assert size % KHO_SCRATCH_ALIGN == 0


def test_the_array_has_low_global_and_the_nodes_in_their_order_each_on_its_own() -> None:
    kernel = power_on("kho_scratch=16M,64M,8M", node_bytes=(6 * GIB, 2 * GIB, 2 * GIB))
    low, globl, *per_node = kernel.kho.scratch
    assert low.addr + low.size <= 4 * GIB
    assert kernel.page_alloc.pfn_to_nid(globl.addr >> PAGE_SHIFT) == 2  # as high as can be
    assert [kernel.page_alloc.pfn_to_nid(area.addr >> PAGE_SHIFT) for area in per_node] == [0, 1, 2]
    array = kernel.memory.read
    fresh = reboot(kernel)
    raw = array(fresh.kho.scratch_array_pa, 16 * 5)
    assert raw == b"".join(area.pack() for area in kernel.kho.scratch)


def test_a_node_without_memory_has_no_area() -> None:
    kernel = power_on("kho_scratch=16M,64M,8M", node_bytes=(GIB, 0, GIB))
    assert len(kernel.kho.scratch) == 4
    assert len(reboot(kernel).kho.scratch) == 4


def test_a_kho_boot_computes_nothing_whatever_the_command_line_says() -> None:
    kernel = power_on("liveupdate=on kho_scratch=16M,64M,8M", node_bytes=(GIB,))
    before = kernel.kho.scratch
    for words in ("kho_scratch=900M,900M,900M", "kho_scratch=0%", "kho_scratch=junk", ""):
        kernel = reboot(kernel, cmdline=f"liveupdate=on {words}")
        assert kernel.kho.scratch == before
        assert kernel.kho.enabled
        assert kernel.messages == []


def test_an_extension_that_finds_no_page_to_note_in_is_given_up() -> None:
    memblock = Memblock()
    memblock.add(MIB, 4 * GIB, 0)
    memory = PhysicalMemory((MemoryRange(0, 5 * GIB, 0),))
    tree = IncomingTree(memory, 2 * GIB, 5 * GIB >> PAGE_SHIFT)  # an empty tree: one node
    memblock.mark_kho_scratch(GIB, 5 * 4096)
    memblock.set_kho_scratch_only()
    with pytest.raises(NoMemory):
        extend_scratch(memblock, tree)
    assert list(memblock.kho_scratch()) == [(GIB, GIB + 5 * 4096)]
    assert not memblock.is_reserved(GIB, 5 * 4096)
    memblock.mark_kho_scratch(GIB, 6 * 4096)
    assert extend_scratch(memblock, tree) == 0
    # all but the node's gigabyte; what was scratch before still is
    assert list(memblock.kho_scratch()) == [(MIB, 2 * GIB), (3 * GIB, 4 * GIB + MIB)]
    assert not memblock.is_reserved(MIB, 4 * GIB)


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


def test_a_memory_map_is_made_of_pieces_where_no_area_holds_all_of_it() -> None:
    """96 MiB of struct pages; each GiB has a page that is preserved, which leaves scratch."""
    kernel = power_on("liveupdate=on kho_scratch=48M,44M,44M", node_bytes=(6 * GIB,))
    for gib in (0, 1, 2, 4, 5, 6):
        kernel.kho.preserve_folios((gib * GIB >> PAGE_SHIFT) + 12345, 0)
    fresh = reboot(kernel)
    assert fresh.kho.incoming is not None
    assert fresh.page_alloc.managed_pages() > 5 * GIB >> PAGE_SHIFT
