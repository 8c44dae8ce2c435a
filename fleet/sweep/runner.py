"""Which run comes next, until every cell has been run with every seed it needs.

Cells take turns, the one with the fewest runs first, so that a sweep that is interrupted knows a
little of all of them. With `adaptive` a cell gets seeds in batches until its interval is narrow
enough or its seeds are used up. A batch is decided on when the one before it has ended: what is run
depends on results alone and never on which worker was quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct

from fleet.sweep.cells import Cell
from fleet.sweep.metrics import estimate_of
from fleet.sweep.plan import Adaptive, SweepPlan
from fleet.sweep.worker import Job, Outcome, Workers

__all__ = ["Agenda", "is_settled", "run_sweep"]

#: Seeds that an adaptive cell is given at a time, beyond its first ones.
_BATCH: Final = 4


class Agenda:
    """What has been run and what is still to be run. Pure: outcomes in, jobs out."""

    def __init__(self, plan: SweepPlan, cells: Sequence[Cell], *, adaptive: bool) -> None:
        self._plan = plan
        self._adaptive = plan.adaptive if adaptive else None
        self._cells = {cell.key: _Progress(cell, self._first_seeds()) for cell in cells}

    @property
    def total(self) -> int:
        """Runs that are known to be needed by now."""
        return sum(len(progress.seeds) for progress in self._cells.values())

    @property
    def done(self) -> int:
        """Runs that have ended."""
        return sum(seed in p.ended for p in self._cells.values() for seed in p.seeds)

    def ended(self, outcome: Outcome) -> None:
        """Take note of a run that has ended, of this sweep or the one that it goes on with."""
        progress = self._cells.get(outcome.cell)
        if progress is None or outcome.seed in progress.ended:
            return
        progress.ended[outcome.seed] = outcome
        progress.started.add(outcome.seed)
        while self._wants_more(progress):
            progress.seeds += self._next_seeds(progress.seeds)

    def next_job(self) -> Job | None:
        """A run to start now; None if there is none, or not before another one has ended."""
        waiting = [p for p in self._cells.values() if not p.started.issuperset(p.seeds)]
        if not waiting:
            return None
        progress = min(waiting, key=lambda p: len(p.started))
        seed = next(seed for seed in progress.seeds if seed not in progress.started)
        progress.started.add(seed)
        cell = progress.cell
        return Job(cell.key, seed, str(self._plan.scenario), cell.overrides)

    def _first_seeds(self) -> list[int]:
        if self._adaptive is None:
            return list(self._plan.seeds)
        seeds = list(self._plan.seeds[: self._adaptive.min_seeds])
        while len(seeds) < self._adaptive.min_seeds:
            seeds += self._next_seeds(seeds)
        return seeds[: self._adaptive.min_seeds]

    def _next_seeds(self, so_far: Sequence[int]) -> list[int]:
        """The next batch: seeds of the plan that are left, then the numbers that follow them."""
        most = self._adaptive.max_seeds if self._adaptive is not None else len(self._plan.seeds)
        count = min(_BATCH, most - len(so_far))
        left = [seed for seed in self._plan.seeds if seed not in so_far][:count]
        follow = max((*self._plan.seeds, *so_far)) + 1
        return left + list(range(follow, follow + count - len(left)))

    def _wants_more(self, progress: _Progress) -> bool:
        rule = self._adaptive
        if rule is None or len(progress.seeds) >= rule.max_seeds:
            return False
        if not all(seed in progress.ended for seed in progress.seeds):
            return False
        return not is_settled(rule, [progress.ended[seed] for seed in progress.seeds])


class _Progress:
    """One cell: the seeds it needs, those that were started, those that have ended."""

    __slots__ = ("cell", "ended", "seeds", "started")

    def __init__(self, cell: Cell, seeds: list[int]) -> None:
        self.cell = cell
        self.seeds = seeds
        self.started: set[int] = set()
        self.ended: dict[int, Outcome] = {}


def is_settled(rule: Adaptive, outcomes: Iterable[Outcome]) -> bool:
    """Whether the interval of a cell is narrow enough; one with nothing but failures is."""
    values = [o.metrics[rule.metric] for o in outcomes if rule.metric in o.metrics]
    if not values:
        return True
    found = estimate_of(rule.metric, values)
    if found.mean is None or found.half_width is None:
        return False
    limit = rule.half_width * abs(found.mean) if rule.relative else rule.half_width
    return found.half_width <= limit


class Run(Struct, frozen=True):
    """A run that has just ended, for whoever shows progress."""

    outcome: Outcome
    done: int
    total: int


def run_sweep(
    agenda: Agenda, processes: int, keep: Callable[[Outcome], None], tell: Callable[[Run], None]
) -> None:
    """Make every run that the agenda asks for, `processes` at a time.

    `keep` makes an outcome durable, before anything is decided on it.
    """
    if agenda.done == agenda.total:
        return
    with Workers(min(processes, agenda.total - agenda.done)) as workers:
        while True:
            while workers.has_idle and (job := agenda.next_job()) is not None:
                workers.start(job)
            if not workers.is_busy:
                return
            for outcome in workers.ended():
                keep(outcome)
                agenda.ended(outcome)
                tell(Run(outcome, agenda.done, agenda.total))
