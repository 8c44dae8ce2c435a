"""The parts of a sweep: cells, intervals, what is run next, what the runs say together."""

from __future__ import annotations

import math
import re
from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fleet.charts.sweep import Panel, Point, effect_chart
from fleet.sweep.analysis import Analysis, analyse, pareto_front
from fleet.sweep.cells import cells_of
from fleet.sweep.plan import Goal, Parameter, Range
from fleet.sweep.report import render_sweep_report
from fleet.sweep.statistics import estimate
from fleet.sweep.tables import answer, estimate_text, show_closing
from fleet.sweep.worker import Outcome
from tests.fleet.sweep_plans import PLAN, choices, outcome


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
    """Seed 9 is a lucky one, with which only one cell was run: that makes it no better.

    Nor does a cell of which nothing was run yet make it so.
    """
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2, 3)),))
    more = {"downtime_p99_seconds": 5.0, "vms_given_up": 0.0, "halted": 0.0}
    slow, fast, later = cells_of(plan)
    runs = [outcome(slow, seed, 110.0, **more) for seed in (1, 2)]
    runs += [outcome(fast, seed, 100.0, **more) for seed in (1, 2)]
    runs.append(outcome(slow, 9, 1.0, **more))
    found = analyse(plan, (slow, fast, later), runs)
    assert found.best is not None
    assert found.best.cell == fast
    found = analyse(plan, (slow, fast), runs)
    assert found.best is not None
    assert found.best.cell == fast
    assert [summary.is_efficient for summary in found.cells] == [False, True]
    assert [summary.runs for summary in found.cells] == [3, 2]
    assert [effect.estimate.mean for effect in found.effects["rollout_seconds"]] == [110.0, 100.0]
    assert "the same seeds, some with more of them" in render_sweep_report(found)


def test_leaving_hosts_alone_beats_nothing() -> None:
    """It is quick, and no VM of a host that was given up feels anything."""
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2, 3)),))
    lazy, thorough, slow = cells_of(plan)
    more = {"vms_given_up": 0.0, "halted": 0.0}
    runs = [outcome(lazy, 1, 9.0, hosts_updated=0.5, downtime_p99_seconds=1.0, **more)]
    runs += [outcome(thorough, 1, 10.0, downtime_p99_seconds=2.0, **more)]
    runs += [outcome(slow, 1, 11.0, downtime_p99_seconds=2.0, **more)]
    found = analyse(plan, cells_of(plan), runs)
    assert [summary.is_efficient for summary in found.cells] == [True, True, False]


def test_effects_compare_values_on_the_runs_that_all_of_them_have() -> None:
    """b = 20 takes ten times as long, and with a = 2 halts on one seed, with a = 1 never runs."""
    parameters = (Parameter("a", choices("a", 1, 2)), Parameter("b", choices("b", 10, 20)))
    plan = replace(PLAN, parameters=parameters)
    a1b10, a1b20, a2b10, a2b20 = cells_of(plan)
    runs = [outcome(a1b10, seed, 100.0 * seed) for seed in (1, 2, 3)]
    runs += [Outcome(a1b20.key, seed, "cannot be run") for seed in (1, 2, 3)]
    runs += [outcome(a2b10, seed, 100.0 * seed - 1) for seed in (1, 2, 3)]
    runs += [outcome(a2b20, seed, 1000.0 * seed - 1) for seed in (1, 2)]
    runs += [Outcome(a2b20.key, 3, "", metrics={"halted": 1.0})]
    found = analyse(plan, cells_of(plan), runs).effects["rollout_seconds"]
    means = {(effect.parameter, effect.label): effect.estimate.mean for effect in found}
    assert means["a", "1"] == pytest.approx(200.0)
    assert means["a", "2"] == pytest.approx(199.0), "a second less, whatever b = 20 did to it"
    assert means["b", "10"] == pytest.approx(149.0), "a = 2 on seeds 1 and 2"
    assert means["b", "20"] == pytest.approx(1499.0)


def test_the_answer_says_what_so_few_seeds_leave_open() -> None:
    plan = replace(
        PLAN,
        parameters=(Parameter("a", choices("a", 1, 2)),),
        goal=Goal("rollout_seconds", (("vms_given_up", 0.02), ("halted", 0.1))),
    )
    quick, slow = cells_of(plan)
    given_up = [0.0, 0.0, 0.0, 0.03]
    runs = [
        outcome(cell, seed, seconds + seed, vms_given_up=share, halted=0.0)
        for cell, seconds in ((quick, 100.0), (slow, 200.0))
        for seed, share in enumerate(given_up)
    ]
    found = analyse(plan, cells_of(plan), runs)
    said = answer(found)
    assert "Its VMs given up, 0.8 ± 2.4 %, may be beyond the limit" in said
    assert "Its rollouts halted, 0 of 4, may be beyond the limit" in said
    assert "fewer than 53 % of rollouts may not show in 4 runs" in closing(
        found, width=200, is_terminal=False
    )
    sure = [replace(run, metrics={**run.metrics, "vms_given_up": 0.01}) for run in runs]
    assert "VMs given up, " not in answer(analyse(plan, cells_of(plan), sure))
    assert "(100 s, one run)" in answer(analyse(plan, cells_of(plan), [runs[0], runs[4]]))


def test_a_cell_that_is_better_on_more_seeds_is_not_told_from_the_best() -> None:
    """The best is so on the seeds that all cells have; two of them have more."""
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2, 3)),))
    best, rival, other = cells_of(plan)
    runs = [outcome(cell, 1, at) for cell, at in ((best, 1.0), (rival, 2.0), (other, 9.0))]
    runs += [outcome(best, seed, 5.0 + seed / 10) for seed in range(2, 13)]
    runs += [outcome(rival, seed, 2.0) for seed in range(2, 13)]
    found = analyse(plan, cells_of(plan), runs)
    assert found.best is not None
    assert found.best.cell == best
    assert "2 other cells cannot be told from it" in answer(found), "one has a single seed"


def test_a_cell_that_is_the_same_with_every_seed_wants_no_more_of_them() -> None:
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2, 3)),))
    first, same, near = cells_of(plan)
    runs = [outcome(cell, seed, 60.0 * seed) for cell in (first, same) for seed in (1, 2, 3)]
    runs += [outcome(near, seed, 60.0 * seed + (2 - seed)) for seed in (1, 2, 3)]
    said = answer(analyse(plan, cells_of(plan), runs))
    assert "1 other cell came to the same with every seed" in said
    assert "With so few seeds 1 other cell cannot be told from it" in said


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


@pytest.mark.parametrize(
    ("unit", "means"),
    [("s", (263.1, 263.9)), ("s", (4.12, 4.19)), ("%", (0.99971, 0.99975)), ("", (40_012, 40_018))],
)
def test_marks_of_an_axis_differ_from_each_other(unit: str, means: tuple[float, float]) -> None:
    """Also where what is shown varies by less than a figure is usually written with."""
    panel = Panel("metric", unit, tuple(Point(f"value {mean}", mean) for mean in means))
    chart = effect_chart("x", [panel], is_ordered=False)
    marks = re.findall(r'<text class="tick"[^>]* text-anchor="end">(.*?)<', chart)
    assert len(marks) > 1
    assert len(set(marks)) == len(marks)


def test_a_lost_vm_is_no_gap_in_a_chart() -> None:
    plan = replace(PLAN, parameters=(Parameter("a", choices("a", 1, 2, 3)),))
    cells = cells_of(plan)
    more = {"vms_given_up": 0.0, "halted": 0.0}
    runs = [
        outcome(cell, 1, 9.0, downtime_p99_seconds=worst, **more)
        for cell, worst in zip(cells, (5.0, math.inf, 6.0), strict=True)
    ]
    page = render_sweep_report(analyse(plan, cells, runs))
    assert ">downtime p99, ∞ at 1 of 3<" in page
    assert page.count(">∞<") == 1
    assert ">rollout<" in page


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
    assert chart.count("<rect") == 4 * 40, "four metrics"
    assert chart.count('class="trend"') == 4
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
