"""Whatever a scenario asks for, its rollout ends, and all that tells of it tells the same.

Each seed draws a scenario. Safety: gates and limits hold at every instant, recounted from the event
store; record, summary, event store, metrics and trace agree. Liveness: it ends. And a run of other
shards that has only some of the first one's results has its digest.

`LUFLEET_ROLLOUTS=1000 pytest tests/sim/test_random_rollouts.py` runs so many, from the seed
`LUFLEET_ROLLOUTS_SEED` on.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from fleet.api import RolloutState, RunRecord
from fleet.event_store import fill_event_store
from fleet.experiment import Experiment
from fleet.journal import Journal, journal_header
from fleet.launcher import LocalBackend
from fleet.plan import make_plan
from fleet.report import render_report
from fleet.results import summarise
from fleet.scenario import Scenario, scenario_of
from kernelmodel.sim.trace import Event, TraceFile
from node.api import HostOutcome, VmOutcome
from tests.sim.random_rollouts import random_values

ROLLOUTS = int(os.environ.get("LUFLEET_ROLLOUTS", "25"))
FIRST = int(os.environ.get("LUFLEET_ROLLOUTS_SEED", "0"))


def rolled_out(
    scenario: Scenario, journal: Journal, actors: int, trace: Path | None = None
) -> Experiment:
    async def run() -> Experiment:
        experiment = Experiment(scenario, LocalBackend(), journal, actors=actors, trace_path=trace)
        await experiment.open()
        await experiment.run()
        return experiment

    return asyncio.run(run())


@pytest.mark.timeout(120 + ROLLOUTS)
def test_every_rollout_ends_and_all_that_tells_of_it_agrees(tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + ROLLOUTS):
        try:
            ends[check_rollout(seed, tmp_path / "trace")] += 1
        except Exception as error:
            error.add_note(f"LUFLEET_ROLLOUTS=1 LUFLEET_ROLLOUTS_SEED={seed} does so again")
            raise
    assert ROLLOUTS < 25 or set(ends) == {RolloutState.COMPLETED, RolloutState.HALTED}


def check_rollout(seed: int, trace: Path) -> RolloutState:
    """One scenario, and how it ended."""
    scenario = scenario_of(random_values(seed))
    with Journal.create(None, journal_header(scenario, records_events=True)) as journal:
        experiment = rolled_out(scenario, journal, 3, trace)
    record = experiment.record
    assert record is not None
    check_counts(record, experiment, list(TraceFile.read(trace)))
    check_limits(record)
    check_gate(record)
    check_resumed(record)
    return record.state


def check_counts(
    record: RunRecord, experiment: Experiment, events: list[tuple[str, Event]]
) -> None:
    """Record, summary, event store, metrics and trace speak of the same hosts and VMs."""
    result, seen = summarise(record), experiment.snapshot
    hosts, vms = Counter(record.hosts.values()), Counter(record.vms.values())
    touched = [vm for update in record.results for vm in update.vms]
    told: Counter[object] = Counter(
        (event.name, event.fields["outcome"]) for _, event in events if "outcome" in event.fields
    )
    for outcome in HostOutcome:
        assert getattr(result.hosts, outcome) == hosts[outcome] == seen.hosts[outcome]
        if outcome is not HostOutcome.SKIPPED:
            assert told["done", outcome] == told["update_done", outcome] == hosts[outcome]
    for fate in VmOutcome:
        assert getattr(result.vms, fate) == vms[fate]
        count = sum(vm.outcome is fate for vm in touched)
        assert seen.vm_outcomes.get(fate, 0) == told["vm_done", fate] == count
        assert fate is VmOutcome.PRESERVED or count == vms[fate]
    assert seen.vms == {"running": len(record.vms) - vms[VmOutcome.LOST], "paused": 0} | {
        "restarting": 0,
        "lost": vms[VmOutcome.LOST],
    }
    assert sum(seen.downtime.counts) == result.downtime_seconds.count
    assert seen.downtime.sum_ns == sum(vm.downtime_ns or 0 for vm in touched if vm.phases_ns)
    assert seen.over_budget == result.downtime_seconds.count - result.downtime_seconds.within_budget
    assert seen.pages_preserved_total == result.preserved_pages
    reached: dict[str, int] = {}
    for stream, event in events:
        assert event.now_ns >= reached.get(stream, 0), f"{stream} runs backwards at {event}"
        reached[stream] = event.now_ns
    with duckdb.connect() as store:
        fill_event_store(store, record)
        for table, counts in (("hosts", hosts), ("vms", vms)):
            query = f"SELECT outcome, count(*) FROM {table} GROUP BY 1"
            assert dict(store.execute(query).fetchall()) == counts
    assert "None" not in render_report(record, result)


def check_limits(record: RunRecord) -> None:
    """No host in two waves, no wave before the soak of the last, no domain ever too far down."""
    planned = [host for wave in record.waves for host in wave.hosts]
    assert len(planned) == len(set(planned))
    updates = {update.host: update for update in record.results}
    assert len(updates) == len(record.results)
    earliest_ns = 0
    for wave in make_plan(record.scenario).waves:
        started = [updates[host] for host in wave.hosts if host in updates]
        assert all(update.start_ns >= earliest_ns for update in started)
        earliest_ns = max((u.end_ns for u in started), default=0) + wave.soak_ns
    domains = {host.name: host.domains for host in record.scenario.hosts}
    for key, most in record.scenario.rollout.max_unavailable.items():
        moves = sorted(
            move
            for update in record.results
            for move in (
                (update.start_ns, 1, domains[update.host].get(key, "")),
                *([(update.end_ns, -1, domains[update.host].get(key, ""))] * bool(update.release)),
            )
        )
        down: Counter[str] = Counter()
        for _, step, value in moves:
            down[value] += step
            assert down[value] <= most


def check_gate(record: RunRecord) -> None:
    """It halts at the first update that exceeds the gate, and nothing starts from there on."""
    closed = list(exceeding(record))
    if closed:
        assert record.state is RolloutState.HALTED
        assert max(update.start_ns for update in record.results) <= closed[0]
    canary = [host for wave in record.waves if wave.name == "canary" for host in wave.hosts]
    if canary and not any(record.hosts[host] is HostOutcome.UPDATED for host in canary):
        assert record.state is RolloutState.HALTED


def exceeding(record: RunRecord) -> Iterator[int]:
    """When an update ended with which more had gone wrong than the gate allows."""
    gate, failed, lost = record.scenario.rollout.gate, 0, 0
    for update in record.results:
        failed += update.outcome is not HostOutcome.UPDATED
        lost += sum(vm.outcome is VmOutcome.LOST for vm in update.vms)
        longest_ns = max((vm.downtime_ns or 0 for vm in update.vms), default=0)
        too_long = gate.max_downtime_ns is not None and longest_ns > gate.max_downtime_ns
        if failed > gate.max_failed_hosts or lost > gate.max_lost_vms or too_long:
            yield update.end_ns


def check_resumed(record: RunRecord) -> None:
    """Another driver that is left every other result comes to the same."""
    with Journal.create(None, journal_header(record.scenario, records_events=False)) as journal:
        journal.answered(record.results[::2])
        again = rolled_out(record.scenario, journal, 1).record
    assert again is not None
    assert again.from_journal == len(record.results[::2])
    assert (again.digest, again.results, again.waves) == (
        record.digest,
        record.results,
        record.waves,
    )
