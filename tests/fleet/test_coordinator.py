"""The coordinator: what it refuses, what it stops, and what holds in any rollout at all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from msgspec.structs import replace

from fleet.api import RolloutState
from fleet.coordinator import NEXT, Coordinator
from fleet.plan import make_plan
from fleet.scenario import GateSpec, RolloutSpec
from fleet.steps import (
    Finished,
    HostDone,
    Request,
    RequestKind,
    Tick,
)
from kernelmodel.errors import ModelBug
from node.api import HostOutcome
from tests.fleet.rollouts import (
    NEW,
    SECOND,
    Log,
    World,
    lost_vm,
    racks,
    random_scenario,
    result_of,
    scenario_of,
    seeds,
)
from tests.fleet.stage import SOAKED, Stage

PAUSE, RESUME, ABORT = RequestKind.PAUSE, RequestKind.RESUME, RequestKind.ABORT


def pending() -> Stage:
    return Stage()


def canary() -> Stage:
    return Stage().start()


def soaking() -> Stage:
    return canary().land()


def wave() -> Stage:
    return soaking().soak()


def paused() -> Stage:
    return wave().ask(PAUSE)


def halted() -> Stage:
    return wave().land(HostOutcome.FAILED)


def aborted() -> Stage:
    return wave().ask(ABORT)


def completed() -> Stage:
    stage = wave().land().land().soak().land().land()
    return stage.soak()


REQUESTS = [
    # in state    asked    refused because                        state then
    (pending, PAUSE, "the rollout has not started", RolloutState.PENDING),
    (pending, RESUME, "the rollout has not started", RolloutState.PENDING),
    (canary, RESUME, "the rollout is not paused", RolloutState.CANARY),
    (soaking, RESUME, "the rollout is not paused", RolloutState.SOAKING),
    (wave, RESUME, "the rollout is not paused", RolloutState.WAVE),
    (paused, PAUSE, "the rollout is paused already", RolloutState.PAUSED),
    (halted, PAUSE, "the rollout is halted already", RolloutState.HALTED),
    (halted, RESUME, "the rollout is halted already", RolloutState.HALTED),
    (halted, ABORT, "the rollout is halted already", RolloutState.HALTED),
    (aborted, PAUSE, "the rollout is aborted already", RolloutState.ABORTED),
    (aborted, RESUME, "the rollout is aborted already", RolloutState.ABORTED),
    (aborted, ABORT, "the rollout is aborted already", RolloutState.ABORTED),
    (completed, PAUSE, "the rollout is completed already", RolloutState.COMPLETED),
    (completed, RESUME, "the rollout is completed already", RolloutState.COMPLETED),
    (completed, ABORT, "the rollout is completed already", RolloutState.COMPLETED),
    (pending, ABORT, None, RolloutState.ABORTED),
    (canary, PAUSE, None, RolloutState.PAUSED),
    (canary, ABORT, None, RolloutState.ABORTED),
    (soaking, PAUSE, None, RolloutState.PAUSED),
    (soaking, ABORT, None, RolloutState.ABORTED),
    (wave, PAUSE, None, RolloutState.PAUSED),
    (wave, ABORT, None, RolloutState.ABORTED),
    (paused, RESUME, None, RolloutState.WAVE),
    (paused, ABORT, None, RolloutState.ABORTED),
]


@pytest.mark.parametrize(
    ("given", "kind", "refused", "then"),
    REQUESTS,
    ids=[f"{given.__name__}-{kind}" for given, kind, _, _ in REQUESTS],
)
def test_requests_in_every_state(
    given: Callable[[], Stage], kind: RequestKind, refused: str | None, then: RolloutState
) -> None:
    stage = given()
    events = len(stage.log.events)
    stage.ask(kind)
    assert stage.state is then
    assert stage.refused == ([refused] if refused else [])
    assert (len(stage.log.events) == events) == bool(refused)


def test_every_state_and_request_has_a_row() -> None:
    assert {(given.__name__, kind) for given, kind, _, _ in REQUESTS} == {
        (state.value, kind) for state in RolloutState for kind in RequestKind
    }


def test_the_table_knows_every_state_and_every_edge_is_taken() -> None:
    assert set(NEXT) == set(RolloutState)
    taken: set[tuple[str, str]] = set()
    for rng in seeds(1500):
        world = World(rng, random_scenario(rng), trouble_permille=100, request_permille=150)
        world.run()
        taken |= set(world.log.moves())
    taken |= set(Stage().ask(ABORT).log.moves())
    assert taken == {(old.value, new.value) for old, news in NEXT.items() for new in news}


def test_hosts_in_flight_finish_after_a_halt_and_only_then_is_it_over() -> None:
    stage = wave()
    assert len(stage.flying) == 2
    stage.land(HostOutcome.FAILED)
    assert stage.state is RolloutState.HALTED
    assert not stage.is_over
    stage.land()
    why = "1 host failed or rolled back, the gate allows 0"
    assert stage.ended == Finished(RolloutState.HALTED, why)
    assert not stage.flying
    assert [wave.verdict for wave in stage.coordinator.wave_records] == [
        "passed",
        f"halted: {why}",
        "not started",
    ]


def test_an_abort_before_the_start_is_over_at_once() -> None:
    assert pending().ask(ABORT).ended == Finished(RolloutState.ABORTED, "a person")


def test_a_rolled_back_canary_halts_whatever_the_gate_allows() -> None:
    stage = Stage(replace(SOAKED, gate=GateSpec(max_failed_hosts=99)))
    stage.start().land(HostOutcome.ROLLED_BACK)
    assert stage.ended == Finished(RolloutState.HALTED, "the canary host was not updated")


def test_a_pause_lets_hosts_in_flight_finish_and_starts_none() -> None:
    stage = paused().land().land()
    assert stage.state is RolloutState.PAUSED
    assert not stage.flying
    assert stage.ask(RESUME).state is RolloutState.SOAKING


def test_a_soak_goes_on_during_a_pause() -> None:
    stage = soaking()
    end_ns = stage.wake_ns
    assert end_ns == 620 * SECOND
    stage.ask(PAUSE)
    assert stage.coordinator.soak_until_ns == end_ns
    stage.feed(Tick(end_ns))
    assert stage.state is RolloutState.PAUSED
    assert stage.feed(Request(700 * SECOND, RESUME)).state is RolloutState.WAVE
    assert {command.start_ns for command in stage.flying.values()} == {700 * SECOND}


def test_a_gate_that_closes_during_a_pause_halts() -> None:
    stage = paused().land(HostOutcome.FAILED)
    assert stage.state is RolloutState.HALTED
    assert not stage.is_over
    assert stage.land().is_over


def test_hosts_of_a_full_rack_wait_and_hosts_that_are_down_fill_it() -> None:
    rollout = RolloutSpec(
        canary=0, wave_size=9, max_unavailable={"rack": 1}, gate=GateSpec(max_failed_hosts=9)
    )
    stage = Stage(rollout, 2, 2).start()
    assert sorted(stage.flying) == ["r1-h01", "r2-h01"]
    stage.land(HostOutcome.FAILED, release="")
    assert sorted(stage.flying) == ["r2-h01"], "r1 is full: its host is down"
    stage.land().land()
    why = "1 hosts of wave 1 cannot start: rack r1 has 1 down"
    assert stage.ended == Finished(RolloutState.HALTED, why)


def test_a_failed_host_that_serves_again_is_not_in_the_way() -> None:
    rollout = RolloutSpec(
        canary=0, wave_size=9, max_unavailable={"rack": 1}, gate=GateSpec(max_failed_hosts=9)
    )
    stage = Stage(rollout, 2).start().land(HostOutcome.FAILED)
    assert sorted(stage.flying) == ["r1-h02"]


def test_waves_are_recorded_with_their_times() -> None:
    records = completed().coordinator.wave_records
    assert [(w.start_ns, w.end_ns, w.soak_end_ns, w.verdict) for w in records] == [
        (0, 20 * SECOND, 620 * SECOND, "passed"),
        (620 * SECOND, 640 * SECOND, 940 * SECOND, "passed"),
        (940 * SECOND, 960 * SECOND, 1260 * SECOND, "passed"),
    ]


def test_a_fleet_that_is_up_to_date_completes_at_once() -> None:
    scenario = scenario_of(racks(2, release=NEW))
    coordinator = Coordinator(make_plan(scenario), GateSpec(), Log())
    why = f"all run {NEW} already"
    assert coordinator.step(Tick(0)) == [Finished(RolloutState.COMPLETED, why)]


def test_a_driver_that_breaks_the_rules_is_a_bug() -> None:
    with pytest.raises(ModelBug, match="after one of"):
        soaking().feed(Tick(1))
    stage = canary()
    command = stage.flying[next(iter(stage.flying))]
    with pytest.raises(ModelBug, match="was not in flight"):
        stage.feed(HostDone(result_of(replace(command, host="nobody"))))
    with pytest.raises(ModelBug, match="after the rollout has finished"):
        completed().feed(Tick(10_000 * SECOND))


def test_random_rollouts_keep_every_rule_and_end() -> None:
    """Safety: the referee recounts limits, waves, soaks and stops at every step."""
    states = set()
    for rng in seeds(2500):
        world = World(
            rng,
            random_scenario(rng),
            trouble_permille=rng.choice([0, 50, 300]),
            down_permille=rng.choice([0, 500]),
            request_permille=rng.choice([0, 20, 200]),
        )
        states.add(world.run().state)
    assert states == {RolloutState.COMPLETED, RolloutState.HALTED, RolloutState.ABORTED}


def test_a_healthy_fleet_is_updated_to_the_last_host() -> None:
    """Liveness: without trouble and without an abort every stale host gets the target."""
    for rng in seeds(1000):
        scenario = random_scenario(rng)
        world = World(rng, scenario)
        assert world.run().state is RolloutState.COMPLETED
        assert sorted(world.referee.started) == sorted(make_plan(scenario).hosts)
        assert all(wave.verdict == "passed" for wave in world.coordinator.wave_records)


def test_a_domain_is_never_idle_while_one_of_its_hosts_could_start() -> None:
    """Work conservation: with one limited key, a waiting host's domain is full."""
    for rng in seeds(300):
        scenario = random_scenario(rng)
        limits = {"rack": 2}
        rollout = replace(scenario.rollout, max_unavailable=limits, canary=0, soak_ns=0)
        world = World(rng, replace(scenario, rollout=rollout))
        rack_of = {host.name: host.domains["rack"] for host in scenario.hosts}
        world.run()
        waves = [wave.hosts for wave in make_plan(world.scenario).waves]
        ended = world.referee.ended_ns
        starts = {f["host"]: now for now, event, f in world.log.events if event == "start"}
        for hosts in waves:
            for rack in {rack_of[host] for host in hosts}:
                mine = [host for host in hosts if rack_of[host] == rack]
                for late in mine[2:]:
                    # It starts in the very instant in which another host of its rack ends.
                    assert starts[late] in {ended[host] for host in mine}


def test_the_same_world_gives_the_same_log() -> None:
    for first, second in zip(seeds(50), seeds(50), strict=True):
        worlds = [
            World(rng, random_scenario(rng), trouble_permille=100, request_permille=50)
            for rng in (first, second)
        ]
        for world in worlds:
            world.run()
        assert worlds[0].log.events == worlds[1].log.events


def test_a_lost_vm_halts_the_rollout() -> None:
    stage = canary()
    command = stage.flying.pop(next(iter(stage.flying)))
    stage.feed(HostDone(result_of(command, vms=(lost_vm("vm-1"),))))
    assert stage.ended == Finished(RolloutState.HALTED, "1 VM lost, the gate allows 0")


def test_log_times_never_go_back() -> None:
    for rng in seeds(50):
        world = World(rng, random_scenario(rng), trouble_permille=100, request_permille=100)
        world.run()
        assert all(a[0] <= b[0] for a, b in pairwise(world.log.events))
