"""Scratch and the gigantic pages of early boot: what releases before 7.3 got wrong.

Seen on a running 7.3.4 with 7 GiB: of six pages asked for, four on the first boot and four on each
KHO boot. That a KHO boot got none before is what the patches that changed it say.
"""

from __future__ import annotations

import pytest

from kernelmodel.boot import boot
from kernelmodel.errors import KernelPanic
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, MemoryRange
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from tests.kernelmodel.kernels import CONFIG, power_on, reboot

GIGANTIC = 18
SIX = "hugepagesz=1G hugepages=6"
SCRATCH = "kho_scratch=256M,512M,256M"
#: As QEMU has it with 7 GiB: tables of the firmware at the top of the low part.
MAP = (
    MemoryRange(0, 640 * KIB, 0),
    MemoryRange(MIB, 3 * GIB - 128 * KIB - MIB, 0),
    MemoryRange(4 * GIB, 4 * GIB, 0),
)


def seven_gib(release: str, cmdline: str) -> Kernel:
    machine = Machine(MachineSpec((7 * GIB,), 2))
    firmware = Firmware(f"liveupdate=on {cmdline}", MAP)
    clock = Clock(CostModel.load(), 2, 0)
    return boot(machine, CATALOGUE[release], firmware, clock, config=CONFIG)


def gigantic(kernel: Kernel) -> int:
    return kernel.hugetlb.hstates[GIGANTIC].nr_huge_pages


@pytest.mark.parametrize(("release", "under_kho"), [("7.2.13", 0), ("7.3.4", 4)])
def test_seven_gib_that_are_asked_for_six_pages(release: str, under_kho: int) -> None:
    kernel = seven_gib(release, f"{SIX} {SCRATCH}")
    assert gigantic(kernel) == 4
    for _ in range(2):
        kernel = reboot(kernel)
        assert kernel.kho.incoming is not None
        assert gigantic(kernel) == under_kho


@pytest.mark.parametrize("scratch", [SCRATCH, "kho_scratch=256M,2G,64M"])
def test_pages_of_a_kho_boot_lie_outside_scratch_and_can_be_preserved(scratch: str) -> None:
    """Also where whole GiB of scratch would have room for them."""
    kernel = reboot(seven_gib("7.3.4", scratch), cmdline=f"liveupdate=on {SIX}")
    assert gigantic(kernel) >= 1
    node = kernel.hugetlb.hstates[GIGANTIC].nodes[0]
    for low, high in node.owned:
        assert not kernel.kho.scratch_overlap(low << GIGANTIC, (high - low) << GIGANTIC)


def test_before_7_3_a_page_of_a_kho_boot_comes_from_scratch_itself() -> None:
    """Scratch that is large enough holds gigantic pages, which can never be preserved."""
    kernel = seven_gib("7.2.13", "kho_scratch=256M,2560M,64M hugepagesz=1G hugepages=1")
    fresh = reboot(kernel)
    assert gigantic(fresh) == 1
    ((low, high),) = fresh.hugetlb.hstates[GIGANTIC].nodes[0].owned
    areas = RangeSet(
        (area.addr >> PAGE_SHIFT, area.addr + area.size >> PAGE_SHIFT) for area in fresh.kho.scratch
    )
    assert areas.contains(low << GIGANTIC, high << GIGANTIC)


def test_the_extension_is_new_in_7_3() -> None:
    cmdline = "liveupdate=on kho_scratch=64M,256M,64M"
    old = reboot(power_on(cmdline, "7.2.13", node_bytes=(6 * GIB,)))
    new = reboot(power_on(cmdline, "7.3.4", node_bytes=(6 * GIB,)))
    areas = RangeSet((area.addr, area.addr + area.size) for area in old.kho.scratch)
    assert RangeSet(old.memblock.kho_scratch()) == areas
    assert sum(end - base for base, end in new.memblock.kho_scratch()) > 4 * GIB


@pytest.mark.parametrize("release", ["6.19", "7.2.13"])
def test_before_7_3_huge_pages_beyond_a_fifth_of_memory_disable_kho(release: str) -> None:
    """They count twice 200 %, so a share h of memory needs room for 5 h."""

    def enabled(pages: int) -> bool:
        cmdline = f"liveupdate=on hugepagesz=1G hugepages={pages}"
        kernel = power_on(cmdline, release, node_bytes=(64 * GIB,))
        assert gigantic(kernel) == pages
        said = any("disabling KHO" in line for line in kernel.messages)
        assert kernel.kho.enabled != said
        if kernel.kho.enabled:
            assert sum(area.size for area in kernel.kho.scratch) > 4 * pages * GIB
        return kernel.kho.enabled

    assert enabled(9)
    assert not enabled(13)


def test_without_the_extension_a_boot_that_needs_more_than_scratch_panics() -> None:
    """The memory map alone is a 64th of memory."""
    with pytest.raises(KernelPanic, match="out of memory"):
        reboot(power_on(release="7.2.13", node_bytes=(6 * GIB,)))
    assert reboot(power_on(release="7.3.4", node_bytes=(6 * GIB,))).kho.incoming is not None


def test_since_7_3_huge_pages_do_not_count() -> None:
    few = power_on("hugepagesz=1G hugepages=1", node_bytes=(64 * GIB,))
    many = power_on("hugepagesz=1G hugepages=48", node_bytes=(64 * GIB,))
    assert many.kho.enabled
    assert [area.size for area in few.kho.scratch] == [area.size for area in many.kho.scratch]
