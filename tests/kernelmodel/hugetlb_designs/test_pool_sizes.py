"""What size the next kernel's pools have, when they were resized or sizes are written early."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernelmodel import kexec
from kernelmodel.abi.hugetlb_pool import HugetlbPoolSer
from kernelmodel.boot import boot
from kernelmodel.errors import KernelPanic, NoSpace
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from tests.kernelmodel.hugetlb_designs.hosts import (
    ALL,
    ORDER,
    POOL,
    RELEASES,
    Host,
    host,
)
from tests.kernelmodel.kernels import CMDLINE, CONFIG


@pytest.mark.parametrize("design", ALL)
def test_a_size_written_before_files_are_retrieved_comes_beside_them(design: str) -> None:
    """As a sysctl at boot does; those that remember a pool's size remember this one too."""
    one = host(design)
    fd = one.memfd(5)
    sizes = []
    for nr in range(2):
        one.preserve(one.session(f"s{nr}"), fd)
        one = one.reboot()
        if nr == 0:
            one.kernel.hugetlb.hstate(ORDER).set_max_huge_pages(POOL)
        fd = one.retrieve(f"s{nr}")
        one.finish()
        sizes.append(one.pool[0])
    forgets = design in {"subsystem-prepare", "global-state", "flb-counts"}
    assert sizes == [POOL + 5, POOL if forgets else POOL + 5]


@pytest.mark.parametrize("design", ALL)
def test_surplus_pages_that_a_list_has_are_there_to_stay(design: str) -> None:
    """Nobody keeps the two files' borrowed pages but those who write down the whole pool."""
    one = host(design)
    hstate = one.kernel.hugetlb.hstate(ORDER)
    hstate.nr_overcommit_huge_pages = 4
    given_up, kept = one.memfd(POOL - 1), one.memfd(3)
    for fd, pages in ((given_up, POOL - 1), (kept, 3)):
        one.task.files.fget(fd).inode.hugetlb.populate(0, pages)  # type: ignore[attr-defined]
    assert (one.pool, hstate.surplus_huge_pages) == ((POOL + 2, 0), 2)
    one.preserve(one.session("s"), kept)
    after = one.reboot()
    after.retrieve("s")
    after.finish()
    lists = design in {"frozen-pool", "files-then-subsystem", "handler-subsystem"}
    assert after.pool[0] == POOL + 2 * lists
    assert after.kernel.hugetlb.hstate(ORDER).surplus_huge_pages == 0


def test_a_fifth_page_size_keeps_ours_from_preserving_but_not_flb_counts() -> None:
    """The price of a structure with every size that there is, not only those in use."""
    config = replace(CONFIG, hugepage_orders=(9, 11, 13, 14, 18))
    for design in ("flb-counts", "ours"):
        machine = Machine(MachineSpec((256 * MIB,), 2))
        firmware = machine.cold_firmware(f"{CMDLINE} hugepages={POOL}")
        clock = Clock(CostModel.load(), 2, 0)
        one = Host(boot(machine, CATALOGUE[RELEASES[design]], firmware, clock, config=config))
        assert len(one.kernel.hugetlb.hstates) == 5
        session, fd = one.session("s"), one.memfd(1)
        if design == "ours":
            with pytest.raises(NoSpace):
                one.preserve(session, fd)
        else:
            one.preserve(session, fd)


def test_a_pool_keeps_the_size_that_it_was_given() -> None:
    """`ours` carries it, unless the next command line asks for something else."""
    sizes = {}
    for design in ("flb-counts", "ours"):
        for wanted in (POOL - 4, POOL + 4):
            one = host(design)
            session = one.session("s")
            one.preserve(session, one.memfd(2))
            one.kernel.hugetlb.hstate(ORDER).set_max_huge_pages(wanted)
            after = one.reboot()
            after.retrieve("s")
            sizes[design, wanted - POOL] = after.pool[0] - POOL
    assert sizes == {
        ("flb-counts", -4): 0,
        ("flb-counts", 4): 0,
        ("ours", -4): -4,
        ("ours", 4): 4,
    }
    one = host("ours")
    one.preserve(one.session("s"), one.memfd(2))
    one.kernel.hugetlb.hstate(ORDER).set_max_huge_pages(POOL + 4)
    after = one.reboot(f"{CMDLINE} hugepages={POOL + 1}")
    after.retrieve("s")
    assert after.pool[0] == POOL + 1


def test_ours_keeps_the_size_over_many_updates_and_forgotten_sessions() -> None:
    one = host("ours")
    one.kernel.hugetlb.hstate(ORDER).set_max_huge_pages(POOL + 3)
    for nr in range(4):
        one.preserve(one.session(f"kept{nr}"), one.memfd(1))
        one.preserve(one.session(f"forgotten{nr}"), one.memfd(2))
        one = one.reboot()
        one.retrieve(f"kept{nr}")
        assert one.pool[0] == POOL + 3 - 2


@pytest.mark.parametrize("broken", ["missing", "short"])
def test_a_kernel_that_cannot_read_the_list_of_its_pool_panics(broken: str) -> None:
    one = host("frozen-pool")
    one.preserve(one.session("s"), one.memfd(2))
    kernel = one.kernel
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    image = kexec.kernel_kexec(kernel)
    pa = next(flb.outgoing_data for flb in kernel.luo.flbs.registered if flb.outgoing_data)
    (ser,) = HugetlbPoolSer.unpack(kernel.memory.read(pa, HugetlbPoolSer.SIZE)).hstates
    if broken == "missing":
        kernel.kho.unpreserve_folios(ser.list_first >> PAGE_SHIFT, 0)
    else:  # 8 bytes a folio, in a page
        assert kernel.memory.u64(pa) == ser.nr_folios == POOL
        kernel.memory.write_u64(pa, PAGE_SIZE // 8 + 1)
    given = kexec.jump(kernel, image)
    with pytest.raises(KernelPanic, match="hugetlb: no list of"):
        boot(kernel.machine, *given, kernel.clock, config=kernel.config)
