"""One HTML file about one sweep: the answer, the trade-off, effects, and every cell."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from fleet.charts.sweep import Dot, Panel, Point, effect_chart, front_chart, sampled_chart
from fleet.html import Markup, code, facts, paragraph, table, text
from fleet.report import own_version, page_style
from fleet.sweep.analysis import Analysis, CellSummary
from fleet.sweep.metrics import METRICS
from fleet.sweep.statistics import Estimate
from fleet.sweep.tables import answer, estimate_text, metrics_shown, unseen_text
from fleet.units import counted

__all__ = ["render_sweep_report", "write_sweep_report"]

_ACROSS: Final = "rollout_seconds"
_UP: Final = "downtime_p99_seconds"
_MOST_ROWS: Final = 500
_MOST_VALUES: Final = 24


def write_sweep_report(analysis: Analysis, path: Path) -> None:
    """Write the report to `path`, through a temporary file."""
    part = path.with_name(path.name + ".part")
    part.write_text(render_sweep_report(analysis), "utf-8")
    part.replace(path)


def render_sweep_report(analysis: Analysis) -> str:
    """The whole page."""
    plan = analysis.plan
    dots = _dots(analysis)
    template = Template((files("fleet") / "templates" / "sweep.html").read_text("utf-8"))
    return template.substitute(
        version=text(own_version()),
        style=page_style(),
        title=text(f"{plan.name}: a sweep of {counted(analysis.runs, 'run')}"),
        name=text(plan.name),
        subtitle=text(
            f"{plan.scenario.name} · {counted(len(analysis.cells), 'cell')}, "
            f"{counted(analysis.runs, 'run')} · simulated, all times virtual"
        ),
        headline=text(answer(analysis)),
        front_chart=front_chart(dots, METRICS[_ACROSS].title, METRICS[_UP].title),
        not_shown=_not_shown(analysis, len(dots)),
        effects=Markup("".join(_effects(analysis))),
        cells=_cells(analysis),
        failures=_failures(analysis),
        how=_how(analysis),
        footer=text(f"lufleet {own_version()}"),
    )


def _label(summary: CellSummary) -> str:
    return ", ".join(choice.label for choice in summary.cell.choices)


def _dots(analysis: Analysis) -> list[Dot]:
    dots = []
    for summary in analysis.cells:
        across, up = summary.estimates[_ACROSS].mean, summary.estimates[_UP].mean
        if across is None or up is None:
            continue
        dots.append(
            Dot(
                across,
                up,
                summary.estimates[_ACROSS].half_width or 0.0,
                summary.estimates[_UP].half_width or 0.0,
                _label(summary),
                summary.is_efficient,
                _is_best(analysis, summary),
            )
        )
    return dots


def _is_best(analysis: Analysis, summary: CellSummary) -> bool:
    return analysis.best is not None and summary.cell.key == analysis.best.cell.key


def _not_shown(analysis: Analysis, shown: int) -> Markup:
    """A sentence on the cells that have no place in the plane."""
    failed = sum(1 for summary in analysis.cells if summary.failed and not summary.runs)
    ended = sum(1 for summary in analysis.cells if summary.runs) - shown
    whys = ((ended, "all rollouts were halted, or VMs lost"), (failed, "all runs failed"))
    return Markup(
        "".join(
            paragraph(
                f"{counted(left, 'cell')} {'has' if left == 1 else 'have'} no place here: {why}.",
                "note",
            )
            for left, why in whys
            if left
        )
    )


def _effects(analysis: Analysis) -> list[str]:
    """A chart a parameter: means of its values, or every cell where each has another value."""
    shown = metrics_shown(analysis)
    parts: list[str] = []
    if any(summary.estimates["halted"].most for summary in analysis.cells):
        said = (
            "Some rollouts were halted and have no duration: durations are those of the others."
            " A cell with such a rollout is not the answer unless the goal says how many may be."
        )
        parts.append(paragraph(said, "note"))
    for nr, parameter in enumerate(analysis.plan.parameters):
        parts.append(f"<h3>{text(parameter.name)}</h3>")
        spread = parameter.range
        is_ordered = spread is not None or all(c.number is not None for c in parameter.choices)
        is_sampled = spread is not None and not parameter.choices
        panels = [_panel(analysis, parameter.name, name) for name in shown]
        if is_sampled or (is_ordered and len(panels[0].points) > _MOST_VALUES):
            panels = [_cells_panel(analysis, nr, name) for name in shown]
            unit, is_log = (spread.unit, spread.log) if spread is not None else ("", False)
            chart = sampled_chart(f"{nr}", panels, unit, is_log=is_log)
        elif len(panels[0].points) > _MOST_VALUES:
            parts.append(paragraph("Too many values for a chart of means.", "note"))
            continue
        else:
            chart = effect_chart(f"{nr}", panels, is_ordered=is_ordered)
        parts.append(f'<div class="wide" tabindex="0" role="group">{chart}</div>')
    return parts


def _panel(analysis: Analysis, parameter: str, name: str) -> Panel:
    effects = [e for e in analysis.effects[name] if e.parameter == parameter]
    if all(effect.number is not None for effect in effects):
        effects.sort(key=lambda effect: effect.number or 0.0)
    points = tuple(Point(e.label, e.estimate.told, e.estimate.half_width or 0.0) for e in effects)
    return Panel(METRICS[name].title, METRICS[name].unit, points)


def _cells_panel(analysis: Analysis, axis: int, name: str) -> Panel:
    points = []
    for summary in analysis.cells:
        mean = summary.mean(name)
        points.append(Point(_label(summary), mean, number=summary.cell.choices[axis].number or 0.0))
    return Panel(METRICS[name].title, METRICS[name].unit, tuple(points))


def _cells(analysis: Analysis) -> Markup:
    goal = analysis.plan.goal
    shown = metrics_shown(analysis)
    against = f"{METRICS[goal.minimise].title}, more than the best"
    columns = [*(p.name for p in analysis.plan.parameters), "runs"]
    columns += [METRICS[name].title for name in shown]
    columns += [against, ""]
    rows = []
    for summary in analysis.cells[:_MOST_ROWS]:
        signs = " ".join(
            sign
            for sign, is_so in (
                ("efficient", summary.is_efficient),
                ("fits", summary.meets_goal and goal.within),
            )
            if is_so
        )
        rows.append(
            [
                *(choice.label for choice in summary.cell.choices),
                summary.runs,
                *(estimate_text(name, summary.estimates[name], summary.runs) for name in shown),
                "the best"
                if _is_best(analysis, summary)
                else _difference(goal.minimise, summary.to_best),
                signs,
            ]
        )
    caption = f"{counted(len(analysis.cells), 'cell')}: means over seeds, 95 % intervals"
    if len(analysis.cells) > _MOST_ROWS:
        caption += f"; the first {_MOST_ROWS}"
    first = len(analysis.plan.parameters)
    return table(caption, columns, rows, numeric=range(first, first + len(shown) + 2))


def _difference(name: str, found: Estimate | None) -> str:
    return "–" if found is None else estimate_text(name, found)


def _failures(analysis: Analysis) -> Markup:
    rows = [
        [_label(summary), summary.failed, "; ".join(summary.errors[:3])]
        for summary in analysis.cells
        if summary.failed
    ]
    if not rows:
        return Markup("")
    return table(f"{counted(analysis.failed, 'run')} failed", ["cell", "runs", "why"], rows)


def _how(analysis: Analysis) -> Markup:
    plan = analysis.plan
    goal = METRICS[plan.goal.minimise].title
    is_same = len({summary.runs + summary.failed for summary in analysis.cells}) == 1
    some = "" if is_same else ", some with more of them than others"
    parts = [
        facts(
            {
                "experiment": code(plan.source.name),
                "scenario": code(f"{plan.scenario.name}, content {plan.base_digest}"),
                "cells": f"{plan.method}, {counted(len(analysis.cells), 'cell')}",
                "goal": goal,
                "downtime budget": f"{plan.budget_seconds:g} s",
            }
        ),
        paragraph(
            f"Every cell was run with the same seeds{some}. A host's luck depends on the seed and"
            " on names alone, so cells differ by what was varied; differences are taken seed by"
            " seed. The intervals speak of the luck within the model, not of how far the model is"
            f" from a fleet; {unseen_text(analysis)}.",
            "note",
        ),
    ]
    return Markup("".join(parts))
