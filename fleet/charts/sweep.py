"""Charts of a sweep: cells in the plane of duration and downtime, and what each parameter does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, geometric_mean
from typing import Final

from msgspec import Struct

from fleet.charts.svg import (
    LETTER,
    WIDTH,
    Canvas,
    Scale,
    clock_step,
    fitted,
    linear,
    seconds,
    tick_step,
)
from fleet.charts.svg import log as logarithmic

__all__ = ["Dot", "Panel", "Point", "effect_chart", "front_chart", "sampled_chart"]

_LEFT, _RIGHT, _TOP, _TALL = 86.0, WIDTH - 30, 26.0, 330.0
_PANEL, _PANEL_GAP = 150.0, 34.0
_ROOM: Final = 0.06  # of an axis, beyond its ends
_CLOCK_FROM: Final = 60.0  # seconds from which an axis is marked at whole minutes
_TICKS: Final = 6
_EDGE: Final = 24.0  # between the ends of a sampled range and those of the panel
_GROUPS, _LEAST_OF_A_GROUP = 6, 3  # neighbours that a trend is drawn through


class Dot(Struct, frozen=True):
    """One cell: where it stands, how sure that is (half widths, 0 if not known), what it is."""

    x: float
    y: float
    x_half: float
    y_half: float
    label: str
    on_front: bool = False
    is_best: bool = False


class Point(Struct, frozen=True):
    """One value of a parameter and what it yields: None is nothing, infinity a VM that was lost.

    `number` is the value's place on an axis, where there is one.
    """

    label: str
    mean: float | None
    half: float = 0.0
    number: float = 0.0

    @property
    def finite(self) -> float | None:
        """The mean, if it has a place on an axis."""
        return None if self.mean is None or math.isinf(self.mean) else self.mean


class Panel(Struct, frozen=True):
    """One metric over the values of a parameter; `unit` is that of the metric."""

    title: str
    unit: str
    points: tuple[Point, ...]


def front_chart(dots: Sequence[Dot], x_title: str, y_title: str) -> str:
    """Cells by duration (across) and downtime (up), both in seconds; efficient ones are joined."""
    canvas = Canvas(
        "front",
        _TOP + _TALL + 52,
        "Duration against downtime",
        f"{len(dots)} cells; the table below gives their figures.",
    )
    if not dots:
        canvas.text(WIDTH / 2, _TALL / 2, "No cell has finite figures.", "label", "middle")
        return canvas.render()
    floor = _TOP + _TALL
    x = _axis([(dot.x, dot.x_half) for dot in dots], _LEFT, _RIGHT, "s")
    y = _axis([(dot.y, dot.y_half) for dot in dots], floor, _TOP, "s")
    for tick, text in x.ticks:
        canvas.line(x.scale(tick), _TOP, x.scale(tick), floor, "grid")
        canvas.text(x.scale(tick), floor + 17, text, "tick", "middle")
    for tick, text in y.ticks:
        canvas.line(_LEFT, y.scale(tick), _RIGHT, y.scale(tick), "grid")
        canvas.text(_LEFT - 8, y.scale(tick) + 4, text, "tick", "end")
    canvas.text(_RIGHT, floor + 38, f"{x_title} →", "tick", "end")
    canvas.text(_LEFT - 70, _TOP - 10, f"↑ {y_title}", "tick")
    front = sorted((dot.x, -dot.y) for dot in dots if dot.on_front)
    canvas.path([(x.scale(at), y.scale(-up)) for at, up in front], "front")
    for dot in sorted(dots, key=lambda dot: dot.on_front):
        at, up = x.scale(dot.x), y.scale(dot.y)
        if dot.x_half:
            canvas.line(x.from_low(dot.x - dot.x_half), up, x.scale(dot.x + dot.x_half), up, "axis")
        if dot.y_half:
            canvas.line(at, y.from_low(dot.y - dot.y_half), at, y.scale(dot.y + dot.y_half), "axis")
        tip = f"{dot.label}: {x_title} {seconds(dot.x)}, {y_title} {seconds(dot.y)}"
        style = "cell-front" if dot.on_front else "cell"
        if dot.is_best:
            canvas.rect(at - 8.5, up - 8.5, 17, 17, "cell-best")
        canvas.rect(at - 4.5, up - 4.5, 9, 9, style, tip)
    _labels(canvas, [(x.scale(dot.x), y.scale(dot.y), dot) for dot in dots])
    return canvas.render()


def _labels(canvas: Canvas, dots: Sequence[tuple[float, float, Dot]]) -> None:
    """Names beside the dots, the best and efficient ones first, none on another."""
    taken: list[tuple[float, float, float]] = []  # left, right, baseline
    for at, up, dot in sorted(
        dots, key=lambda placed: (not placed[2].is_best, not placed[2].on_front)
    ):
        width = len(dot.label) * LETTER
        left = at - 12 - width if at + 12 + width > _RIGHT else at + 12
        for baseline in (up - 9, up + 18):
            if all(
                left > end or left + width < start or abs(baseline - other) > 13
                for start, end, other in taken
            ):
                taken.append((left, left + width, baseline))
                canvas.text(left, baseline, dot.label, "value")
                break


def effect_chart(name: str, panels: Sequence[Panel], *, is_ordered: bool) -> str:
    """One parameter: a panel for each metric, its values from left to right."""
    height = 24 + len(panels) * (_PANEL + _PANEL_GAP)
    canvas = Canvas(f"effect-{name}", height, f"Effect of {name}", "The table has the figures.")
    for nr, panel in enumerate(panels):
        _draw(canvas, 24 + nr * (_PANEL + _PANEL_GAP), panel, is_ordered=is_ordered)
    return canvas.render()


def sampled_chart(name: str, panels: Sequence[Panel], unit: str, *, is_log: bool) -> str:
    """One parameter of which every cell has a value of its own: a dot a cell, and their trend.

    `unit` is that of the parameter, as it stands behind its values.
    """
    height = 24 + len(panels) * (_PANEL + _PANEL_GAP)
    canvas = Canvas(f"sampled-{name}", height, f"Effect of {name}", "The table has the figures.")
    numbers = [point.number for panel in panels for point in panel.points]
    scale, ticks = _number_axis(numbers, is_log=is_log)
    for nr, panel in enumerate(panels):
        top = 24 + nr * (_PANEL + _PANEL_GAP)
        floor = top + _PANEL - 20
        points = sorted((p.number, p.finite, p.label) for p in panel.points if p.finite is not None)
        y = _frame(canvas, top, floor, panel)
        if y is None:
            continue
        for tick in ticks:
            canvas.text(scale(tick), floor + 19, f"{tick:g}{unit}", "tick", "middle")
        canvas.path([(scale(at), y.scale(up)) for at, up in _trend(points, is_log)], "trend")
        for at, up, label in points:
            tip = f"{label}: {_tick_text(up, panel.unit)}"
            canvas.rect(scale(at) - 3.5, y.scale(up) - 3.5, 7, 7, "cell-front", tip)
    return canvas.render()


def _trend(points: Sequence[tuple[float, float, str]], is_log: bool) -> list[tuple[float, float]]:
    """Means over groups of neighbours, as many in each; none of a few points."""
    groups = min(_GROUPS, len(points) // _LEAST_OF_A_GROUP)
    if groups < 2:
        return []
    mean = geometric_mean if is_log else fmean
    edges = [round(nr * len(points) / groups) for nr in range(groups + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    return [(mean([p[0] for p in part]), fmean([p[1] for p in part])) for part in parts]


def _number_axis(numbers: Sequence[float], *, is_log: bool) -> tuple[Scale, list[float]]:
    """Where the values of a parameter stand across a panel, and those that are marked."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if is_log and low < high:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marked = [m * 10.0**power for power in powers for m in (1, 2, 5)]
        scale = logarithmic(low, high, _LEFT + _EDGE, _RIGHT - _EDGE)
        return scale, [tick for tick in marked if low <= tick <= high]
    step = tick_step(high - low, _TICKS)
    marked = [nr * step for nr in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return linear(low, high, _LEFT + _EDGE, _RIGHT - _EDGE), marked


def _draw(canvas: Canvas, top: float, panel: Panel, *, is_ordered: bool) -> None:
    floor = top + _PANEL - 20
    y = _frame(canvas, top, floor, panel)
    if y is None:
        return
    step = (_RIGHT - _LEFT) / len(panel.points)
    placed = [(_LEFT + step * (nr + 0.5), point) for nr, point in enumerate(panel.points)]
    if is_ordered:
        line = [(at, y.scale(point.finite)) for at, point in placed if point.finite is not None]
        canvas.path(line, "trend")
    for across, point in placed:
        canvas.text(across, floor + 19, fitted(point.label, step - LETTER), "tick", "middle")
        mean = point.finite
        if mean is None:
            sign = "–" if point.mean is None else "∞"
            canvas.text(across, (top + floor) / 2, sign, "tick", "middle")
            continue
        if point.half:
            high, low = y.scale(mean + point.half), y.from_low(mean - point.half)
            canvas.line(across, high, across, low, "whisker")
        tip = f"{point.label}: {_tick_text(mean, panel.unit)}"
        canvas.mark(across, y.scale(mean), "●", "dot", tip)


def _frame(canvas: Canvas, top: float, floor: float, panel: Panel) -> _Axis | None:
    """Title and axis of a panel; None if there is nothing to be shown in it."""
    lost = sum(point.mean == math.inf for point in panel.points)
    title = f"{panel.title}, ∞ at {lost} of {len(panel.points)}" if lost else panel.title
    canvas.text(_LEFT, top - 9, title, "label")
    means = [(point.finite, point.half) for point in panel.points if point.finite is not None]
    if not means:
        canvas.text(_LEFT, (top + floor) / 2, "no finite mean", "tick")
        return None
    y = _axis(means, floor, top, panel.unit)
    for tick, text in y.ticks:
        canvas.line(_LEFT, y.scale(tick), _RIGHT, y.scale(tick), "grid")
        canvas.text(_LEFT - 8, y.scale(tick) + 4, text, "tick", "end")
    return y


class _Axis(Struct, frozen=True):
    """An axis, which begins at zero or above: nothing that is shown is negative."""

    scale: Scale
    low: float
    ticks: tuple[tuple[float, str], ...]

    def from_low(self, value: float) -> float:
        """The place of a value that may be below the axis."""
        return self.scale(max(value, self.low))


def _axis(values: Sequence[tuple[float, float]], start: float, end: float, unit: str) -> _Axis:
    """An axis over values and their half widths."""
    low = max(0.0, min(mean - half for mean, half in values))
    high = max(mean + half for mean, half in values)
    room = (high - low) * _ROOM or abs(high) * 0.05 or 1.0
    low, high = max(0.0, low - room), high + room
    in_minutes = unit == "s" and high - low >= _CLOCK_FROM
    step = clock_step(high - low, _TICKS) if in_minutes else tick_step(high - low, _TICKS)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    ticks = [step * nr for nr in numbers]
    texts = [_tick_text(tick, unit) for tick in ticks]
    if len(set(texts)) < len(texts):
        texts = [_exact_text(tick, step, unit) for tick in ticks]
    return _Axis(linear(low, high, start, end), low, tuple(zip(ticks, texts, strict=True)))


def _exact_text(value: float, step: float, unit: str) -> str:
    """With as many digits as tell ticks apart that are `step` from each other."""
    scale, behind = (100, " %") if unit == "%" else (1, " s" if unit == "s" else "")
    places = max(0, -math.floor(math.log10(step * scale) + 1e-9))
    return f"{value * scale:.{places}f}{behind}"


def _tick_text(value: float, unit: str) -> str:
    if unit == "s":
        return seconds(value) if value else "0"
    return f"{value * 100:.3g} %" if unit == "%" else f"{value:.3g}"
