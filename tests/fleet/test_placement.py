"""How a fleet is split, and what actors ask a cluster for."""

from __future__ import annotations

import pytest

from fleet.placement import (
    NOTHING,
    Demand,
    Node,
    cpu_share,
    demand_of,
    holds,
    is_room_for,
    partition,
)
from fleet.plan import make_plan
from fleet.scenario import RolloutSpec
from node.api import Backing, ShardConfig, UpdateCommand, UpdatePolicy, VmSpec
from node.shard import LIVE_HOSTS
from tests.fleet.rollouts import NEW, OLD, host_spec, racks, scenario_of
from tests.fleet.toys import SCENARIO

GIB = 1 << 30
VM = VmSpec("vm", "r1-h01", GIB, Backing.MEMFD, 1)

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


SHARES = [
    # shards, CPUs of the nodes   share
    (4, (2, 2), 1.0),
    (3, (2, 2), 1.0),
    (5, (2, 2), 0.5),
    (24, (2,), 0.0833),
    (7, (1, 1, 1), 0.3333),
    (4, (0, 1, 3), 1.0),
    (5, (0, 1, 3), 0.5),
    (1000, (0, 64, 64), 0.125),
    (1, (0.5, 0.5), 0.5),  # others have the rest
    (3, (0.7, 0.7), 0.3333),
    (3, (), 0.3333),  # no node yet: an autoscaler starts with one CPU
]


@pytest.mark.parametrize(("shards", "cpus", "share"), SHARES)
def test_shards_share_cpus_in_equal_parts_which_always_fit(
    shards: int, cpus: tuple[float, ...], share: float
) -> None:
    nodes = [Node(count, GIB) for count in cpus]
    assert cpu_share(shards, nodes) == share
    assert is_room_for(shards, Demand(share, 0), nodes) == bool(nodes)


def test_a_node_gets_as_many_as_its_cpus_and_its_memory_allow() -> None:
    node = Node(4, 10 * GIB)
    assert holds(node, Demand(1, GIB)) == 4
    assert holds(node, Demand(0.5, GIB)) == 8
    assert holds(node, Demand(0.3333, GIB)) == 10
    assert holds(node, Demand(1, 11 * GIB)) == 0
    assert holds(Node(0, 10 * GIB), Demand(1, GIB)) == 0
    assert is_room_for(1000, NOTHING, [node])
    assert not is_room_for(5, Demand(1, GIB), [node])
    assert is_room_for(5, Demand(1, GIB), [node, node])


def test_memory_grows_with_hosts_and_vms_but_only_so_many_kernels_are_alive() -> None:
    def memory(hosts: int, vms: int) -> int:
        specs = racks(hosts)
        config = ShardConfig(seed=1, hosts=specs, vms=(VM,) * (hosts * vms))
        return demand_of(config, 1).memory_bytes

    assert memory(1, 0) < memory(1, 10) < memory(2, 10)
    many = memory(2 * LIVE_HOSTS, 10)
    assert memory(3 * LIVE_HOSTS, 10) - many == LIVE_HOSTS * 11 * 1024
    assert memory(1, 10) < 150 << 20  # a host an actor: that many fit on a laptop


def test_a_demand_says_what_it_is() -> None:
    assert str(Demand(0.5, 3 * GIB)) == "0.5 CPU and 3GiB of memory"
    assert str(Demand(0, GIB)) == "1GiB of memory"
