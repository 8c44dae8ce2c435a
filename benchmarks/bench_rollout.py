"""What a rollout costs without its kernels: the coordinator alone, and the driver around it."""

from __future__ import annotations

import asyncio
import random

from msgspec.structs import replace
from pytest_benchmark.fixture import BenchmarkFixture

from fleet.api import RolloutState
from fleet.experiment import run_rollout
from fleet.plan import make_plan
from fleet.scenario import RolloutSpec
from tests.fleet.rollouts import SECOND, World, racks, scenario_of
from tests.fleet.toys import ToyBackend

HOSTS = 2000
ROLLOUT = RolloutSpec(canary=10, wave_size=200, max_unavailable={"rack": 4}, soak_ns=300 * SECOND)
SCENARIO = scenario_of(racks(*[40] * (HOSTS // 40)), ROLLOUT)


def test_plan_of_2000_hosts(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(make_plan, SCENARIO).hosts) == HOSTS


def test_driver_over_2000_toy_hosts_in_4_shards(benchmark: BenchmarkFixture) -> None:
    def roll_out() -> RolloutState:
        return asyncio.run(run_rollout(SCENARIO, ToyBackend(), actors=4)).state

    assert benchmark(roll_out) is RolloutState.COMPLETED


def test_random_rollout_of_200_hosts_with_its_referee(benchmark: BenchmarkFixture) -> None:
    scenario = replace(SCENARIO, hosts=SCENARIO.hosts[:200])

    def roll_out() -> RolloutState:
        return World(random.Random("benchmark"), scenario).run().state

    assert benchmark(roll_out) is RolloutState.COMPLETED
