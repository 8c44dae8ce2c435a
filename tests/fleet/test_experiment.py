"""The driver: one digest whatever computes it, one order of events, nothing lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fleet.api import FleetSnapshot, RolloutState, RunRecord
from fleet.experiment import Experiment, RolloutRefused, run_rollout
from fleet.journal import Journal, journal_header
from fleet.launcher import Deed
from fleet.pace import Paced
from fleet.scenario import Scenario
from fleet.steps import RequestKind
from kernelmodel.errors import ModelBug
from kernelmodel.sim.trace import TraceFile
from node.api import FaultSpec, HostOutcome, ShardConfig, UpdateResult, VmOutcome
from tests.fleet.rollouts import NEW, SECOND, host_spec, racks
from tests.fleet.toys import ROLLOUT, SCENARIO, HandWall, ToyBackend, ToyHandle, ToyShard


def run(scenario: Scenario = SCENARIO, actors: int | str | None = None) -> RunRecord:
    return asyncio.run(run_rollout(scenario, ToyBackend(), actors=actors))


async def opened(
    scenario: Scenario = SCENARIO, *, pace: Paced | None = None, gauges: bool = False
) -> Experiment:
    journal = Journal.create(None, journal_header(scenario, records_events=False))
    experiment = Experiment(scenario, ToyBackend(), journal, pace=pace)
    await experiment.open(gauges=gauges)
    return experiment


def test_a_shard_that_breaks_its_promises_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ToyShard._update
    monkeypatch.setattr(
        ToyShard, "_update", lambda self, c: replace(honest(self, c), end_ns=c.start_ns + 1)
    )
    with pytest.raises(ModelBug, match="updated in 1 ns"):
        run()
    monkeypatch.setattr(ToyShard, "_update", lambda self, c: replace(honest(self, c), seq=9))
    with pytest.raises(ModelBug, match="asked for"):
        run()


def test_a_lost_vm_halts_the_rollout_and_untouched_hosts_are_skipped() -> None:
    canary = "r1-h01"
    record = run(replace(SCENARIO, faults=(FaultSpec(canary, "drop-preserved-page"),)))
    assert record.state is RolloutState.HALTED
    assert record.why == "2 VMs lost, the gate allows 0"
    assert record.hosts[canary] is HostOutcome.ROLLED_BACK
    assert record.vms[f"{canary}-vm0"] is VmOutcome.LOST
    assert list(record.hosts.values()).count(HostOutcome.SKIPPED) == 23
    assert record.vms["r3-h08-vm1"] is VmOutcome.PRESERVED
    assert [wave.start_ns is None for wave in record.waves] == [False, True, True, True, True]


def test_the_record_of_a_rollout() -> None:
    record = run()
    assert record.state is RolloutState.COMPLETED
    assert record.why == "23 of 24 hosts updated"
    assert record.hosts["r2-h05"] is HostOutcome.ROLLED_BACK
    assert record.vms["r2-h05-vm0"] is VmOutcome.RESTARTED
    assert list(record.hosts) == [host.name for host in SCENARIO.hosts]
    assert list(record.vms) == [vm.name for vm in SCENARIO.vms]
    assert len(record.results) == 24
    assert all(a.end_ns <= b.end_ns for a, b in pairwise(record.results))
    assert not any(result.events for result in record.results)
    assert record.virtual_ns == record.waves[-1].soak_end_ns
    assert record.peak_rss_bytes == 1 << 20
    assert (record.backend, record.actors) == ("toy", 24)


def test_hosts_on_the_target_already_are_skipped() -> None:
    hosts = (*racks(2), host_spec("done", NEW))
    record = run(replace(SCENARIO, hosts=hosts, vms=(), faults=()))
    assert record.hosts["done"] is HostOutcome.SKIPPED


@pytest.mark.parametrize("actors", [1, 3, 5, 24, 100, "per-host"])
def test_the_digest_does_not_depend_on_the_number_of_shards(actors: int | str) -> None:
    assert run(actors=actors).digest == run().digest


def test_the_digest_depends_on_everything_else() -> None:
    digests = {
        run(scenario).digest
        for scenario in (
            SCENARIO,
            replace(SCENARIO, digest="01"),  # one page, one seed: the loader's digest has it
            replace(SCENARIO, seed=8),
            replace(SCENARIO, faults=()),
            replace(SCENARIO, rollout=replace(ROLLOUT, wave_size=7)),
            replace(
                SCENARIO,
                cost_profile="[kho_init]\nbase_ns = 1\nkind = 'measured'\nsource = 'a test'\n",
            ),
        )
    }
    assert len(digests) == 6


def test_each_wave_keeps_every_shard_busy_in_one_message() -> None:
    scenario = replace(SCENARIO, rollout=replace(ROLLOUT, max_unavailable={}, wave_size=12))
    backend = ToyBackend()
    asyncio.run(run_rollout(scenario, backend, actors=4))
    # canary, then 12 and 11 hosts over 4 shards
    assert [count for _, _, count in backend.messages] == [1, 3, 3, 3, 3, 3, 3, 3, 2]


def test_a_shard_has_its_next_message_before_it_has_answered_one() -> None:
    """It need not wait for the driver; and of what overtakes the other nothing is seen."""
    scenario = replace(SCENARIO, rollout=replace(ROLLOUT, max_unavailable={}, wave_size=23))
    most = 0

    class Overtaking(ToyHandle):
        asked = 0

        async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:
            nonlocal most
            self.asked += 1
            most = max(most, self.asked)
            for _ in range(3 if self.asked == 1 else 1):
                await asyncio.sleep(0)
            self.asked -= 1
            return await super().call(method, *args, history=history)

    class Backend(ToyBackend):
        def spawn(self, config: ShardConfig) -> ToyHandle:
            return Overtaking(self, config)

    record = asyncio.run(run_rollout(scenario, Backend(), actors=2))
    assert most == 2
    assert record.digest == run(scenario).digest


def test_a_trace_file_gives_the_digest_back(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    record = asyncio.run(run_rollout(SCENARIO, ToyBackend(), trace_path=path))
    assert record.digest == run().digest
    names = [name for name, _ in TraceFile.read(path)]
    assert set(names) == {"fleet"} | {f"host/{host.name}" for host in SCENARIO.hosts}
    again = tmp_path / "again.trace"
    asyncio.run(run_rollout(SCENARIO, ToyBackend(), trace_path=again, actors=2))
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("calls", "actors"), [*((calls, None) for calls in range(0, 24, 3)), (0, 2), (1, 2), (4, 2)]
)
def test_a_driver_that_died_goes_on_where_it_was(
    tmp_path: Path, calls: int, actors: int | None
) -> None:
    path = tmp_path / "journal.sqlite"
    header = journal_header(SCENARIO, records_events=True)
    first = ToyBackend(calls)
    with (
        Journal.create(path, header) as journal,
        pytest.raises(RuntimeError, match="dies here"),
    ):
        asyncio.run(run_rollout(SCENARIO, first, journal, trace_path=tmp_path / "t", actors=actors))
    second = ToyBackend()
    with Journal.resume(path, header) as journal:
        record = asyncio.run(
            run_rollout(SCENARIO, second, journal, trace_path=tmp_path / "t", actors=actors)
        )
    assert record.digest == run().digest
    assert len(record.results) == 24
    assert sorted(first.updated + second.updated) == sorted(record.hosts), "none is run twice"
    replayed = [deed.host for handle in second.handles for deed in handle.shard.config.commands]
    assert sorted(replayed) == sorted(first.updated)
    undisturbed = tmp_path / "undisturbed"
    asyncio.run(run_rollout(SCENARIO, ToyBackend(), trace_path=undisturbed))
    assert (tmp_path / "t").read_bytes() == undisturbed.read_bytes()


def test_a_finished_run_can_be_resumed_without_any_host(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    header = journal_header(SCENARIO, records_events=False)
    with Journal.create(path, header) as journal:
        record = asyncio.run(run_rollout(SCENARIO, ToyBackend(), journal))
    backend = ToyBackend()
    with Journal.resume(path, header) as journal:
        assert asyncio.run(run_rollout(SCENARIO, backend, journal)).digest == record.digest
    assert backend.updated == []


def test_a_paced_rollout_has_the_digest_of_a_free_one_and_takes_its_time() -> None:
    wall = HandWall()

    async def paced() -> RunRecord:
        return await (await opened(pace=Paced(60, wall))).run()

    record = asyncio.run(paced())
    assert record.digest == run().digest
    assert wall.seconds == pytest.approx(record.virtual_ns / 1e9 / 60, abs=0.01)


def test_a_snapshot_shows_what_a_look_at_the_fleet_would() -> None:
    seen: list[FleetSnapshot] = []

    async def watched() -> Experiment:
        experiment = await opened(pace=Paced(60, HandWall()), gauges=True)
        experiment._on_change = lambda e: seen.append(e.snapshot)
        await experiment.run()
        return experiment

    last = asyncio.run(watched()).snapshot
    for snapshot in seen:
        assert sum(snapshot.hosts.values()) == 24
        assert sum(snapshot.vms.values()) == 48
        assert min(snapshot.vms.values()) >= 0
        assert snapshot.kho_scratch_bytes == 24 << 20
        assert snapshot.hugetlb_pages["2MiB"]["used"] == 24 * 8
    assert all(a.virtual_time_ns <= b.virtual_time_ns for a, b in pairwise(seen))
    assert {snapshot.state for snapshot in seen} == {
        RolloutState.CANARY,
        RolloutState.WAVE,
        RolloutState.SOAKING,
        RolloutState.COMPLETED,
    }
    assert max(snapshot.vms["paused"] for snapshot in seen) > 2
    assert max(snapshot.vms["restarting"] for snapshot in seen) == 2
    assert max(snapshot.preserved_pages["2MiB"] for snapshot in seen) > 8
    assert max(snapshot.hosts["updating"] for snapshot in seen) == 6
    assert last.hosts == {
        "pending": 0,
        "updating": 0,
        "updated": 23,
        "failed": 0,
        "skipped": 0,
        "rolled_back": 1,
    }
    assert last.vms == {"running": 48, "paused": 0, "restarting": 0, "lost": 0}
    assert last.preserved_pages["2MiB"] == 0
    assert last.pages_preserved_total == {"4KiB": 0, "2MiB": 23 * 8, "1GiB": 0}
    assert last.host_updates_total == {
        ("updated", ""): 23,
        ("rolled_back", "next-kernel-panics"): 1,
    }
    assert sum(last.downtime.counts) == 48
    assert sum(last.phases["kexec"].counts) == 24
    assert last.vm_outcomes == {"preserved": 46, "restarted": 2}
    assert last.proposal == "with the proposal flb-counts, RFC of Dec 2025"


def test_requests_are_obeyed_in_virtual_time_and_journaled(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    header = journal_header(SCENARIO, records_events=False)

    async def interfered(journal: Journal) -> RunRecord:
        experiment = Experiment(SCENARIO, ToyBackend(), journal, pace=Paced(60, HandWall()))
        await experiment.open()
        with pytest.raises(RolloutRefused, match="has not started"):
            await experiment.request(RequestKind.PAUSE)
        running = asyncio.create_task(experiment.run())
        while not experiment.results:
            await experiment.changed()
        await experiment.request(RequestKind.PAUSE, "lunch")
        with pytest.raises(RolloutRefused, match="paused already"):
            await experiment.request(RequestKind.PAUSE)
        paused_ns = experiment.snapshot.virtual_time_ns
        while experiment.snapshot.virtual_time_ns < paused_ns + 3600 * SECOND:
            await experiment.changed()
        assert experiment.snapshot.state is RolloutState.PAUSED
        await experiment.request(RequestKind.RESUME)
        while len(experiment.results) < 9:
            await experiment.changed()
        await experiment.request(RequestKind.ABORT, "enough")
        record = await running
        with pytest.raises(RolloutRefused, match="is aborted already"):
            await experiment.request(RequestKind.RESUME)
        return record

    with Journal.create(path, header) as journal:
        record = asyncio.run(interfered(journal))
    assert (record.state, record.why) == (RolloutState.ABORTED, "enough")
    assert record.waves[1].start_ns is not None
    assert record.waves[1].start_ns >= 3600 * SECOND
    assert 9 <= len(record.results) < 24
    with Journal.resume(path, header) as journal:
        noted = journal.history(), journal.requests()
        again = asyncio.run(run_rollout(SCENARIO, ToyBackend(), journal))
        assert (journal.history(), journal.requests()) == noted
    assert [request.kind for request in noted[1].values()] == ["pause", "resume", "abort"]
    assert again.digest == record.digest
    assert again.results == record.results


def test_a_free_running_rollout_can_be_paused_with_nothing_in_flight() -> None:
    async def paused() -> RunRecord:
        experiment = await opened()
        running = asyncio.create_task(experiment.run())
        while not experiment.results:
            await experiment.changed()
        await experiment.request(RequestKind.PAUSE)
        while experiment.coordinator.in_flight:
            await experiment.changed()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not running.done()
        await experiment.request(RequestKind.RESUME)
        return await running

    assert asyncio.run(paused()).state is RolloutState.COMPLETED


def test_results_are_handed_out_in_the_order_of_their_ends() -> None:
    ends: list[UpdateResult] = []

    async def watched() -> None:
        experiment = await opened()
        await experiment.run()
        ends.extend(experiment.results)

    asyncio.run(watched())
    assert all((a.end_ns, a.host) < (b.end_ns, b.host) for a, b in pairwise(ends))


@pytest.mark.parametrize("actors", [1, None])
def test_no_rack_ever_has_more_hosts_down_than_it_may(actors: int | None) -> None:
    """Seen from the results alone, at every instant at which an update starts."""
    results = run(actors=actors).results
    rack_of = {host.name: host.domains["rack"] for host in SCENARIO.hosts}
    most = 0
    for now in results:
        down = [
            result.host
            for result in results
            if rack_of[result.host] == rack_of[now.host]
            and result.start_ns <= now.start_ns < result.end_ns
        ]
        most = max(most, len(down))
    assert most == ROLLOUT.max_unavailable["rack"]
