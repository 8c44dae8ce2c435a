"""Promise: a group of lanes takes what its four rules say, found here the slow way as well."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.errors import ModelBug
from kernelmodel.sim.lanes import Group

# A lane's body: a number is work, (lock, body) is work under a lock.
Body = list["int | tuple[str, Body]"]


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
            lane.pending_ns += item
        else:
            lane.take(item[0])
            _fill(group, name, item[1])
            lane.drop(item[0])


def tick_by_tick(bodies: list[Body], cpus: int) -> list[int]:
    """The reference's answer."""
    return Reference(bodies, cpus).run()


class Reference:
    """Every nanosecond is looked at: no heaps, no cleverness."""

    def __init__(self, bodies: list[Body], cpus: int) -> None:
        self.programs = [_steps(body) for body in bodies]
        self.cpus = cpus
        self.now = 0
        self.ends: dict[int, int] = {}
        self.ready = dict.fromkeys(range(len(bodies)), 0)  # lane -> ready since
        self.running: list[int] = []
        self.waiting: dict[int, tuple[int, str]] = {}  # lane -> (since, lock)
        self.owner: dict[str, int] = {}

    def run(self) -> list[int]:
        while len(self.ends) < len(self.programs):
            while self.something_happens():
                pass
            for lane in self.running:
                self.programs[lane].pop(0)
            self.now += 1
        return [self.ends[lane] for lane in range(len(self.programs))]

    def something_happens(self) -> bool:
        acting = [lane for lane in self.running if self.programs[lane][:1] != ["tick"]]
        if acting:
            self.act(min(acting))
        elif self.ready and len(self.running) < self.cpus:
            oldest_first = sorted(self.ready, key=lambda lane: (self.ready[lane], lane))
            for lane in oldest_first[: self.cpus - len(self.running)]:
                del self.ready[lane]
                self.running.append(lane)
        else:
            return False
        return True

    def act(self, lane: int) -> None:
        if not self.programs[lane]:
            self.running.remove(lane)
            self.ends[lane] = self.now
            return
        verb, lock = self.programs[lane].pop(0).split()
        if verb == "drop":
            self.drop(lock)
        elif lock in self.owner:
            self.waiting[lane] = (self.now, lock)
            self.running.remove(lane)
        else:
            self.owner[lock] = lane

    def drop(self, lock: str) -> None:
        del self.owner[lock]
        asking = sorted((since, i) for i, (since, want) in self.waiting.items() if want == lock)
        if asking:
            heir = asking[0][1]
            del self.waiting[heir]
            self.owner[lock] = heir
            self.ready[heir] = self.now


def _steps(body: Body) -> list[str]:
    steps: list[str] = []
    for item in body:
        if isinstance(item, int):
            steps += ["tick"] * item
        elif inner := _steps(item[1]):
            steps += [f"take {item[0]}", *inner, f"drop {item[0]}"]
    return steps


WORK = st.integers(0, 6)
# Locks are taken in the order of the alphabet, so there is no deadlock.
UNDER_C = st.tuples(st.just("c"), st.lists(WORK, max_size=2))
UNDER_B = st.tuples(st.just("b"), st.lists(st.one_of(WORK, UNDER_C), max_size=3))
UNDER_A = st.tuples(st.just("a"), st.lists(st.one_of(WORK, UNDER_B, UNDER_C), max_size=3))
BODY = st.lists(st.one_of(WORK, UNDER_A, UNDER_B, UNDER_C), max_size=5)
BODIES = st.lists(BODY, min_size=1, max_size=7)


@settings(deadline=None, max_examples=400)
@given(BODIES, st.integers(1, 5))
def test_every_lane_ends_when_the_reference_says(bodies: list[Body], cpus: int) -> None:
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
    work = [sum(step == "tick" for step in _steps(body)) for body in bodies]
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
        ([[5], [5], [5]], 1, [5, 10, 15]),
        ([[5], [5], [5]], 2, [5, 5, 10]),
        ([[5], [5], [5]], 3, [5, 5, 5]),
        # Waiting for a lock frees the CPU: lane 2 runs meanwhile.
        ([[("a", [4])], [("a", [4])], [3]], 2, [4, 8, 3]),
        # Who asked first is served first, not who was created first.
        ([[9, ("a", [1])], [("a", [10])], [1, ("a", [1])]], 3, [12, 10, 11]),
        ([[], [0], [("a", [0])]], 1, [0, 0, 0]),
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
    group.lane("x").pending_ns += 3
    group.lane("y").pending_ns += 4
    group.lane("x").pending_ns += 5
    assert group.run(100, 2) == {"x": 108, "y": 104}
