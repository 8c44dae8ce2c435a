"""Where the blackout of each host went: its phases as one stacked bar.

Up to `MOST_BARS` updates have a bar each, the longest first. Of more, the longest few stand alone
and the others are averaged in groups of equal size, again by length, so that the picture of a
hundred thousand hosts shows the ordinary ones and the tail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from fleet.charts.svg import WIDTH, Canvas, fitted, linear, seconds, tick_step
from fleet.results import phase_order
from node.api import BLACKOUT_PHASES

__all__ = ["MOST_BARS", "Bar", "phase_bars", "phases_chart", "style_of_phase"]

MOST_BARS: Final = 48
_ALONE: Final = 8  # of more updates, so many of the longest have a bar each
_GROUPS: Final = 20
_LEFT, _RIGHT = 150.0, WIDTH - 76
_ROW, _TOP = 19.0, 8.0
_BREAK_FROM: Final = 4.0  # a bar is cut off when it is so many times the longest ordinary one


class Bar(Struct, frozen=True):
    """One bar: phases in seconds, of one host update or averaged over several."""

    label: str
    phases_s: dict[str, float]
    note: str = ""

    @property
    def total_s(self) -> float:
        """Its length."""
        return sum(self.phases_s.values())


def style_of_phase(phase: str) -> str:
    """The CSS class that colours a phase."""
    return f"ph-{phase}" if phase in BLACKOUT_PHASES else "ph-other"


def phase_bars(updates: Iterable[tuple[str, dict[str, int]]]) -> list[Bar]:
    """Bars for updates given as (name, phases in ns); those without a blackout have none."""
    single = [
        Bar(name, {phase: phases[phase] / 1e9 for phase in phase_order(phases)})
        for name, phases in updates
        if phases
    ]
    single.sort(key=lambda bar: (-bar.total_s, bar.label))
    if len(single) <= MOST_BARS:
        return single
    alone, rest = single[:_ALONE], single[_ALONE:]
    cuts = [len(rest) * i // _GROUPS for i in range(_GROUPS + 1)]
    return alone + [
        _mean_bar(f"{100 * i // _GROUPS}–{100 * (i + 1) // _GROUPS} %", rest[start:to])
        for i, (start, to) in enumerate(pairwise(cuts))
    ]


def _mean_bar(label: str, bars: Sequence[Bar]) -> Bar:
    """The mean of several: a phase counts as 0 in a bar without it, so that means add up."""
    names = phase_order({phase for bar in bars for phase in bar.phases_s})
    return Bar(
        label,
        {name: sum(bar.phases_s.get(name, 0.0) for bar in bars) / len(bars) for name in names},
        f"mean of {len(bars):,} from {seconds(bars[-1].total_s)} to {seconds(bars[0].total_s)}",
    )


def phases_chart(bars: Sequence[Bar]) -> str:
    """The chart of `bars`, in their order."""
    height = _TOP + _ROW * max(1, len(bars)) + 38
    canvas = Canvas(
        "phases",
        height,
        "Blackout by phase",
        f"{len(bars)} stacked bars, longest first. The table beside it gives count, mean and p99 "
        "of each phase.",
    )
    if not bars:
        canvas.text(WIDTH / 2, height / 2, "No host went through a blackout.", "label", "middle")
        return canvas.render()
    limit = _limit([bar.total_s for bar in bars])
    x = linear(0, limit, _LEFT, _RIGHT)
    floor = _TOP + _ROW * len(bars)
    step = tick_step(limit, 8)
    for i in range(int(limit / step) + 1):
        canvas.line(x(i * step), _TOP, x(i * step), floor + 4, "grid" if i else "axis")
        canvas.text(x(i * step), floor + 20, f"{i * step:g} s", "tick", "middle")
    canvas.text(_LEFT, floor + 36, "blackout of a host, virtual time", "tick")
    for row, bar in enumerate(bars):
        _draw(canvas, bar, _TOP + row * _ROW, limit)
    return canvas.render()


def _limit(totals: Sequence[float]) -> float:
    """Where the axis ends: behind the longest bar that is not out of all proportion."""
    rising = sorted(totals)
    end = rising[len(rising) // 2]
    for total in rising:
        if total > _BREAK_FROM * end:
            break
        end = max(end, total)
    return end * 1.02


def _draw(canvas: Canvas, bar: Bar, y: float, limit: float) -> None:
    x = linear(0, limit, _LEFT, _RIGHT)
    canvas.text(_LEFT - 8, y + 13, fitted(bar.label, _LEFT - 8), "label", "end")
    at = 0.0
    for phase, length in bar.phases_s.items():
        left, right = x(min(at, limit)), x(min(at + length, limit))
        tip = f"{bar.label}, {phase}: {seconds(length)}" + (f" ({bar.note})" if bar.note else "")
        if right - left > 0.05:
            gap = 0.6 if right - left > 3 else 0.0
            canvas.rect(left, y + 2, right - left - gap, _ROW - 5, style_of_phase(phase), tip)
        at += length
    end = x(min(at, limit))
    if at > limit:
        canvas.path(
            [(end - 12, y), (end - 8, y), (end - 13, y + _ROW - 1), (end - 17, y + _ROW - 1)],
            "break",
            closed=True,
        )
    canvas.text(end + 6, y + 13, seconds(at), "value")
