"""How long lanes take, found the slow way: the reference that the clock is compared with."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hypothesis import strategies as st

# A lane's body: a number is work, (lock, body) is work under a lock.
Body = list["int | tuple[str, Body]"]


def tick_by_tick(bodies: list[Body], cpus: int) -> list[int]:
    """The reference's answer."""
    return Reference(bodies, cpus).run()


class Reference:
    """Every nanosecond of work is looked at: no heaps, no cleverness."""

    def __init__(self, bodies: list[Body], cpus: int) -> None:
        self.programs = [steps_of(body) for body in bodies]
        self.cpus = cpus
        self.now = Fraction(0)
        self.ends: dict[int, int] = {}
        self.running = list(range(len(bodies)))
        self.heirs: list[int] = []  # run once nobody else can do anything at this instant
        self.waiting: dict[int, tuple[Fraction, str]] = {}  # lane -> (since, lock)
        self.owner: dict[str, int] = {}

    def run(self) -> list[int]:
        while len(self.ends) < len(self.programs):
            while self.something_happens():
                pass
            if self.running:  # a tick of work each, in a tick or as much more as they are too many
                self.now += max(Fraction(len(self.running), self.cpus), Fraction(1))
            for lane in self.running:
                self.programs[lane].pop(0)
        return [self.ends[lane] for lane in range(len(self.programs))]

    def something_happens(self) -> bool:
        acting = [lane for lane in self.running if self.programs[lane][:1] != ["tick"]]
        if acting:
            self.act(min(acting))
        elif self.heirs:
            self.running += self.heirs
            self.heirs = []
        else:
            return False
        return True

    def act(self, lane: int) -> None:
        if not self.programs[lane]:
            self.running.remove(lane)
            self.ends[lane] = ceil(self.now)
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
            self.heirs.append(heir)


def steps_of(body: Body) -> list[str]:
    steps: list[str] = []
    for item in body:
        if isinstance(item, int):
            steps += ["tick"] * item
        elif inner := steps_of(item[1]):
            steps += [f"take {item[0]}", *inner, f"drop {item[0]}"]
    return steps


WORK = st.integers(0, 6)
# Locks are taken in the order of the alphabet, so there is no deadlock.
UNDER_C = st.tuples(st.just("c"), st.lists(WORK, max_size=2))
UNDER_B = st.tuples(st.just("b"), st.lists(st.one_of(WORK, UNDER_C), max_size=3))
UNDER_A = st.tuples(st.just("a"), st.lists(st.one_of(WORK, UNDER_B, UNDER_C), max_size=3))
BODY = st.lists(st.one_of(WORK, UNDER_A, UNDER_B, UNDER_C), max_size=5)
BODIES = st.lists(BODY, min_size=1, max_size=7)
