"""What a rollout came to: `result.json` and the event store.

The summary answers what somebody who ran a rollout asks first: how many hosts and VMs ended
how, how long VMs were down, where a host's blackout went. It is a pure function of the
`RunRecord`, and everything in it but the three wall-clock figures, `backend` and `actors`
follows from the digest.

Percentiles are nearest-rank: the value at rank ceil(p/100 * n) of the n sorted ones, so each is
a downtime that some VM really had. A lost VM has no finite downtime; it ranks above every
finite one, and what falls on it is null, the mean included. `finite_mean` is the mean of the
others. A VM that was never paused has no downtime and is counted apart.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from fleet.api import PAGE_LABELS, UPDATE_PHASES
from node.api import HostOutcome, VmOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from fleet.api import RunRecord, WaveRecord
    from node.api import UpdateResult, VmResult

__all__ = [
    "DowntimeSummary",
    "HostCounts",
    "PhaseSummary",
    "Result",
    "RolloutSummary",
    "VmCounts",
    "WaveSummary",
    "nearest_rank",
    "phase_order",
    "summarise",
    "was_paused",
    "write_result",
]


class HostCounts(Struct, frozen=True):
    """Hosts by how they left the rollout; the four outcomes sum to `total`."""

    total: int
    updated: int
    failed: int
    skipped: int
    rolled_back: int


class VmCounts(Struct, frozen=True):
    """VMs by what became of their memory; the four outcomes sum to `total`.

    `untouched` counts those of the preserved that no update ever paused: their hosts were
    skipped, or failed before they came to that.
    """

    total: int
    preserved: int
    migrated: int
    restarted: int
    lost: int
    untouched: int


class DowntimeSummary(Struct, frozen=True):
    """Downtimes in seconds, one per VM and update; None where a lost VM decides the figure.

    `count` includes the lost ones. `within_budget` counts those at or below the budget.
    """

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    finite_mean: float | None
    lost: int
    never_paused: int
    budget: float
    within_budget: int


class PhaseSummary(Struct, frozen=True):
    """Lengths of one phase in seconds over the host updates in which it happened."""

    count: int
    mean: float
    p99: float


class WaveSummary(Struct, frozen=True):
    """One wave of the plan; instants in virtual seconds, None where it did not get there."""

    index: int
    name: str
    hosts: int
    start_seconds: float | None
    end_seconds: float | None
    soak_end_seconds: float | None
    verdict: str


class RolloutSummary(Struct, frozen=True):
    """The rollout as a whole. `waves` counts those that started, the canary included."""

    state: str
    why: str
    virtual_seconds: float
    waves: int
    waves_planned: int
    wave_records: tuple[WaveSummary, ...]


class Result(Struct, frozen=True):
    """The content of `result.json`."""

    scenario: str
    seed: int
    digest: str
    scenario_digest: str
    cost_digest: str
    source_releases: tuple[str, ...]
    target_release: str
    overrides: tuple[str, ...]  # of the scenario's file, as `--set` takes them
    hosts: HostCounts
    vms: VmCounts
    downtime_seconds: DowntimeSummary
    blackout_phases_seconds: dict[str, PhaseSummary]
    outside_phases_seconds: dict[str, PhaseSummary]
    preserved_pages: dict[str, int]
    rollout: RolloutSummary
    backend: str
    actors: int
    wall_seconds: float
    host_updates_per_second: float
    peak_rss_bytes: int


def nearest_rank(finite: Sequence[int], lost: int, percent: int) -> int | None:
    """The value at rank ceil(percent/100 * n) of sorted `finite` followed by `lost` infinities.

    None where that rank is one of the infinities, or where there are no values at all.
    """
    count = len(finite) + lost
    if count == 0:
        return None
    rank = max(1, -(-percent * count // 100))
    return finite[rank - 1] if rank <= len(finite) else None


def was_paused(vm: VmResult) -> bool:
    """Whether this update cost the VM anything: it was paused, or its memory was lost."""
    return vm.downtime_ns is None or bool(vm.phases_ns)


def phase_order(names: Iterable[str]) -> list[str]:
    """Phase names in the order in which a host goes through them, others after them by name."""
    rank = {name: i for i, name in enumerate(UPDATE_PHASES)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


def _mean_seconds(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) / 1e9 if values else None


def _downtimes(results: Iterable[UpdateResult], budget_ns: int) -> DowntimeSummary:
    finite: list[int] = []
    lost = never_paused = 0
    for result in results:
        for vm in result.vms:
            if vm.downtime_ns is None:
                lost += 1
            elif was_paused(vm):
                finite.append(vm.downtime_ns)
            else:
                never_paused += 1
    finite.sort()
    finite_mean = _mean_seconds(finite)
    return DowntimeSummary(
        count=len(finite) + lost,
        mean=None if lost else finite_mean,
        p50=_seconds(nearest_rank(finite, lost, 50)),
        p90=_seconds(nearest_rank(finite, lost, 90)),
        p99=_seconds(nearest_rank(finite, lost, 99)),
        max=_seconds(nearest_rank(finite, lost, 100)),
        finite_mean=finite_mean,
        lost=lost,
        never_paused=never_paused,
        budget=budget_ns / 1e9,
        within_budget=sum(1 for ns in finite if ns <= budget_ns),
    )


def _phases(of_updates: Iterable[dict[str, int]]) -> dict[str, PhaseSummary]:
    """Phases that happened at least once; one that did not is absent, never zero."""
    lengths: dict[str, list[int]] = {}
    for phases in of_updates:
        for name, ns in phases.items():
            lengths.setdefault(name, []).append(ns)
    summary: dict[str, PhaseSummary] = {}
    for name in phase_order(lengths):
        values = sorted(lengths[name])
        rank = -(-99 * len(values) // 100)
        summary[name] = PhaseSummary(
            count=len(values), mean=sum(values) / len(values) / 1e9, p99=values[rank - 1] / 1e9
        )
    return summary


def _preserved_pages(results: Iterable[UpdateResult]) -> dict[str, int]:
    pages = dict.fromkeys(PAGE_LABELS, 0)
    for result in results:
        for label, count in result.preserved_pages.items():
            pages[label] = pages.get(label, 0) + count
    return pages


def _rate(record: RunRecord) -> float:
    """Host updates that this run computed a wall second, the start of Ray included.

    What an interrupted run had computed already took its time then, not now.
    """
    computed = len(record.results) - record.from_journal
    return computed / record.wall_seconds if record.wall_seconds > 0 else 0.0


def _wave(wave: WaveRecord) -> WaveSummary:
    return WaveSummary(
        index=wave.index,
        name=wave.name,
        hosts=len(wave.hosts),
        start_seconds=_seconds(wave.start_ns),
        end_seconds=_seconds(wave.end_ns),
        soak_end_seconds=_seconds(wave.soak_end_ns),
        verdict=wave.verdict,
    )


def summarise(record: RunRecord) -> Result:
    """Everything `result.json` says, from the record of a run."""
    hosts = Counter(record.hosts.values())
    vms = Counter(record.vms.values())
    paused = {vm.name for result in record.results for vm in result.vms if was_paused(vm)}
    untouched = [
        vm
        for vm, outcome in record.vms.items()
        if outcome is VmOutcome.PRESERVED and vm not in paused
    ]
    return Result(
        scenario=record.scenario.name,
        seed=record.seed,
        digest=record.digest,
        scenario_digest=record.scenario.digest,
        cost_digest=record.cost_digest,
        source_releases=tuple(sorted({host.release for host in record.scenario.hosts})),
        target_release=record.scenario.target_release,
        overrides=record.scenario.overrides,
        hosts=HostCounts(
            total=len(record.hosts),
            updated=hosts[HostOutcome.UPDATED],
            failed=hosts[HostOutcome.FAILED],
            skipped=hosts[HostOutcome.SKIPPED],
            rolled_back=hosts[HostOutcome.ROLLED_BACK],
        ),
        vms=VmCounts(
            total=len(record.vms),
            preserved=vms[VmOutcome.PRESERVED],
            migrated=vms[VmOutcome.MIGRATED],
            restarted=vms[VmOutcome.RESTARTED],
            lost=vms[VmOutcome.LOST],
            untouched=len(untouched),
        ),
        downtime_seconds=_downtimes(record.results, record.scenario.downtime_budget_ns),
        blackout_phases_seconds=_phases(result.phases_ns for result in record.results),
        outside_phases_seconds=_phases(result.outside_ns for result in record.results),
        preserved_pages=_preserved_pages(record.results),
        rollout=RolloutSummary(
            state=record.state,
            why=record.why,
            virtual_seconds=record.virtual_ns / 1e9,
            waves=sum(1 for wave in record.waves if wave.start_ns is not None),
            waves_planned=len(record.waves),
            wave_records=tuple(map(_wave, record.waves)),
        ),
        backend=record.backend,
        actors=record.actors,
        wall_seconds=record.wall_seconds,
        host_updates_per_second=_rate(record),
        peak_rss_bytes=record.peak_rss_bytes,
    )


def write_result(result: Result, path: Path) -> None:
    """Write `result.json`, indented, through a temporary file so that nobody reads half of it."""
    text = msgspec.json.format(msgspec.json.encode(result), indent=2)
    part = path.with_name(path.name + ".part")
    part.write_bytes(text + b"\n")
    part.replace(path)
