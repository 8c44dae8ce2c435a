"""SVG by hand: a canvas, scales and ticks, and nothing that a report does not need.

Charts carry no colours of their own: shapes name a CSS class and the page's style sheet gives it
a colour for light and for dark. Numbers are rounded to a tenth of a pixel, which keeps a chart
of a hundred thousand hosts as small as one of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, Literal

__all__ = [
    "LETTER",
    "WIDTH",
    "Canvas",
    "Scale",
    "clock",
    "clock_step",
    "fitted",
    "linear",
    "log",
    "seconds",
    "tick_step",
]

#: Width of every chart in user units; the page scales it to what there is.
WIDTH: Final = 960.0

#: Width of a letter in a chart's font, about.
LETTER: Final = 6.7

_SPACE: Final = "\N{NO-BREAK SPACE}"

Scale = Callable[[float], float]
Anchor = Literal["start", "middle", "end"]


class Canvas:
    """An SVG image that grows by the shapes drawn on it."""

    def __init__(self, name: str, height: float, title: str, description: str) -> None:
        self._open = (
            f'<svg viewBox="0 0 {WIDTH:g} {_n(height)}" role="img"'
            f' aria-labelledby="{name}-title {name}-desc">'
            f'<title id="{name}-title">{escape(title)}</title>'
            f'<desc id="{name}-desc">{escape(description)}</desc>'
        )
        self._shapes: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, tip: str = ""
    ) -> None:
        """A rectangle of CSS class `style`; `tip` is shown by a pointer that rests on it."""
        self._add(
            f'rect class="{style}" x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}"'
            f' height="{_n(max(height, 0))}"',
            "rect",
            tip,
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self._shapes.append(
            f'<line class="{style}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'
        )

    def path(
        self, points: Sequence[tuple[float, float]], style: str, *, closed: bool = False
    ) -> None:
        """Straight lines through `points`."""
        if points:
            steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
            end = "Z" if closed else ""
            self._shapes.append(f'<path class="{style}" d="M{steps}{end}"/>')

    def text(
        self, x: float, y: float, text: str, style: str = "label", anchor: Anchor = "start"
    ) -> None:
        """One line of text whose baseline is at `y`."""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._shapes.append(
            f'<text class="{style}" x="{_n(x)}" y="{_n(y)}"{where}>{escape(text)}</text>'
        )

    def mark(self, x: float, y: float, sign: str, style: str, tip: str = "") -> None:
        """A sign (one character) centred on a point."""
        self._shapes.append(
            f'<text class="{style}" x="{_n(x)}" y="{_n(y)}" text-anchor="middle"'
            f' dominant-baseline="central">{escape(sign)}{_tip(tip)}</text>'
        )

    def raw(self, markup: str) -> None:
        """Markup that the methods above do not cover (a pattern)."""
        self._shapes.append(markup)

    def render(self) -> str:
        """The whole image."""
        return self._open + "".join(self._shapes) + "</svg>"

    def _add(self, start: str, tag: str, tip: str) -> None:
        self._shapes.append(f"<{start}>{_tip(tip)}</{tag}>" if tip else f"<{start}/>")


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _n(value: float) -> str:
    return f"{round(value, 1):g}"


def fitted(name: str, width: float) -> str:
    """As much of a name as there is room for: its ends, which tell names of a fleet apart."""
    letters = max(3, int(width / LETTER))
    if len(name) <= letters:
        return name
    start = (letters - 1) // 2
    return f"{name[:start]}…{name[len(name) - (letters - 1 - start) :]}"


def linear(low: float, high: float, left: float, right: float) -> Scale:
    """Maps [low, high] to [left, right]."""
    span = (high - low) or 1.0
    return lambda value: left + (value - low) / span * (right - left)


def log(low: float, high: float, left: float, right: float) -> Scale:
    """Maps [low, high] to [left, right] on a logarithmic axis; `low` is positive."""
    inner = linear(math.log(low), math.log(high), left, right)
    return lambda value: inner(math.log(max(value, low)))


def tick_step(span: float, most: int) -> float:
    """The smallest step of the kind 1, 2, 5 times a power of ten with at most `most` in `span`."""
    rough = span / most if span > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def clock_step(span_s: float, most: int) -> float:
    """As `tick_step`, for a clock: 30 s, 1 min, 5 min, ... and whole days beyond a day."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
    fitting = (float(step) for step in steps if span_s / step <= most)
    return next(fitting, 86400.0 * max(1, math.ceil(span_s / 86400 / most)))


def seconds(value_s: float) -> str:
    """A duration as people write it: "15 µs", "38 ms", "4.2 s", "14 s", "7 min 3 s"."""
    if value_s < 0.001:
        return f"{value_s * 1e6:.3g}{_SPACE}µs"
    if value_s < 1:
        return f"{value_s * 1000:.3g}{_SPACE}ms"
    if value_s < 10:
        return f"{value_s:.2g}{_SPACE}s"
    if value_s < 120:
        return f"{value_s:.1f}".removesuffix(".0") + f"{_SPACE}s"
    whole = round(value_s)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return _SPACE.join(f"{count}{_SPACE}{unit}" for count, unit in parts if count)


def clock(value_s: float) -> str:
    """A virtual instant in whole seconds that have passed: "0:00", "12:05", "1:02:30"."""
    whole = int(value_s)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
