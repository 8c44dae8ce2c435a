"""The parts of a sweep: cells, intervals, what is run next, what the runs say together."""

from __future__ import annotations

import math
import re
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fleet.charts.sweep import Panel, Point, effect_chart
from fleet.sweep.analysis import Analysis, analyse, pareto_front
from fleet.sweep.cells import Cell, cells_of, halton
from fleet.sweep.plan import Adaptive, Choice, Goal, Parameter, Range, SweepPlan
from fleet.sweep.report import render_sweep_report
from fleet.sweep.runner import Agenda
from fleet.sweep.statistics import estimate, student_quantile
from fleet.sweep.tables import answer, estimate_text, show_closing
from fleet.sweep.worker import Outcome


def choices(key: str, *values: int) -> tuple[Choice, ...]:
    return tuple(Choice(str(value), (f"{key}={value}",), float(value)) for value in values)


PLAN = SweepPlan(
    name="p",
    source=Path("e.toml"),
    scenario=Path("s.toml"),
    seeds=(1, 2, 3),
    parameters=(Parameter("a", choices("a", 1, 2)), Parameter("b", choices("b", 10, 20, 30))),
    method="grid",
    samples=0,
    sampling_seed=1,
    adaptive=Adaptive(),
    goal=Goal(),
    base_digest="",
    budget_seconds=30.0,
)
RANGED = replace(
    PLAN,
    parameters=(
        Parameter("rate", range=Range("faults.0.rate", 0.001, 0.1, log=True)),
        Parameter("wave", range=Range("rollout.wave_size", 1, 16, whole=True)),
        Parameter("soak", range=Range("rollout.soak", 10, 600, whole=True, unit="s")),
        Parameter("b", choices("b", 10, 20)),
    ),
    samples=64,
)


def test_a_grid_has_every_combination_in_order() -> None:
    labels = ["".join(f"{choice.label} " for choice in cell.choices) for cell in cells_of(PLAN)]
    assert labels == ["1 10 ", "1 20 ", "1 30 ", "2 10 ", "2 20 ", "2 30 "]
    assert cells_of(PLAN)[4].overrides == ("a=2", "b=20")


@pytest.mark.parametrize("method", ["random", "halton"])
def test_samples_repeat_stay_in_range_and_fill_it(method: str) -> None:
    plan = replace(RANGED, method=method)
    cells = cells_of(plan)
    assert cells == cells_of(plan)
    assert cells != cells_of(replace(plan, sampling_seed=77))
    assert len(cells) == 64
    rates = [cell.choices[0].number or 0.0 for cell in cells]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert 20 <= sum(rate < 0.01 for rate in rates) <= 44, "half of them, on a logarithmic scale"
    assert {cell.choices[1].label for cell in cells} >= {"2", "8", "15"}
    assert all(cell.overrides[2].startswith('rollout.soak="') for cell in cells)
    assert {cell.choices[3].label for cell in cells} == {"10", "20"}


def test_halton_is_even() -> None:
    for base in (2, 3, 5):
        values = sorted(halton(nr, base) for nr in range(1, 200))
        gaps = [high - low for low, high in pairwise(values)]
        assert max(gaps) < base / 200 * 2, base
    assert [halton(nr, 2) for nr in (1, 2, 3, 4)] == [0.5, 0.25, 0.75, 0.125]


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


@given(st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3) | st.none(), max_size=30))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, ...] | None]) -> None:
    front = pareto_front(points)
    real = [point for point in points if point is not None]
    assert bool(front) == bool(real)
    for nr, point in enumerate(points):
        if point is None:
            assert nr not in front
            continue
        beaten = any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in real
        )
        assert (nr in front) == (not beaten)


def outcome(cell: Cell, seed: int, seconds: float, **more: float) -> Outcome:
    return Outcome(
        cell.key, seed, "", metrics={"rollout_seconds": seconds, "vms_lost": 0.0, **more}
    )


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


def test_differences_are_taken_seed_by_seed() -> None:
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2)),))
    slow, fast = cells_of(plan)
    runs = [outcome(slow, seed, 100.0 * seed + 5 + seed / 10) for seed in (1, 2, 3)]
    runs += [outcome(fast, seed, 100.0 * seed) for seed in (1, 2, 3)]
    found = analyse(plan, cells_of(plan), runs)
    assert found.best is not None
    assert found.best.cell == fast
    to_best = found.cells[0].to_best
    assert to_best is not None
    assert to_best.mean == pytest.approx(5.2)
    assert to_best.half_width == pytest.approx(0.1 * 4.30265 / math.sqrt(3), rel=1e-4)
    alone = found.cells[0].estimates["rollout_seconds"].half_width
    assert alone is not None
    assert alone > 200, "the luck of the seeds, which both share"
    assert answer(found).startswith("Least rollout: a 2")


def test_a_cell_with_failed_or_halted_runs_is_not_the_answer() -> None:
    plan = replace(
        PLAN,
        parameters=(Parameter("a", choices("a", 1, 2, 3)),),
        goal=Goal("rollout_seconds", (("vms_lost", 0.0),)),
    )
    failing, halting, losing = cells_of(plan)
    runs = [Outcome(failing.key, 1, "cannot be run"), outcome(failing, 2, 1.0)]
    runs += [Outcome(halting.key, seed, "", metrics={"vms_lost": 0.0}) for seed in (1, 2)]
    runs += [outcome(losing, seed, 1.0, vms_lost=1.0) for seed in (1, 2)]
    found = analyse(plan, cells_of(plan), runs)
    assert found.best is None
    assert answer(found) == "No cell gives least rollout with VMs lost ≤ 0."


def test_rollouts_that_got_through_do_not_speak_for_those_that_were_halted() -> None:
    """The quick cell is quick in one run of three, and is halted in the others."""
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2)),))
    steady, lucky = cells_of(plan)
    more = {"downtime_p99_seconds": 5.0, "vms_given_up": 0.0}
    runs = [outcome(steady, seed, 100.0 + seed, halted=0.0, **more) for seed in (1, 2, 3)]
    runs += [outcome(lucky, 1, 10.0, halted=0.0, **more)]
    runs += [Outcome(lucky.key, seed, "", metrics={"halted": 1.0, **more}) for seed in (2, 3)]
    found = analyse(plan, cells_of(plan), runs)
    assert found.best is not None
    assert found.best.cell == steady
    assert [summary.is_efficient for summary in found.cells] == [True, True], (
        "one seldom gets there"
    )
    page = render_sweep_report(found)
    assert "10 s in 1 of 3" in page
    assert "durations are those of the others" in page
    risky = replace(plan, goal=Goal("rollout_seconds", (("halted", 0.7),)))
    allowed = analyse(risky, cells_of(risky), runs).best
    assert allowed is not None
    assert allowed.cell == lucky


def test_a_cell_of_which_no_rollout_got_there_is_nowhere() -> None:
    """However little its VMs felt."""
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2)),))
    steady, stuck = cells_of(plan)
    bad = {"halted": 1.0, "vms_given_up": 0.0, "downtime_p99_seconds": 1.0}
    runs = [outcome(steady, 1, 100.0, halted=0.0, vms_given_up=0.0, downtime_p99_seconds=5.0)]
    found = analyse(plan, cells_of(plan), [*runs, Outcome(stuck.key, 1, "", metrics=bad)])
    assert [summary.is_efficient for summary in found.cells] == [True, False]
    assert "1 cell has no place here" in render_sweep_report(found)
    calm = replace(plan, goal=Goal("downtime_p99_seconds"))
    assert analyse(calm, (stuck,), [Outcome(stuck.key, 1, "", metrics=bad)]).best is None
    alone = analyse(plan, (stuck,), [Outcome(stuck.key, 1, "", metrics=bad)])
    assert answer(alone).endswith(": in each of them a run failed or was halted.")


def test_cells_are_ranked_on_the_seeds_that_they_share() -> None:
    """Seed 9 is a lucky one, with which only one cell was run: that makes it no better."""
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2)),))
    more = {"downtime_p99_seconds": 5.0, "vms_given_up": 0.0, "halted": 0.0}
    slow, fast = cells_of(plan)
    runs = [outcome(slow, seed, 110.0, **more) for seed in (1, 2)]
    runs += [outcome(fast, seed, 100.0, **more) for seed in (1, 2)]
    found = analyse(plan, (slow, fast), [*runs, outcome(slow, 9, 1.0, **more)])
    assert found.best is not None
    assert found.best.cell == fast
    assert [summary.is_efficient for summary in found.cells] == [False, True]
    assert [summary.runs for summary in found.cells] == [3, 2]
    assert [effect.estimate.mean for effect in found.effects["rollout_seconds"]] == [110.0, 100.0]
    assert "the same seeds, some with more of them" in render_sweep_report(found)


def closing(analysis: Analysis, *, width: int, is_terminal: bool) -> str:
    file = StringIO()
    show_closing(analysis, Console(file=file, width=width, force_terminal=is_terminal))
    return file.getvalue()


def test_a_table_is_never_cut_off() -> None:
    names = ("a long name of a parameter", "b", "c")
    parameters = tuple(Parameter(name, choices(name, 1, 2)) for name in names)
    limits = (("downtime_p90_seconds", 9.0), ("hosts_updated", 0.9), ("within_budget", 0.9))
    plan = replace(PLAN, parameters=parameters, goal=Goal("rollout_seconds", limits))
    metrics = {name: 0.95 for name, _ in limits} | {
        "downtime_p99_seconds": 7.0,
        "vms_given_up": 0.0,
    }
    cells = cells_of(plan)
    found = analyse(
        plan, cells, [outcome(cell, 1, 50.0 + nr, **metrics) for nr, cell in enumerate(cells)]
    )
    for width in (60, 80, 120):
        lines = closing(found, width=width, is_terminal=True).splitlines()
        assert all(cell_len(Text.from_ansi(line).plain.rstrip()) <= width for line in lines)
        rows = [line for line in lines if "✓" in line]
        assert len(rows) >= len(cells), "the sign of each cell"
    narrow = closing(found, width=60, is_terminal=True)
    assert "in the report: this terminal is narrow" in narrow
    piped = closing(found, width=40, is_terminal=False)
    assert "95 %" in next(line for line in piped.splitlines() if "✓" in line)
    assert "terminal is narrow" not in piped


def test_labels_of_values_do_not_lie_on_each_other() -> None:
    labels = ("wait five minutes and freeze again, at most three times", "cold reboot", "give up")
    panel = Panel(
        "rollout", "s", tuple(Point(f"{label} {nr}", 1.0) for nr in "ab" for label in labels)
    )
    chart = effect_chart("x", [panel], is_ordered=False)
    found = re.findall(
        r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">(.*?)<', chart
    )
    ends = [(float(at) - 3 * len(label), float(at) + 3 * len(label)) for at, label in found]
    assert len(ends) == 6
    assert all(end < start for (_, end), (start, _) in pairwise(ends))
    assert chart.count("wait five minutes and freeze again, at most three times a") == 1, "its tip"


def test_sampled_ranges_have_a_chart_however_many_values_they_have() -> None:
    spread = Range("faults.0.rate", 0.01, 1.0, log=True, unit="x")
    plan = replace(PLAN, parameters=(Parameter("rate", range=spread),), method="halton", samples=40)
    cells = cells_of(plan)
    more = {"downtime_p99_seconds": 5.0, "vms_given_up": 0.0}
    runs = [outcome(cell, 1, 60.0 + (c.number or 0)) for cell in cells for c in cell.choices]
    runs = [replace(run, metrics={**run.metrics, **more}) for run in runs]
    page = render_sweep_report(analyse(plan, cells, runs))
    chart = page[page.index("Effect of 0") : page.index('<h2 id="s-cells"')]
    assert len(cells) == 40
    assert chart.count("<rect") == 3 * 40, "three metrics"
    assert chart.count('class="trend"') == 3
    assert all(f">{tick}x<" in chart for tick in ("0.02", "0.1", "0.5"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1500.0, 1600.0, 1550.0], "25.8 ± 2.1 min"),
        ([11.0, 11.4, 11.2], "11.2 ± 0.5 s"),
        ([11.0, 11.0], "11 s"),
        ([0.25, 0.25], "250 ms"),
    ],
)
def test_a_figure_has_as_many_digits_as_its_error_leaves(values: list[float], text: str) -> None:
    assert estimate_text("rollout_seconds", estimate(values)) == text
