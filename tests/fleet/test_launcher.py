"""Where shards run: how a fleet is split, and what happens when an actor dies."""

from __future__ import annotations

import sys
from subprocess import run as run_process

import pytest

from fleet.launcher import partition
from fleet.plan import make_plan
from fleet.scenario import RolloutSpec
from node.api import UpdateCommand, UpdatePolicy
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


def test_the_local_backend_does_not_load_ray() -> None:
    code = "import sys, fleet.launcher as l; l.LocalBackend(); sys.exit('ray' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0
