"""Charts of a comparison of designs: one figure of each over hosts that differ in one thing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from fleet.charts.svg import WIDTH, Canvas, linear, log

__all__ = ["Line", "line_chart"]

_LEFT, _RIGHT, _TOP, _TALL = 92.0, WIDTH - 190, 30.0, 250.0
_GAP: Final = 15.0  # between two names at the right


class Line(Struct, frozen=True):
    """One design: its name and (where, how much) from left to right."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(
    name: str,
    titles: tuple[str, str],
    lines: Sequence[Line],
    show_x: Callable[[float], str],
    show_y: Callable[[float], str],
    *,
    logarithmic: bool = False,
) -> str:
    """`titles` are those of the axis across and the axis up; lines of equal height share a name."""
    canvas = Canvas(
        name,
        _TOP + _TALL + 52,
        f"{titles[1]} over {titles[0]}",
        f"{len(lines)} designs; designs.json has the figures.",
    )
    values = [y for line in lines for _, y in line.points if not logarithmic or y > 0]
    places = sorted({x for line in lines for x, _ in line.points})
    if not values or len(places) < 2:
        canvas.text(WIDTH / 2, _TALL / 2, "Nothing to be drawn.", "label", "middle")
        return canvas.render()
    floor = _TOP + _TALL
    x = log(places[0], places[-1], _LEFT, _RIGHT)
    top = max(values) * 1.05
    low = min(values) / 1.5 if logarithmic else 0.0
    y = log(low, top * 1.4, floor, _TOP) if logarithmic else linear(low, top, floor, _TOP)
    for place in places:
        canvas.line(x(place), _TOP, x(place), floor, "grid")
        canvas.text(x(place), floor + 17, show_x(place), "tick", "middle")
    for tick in _ticks(low, top, logarithmic):
        canvas.line(_LEFT, y(tick), _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 8, y(tick) + 4, show_y(tick), "tick", "end")
    canvas.text(_RIGHT, floor + 38, f"{titles[0]} →", "tick", "end")
    canvas.text(_LEFT - 76, _TOP - 12, f"↑ {titles[1]}", "tick")
    ends: list[tuple[float, str, str]] = []
    for nr, line in enumerate(lines):
        spots = [
            (x(at), y(value if value > 0 or not logarithmic else low)) for at, value in line.points
        ]
        canvas.path(spots, f"design d{nr % 7}")
        for (at, value), (across, up) in zip(line.points, spots, strict=True):
            tip = f"{line.name}, {show_x(at)}: {show_y(value)}"
            canvas.rect(across - 3.5, up - 3.5, 7, 7, f"mark d{nr % 7}", tip)
        ends.append((spots[-1][1], line.name, f"mark d{nr % 7}"))
    _names(canvas, ends)
    return canvas.render()


def _names(canvas: Canvas, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right with their colours, moved apart where they would lie on one another."""
    ordered = sorted(ends)
    places: list[float] = []
    for up, _, _ in ordered:
        places.append(max([up + 4, *(place + _GAP for place in places[-1:])]))
    lowest = _TOP + _TALL + 4
    for nr in reversed(range(len(places))):
        places[nr] = min(places[nr], lowest)
        lowest = places[nr] - _GAP
    for place, (_, name, style) in zip(places, ordered, strict=True):
        canvas.rect(_RIGHT + 14, place - 8, 8, 8, style)
        canvas.text(_RIGHT + 27, place, name, "value")


def _ticks(low: float, top: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        powers = range(math.floor(math.log2(low)), math.ceil(math.log2(top)) + 1)
        every = max(1, len(powers) // 6)
        return [2.0**power for power in powers[::every] if low <= 2.0**power <= top * 1.4]
    step = 10 ** math.floor(math.log10(top / 2)) if top > 0 else 1.0
    while top / step > 6:
        step *= 2 if top / step < 12 else 5
    return [nr * step for nr in range(int(top / step) + 1)]
