"""Small hosts for tests of the node's border: 8 GiB, two NUMA nodes, a huge and a plain VM."""

from __future__ import annotations

from google.protobuf.message import Message

from node.api import Backing, HostCall, HostSpec, HugepagePool, ShardConfig, VmSpec
from node.calls import HostReply
from node.shard import Shard

MIB, GIB = 1 << 20, 1 << 30
OLD, NEW = "7.3.2+hugetlb", "7.3.4+hugetlb"


def host_spec(name: str, release: str = OLD) -> HostSpec:
    return HostSpec(
        name=name,
        domains={"rack": name[:2]},
        node_bytes=(4 * GIB, 4 * GIB),
        cpus=8,
        release=release,
        hugepages=(HugepagePool(2 * MIB, 512),),
        cmdline="kho_scratch=128M,256M,128M",
    )


def vm_specs(host: str) -> tuple[VmSpec, ...]:
    return (
        VmSpec(f"{host}-huge", host, 256 * MIB, Backing.HUGETLB_2M, 4),
        VmSpec(f"{host}-plain", host, 64 * MIB, Backing.MEMFD, 1),
    )


def shard_config(*hosts: str, record_events: bool = False) -> ShardConfig:
    return ShardConfig(
        seed=7,
        hosts=tuple(host_spec(host) for host in hosts),
        vms=tuple(vm for host in hosts for vm in vm_specs(host)),
        record_events=record_events,
    )


def host_call(request: Message, at_ns: int = 0) -> HostCall:
    """A request of HostService as a shard gets it."""
    method = type(request).__name__.removesuffix("Request")
    return HostCall(request.host, at_ns, method, request.SerializeToString())  # type: ignore[attr-defined] # every one has it


def ask(shard: Shard, request: Message, at_ns: int = 0) -> HostReply:
    return shard.call_host(host_call(request, at_ns))
