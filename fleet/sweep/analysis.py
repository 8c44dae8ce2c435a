"""What a sweep came to: an estimate a cell and metric, effects, the Pareto front, the answer.

Differences between cells are taken seed by seed: cells share their seeds, hence their luck, so the
interval of a difference is much narrower than those of the two means. Where some cells have more
seeds than others the means tell all of them, and cells are ranked by those that they share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from fleet.sweep.cells import Cell
from fleet.sweep.metrics import METRICS, estimate_of
from fleet.sweep.plan import Choice, Goal, SweepPlan
from fleet.sweep.statistics import Estimate, estimate
from fleet.sweep.worker import Outcome

__all__ = ["PARETO", "Analysis", "CellSummary", "Effect", "analyse", "pareto_front"]

#: What a rollout is weighed by: how long it takes, what VMs feel, what is put at risk, and how far
#: it gets. Leaving hosts alone is quick and hurts nobody, so what it leaves alone has to count.
PARETO: Final = (
    "rollout_seconds",
    "downtime_p99_seconds",
    "vms_given_up",
    "hosts_updated",
    "halted",
)


class CellSummary(Struct, frozen=True):
    """One cell: its runs that yielded metrics, those that failed, and its estimates."""

    cell: Cell
    runs: int
    failed: int
    errors: tuple[str, ...]  # of the failed runs, each once
    estimates: dict[str, Estimate]
    is_efficient: bool = False  # no other cell is better in one of PARETO and worse in none
    meets_goal: bool = False
    #: Metric of the goal, this cell less the best one, seed by seed; None for the best itself.
    to_best: Estimate | None = None

    @property
    def is_halting(self) -> bool:
        """Whether a rollout of it was halted."""
        return bool(self.estimates["halted"].most)

    def mean(self, name: str) -> float | None:
        """The mean of a metric, infinity if it is so in a run; None if no run has it.

        A rollout that was halted has no duration: the mean is that of the others.
        """
        return self.estimates[name].told


#: Of one value of a parameter: (seed, choices of the other parameters) -> metric.
_Results = dict[tuple[int, tuple[Choice, ...]], float]


class Effect(Struct, frozen=True):
    """What one value of a parameter does to a metric, over all cells that have it."""

    parameter: str
    label: str
    number: float | None
    estimate: Estimate


class Analysis(Struct, frozen=True):
    """Everything that tables and plots show."""

    plan: SweepPlan
    cells: tuple[CellSummary, ...]
    effects: dict[str, tuple[Effect, ...]]  # metric -> by parameter and value
    best: CellSummary | None
    runs: int
    failed: int


def analyse(plan: SweepPlan, cells: Sequence[Cell], outcomes: Iterable[Outcome]) -> Analysis:
    """Put the runs together. Cells without a run are there, with nothing to say."""
    of_cell: dict[str, dict[int, Outcome]] = {cell.key: {} for cell in cells}
    for outcome in outcomes:
        if outcome.cell in of_cell:
            of_cell[outcome.cell][outcome.seed] = outcome
    found = [_summary(cell, of_cell[cell.key]) for cell in cells]
    fair_of = _of_common_seeds(of_cell)
    fair = [_summary(cell, fair_of[cell.key]) for cell in cells]
    efficient = pareto_front(
        [_means(same) if _means(all_) else None for all_, same in zip(found, fair, strict=True)]
    )
    found = [
        replace(summary, is_efficient=nr in efficient, meets_goal=_meets(plan.goal, summary))
        for nr, summary in enumerate(found)
    ]
    best = _best(plan.goal, found, fair)
    if best is not None:
        found = [
            summary
            if summary.cell.key == best.cell.key
            else replace(summary, to_best=_paired(plan.goal.minimise, of_cell, summary, best))
            for summary in found
        ]
        best = next(summary for summary in found if summary.cell.key == best.cell.key)
    return Analysis(
        plan=plan,
        cells=tuple(found),
        effects={name: tuple(_effects(plan, name, cells, fair_of)) for name in METRICS},
        best=best,
        runs=sum(summary.runs for summary in found),
        failed=sum(summary.failed for summary in found),
    )


def _of_common_seeds(
    of_cell: Mapping[str, Mapping[int, Outcome]],
) -> dict[str, dict[int, Outcome]]:
    """The runs with seeds that every cell was run with; all of them if there is no such seed.

    With `--adaptive`, or seeds that were taken out of an experiment, some cells have more.
    """
    seeds = [set(runs) for runs in of_cell.values() if runs]
    common = set.intersection(*seeds) if seeds else set()
    return {
        key: {seed: run for seed, run in runs.items() if not common or seed in common}
        for key, runs in of_cell.items()
    }


def _summary(cell: Cell, outcomes: Mapping[int, Outcome]) -> CellSummary:
    good = [outcome for outcome in outcomes.values() if not outcome.error]
    bad = [outcome.error for outcome in outcomes.values() if outcome.error]
    return CellSummary(
        cell=cell,
        runs=len(good),
        failed=len(bad),
        errors=tuple(dict.fromkeys(bad)),
        estimates={name: _estimate(name, good) for name in METRICS},
    )


def _estimate(name: str, outcomes: Iterable[Outcome]) -> Estimate:
    return estimate_of(name, [o.metrics[name] for o in outcomes if name in o.metrics])


def _means(summary: CellSummary) -> tuple[float, ...] | None:
    """Where the cell stands by `PARETO`, less being better; None if no rollout of it got there."""
    found = []
    for name in PARETO:
        mean = summary.mean(name)
        if mean is None:
            return None
        found.append(-mean if METRICS[name].more_is_better else mean)
    return tuple(found)


def pareto_front(points: Sequence[tuple[float, ...] | None]) -> set[int]:
    """Indices of the points that no other one is at least as good as everywhere, and better once.

    Less is better. Of points that are the same all are on the front; None never is.
    """
    front = set()
    for nr, point in enumerate(points):
        if point is not None and not any(
            other is not None
            and other != point
            and all(theirs <= ours for theirs, ours in zip(other, point, strict=True))
            for other in points
        ):
            front.add(nr)
    return front


def _meets(goal: Goal, summary: CellSummary) -> bool:
    """Whether each limit holds for the mean of the cell; every run counts, a failed one too.

    A rollout that was halted did not get there, and those that did are no fair sample: one is
    enough, unless the goal itself says how many may be.
    """
    if summary.failed or (summary.is_halting and not goal.allows_halted):
        return False
    for name, limit in goal.within:
        mean = summary.mean(name)
        if mean is None:
            return False
        if mean < limit if METRICS[name].more_is_better else mean > limit:
            return False
    sought = summary.mean(goal.minimise)
    return sought is not None and math.isfinite(sought)


def _best(
    goal: Goal, cells: Sequence[CellSummary], fair: Sequence[CellSummary]
) -> CellSummary | None:
    """The best of those that meet the goal, by what they yield on the same luck (`fair`)."""
    sign = -1 if METRICS[goal.minimise].more_is_better else 1
    fitting = [
        (sign * mean, nr)
        for nr, (summary, same) in enumerate(zip(cells, fair, strict=True))
        if summary.meets_goal and (mean := same.mean(goal.minimise)) is not None
    ]
    return cells[min(fitting)[1]] if fitting else None


def _paired(
    name: str, of_cell: Mapping[str, Mapping[int, Outcome]], summary: CellSummary, best: CellSummary
) -> Estimate | None:
    theirs, ours = of_cell[best.cell.key], of_cell[summary.cell.key]
    differences = [
        ours[seed].metrics[name] - theirs[seed].metrics[name]
        for seed in ours
        if seed in theirs and name in ours[seed].metrics and name in theirs[seed].metrics
    ]
    finite = [value for value in differences if not math.isnan(value)]
    return estimate(finite) if finite else None


def _effects(
    plan: SweepPlan,
    name: str,
    cells: Sequence[Cell],
    of_cell: Mapping[str, Mapping[int, Outcome]],
) -> Iterable[Effect]:
    """Main effects: for each value the mean over cells, seed by seed, and its interval."""
    for axis, parameter in enumerate(plan.parameters):
        found: dict[str, _Results] = {}
        numbers: dict[str, float | None] = {}
        for cell in cells:
            choice = cell.choices[axis]
            numbers[choice.label] = choice.number
            beside = cell.choices[:axis] + cell.choices[axis + 1 :]
            results = found.setdefault(choice.label, {})
            for seed, outcome in of_cell[cell.key].items():
                if name in outcome.metrics:
                    results[seed, beside] = outcome.metrics[name]
        fair = _balanced(found) if plan.method == "grid" else found
        for label, results in fair.items():
            by_seed: dict[int, list[float]] = {}
            for (seed, _), value in results.items():
                by_seed.setdefault(seed, []).append(value)
            means = [math.fsum(values) / len(values) for values in by_seed.values()]
            yield Effect(parameter.name, label, numbers[label], estimate(means))


def _balanced(found: Mapping[str, _Results]) -> dict[str, _Results]:
    """Of each value of a parameter the runs that there are of every other value as well.

    A run that failed, or a rollout that was halted and has no duration, would else leave its value
    to be judged by the seeds, and by the values of other parameters, with which it went well. A
    value of which nothing is left says nothing; one that never had anything keeps nobody else out.
    """
    runs = [set(results) for results in found.values() if results]
    common = set.intersection(*runs) if runs else set()
    return {
        label: {run: value for run, value in results.items() if run in common}
        for label, results in found.items()
    }
