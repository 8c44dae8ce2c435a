"""Lanes and locks: how long a group of threads takes, by a small discrete event simulation.

A `Lane` is a thread's program: stretches of work and lock operations, in order. A `Group` is the
lanes between a fork and its join. Its rules:

1. A lane keeps its CPU until it ends or has to wait for a lock; waiting frees the CPU.
2. A free CPU goes to the lane that has been ready longest, ties to the one created first.
3. A released lock goes to the lane that asked first, ties as in 2. The new owner then waits for
   a CPU like any other, holding the lock.
4. At one instant, lanes act in order of creation; only then are free CPUs given out, and so on
   until nothing more can happen at that instant.

Simplification: *no time slicing.* With more lanes than CPUs a real scheduler would let all of
them crawl; here the first ones finish early and the last one ends when it really would, give or
take a slice. A test that compares the mean end of 600 lanes on 96 CPUs can notice, one that looks
at the end of a phase cannot.

Simplification: *a bulk charge under a lock holds it throughout*, where the kernel takes and drops
it per element. Totals are the same; only who is first differs.

Unhappy path: lanes that wait for each other's locks in a circle are a `ModelBug` that names them.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from types import TracebackType

from kernelmodel.errors import ModelBug

__all__ = ["Group", "Lane", "LockBlock"]

#: (work done until then, lock, whether it is taken or dropped).
_LockOp = tuple[int, str, bool]


class Lane:
    """A thread's program within a group: its work, and at which points of it locks change hands."""

    __slots__ = ("held", "lock_ops", "name", "work_ns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: list[str] = []
        self.work_ns = 0
        #: In order.
        self.lock_ops: list[_LockOp] = []


class LockBlock:
    """A `with` block under a lock, on `lane` or, if that is None, on the main lane.

    Nobody waits for a lock under which no time passed.
    """

    __slots__ = ("_from_ns", "_lane", "_main_locks", "_name")

    def __init__(self, name: str, lane: Lane | None, main_locks: list[str]) -> None:
        self._name = name
        self._lane = lane
        self._main_locks = main_locks
        self._from_ns = 0  # of the lane's work

    def __enter__(self) -> None:
        lock, lane = self._name, self._lane
        held = self._main_locks if lane is None else lane.held
        if lock in held:
            raise ModelBug(f"lock {lock!r} is taken twice by one lane")
        if lane is not None:
            if lock in self._main_locks:
                raise ModelBug(f"lane {lane.name!r} waits for {lock!r}, which the main lane holds")
            self._from_ns = lane.work_ns
            lane.lock_ops.append((lane.work_ns, lock, True))
        held.append(lock)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        lane = self._lane
        if lane is None:
            self._main_locks.pop()  # blocks nest
            return
        lane.held.pop()
        if lane.work_ns == self._from_ns:
            lane.lock_ops.pop()
        else:
            lane.lock_ops.append((lane.work_ns, self._name, False))


class Group:
    """Lanes that fork at one instant and join when the last of them is done."""

    __slots__ = ("lanes",)

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}

    def lane(self, name: str) -> Lane:
        """The lane so called, created at first use."""
        lanes = self.lanes
        if name not in lanes:
            lanes[name] = Lane(name)
        return lanes[name]

    def run(self, fork_ns: int, cpus: int) -> dict[str, int]:
        """The instant at which each lane ends, by name, in order of creation."""
        lanes = self.lanes
        shared = _shared_locks(lanes.values())
        if not shared and len(lanes) <= cpus:  # nobody waits for anything
            return {name: fork_ns + lane.work_ns for name, lane in lanes.items()}
        if len(shared) == 1 and len(lanes) <= cpus:  # nearly always: one lock, a CPU for everybody
            ends_ns = _queue([_turns(lane, *shared) for lane in lanes.values()], fork_ns)
            return dict(zip(lanes, ends_ns, strict=True))
        programs = [
            [*[op for op in lane.lock_ops if op[1] in shared], (lane.work_ns, "", False)]
            for lane in lanes.values()
        ]
        ends = _schedule(programs, fork_ns, cpus)
        named = dict(zip(lanes, ends, strict=True))
        done = {name: end for name, end in named.items() if end is not None}
        if len(done) < len(named):
            stuck = ", ".join(name for name in named if name not in done)
            raise ModelBug(f"lanes wait for each other's locks: {stuck}")
        return done


def _shared_locks(lanes: Iterable[Lane]) -> set[str]:
    """Locks that more than one lane takes: nobody waits for, or inherits, any other."""
    first: dict[str, Lane] = {}
    shared: set[str] = set()
    for lane in lanes:
        for _, lock, _ in lane.lock_ops:
            if lock not in first:
                first[lock] = lane
            elif first[lock] is not lane:
                shared |= {lock}
    return shared


def _turns(lane: Lane, lock: str) -> list[int]:
    """The work that a lane has done when it takes and drops the lock, in turn, and at its end."""
    return [*[at_ns for at_ns, name, _ in lane.lock_ops if name == lock], lane.work_ns]


def _queue(lanes: list[list[int]], fork_ns: int) -> list[int]:
    """When each lane ends that waits for one lock alone: who asked first is served first.

    As `_schedule`, from one request to the next: nothing else can hold anybody up.
    """
    ends = [0] * len(lanes)
    taken = [0] * len(lanes)  # how often a lane has had the lock
    asking = [(fork_ns + turns[0], index) for index, turns in enumerate(lanes)]  # or at its end
    heapify(asking)
    free_ns = fork_ns  # when the lock is dropped
    while asking:
        asked_ns, index = asking[0]
        turns, at = lanes[index], 2 * taken[index]
        if at + 1 == len(turns):
            ends[index] = asked_ns
            heappop(asking)
        else:
            free_ns = max(free_ns, asked_ns) + turns[at + 1] - turns[at]
            taken[index] += 1
            heapreplace(asking, (free_ns + turns[at + 2] - turns[at + 1], index))
    return ends


def _schedule(programs: list[list[_LockOp]], now_ns: int, free_cpus: int) -> list[int | None]:
    """When each lane ends; None for the lanes caught in a deadlock.

    A lane's program is what it does to locks, and ("", False) when all its work is done. Lanes are
    known by their index; all heaps are ordered (ns, lane).
    """
    count = len(programs)
    ends: list[int | None] = [None] * count
    done_ns = [0] * count  # of a lane's work
    next_op = [0] * count  # in a lane's program
    ready = [(now_ns, index) for index in range(count)]  # ready since
    acting = ready[:free_cpus]  # on a CPU, with nothing to do until then
    ready = ready[free_cpus:]  # without a CPU
    free_cpus -= len(acting)
    waiting: dict[str, list[tuple[int, int]]] = {}  # by lock that is held: asked at
    while acting:
        now_ns = acting[0][0]
        while acting and acting[0][0] == now_ns:
            index = acting[0][1]
            program, at = programs[index], next_op[index]
            while True:  # carry on until the lane works, waits or ends
                at_ns, lock, takes = program[at]
                if at_ns > done_ns[index]:
                    heapreplace(acting, (now_ns + at_ns - done_ns[index], index))
                    done_ns[index] = at_ns
                    break
                at += 1
                if takes and lock not in waiting:
                    waiting[lock] = []
                elif takes:
                    heappush(waiting[lock], (now_ns, index))
                    heappop(acting)
                    free_cpus += 1
                    break
                elif not lock:
                    ends[index] = now_ns
                    heappop(acting)
                    free_cpus += 1
                    break
                elif waiting[lock]:
                    heappush(ready, (now_ns, heappop(waiting[lock])[1]))
                else:
                    del waiting[lock]
            next_op[index] = at
        while ready and free_cpus:
            free_cpus -= 1
            heappush(acting, (now_ns, heappop(ready)[1]))
    return ends
