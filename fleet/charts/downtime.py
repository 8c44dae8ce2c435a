"""How long VMs were down: a histogram over its cumulative share, with the budget through both.

The axis is logarithmic as soon as the longest downtime is several times the shortest, because a
restarted VM is down for minutes where a preserved one is for seconds. Lost VMs never come back,
have no place on the axis and stand beyond its end.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from fleet.charts.svg import LETTER, WIDTH, Canvas, Scale, linear, log, seconds, tick_step

__all__ = ["downtime_chart"]

_BINS: Final = 48
_LEFT, _RIGHT = 56.0, WIDTH - 24
_TOP, _BARS, _GAP, _SHARE = 44.0, 150.0, 18.0, 96.0
_LOST_WIDTH: Final = 84.0
_LOG_TICKS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60),
    *(120, 300, 600, 1200, 1800, 3600, 7200),
)
_LABEL_ROOM: Final = 34.0
_LOG_FROM: Final = 4.0  # longest to shortest at which the axis becomes logarithmic


def downtime_chart(
    finite_s: Mapping[str, Sequence[float]],
    lost: int,
    budget_s: float,
    percentiles: Mapping[str, float | None],
) -> str:
    """The chart.

    Args:
        finite_s: outcome -> the downtimes of VMs that ended so, in seconds.
        lost: VMs without a finite downtime.
        budget_s: what a downtime is held against.
        percentiles: "p50" -> seconds, None where it falls on a lost VM.
    """
    every = sorted(value for values in finite_s.values() for value in values)
    height = _TOP + _BARS + _GAP + _SHARE + 34
    canvas = Canvas(
        "downtime",
        height,
        "Distribution of VM downtime",
        f"Histogram and cumulative share of {len(every)} finite downtimes, {lost} VMs lost; "
        f"the budget is {seconds(budget_s)}. The table beside it gives the percentiles.",
    )
    if not every:
        canvas.text(WIDTH / 2, height / 2, "No VM was paused.", "label", "middle")
        return canvas.render()
    low, high = min(every[0], budget_s) * 0.9, max(every[-1], budget_s) * 1.1
    right = _RIGHT - (_LOST_WIDTH if lost else 0)
    is_log = high / low > _LOG_FROM
    edges = _edges(low, high, budget_s, is_log=is_log)
    x = (log if is_log else linear)(edges[0], edges[-1], _LEFT, right)
    _axis(canvas, x, low, high, is_log=is_log)
    columns = _count(edges, finite_s)
    top = max(lost, *(sum(column.values()) for column in columns))
    _count_axis(canvas, top, right)
    _bars(canvas, x, edges, columns, top)
    if lost:
        _lost_bar(canvas, lost, top, right)
    _share(canvas, x, every, lost, right)
    _budget(canvas, x(budget_s), budget_s)
    _percentiles(canvas, x, percentiles)
    return canvas.render()


def _edges(low: float, high: float, budget: float, *, is_log: bool) -> list[float]:
    """Edges of the bins, evenly over the axis and so that no bin holds both sides of the budget."""
    if is_log:
        step = math.log(high / low) / (_BINS - 1)
        below = math.ceil(math.log(budget / low) / step)
        return [budget * math.exp(step * (i - below)) for i in range(_BINS + 1)]
    width = (high - low) / (_BINS - 1)
    below = math.ceil((budget - low) / width)
    return [budget + width * (i - below) for i in range(_BINS + 1)]


def _axis(canvas: Canvas, x: Scale, low: float, high: float, *, is_log: bool) -> None:
    if is_log:
        ticks = [tick for tick in _LOG_TICKS if low <= tick <= high]
    else:
        step = tick_step(high - low, 10)
        ticks = [step * i for i in range(int(low / step) + 1, int(high / step) + 1)]
    floor = _TOP + _BARS + _GAP + _SHARE
    reached = -1e9
    for tick in ticks:
        canvas.line(x(tick), _TOP, x(tick), floor, "grid")
        half = LETTER * len(shown := seconds(tick)) / 2
        if x(tick) - half > reached:
            canvas.text(x(tick), floor + 16, shown, "tick", "middle")
            reached = x(tick) + half + LETTER
    canvas.text(_LEFT, floor + 32, "downtime of a VM in one update, virtual time", "tick")


def _count(edges: Sequence[float], finite_s: Mapping[str, Sequence[float]]) -> list[dict[str, int]]:
    """For each bin, how many VMs of each outcome are in it; an edge belongs to the bin before."""
    columns: list[dict[str, int]] = [{} for _ in range(_BINS)]
    for outcome, values in finite_s.items():
        for value in values:
            column = columns[min(max(bisect_left(edges, value) - 1, 0), _BINS - 1)]
            column[outcome] = column.get(outcome, 0) + 1
    return columns


def _bars(
    canvas: Canvas, x: Scale, edges: Sequence[float], columns: list[dict[str, int]], top: int
) -> None:
    for left, right, column in zip(edges, edges[1:], columns, strict=False):
        y = _TOP + _BARS
        for outcome, count in column.items():
            tall = max(1.5, count / top * _BARS)
            y -= tall
            tip = f"{seconds(left)} to {seconds(right)}: {count:,} VMs {outcome}"
            canvas.rect(x(left) + 0.5, y, x(right) - x(left) - 1, tall, f"vm-{outcome}", tip)


def _lost_bar(canvas: Canvas, lost: int, top: int, right: float) -> None:
    base, tall = _TOP + _BARS, max(1.5, lost / top * _BARS)
    canvas.rect(right + 40, base - tall, 20, tall, "vm-lost", f"{lost:,} VMs lost")
    canvas.text(right + 50, base - tall - 5, f"{lost:,}", "value", "middle")
    canvas.text(right + 50, base + 14, "lost", "tick", "middle")


def _count_axis(canvas: Canvas, top: int, right: float) -> None:
    step = max(1.0, tick_step(top, 4))
    y = linear(0, top, _TOP + _BARS, _TOP)
    for i in range(int(top / step) + 1):
        canvas.line(_LEFT, y(i * step), right, y(i * step), "axis" if i == 0 else "grid")
        canvas.text(_LEFT - 8, y(i * step) + 4, f"{i * step:,.0f}", "tick", "end")
    canvas.text(_LEFT - 8, _TOP - 8, "VMs", "tick", "end")


def _share(canvas: Canvas, x: Scale, every: Sequence[float], lost: int, right: float) -> None:
    top = _TOP + _BARS + _GAP
    y = linear(0, 100, top + _SHARE, top)
    for percent in (0, 50, 100):
        canvas.line(_LEFT, y(percent), right, y(percent), "grid" if percent else "axis")
        canvas.text(_LEFT - 8, y(percent) + 4, f"{percent} %", "tick", "end")
    total = len(every) + lost
    points = [(_LEFT, y(0))]
    for i, value in enumerate(every, start=1):
        at = x(value)
        if i == len(every) or x(every[i]) - points[-1][0] >= 0.7:  # no finer than a pixel
            points += [(at, points[-1][1]), (at, y(100 * i / total))]
    canvas.path([*points, (right, points[-1][1])], "share")


def _budget(canvas: Canvas, at: float, budget_s: float) -> None:
    canvas.line(at, _TOP - 6, at, _TOP + _BARS + _GAP + _SHARE, "budget")
    canvas.text(at, _TOP - 12, f"budget {seconds(budget_s)}", "budget-label", "middle")


def _percentiles(canvas: Canvas, x: Scale, percentiles: Mapping[str, float | None]) -> None:
    """Marks on the curve, named to the right of it, or to the left where the next is close."""
    top = _TOP + _BARS + _GAP
    y = linear(0, 100, top + _SHARE, top)
    marks = [(name, value) for name, value in percentiles.items() if value is not None]
    following = [x(value) for _, value in marks[1:]] + [math.inf]
    for (name, value), following_x in zip(marks, following, strict=False):
        at, share = x(value), y(float(name.removeprefix("p")))
        canvas.mark(at, share, "●", "dot", f"{name}: {seconds(value)}")
        if following_x - at < _LABEL_ROOM:
            canvas.text(at - 7, share + 2, name, "value", "end")
        else:
            canvas.text(at + 7, share + 13, name, "value")
