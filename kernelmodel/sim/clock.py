"""One host's clock: work on lanes and under locks becomes integer nanoseconds.

Model code never reads a clock, it states work (`charge`). The clock adds the work up the way a
machine would spend it::

    with clock.phase("retrieve") as phase:
        clock.charge("agent_start")                       # main lane
        for vm in vms:
            with clock.lane(f"vmm:{vm.name}"):            # in parallel
                with clock.lock("luo_register_rwlock"):   # one at a time
                    clock.charge("luo_retrieve_file", vm.nr_files)
                clock.charge("vmm_rebuild", vm.vcpus)
    phase.duration_ns, phase.lane_end_ns("vmm:vm-3")

* A **phase** is a stretch of time that a report names. It lasts as long as its critical path.
* The **main lane** is ordered: its charges follow one another, inside phases and outside.
* A **lane** is a thread (a CPU in the kernel, a VMM). Lane blocks without main-lane work between
  them form a group: it forks where the main lane stands, its lanes run in parallel and share
  the `cpus`, and the main lane goes on when the last of them is done. Entering a lane
  again within a group continues it. `kernelmodel.sim.lanes` has the exact rules.
* A **lock** is held by one lane at a time, from entry to exit of its block.

Outside a phase there is no end to join at: lane blocks simply follow one another there.

A phase that ends by an exception still takes the time of what was charged.

Unhappy paths: a negative number of units, a phase or lane inside another, a lock taken twice by
one lane or held by the main lane that waits for it, time running backwards and deadlocks are all
`ModelBug`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import mul
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from kernelmodel.errors import ModelBug
from kernelmodel.sim.cost import CostModel, Slowdown, Spread
from kernelmodel.sim.lanes import Group, Lane, LockBlock
from kernelmodel.sim.rng import draw, stream_key

__all__ = ["Clock", "Phase"]

_PERMILLE: Final = 1000
_T = TypeVar("_T")


class Phase:
    """A named stretch of a host's time; the figures are final after its `with` block."""

    __slots__ = ("_clock", "_ends", "duration_ns", "name", "start_ns")

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.start_ns = 0
        self.duration_ns = 0
        self._ends: dict[str, int] = {}
        self._clock = clock

    def __enter__(self) -> Self:
        self._clock.phase_begins(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._clock.phase_ends(self)

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

    def lanes_joined(self, ends: dict[str, int]) -> None:
        """Take over the ends of a group's lanes; the clock's call."""
        self._ends |= ends


class _LaneBlock:
    """The `with` block of a lane; an update has many, so it sees to the clock itself."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        clock = self._clock
        if clock.running is not None:
            raise ModelBug(f"lane {self._name!r} within lane {clock.running.name!r}")
        group = clock.forked()
        if group is not None:
            clock.running = group.lane(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._clock.running = None


class Clock:
    """A host's virtual time in nanoseconds; it outlives the host's kernels."""

    __slots__ = (
        "_costs",
        "_draws",
        "_draws_outside",
        "_group",
        "_known",
        "_luck",
        "_luck_of_phase",
        "_main_locks",
        "_phase",
        "_phases_so_far",
        "_slowdowns",
        "cost",
        "cpus",
        "now_ns",
        "on_phase",
        "running",
    )

    def __init__(
        self, cost: CostModel, cpus: int, seed: int, path: tuple[str | int, ...] = ()
    ) -> None:
        if cpus < 1:
            raise ModelBug(f"a clock needs at least one CPU, not {cpus}")
        self.cost = cost
        self.cpus = cpus
        #: Where the main lane stands; within a lane, the instant at which its group forked.
        self.now_ns = 0
        self._phase: Phase | None = None
        self._group: Group | None = None  # of the lanes that run in parallel now, if any do
        #: The lane whose block is open; None on the main lane.
        self.running: Lane | None = None
        self._main_locks: list[str] = []
        #: Called with every phase that ends.
        self.on_phase: Callable[[Phase], None] | None = None
        self._luck = stream_key(seed, *path, "cost")
        self._phases_so_far: dict[str, int] = {}
        self._draws_outside: dict[tuple[str, str], int] = {}
        self._draws = self._draws_outside  # or this phase's own
        self._luck_of_phase = ""
        self._slowdowns: dict[str, list[int]] = {}
        self._costs = cost.plain  # shared by the hosts of a run, until a fault slows this one
        self._known = cost.plain.known

    def advance_to(self, now_ns: int) -> None:
        """Let idle time pass on the main lane, until `now_ns`."""
        if self.running is not None:
            raise ModelBug(f"advance_to within lane {self.running.name!r}")
        self._join()
        if now_ns < self.now_ns:
            raise ModelBug(f"time cannot run backwards: {self.now_ns} -> {now_ns}")
        self.now_ns = now_ns

    def restart(self) -> None:
        """Make this instant the origin of time: what was before is no part of the simulation."""
        if self._phase is not None:
            raise ModelBug(f"restart within phase {self._phase.name!r}")
        self.now_ns = 0

    def cut(self, now_ns: int) -> None:
        """A reset struck at `now_ns`: what was charged after that instant never happened."""
        if self._phase is not None or not 0 <= now_ns <= self.now_ns:
            raise ModelBug(f"cut at {now_ns}, now {self.now_ns}")
        self.now_ns = now_ns

    def charge(self, op: str, units: int = 1) -> None:
        """State that `units` of `op` are done on the current lane, under the locks it holds."""
        try:
            ns = self._known[op, units]
        except KeyError:
            ns = self._costs.ns(op, units)
        if ns is None:
            ns = self._uncommon_cost_ns(op, units)
        lane = self.running
        if lane is not None:
            lane.work_ns += ns
            return
        if self._group is not None:
            self._join()
        self.now_ns += ns

    def charge_locked(self, lock: str, op: str, units: int = 1) -> None:
        """As `charge` in a block under `lock` of which it is all."""
        lane, ns = self.running, self._known.get((op, units))
        if not ns or lane is None or lock in lane.held or lock in self._main_locks:
            with self.lock(lock):
                self.charge(op, units)
            return
        taken_ns = lane.work_ns
        lane.work_ns = dropped_ns = taken_ns + ns
        lane.blocks.append((lock, taken_ns, dropped_ns))

    def charge_each(self, op: str, units: NDArray[np.int64] | list[int]) -> None:
        """As `charge` for each of these numbers of units in turn; there is one at least."""
        plain = self._costs.rows.get(op)
        if plain is None:
            for each in units if isinstance(units, list) else units.tolist():
                self.charge(op, each)
            return
        base_ns, per_unit_ps = plain
        if isinstance(units, list):
            ns = sum([base_ns + (each * per_unit_ps + 500) // 1000 for each in units])
        else:
            numbers, times = np.unique(units, return_counts=True)
            each_ns = [base_ns + (nr * per_unit_ps + 500) // 1000 for nr in numbers.tolist()]
            ns = sum(map(mul, times.tolist(), each_ns))  # in integers without end
        if self.running is not None:
            self.running.work_ns += ns
            return
        if self._group is not None:
            self._join()
        self.now_ns += ns

    def phase(self, name: str) -> Phase:
        """A block that gives a `Phase`: everything charged within it is the phase `name`."""
        return Phase(name, self)

    def lane(self, name: str) -> _LaneBlock:
        """A block whose charges run on the lane `name`, beside the group's other lanes."""
        return _LaneBlock(self, name)

    def fork(self, lanes: Iterable[tuple[str, _T]], step: Callable[[_T], object]) -> None:
        """Take a step with each argument on the lane that it comes with, as in lane blocks."""
        if self.running is not None:
            raise ModelBug(f"fork within lane {self.running.name!r}")
        group = self.forked()
        try:
            for name, argument in lanes:
                if group is not None:
                    self.running = group.lane(name)
                step(argument)
        finally:
            self.running = None

    def forked(self) -> Group | None:
        """What a lane runs in if it is entered now; None outside a phase. The lane blocks' call."""
        if self._group is None and self._phase is not None:
            self._group = Group()
        return self._group

    def lock(self, name: str) -> LockBlock:
        """A block under a lock: what different lanes charge under it follows one another."""
        return LockBlock(name, self.running, self._main_locks)

    def slow(self, op_or_stream: str, permille: int) -> Slowdown:
        """From now on, `op_or_stream` costs permille / 1000 times as much; several multiply."""
        if permille < 1:
            raise ModelBug(f"a slowdown of {permille} permille")
        ops = self.cost.ops_slowed_by(op_or_stream)
        for op in ops:
            self._slowdowns.setdefault(op, []).append(permille)
        self._sort_out_plain()

        def remove() -> None:
            for op in ops:
                self._slowdowns[op].remove(permille)
            self._sort_out_plain()

        return Slowdown(remove)

    def _sort_out_plain(self) -> None:
        slowed = {op for op, factors in self._slowdowns.items() if factors}
        plain = self.cost.plain
        self._costs = plain.without(slowed) if slowed else plain
        self._known = self._costs.known

    def _uncommon_cost_ns(self, op: str, units: int) -> int:
        if op in self.cost.lucky:
            base_ns, per_unit_ps, spread = self.cost.lucky[op]
            # Draws are counted apart for each op, lane and phase, so that one VM's luck does not
            # depend on how many others its host has, nor a phase's on how the last one went.
            lane = "" if self.running is None else f" {self.running.name}"
            index = self._draws.get((op, lane), 0)
            self._draws[op, lane] = index + 1
            name = f"{self._luck_of_phase}{op}{lane}"
            drawn = draw(self._luck, name, index, Spread.RESOLUTION)
            ns = base_ns + (units * per_unit_ps + 500) // 1000
            ns = ns * spread.multiplier_permille(drawn) // _PERMILLE
        else:  # a plain row that a fault slows
            ns = self.cost.cost_ns(op, units)
        if op in self._slowdowns:
            for permille in self._slowdowns[op]:
                ns = ns * permille // _PERMILLE
        return ns

    def phase_begins(self, phase: Phase) -> None:
        """The block of a phase is entered; the phase's call."""
        name = phase.name
        if self._phase is not None:
            raise ModelBug(f"phase {name!r} within phase {self._phase.name!r}")
        phase.start_ns = self.now_ns
        self._phase = phase
        self._phases_so_far[name] = nr = self._phases_so_far.get(name, 0) + 1
        self._draws, self._luck_of_phase = {}, f"{name} {nr} "

    def phase_ends(self, phase: Phase) -> None:
        """It is left; the phase's call."""
        if self._group is not None:
            self._join()
        phase.duration_ns = self.now_ns - phase.start_ns
        self._phase = None
        self._draws, self._luck_of_phase = self._draws_outside, ""
        if self.on_phase is not None:
            self.on_phase(phase)

    def _join(self) -> None:
        """The main lane goes on once the last of the group's lanes is done."""
        phase, group = self._phase, self._group
        if phase is not None and group is not None:
            self._group = None
            ends = group.run(self.now_ns, self.cpus)
            if ends:
                self.now_ns = max(ends.values())
                phase.lanes_joined(ends)
