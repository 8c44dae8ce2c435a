"""HVO, hugetlb_cma, demotion, dissolving, the door: how pages of a pool come and go otherwise.

Where a number is not arithmetic it is what a running 7.3.4 showed.
"""

from __future__ import annotations

import pytest

from kernelmodel.errors import Busy, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.memory import GIB
from kernelmodel.mm import hugetlb_sysfs
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.hugetlbfs import HugetlbInode
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import Task
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, power_on, reboot

HVO = "/proc/sys/vm/hugetlb_optimize_vmemmap"
NR = "/proc/sys/vm/nr_hugepages"
GIGANTIC = "/sys/kernel/mm/hugepages/hugepages-1048576kB"


def start(params: str, gib: int = 3, release: str = "7.3.4") -> Kernel:
    return power_on(f"{CMDLINE} {params}", release, (gib * GIB,))


def check(kernel: Kernel) -> None:
    validate_kernel(kernel, [Task(kernel, "nobody")])


def managed(kernel: Kernel) -> int:
    return kernel.page_alloc.managed_pages()


def counters(hstate: Hstate) -> tuple[int, int, int]:
    """Pages, free ones, surplus ones."""
    return hstate.nr_huge_pages, hstate.free_huge_pages, hstate.surplus_huge_pages


# HVO.


def test_small_pages_give_up_eight_frames_for_one() -> None:
    plain, hvo = start("hugepages=20"), start("hugepages=20 hugetlb_free_vmemmap=on")
    assert hugetlb_sysfs.read(hvo.hugetlb, HVO) == "1\n"
    assert managed(hvo) - managed(plain) == 20 * 8  # MemTotal
    free = [kernel.page_alloc.nr_free_pages() for kernel in (hvo, plain)]
    assert free[0] - free[1] == 20 * 7
    assert hvo.hugetlb.vmemmap.extra.total == 20
    check(hvo)
    hugetlb_sysfs.write(hvo.hugetlb, NR, "40")
    assert (managed(hvo) - managed(plain), hvo.hugetlb.vmemmap.extra.total) == (40 * 8, 40)
    hugetlb_sysfs.write(hvo.hugetlb, HVO, "0")
    hugetlb_sysfs.write(hvo.hugetlb, NR, "10")
    assert hvo.hugetlb.vmemmap.extra.total == 250  # 30 have eight again, of the allocator's
    check(hvo)
    hugetlb_sysfs.write(hvo.hugetlb, NR, "40")
    assert hvo.hugetlb.vmemmap.extra.total == 250
    hugetlb_sysfs.write(hvo.hugetlb, NR, "0")
    assert (managed(hvo) - managed(plain), hvo.hugetlb.vmemmap.extra.total) == (40 * 8, 320)
    check(hvo)


def test_gigantic_pages_of_boot_never_get_the_frames() -> None:
    params = "hugepagesz=1G hugepages=2"
    plain, hvo = start(params, 6), start(f"{params} hugetlb_free_vmemmap=on", 6)
    assert hvo.hugetlb.hstate(18).nr_huge_pages == 2
    free = [kernel.page_alloc.nr_free_pages() for kernel in (hvo, plain)]
    assert free[0] - free[1] == 2 * 4095
    check(hvo)
    hugetlb_sysfs.write(hvo.hugetlb, f"{GIGANTIC}/nr_hugepages", "0")
    assert hvo.hugetlb.vmemmap.extra.total == 2 * 4095
    check(hvo)


def test_boot_prepares_64_struct_pages_of_a_gigantic_page_instead_of_262144() -> None:
    spent = []
    for hvo in ("on", "off"):
        kernel = start(f"hugepagesz=1G hugepages=12 hugetlb_free_vmemmap={hvo}", 16)
        assert kernel.hugetlb.hstate(18).nr_huge_pages == 12
        spent.append(kernel.clock.now_ns)
    cost = CostModel.load()
    saved = cost.cost_ns("hugetlb_gather_bootmem", 12) - cost.cost_ns("memmap_init_page", 12 * 64)
    assert spent[1] - spent[0] == pytest.approx(saved, rel=0.01)


def test_a_page_that_cannot_have_its_struct_pages_again_stays_as_surplus() -> None:
    kernel = start("hugepages=20 hugetlb_free_vmemmap=on", 1)
    hstate = kernel.hugetlb.hstate(9)
    hoard, _ = kernel.page_alloc.alloc_upto(0, 1 << 20, movable=True)
    kernel.page_alloc.free_run(hoard[0][0], 6)  # seven would do
    hugetlb_sysfs.write(kernel.hugetlb, NR, "15")
    assert counters(hstate) == (20, 20, 5)
    validate_hugetlb(kernel.hugetlb)
    kernel.page_alloc.free_run(hoard[0][0] + 6, 1)
    hstate.free_folios(hstate.alloc_upto(5, 0)[0])  # the first makes room for the others
    assert counters(hstate) == (15, 15, 0)
    validate_hugetlb(kernel.hugetlb)


def test_dissolving_a_page_without_memory_for_struct_pages_is_refused() -> None:
    kernel = start("hugepages=4 hugetlb_free_vmemmap=on", 1)
    hstate = kernel.hugetlb.hstate(9)
    pfn = next(iter(hstate.nodes[0].free))[0] << 9
    hoard, _ = kernel.page_alloc.alloc_upto(0, 1 << 20, movable=True)
    with pytest.raises(NoMemory):
        hstate.dissolve(pfn)
    assert counters(hstate) == (4, 4, 1)
    for start_pfn, count in hoard:
        kernel.page_alloc.free_run(start_pfn, count)
    hstate.dissolve(pfn)
    assert counters(hstate) == (3, 3, 1)
    check(kernel)


# hugetlb_cma.


@pytest.mark.parametrize(
    ("params", "at_boot", "cma", "warning"),
    [
        ("hugetlb_cma=1G hugepagesz=1G hugepages=1", 0, 1, "skip boot time allocation"),
        ("hugetlb_cma=1G hugetlb_cma_only=1 hugepagesz=1G hugepages=1", 1, 1, ""),
        ("hugetlb_cma=1G hugetlb_cma_only=1 hugepagesz=1G hugepages=2", 1, 1, "1 of 2"),
        ("hugetlb_cma=500M", 0, 0, "cma area must be a multiple of 1024 MiB"),
        ("hugetlb_cma=0:2G,1:1G", 0, 2, "invalid node 1"),
        ("hugetlb_cma=64G", 0, 0, "reservation failed: err -12, node 0"),
    ],
)
def test_gigantic_pages_come_from_the_areas_of_boot(
    params: str, at_boot: int, cma: int, warning: str
) -> None:
    kernel = start(params, 5)
    hstate = kernel.hugetlb.hstate(18)
    assert hstate.nr_huge_pages == at_boot
    assert kernel.page_alloc.nr_free_cma_pages() >= cma - at_boot << 18
    assert any(warning in line for line in kernel.messages) or not warning
    check(kernel)
    for wanted in (cma, 0, cma):
        hugetlb_sysfs.write(kernel.hugetlb, f"{GIGANTIC}/nr_hugepages", str(wanted))
        assert hstate.nr_huge_pages == wanted
        check(kernel)


def test_pages_of_an_area_are_taken_first_and_go_back_to_it() -> None:
    kernel = start("hugetlb_cma=2G", 6)
    free = kernel.page_alloc.nr_free_cma_pages()
    kernel.hugetlb.hstate(18).set_max_huge_pages(3)
    assert kernel.hugetlb.hstate(18).nr_huge_pages == 3
    assert kernel.page_alloc.nr_free_cma_pages() == free - (2 << 18)
    kernel.hugetlb.hstate(18).set_max_huge_pages(0)
    assert kernel.page_alloc.nr_free_cma_pages() == free
    check(kernel)


def test_areas_are_spread_over_nodes() -> None:
    kernel = power_on(f"{CMDLINE} hugetlb_cma=3G", node_bytes=(6 * GIB, 6 * GIB))
    assert [nr >> 18 for _, nr in kernel.hugetlb.cma.areas.values()] == [2, 1]
    check(kernel)


def test_areas_are_made_anew_by_a_kernel_that_was_kexeced() -> None:
    kernel = start("hugetlb_cma=1G", 6)
    for _ in range(2):
        kernel = reboot(kernel)
        assert [nr >> 18 for _, nr in kernel.hugetlb.cma.areas.values()] == [1]
        kernel.hugetlb.hstate(18).set_max_huge_pages(1)
        assert kernel.hugetlb.hstate(18).nr_huge_pages == 1
        check(kernel)


def test_an_area_counts_for_the_default_scratch_which_then_finds_no_room() -> None:
    """Seen on 7.3.4 with 4 GiB: what is reserved for the areas is the kernel's own."""
    kernel = power_on("liveupdate=on hugetlb_cma=1G", node_bytes=(4 * GIB,))
    assert any("disabling KHO" in line for line in kernel.messages)
    assert not kernel.kho.enabled


def test_the_proposal_does_without_the_areas() -> None:
    kernel = start("hugetlb_cma=2G hugepagesz=1G hugepages=2", 6, "7.3.4+hugetlb")
    assert not kernel.hugetlb.cma.areas
    assert kernel.hugetlb.hstate(18).nr_huge_pages == 2
    assert any("hugetlb_cma: disabled" in line for line in kernel.messages)


# Demotion and dissolving.


@pytest.mark.parametrize("hvo", ["on", "off"])
def test_a_gigantic_page_becomes_512_small_ones(hvo: str) -> None:
    kernel = start(f"hugepagesz=1G hugepages=2 hugetlb_free_vmemmap={hvo}", 6)
    hugetlb_sysfs.write(kernel.hugetlb, f"{GIGANTIC}/demote", "1")
    assert hugetlb_sysfs.read(kernel.hugetlb, f"{GIGANTIC}/demote_size") == "2048kB\n"
    assert [counters(h) for h in kernel.hugetlb.hstates.values()] == [(1, 1, 0), (512, 512, 0)]
    check(kernel)
    kernel.hugetlb.hstate(18).reserve(1)
    hugetlb_sysfs.write(kernel.hugetlb, f"{GIGANTIC}/demote", "1")  # promised: nothing happens
    assert kernel.hugetlb.hstate(18).nr_huge_pages == 1
    kernel.hugetlb.hstate(18).unreserve(1)
    hugetlb_sysfs.write(kernel.hugetlb, NR, "0")
    check(kernel)


def test_a_used_or_promised_page_is_not_dissolved() -> None:
    kernel = start("hugepages=2")
    hstate = kernel.hugetlb.hstate(9)
    inode = HugetlbInode(hstate)
    inode.populate(0, 1)
    ((_, used, _),) = inode.folios.runs()
    with pytest.raises(Busy):
        hstate.dissolve(used)
    hstate.reserve(1)
    (free,) = (low << 9 for low, _ in hstate.nodes[0].free)
    with pytest.raises(Busy):
        hstate.dissolve(free)
    hstate.unreserve(1)
    hstate.dissolve(free)
    assert (counters(hstate), hstate.max_huge_pages) == ((1, 0, 0), 1)
    inode.put()
    check(kernel)


# The door.


class Keeper:
    """Lets nobody in or out; says so with an error where that is possible."""

    def __init__(self, *, loud: bool) -> None:
        self.loud = loud

    def may_add(self, order: int, n: int, *, surplus: bool) -> int:
        if self.loud and not surplus:
            raise Busy("pool is frozen", order=order, wanted=n)
        return 0

    def may_remove(self, order: int, n: int, *, surplus: bool) -> int:
        return self.may_add(order, n, surplus=surplus)


def pool_of(pages: int) -> tuple[HugetlbState, Hstate]:
    allocator = PageAllocator([(0, 1 << 17, 0)])
    allocator.free_range(0, 1 << 17)
    state = HugetlbState(f"hugepages={pages}")
    state.init(allocator)
    return state, state.hstate(9)


@pytest.mark.parametrize("loud", [True, False])
def test_a_kept_pool_neither_grows_nor_shrinks(loud: bool) -> None:
    state, hstate = pool_of(8)
    hstate.nr_overcommit_huge_pages = 4
    surplus = HugetlbInode(hstate)
    assert surplus.populate(0, 10) == 10  # two of them surplus
    state.door.keeper = Keeper(loud=loud)
    for wanted in (20, 12, 4, 0):
        if loud:
            with pytest.raises(Busy):
                hstate.set_max_huge_pages(wanted)
        else:
            hstate.set_max_huge_pages(wanted)
        assert hstate.nr_huge_pages == 10
        validate_hugetlb(state)
    with pytest.raises(NoMemory):
        hstate.reserve(1)
    assert surplus.populate(10, 11) == 10
    surplus.put()
    assert (hstate.nr_huge_pages, hstate.free_huge_pages) == (10, 10)
    validate_hugetlb(state)
    if loud:
        with pytest.raises(Busy):
            hstate.set_max_huge_pages(0)
    with pytest.raises(Busy):
        hstate.dissolve(next(iter(hstate.nodes[0].free))[0] << 9)
    state.door.keeper = None
    surplus_left = hstate.surplus_huge_pages
    assert surplus_left == (2 if loud else 0)  # a growing write made them persistent
    hstate.trim_surplus()
    assert hstate.nr_huge_pages == 10 - surplus_left
    validate_hugetlb(state)


def test_sizes_are_a_parameter() -> None:
    """As on arm64 with 4 KiB pages: 64 KiB, 2 MiB, 32 MiB, 1 GiB."""
    allocator = PageAllocator([(0, 1 << 17, 0)])
    allocator.free_range(0, 1 << 17)
    state = HugetlbState(
        "hugepagesz=64K hugepages=5 hugepagesz=2M hugepages=3", (0,), (9, 4, 13, 18)
    )
    state.init(allocator)
    assert {order: h.nr_huge_pages for order, h in state.hstates.items()} == {
        4: 5, 9: 3, 18: 0, 13: 0,
    }  # fmt: skip
    state.hstate(13).set_max_huge_pages(2)
    assert state.hstate(13).nr_huge_pages == 2
    kib = 5 * 64 + 3 * 2048 + 2 * 32 * 1024
    assert f"Hugetlb:           {kib} kB" in state.meminfo()
    validate_hugetlb(state)
