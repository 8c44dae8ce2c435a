"""Lanes and locks: how long a group of threads takes, by a small discrete event simulation.

A `Lane` is a thread's program: stretches of work and lock operations, in order. A `Group` is the
lanes between a fork and its join. Its rules:

1. A lane runs unless it has ended or waits for a lock; who waits needs no CPU.
2. Up to as many lanes as there are CPUs run at full speed. More of them have equal shares of the
   CPUs: of n lanes on c CPUs, each does c / n ns of its work in a nanosecond.
3. A released lock goes to the lane that asked first, ties to the one created first.
4. At one instant, lanes act in order of creation; then those that were given a lock, and so on
   until nothing more can happen at that instant.

Lanes end at whole nanoseconds, rounded up.

Simplification: *slices without length.* Those of a scheduler are milliseconds long, and threads
move between CPUs a little after they should. A test that looks at less than some milliseconds on a
host with more lanes than CPUs can notice.

Simplification: *a bulk charge under a lock holds it throughout*, where the kernel takes and drops
it per element. Totals are the same; only who is first differs.

Unhappy path: lanes that wait for each other's locks in a circle are a `ModelBug` that names them.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from operator import itemgetter
from types import TracebackType
from typing import Final

from kernelmodel.errors import ModelBug

__all__ = ["Group", "Lane", "LockBlock"]

#: (work done until then, lock, whether it is taken or dropped).
_LockOp = tuple[int, str, bool]
_LOCK: Final = itemgetter(0)  # of a block


class Lane:
    """A thread's program within a group: its work, and at which points of it locks change hands."""

    __slots__ = ("blocks", "held", "name", "work_ns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: list[str] = []
        self.work_ns = 0
        #: (lock, work done when it is taken, when it is dropped), as they are dropped.
        self.blocks: list[tuple[str, int, int]] = []

    def turns(self, lock: str) -> list[int]:
        """The work done when the lane takes and drops the lock, in turn, and at its end."""
        turns: list[int] = []
        for name, taken_ns, dropped_ns in self.blocks:
            if name == lock:
                turns += taken_ns, dropped_ns
        turns.append(self.work_ns)
        return turns

    def program(self, locks: set[str]) -> list[_LockOp]:
        """What the lane does to these locks, in order, and ("", False) at the end of its work."""
        ops = [(self.work_ns, "", False)]  # from the last to the first
        around: list[_LockOp] = []  # takes of the blocks that the next one may lie within
        for lock, taken_ns, dropped_ns in reversed(self.blocks):
            while around and around[-1][0] >= dropped_ns:
                ops.append(around.pop())
            if lock in locks:
                ops.append((dropped_ns, lock, False))
                around.append((taken_ns, lock, True))
        return [*around, *reversed(ops)]


class LockBlock:
    """A `with` block under a lock, on `lane` or, if that is None, on the main lane.

    Nobody waits for a lock under which no time passed.
    """

    __slots__ = ("_lane", "_main_locks", "_name", "_taken_ns")

    def __init__(self, name: str, lane: Lane | None, main_locks: list[str]) -> None:
        self._name = name
        self._lane = lane
        self._main_locks = main_locks

    def __enter__(self) -> None:
        lock, lane, held = self._name, self._lane, self._main_locks
        if lane is not None:
            if lock in held:
                raise ModelBug(f"lane {lane.name!r} waits for {lock!r}, which the main lane holds")
            held = lane.held
            self._taken_ns = lane.work_ns
        if lock in held:
            raise ModelBug(f"lock {lock!r} is taken twice by one lane")
        held.append(lock)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        lane = self._lane
        if lane is None:
            self._main_locks.pop()  # blocks nest
            return
        lock = lane.held.pop()
        if lane.work_ns > self._taken_ns:
            lane.blocks.append((lock, self._taken_ns, lane.work_ns))


class Group:
    """Lanes that fork at one instant and join when the last of them is done."""

    __slots__ = ("lanes",)

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}

    def lane(self, name: str) -> Lane:
        """The lane so called, created at first use."""
        return self.lanes.setdefault(name, Lane(name))

    def run(self, fork_ns: int, cpus: int) -> dict[str, int]:
        """The instant at which each lane ends, by name, in order of creation."""
        lanes = self.lanes
        shared = _shared_locks(lanes.values())
        if not shared and len(lanes) <= cpus:  # nobody waits for anything
            return {name: fork_ns + lane.work_ns for name, lane in lanes.items()}
        if len(shared) == 1 and len(lanes) <= cpus:  # nearly always: one lock, a CPU for everybody
            (lock,) = shared
            turns = [lane.turns(lock) for lane in lanes.values()]
            return dict(zip(lanes, _queue(turns, fork_ns), strict=True))
        programs = [lane.program(shared) for lane in lanes.values()]
        ends = _schedule(programs, fork_ns, cpus)
        named = dict(zip(lanes, ends, strict=True))
        done = {name: end for name, end in named.items() if end is not None}
        if len(done) < len(named):
            stuck = ", ".join(name for name in named if name not in done)
            raise ModelBug(f"lanes wait for each other's locks: {stuck}")
        return done


def _shared_locks(lanes: Iterable[Lane]) -> set[str]:
    """Locks that more than one lane takes: nobody waits for, or inherits, any other."""
    taken: set[str] = set()
    shared: set[str] = set()
    for lane in lanes:
        if lane.blocks:
            locks = set(map(_LOCK, lane.blocks))
            shared |= taken & locks
            taken |= locks
    return shared


def _queue(lanes: list[list[int]], fork_ns: int) -> list[int]:
    """When each lane ends that waits for one lock alone: who asked first is served first.

    Of each lane the work done when it takes and drops the lock, in turn, and at its end. As
    `_schedule`, from one request to the next: nothing else can hold anybody up.
    """
    count = len(lanes)
    ends = [0] * count
    next_turn = [0] * count
    # Instants count from the fork, times `count`: that leaves room for the lane's index.
    asking = [turns[0] * count + index for index, turns in enumerate(lanes)]  # or at its end
    heapify(asking)
    free = 0  # when the lock is dropped
    while asking:
        asked = asking[0]
        index = asked % count
        turns, at = lanes[index], next_turn[index]
        if at + 1 == len(turns):
            ends[index] = fork_ns + asked // count
            heappop(asking)
            continue
        taken_ns, dropped_ns, again_ns = turns[at : at + 3]
        next_turn[index] = at + 2
        if asked > free:
            free = asked - index
        free += (dropped_ns - taken_ns) * count
        heapreplace(asking, free + (again_ns - dropped_ns) * count + index)
    return ends


def _schedule(programs: list[list[_LockOp]], fork_ns: int, cpus: int) -> list[int | None]:
    """When each lane ends; None for the lanes caught in a deadlock.

    A lane's program is what it does to locks, and ("", False) when all its work is done. Lanes are
    known by their index. Whoever runs does the same amount of work meanwhile, so that the next one
    to act is known by that; how long it took follows from the number of lanes that ran.
    """
    ends: list[int | None] = [None] * len(programs)
    done_ns = [0] * len(programs)  # of a lane's work
    next_op = [0] * len(programs)  # in a lane's program
    now = 0  # since the fork, times `cpus`: that keeps shares whole
    each_ns = 0  # of work, done by now by a lane that ran all the time
    running = [(0, index) for index in range(len(programs))]  # and acts at that `each_ns`
    waiting: dict[str, list[tuple[int, int]]] = {}  # by lock that is held: asked at
    while running:
        now += (running[0][0] - each_ns) * max(cpus, len(running))
        each_ns = running[0][0]
        heirs: list[tuple[int, int]] = []
        while running and running[0][0] == each_ns:
            index = running[0][1]
            program, at = programs[index], next_op[index]
            while True:  # carry on until the lane works, waits or ends
                at_ns, lock, takes = program[at]
                if at_ns > done_ns[index]:
                    heapreplace(running, (each_ns + at_ns - done_ns[index], index))
                    done_ns[index] = at_ns
                    break
                at += 1
                if takes and lock not in waiting:
                    waiting[lock] = []
                elif takes:
                    heappush(waiting[lock], (now, index))
                    heappop(running)
                    break
                elif not lock:
                    ends[index] = fork_ns - (-now // cpus)
                    heappop(running)
                    break
                elif waiting[lock]:
                    heirs.append((each_ns, heappop(waiting[lock])[1]))
                else:
                    del waiting[lock]
            next_op[index] = at
        for heir in heirs:
            heappush(running, heir)
    return ends
