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

from heapq import heappop, heappush
from types import TracebackType

from kernelmodel.errors import ModelBug

__all__ = ["Group", "Lane", "LockBlock"]

#: Nanoseconds of work, or a lock operation: (name, True) takes it, (name, False) drops it.
_Step = int | tuple[str, bool]


class Lane:
    """A thread's program within a group: its work, and at which points of it locks change hands."""

    __slots__ = ("held", "lock_ops", "name", "work_ns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: list[str] = []
        self.work_ns = 0
        #: (work done until then, lock, whether it is taken), in order.
        self.lock_ops: list[tuple[int, str, bool]] = []

    def steps(self, shared: set[str]) -> list[_Step]:
        """The program as far as others can notice: work, and what it does to `shared` locks."""
        steps: list[_Step] = []
        done_ns = 0
        for at_ns, lock, takes in self.lock_ops:
            if lock in shared:
                if at_ns > done_ns:
                    steps.append(at_ns - done_ns)
                    done_ns = at_ns
                steps.append((lock, takes))
        if self.work_ns > done_ns:
            steps.append(self.work_ns - done_ns)
        return steps


class LockBlock:
    """A `with` block under a lock, on `lane` or, if that is None, on the main lane.

    Nobody waits for a lock under which no time passed.
    """

    __slots__ = ("_lane", "_main_locks", "_name")

    def __init__(self, name: str, lane: Lane | None, main_locks: list[str]) -> None:
        self._name = name
        self._lane = lane
        self._main_locks = main_locks

    def __enter__(self) -> None:
        lock, lane = self._name, self._lane
        held = self._main_locks if lane is None else lane.held
        if lock in held:
            raise ModelBug(f"lock {lock!r} is taken twice by one lane")
        if lane is not None:
            if lock in self._main_locks:
                raise ModelBug(f"lane {lane.name!r} waits for {lock!r}, which the main lane holds")
            lane.lock_ops.append((lane.work_ns, lock, True))
        held.append(lock)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        lock, lane = self._name, self._lane
        if lane is None:
            self._main_locks.remove(lock)
            return
        lane.held.remove(lock)
        if lane.lock_ops[-1] == (lane.work_ns, lock, True):
            lane.lock_ops.pop()
        else:
            lane.lock_ops.append((lane.work_ns, lock, False))


class Group:
    """Lanes that fork at one instant and join when the last of them is done."""

    __slots__ = ("lanes",)

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}

    def lane(self, name: str) -> Lane:
        """The lane so called, created at first use."""
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = Lane(name)
        return lane

    def run(self, fork_ns: int, cpus: int) -> dict[str, int]:
        """The instant at which each lane ends, by name, in order of creation."""
        shared = self._shared_locks()
        if not shared and len(self.lanes) <= cpus:  # nobody waits for anything
            return {name: fork_ns + lane.work_ns for name, lane in self.lanes.items()}
        ends = _schedule([lane.steps(shared) for lane in self.lanes.values()], fork_ns, cpus)
        named = dict(zip(self.lanes, ends, strict=True))
        done = {name: end for name, end in named.items() if end is not None}
        if len(done) < len(named):
            stuck = ", ".join(name for name in named if name not in done)
            raise ModelBug(f"lanes wait for each other's locks: {stuck}")
        return done

    def _shared_locks(self) -> set[str]:
        """Locks that more than one lane takes: nobody waits for, or inherits, any other."""
        taken: set[str] = set()
        shared: set[str] = set()
        for lane in self.lanes.values():
            if lane.lock_ops:
                locks = {lock for _, lock, _ in lane.lock_ops}
                shared |= taken & locks
                taken |= locks
        return shared


def _schedule(programs: list[list[_Step]], now_ns: int, free_cpus: int) -> list[int | None]:
    """When each lane ends; None for the lanes caught in a deadlock.

    Lanes are known by their index; all heaps are ordered (ns, lane).
    """
    rest_of = [iter(program) for program in programs]
    ends: list[int | None] = [None] * len(programs)
    ready = [(now_ns, index) for index in range(len(programs))]  # ready since, without a CPU
    acting: list[tuple[int, int]] = []  # on a CPU, with nothing to do until then
    waiting: dict[str, list[tuple[int, int]]] = {}  # by lock that is held: asked at
    while True:
        while acting and acting[0][0] == now_ns:
            index = heappop(acting)[1]
            for step in rest_of[index]:  # carry on until the lane works, waits or ends
                if isinstance(step, int):
                    heappush(acting, (now_ns + step, index))
                    break
                lock, takes = step
                if not takes:
                    if waiting[lock]:
                        heappush(ready, (now_ns, heappop(waiting[lock])[1]))
                    else:
                        del waiting[lock]
                elif lock not in waiting:
                    waiting[lock] = []
                else:
                    heappush(waiting[lock], (now_ns, index))
                    free_cpus += 1
                    break
            else:
                ends[index] = now_ns
                free_cpus += 1
        while ready and free_cpus:
            free_cpus -= 1
            heappush(acting, (now_ns, heappop(ready)[1]))
        if not acting:
            return ends
        now_ns = acting[0][0]
