"""Gates: a limit may be reached but not exceeded."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fleet.policy import Tally, host_is_up, judge, judge_canary
from fleet.scenario import GateSpec
from node.api import HostOutcome, UpdateCommand, UpdatePolicy, UpdateResult, VmOutcome, VmResult
from tests.fleet.rollouts import NEW, SECOND, lost_vm, result_of

COMMAND = UpdateCommand("r1-h01", 1, 0, NEW, UpdatePolicy())
SLOW = VmResult("vm-9", VmOutcome.RESTARTED, "panic", 200 * SECOND, {"restart": 200 * SECOND})


def failed() -> UpdateResult:
    return result_of(COMMAND, outcome=HostOutcome.FAILED, reason="freeze-failed")


def rolled_back() -> UpdateResult:
    return result_of(COMMAND, outcome=HostOutcome.ROLLED_BACK, reason="panic")


def with_vms(*vms: VmResult) -> UpdateResult:
    return result_of(COMMAND, vms=vms)


ROWS = [
    # results                     gate                                   why it halts
    ([failed()], GateSpec(), "1 host failed or rolled back, the gate allows 0"),
    ([failed(), rolled_back()], GateSpec(max_failed_hosts=1), "2 hosts failed"),
    ([with_vms(lost_vm("a"))], GateSpec(max_failed_hosts=9), "1 VM lost, the gate allows 0"),
    ([with_vms(lost_vm("a"), lost_vm("b"))], GateSpec(max_lost_vms=1), "2 VMs lost"),
    ([with_vms(SLOW)], GateSpec(max_downtime_ns=30 * SECOND), "vm-9 was down for 200.0 s"),
    ([], GateSpec(), ""),
    ([result_of(COMMAND)], GateSpec(), ""),
    ([failed(), rolled_back()], GateSpec(max_failed_hosts=2), ""),
    ([with_vms(lost_vm("a"))], GateSpec(max_lost_vms=1), ""),
    ([with_vms(SLOW)], GateSpec(max_downtime_ns=200 * SECOND), ""),
    ([with_vms(SLOW)], GateSpec(), ""),
]


@pytest.mark.parametrize(("results", "gate", "why"), ROWS)
def test_a_gate_closes_when_its_limit_is_exceeded(
    results: list[UpdateResult], gate: GateSpec, why: str
) -> None:
    tally = Tally()
    for result in results:
        tally.add(result)
    said = judge(tally, gate)
    assert said.startswith(why) if why else said == ""


def test_a_lost_vm_does_not_count_as_a_finite_downtime() -> None:
    tally = Tally()
    tally.add(with_vms(lost_vm("a")))
    assert tally.longest_downtime_ns == 0
    assert tally.lost_vms == 1


def test_a_canary_must_have_updated_something() -> None:
    assert judge_canary(0, 1) == "the canary host was not updated"
    assert judge_canary(0, 2) == "none of the 2 canary hosts was updated"
    assert judge_canary(1, 2) == ""
    assert judge_canary(0, 0) == ""


def test_a_host_that_runs_nothing_is_down() -> None:
    assert host_is_up(rolled_back())
    assert not host_is_up(replace(failed(), release=""))
