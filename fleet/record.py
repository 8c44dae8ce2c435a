"""The `RunRecord` of a rollout that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from fleet.api import RunRecord
from kernelmodel.sim.trace import run_digest
from node.api import HostOutcome, UpdateResult, VmOutcome

if TYPE_CHECKING:
    from fleet.coordinator import Coordinator
    from fleet.scenario import Scenario

__all__ = ["RunCosts", "make_record"]


class RunCosts(Struct, frozen=True):
    """What a run took from whoever ran it: no part of its digest."""

    wall_seconds: float
    peak_rss_bytes: int
    backend: str
    actors: int
    from_journal: int


def make_record(
    scenario: Scenario,
    coordinator: Coordinator,
    results: Sequence[UpdateResult],
    *,
    log_digest: str,
    cost_digest: str,
    costs: RunCosts,
) -> RunRecord:
    """Put together what a finished rollout came to.

    Hosts without a result were skipped, and a VM that no result speaks of was never touched. The
    digest is that of the coordinator's log and of every updated host's events.
    """
    hosts = {host.name: HostOutcome.SKIPPED for host in scenario.hosts}
    vms = {vm.name: VmOutcome.PRESERVED for vm in scenario.vms}
    streams = {"fleet": log_digest}
    for result in results:
        hosts[result.host] = result.outcome
        vms |= {vm.name: vm.outcome for vm in result.vms}
        streams[f"host/{result.host}"] = result.digest
    return RunRecord(
        scenario=scenario,
        seed=scenario.seed,
        state=coordinator.state,
        why=coordinator.why,
        results=tuple(sorted(results, key=lambda result: (result.end_ns, result.host))),
        hosts=hosts,
        vms=vms,
        waves=coordinator.wave_records,
        virtual_ns=coordinator.now_ns,
        digest=run_digest(streams),
        cost_digest=cost_digest,
        wall_seconds=costs.wall_seconds,
        peak_rss_bytes=costs.peak_rss_bytes,
        backend=costs.backend,
        actors=costs.actors,
        from_journal=costs.from_journal,
    )
