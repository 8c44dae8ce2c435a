"""Where shards run: how a fleet is split, and what happens when an actor dies."""

from __future__ import annotations

import asyncio
import sys
from subprocess import run as run_process
from types import ModuleType
from typing import Any

import pytest

from fleet.launcher import HostUnreachable, _RayShard, partition
from fleet.plan import make_plan
from fleet.scenario import RolloutSpec
from node.api import ShardConfig, UpdateCommand, UpdatePolicy
from tests.fleet.rollouts import NEW, OLD, host_spec, racks, scenario_of
from tests.fleet.toys import SCENARIO

COUNTS = [
    # hosts, shards asked for, processors   shards
    (24, None, 2, 24),
    (32, None, 2, 32),
    (33, None, 2, 2),
    (33, "per-host", 2, 33),
    (24, 3, 2, 3),
    (2, 3, 2, 2),
]


@pytest.mark.parametrize(("hosts", "asked", "processors", "shards"), COUNTS)
def test_how_many_shards_there_are(
    hosts: int, asked: int | str | None, processors: int, shards: int
) -> None:
    scenario = scenario_of(racks(hosts))
    configs = partition(
        scenario,
        make_plan(scenario),
        shards=asked,
        records_events=False,
        processors=processors,
    )
    assert len(configs) == shards
    assert sorted(host.name for config in configs for host in config.hosts) == sorted(
        host.name for host in scenario.hosts
    )


def test_a_shard_gets_what_concerns_its_hosts_and_nothing_else() -> None:
    done = [UpdateCommand(f"r{n}-h01", 1, 0, NEW, UpdatePolicy()) for n in (1, 2)]
    configs = partition(SCENARIO, make_plan(SCENARIO), shards=5, records_events=True, done=done)
    for config in configs:
        mine = {host.name for host in config.hosts}
        assert {vm.host for vm in config.vms} == mine
        assert len(config.vms) == 2 * len(mine)
        assert all(fault.host in mine for fault in config.faults)
        assert {command.host for command in config.commands} <= mine
        assert config.record_events
        assert config.seed == SCENARIO.seed
    assert sum(len(config.faults) for config in configs) == 1
    assert sum(len(config.commands) for config in configs) == 2


def test_each_wave_is_spread_over_all_shards() -> None:
    scenario = scenario_of(racks(8, 8), RolloutSpec(canary=1, wave_size=5))
    plan = make_plan(scenario)
    configs = partition(scenario, plan, shards=5, records_events=False)
    for wave in plan.waves[1:]:
        for config in configs:
            assert sum(host.name in wave.hosts for host in config.hosts) == 1


def test_hosts_that_need_no_update_live_in_a_shard_too() -> None:
    scenario = scenario_of((host_spec("old", OLD), host_spec("new", NEW)))
    (config,) = partition(scenario, make_plan(scenario), shards=1, records_events=False)
    assert [host.name for host in config.hosts] == ["old", "new"]


class ActorDied(Exception):
    """Stands in for Ray's error."""


class FakeActor:
    """An actor handle of a Ray that is none: dies at the calls that it is told to."""

    def __init__(self, ray: FakeRay, config: ShardConfig) -> None:
        self.ray = ray
        self.config = config

    def __getattr__(self, method: str) -> FakeActor:
        return self

    def remote(self, *args: object) -> Any:
        async def answer() -> tuple[object, ...]:
            await asyncio.sleep(0)
            self.ray.calls += 1
            if self.ray.calls in self.ray.dies_at:
                raise ActorDied
            return args

        return answer()


class FakeRay(ModuleType):
    """As much of Ray as a shard's handle uses."""

    def __init__(self, *dies_at: int) -> None:
        super().__init__("ray")
        self.dies_at = dies_at
        self.calls = 0
        self.started: list[FakeActor] = []
        self.killed: list[FakeActor] = []
        self.exceptions = ModuleType("exceptions")
        self.exceptions.RayActorError = ActorDied  # type: ignore[attr-defined]

    def kill(self, actor: FakeActor) -> None:
        self.killed.append(actor)

    def remote(self, **_: object) -> Any:
        ray = self

        class Factory:
            def __init__(self, _: type) -> None:
                pass

            def remote(self, config: ShardConfig) -> FakeActor:
                ray.started.append(FakeActor(ray, config))
                return ray.started[-1]

        return Factory


COMMANDS = [UpdateCommand(f"r1-h0{nr}", 1, nr, NEW, UpdatePolicy()) for nr in (1, 2)]
CONFIG = ShardConfig(seed=7, hosts=racks(2), vms=())


def test_a_dead_actor_is_rebuilt_with_what_was_answered_and_asked_again() -> None:
    ray = FakeRay(2)
    shard = _RayShard(CONFIG, ray)
    for command in COMMANDS:
        answer = asyncio.run(shard.call("update", [command], history=[command]))
        assert answer == ([command],)
    assert [actor.config.commands for actor in ray.started] == [(), (COMMANDS[0],)]
    assert ray.killed == [ray.started[0]]


def test_a_shard_that_dies_again_and_again_is_given_up() -> None:
    shard = _RayShard(CONFIG, FakeRay(1, 2, 3))
    with pytest.raises(HostUnreachable, match=r"the actor of r1-h01 \(2 hosts\) died 3 times"):
        asyncio.run(shard.call("update", COMMANDS, history=COMMANDS))


def test_two_calls_that_see_the_same_death_rebuild_the_actor_once() -> None:
    ray = FakeRay(1, 2)
    shard = _RayShard(CONFIG, ray)

    async def both() -> None:
        await asyncio.gather(shard.call("gauges"), shard.call("gauges"))

    asyncio.run(both())
    assert len(ray.started) == 2
    assert len(ray.killed) == 1


def test_an_exception_of_the_shard_is_not_taken_for_a_death() -> None:
    ray = FakeRay(1)
    ray.exceptions.RayActorError = OSError  # type: ignore[attr-defined]
    with pytest.raises(ActorDied):
        asyncio.run(_RayShard(CONFIG, ray).call("gauges"))
    assert len(ray.started) == 1


def test_the_local_backend_does_not_load_ray() -> None:
    code = "import sys, fleet.launcher as l; l.LocalBackend(); sys.exit('ray' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0
