"""The values of `node.api` as messages of `lufleet.v1`, and back where a client sends them.

Enums are translated by name (`Backing.HUGETLB_2M` is `BACKING_HUGETLB_2M`), so that a member
which only one side has is found by a test and not by a client.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from kernelmodel.sim.clock import Phase
from kernelmodel.sim.trace import Event, Value
from lufleet.v1 import host_pb2, vm_pb2
from node.api import (
    LONGEST_WAIT_NS,
    MOST_FREEZE_RETRIES,
    ON_FREEZE_FAILURE,
    ON_PANIC,
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
from node.host import Host
from node.host_state import HostState
from node.vm import VmState

__all__ = [
    "BACKINGS",
    "HOST_OUTCOMES",
    "HOST_STATES",
    "VM_OUTCOMES",
    "VM_STATES",
    "event_message",
    "fault_spec",
    "host_message",
    "host_spec_message",
    "policy_faults",
    "reboot_message",
    "update_message",
    "update_policy",
    "vm_spec_message",
]

_LARGEST_NUMBER: Final = (1 << 63) - 1
BACKINGS: Final = {one: vm_pb2.Backing.Value(f"BACKING_{one.name}") for one in Backing}
VM_OUTCOMES: Final = {one: vm_pb2.VmOutcome.Value(f"VM_OUTCOME_{one.name}") for one in VmOutcome}
HOST_OUTCOMES: Final = {
    one: host_pb2.HostOutcome.Value(f"HOST_OUTCOME_{one.name}") for one in HostOutcome
}
HOST_STATES: Final = {one: host_pb2.HostState.Value(f"HOST_STATE_{one.name}") for one in HostState}
VM_STATES: Final = {one: vm_pb2.VmState.Value(f"VM_STATE_{one.name}") for one in VmState}


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
        case int() if value > _LARGEST_NUMBER:
            return host_pb2.EventValue(large_number=value)
        case int():
            return host_pb2.EventValue(number=value)
        case str():
            return host_pb2.EventValue(text=value)
        case bytes():
            return host_pb2.EventValue(data=value)


def host_message(host: Host) -> host_pb2.Host:
    """A host as it stands."""
    gauges = host.gauges()
    return host_pb2.Host(
        spec=host_spec_message(host.spec),
        state=HOST_STATES[host.state],
        virtual_time_ns=host.clock.now_ns,
        release=host.release,
        release_title=host.kernel.release.title if host.release else "",
        loaded_release=host.loaded.name if host.loaded is not None else "",
        liveupdate_num=host.liveupdate_num,
        sessions=[
            host_pb2.Session(
                name=session.name,
                direction=host_pb2.SESSION_DIRECTION_OUTGOING
                if session.outgoing
                else host_pb2.SESSION_DIRECTION_INCOMING,
                tokens=session.tokens,
                retrieved=session.retrieved,
            )
            for session in host.sessions()
        ],
        vms=[
            vm_pb2.Vm(spec=vm_spec_message(vm.spec), state=VM_STATES[vm.state])
            for vm in host.vms.values()
        ],
        hugetlb_pages={
            size: host_pb2.HugetlbPages(**pages) for size, pages in gauges.hugetlb_pages.items()
        },
        kho_scratch_bytes=gauges.kho_scratch_bytes,
        digest=host.trace.hexdigest(),
        panic=host.panic_message if host.state is HostState.PANICKED else "",
        agent_error=host.agent_error if host.release and host.agent is None else "",
    )


def reboot_message(host: Host, phases: Iterable[Phase]) -> host_pb2.RebootOutcome:
    """How a reboot ended: where the host stands after it, and the phases on the way."""
    phases_ns: dict[str, int] = {}
    for phase in phases:  # some come in several parts
        phases_ns[phase.name] = phases_ns.get(phase.name, 0) + phase.duration_ns
    return host_pb2.RebootOutcome(
        state=HOST_STATES[host.state],
        panic=host.panic_message if host.state is HostState.PANICKED else "",
        release=host.release,
        virtual_time_ns=host.clock.now_ns,
        phases_ns=phases_ns,
    )


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


def policy_faults(policy: UpdatePolicy) -> list[str]:
    """What is wrong with a policy, field by field, held to what a scenario may say."""
    faults: list[str] = []
    for name, most, least in (
        ("freeze_retries", MOST_FREEZE_RETRIES, 0),
        ("freeze_retry_delay_ns", LONGEST_WAIT_NS, 0),
        ("boot_timeout_ns", LONGEST_WAIT_NS, 1),
    ):
        number: int = getattr(policy, name)
        if not least <= number <= most:
            faults.append(f"policy.{name} is {number}, should be {least} to {most}")
    for name, known in (("on_freeze_failure", ON_FREEZE_FAILURE), ("on_panic", ON_PANIC)):
        word: str = getattr(policy, name)
        if word not in known:
            faults.append(f"policy.{name} is {word!r}, should be one of {', '.join(known)}")
    return faults
