"""Promise: a group of lanes takes what its four rules say, found here the slow way as well."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.errors import ModelBug
from kernelmodel.sim.lanes import Group, LockBlock
from tests.kernelmodel.sim.lane_reference import BODIES, WORK, Body, steps_of, tick_by_tick


def simulate(bodies: list[Body], cpus: int, fork_ns: int = 0) -> list[int]:
    """The group's own answer."""
    group = Group()
    for index, body in enumerate(bodies):
        _fill(group, str(index), body)
    return list(group.run(fork_ns, cpus).values())


def _fill(group: Group, name: str, body: Body) -> None:
    lane = group.lane(name)
    for item in body:
        if isinstance(item, int):
            lane.work_ns += item
        else:
            with LockBlock(item[0], lane, []):
                _fill(group, name, item[1])


@settings(deadline=None, max_examples=400)
@given(BODIES, st.integers(1, 5))
def test_every_lane_ends_when_the_reference_says(bodies: list[Body], cpus: int) -> None:
    assert simulate(bodies, cpus) == tick_by_tick(bodies, cpus)


ONE_LOCK = st.lists(
    st.lists(st.one_of(WORK, st.tuples(st.just("a"), st.lists(WORK, max_size=2))), max_size=6),
    min_size=1,
    max_size=7,
)


@settings(deadline=None, max_examples=400)
@given(ONE_LOCK, st.integers(5, 7))
def test_so_does_every_lane_that_shares_one_lock(bodies: list[Body], cpus: int) -> None:
    """With a CPU for each lane that is found in a shorter way."""
    assert simulate(bodies, cpus) == tick_by_tick(bodies, cpus)


@settings(deadline=None)
@given(BODIES, st.integers(1, 5), st.integers(0, 10**18))
def test_a_later_fork_shifts_every_end_alike(bodies: list[Body], cpus: int, fork: int) -> None:
    assert simulate(bodies, cpus, fork) == [fork + end for end in simulate(bodies, cpus)]


@settings(deadline=None)
@given(BODIES, st.integers(1, 5))
def test_a_group_lasts_between_its_bounds(bodies: list[Body], cpus: int) -> None:
    """No shorter than its longest lane, its busiest lock, its work over the CPUs; no longer than
    everything in a row."""
    work = [sum(step == "tick" for step in steps_of(body)) for body in bodies]
    under = {lock: sum(_ticks_under(lock, body) for body in bodies) for lock in "abc"}
    last = max(simulate(bodies, cpus))
    assert max(*work, *under.values(), -(-sum(work) // cpus)) <= last <= sum(work)


def _ticks_under(lock: str, body: Body, *, held: bool = False) -> int:
    return sum(
        (item if held else 0)
        if isinstance(item, int)
        else _ticks_under(lock, item[1], held=held or item[0] == lock)
        for item in body
    )


@pytest.mark.parametrize(
    ("bodies", "cpus", "ends"),
    [
        # Two lanes that want the other's lock while they wait: nobody lets go meanwhile.
        ([[("a", [2, ("b", [1])])], [("b", [3])]], 2, [4, 3]),
        ([[("a", [2, ("b", [1])])], [1, ("b", [5])], [3, ("a", [1])]], 3, [7, 6, 8]),
        ([[5], [5], [5]], 1, [15, 15, 15]),
        ([[5], [5], [5]], 2, [8, 8, 8]),
        ([[5], [5], [5]], 3, [5, 5, 5]),
        # One more than there are CPUs takes all of them a little longer, not one twice as long.
        ([[50]] * 11, 10, [55] * 11),
        ([[6], [2], [1]], 2, [7, 3, 2]),
        # Waiting for a lock frees the CPU: lane 2 runs meanwhile.
        ([[("a", [4])], [("a", [4])], [3]], 2, [4, 8, 3]),
        # Who asked first is served first, not who was created first.
        ([[9, ("a", [1])], [("a", [10])], [1, ("a", [1])]], 3, [12, 10, 11]),
        ([[], [0], [("a", [0])]], 1, [0, 0, 0]),
        # Four lanes run on three CPUs from 3 to 7, and then the heir of "a" on one of its own.
        (
            [[("a", [3]), 3], [("b", [4]), 2], [("b", [("c", [5])])], [("a", [("c", [5])])], [6]],
            3,
            [7, 7, 14, 9, 7],
        ),
        # No time passes under the lock: nobody waits for it.
        ([[("a", [7])], [1, ("a", []), 1]], 2, [7, 2]),
    ],
)
def test_worked_examples(bodies: list[Body], cpus: int, ends: list[int]) -> None:
    assert simulate(bodies, cpus) == ends


def test_lanes_that_wait_in_a_circle_are_named() -> None:
    with pytest.raises(ModelBug, match=r"each other's locks: 0, 1$"):
        simulate([[("a", [1, ("b", [1])])], [("b", [1, ("a", [1])])], [3]], 3)


def test_a_lane_that_is_entered_again_goes_on() -> None:
    group = Group()
    group.lane("x").work_ns += 3
    group.lane("y").work_ns += 4
    group.lane("x").work_ns += 5
    assert group.run(100, 2) == {"x": 108, "y": 104}
