"""How a fleet is split into shards, and what each of their actors asks a cluster for.

On a Ray of our own there is one machine, and actors ask for nothing: they share it. On a cluster
that was joined, an actor asks for a share of a CPU and for memory, as any Ray program would: nodes
get shards in proportion to their CPUs, a node without CPUs for actors gets none, memory is not
promised twice, and an autoscaler sees what is wanted.

CPU: a shard computes on one thread, so that it asks for one CPU at most. If there are more shards
than CPUs, several share one: each asks for 1/m, m the least with which all fit. The CPUs are those
that other programs leave, for those may stay; while they leave less than one it is all of them, and
shards wait. Whoever wants a cluster to grow instead names a share.

Memory: what a worker process takes before its first host, what each host and VM is described by,
and kernels for the hosts that were asked last. Measured on hosts of 10 and of 100 VMs with huge
pages or contiguous small ones, and rounded up; a recording of events comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from fleet.plan import RolloutPlan
from fleet.scenario import Scenario
from fleet.shard_actor import Deed
from fleet.units import show_size
from node.api import FaultSpec, HostSpec, ShardConfig, VmSpec
from node.shard import LIVE_HOSTS

__all__ = [
    "NOTHING",
    "PER_HOST_MAX",
    "Demand",
    "Node",
    "cpu_share",
    "demand_of",
    "holds",
    "is_room_for",
    "partition",
]

#: Ray counts CPUs in these.
_PER_CPU: Final = 10_000

_KIB: Final = 1 << 10
_PROCESS_BYTES: Final = 128 << 20
_SPEC_BYTES: Final = 1 * _KIB  # of a host that is not built, and of a VM
_LIVE_HOST_BYTES: Final = 512 * _KIB
_LIVE_VM_BYTES: Final = 20 * _KIB


#: Up to this many hosts each one gets an actor of its own unless said otherwise.
PER_HOST_MAX = 32


class Node(Struct, frozen=True):
    """What a node has, or has left."""

    cpus: float
    memory_bytes: int


class Demand(Struct, frozen=True):
    """What an actor asks for."""

    cpus: float
    memory_bytes: int

    def __str__(self) -> str:
        cpus = f"{self.cpus:g} CPU and " if self.cpus else ""
        return f"{cpus}{show_size(self.memory_bytes)} of memory"


NOTHING: Final = Demand(0, 0)


def cpu_share(shards: int, nodes: Iterable[Node]) -> float:
    """The largest 1/m of a CPU of which these nodes have one for each shard."""
    parts = [round(node.cpus * _PER_CPU) for node in nodes if node.cpus] or [_PER_CPU]
    sharing = max(1, shards * _PER_CPU // sum(parts))
    while sharing < _PER_CPU and sum(part // (_PER_CPU // sharing) for part in parts) < shards:
        sharing += 1
    return _PER_CPU // sharing / _PER_CPU


def demand_of(config: ShardConfig, cpus: float) -> Demand:
    """What an actor of this shard asks for."""
    hosts, vms = len(config.hosts), len(config.vms)
    live = min(hosts, LIVE_HOSTS)
    memory = (
        _PROCESS_BYTES
        + _SPEC_BYTES * (hosts + vms)
        + _LIVE_HOST_BYTES * live
        + _LIVE_VM_BYTES * live * vms // max(1, hosts)
    )
    return Demand(cpus, memory)


def holds(node: Node, demand: Demand) -> int:
    """How many actors with this demand a node has room for."""
    by_memory = node.memory_bytes // demand.memory_bytes if demand.memory_bytes else 1 << 30
    share = round(demand.cpus * _PER_CPU)
    by_cpus = round(node.cpus * _PER_CPU) // share if share else 1 << 30
    return min(by_cpus, by_memory)


def is_room_for(count: int, demand: Demand, nodes: Iterable[Node]) -> bool:
    """Whether nodes have room for so many actors."""
    return sum(holds(node, demand) for node in nodes) >= count


def partition(
    scenario: Scenario,
    plan: RolloutPlan,
    *,
    shards: int | str | None,
    records_events: bool,
    keep_images: frozenset[str] = frozenset(),
    done: Sequence[Deed] = (),
    processors: int = 1,
) -> list[ShardConfig]:
    """Split a fleet into shards.

    `shards` is a number, "per-host", or None: one per host up to `PER_HOST_MAX` hosts, one per
    processor beyond. Hosts are dealt out in plan order, so that each wave keeps every shard busy.
    `done` is what a resumed run has done to hosts already.
    """
    names = [*plan.hosts, *plan.up_to_date]
    if shards == "per-host" or (shards is None and len(names) <= PER_HOST_MAX):
        count = len(names)
    else:
        count = min(len(names), processors if shards is None else int(shards))
    mine = {name: nr % count for nr, name in enumerate(names)}
    hosts: list[list[HostSpec]] = [[] for _ in range(count)]
    vms: list[list[VmSpec]] = [[] for _ in range(count)]
    faults: list[list[FaultSpec]] = [[] for _ in range(count)]
    commands: list[list[Deed]] = [[] for _ in range(count)]
    for host in scenario.hosts:
        hosts[mine[host.name]].append(host)
    for vm in scenario.vms:
        vms[mine[vm.host]].append(vm)
    for fault in scenario.faults:
        faults[mine[fault.host]].append(fault)
    for command in done:
        commands[mine[command.host]].append(command)
    return [
        ShardConfig(
            seed=scenario.seed,
            hosts=tuple(hosts[nr]),
            vms=tuple(vms[nr]),
            faults=tuple(faults[nr]),
            cost_profile=scenario.cost_profile,
            releases=scenario.releases,
            record_events=records_events,
            keep_images=keep_images.intersection(host.name for host in hosts[nr]),
            commands=tuple(commands[nr]),
            of_shards=count,
        )
        for nr in range(count)
    ]
