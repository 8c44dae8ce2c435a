"""What a person sees of a sweep on a terminal when it has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fleet.sweep.analysis import PARETO, Analysis, CellSummary
from fleet.sweep.cells import Cell
from fleet.sweep.metrics import METRICS
from fleet.sweep.plan import Goal, SweepPlan
from fleet.sweep.statistics import Estimate, largest_unseen
from fleet.units import counted

__all__ = [
    "answer",
    "estimate_text",
    "metrics_shown",
    "setting_text",
    "show_closing",
    "unseen_text",
]

_MOST_ROWS: Final = 40
_NO_EDGE: Final = 10_000  # a width that everything fits in
_NUMBER: Final = 9  # letters of a figure that are kept on one line
_IN_MINUTES: Final = 120.0


def metrics_shown(analysis: Analysis) -> tuple[str, ...]:
    """The columns of the table: the usual ones, what the goal speaks of, what went wrong."""
    goal = analysis.plan.goal
    names = [name for name in PARETO if name != "halted"]
    names += [goal.minimise, *(name for name, _ in goal.within), analysis.plan.adaptive.metric]
    names += [
        name
        for name in ("vms_lost", "halted")
        if any(summary.estimates[name].most for summary in analysis.cells)
    ]
    return tuple(dict.fromkeys(names))


def _unit(name: str, value: float) -> tuple[float, str]:
    """What figures of this size are divided by, and the unit they have then."""
    unit = METRICS[name].unit
    if unit == "s":
        if value >= _IN_MINUTES:
            return 60.0, " min"
        return (1.0, " s") if value >= 1 else (0.001, " ms")
    return (0.01, " %") if unit == "%" else (1.0, "")


def value_text(name: str, value: float) -> str:
    """One figure of a metric."""
    scale, unit = _unit(name, value)
    return f"{_figure(value / scale, 0)}{unit}"


def _figure(value: float, error: float) -> str:
    """A number with as many digits as its error leaves a meaning, or with three."""
    of = error if error > 0 else abs(value) / 100
    digits = 0 if of <= 0 else max(0, min(6, 1 - math.floor(math.log10(of))))
    if error > 0 and digits and error >= 10 ** -(digits - 1) * 3:
        digits -= 1
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if error <= 0 and "." in text else text


def estimate_text(name: str, found: Estimate, runs: int = 0) -> str:
    """A mean and its interval: `21 ± 6 min`; what is the same in every run has none.

    Of what fewer than `runs` of them have (the duration of rollouts, some of which were halted) it
    is said in how many: `21 ± 6 min in 3 of 4`. Rollouts that were halted are counted.
    """
    if METRICS[name].is_yes_or_no and found.count:
        return f"{round((found.mean or 0) * found.count)} of {found.count}"
    told = _estimate_text(name, found)
    some = 0 < found.count + found.infinite < runs
    return f"{told} in {found.count} of {runs}" if some and not found.infinite else told


def _estimate_text(name: str, found: Estimate) -> str:
    if found.infinite:
        return f"∞ in {found.infinite} of {found.count + found.infinite}"
    if found.mean is None:
        return "–"
    scale, unit = _unit(name, abs(found.mean))
    error = (found.half_width or 0.0) / scale
    text = _figure(found.mean / scale, error)
    return f"{text} ± {_figure(error, error)}{unit}" if error else f"{text}{unit}"


def answer(analysis: Analysis) -> str:
    """One sentence: what the goal asks for."""
    goal = analysis.plan.goal
    least = "most" if METRICS[goal.minimise].more_is_better else "least"
    limits = " and ".join(
        f"{METRICS[name].title} {'≥' if METRICS[name].more_is_better else '≤'} "
        f"{value_text(name, limit)}"
        for name, limit in goal.within
    )
    asked = f"{least} {METRICS[goal.minimise].title}" + (f" with {limits}" if limits else "")
    best = analysis.best
    if best is None:
        if not analysis.runs:
            return "No run yielded a result."
        if all(s.failed or s.is_halting for s in analysis.cells):
            return f"No cell gives {asked}: in each of them a run failed or was halted."
        return f"No cell gives {asked}."
    setting = setting_text(analysis.plan, best.cell)
    found = estimate_text(goal.minimise, best.estimates[goal.minimise])
    found += ", one run" if best.runs == 1 else ""
    rivals = [s for s in analysis.cells if s.meets_goal and _is_rival(goal, s)]
    told = f"{asked[:1].upper()}{asked[1:]}: {setting} ({found})."
    within = " within the limits" if goal.within else ""
    if alike := sum(map(_is_alike, rivals)):
        told += f" {counted(alike, 'other cell')}{within} came to the same with every seed."
    if len(rivals) > alike:
        others = counted(len(rivals) - alike, "other cell")
        told += f" With so few seeds {others}{within} cannot be told from it."
    for name, limit in goal.within:
        if _may_break(name, limit, best.estimates[name]):
            mean = estimate_text(name, best.estimates[name], best.runs)
            told += f" Its {METRICS[name].title}, {mean}, may be beyond the limit: more seeds tell."
    return told


def _may_break(name: str, limit: float, found: Estimate) -> bool:
    """Whether the interval of a mean that keeps the limit reaches beyond it."""
    sign = -1 if METRICS[name].more_is_better else 1
    return (
        found.mean is not None
        and found.half_width is not None
        and sign * found.mean + found.half_width > sign * limit
    )


def unseen_text(analysis: Analysis) -> str:
    """What so few runs cannot have shown; the intervals know nothing of it."""
    runs = min((summary.runs for summary in analysis.cells if summary.runs), default=1)
    of = "the run" if runs == 1 else f"{runs} runs"
    share = f"{100 * largest_unseen(runs):.0f} %"
    return f"what strikes fewer than {share} of rollouts may not show in {of} of a cell"


def setting_text(plan: SweepPlan, cell: Cell) -> str:
    """What a cell is called: `wave 16, when a freeze fails retry`."""
    pairs = zip(plan.parameters, cell.choices, strict=True)
    return ", ".join(f"{parameter.name} {choice.label}" for parameter, choice in pairs)


def _is_rival(goal: Goal, summary: CellSummary) -> bool:
    """Whether the cell may as well be no worse than the best one."""
    found, sign = summary.to_best, -1 if METRICS[goal.minimise].more_is_better else 1
    return found is not None and (
        found.half_width is None
        or (found.mean is not None and sign * found.mean <= found.half_width)
    )


def _is_alike(summary: CellSummary) -> bool:
    """Whether more seeds are not known to tell it from the best one: no seed did."""
    found = summary.to_best
    return found is not None and found.count > 1 and found.mean == found.half_width == 0


def show_closing(analysis: Analysis, console: Console) -> None:
    """Print the cells with their estimates, and the answer.

    A file or a pipe gets every column on lines of any length, a terminal those that fit.
    """
    metrics = list(metrics_shown(analysis))
    table = _table(analysis, metrics)
    if not console.is_terminal:
        console.width = max(console.width, _widths(console, table).maximum)
    left_out = 0
    while len(metrics) > 1 and _widths(console, table).minimum > console.width:
        metrics.pop()
        left_out += 1
        table = _table(analysis, metrics)
    console.print(table)
    axes = ", ".join(METRICS[name].title for name in PARETO)
    notes = [f"● no other cell is better in one of {axes} and worse in none"]
    if analysis.plan.goal.within:
        notes.append("✓ within the limits of the goal")
    if left_out:
        notes.append(f"{counted(left_out, 'more column')} in the report: this terminal is narrow")
    if analysis.failed:
        notes.append(f"{counted(analysis.failed, 'run')} failed: column error of the results")
    if analysis.runs:
        notes.append(unseen_text(analysis))
    console.print(Text("\n".join(notes), style="dim"))
    console.print(Text(answer(analysis), style="bold"))


def _widths(console: Console, table: Table) -> Measurement:
    return console.measure(table, options=console.options.update_width(_NO_EDGE))


def _table(analysis: Analysis, metrics: Sequence[str]) -> Table:
    plan = analysis.plan
    title = f"{plan.name}: means over seeds with 95 % intervals"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("")
    for parameter in plan.parameters:
        table.add_column(parameter.name, overflow="fold")
    table.add_column("runs", justify="right")
    for name in metrics:
        words = METRICS[name].title.split()
        table.add_column(
            METRICS[name].title, justify="right", min_width=max(_NUMBER, *map(len, words))
        )
    rows = _in_order(analysis)
    for summary in rows[:_MOST_ROWS]:
        runs = str(summary.runs) + (f" +{summary.failed} failed" if summary.failed else "")
        fits = summary.meets_goal and analysis.plan.goal.within
        signs = ("●" if summary.is_efficient else "") + ("✓" if fits else "")
        best = analysis.best is not None and summary.cell.key == analysis.best.cell.key
        table.add_row(
            signs,
            *(Text(choice.label) for choice in summary.cell.choices),
            runs,
            *(estimate_text(name, summary.estimates[name], summary.runs) for name in metrics),
            style="bold" if best else "",
        )
    if len(rows) > _MOST_ROWS:
        table.caption = f"{len(rows) - _MOST_ROWS} more cells are in the report"
    return table


def _in_order(analysis: Analysis) -> list[CellSummary]:
    """The cells as they stand in the plan, or the best first if there are more than are shown."""
    if len(analysis.cells) <= _MOST_ROWS:
        return list(analysis.cells)
    name = analysis.plan.goal.minimise

    def rank(summary: CellSummary) -> tuple[bool, bool, float]:
        mean = summary.estimates[name].mean
        return (
            not summary.meets_goal,
            not summary.is_efficient,
            float("inf") if mean is None else mean,
        )

    return sorted(analysis.cells, key=rank)
