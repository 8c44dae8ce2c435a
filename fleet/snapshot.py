"""The books of a running rollout, from which a `FleetSnapshot` is drawn at any virtual instant.

A host's result is known as soon as its shard has answered, which is before the virtual time at
which its update ends. In between, the snapshot says what a look at the fleet at that instant
would: the host is updating, its VMs are paused for as long as each of them was, its pages are held
by KHO from preserve to finish. Counters and histograms move when the update ends.

Simplification: a host's own gauges (hugetlb pools, scratch) move when its update ends, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet.api import (
    HISTOGRAM_EDGES_NS,
    HOST_STATES,
    PAGE_LABELS,
    POOL_STATES,
    VM_STATES,
    FleetSnapshot,
    Histogram,
)
from fleet.coordinator import Coordinator
from fleet.scenario import Scenario
from node.api import HostGauges, UpdateResult, VmOutcome, VmResult

__all__ = ["Books"]


@dataclass(slots=True)
class _Buckets:
    """A histogram that is being filled."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(HISTOGRAM_EDGES_NS) + 1))
    sum_ns: int = 0

    def add(self, value_ns: int | None) -> None:
        """Count one duration; None lies beyond every edge."""
        if value_ns is None:
            self.counts[-1] += 1
        else:
            self.counts[bisect_left(HISTOGRAM_EDGES_NS, value_ns)] += 1
            self.sum_ns += value_ns

    def histogram(self) -> Histogram:
        return Histogram(tuple(self.counts), self.sum_ns)


class Books:
    """What has happened to a fleet so far."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._known: dict[str, UpdateResult] = {}  # answered, not ended yet
        self._host_states = dict.fromkeys((host.name for host in scenario.hosts), "pending")
        self._hosts: Counter[str] = Counter(pending=len(scenario.hosts))
        self._lost_vms = 0
        self._vm_outcomes: Counter[str] = Counter()
        self._pages_total: Counter[str] = Counter(dict.fromkeys(PAGE_LABELS, 0))
        self._updates: Counter[tuple[str, str]] = Counter()
        self._downtime = _Buckets()
        self._over_budget = 0
        self._phases: defaultdict[str, _Buckets] = defaultdict(_Buckets)
        self._gauges: dict[str, HostGauges] = {}
        self._pools: Counter[tuple[str, str]] = Counter()
        self._scratch_bytes = 0
        self._sources = ",".join(sorted({host.release for host in scenario.hosts}))
        self._proposal = scenario.catalogue[scenario.target_release].remark

    @property
    def to_come(self) -> int:
        """Updates of which is known how they will end."""
        return len(self._known)

    def gauged(self, gauges: Mapping[str, HostGauges]) -> None:
        """Hosts' own counters, as they are now."""
        for host, new in gauges.items():
            if (old := self._gauges.get(host)) is not None:
                self._count_gauges(old, -1)
            self._count_gauges(new, 1)
            self._gauges[host] = new

    def started(self, host: str) -> None:
        """The coordinator has started a host."""
        self._move(host, "updating")

    def answered(self, result: UpdateResult) -> None:
        """A shard has said how a host's update will end."""
        self._known[result.host] = result

    def ended(self, result: UpdateResult) -> None:
        """A host's update has ended."""
        del self._known[result.host]
        self._move(result.host, result.outcome)
        self._updates[result.outcome, result.reason] += 1
        self._pages_total.update(result.preserved_pages)
        for phase, took_ns in (*result.phases_ns.items(), *result.outside_ns.items()):
            self._phases[phase].add(took_ns)
        for vm in result.vms:
            self._vm_outcomes[vm.outcome] += 1
            self._lost_vms += vm.outcome is VmOutcome.LOST
            if vm.downtime_ns is None or vm.phases_ns:
                self._downtime.add(vm.downtime_ns)
                budget_ns = self._scenario.downtime_budget_ns
                self._over_budget += vm.downtime_ns is None or vm.downtime_ns > budget_ns
        self.gauged({result.host: result.gauges})

    def over(self) -> None:
        """The rollout has ended: what is pending is left alone."""
        for host in [host for host, state in self._host_states.items() if state == "pending"]:
            self._move(host, "skipped")

    def snapshot(self, now_ns: int, coordinator: Coordinator) -> FleetSnapshot:
        """The fleet at `now_ns`, which no event that was reported may lie beyond."""
        vms: Counter[str] = Counter(dict.fromkeys(VM_STATES, 0))
        held: Counter[str] = Counter(dict.fromkeys(PAGE_LABELS, 0))
        vms["running"] = len(self._scenario.vms) - self._lost_vms
        vms["lost"] = self._lost_vms
        for result in self._known.values():
            if now_ns <= result.start_ns:  # a wave that is being computed: nothing is paused yet
                continue
            # if there was one: the last VM that is started again ends the update
            restarts_ns = [vm.phases_ns.get("restart", 0) for vm in result.vms]
            reset_ns = result.end_ns - max(restarts_ns, default=0)
            for vm in result.vms:
                state = _vm_state(result, vm, reset_ns, now_ns)
                vms["running"] -= 1
                vms[state] += 1
            if _is_within(now_ns, result.preserved_from_ns, result.preserved_until_ns):
                held.update(result.preserved_pages)
        scenario = self._scenario
        return FleetSnapshot(
            virtual_time_ns=now_ns,
            state=coordinator.state,
            why=coordinator.why,
            wave=coordinator.wave,
            waves=len(coordinator.plan.waves),
            wave_name=coordinator.wave_name,
            hosts={state: self._hosts[state] for state in HOST_STATES},
            vms=dict(vms),
            preserved_pages=dict(held),
            pages_preserved_total=dict(self._pages_total),
            hugetlb_pages={
                label: {state: self._pools[label, state] for state in POOL_STATES}
                for label in dict.fromkeys(label for label, _ in self._pools)
            },
            kho_scratch_bytes=self._scratch_bytes,
            host_updates_total=dict(self._updates),
            downtime=self._downtime.histogram(),
            phases={phase: buckets.histogram() for phase, buckets in self._phases.items()},
            scenario=scenario.name,
            seed=scenario.seed,
            source_release=self._sources,
            target_release=scenario.target_release,
            proposal=self._proposal,
            downtime_budget_ns=scenario.downtime_budget_ns,
            over_budget=self._over_budget,
            vm_outcomes=dict(self._vm_outcomes),
            host_states=dict(self._host_states),
        )

    def _move(self, host: str, state: str) -> None:
        self._hosts[self._host_states[host]] -= 1
        self._hosts[state] += 1
        self._host_states[host] = state

    def _count_gauges(self, gauges: HostGauges, sign: int) -> None:
        self._scratch_bytes += sign * gauges.kho_scratch_bytes
        for label, pages in gauges.hugetlb_pages.items():
            for state, count in pages.items():
                self._pools[label, state] += sign * count


def _is_within(now_ns: int, start_ns: int | None, end_ns: int | None) -> bool:
    return start_ns is not None and start_ns <= now_ns and (end_ns is None or now_ns < end_ns)


def _vm_state(result: UpdateResult, vm: VmResult, reset_ns: int, now_ns: int) -> str:
    """What a VM of a host that is updating does at an instant.

    A VM is paused `pause_wait` before its host's blackout starts; what an attempt cost whose freeze
    failed was before that. It is then back, or is started again: at once if it stood still, from
    `reset_ns` on if it ran when a reset took it. A lost one is not back.
    """
    start_ns, phases = result.blackout_start_ns, vm.phases_ns
    if vm.downtime_ns is None:
        lost_ns = result.end_ns if result.blackout_end_ns is None else result.blackout_end_ns
        if start_ns is None or now_ns < start_ns:
            return "running"
        return "lost" if now_ns >= lost_ns else "paused"
    restart_ns = phases.get("restart", 0)
    stood_ns = vm.downtime_ns - phases.get("failed_freeze", 0) - restart_ns
    from_ns = -1
    if start_ns is not None and "pause_wait" in phases:
        paused_ns = start_ns - phases["pause_wait"]
        from_ns = paused_ns + stood_ns
        if paused_ns <= now_ns < from_ns:
            return "paused"
    if restart_ns:
        if from_ns < 0 or "resume_wait" in phases:
            from_ns = reset_ns
        if from_ns <= now_ns < from_ns + restart_ns:
            return "restarting"
    return "running"
