"""One host's clock: work on lanes and under locks becomes integer nanoseconds.

Model code never reads a clock, it states work (`charge`). The clock adds the work up the way a
machine would spend it:

* A **phase** is a stretch of time that a report names. It lasts as long as its critical path.
* The **main lane** is ordered: its charges follow one another.
* A **lane** is a thread (a CPU in the kernel, a VMM). Lane blocks without main-lane work between
  them form a group: it forks where the main lane stands, its lanes run in parallel, at most
  `cpus` at a time, and the main lane goes on when the last of them is done. Entering a lane
  again within a group continues it.
* A **lock** is held by one lane at a time, from entry to exit of its block.

Rules of a group, which `_Group.run` carries out as a small discrete event simulation:

1. A lane keeps its CPU until it ends or has to wait for a lock; waiting frees the CPU.
2. A free CPU goes to the lane that has been ready longest, ties to the one created first.
3. A released lock goes to the lane that asked first, ties as in 2. The new owner then waits for
   a CPU like any other, holding the lock.
4. At one instant, lanes act in order of creation, then free CPUs are given out.

Simplification: *no time slicing.* With more lanes than CPUs a real scheduler would let all of
them crawl; here the first ones finish early and the last one ends when it really would, give or
take a slice. A test that compares the mean end of 600 lanes on 96 CPUs can notice, one that looks
at the end of a phase cannot.

Simplification: *a bulk charge under a lock holds it throughout*, where the kernel takes and drops
it per element. Totals are the same; only who is first differs.

Unhappy paths: a negative number of units, a phase or lane inside another, a lock taken twice by
one lane, a lock that the forking main lane holds, time running backwards and lanes that wait for
each other in a circle are all `ModelBug`.
"""

from __future__ import annotations

from heapq import heappop, heappush
from types import TracebackType
from typing import Final

from kernelmodel.errors import ModelBug
from kernelmodel.sim.cost import CostModel, Spread
from kernelmodel.sim.rng import draw, stream_key

__all__ = ["Clock", "Phase", "Slowdown"]

_PERMILLE: Final = 1000


class Clock:
    """A host's virtual time in nanoseconds; it outlives the host's kernels."""

    def __init__(
        self, cost: CostModel, cpus: int, seed: int, path: tuple[str | int, ...] = ()
    ) -> None:
        if cpus < 1:
            raise ModelBug(f"a clock needs at least one CPU, not {cpus}")
        self.cost = cost
        self.cpus = cpus
        self._luck = stream_key(seed, *path, "cost")
        self._drawn: dict[str, int] = {}
        self._now_ns = 0
        self._phase: Phase | None = None
        self._group: _Group | None = None
        self._lane: _Lane | None = None
        self._main_locks: list[str] = []
        self._locks: dict[str, _LockGuard] = {}
        self._slow_permille: dict[str, list[int]] = {}
        self._plain: dict[str, tuple[int, int]] = {}
        for op in cost.rows:
            self._set_plain(op)

    @property
    def now_ns(self) -> int:
        """Where the main lane stands; within a lane, the instant at which its group forked."""
        return self._now_ns

    def advance_to(self, now_ns: int) -> None:
        """Let idle time pass on the main lane, until `now_ns`."""
        if self._lane is not None:
            raise ModelBug(f"advance_to within lane {self._lane.name!r}")
        self._join()
        if now_ns < self._now_ns:
            raise ModelBug(f"time cannot run backwards: {self._now_ns} -> {now_ns}")
        self._now_ns = now_ns

    def charge(self, op: str, units: int = 1) -> None:
        """State that `units` of `op` are done on the current lane, under the locks it holds."""
        plain = self._plain.get(op)
        if plain is None:
            ns = self._uncommon_cost_ns(op, units)
        else:
            ns = plain[0] + (units * plain[1] + 500) // 1000
        if units < 0:
            raise ModelBug(f"{units} units of {op!r}")
        if self._lane is not None:
            self._lane.pending_ns += ns
            return
        if self._group is not None:
            self._join()
        self._now_ns += ns

    def phase(self, name: str) -> Phase:
        """A context: everything charged within it is the phase `name`."""
        return Phase(self, name)

    def lane(self, name: str) -> _LaneGuard:
        """A context: charges run on the lane `name`, in parallel with the group's other lanes.

        Outside a phase there is no end to join at, so charges simply follow one another.
        """
        return _LaneGuard(self, name)

    def lock(self, name: str) -> _LockGuard:
        """A context: charges of different lanes under the same lock follow one another."""
        guard = self._locks.get(name)
        if guard is None:
            guard = self._locks[name] = _LockGuard(self, name)
        return guard

    def slow(self, op_or_stream: str, permille: int) -> Slowdown:
        """From now on, `op_or_stream` costs permille/1000 times as much; several multiply.

        Stays until the result's `lift()`, or the end of its `with` block.
        """
        if permille < 1:
            raise ModelBug(f"a slowdown of {permille} permille")
        return Slowdown(self, self.cost.ops_slowed_by(op_or_stream), permille)

    def _set_plain(self, op: str) -> None:
        row = self.cost.rows[op]
        if row.spread or self._slow_permille.get(op):
            self._plain.pop(op, None)
        else:
            self._plain[op] = (row.base_ns, row.per_unit_ps)

    def _uncommon_cost_ns(self, op: str, units: int) -> int:
        row = self.cost.row(op)
        ns = row.cost_ns(units)
        if row.spread:
            # The draw belongs to the op, the lane and their count of draws, so that the luck of
            # one VM does not depend on how many others the host has.
            name = op if self._lane is None else f"{op} {self._lane.name}"
            index = self._drawn.get(name, 0)
            self._drawn[name] = index + 1
            drawn = draw(self._luck, name, index, Spread.RESOLUTION)
            ns = ns * self.cost.spreads[row.spread].multiplier_permille(drawn) // _PERMILLE
        for permille in self._slow_permille.get(op, ()):
            ns = ns * permille // _PERMILLE
        return ns

    def _join(self) -> None:
        """End the current group, if any: its lanes run, the main lane waits for the last."""
        group, self._group = self._group, None
        if group is None:
            return
        ends = group.run(self._now_ns, self.cpus)
        if self._phase is None:
            raise ModelBug("a group of lanes outlived its phase")
        self._phase.note_ends(ends)
        self._now_ns = max(ends.values(), default=self._now_ns)


class Phase:
    """A named stretch of a host's time; the figures are final after the `with` block."""

    __slots__ = ("_clock", "_ends", "duration_ns", "name", "start_ns")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._ends: dict[str, int] = {}
        self.name = name
        self.start_ns = 0
        self.duration_ns = 0

    @property
    def end_ns(self) -> int:
        """start_ns + duration_ns."""
        return self.start_ns + self.duration_ns

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the lanes that ran, in order of creation."""
        return tuple(self._ends)

    def lane_end_ns(self, name: str) -> int:
        """The instant at which the lane `name` did its last work of this phase."""
        try:
            return self._ends[name]
        except KeyError:
            raise ModelBug(f"phase {self.name!r} has no lane {name!r}") from None

    def note_ends(self, ends: dict[str, int]) -> None:
        """Take over the ends of a group's lanes; called by the clock."""
        self._ends.update(ends)

    def __enter__(self) -> Phase:
        clock = self._clock
        if clock._phase is not None:
            raise ModelBug(f"phase {self.name!r} within phase {clock._phase.name!r}")
        clock._phase = self
        self.start_ns = clock._now_ns
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        clock = self._clock
        clock._join()
        clock._phase = None
        self.duration_ns = clock._now_ns - self.start_ns


class Slowdown:
    """An installed multiplier; `lift()` removes it, once."""

    __slots__ = ("_clock", "_ops", "_permille")

    def __init__(self, clock: Clock, ops: tuple[str, ...], permille: int) -> None:
        self._clock = clock
        self._ops = ops
        self._permille = permille
        for op in ops:
            clock._slow_permille.setdefault(op, []).append(permille)
            clock._set_plain(op)

    def lift(self) -> None:
        """Remove the multiplier; further calls do nothing."""
        ops, self._ops = self._ops, ()
        for op in ops:
            self._clock._slow_permille[op].remove(self._permille)
            self._clock._set_plain(op)

    def __enter__(self) -> Slowdown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.lift()


class _LaneGuard:
    __slots__ = ("_clock", "_name", "_open")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._open = False

    def __enter__(self) -> None:
        clock = self._clock
        if clock._lane is not None:
            raise ModelBug(f"lane {self._name!r} within lane {clock._lane.name!r}")
        if clock._phase is None:
            return
        if clock._group is None:
            clock._group = _Group(tuple(clock._main_locks))
        clock._lane = clock._group.lane(self._name)
        self._open = True

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._open:
            self._clock._lane = None
            self._open = False


class _LockGuard:
    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        clock, lane = self._clock, self._clock._lane
        held = clock._main_locks if lane is None else lane.held
        if self._name in held:
            raise ModelBug(f"lock {self._name!r} is taken twice by one lane")
        held.append(self._name)
        if lane is not None:
            if clock._group is not None and self._name in clock._group.main_locks:
                raise ModelBug(f"lane {lane.name!r} waits for {self._name!r} of the main lane")
            lane.step((self._name, True))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        lane = self._clock._lane
        held = self._clock._main_locks if lane is None else lane.held
        held.remove(self._name)
        if lane is not None:
            lane.step((self._name, False))


class _Lane:
    """A lane's program within a group: stretches of work and lock operations, in order."""

    __slots__ = ("held", "name", "pending_ns", "program")

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending_ns = 0
        self.held: list[str] = []
        self.program: list[int | tuple[str, bool]] = []

    def step(self, operation: tuple[str, bool]) -> None:
        """Append a lock operation: (name, True) takes it, (name, False) drops it."""
        if self.pending_ns:
            self.program.append(self.pending_ns)
            self.pending_ns = 0
        name, takes = operation
        if not takes and self.program and self.program[-1] == (name, True):
            self.program.pop()  # nothing was done under it, so nobody had to wait
        else:
            self.program.append(operation)


class _Group:
    """Lanes between a fork and its join."""

    __slots__ = ("_lanes", "main_locks")

    def __init__(self, main_locks: tuple[str, ...]) -> None:
        self.main_locks = main_locks
        self._lanes: dict[str, _Lane] = {}

    def lane(self, name: str) -> _Lane:
        """The lane so called, created at first use."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(name)
        return lane

    def run(self, fork_ns: int, cpus: int) -> dict[str, int]:
        """Simulate the group; the instant at which each lane ends, in order of creation."""
        lanes = list(self._lanes.values())
        for lane in lanes:
            if lane.pending_ns:
                lane.program.append(lane.pending_ns)
        if len(lanes) <= cpus and all(len(lane.program) < 2 for lane in lanes):
            return {lane.name: fork_ns + lane.pending_ns for lane in lanes}
        ends = _Schedule([lane.program for lane in lanes], cpus).run(fork_ns)
        stuck = [lane.name for lane, end in zip(lanes, ends, strict=True) if end is None]
        if stuck:
            raise ModelBug(f"lanes wait for each other's locks: {', '.join(stuck)}")
        return {lane.name: end for lane, end in zip(lanes, ends, strict=True) if end is not None}


class _Schedule:
    """The discrete event simulation of one group. Lanes are known by their index."""

    def __init__(self, programs: list[list[int | tuple[str, bool]]], cpus: int) -> None:
        self._programs = programs
        self._next_step = [0] * len(programs)
        self._ends: list[int | None] = [None] * len(programs)
        self._free_cpus = cpus
        self._ready: list[tuple[int, int]] = []  # heap: (ready since, lane)
        self._acting: list[tuple[int, int]] = []  # heap: (instant, lane), lanes that have a CPU
        self._owner: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[int, int]]] = {}  # heaps: (asked at, lane)

    def run(self, start_ns: int) -> list[int | None]:
        """Ends by lane; None for lanes caught in a deadlock."""
        self._ready = [(start_ns, index) for index in range(len(self._programs))]
        now_ns = start_ns
        while True:
            while self._acting and self._acting[0][0] == now_ns:
                self._act(now_ns, heappop(self._acting)[1])
            if self._ready and self._free_cpus:
                self._free_cpus -= 1
                heappush(self._acting, (now_ns, heappop(self._ready)[1]))
                while self._ready and self._free_cpus:
                    self._free_cpus -= 1
                    heappush(self._acting, (now_ns, heappop(self._ready)[1]))
            elif self._acting:
                now_ns = self._acting[0][0]
            else:
                return self._ends

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
            name, takes = step
            if not takes:
                self._drop(now_ns, name)
            elif name not in self._owner:
                self._owner[name] = index
            else:
                heappush(self._waiting.setdefault(name, []), (now_ns, index))
                self._free_cpus += 1
                self._next_step[index] = at
                return
        self._ends[index] = now_ns
        self._free_cpus += 1

    def _drop(self, now_ns: int, name: str) -> None:
        waiting = self._waiting.get(name)
        if waiting:
            heir = heappop(waiting)[1]
            self._owner[name] = heir
            heappush(self._ready, (now_ns, heir))
        else:
            del self._owner[name]
