"""The values of `node.api` as messages of `lufleet.v1`, and back where a client sends them.

Enums are translated by name (`Backing.HUGETLB_2M` is `BACKING_HUGETLB_2M`), so that a member
which only one side has is found by a test and not by a client.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from kernelmodel.sim.trace import Event, Value
from lufleet.v1 import host_pb2, vm_pb2
from node.api import (
    Backing,
    FaultSpec,
    HostOutcome,
    HostSpec,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)

__all__ = [
    "BACKINGS",
    "HOST_OUTCOMES",
    "VM_OUTCOMES",
    "event_message",
    "fault_spec",
    "host_spec_message",
    "update_message",
    "update_policy",
    "vm_spec_message",
]

BACKINGS: Final = {one: vm_pb2.Backing.Value(f"BACKING_{one.name}") for one in Backing}
VM_OUTCOMES: Final = {one: vm_pb2.VmOutcome.Value(f"VM_OUTCOME_{one.name}") for one in VmOutcome}
HOST_OUTCOMES: Final = {
    one: host_pb2.HostOutcome.Value(f"HOST_OUTCOME_{one.name}") for one in HostOutcome
}


def host_spec_message(spec: HostSpec) -> host_pb2.HostSpec:
    """A host of the inventory."""
    return host_pb2.HostSpec(
        name=spec.name,
        domains=spec.domains,
        node_bytes=spec.node_bytes,
        cpus=spec.cpus,
        release=spec.release,
        hugepages=[
            host_pb2.HugepagePool(page_bytes=pool.page_bytes, count=pool.count)
            for pool in spec.hugepages
        ],
        cmdline=spec.cmdline,
    )


def vm_spec_message(spec: VmSpec) -> vm_pb2.VmSpec:
    """A VM of the inventory."""
    return vm_pb2.VmSpec(
        name=spec.name,
        host=spec.host,
        memory_bytes=spec.memory_bytes,
        backing=BACKINGS[spec.backing],
        vcpus=spec.vcpus,
    )


def update_message(result: UpdateResult) -> host_pb2.HostUpdate:
    """How a host update ended; its events and gauges are told elsewhere."""
    return host_pb2.HostUpdate(
        host=result.host,
        seq=result.seq,
        outcome=HOST_OUTCOMES[result.outcome],
        reason=result.reason,
        detail=result.detail,
        release=result.release,
        start_ns=result.start_ns,
        end_ns=result.end_ns,
        blackout_start_ns=result.blackout_start_ns,
        blackout_end_ns=result.blackout_end_ns,
        preserved_pages=result.preserved_pages,
        phases_ns=result.phases_ns,
        outside_ns=result.outside_ns,
        freeze_attempts=result.freeze_attempts,
        vms=_vm_results(result.vms),
        digest=result.digest,
    )


def _vm_results(results: Iterable[VmResult]) -> list[vm_pb2.VmResult]:
    return [
        vm_pb2.VmResult(
            name=result.name,
            outcome=VM_OUTCOMES[result.outcome],
            reason=result.reason,
            downtime_ns=result.downtime_ns,
            phases_ns=result.phases_ns,
        )
        for result in results
    ]


def event_message(event: Event) -> host_pb2.HostEvent:
    """One event of a host."""
    return host_pb2.HostEvent(
        virtual_time_ns=event.now_ns,
        name=event.name,
        fields={name: _event_value(value) for name, value in event.fields.items()},
    )


def _event_value(value: Value) -> host_pb2.EventValue:
    match value:
        case bool():
            return host_pb2.EventValue(flag=value)
        case int():
            return host_pb2.EventValue(number=value)
        case str():
            return host_pb2.EventValue(text=value)
        case bytes():
            return host_pb2.EventValue(data=value)


def fault_spec(host: str, message: host_pb2.FaultSpec) -> FaultSpec:
    """A fault to arm on `host`; what the client left out has the defaults of `FaultSpec`."""
    fault = FaultSpec(host=host, kind=message.kind, vm=message.vm, errno=message.errno)
    if message.HasField("times"):
        fault = msgspec.structs.replace(fault, times=message.times)
    if message.HasField("factor"):
        fault = msgspec.structs.replace(fault, factor=message.factor)
    return fault


def update_policy(message: host_pb2.UpdatePolicy) -> UpdatePolicy:
    """A policy; what the client left out has the defaults of `UpdatePolicy`."""
    given = {field.name: value for field, value in message.ListFields()}
    return UpdatePolicy(**given)
