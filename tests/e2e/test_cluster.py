"""A Ray cluster of two nodes: the same actors, spread over both, to the same digest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fleet.api import RunRecord
from fleet.experiment import Experiment, run_rollout
from fleet.journal import Journal, journal_header
from fleet.launcher import LocalBackend, RayBackend
from fleet.scenario import load_scenario
from tests.fleet.chaos import node_of, ray_nodes

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray

SMALL = load_scenario(Path(__file__).parents[2] / "examples/small.toml")


@pytest.fixture
def cluster(no_ray: None) -> Iterator[Cluster]:
    with ray_nodes(1, head_cpus=1) as nodes:
        yield nodes


def test_actors_spread_over_the_nodes_and_outlive_one(cluster: Cluster) -> None:
    """A node dies after the canary; the actors that it held are rebuilt on the other."""

    def remove_node_once(experiment: Experiment) -> None:
        if experiment.results and cluster.worker_nodes:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    async def run(journal: Journal) -> RunRecord:
        backend = RayBackend(cluster.address)
        try:
            experiment = Experiment(SMALL, backend, journal, on_change=remove_node_once)
            await experiment.open()
            while len(await spread(experiment)) < 2:  # of three, all may land on one by chance
                for shard in backend._shards:
                    shard.kill()
            record = await experiment.run()
            # Workers of a dead node answer until their end is noticed.
            while len(await spread(experiment)) != 1:
                pass
            return record
        finally:
            await backend.close()

    async def spread(experiment: Experiment) -> set[str]:
        asked: list[Any] = [shard.call("__ray_call__", node_of) for shard in experiment.shards]
        return set(await asyncio.gather(*asked))

    with Journal.create(None, journal_header(SMALL, records_events=False)) as journal:
        record = asyncio.run(run(journal))
    assert record.digest == asyncio.run(run_rollout(SMALL, LocalBackend())).digest
