"""How long VMs were down: a histogram over its cumulative share, with the budget through both.

The axis is logarithmic as soon as the longest downtime is several times the shortest, because a
restarted VM is down for minutes where a preserved one is for seconds. Lost VMs never come back,
have no place on the axis and stand beyond its end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

from fleet.charts.svg import WIDTH, Canvas, Scale, linear, log, seconds, tick_step

__all__ = ["downtime_chart"]

_BINS: Final = 48
_LEFT, _RIGHT = 56.0, WIDTH - 24
_TOP, _BARS, _GAP, _SHARE = 44.0, 150.0, 18.0, 96.0
_LOST_WIDTH: Final = 84.0
_LOG_TICKS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60),
    *(120, 300, 600, 1200, 1800, 3600, 7200),
)
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
    low = low if is_log else max(0.0, low)
    x = (log if is_log else linear)(low, high, _LEFT, right)
    ratio = high / low if is_log else 1.0
    edges = [
        low * ratio ** (i / _BINS) if is_log else low + (high - low) * i / _BINS
        for i in range(_BINS + 1)
    ]
    _axis(canvas, x, low, high, is_log=is_log)
    top = _bars(canvas, x, edges, finite_s, lost)
    _count_axis(canvas, top, right)
    _share(canvas, x, every, lost, right)
    _budget(canvas, x(budget_s), budget_s)
    _percentiles(canvas, x, percentiles)
    return canvas.render()


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
        if x(tick) - reached > 46:
            canvas.text(x(tick), floor + 16, seconds(tick), "tick", "middle")
            reached = x(tick)
    canvas.text(_LEFT, floor + 32, "downtime of a VM in one update, virtual time", "tick")


def _bars(
    canvas: Canvas,
    x: Scale,
    edges: Sequence[float],
    finite_s: Mapping[str, Sequence[float]],
    lost: int,
) -> int:
    """Draw the stacked bars; return what the top of the count axis stands for."""
    counts = {outcome: [0] * _BINS for outcome in finite_s}
    for outcome, values in finite_s.items():
        for value in values:
            counts[outcome][min(bisect_right(edges, value) - 1, _BINS - 1)] += 1
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    top: int = max(*totals, lost)
    base = _TOP + _BARS
    for i in range(_BINS):
        y = base
        for outcome, column in counts.items():
            if not column[i]:
                continue
            tall = max(1.5, column[i] / top * _BARS)
            y -= tall
            tip = f"{seconds(edges[i])} to {seconds(edges[i + 1])}: {column[i]} VMs {outcome}"
            left = x(edges[i])
            canvas.rect(left + 0.5, y, x(edges[i + 1]) - left - 1, tall, f"vm-{outcome}", tip)
    if lost:
        right = x(edges[-1])
        tall = max(1.5, lost / top * _BARS)
        canvas.rect(right + 40, base - tall, 20, tall, "vm-lost", f"{lost} VMs lost")
        canvas.text(right + 50, base - tall - 5, str(lost), "value", "middle")
        canvas.text(right + 50, base + 14, "lost", "tick", "middle")
    return top


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
    """Marks on the share curve, their names above the histogram where there is room."""
    top = _TOP + _BARS + _GAP
    y = linear(0, 100, top + _SHARE, top)
    for name, value in percentiles.items():
        if value is None:
            continue
        share = y(float(name.removeprefix("p")))
        canvas.mark(x(value), share, "●", "dot", f"{name}: {seconds(value)}")
        canvas.text(x(value) + 7, share + 12, name, "value")
