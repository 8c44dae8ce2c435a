"""Updates of hosts that are not as fresh as on the first day, one after the other."""

from __future__ import annotations

from unittest.mock import Mock, patch

import pytest

from kernelmodel.errors import KernelPanic
from node import host as host_module
from node.api import (
    MIN_UPDATE_NS,
    HostOutcome,
    UpdateCommand,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
)
from node.host import Host
from node.host_state import HostState
from node.live_update import update_host
from node.vm import VmState
from tests.node.update_hosts import (
    GIB,
    HOST,
    NEW,
    OLD,
    PLAIN,
    SECOND,
    VMS,
    checked,
    fault,
    make_host,
    outcomes,
    update,
)

PRESERVED, RESTARTED, LOST = VmOutcome.PRESERVED, VmOutcome.RESTARTED, VmOutcome.LOST
FAILED = HostOutcome.FAILED


def at_once(host: Host, release: str = NEW) -> UpdateResult:
    command = UpdateCommand(HOST, 0, host.clock.now_ns, release, UpdatePolicy())
    return checked(update_host(host, command))


def test_an_update_that_is_refused_at_once_takes_the_least_time() -> None:
    host = make_host(release="6.16", vms=[PLAIN])
    result = at_once(host)
    assert result.reason == "not-ready"
    assert result.end_ns - result.start_ns == MIN_UPDATE_NS
    assert host.clock.now_ns == result.end_ns


def test_an_update_starts_when_the_host_has_time() -> None:
    host = make_host()
    first = update(host)
    late = checked(update_host(host, UpdateCommand(HOST, 1, 0, OLD, UpdatePolicy())))
    assert late.start_ns == 0
    assert late.end_ns > first.end_ns
    assert late.release == OLD


def test_ten_updates_in_a_row_leave_no_trace_in_the_host() -> None:
    host = make_host()
    gauges, free = [], []
    for seq in range(10):
        result = update(host, (NEW, OLD)[seq % 2], seq=seq)
        assert result.outcome is HostOutcome.UPDATED
        assert set(outcomes(result).values()) == {PRESERVED}
        assert host.liveupdate_num == seq + 1
        gauges.append((result.gauges.hugetlb_pages, result.gauges.vms))
        free.append([host.kernel.page_alloc.nr_free_pages(nid) for nid in (0, 1)])
    assert gauges == gauges[:1] * 10
    for node in zip(*free, strict=True):
        assert max(node) - min(node) < 8  # the tree's own pages come and go


def test_every_update_of_a_chain_has_luck_of_its_own() -> None:
    host = make_host()
    inits = {update(host, seq=seq).phases_ns["init"] for seq in range(4)}
    assert len(inits) > 1


@pytest.mark.parametrize("kind", ["next-kernel-panics", "boot-hangs", "freeze-fails"])
def test_a_fault_that_always_strikes_never_lets_the_host_through(kind: str) -> None:
    host = make_host(fault(kind, times=0))
    for seq in range(3):
        result = update(host, seq=seq)
        assert result.outcome is not HostOutcome.UPDATED
        assert host.release == OLD
        assert result.gauges.vms["running"] == 3


@pytest.mark.parametrize(("times", "until"), [(1, 1), (2, 2), (5, 5)])
@pytest.mark.parametrize("kind", ["next-kernel-panics", "boot-hangs", "kexec-load-fails"])
def test_a_fault_strikes_as_often_as_it_says(kind: str, times: int, until: int) -> None:
    host = make_host(fault(kind, times=times))
    ends = [update(host, seq=seq).outcome for seq in range(until + 2)]
    assert [outcome is HostOutcome.UPDATED for outcome in ends] == [False] * until + [True] * 2


def test_a_cold_reboot_frees_everything_that_was_preserved() -> None:
    host = make_host(fault("next-kernel-panics"))
    fresh = make_host()
    result = update(host)
    assert result.outcome is HostOutcome.ROLLED_BACK
    assert result.gauges == fresh.gauges()
    for nid in (0, 1):
        left = host.kernel.page_alloc.nr_free_pages(nid)
        assert left == fresh.kernel.page_alloc.nr_free_pages(nid)
    assert host.kernel.kho.incoming is None
    assert host.liveupdate_num == 0
    assert update(host, seq=1).reason == ""


def test_vms_that_came_back_are_others_after_a_cold_reboot() -> None:
    host = make_host(fault("next-kernel-panics"))
    before = {name: vm.read_fingerprint(host.machine.memory) for name, vm in host.vms.items()}
    update(host)
    after = {name: vm.read_fingerprint(host.machine.memory) for name, vm in host.vms.items()}
    assert all(before[name] != after[name] for name in before)


def test_a_vm_that_stood_still_is_taken_along_and_stands_still() -> None:
    host = make_host()
    host.pause_vm("huge")
    held = host.vm("huge").read_fingerprint(host.machine.memory)
    result = update(host)
    assert set(outcomes(result).values()) == {PRESERVED}
    (huge,) = [vm for vm in result.vms if vm.name == "huge"]
    assert (huge.downtime_ns, huge.phases_ns) == (0, {})
    assert host.vm("huge").state is VmState.PAUSED
    assert host.vm("huge").read_fingerprint(host.machine.memory) == held
    assert result.preserved_pages["2MiB"] == 128
    host.resume_vm("huge")
    assert set(outcomes(update(host, seq=1)).values()) == {PRESERVED}


@pytest.mark.parametrize(
    ("kind", "reason", "state", "outcome"),
    [
        ("freeze-fails", "freeze-failed", VmState.PAUSED, PRESERVED),
        ("next-kernel-panics", "panic", VmState.RUNNING, RESTARTED),
        ("drop-preserved-page", "vm-lost", VmState.RUNNING, LOST),
    ],
)
def test_a_vm_that_stood_still_and_an_update_that_goes_wrong(
    kind: str, reason: str, state: VmState, outcome: VmOutcome
) -> None:
    host = make_host(fault(kind, times=0))
    host.pause_vm("plain")
    result = update(host)
    assert result.reason == reason
    (plain, huge, _) = result.vms
    assert (plain.outcome, host.vm("plain").state) == (outcome, state)
    if outcome is PRESERVED:
        assert plain.downtime_ns == 0
        assert (huge.downtime_ns or 0) > 0
    elif outcome is RESTARTED:
        assert (plain.downtime_ns or 0) > 300 * SECOND


def test_a_vm_without_memory_is_left_alone() -> None:
    host = make_host(fault("drop-preserved-page", vm="giant"))
    first = update(host, policy=UpdatePolicy(restart_lost_vms=False))
    assert outcomes(first)["giant"] is LOST
    second = update(host, OLD, seq=1)
    assert (second.outcome, second.reason) == (HostOutcome.UPDATED, "")
    assert list(outcomes(second)) == ["plain", "huge"]
    assert host.vm("giant").state is VmState.STOPPED
    host.restart_vm("giant")
    assert outcomes(update(host, seq=2))["giant"] is PRESERVED


def test_a_cold_reboot_does_not_start_who_was_down_before() -> None:
    host = make_host(fault("next-kernel-panics"))
    host.vm("giant").stop()
    result = update(host)
    assert list(outcomes(result)) == ["plain", "huge"]
    assert result.gauges.vms == {"running": 2, "paused": 0, "stopped": 1}


PANICS = Mock(side_effect=KernelPanic("no memory to boot with"))


def test_a_host_that_does_not_come_up_at_all_and_what_may_follow() -> None:
    host = make_host(fault("freeze-fails", times=0))
    with patch.object(host_module, "boot", PANICS):
        result = update(host, policy=UpdatePolicy(on_freeze_failure="cold-reboot"))
    assert (result.outcome, result.reason, result.release) == (FAILED, "freeze-failed", "")
    assert str(host.state) == "panicked"
    assert set(outcomes(result).values()) == {LOST}
    assert {vm.reason for vm in result.vms} == {"the host does not come up"}
    assert result.gauges.vms == {"running": 0, "paused": 0, "stopped": 3}

    dead = at_once(host)
    assert (dead.outcome, dead.reason, dead.detail) == (FAILED, "not-ready", "host is panicked")
    assert dead.vms == ()

    host.cold_reboot(OLD)
    assert host.state is HostState.UP
    assert host.gauges().vms["stopped"] == 3
    for vm in VMS:
        host.restart_vm(vm.name)
    assert host.gauges().vms["running"] == 3


def test_a_boot_that_fails_twice() -> None:
    host = make_host(fault("next-kernel-panics"))
    with patch.object(host_module, "boot", PANICS):
        result = update(host)
    assert (result.outcome, result.reason, result.release) == (FAILED, "panic", "")
    assert host.state is HostState.PANICKED
    assert set(outcomes(result).values()) == {LOST}


def test_a_vm_that_finds_no_memory_to_start_again_in_is_lost() -> None:
    host = make_host(fault("next-kernel-panics"))
    with patch.object(Host, "cold_reboot", cold_reboot_without_gigantic_pages):
        result = update(host)
    assert outcomes(result) == {"plain": RESTARTED, "huge": RESTARTED, "giant": LOST}
    (giant,) = [vm for vm in result.vms if vm.name == "giant"]
    assert giant.reason == "panic; cannot start again: ENOMEM"
    assert giant.downtime_ns is None


_COLD_REBOOT = Host.cold_reboot


def cold_reboot_without_gigantic_pages(host: Host, release: str) -> None:
    _COLD_REBOOT(host, release)
    hstate = host.kernel.hugetlb.hstates[18]
    hstate.alloc_upto(hstate.free_huge_pages, 0)


def test_an_unknown_release_is_refused() -> None:
    result = update(make_host(), "5.10")
    assert (result.outcome, result.reason) == (FAILED, "not-ready")
    assert "5.10" in result.detail


def test_sessions_that_somebody_else_made_are_none_of_the_updates_business() -> None:
    host = make_host(fault("freeze-fails", times=0))
    host.create_session("mine")
    result = update(host)
    assert result.reason == "freeze-failed"
    assert [session.name for session in host.sessions()] == ["mine"]


def test_a_session_in_the_way_of_a_vms_own() -> None:
    host = make_host()
    host.preserve_vm("huge")
    result = update(host)
    assert (result.outcome, result.reason) == (FAILED, "preserve-failed")
    assert "EEXIST" in result.detail
    assert [session.name for session in host.sessions()] == ["huge"]
    assert set(outcomes(result).values()) == {PRESERVED}


def test_a_host_with_one_node() -> None:
    host = make_host(node_bytes=(12 * GIB,))
    for seq, release in enumerate([NEW, OLD, NEW]):
        result = update(host, release, seq=seq)
        assert result.reason == ""
        assert set(outcomes(result).values()) == {PRESERVED}


def test_a_host_with_four_nodes_and_one_cpu() -> None:
    result = update(make_host(node_bytes=(4 * GIB,) * 4, cpus=1))
    assert result.reason == ""
    assert set(outcomes(result).values()) == {PRESERVED}
