"""Hosts that tests of a live update build by the dozen: two nodes, one VM on each page size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kernelmodel.sim.cost import CostModel
from node.api import (
    Backing,
    FaultSpec,
    HostSpec,
    HugepagePool,
    UpdateCommand,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)
from node.host import Host
from node.live_update import update_host

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND = 1_000_000_000
HOST = "h"
OLD, NEW = "7.3.2+hugetlb", "7.3.4+hugetlb"
COST = CostModel.load()
POOLS = (HugepagePool(2 * MIB, 256), HugepagePool(GIB, 4))
PLAIN = VmSpec("plain", HOST, 64 * MIB, Backing.MEMFD, 2)
HUGE = VmSpec("huge", HOST, 256 * MIB, Backing.HUGETLB_2M, 4)
GIANT = VmSpec("giant", HOST, 2 * GIB, Backing.HUGETLB_1G, 8)
VMS = (PLAIN, HUGE, GIANT)
POLICY = UpdatePolicy()


def make_host(
    *faults: FaultSpec,
    vms: Iterable[VmSpec] = VMS,
    release: str = OLD,
    node_bytes: tuple[int, ...] = (8 * GIB, 8 * GIB),
    pools: tuple[HugepagePool, ...] = POOLS,
    cmdline: str = "kho_scratch=256M,256M,256M",
    cpus: int = 16,
    seed: int = 7,
    cost: CostModel = COST,
    record_events: bool = False,
) -> Host:
    return Host(
        HostSpec(HOST, {"rack": "r1"}, node_bytes, cpus, release, pools, cmdline),
        vms,
        seed=seed,
        cost=cost,
        fault_specs=faults,
        record_events=record_events,
    )


def fault(kind: str, *, times: int = 1, vm: str = "", factor: float = 1.0) -> FaultSpec:
    return FaultSpec(HOST, kind, times=times, vm=vm, factor=factor)


def update(
    host: Host,
    release: str = NEW,
    policy: UpdatePolicy = POLICY,
    *,
    seq: int = 0,
) -> UpdateResult:
    """The host's next update, a second after whatever it did last."""
    start_ns = host.clock.now_ns + SECOND
    return checked(update_host(host, UpdateCommand(HOST, seq, start_ns, release, policy)))


def checked(result: UpdateResult) -> UpdateResult:
    """What must hold of every result, however the update ended."""
    assert result.end_ns >= result.start_ns + SECOND
    assert min(result.phases_ns.values(), default=0) >= 0
    assert not {"preserve", "finish", "kexec_file_load"} & set(result.phases_ns)
    if result.blackout_end_ns is not None:
        assert result.blackout_start_ns is not None
        blackout_ns = result.blackout_end_ns - result.blackout_start_ns
        assert sum(result.phases_ns.values()) == blackout_ns
    for vm in result.vms:
        _check_vm(vm)
    return result


def _check_vm(vm: VmResult) -> None:
    assert min(vm.phases_ns.values(), default=0) >= 0
    if vm.outcome is VmOutcome.LOST:
        assert vm.downtime_ns is None
        assert vm.reason
    else:
        assert vm.downtime_ns == sum(vm.phases_ns.values())


def outcomes(result: UpdateResult) -> Mapping[str, VmOutcome]:
    """What became of each VM."""
    return {vm.name: vm.outcome for vm in result.vms}


def update_10_vms() -> Host:
    """A host that has been updated once, with ten VMs of a gigabyte."""
    vms = [VmSpec(f"vm{nr}", HOST, GIB, Backing.HUGETLB_2M, 2) for nr in range(10)]
    pools = (HugepagePool(2 * MIB, 12 << 9),)
    host = make_host(vms=vms, node_bytes=(16 * GIB, 16 * GIB), pools=pools)
    assert not update(host).reason
    return host
