"""Host updates as a table: what strikes, what the policy says, how it ends. Unhappy ones first."""

from __future__ import annotations

import msgspec
import pytest

from kernelmodel.sim.trace import decode
from node.api import (
    BLACKOUT_PHASES,
    Backing,
    FaultSpec,
    HostOutcome,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)
from node.host_state import HostState
from tests.node.update_hosts import (
    HOST,
    HUGE,
    MIB,
    NEW,
    OLD,
    PLAIN,
    SECOND,
    VMS,
    fault,
    make_host,
    outcomes,
    update,
)

UPDATED, FAILED, ROLLED_BACK = HostOutcome.UPDATED, HostOutcome.FAILED, HostOutcome.ROLLED_BACK
PRESERVED, RESTARTED, LOST = VmOutcome.PRESERVED, VmOutcome.RESTARTED, VmOutcome.LOST
UP, LOADED = HostState.UP, HostState.KEXEC_LOADED
DEFAULT = UpdatePolicy()
DEFAULTS = msgspec.structs.asdict(DEFAULT)
COLD = UpdatePolicy(on_freeze_failure="cold-reboot")
TO_NEW = UpdatePolicy(on_panic="cold-reboot-new")
NO_RETRY = UpdatePolicy(freeze_retries=0)
LEAVE_LOST = UpdatePolicy(restart_lost_vms=False)
IMPATIENT = UpdatePolicy(boot_timeout_ns=SECOND // 10)
ALL = BLACKOUT_PHASES
#: The last one is where the next kernel's entry point panics.
DEAD = ("freeze", "kexec")

F = fault
EVERYONE = {vm.name: RESTARTED for vm in VMS}


def lost(*names: str) -> dict[str, VmOutcome]:
    return dict.fromkeys(names, LOST)


#: what strikes, policy | outcome, reason | release, state, freezes, VMs not preserved, phases
Row = tuple[
    list[FaultSpec],
    UpdatePolicy,
    tuple[HostOutcome, str],
    tuple[str, HostState, int, dict[str, VmOutcome], tuple[str, ...]],
]
# fmt: off
ROWS: list[Row] = [
    ([F("kexec-load-fails")], DEFAULT, (FAILED, "kexec-load-failed"), (OLD, UP, 0, {}, ())),
    ([F("freeze-fails", times=3)], DEFAULT, (FAILED, "freeze-failed"), (OLD, LOADED, 3, {}, ())),
    ([F("freeze-fails", times=0)], DEFAULT, (FAILED, "freeze-failed"), (OLD, LOADED, 3, {}, ())),
    ([F("freeze-fails")], NO_RETRY, (FAILED, "freeze-failed"), (OLD, LOADED, 1, {}, ())),
    ([F("freeze-fails", times=0)], COLD, (UPDATED, "freeze-failed"), (NEW, UP, 3, EVERYONE, ())),
    ([F("next-kernel-panics")], DEFAULT, (ROLLED_BACK, "panic"), (OLD, UP, 1, EVERYONE, DEAD)),
    ([F("next-kernel-panics")], TO_NEW, (UPDATED, "panic"), (NEW, UP, 1, EVERYONE, DEAD)),
    ([F("next-kernel-panics")], COLD, (ROLLED_BACK, "panic"), (OLD, UP, 1, EVERYONE, DEAD)),
    ([F("freeze-fails"), F("next-kernel-panics")],
     DEFAULT, (ROLLED_BACK, "panic"), (OLD, UP, 2, EVERYONE, DEAD)),
    ([F("drop-preserved-page", vm="huge"), F("next-kernel-panics")],
     DEFAULT, (ROLLED_BACK, "panic"), (OLD, UP, 1, EVERYONE, DEAD)),
    ([F("boot-hangs")], DEFAULT, (ROLLED_BACK, "boot-timeout"), (OLD, UP, 1, EVERYONE, DEAD)),
    ([F("boot-hangs")], TO_NEW, (UPDATED, "boot-timeout"), (NEW, UP, 1, EVERYONE, DEAD)),
    ([F("slow-boot", factor=1000)],
     DEFAULT, (ROLLED_BACK, "boot-timeout"), (OLD, UP, 1, EVERYONE, DEAD[:1])),
    ([F("slow-boot", factor=1000)],
     TO_NEW, (UPDATED, "boot-timeout"), (NEW, UP, 1, EVERYONE, DEAD[:1])),
    ([F("slow-boot", factor=1000), F("next-kernel-panics")],
     DEFAULT, (ROLLED_BACK, "boot-timeout"), (OLD, UP, 1, EVERYONE, DEAD[:1])),
    ([], IMPATIENT, (ROLLED_BACK, "boot-timeout"), (OLD, UP, 1, EVERYONE, DEAD[:1])),
    *(([F(kind, vm=vm)], DEFAULT, (UPDATED, "vm-lost"), (NEW, UP, 1, lost(vm), ALL))
      for kind in ("drop-preserved-page", "corrupt-folio-entry")
      for vm in ("plain", "huge", "giant")),
    ([F("drop-preserved-page", vm="giant")],
     LEAVE_LOST, (UPDATED, "vm-lost"), (NEW, UP, 1, lost("giant"), ALL)),
    ([F("drop-preserved-page", vm="plain"), F("corrupt-folio-entry", vm="huge")],
     DEFAULT, (UPDATED, "vm-lost"), (NEW, UP, 1, lost("plain", "huge"), ALL)),
    ([F("corrupt-folio-entry")], DEFAULT, (UPDATED, "vm-lost"), (NEW, UP, 1, lost("plain"), ALL)),
    ([F("freeze-fails", times=2), F("drop-preserved-page", vm="huge")],
     DEFAULT, (UPDATED, "vm-lost"), (NEW, UP, 3, lost("huge"), ALL)),
    ([F("freeze-fails")], DEFAULT, (UPDATED, "freeze-retried"), (NEW, UP, 2, {}, ALL)),
    ([F("freeze-fails", times=2)], COLD, (UPDATED, "freeze-retried"), (NEW, UP, 3, {}, ALL)),
    ([F("slow-boot", factor=4)], DEFAULT, (UPDATED, ""), (NEW, UP, 1, {}, ALL)),
    ([], DEFAULT, (UPDATED, ""), (NEW, UP, 1, {}, ALL)),
]
# fmt: on


def named(row: Row) -> str:
    faults, policy, (_, reason), _ = row
    said = ["+".join(f"{spec.kind}-{spec.vm}{spec.times}" for spec in faults)]
    said += [f"{k}={v}" for k, v in msgspec.structs.asdict(policy).items() if v != DEFAULTS[k]]
    return " ".join([*said, "->", reason or "fine"])


@pytest.mark.parametrize(("faults", "policy", "ends", "state"), ROWS, ids=map(named, ROWS))
def test_how_an_update_ends(
    faults: list[FaultSpec],
    policy: UpdatePolicy,
    ends: tuple[HostOutcome, str],
    state: tuple[str, HostState, int, dict[str, VmOutcome], tuple[str, ...]],
) -> None:
    release, host_state, freezes, hit, phases = state
    host = make_host(*faults)
    result = update(host, policy=policy)

    assert (result.outcome, result.reason) == ends
    assert bool(result.detail) == bool(result.reason)
    assert (result.release, host.release, host.state) == (release, release, host_state)
    assert result.freeze_attempts == freezes
    assert outcomes(result) == dict.fromkeys(EVERYONE, PRESERVED) | hit
    assert tuple(result.phases_ns) == phases
    running = 3 if policy.restart_lost_vms else 3 - len(hit)
    assert result.gauges.vms == {"running": running, "paused": 0, "stopped": 3 - running}
    assert not host.sessions()
    assert (result.blackout_start_ns is not None) == bool(phases)
    assert (result.blackout_end_ns is not None) == (phases == ALL)
    failed = freezes - bool(phases)
    for vm in result.vms:
        if vm.outcome is not LOST:
            check_phases(vm, result, failed)
    if phases == ALL:
        check_preserved(result, set(hit))
    else:
        assert result.preserved_pages == {}
        assert "finish" not in result.outside_ns


def check_phases(vm: VmResult, result: UpdateResult, failed_freezes: int) -> None:
    """A VM's downtime is made of what happened to it and of nothing else."""
    expected = {"failed_freeze"} if failed_freezes else set()
    if result.blackout_start_ns is not None:
        expected |= {"pause_wait", *result.phases_ns}
        if vm.outcome is PRESERVED:
            expected |= {"resume_wait"}
    if vm.outcome is RESTARTED:
        expected |= {"restart"}
    assert set(vm.phases_ns) == expected
    if result.blackout_start_ns is not None:
        assert {name: vm.phases_ns[name] for name in result.phases_ns} == result.phases_ns


def check_preserved(result: UpdateResult, hit: set[str]) -> None:
    """Pages of those who came back, between the instants at which KHO held them."""
    pages = {"plain": ("4KiB", 16384), "huge": ("2MiB", 128), "giant": ("1GiB", 2)}
    assert result.preserved_pages == dict(pages[name] for name in pages if name not in hit)
    assert set(result.outside_ns) == {"kexec_file_load", "preserve", "finish"}
    assert result.preserved_from_ns is not None
    assert result.preserved_until_ns is not None
    assert result.blackout_start_ns is not None
    assert result.blackout_end_ns is not None
    assert result.start_ns < result.preserved_from_ns <= result.blackout_start_ns
    assert result.blackout_end_ns < result.preserved_until_ns <= result.end_ns


@pytest.mark.parametrize("timeout_ms", range(0, 11_000, 500))
def test_the_watchdog_bites_at_its_time_wherever_the_boot_stands(timeout_ms: int) -> None:
    timeout_ns = timeout_ms * 1_000_000
    needs_ns = boot_ns(update(make_host()))
    policy = UpdatePolicy(boot_timeout_ns=timeout_ns)
    result = update(make_host(record_events=True), policy=policy)
    if timeout_ns >= needs_ns:
        assert result.reason == ""
        return
    assert result.reason == "boot-timeout"
    assert boot_ns(result) <= timeout_ns
    events = list(decode(result.events))
    (jump,) = [event for event in events if event.name == "jump"]
    (died,) = [event for event in events if event.fields.get("state") == HostState.PANICKED]
    assert died.now_ns == jump.now_ns + timeout_ns


#: from, to, watchdog: what a kernel without /dev/liveupdate runs at the start, in the end, or not
WITHOUT_AN_AGENT = [("6.16", NEW, DEFAULT), (OLD, "6.16", DEFAULT), (OLD, "6.16", IMPATIENT)]


@pytest.mark.parametrize(("release", "target", "policy"), WITHOUT_AN_AGENT)
def test_time_never_runs_backwards_in_what_a_host_records(
    release: str, target: str, policy: UpdatePolicy
) -> None:
    host = make_host(release=release, vms=[PLAIN], record_events=True)
    events = list(decode(update(host, release=target, policy=policy).events))
    assert [event.now_ns for event in events] == sorted(event.now_ns for event in events)
    refused = [event for event in events if event.name == "agent"]
    assert len(refused) == (0 if policy is IMPATIENT else 1)


def boot_ns(result: UpdateResult) -> int:
    return sum(ns for name, ns in result.phases_ns.items() if name not in ("freeze", "retrieve"))


def test_vms_are_back_in_the_order_of_their_lanes_and_wait_for_the_slowest_pause() -> None:
    vms = [VmSpec(f"vm{n}", HOST, 8 * MIB, Backing.HUGETLB_2M, 1 + 15 * n) for n in range(4)]
    result = update(make_host(vms=vms))
    waits = [vm.phases_ns["pause_wait"] for vm in result.vms]
    assert min(waits) == 0
    assert len(set(waits)) == 4
    resumes = [vm.phases_ns["resume_wait"] for vm in result.vms]
    assert max(resumes) > min(resumes) > 0


def test_failed_freezes_cost_downtime_but_not_the_delay_between_them() -> None:
    policy = UpdatePolicy(freeze_retries=3, freeze_retry_delay_ns=60 * SECOND)
    result = update(make_host(fault("freeze-fails", times=3)), policy=policy)
    assert result.end_ns - result.start_ns > 180 * SECOND
    for vm in result.vms:
        assert vm.downtime_ns is not None
        assert 0 < vm.phases_ns["failed_freeze"] < SECOND
        assert vm.downtime_ns < 30 * SECOND


def test_every_failed_freeze_counts() -> None:
    failed = [
        [vm.phases_ns["failed_freeze"] for vm in update(make_host(F("freeze-fails", times=n))).vms]
        for n in (1, 2)
    ]
    assert all(once < twice for once, twice in zip(*failed, strict=True))


def test_a_cold_reboot_after_freezes_that_failed_is_downtime() -> None:
    result = update(make_host(fault("freeze-fails", times=0)), policy=COLD)
    assert all((vm.downtime_ns or 0) > 300 * SECOND for vm in result.vms)


def test_a_refused_preserve_leaves_everything_as_it_was() -> None:
    host = make_host(release="7.3.2")  # takes plain memfds alone
    result = update(host, release="7.3.4")
    assert (result.outcome, result.reason) == (FAILED, "preserve-failed")
    assert "ENOENT" in result.detail
    assert set(outcomes(result).values()) == {PRESERVED}
    assert [vm.downtime_ns for vm in result.vms] == [0, 0, 0]
    assert not host.sessions()
    assert result.preserved_from_ns is None
    assert update(host, release="7.3.4").reason == "preserve-failed"


def test_released_kernels_preserve_plain_memfds() -> None:
    result = update(make_host(release="7.3.2", vms=[PLAIN]), release="7.3.4")
    assert (result.outcome, result.reason, result.release) == (UPDATED, "", "7.3.4")
    assert result.preserved_pages == {"4KiB": 16384}


#: from, to, VMs, why they are lost, what else is said
INCOMPATIBLE = [
    (OLD, "7.3.4", VMS, "cannot open /dev/liveupdate: EIO", ""),
    (OLD, "7.2.13", (PLAIN, HUGE), "cannot open /dev/liveupdate: EIO", ""),
    (OLD, "6.19", VMS, "retrieve failed with ENOENT", "KHO: disabling KHO revival"),
    (OLD, "6.16", VMS, "cannot open /dev/liveupdate: ENOENT", "KHO: disabling KHO revival"),
    ("7.3.2", "6.19", (PLAIN,), "retrieve failed with ENOENT", "KHO: disabling KHO revival"),
    ("6.19", "7.3.4", (PLAIN,), "retrieve failed with ENOENT", "expected 'kho-v4'"),
    ("7.3.2", "7.2.13", (PLAIN,), "", ""),
    ("6.19", "6.19", (PLAIN,), "", ""),
]


@pytest.mark.parametrize(("old", "new", "vms", "why", "said"), INCOMPATIBLE)
def test_a_release_that_cannot_read_the_handover_loses_the_vms(
    old: str, new: str, vms: tuple[VmSpec, ...], why: str, said: str
) -> None:
    host = make_host(release=old, vms=vms)
    result = update(host, release=new)
    assert (result.outcome, result.release) == (UPDATED, new)
    assert {vm.outcome for vm in result.vms} == {LOST if why else PRESERVED}
    assert {vm.reason for vm in result.vms} == {why}
    assert why in result.detail
    assert said in result.detail
    assert result.gauges.vms["running"] == len(vms)
    assert result.blackout_end_ns is not None
    assert update(host, release=new).release == new  # and it lives


def test_before_7_3_no_gigantic_page_is_left_to_start_a_lost_vm_again() -> None:
    """Under KHO its boot allocates them from scratch alone, and no area has a gigabyte."""
    host = make_host(release=OLD)
    result = update(host, release="7.2.13")
    why = "cannot open /dev/liveupdate: EIO"
    assert {vm.name: vm.reason for vm in result.vms} == {
        "plain": why,
        "huge": why,
        "giant": f"{why}; cannot start again: ENOMEM",
    }
    assert result.gauges.vms["running"] == 2


def test_a_release_without_live_update_cannot_be_updated_live() -> None:
    host = make_host(release="6.16", vms=[PLAIN])
    result = update(host)
    assert (result.outcome, result.reason) == (FAILED, "not-ready")
    assert "6.16 has no agent: cannot open /dev/liveupdate: ENOENT" in result.detail
    assert [vm.downtime_ns for vm in result.vms] == [0]


def test_a_host_without_vms() -> None:
    result = update(make_host(vms=()))
    assert (result.outcome, result.reason, result.vms) == (UPDATED, "", ())
    assert tuple(result.phases_ns) == ALL[1:-1]  # there was nothing to freeze or retrieve
    assert set(result.outside_ns) == {"kexec_file_load"}
    assert result.preserved_from_ns is result.preserved_until_ns is None


@pytest.mark.parametrize("policy", [DEFAULT, COLD])
@pytest.mark.parametrize("kind", ["next-kernel-panics", "boot-hangs"])
def test_a_host_without_vms_survives_faults(kind: str, policy: UpdatePolicy) -> None:
    assert update(make_host(fault(kind), vms=()), policy=policy).outcome is ROLLED_BACK
