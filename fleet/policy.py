"""The gates of a rollout: what has happened so far, and whether that is too much.

A gate closes as soon as a limit is *exceeded*, in the middle of a wave too: waiting for the end
of the wave would spend hosts that need not be spent. Hosts that are in flight then finish, so the
final count may go further beyond the limit (SSM's error threshold works the same way).

Every host that did not end up on the target counts against `max_failed_hosts`, those that rolled
back included: a release that panics everywhere would otherwise pass a gate on failures. One rule
needs no setting: a canary of which not a single host was updated halts the rollout, whatever the
limits allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet.units import counted
from node.api import HostOutcome, VmOutcome

if TYPE_CHECKING:
    from fleet.scenario import GateSpec
    from node.api import UpdateResult

__all__ = ["Tally", "host_is_up", "judge", "judge_canary"]


@dataclass(slots=True)
class Tally:
    """What a rollout has cost so far."""

    updated_hosts: int = 0
    failed_hosts: int = 0  # failed or rolled back
    lost_vms: int = 0
    longest_downtime_ns: int = 0  # of any one VM, lost ones aside
    longest_downtime_vm: str = ""

    def add(self, result: UpdateResult) -> None:
        """Count one finished update."""
        if result.outcome is HostOutcome.UPDATED:
            self.updated_hosts += 1
        else:
            self.failed_hosts += 1
        for vm in result.vms:
            if vm.outcome is VmOutcome.LOST:
                self.lost_vms += 1
            if vm.downtime_ns is not None and vm.downtime_ns > self.longest_downtime_ns:
                self.longest_downtime_ns = vm.downtime_ns
                self.longest_downtime_vm = vm.name


def host_is_up(result: UpdateResult) -> bool:
    """Whether the host serves again after this update: it runs some release, old or new."""
    return result.release != ""


def judge(tally: Tally, gate: GateSpec) -> str:
    """Why the rollout must halt, "" as long as it need not."""
    if tally.lost_vms > gate.max_lost_vms:
        return f"{counted(tally.lost_vms, 'VM')} lost, the gate allows {gate.max_lost_vms}"
    if tally.failed_hosts > gate.max_failed_hosts:
        hosts = counted(tally.failed_hosts, "host")
        return f"{hosts} failed or rolled back, the gate allows {gate.max_failed_hosts}"
    limit = gate.max_downtime_ns
    if limit is not None and tally.longest_downtime_ns > limit:
        down = f"{tally.longest_downtime_vm} was down for {tally.longest_downtime_ns / 1e9:.1f} s"
        return f"{down}, the gate allows {limit / 1e9:.1f} s"
    return ""


def judge_canary(updated_hosts: int, hosts: int) -> str:
    """Why the canary ends the rollout, "" if at least one of its hosts was updated."""
    if updated_hosts == 0 and hosts > 0:
        if hosts == 1:
            return "the canary host was not updated"
        return f"none of the {hosts} canary hosts was updated"
    return ""
