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

__all__ = ["Group", "Lane", "LockBlock", "Step"]

#: Nanoseconds of work, or a lock operation: (name, True) takes it, (name, False) drops it.
Step = int | tuple[str, bool]


class Lane:
    """A thread's program within a group."""

    __slots__ = ("held", "name", "pending_ns", "program")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: list[str] = []
        self.pending_ns = 0  # work not yet in the program: successive charges are one stretch
        self.program: list[Step] = []

    def finished_program(self) -> list[Step]:
        """Everything that the lane does in its group."""
        self._flush()
        return self.program

    def _flush(self) -> None:
        if self.pending_ns:
            self.program.append(self.pending_ns)
            self.pending_ns = 0


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
            if lane.pending_ns:
                lane.program.append(lane.pending_ns)
                lane.pending_ns = 0
            lane.program.append((lock, True))
        held.append(lock)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        lock, lane = self._name, self._lane
        if lane is None:
            self._main_locks.remove(lock)
            return
        lane.held.remove(lock)
        if lane.pending_ns:
            lane.program += (lane.pending_ns, (lock, False))
            lane.pending_ns = 0
        elif lane.program[-1] == (lock, True):
            lane.program.pop()
        else:
            lane.program.append((lock, False))


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
        if len(self.lanes) <= cpus and not any(lane.program for lane in self.lanes.values()):
            return {name: fork_ns + lane.pending_ns for name, lane in self.lanes.items()}
        programs = [lane.finished_program() for lane in self.lanes.values()]
        ends = _Schedule(programs, cpus).run(fork_ns)
        named = dict(zip(self.lanes, ends, strict=True))
        done = {name: end for name, end in named.items() if end is not None}
        if len(done) < len(named):
            stuck = ", ".join(name for name in named if name not in done)
            raise ModelBug(f"lanes wait for each other's locks: {stuck}")
        return done


class _Schedule:
    """One run of a group. Lanes are known by their index; all heaps are ordered (ns, lane)."""

    def __init__(self, programs: list[list[Step]], cpus: int) -> None:
        self._programs = programs
        self._next_step = [0] * len(programs)
        self._ends: list[int | None] = [None] * len(programs)
        self._free_cpus = cpus
        self._ready: list[tuple[int, int]] = []  # ready since, without a CPU
        self._acting: list[tuple[int, int]] = []  # on a CPU, with nothing to do until then
        self._owner: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[int, int]]] = {}  # by lock: asked at

    def run(self, now_ns: int) -> list[int | None]:
        """When each lane ends; None for the lanes caught in a deadlock."""
        self._ready = [(now_ns, index) for index in range(len(self._programs))]
        while True:
            while self._acting and self._acting[0][0] == now_ns:
                self._act(now_ns, heappop(self._acting)[1])
            if self._ready and self._free_cpus:
                self._dispatch(now_ns)
            elif self._acting:
                now_ns = self._acting[0][0]
            else:
                return self._ends

    def _dispatch(self, now_ns: int) -> None:
        while self._ready and self._free_cpus:
            self._free_cpus -= 1
            heappush(self._acting, (now_ns, heappop(self._ready)[1]))

    def _act(self, now_ns: int, index: int) -> None:
        """Carry on with a lane's program until it works, waits or ends."""
        program = self._programs[index]
        at = self._next_step[index]
        while at < len(program):
            step = program[at]
            at += 1
            if isinstance(step, int):
                heappush(self._acting, (now_ns + step, index))
                self._next_step[index] = at
                return
            lock, takes = step
            if not takes:
                self._hand_on(now_ns, lock)
            elif lock not in self._owner:
                self._owner[lock] = index
            else:
                heappush(self._waiting.setdefault(lock, []), (now_ns, index))
                self._free_cpus += 1
                self._next_step[index] = at
                return
        self._ends[index] = now_ns
        self._free_cpus += 1

    def _hand_on(self, now_ns: int, lock: str) -> None:
        waiting = self._waiting.get(lock)
        if waiting:
            self._owner[lock] = heir = heappop(waiting)[1]
            heappush(self._ready, (now_ns, heir))
        else:
            del self._owner[lock]
