"""The books: what a look at the fleet shows before, during and after a host's update."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fleet.api import HISTOGRAM_EDGES_NS, FleetSnapshot
from fleet.coordinator import Coordinator
from fleet.plan import make_plan
from fleet.snapshot import Books
from node.api import (
    Backing,
    HostGauges,
    HostOutcome,
    UpdateCommand,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)
from tests.fleet.rollouts import NEW, OLD, SECOND, Log, racks, result_of, scenario_of

SCENARIO = replace(
    scenario_of(racks(2)),
    vms=tuple(
        VmSpec(name, "r1-h01", 1 << 30, Backing.HUGETLB_2M, 1) for name in ("a", "b", "c", "d")
    ),
)
COMMAND = UpdateCommand("r1-h01", 1, 0, NEW, UpdatePolicy())

# The host blacks out from 10 s to 20 s. VMs were paused half a second before.
RESULT = replace(
    result_of(
        COMMAND,
        outcome=HostOutcome.ROLLED_BACK,
        reason="panic",
        took_ns=60 * SECOND,
        vms=(
            VmResult(
                "a",
                VmOutcome.PRESERVED,
                "",
                11 * SECOND,
                {"pause_wait": SECOND // 2, "kexec": 10 * SECOND, "resume_wait": SECOND // 2},
            ),
            VmResult(
                "b",
                VmOutcome.RESTARTED,
                "panic",
                40 * SECOND,
                {"pause_wait": SECOND // 2, "kexec": 4 * SECOND, "restart": 71 * SECOND // 2},
            ),
            VmResult("c", VmOutcome.LOST, "fingerprint", None, {}),
            VmResult("d", VmOutcome.PRESERVED, "", 0, {}),
        ),
    ),
    blackout_start_ns=10 * SECOND,
    blackout_end_ns=20 * SECOND,
    preserved_from_ns=5 * SECOND,
    preserved_until_ns=25 * SECOND,
    preserved_pages={"2MiB": 512},
    phases_ns={"kexec": 10 * SECOND},
    outside_ns={"preserve": 3 * SECOND},
    gauges=HostGauges(OLD, {}, {"2MiB": {"free": 8, "used": 2}}, 100),
)

MOMENTS = [
    # at s   running paused restarting lost   pages held
    (0.0, 4, 0, 0, 0, 0),
    (5.0, 4, 0, 0, 0, 512),
    (9.4, 4, 0, 0, 0, 512),
    (9.5, 2, 2, 0, 0, 512),
    (10.0, 1, 3, 0, 0, 512),
    (13.9, 1, 3, 0, 0, 512),
    (14.0, 1, 2, 1, 0, 512),
    (20.0, 1, 1, 1, 1, 512),
    (20.5, 2, 0, 1, 1, 512),
    (25.0, 2, 0, 1, 1, 0),
    (49.5, 3, 0, 0, 1, 0),
]


def books() -> tuple[Books, Coordinator]:
    return Books(SCENARIO), Coordinator(make_plan(SCENARIO), SCENARIO.rollout.gate, Log())


def at(seconds: float, result: UpdateResult = RESULT) -> FleetSnapshot:
    ledger, coordinator = books()
    ledger.started(COMMAND.host)
    ledger.answered(result)
    return ledger.snapshot(int(seconds * 1e9), coordinator)


@pytest.mark.parametrize(("seconds", "running", "paused", "restarting", "lost", "held"), MOMENTS)
def test_a_host_that_is_updating(
    seconds: float, running: int, paused: int, restarting: int, lost: int, held: int
) -> None:
    snapshot = at(seconds)
    assert snapshot.vms == {
        "running": running,
        "paused": paused,
        "restarting": restarting,
        "lost": lost,
    }
    assert snapshot.preserved_pages["2MiB"] == held
    assert snapshot.hosts["updating"] == 1
    assert snapshot.host_states["r1-h01"] == "updating"
    assert snapshot.host_updates_total == {}


NO_BLACKOUT = replace(RESULT, blackout_start_ns=None, blackout_end_ns=None, preserved_from_ns=None)
PAUSED = {"pause_wait": SECOND // 2, "kexec": 10 * SECOND, "resume_wait": SECOND // 2}


def with_phases(result: UpdateResult, *phases_ns: dict[str, int]) -> UpdateResult:
    """The update with VMs of these phases, which stand for themselves."""
    outcome = VmOutcome.RESTARTED
    vms = (
        VmResult(name, outcome, "", sum(phases.values()), phases)
        for name, phases in zip("abcd", phases_ns, strict=False)
    )
    return replace(result, vms=tuple(vms))


def test_a_host_that_never_blacked_out_pauses_nobody() -> None:
    failed = with_phases(NO_BLACKOUT, {}, {"failed_freeze": SECOND}, {})
    for seconds in (0, 15, 59):
        assert at(seconds, failed).vms["running"] == 4
        assert at(seconds, failed).preserved_pages["2MiB"] == 0


@pytest.mark.parametrize(
    ("seconds", "restarting"), [(19.9, 0), (20.0, 2), (49.9, 2), (50.0, 1), (59.9, 1), (60.0, 0)]
)
def test_vms_that_ran_until_a_reset_took_them_are_restarting(
    seconds: float, restarting: int
) -> None:
    gave_up = {"failed_freeze": SECOND, "restart": 30 * SECOND}
    vms = at(seconds, with_phases(NO_BLACKOUT, gave_up, {"restart": 40 * SECOND})).vms
    assert vms == {"running": 4 - restarting, "paused": 0, "restarting": restarting, "lost": 0}


@pytest.mark.parametrize(
    ("seconds", "state"),
    [(9.4, "running"), (9.5, "paused"), (20.4, "paused"), (20.5, "running"), (40.0, "restarting")],
)
def test_a_vm_that_was_back_and_then_taken_by_a_reset(seconds: float, state: str) -> None:
    taken = PAUSED | {"failed_freeze": 3 * SECOND, "restart": 20 * SECOND}
    assert at(seconds, with_phases(RESULT, taken)).vms[state] == (4 if state == "running" else 1)


def test_counters_move_when_the_update_ends() -> None:
    ledger, coordinator = books()
    before = HostGauges(OLD, {}, {"2MiB": {"free": 10, "used": 0}}, 100)
    ledger.gauged({"r1-h01": before, "r1-h02": before})
    ledger.started(COMMAND.host)
    ledger.answered(RESULT)
    ledger.ended(RESULT)
    ledger.over()
    snapshot = ledger.snapshot(60 * SECOND, coordinator)
    assert snapshot.hosts == {
        "pending": 0,
        "updating": 0,
        "updated": 0,
        "failed": 0,
        "skipped": 1,
        "rolled_back": 1,
    }
    assert snapshot.vms == {"running": 3, "paused": 0, "restarting": 0, "lost": 1}
    assert snapshot.host_updates_total == {("rolled_back", "panic"): 1}
    assert snapshot.pages_preserved_total == {"4KiB": 0, "2MiB": 512, "1GiB": 0}
    assert snapshot.hugetlb_pages == {"2MiB": {"free": 18, "used": 2, "reserved": 0, "surplus": 0}}
    assert snapshot.kho_scratch_bytes == 200
    assert set(snapshot.phases) == {"kexec", "preserve"}


def test_a_lost_vm_s_downtime_lies_beyond_every_edge_and_one_never_paused_has_none() -> None:
    ledger, coordinator = books()
    ledger.started(COMMAND.host)
    ledger.answered(RESULT)
    ledger.ended(RESULT)
    downtime = ledger.snapshot(60 * SECOND, coordinator).downtime
    assert sum(downtime.counts) == 3
    assert downtime.counts[-1] == 1
    assert downtime.sum_ns == 51 * SECOND


def test_a_value_on_an_edge_belongs_below_it() -> None:
    ledger, coordinator = books()
    ten = 10 * SECOND
    vm = VmResult("a", VmOutcome.PRESERVED, "", ten, {"kexec": ten})
    ledger.answered(replace(RESULT, vms=(vm,)))
    ledger.ended(replace(RESULT, vms=(vm,)))
    downtime = ledger.snapshot(60 * SECOND, coordinator).downtime
    assert downtime.counts[HISTOGRAM_EDGES_NS.index(ten)] == 1
