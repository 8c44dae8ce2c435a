"""How sure the runs of a cell are, and how many of them it gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from statistics import fmean

import pytest
from msgspec.structs import replace

from fleet.sweep.cells import cells_of
from fleet.sweep.plan import Adaptive, Parameter
from fleet.sweep.runner import Agenda, is_settled
from fleet.sweep.statistics import estimate, estimate_share, largest_unseen, student_quantile
from fleet.sweep.tables import estimate_text
from fleet.sweep.worker import Outcome
from tests.fleet.sweep_plans import PLAN, choices, outcome


#: Two-sided 95 %, from printed tables.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (7, 2.36462), (30, 2.04227)],
)
def test_quantiles_of_student(degrees: int, quantile: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, rel=2e-6)


def test_an_estimate_of_what_has_no_mean() -> None:
    assert estimate([3.0]).half_width is None
    assert estimate([2.0, 4.0]).half_width == pytest.approx(12.7062, rel=1e-5)
    lost = estimate([2.0, math.inf, 4.0])
    assert (lost.mean, lost.infinite, lost.count) == (None, 1, 2)
    assert estimate_text("downtime_p99_seconds", lost) == "∞ in 1 of 3"
    assert estimate([]).mean is None


def played(agenda: Agenda, seconds: dict[str, list[float]]) -> dict[str, list[int]]:
    """Runs in the agenda's order; the seeds that each cell got."""
    seeds: dict[str, list[int]] = {}
    while (job := agenda.next_job()) is not None:
        mine = seeds.setdefault(job.cell, [])
        mine.append(job.seed)
        value = seconds[job.cell][len(mine) - 1]
        agenda.ended(Outcome(job.cell, job.seed, "", metrics={"rollout_seconds": value}))
    return seeds


def test_an_adaptive_cell_stops_when_its_interval_is_narrow() -> None:
    rule = Adaptive("rollout_seconds", half_width=1.0, relative=False, min_seeds=4, max_seeds=12)
    plan = replace(PLAN, adaptive=rule, parameters=(Parameter("a", choices("a", 1, 2, 3)),))
    steady, noisy, hopeless = cells_of(plan)
    agenda = Agenda(plan, cells_of(plan), adaptive=True)
    seeds = played(
        agenda,
        {
            steady.key: [5.0] * 12,
            noisy.key: [0.0, 2.0, 0.0, 2.0, *[1.0] * 8],
            hopeless.key: [0.0, 100.0] * 6,
        },
    )
    assert seeds[steady.key] == [1, 2, 3, 4], "the plan's seeds, then those that follow"
    assert seeds[noisy.key] == list(range(1, 9))
    assert seeds[hopeless.key] == list(range(1, 13))
    assert agenda.done == agenda.total == 24


def test_cells_take_turns_and_finished_runs_are_not_made_again() -> None:
    cells = cells_of(PLAN)
    agenda = Agenda(PLAN, cells, adaptive=False)
    agenda.ended(outcome(cells[0], 2, 1.0))
    agenda.ended(outcome(cells[0], 77, 1.0))  # a seed of an earlier plan
    jobs = []
    while (job := agenda.next_job()) is not None:
        jobs.append((job.cell, job.seed))
    assert len(jobs) == len(set(jobs)) == 17
    assert (cells[0].key, 2) not in jobs
    assert {cell for cell, _ in jobs[:5]} == {cell.key for cell in cells[1:]}


def held(draw: Callable[[Random], float], truth: float, runs: int) -> float:
    """The share of a thousand sweeps whose interval holds the truth."""
    found = (
        estimate([draw(rng) for _ in range(runs)]) for rng in (Random(nr) for nr in range(1000))
    )
    return fmean(abs((e.mean or 0) - truth) <= (e.half_width or 0) for e in found)


@pytest.mark.parametrize("runs", [2, 3, 6, 20])
def test_intervals_hold_the_mean_as_often_as_they_say(runs: int) -> None:
    assert held(lambda rng: rng.gauss(10, 2), 10, runs) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("runs", [4, 6, 24])
def test_intervals_of_shares_hold_them(share: float, runs: int) -> None:
    """At none of n and n of n too, where Student's have no width: over every possible count."""
    covered = 0.0
    for count in range(runs + 1):
        found = estimate_share([1.0] * count + [0.0] * (runs - count))
        assert found.mean is not None
        assert found.half_width is not None
        chance = math.comb(runs, count) * share**count * (1 - share) ** (runs - count)
        covered += chance * (abs(found.mean - share) <= found.half_width)
    assert covered > 0.9


def test_what_few_runs_cannot_have_shown() -> None:
    assert largest_unseen(1) == pytest.approx(0.95)
    assert (1 - largest_unseen(6)) ** 6 == pytest.approx(0.05)


def test_none_halted_of_a_few_is_not_settled() -> None:
    rule = Adaptive("halted", half_width=0.05, relative=False)
    runs = [Outcome("c", seed, "", metrics={"halted": 0.0}) for seed in range(80)]
    assert not is_settled(rule, runs[:16])
    assert is_settled(rule, runs)


def test_adaptive_seeds_do_not_miss_what_strikes_one_rollout_in_three() -> None:
    """A panic makes 12 minutes of 10 s: a cell that has seen none must not be taken for steady."""
    rule, truth = Adaptive("rollout_seconds"), 10 + 710 * 0.33
    means = []
    for nr in range(100):
        rng = Random(nr)
        values = [10 + 710 * (rng.random() < 0.33) + rng.random() - 0.5 for _ in range(64)]
        runs = [
            Outcome("c", seed, "", metrics={"rollout_seconds": value})
            for seed, value in enumerate(values)
        ]
        count = rule.min_seeds
        while count < rule.max_seeds and not is_settled(rule, runs[:count]):
            count += 4
        means.append(fmean(values[:count]))
    assert fmean(means) == pytest.approx(truth, rel=0.05)
    assert sum(mean < truth / 2 for mean in means) <= 1
