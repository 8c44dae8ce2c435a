"""The plan: deterministic, complete, spread over the failure domains."""

from __future__ import annotations

import random

import pytest

from fleet.plan import PlanError, deal, make_plan
from fleet.scenario import RolloutSpec
from tests.fleet.rollouts import NEW, SECOND, host_spec, racks, random_scenario, scenario_of, seeds

BAD = [
    # rollout                                        what is said
    (RolloutSpec(max_unavailable={"rack": 0}), "max_unavailable of rack is 0"),
    (RolloutSpec(wave_size=0), "wave_size is 0"),
    (RolloutSpec(canary=-1), "canary is -1"),
]


@pytest.mark.parametrize(("rollout", "said"), BAD, ids=[said for _, said in BAD])
def test_limits_that_no_wave_can_satisfy_are_refused(rollout: RolloutSpec, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make_plan(scenario_of(racks(2), rollout))


def test_hosts_that_run_the_target_are_left_out() -> None:
    plan = make_plan(scenario_of((*racks(2), host_spec("done", NEW))))
    assert plan.up_to_date == ("done",)
    assert "done" not in plan.hosts
    assert "done" not in plan.domains


def test_a_fleet_that_is_up_to_date_needs_no_wave() -> None:
    assert make_plan(scenario_of(racks(2, release=NEW))).waves == ()


def test_a_small_fleet_may_be_all_canary() -> None:
    plan = make_plan(scenario_of(racks(2), RolloutSpec(canary=5, wave_size=3)))
    assert [wave.name for wave in plan.waves] == ["canary"]


def test_waves_follow_the_canary_and_hold_each_rack_in_proportion() -> None:
    rollout = RolloutSpec(canary=1, wave_size=6, soak_ns=5 * SECOND, canary_soak_ns=9 * SECOND)
    plan = make_plan(scenario_of(racks(8, 8, 8), rollout))
    assert [wave.name for wave in plan.waves] == ["canary", "wave 1", "wave 2", "wave 3", "wave 4"]
    assert [wave.soak_ns for wave in plan.waves] == [9 * SECOND] + 4 * [5 * SECOND]
    assert [len(wave.hosts) for wave in plan.waves] == [1, 6, 6, 6, 5]
    for wave in plan.waves[1:4]:
        assert sorted(host[:2] for host in wave.hosts) == ["r1", "r1", "r2", "r2", "r3", "r3"]


def test_a_big_domain_is_not_left_for_the_end() -> None:
    order = [host.name[:2] for host in deal(racks(30, 10), ["rack"])]
    for at in range(0, 40, 8):
        assert order[at : at + 8].count("r2") == 2


def test_domains_within_a_domain_are_dealt_out_too() -> None:
    hosts = [
        host_spec(f"{rack}{power}{nr}", rack=rack, power=power)
        for rack in "ab"
        for power in "xy"
        for nr in range(2)
    ]
    order = deal(hosts, ["rack", "power"])
    assert [host.name[:2] for host in order[:4]] == ["ax", "bx", "ay", "by"]


def test_without_a_spread_the_inventory_s_order_stays() -> None:
    plan = make_plan(scenario_of(racks(3, 3), RolloutSpec(canary=0, wave_size=99, spread="")))
    assert plan.hosts == tuple(host.name for host in racks(3, 3))


def test_every_plan_holds_every_stale_host_once_and_is_the_same_each_time() -> None:
    for rng in seeds(300):
        scenario = random_scenario(rng)
        plan = make_plan(scenario)
        assert sorted(plan.hosts + plan.up_to_date) == sorted(host.name for host in scenario.hosts)
        assert plan == make_plan(scenario)
        assert [wave.index for wave in plan.waves] == list(range(len(plan.waves)))


def test_every_stretch_of_the_order_holds_a_domain_in_proportion() -> None:
    rng = random.Random("stretches")
    for _ in range(50):
        sizes = [rng.randrange(1, 40) for _ in range(rng.randrange(1, 6))]
        order = [host.name.split("-")[0] for host in deal(racks(*sizes), ["rack"])]
        length = rng.randrange(1, len(order) + 1)
        at = rng.randrange(len(order) - length + 1)
        for rack, size in enumerate(sizes, start=1):
            share = length * size / len(order)
            # Rounding at either end of the stretch.
            assert abs(order[at : at + length].count(f"r{rack}") - share) <= 2
