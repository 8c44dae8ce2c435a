"""Actors and nodes are killed in the midst of runs; every run ends as if nothing had happened.

Each run draws from its number what strikes, at which message and how far into the computing.
`LUFLEET_CHAOS_RUNS=200 pytest tests/fleet/test_chaos.py` makes so many runs instead of twenty, and
`LUFLEET_CHAOS_FIRST` begins with another number than 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from fleet.api import RunRecord
from fleet.experiment import run_rollout
from fleet.journal import Journal, journal_header
from fleet.launcher import Backend, LocalBackend, RayBackend, ShardHandle
from fleet.placement import partition
from fleet.plan import make_plan
from fleet.results import Result, summarise
from fleet.scenario import load_scenario
from fleet.shard_actor import HostUnreachable, NoRoom
from node.api import ShardConfig, UpdateCommand, UpdatePolicy
from node.shard import Shard
from tests.fleet.chaos import Blow, Line, StruckRay, mend, pid_of, ray_nodes, stop_at_call
from tests.fleet.rollouts import NEW

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    # what Ray leaves of a node that it gave up on at its start
    pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning"),
]

RUNS = int(os.environ.get("LUFLEET_CHAOS_RUNS", "20"))
FIRST = int(os.environ.get("LUFLEET_CHAOS_FIRST", "0"))
FLEET = load_scenario(
    Path(__file__).parents[2] / "examples/small.toml",
    [
        "fleet.host_class.0.count=10",
        "fleet.host_class.0.racks=5",
        "rollout.wave_size=3",
        'faults=[{kind="freeze-fails", host="node-4"}, {kind="next-kernel-panics", host="node-7"}]',
        "rollout.gate.max_failed_hosts=1",
        "rollout.gate.max_lost_vms=9",
    ],
)
#: Messages with updates in a run: one for each host.
MESSAGES = 10


@cache
def fewest_calls() -> int:
    """Each update of a host, its building included, makes at least so many Python calls."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    (config,) = partition(FLEET, make_plan(FLEET), shards=1, records_events=False)
    shard, fewest = Shard(config), 1 << 60
    for host in FLEET.hosts:
        calls = 0
        sys.setprofile(count)
        try:
            shard.update([UpdateCommand(host.name, 1, 0, NEW, UpdatePolicy())])
        finally:
            sys.setprofile(None)
        fewest = min(fewest, calls)
    return fewest


@pytest.fixture(scope="module")
def cluster(ray_of_the_session: None) -> Iterator[Cluster]:
    """A head that takes no actors of its own accord, and two nodes with a CPU each."""
    with ray_nodes(1, 1) as nodes:
        yield nodes


def rolled_out(backend: Backend, path: Path) -> RunRecord:
    """The run; what is in its journal already is not done again."""
    header = journal_header(FLEET, records_events=False)

    async def run(journal: Journal) -> RunRecord:
        try:
            return await run_rollout(FLEET, backend, journal, actors=2)
        finally:
            await backend.close()

    with (Journal.resume if path.exists() else Journal.create)(path, header) as journal:
        return asyncio.run(run(journal))


def outcome(record: RunRecord) -> Result:
    """What `result.json` says, less what depends on the machine."""
    return replace(
        summarise(record), backend="", wall_seconds=0, host_updates_per_second=0, peak_rss_bytes=0
    )


def journaled(path: Path) -> tuple[object, ...]:
    """What a run noted: what came back, and what was done to each host in its order."""
    with Journal.resume(path, journal_header(FLEET, records_events=False)) as journal:
        return journal.results(), sorted(journal.history(), key=lambda deed: deed.host)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, tuple[object, ...]]:
    path = tmp_path_factory.mktemp("undisturbed") / "journal.sqlite"
    return rolled_out(LocalBackend(), path), journaled(path)


def blows(number: int) -> dict[int, Blow]:
    """What strikes at which message of this run: a node is lost, and an actor or two."""
    rng, calls = random.Random(f"chaos {number}"), fewest_calls()
    moments = rng.sample(range(1, MESSAGES + 1), rng.choice((2, 2, 3)))
    drawn = {
        moment: Blow(
            loses_node=nr == 0,
            at_call=rng.choice((0, rng.randint(1, calls), rng.randint(1, calls))),
            successors=int(rng.random() < 0.2),
        )
        for nr, moment in enumerate(moments)
    }
    print(f"run {number}: {drawn}")
    return drawn


@pytest.mark.parametrize("number", range(FIRST, FIRST + RUNS))
def test_whatever_dies_in_a_run_it_ends_as_if_nothing_had(
    cluster: Cluster,
    undisturbed: tuple[RunRecord, tuple[object, ...]],
    tmp_path: Path,
    number: int,
) -> None:
    record, journal = undisturbed
    mend(cluster)
    backend = StruckRay(cluster, tmp_path, blows(number))
    struck = rolled_out(backend, tmp_path / "journal.sqlite")
    assert not backend.blows, f"{backend.messages} messages"
    assert backend.deaths >= 2
    assert struck.digest == record.digest
    assert struck.results == record.results
    assert outcome(struck) == outcome(record)
    assert journaled(tmp_path / "journal.sqlite") == journal


def test_an_actor_that_hangs_counts_as_dead(
    cluster: Cluster,
    undisturbed: tuple[RunRecord, tuple[object, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the midst of computing, which Ray does not notice."""
    monkeypatch.setattr("fleet.shard_actor._SILENCE_SECONDS", 1.0)
    mend(cluster)
    backend = StruckRay(cluster, tmp_path, {5: Blow(hangs=True, at_call=fewest_calls())})
    struck = rolled_out(backend, tmp_path / "journal.sqlite")
    assert backend.deaths == 1
    assert (struck.digest, struck.results) == (undisturbed[0].digest, undisturbed[0].results)
    assert journaled(tmp_path / "journal.sqlite") == undisturbed[1]


def test_actors_that_die_at_the_very_start_are_replaced(
    cluster: Cluster, undisturbed: tuple[RunRecord, tuple[object, ...]], tmp_path: Path
) -> None:
    class StillBorn(StruckRay):
        """The first actor of each shard dies before it has been there."""

        def spawn(self, config: ShardConfig) -> ShardHandle:
            host = config.hosts[0].name
            self.stopping[host] = Line(self.folder / host)
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            killing.append(asyncio.ensure_future(self.kill_at_start(host, never)))
            return super().spawn(config)

    killing: list[asyncio.Future[None]] = []
    mend(cluster)
    backend = StillBorn(cluster, tmp_path, {})
    struck = rolled_out(backend, tmp_path / "journal.sqlite")
    assert backend.deaths == len(killing) == 2
    assert struck.digest == undisturbed[0].digest


def test_an_actor_that_dies_while_it_replays_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    mend(cluster)
    (config,) = partition(FLEET, make_plan(FLEET), shards=1, records_events=False)
    commands = [UpdateCommand(f"node-{nr}", 1, 0, NEW, UpdatePolicy()) for nr in (1, 2)]

    async def struck() -> object:
        backend, line = StruckRay(cluster, tmp_path, {}), Line(tmp_path / "replaying")
        try:
            shard = backend.spawn(config)
            await shard.call("update", commands, history=commands)
            backend.kill_pid(await shard.call("__ray_call__", pid_of))
            await shard.call("__ray_call__", stop_at_call, line.path, fewest_calls())
            asking = asyncio.ensure_future(shard.call("gauges", shard.hosts))
            backend.kill_pid(await line.hear(asking))
            return await asking
        finally:
            await backend.close()

    async def undisturbed() -> object:
        shard = LocalBackend().spawn(config)
        await shard.call("update", commands)
        return await shard.call("gauges", shard.hosts)

    assert asyncio.run(struck()) == asyncio.run(undisturbed())


def test_a_run_that_was_given_up_goes_on_from_its_journal(
    cluster: Cluster, undisturbed: tuple[RunRecord, tuple[object, ...]], tmp_path: Path
) -> None:
    record, journal = undisturbed
    path = tmp_path / "journal.sqlite"
    mend(cluster)
    backend = StruckRay(cluster, tmp_path, {5: Blow(at_call=fewest_calls(), successors=5)})
    with pytest.raises(HostUnreachable, match="died 6 times"):
        rolled_out(backend, path)
    kept, _ = journaled(path)
    assert isinstance(kept, dict)
    assert 0 < len(kept) < len(record.results)
    resumed = rolled_out(RayBackend(cluster.address), path)
    assert (resumed.digest, resumed.results) == (record.digest, record.results)
    assert journaled(path) == journal


class Occupants:
    """Another program of the cluster, which has some of its CPUs, or all."""

    def __init__(self, cluster: Cluster, cpus: int | None = None) -> None:
        import ray

        mend(cluster)
        actor = ray.remote(num_cpus=1)(Occupant)
        count = len(cluster.worker_nodes) if cpus is None else cpus
        self.actors: list[Any] = [actor.remote() for _ in range(count)]
        ray.get([actor.__ray_ready__.remote() for actor in self.actors])

    def leave(self) -> None:
        import ray

        while self.actors:
            ray.kill(self.actors.pop())


class Occupant:
    """Has a CPU and does nothing."""


def test_a_run_makes_do_with_what_others_leave(
    cluster: Cluster, undisturbed: tuple[RunRecord, tuple[object, ...]], tmp_path: Path
) -> None:
    others = Occupants(cluster, 1)
    backend = RayBackend(cluster.address, patience_seconds=30)
    try:
        while backend.processors != 1:  # the cluster's books lag behind
            pass
        shared = rolled_out(backend, tmp_path / "journal.sqlite")
    finally:
        others.leave()
    assert shared.digest == undisturbed[0].digest


def test_a_run_waits_for_room_on_a_full_cluster(
    cluster: Cluster,
    undisturbed: tuple[RunRecord, tuple[object, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleet.shard_actor._SAY_SECONDS", 0.5)
    others, said = Occupants(cluster), []

    class TheyLeave(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            others.leave()

    log, hears = logging.getLogger("lufleet"), TheyLeave(logging.WARNING)
    log.addHandler(hears)
    try:
        backend = RayBackend(cluster.address, actor_cpus=1)
        waited = rolled_out(backend, tmp_path / "journal.sqlite")
    finally:
        log.removeHandler(hears)
        others.leave()
    assert "waiting for room: the actor of node-" in said[0]
    assert "wants 1 CPU and " in said[0]
    assert waited.digest == undisturbed[0].digest


def test_a_run_for_which_no_room_comes_ends_and_says_so(cluster: Cluster, tmp_path: Path) -> None:
    others = Occupants(cluster)
    backend = RayBackend(cluster.address, actor_cpus=1, patience_seconds=1)
    try:
        with pytest.raises(NoRoom, match=r"no room after 1 s: the actor of node-.* wants 1 CPU"):
            rolled_out(backend, tmp_path / "journal.sqlite")
    finally:
        others.leave()
