"""What a person sees of a sweep on a terminal when it has ended."""

from __future__ import annotations

import math
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet.sweep.analysis import PARETO, Analysis, CellSummary
from fleet.sweep.metrics import METRICS
from fleet.sweep.statistics import Estimate
from fleet.units import counted

__all__ = ["answer", "closing_tables", "estimate_text", "metrics_shown"]

_MOST_ROWS: Final = 40
_IN_MINUTES: Final = 120.0


def metrics_shown(analysis: Analysis) -> tuple[str, ...]:
    """The columns of the table: the usual ones, what the goal speaks of, what went wrong."""
    goal = analysis.plan.goal
    names = [*PARETO, goal.minimise, *(name for name, _ in goal.within)]
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


def estimate_text(name: str, found: Estimate) -> str:
    """A mean and its interval: `21 ± 6 min`; what is the same in every run has none."""
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
        return f"No cell gives {asked}."
    setting = ", ".join(
        f"{parameter.name} {choice.label}"
        for parameter, choice in zip(analysis.plan.parameters, best.cell.choices, strict=True)
    )
    found = estimate_text(goal.minimise, best.estimates[goal.minimise])
    rivals = [s for s in analysis.cells if s.meets_goal and _is_rival(s)]
    told = f"{asked[:1].upper()}{asked[1:]}: {setting} ({found})."
    if rivals:
        others = counted(len(rivals), "other cell")
        told += f" With so few seeds {others} within the limits cannot be told from it."
    return told


def _is_rival(summary: CellSummary) -> bool:
    """Whether the difference to the best cell may as well be none."""
    found = summary.to_best
    return found is not None and (
        found.mean == 0
        or found.half_width is None
        or (found.mean is not None and abs(found.mean) <= found.half_width)
    )


def closing_tables(analysis: Analysis) -> RenderableType:
    """The cells with their estimates, and the answer."""
    plan = analysis.plan
    shown = metrics_shown(analysis)
    table = Table(title=f"{plan.name}: means over seeds with 95 % intervals", title_justify="left")
    for parameter in plan.parameters:
        table.add_column(parameter.name)
    table.add_column("runs", justify="right")
    for name in shown:
        title = METRICS[name].title
        table.add_column(title, justify="right", min_width=max(map(len, title.split())))
    table.add_column("")
    rows = _in_order(analysis)
    for summary in rows[:_MOST_ROWS]:
        runs = str(summary.runs) + (f" +{summary.failed} failed" if summary.failed else "")
        signs = ("●" if summary.is_efficient else "") + ("✓" if summary.meets_goal else "")
        best = analysis.best is not None and summary.cell.key == analysis.best.cell.key
        table.add_row(
            *(Text(choice.label) for choice in summary.cell.choices),
            runs,
            *(estimate_text(name, summary.estimates[name]) for name in shown),
            signs,
            style="bold" if best else "",
        )
    if len(rows) > _MOST_ROWS:
        table.caption = f"{len(rows) - _MOST_ROWS} more cells are in the report"
    axes = ", ".join(METRICS[name].title for name in PARETO)
    notes = [f"● no other cell is better in one of {axes} and worse in none"]
    if plan.goal.within:
        notes.append("✓ within the limits of the goal")
    if analysis.failed:
        notes.append(f"{counted(analysis.failed, 'run')} failed: column error of the results")
    return Group(table, Text("\n".join(notes), style="dim"), Text(answer(analysis), style="bold"))


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
