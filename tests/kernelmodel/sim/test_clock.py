"""Promise: charges become time as a machine would spend it; every misuse is a ModelBug."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.errors import IoError, ModelBug
from kernelmodel.sim.clock import Clock
from tests.kernelmodel.sim.clocks import make_clock
from tests.kernelmodel.sim.lane_reference import BODIES, Body, tick_by_tick

MISUSES: dict[str, Callable[[Clock], object]] = {
    "no cost row for 'thirds'; close: third": lambda c: c.charge("thirds"),
    "-1 units of 'ns'": lambda c: c.charge("ns", -1),
    "time cannot run backwards: 0 -> -1": lambda c: c.advance_to(-1),
    "'nobody' is neither an op nor a stream": lambda c: c.slow("nobody", 2000),
    "cut at 1, now 0": lambda c: c.cut(1),
    "cut at -1, now 0": lambda c: c.cut(-1),
    "cut at 0, now 0": lambda c: within(c.phase("a"), lambda: c.cut(0)),
    "restart within phase 'a'": lambda c: within(c.phase("a"), c.restart),
    "a slowdown of 0 permille": lambda c: c.slow("ns", 0),
    "phase 'b' within phase 'a'": lambda c: within(c.phase("a"), lambda: enter(c.phase("b"))),
    "lane 'y' within lane 'x'": lambda c: in_lane(c, lambda: enter(c.lane("y"))),
    "advance_to within lane 'x'": lambda c: in_lane(c, lambda: c.advance_to(9)),
    "lock 'm' is taken twice": lambda c: within(c.lock("m"), lambda: enter(c.lock("m"))),
    "lock 'n' is taken twice": lambda c: in_lane(
        c, lambda: within(c.lock("n"), lambda: c.charge_locked("n", "ns"))
    ),
    "lock 'l' is taken twice": lambda c: in_lane(
        c, lambda: within(c.lock("l"), lambda: enter(c.lock("l")))
    ),
    "lane 'x' waits for 'l', which the main lane holds": lambda c: within(
        c.lock("l"), lambda: in_lane(c, lambda: enter(c.lock("l")))
    ),
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_a_model_bug(message: str) -> None:
    with pytest.raises(ModelBug, match=message):
        MISUSES[message](make_clock())


def within(block: object, body: Callable[[], object]) -> None:
    with block:  # type: ignore[attr-defined]  # any of the clock's blocks
        body()


def enter(block: object) -> None:
    within(block, lambda: None)


def in_lane(clock: Clock, body: Callable[[], object]) -> None:
    with clock.phase("p"), clock.lane("x"):
        body()


def test_a_clock_needs_a_cpu() -> None:
    with pytest.raises(ModelBug, match="at least one CPU"):
        make_clock(cpus=0)


def test_a_phase_without_a_lane_of_that_name_says_so() -> None:
    clock = make_clock()
    with clock.phase("freeze") as phase:
        clock.charge("ns", 5)
    with pytest.raises(ModelBug, match="phase 'freeze' has no lane 'x'"):
        phase.lane_end_ns("x")


def test_a_phase_that_fails_still_takes_its_time() -> None:
    clock = make_clock()
    with (  # noqa: PT012 - the charge before it is what this is about
        pytest.raises(IoError),
        clock.phase("freeze") as phase,
        clock.lane("x"),
        clock.lock("l"),
    ):
        clock.charge("ns", 40)
        raise IoError("freeze")
    assert (phase.duration_ns, clock.now_ns) == (40, 40)
    with clock.phase("freeze") as retry, clock.lane("x"), clock.lock("l"):
        clock.charge("ns", 2)
    assert (retry.start_ns, retry.end_ns, retry.lane_end_ns("x")) == (40, 42, 42)


def test_charges_outside_a_phase_follow_one_another() -> None:
    clock = make_clock()
    clock.charge("ns", 3)
    for name in "xy":
        with clock.lane(name), clock.lock("l"):
            clock.charge("ns", 4)
    assert clock.now_ns == 11
    clock.advance_to(1_000)
    clock.charge("ns")
    assert clock.now_ns == 1_001


def test_costs_are_exact_to_the_nearest_nanosecond() -> None:
    clock = make_clock()
    clock.charge("call", 1)
    assert clock.now_ns == 141
    clock.charge("call", 10**6)
    assert clock.now_ns == 141 + 100 + 41_291_000
    clock.advance_to(10**8)
    clock.charge("third", 1)
    assert clock.now_ns == 10**8
    clock.charge("third", 2)
    assert clock.now_ns == 10**8 + 1
    clock.charge("call", 0)
    assert clock.now_ns == 10**8 + 101


def test_the_main_lane_forks_and_joins() -> None:
    """10 on the main lane, 30 for the longer of two lanes, 5, then 7 for a lane of its own."""
    clock = make_clock()
    clock.advance_to(1000)
    with clock.phase("retrieve") as phase:
        clock.charge("ns", 10)
        for name, work in (("x", 20), ("y", 30)):
            with clock.lane(name):
                assert clock.now_ns == 1010
                clock.charge("ns", work)
        clock.charge("ns", 5)
        assert clock.now_ns == 1045
        with clock.lane("x"):
            clock.charge("ns", 7)
    assert (phase.start_ns, phase.duration_ns, phase.end_ns) == (1000, 52, 1052)
    assert phase.lanes == ("x", "y")
    assert (phase.lane_end_ns("x"), phase.lane_end_ns("y")) == (1052, 1040)
    assert clock.now_ns == 1052


def test_idle_time_on_the_main_lane_waits_for_the_lanes_first() -> None:
    clock = make_clock()
    with clock.phase("p") as phase:
        with clock.lane("x"):
            clock.charge("ns", 50)
        clock.advance_to(60)
        with clock.lane("x"):
            clock.charge("ns", 1)
    assert phase.duration_ns == 61


def test_a_phase_without_work_takes_no_time() -> None:
    clock = make_clock()
    with clock.phase("p") as phase, clock.lane("x"):
        pass
    assert (phase.duration_ns, phase.lane_end_ns("x")) == (0, 0)


# A phase as data: a number is main-lane work, a list of bodies a group of lanes.
PARTS = st.lists(st.one_of(st.integers(0, 9), BODIES), max_size=4)


def run_body(clock: Clock, body: Body) -> None:
    for item in body:
        if isinstance(item, int):
            clock.charge("ns", item)
        else:
            with clock.lock(item[0]):
                run_body(clock, item[1])


@settings(deadline=None)
@given(PARTS, st.integers(1, 5))
def test_a_phase_is_as_long_as_its_critical_path(parts: list[int | list[Body]], cpus: int) -> None:
    """Main-lane work adds up, groups take what the reference says."""
    clock = make_clock(cpus=cpus)
    expected = 0
    with clock.phase("p") as phase:
        for part in parts:
            if isinstance(part, int):
                clock.charge("ns", part)
                expected += part
                continue
            for index, body in enumerate(part):
                with clock.lane(str(index)):
                    run_body(clock, body)
            # Two groups that touch would be one: a charge of nothing keeps them apart.
            clock.charge("ns", 0)
            expected += max(tick_by_tick(part, cpus))
            assert clock.now_ns == expected
    assert phase.duration_ns == clock.now_ns == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 8))
def test_one_lock_makes_lanes_take_the_sum(works: list[int], cpus: int) -> None:
    clock = make_clock(cpus=cpus)
    with clock.phase("p") as phase:
        for index, work in enumerate(works):
            with clock.lane(str(index)), clock.lock("luo_register_rwlock"):
                clock.charge("ns", work)
    assert phase.duration_ns == sum(works)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 8))
def test_lanes_share_the_cpus_that_there_are(works: list[int], cpus: int) -> None:
    """No instant has more work behind it than the CPUs can do, and one lane more delays no other
    by more than its work over the CPUs: not the last of 97 on 96 CPUs by as much as it takes."""

    def ends(works: list[int]) -> list[int]:
        clock = make_clock(cpus=cpus)
        with clock.phase("p") as phase:
            for index, work in enumerate(works):
                with clock.lane(str(index)):
                    clock.charge("ns", work)
        return [phase.lane_end_ns(str(index)) for index in range(len(works))]

    alone, *others = ends(works)
    for now in (alone, *others):
        done = [work for work, end in zip(works, (alone, *others), strict=True) if end <= now]
        assert sum(done) <= cpus * now
    for end, before in zip(others, ends(works[1:]), strict=True):
        assert before <= end <= before + -(-works[0] // cpus)


def test_slowdowns_multiply_and_are_lifted() -> None:
    clock = make_clock()

    def cost(op: str) -> int:
        before = clock.now_ns
        clock.charge(op, 10)
        return clock.now_ns - before

    assert (cost("ns"), cost("call")) == (10, 513)
    boot = clock.slow("boot", 4000)
    assert (cost("ns"), cost("call"), cost("third")) == (40, 2052, 3)
    with clock.slow("ns", 1500):
        assert cost("ns") == 60
    assert cost("ns") == 40
    boot.lift()
    boot.lift()
    assert (cost("ns"), cost("call")) == (10, 513)


def test_luck_belongs_to_the_seed_the_path_and_the_lane() -> None:
    def ends(names: str, seed: int = 7) -> dict[str, int]:
        clock = make_clock(cpus=9, seed=seed)
        with clock.phase("p") as phase:
            for name in names:
                with clock.lane(name):
                    clock.charge("lucky")
                    clock.charge("lucky")
        return {name: phase.lane_end_ns(name) for name in phase.lanes}

    assert ends("abc") == ends("abc")
    assert ends("abcd").items() >= ends("ab").items(), "another VM changes nobody's luck"
    assert ends("abc", seed=8) != ends("abc")
    assert len(set(ends("abcdefgh").values())) == 8


def test_luck_of_one_phase_does_not_depend_on_another() -> None:
    def second_boot(first_draws: int) -> int:
        clock = make_clock()
        for draws in (first_draws, 1):
            clock.charge("lucky")
            with clock.phase("init") as phase:
                for _ in range(draws):
                    clock.charge("lucky")
        return phase.duration_ns

    assert second_boot(0) == second_boot(1) == second_boot(5)
    clock = make_clock()
    with clock.phase("init") as first:
        clock.charge("lucky")
    assert first.duration_ns != second_boot(0)


def test_a_reset_cuts_time_back_and_a_restart_makes_it_begin() -> None:
    clock = make_clock()
    with clock.phase("init"):
        clock.charge("ns", 100)
    clock.cut(60)
    assert clock.now_ns == 60
    clock.restart()
    assert clock.now_ns == 0


def test_who_asks_is_told_of_every_phase_that_ends() -> None:
    clock = make_clock()
    told: list[tuple[str, int]] = []
    clock.on_phase = lambda phase: told.append((phase.name, phase.duration_ns))
    with clock.phase("kho"):
        clock.charge("ns", 3)
    with clock.phase("init"), clock.lane("x"):
        clock.charge("ns", 4)
    assert told == [("kho", 3), ("init", 4)]


def test_a_spread_keeps_its_median_and_its_ends() -> None:
    clock = make_clock()
    draws = []
    for _ in range(2001):
        before = clock.now_ns
        clock.charge("lucky")
        draws.append(clock.now_ns - before)
    draws.sort()
    assert 500 <= draws[0] < 510
    assert 900 < draws[1000] < 1300
    assert 8800 < draws[-1] <= 9000
