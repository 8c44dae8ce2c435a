"""Values become messages without loss, and an enum member that one side lacks is found here."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
import pytest

from kernelmodel.sim.trace import Event
from lufleet.v1 import host_pb2, vm_pb2
from node.api import (
    Backing,
    FaultSpec,
    HostGauges,
    HostOutcome,
    HostSpec,
    HugepagePool,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)
from node.messages import (
    event_message,
    fault_spec,
    host_spec_message,
    update_message,
    update_policy,
    vm_spec_message,
)


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (Backing, vm_pb2.Backing, "BACKING_"),
        (VmOutcome, vm_pb2.VmOutcome, "VM_OUTCOME_"),
        (HostOutcome, host_pb2.HostOutcome, "HOST_OUTCOME_"),
    ],
)
def test_both_sides_of_an_enum_have_the_same_members(
    ours: type[StrEnum], theirs: Any, prefix: str
) -> None:
    names = {f"{prefix}{member.name}" for member in ours}
    assert {*theirs.keys()} == names | {f"{prefix}UNSPECIFIED"}


@pytest.mark.parametrize(
    ("struct", "message", "left_out"),
    [
        (HostSpec, host_pb2.HostSpec, set()),
        (VmSpec, vm_pb2.VmSpec, set()),
        (VmResult, vm_pb2.VmResult, set()),
        (UpdatePolicy, host_pb2.UpdatePolicy, set()),
        (FaultSpec, host_pb2.FaultSpec, {"host"}),
        (
            UpdateResult,
            host_pb2.HostUpdate,
            {"events", "gauges", "preserved_from_ns", "preserved_until_ns"},
        ),
    ],
)
def test_messages_have_the_fields_of_the_values(
    struct: type[msgspec.Struct], message: Any, left_out: set[str]
) -> None:
    ours = {field.name for field in msgspec.structs.fields(struct)}
    assert {field.name for field in message.DESCRIPTOR.fields} == ours - left_out


def test_a_host_is_told_whole() -> None:
    spec = HostSpec(
        name="r1-h01",
        domains={"rack": "r1", "power": "p2"},
        node_bytes=(256 << 30, 256 << 30),
        cpus=128,
        release="7.3.2+hugetlb",
        hugepages=(HugepagePool(2 << 20, 1024),),
        cmdline="kho_scratch=256M,1G,512M",
    )
    message = host_spec_message(spec)
    assert dict(message.domains) == spec.domains
    assert tuple(message.node_bytes) == spec.node_bytes
    assert (message.hugepages[0].page_bytes, message.hugepages[0].count) == (2 << 20, 1024)
    assert (message.name, message.cpus, message.release) == ("r1-h01", 128, spec.release)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(0, "number"), (-1, "number"), ((1 << 63) - 1, "number"), ((1 << 64) - 1, "large_number")],
)
def test_a_number_is_told_whole(number: int, kind: str) -> None:
    value = event_message(Event(5, "preserve_fd", {"token": number})).fields["token"]
    assert value.WhichOneof("kind") == kind
    assert getattr(value, kind) == number


def test_a_vm_is_told_whole() -> None:
    message = vm_spec_message(VmSpec("vm-1", "r1-h01", 4 << 30, Backing.HUGETLB_1G, 8))
    assert message.backing == vm_pb2.BACKING_HUGETLB_1G
    assert (message.name, message.host, message.vcpus) == ("vm-1", "r1-h01", 8)
    assert message.memory_bytes == 4 << 30


def update_result(**changes: Any) -> UpdateResult:
    result = UpdateResult(
        host="h",
        seq=3,
        outcome=HostOutcome.FAILED,
        reason="panic",
        detail="the next kernel panicked",
        release="7.3.2",
        start_ns=10,
        end_ns=90,
        blackout_start_ns=20,
        blackout_end_ns=80,
        preserved_from_ns=15,
        preserved_until_ns=85,
        preserved_pages={"2MiB": 512},
        phases_ns={"freeze": 60},
        outside_ns={"preserve": 5},
        freeze_attempts=2,
        vms=(VmResult("lost", VmOutcome.LOST, "gone", None, {}),),
        gauges=HostGauges("7.3.2", {}, {}, 0),
        digest="ab",
    )
    return msgspec.structs.replace(result, **changes)


def test_a_lost_vm_has_no_downtime_rather_than_none_at_all() -> None:
    message = update_message(update_result())
    (lost,) = message.vms
    assert lost.outcome == vm_pb2.VM_OUTCOME_LOST
    assert not lost.HasField("downtime_ns")
    assert message.outcome == host_pb2.HOST_OUTCOME_FAILED
    assert dict(message.phases_ns) == {"freeze": 60}


def test_an_update_without_blackout_has_no_instants_of_one() -> None:
    message = update_message(update_result(blackout_start_ns=None, blackout_end_ns=None))
    assert not message.HasField("blackout_start_ns")
    assert not message.HasField("blackout_end_ns")


def test_what_a_client_leaves_out_has_our_defaults() -> None:
    assert fault_spec("h", host_pb2.FaultSpec(kind="slow-boot")) == FaultSpec("h", "slow-boot")
    assert update_policy(host_pb2.UpdatePolicy()) == UpdatePolicy()


def test_what_a_client_says_counts_even_if_it_is_zero() -> None:
    fault = fault_spec("h", host_pb2.FaultSpec(kind="freeze-fails", times=0, errno="EIO"))
    assert (fault.times, fault.errno) == (0, "EIO")
    policy = update_policy(host_pb2.UpdatePolicy(freeze_retries=0, restart_lost_vms=False))
    assert (policy.freeze_retries, policy.restart_lost_vms) == (0, False)
