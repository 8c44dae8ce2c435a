"""The host on which designs are compared: its VMs hold something, and what they lose is told."""

from __future__ import annotations

from dataclasses import replace

from fleet.designs.host import DesignHost
from fleet.designs.spec import HostSpec, small
from kernelmodel.hugetlb_designs import DESIGNS
from kernelmodel.memory import GIB
from kernelmodel.sim.cost import CostModel

SPEC = replace(small(HostSpec()), memory=64 * GIB, vms=8)


def test_guest_memfds_are_spread_over_the_vms() -> None:
    for share, every in ((25, 4), (50, 2), (100, 1)):
        guests = [vm.guest_memfd for vm in replace(SPEC, guest_memfd=share).vm_specs()]
        assert guests == [nr % every == every - 1 for nr in range(8)]
    assert not any(vm.guest_memfd for vm in replace(SPEC, guest_memfd=0).vm_specs())


def test_a_vm_whose_memory_came_back_changed_is_lost() -> None:
    for design in DESIGNS:
        host = DesignHost(SPEC, design, CostModel.load())
        assert len({vm.digest for vm in host.vms.values()}) == 8, "no two hold the same"
        victim = host.vms["vm0002"]
        ((_, pfn, nr),) = victim.inode.hugetlb.folios.runs()
        last = pfn + (nr << victim.spec.order) - 1
        host.load()
        host.preserve()
        host.settle()
        host.jump(host.freeze())
        host.kernel.memory.write(last << 12, b"\xff")
        host.retrieve()
        assert host.lost == {"vm0002": "EFAULT"}
        host.finish()
        assert host.pools() == host.asked() or design == "subsystem-prepare"


def test_what_the_host_asks_for_is_what_its_pools_have() -> None:
    host = DesignHost(SPEC, "ours", CostModel.load())
    assert host.asked() == host.pools() == {18: 44, 9: 5898}
    assert host.unclaimed() == {18: 0, 9: 0}
    used = dict.fromkeys(host.pools(), 0)
    for vm in host.vms.values():
        used[vm.spec.order] += vm.spec.pages
    for order, hstate in host.kernel.hugetlb.hstates.items():
        assert hstate.nr_huge_pages - hstate.free_huge_pages == used[order]
    host.load()
    host.preserve()
    host.jump(host.freeze())
    assert host.unclaimed() == used
