"""The virtual clock that people are shown, on a machine that is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from fleet.experiment import Experiment
from fleet.journal import Journal, journal_header
from fleet.launcher import Deed
from fleet.pace import Paced
from node.api import ShardConfig, UpdateResult
from tests.fleet.toys import SCENARIO, HandWall, ToyBackend, ToyHandle


class SlowBackend(ToyBackend):
    """Toy shards that take wall time, and look at the fleet's clock meanwhile."""

    def __init__(self, wall: HandWall) -> None:
        super().__init__()
        self.wall = wall
        self.look: Callable[[], object] = lambda: None

    def spawn(self, config: ShardConfig) -> ToyHandle:
        return SlowHandle(self, config)


class SlowHandle(ToyHandle):
    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:
        backend = self.backend
        assert isinstance(backend, SlowBackend)
        for _ in range(3):
            backend.wall.seconds += 0.4
            backend.look()
            await asyncio.sleep(0)
        return await super().call(method, *args, history=history)


def test_the_clock_never_runs_backwards_while_hosts_are_computed() -> None:
    """Nor ahead of an event that a shard has yet to tell of."""
    wall = HandWall()
    backend = SlowBackend(wall)
    shown: list[int] = []

    async def watched() -> Experiment:
        journal = Journal.create(None, journal_header(SCENARIO, records_events=False))
        experiment = Experiment(SCENARIO, backend, journal, actors=6, pace=Paced(60, wall))

        def look(_: object = None) -> None:
            experiment._next_snapshot = 0.0
            shown.append(experiment._now_ns())

        def ended(result: UpdateResult) -> None:
            assert shown[-1] <= result.end_ns
            wall.seconds += 0.3  # whoever follows is slow, too

        backend.look = look
        experiment._on_change, experiment._on_result = look, ended
        await experiment.open()
        await experiment.run()
        return experiment

    experiment = asyncio.run(watched())
    assert len(experiment.results) == 24
    assert all(a <= b for a, b in pairwise(shown))
    assert len(set(shown)) > 30, "and it moves"
