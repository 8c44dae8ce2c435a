"""Actors and nodes are killed in the midst of runs; every run ends as if nothing had happened.

Each run draws from its number what strikes, at which message and how far into the computing.
`LUFLEET_CHAOS_RUNS=200 pytest tests/fleet/test_chaos.py` makes so many runs instead of twenty, and
`LUFLEET_CHAOS_FIRST` begins with another number than 0.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from fleet.api import RunRecord
from fleet.experiment import journal_header, run_rollout
from fleet.journal import Journal
from fleet.launcher import Backend, LocalBackend
from fleet.results import Result, summarise
from fleet.scenario import load_scenario
from tests.fleet.chaos import Blow, StruckRay, ray_nodes

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

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
#: Each update of a host makes more Python calls, nearly twice as many today.
CALLS = 5_000


@pytest.fixture(scope="module")
def cluster(ray_of_the_session: None) -> Iterator[Cluster]:
    """A head that takes no actors of its own accord, and two nodes with a CPU each."""
    with ray_nodes(1, 1) as nodes:
        yield nodes


def rolled_out(backend: Backend, path: Path) -> RunRecord:
    header = journal_header(FLEET, records_events=False)

    async def run(journal: Journal) -> RunRecord:
        try:
            return await run_rollout(FLEET, backend, journal, actors=2)
        finally:
            await backend.close()

    with Journal.create(path, header) as journal:
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
    rng = random.Random(f"chaos {number}")
    moments = rng.sample(range(1, MESSAGES + 1), rng.choice((2, 2, 3)))
    drawn = {
        moment: Blow(
            loses_node=nr == 0,
            at_call=rng.choice((0, rng.randint(1, CALLS), rng.randint(1, CALLS))),
            successor_too=rng.random() < 0.2,
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
    cluster.wait_for_nodes()  # a lost one may still be on its way back
    backend = StruckRay(cluster, tmp_path, blows(number))
    struck = rolled_out(backend, tmp_path / "journal.sqlite")
    assert not backend.blows, f"{backend.messages} messages"
    assert backend.deaths >= 2
    assert struck.digest == record.digest
    assert struck.results == record.results
    assert outcome(struck) == outcome(record)
    assert journaled(tmp_path / "journal.sqlite") == journal
