"""The examples that the RFC of December 2025 gives for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernelmodel.boot import boot
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import GIB, KIB, MIB
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on, reboot

HUGE = 2 * MIB
RELEASE = "7.3.4+hugetlb"


def start(hugepages: str, node_bytes: tuple[int, ...] = (512 * MIB,)) -> Agent:
    return Agent(power_on(f"{CMDLINE} {hugepages}", RELEASE, node_bytes))


def seven_gib(release: str) -> Kernel:
    """7 GiB as QEMU gives them: firmware's tables lie at the end of what is below 4 GiB."""
    machine = Machine(MachineSpec((7 * GIB,), 2))
    scratch = "kho_scratch=32M,256M,256M"  # before it was extended, all of early boot had to fit
    firmware = machine.cold_firmware(f"liveupdate=on {scratch} hugepagesz=1G hugepages=6")
    memory_map = tuple(
        replace(ram, size=ram.size - 128 * KIB) if ram.end == 3 * GIB else ram
        for ram in firmware.memory_map
    )
    firmware = replace(firmware, memory_map=memory_map)
    clock = Clock(CostModel.load(), 2, 0)
    return boot(machine, CATALOGUE[release], firmware, clock, config=CONFIG)


def preserve(agent: Agent, pages: int, log2: int = 21) -> None:
    """A session "s" with one file."""
    fd = agent.task.memfd_create(MFD_HUGETLB | log2 << MFD_HUGE_SHIFT)
    agent.task.ftruncate(fd, pages << log2)
    agent.task.preserve_fd(agent.session("s"), fd, 1)


def next_kernel(agent: Agent, hugepages: str, release: str = "") -> Kernel:
    return reboot(agent.kernel, release, f"{CMDLINE} {hugepages}")


def pool(kernel: Kernel, order: int = 9) -> tuple[int, int]:
    """Pages in the pool, and how many the pool is set to be."""
    hstate = kernel.hugetlb.hstate(order)
    return hstate.nr_huge_pages, hstate.max_huge_pages


def retrieved(kernel: Kernel) -> Agent:
    agent = Agent(kernel)
    session = agent.retrieve("s")
    agent.task.retrieve_fd(session, 1)
    agent.task.close(session)
    return agent


def test_of_90_pages_asked_for_5_come_back_and_85_are_allocated() -> None:
    agent = start("hugepages=90")
    preserve(agent, 5)
    kernel = next_kernel(agent, "hugepages=90")
    assert pool(kernel)[0] == 85
    after = retrieved(kernel)
    assert pool(kernel) == (90, 90)
    validate_kernel(kernel, [after.task])


def test_a_kernel_that_does_not_know_of_them_ends_up_with_95() -> None:
    """Were it able to read the files: here it allocates all 90 and the 5 are lost to it."""
    agent = start("hugepages=90")
    preserve(agent, 5)
    kernel = next_kernel(agent, "hugepages=90", "7.3.4")
    assert pool(kernel)[0] == 90
    lost = sum(high - low for low, high, order in kernel.kho.tags if order == 9)
    assert pool(kernel)[0] + (lost >> 9) == 95


def test_without_the_count_every_update_allocates_too_many() -> None:
    agent = start("hugepages=20")
    for update in range(1, 4):
        preserve(agent, 5)
        agent.kernel.luo.flbs.registered[0].name = "hugetlb-v0"  # boot finds no count
        kernel = next_kernel(agent, "hugepages=20")
        lost = sum(high - low for low, high, order in kernel.kho.tags if order == 9) >> 9
        assert (pool(kernel)[0], lost) == (20, 5)
        assert kernel.luo.liveupdate_num == update
        agent = Agent(kernel)


def test_more_preserved_than_asked_for_raises_the_pool_with_a_warning() -> None:
    agent = start("hugepages=20")
    preserve(agent, 12)
    kernel = next_kernel(agent, "hugepages=4")
    assert any("12 pages preserved, 4 asked for" in line for line in kernel.messages)
    assert pool(kernel)[0] == 0
    after = retrieved(kernel)
    assert pool(kernel) == (12, 12)
    validate_kernel(kernel, [after.task])


def test_pages_by_node_fall_back_to_pages_in_all_with_a_warning() -> None:
    agent = start("hugepages=0:10,1:30", (512 * MIB, 512 * MIB))
    hstate = agent.kernel.hugetlb.hstate(9)
    assert [node.nr_huge_pages for node in hstate.nodes.values()] == [10, 30]
    preserve(agent, 6)
    kernel = next_kernel(agent, "hugepages=0:10,1:30")
    assert any("nodes are not heeded" in line for line in kernel.messages)
    nodes = kernel.hugetlb.hstate(9).nodes.values()
    assert [node.nr_huge_pages for node in nodes] == [17, 17]


def test_hugetlb_cma_is_disabled_where_live_updates_are_on() -> None:
    cmdline = f"{CMDLINE} hugetlb_cma=1G hugepagesz=1G hugepages=1"
    with_updates = power_on(cmdline, RELEASE, (4 * GIB,))
    assert pool(with_updates, 18)[0] == 1
    assert not with_updates.hugetlb.cma.areas
    without = power_on(cmdline.replace("liveupdate=on", ""), RELEASE, (4 * GIB,))
    assert pool(without, 18)[0] == 0
    assert without.hugetlb.cma.areas


@pytest.mark.parametrize(("release", "after_kexec"), [("7.3.4+hugetlb", 4), ("7.2.13", 0)])
def test_six_gigantic_pages_on_a_machine_of_7_gib(release: str, after_kexec: int) -> None:
    """4 fit; under KHO there were none before scratch was extended, and 4 since."""
    kernel = seven_gib(release)
    assert pool(kernel, 18) == (4, 4)
    assert any("4 of 6 huge pages allocated" in line for line in kernel.messages)
    fresh = reboot(kernel)
    assert pool(fresh, 18) == (after_kexec, after_kexec)


def test_preserved_gigantic_pages_count_among_the_six() -> None:
    agent = Agent(seven_gib(RELEASE))
    preserve(agent, 3, 30)
    kernel = reboot(agent.kernel)
    assert pool(kernel, 18) == (1, 1)
    after = retrieved(kernel)
    assert pool(kernel, 18)[0] == 4
    validate_kernel(kernel, [after.task])


def test_nothing_is_stored_while_no_huge_page_is_preserved() -> None:
    agent = start("hugepages=8")
    keys = agent.kernel.kho.preserved_keys
    session = agent.session("plain")
    agent.task.preserve_fd(session, agent.memfd(4096, b"x"), 1)
    flb = agent.kernel.luo.flbs.registered[0]
    assert (flb.outgoing_count, flb.outgoing_data) == (0, 0)
    agent.task.close(session)
    assert agent.kernel.kho.preserved_keys == keys


def test_struct_pages_of_preserved_pages_are_given_up_again_by_each_kernel() -> None:
    """HVO: 4096 frames for a gigantic page until it is retrieved, one from then on."""
    params = "hugetlb_free_vmemmap=on hugepagesz=1G hugepages=3 hugepagesz=2M hugepages=4"
    agent = start(params, (6 * GIB,))
    free = agent.kernel.page_alloc.nr_free_pages()
    for _ in range(4):
        preserve(agent, 2, 30)
        kernel = reboot(agent.kernel)
        assert [pool(kernel, order)[0] for order in (18, 9)] == [1, 4]
        before = kernel.page_alloc.nr_free_pages()
        agent = retrieved(kernel)
        assert [pool(kernel, order)[0] for order in (18, 9)] == [3, 4]
        given_up = kernel.page_alloc.nr_free_pages() - before
        assert given_up == pytest.approx(2 * 4095, abs=16)
        assert kernel.page_alloc.nr_free_pages() == pytest.approx(free, abs=1024)
        validate_kernel(kernel, [agent.task])
        agent.task.exit()
        agent = Agent(kernel)


def test_giving_struct_pages_up_again_takes_time() -> None:
    """4096 frames for each gigantic page that is retrieved."""
    took = {}
    for hvo in ("on", "off"):
        agent = start(f"hugetlb_free_vmemmap={hvo} hugepagesz=1G hugepages=2", (6 * GIB,))
        preserve(agent, 2, 30)
        kernel = reboot(agent.kernel)
        before = kernel.clock.now_ns
        retrieved(kernel)
        took[hvo] = kernel.clock.now_ns - before
    more = CostModel.load().cost_ns("kho_unpreserve_free", 2 * 4096)
    assert took["on"] - took["off"] == pytest.approx(more, rel=0.01)
