"""What the check allows, a host must be able to hold."""

from __future__ import annotations

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fleet.bad_input import Faults
from fleet.feasibility import check_memory
from fleet.host_memory import memfd_need, try_boot
from fleet.inventory import Inventory, hugepage_pools
from kernelmodel.memory import GIB, MIB, PAGE_SIZE
from kernelmodel.sim.cost import CostModel
from node.api import (
    Backing,
    HostOutcome,
    HostSpec,
    ShardConfig,
    UpdateCommand,
    UpdatePolicy,
    VmOutcome,
    VmSpec,
)
from node.host import Host
from node.shard import Shard

RELEASE = "7.3.2+hugetlb"


def host_spec(
    nodes: tuple[int, ...], pool_2m: int = 0, pool_1g: int = 0, cmdline: str = "", cpus: int = 16
) -> HostSpec:
    pools = hugepage_pools({2 * MIB: pool_2m, GIB: pool_1g})
    return HostSpec("h", {"rack": "r"}, nodes, cpus, RELEASE, pools, cmdline)


def is_accepted(host: HostSpec, vms: list[VmSpec]) -> bool:
    faults = Faults()
    inventory = Inventory(
        hosts={host.name: host},
        vms={vm.name: vm for vm in vms},
        host_places={host.name: ("hosts.csv", 2)},
        vm_places={vm.name: ("vms.csv", nr) for nr, vm in enumerate(vms, start=2)},
    )
    check_memory(inventory, faults)
    return len(faults) == 0


def build(host: HostSpec, vms: list[VmSpec]) -> Host:
    return Host(host, vms, seed=1, cost=CostModel.load())


NODES = st.one_of(st.integers(1, 96), st.sampled_from([128, 256]))
HOSTS = st.builds(
    lambda nodes, share_2m, share_1g, cmdline, cpus: host_spec(
        nodes,
        sum(nodes) * share_2m // 100 // (2 * MIB),
        sum(nodes) * share_1g // 100 // GIB,
        cmdline,
        cpus,
    ),
    nodes=st.lists(NODES.map(GIB.__mul__), min_size=1, max_size=4).map(tuple),
    share_2m=st.integers(0, 90),
    share_1g=st.integers(0, 90),
    cmdline=st.sampled_from(["", "kho_scratch=100%", "kho_scratch=200M,400M,100M"]),
    cpus=st.sampled_from([1, 16, 256]),
)


@settings(max_examples=60, deadline=None)
@given(host=HOSTS)
def test_an_accepted_host_has_its_pools_its_scratch_and_room_for_the_next_kernel(
    host: HostSpec,
) -> None:
    assume(is_accepted(host, []))
    built = build(host, [])
    for pool in host.hugepages:
        order = (pool.page_bytes // PAGE_SIZE).bit_length() - 1
        assert built.kernel.hugetlb.hstate(order).nr_huge_pages == pool.count
    assert built.kernel.kho.enabled
    built.kexec_load(RELEASE)


def filled(host: HostSpec, plain: int, share: int) -> list[VmSpec]:
    """VMs that take every page of the pools, and plain ones that take `share` % of what is left."""
    room = try_boot(host).left * share // 100 // plain
    size = room * PAGE_SIZE // memfd_need(PAGE_SIZE) // PAGE_SIZE * PAGE_SIZE
    vms = [VmSpec(f"v{nr}", "h", max(size, PAGE_SIZE), Backing.MEMFD, 1) for nr in range(plain)]
    for pool in host.hugepages:
        backing = Backing.HUGETLB_2M if pool.page_bytes == 2 * MIB else Backing.HUGETLB_1G
        vms.append(VmSpec(f"b{backing}", "h", pool.page_bytes * pool.count, backing, 1))
    return vms


@settings(max_examples=60, deadline=None)
@given(host=HOSTS, plain=st.integers(1, 8), share=st.integers(1, 100))
def test_an_accepted_host_holds_its_vms(host: HostSpec, plain: int, share: int) -> None:
    vms = filled(host, plain, share)
    assume(is_accepted(host, vms))
    build(host, vms)  # a VM that finds no memory is a ModelBug


@settings(max_examples=15, deadline=None)
@given(host=HOSTS, plain=st.integers(1, 3), share=st.integers(50, 100))
def test_an_accepted_host_with_scratch_of_the_default_size_can_be_updated(
    host: HostSpec, plain: int, share: int
) -> None:
    host = msgspec.structs.replace(host, cmdline="")
    vms = filled(host, plain, share)
    assume(is_accepted(host, vms))
    command = UpdateCommand("h", 1, 0, "7.3.4+hugetlb", UpdatePolicy())
    (result,) = Shard(ShardConfig(1, (host,), tuple(vms))).update([command])
    assert result.outcome is HostOutcome.UPDATED, result.detail
    assert {vm.outcome for vm in result.vms} == {VmOutcome.PRESERVED}


def test_a_host_of_half_a_tebibyte_is_accounted_for() -> None:
    memory = try_boot(host_spec((256 * GIB, 256 * GIB), 49152, 256, cpus=128))
    assert memory.total == 512 * GIB
    assert memory.pools == 352 * GIB
    assert memory.struct_pages == 8 * GIB
    # 200 % of the kernel's own, twice; its own are the struct pages and some image and tables.
    assert 32 * GIB < memory.scratch < 36 * GIB
    assert 0 < memory.kernel < 4 * GIB
    assert memory.trouble == ""


def test_a_kernel_that_gets_too_few_pages_says_how_many_it_got() -> None:
    memory = try_boot(host_spec((8 * GIB,), 0, 8))
    (missing,) = memory.missing
    assert missing.page_bytes == GIB
    assert memory.pools == (8 - missing.count) * GIB


def test_nodes_that_gigantic_pages_fill_leave_no_scratch() -> None:
    memory = try_boot(host_spec((61 * GIB, 25 * GIB), 0, 42))
    assert "cannot be updated live" in memory.trouble
