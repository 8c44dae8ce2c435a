"""The time axis of a rollout: its soaks shortened, because nothing happens in them.

A canary may soak for ten minutes after an update of twenty seconds. Drawn to scale, the updates
would be hairlines between long empty stretches; here a soak has the width of its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from fleet.api import WaveRecord

__all__ = ["Stretch", "TimeAxis"]

_SOAK_WIDTH: Final = 62.0


class Stretch(Struct, frozen=True):
    """A part of the axis that is drawn at one scale; instants in seconds."""

    start_s: float
    end_s: float
    left: float
    right: float
    is_soak: bool
    name: str  # of the wave


class TimeAxis:
    """Maps virtual seconds to pixels between `left` and `right`."""

    def __init__(self, waves: Sequence[WaveRecord], end_ns: int, left: float, right: float) -> None:
        spans = _spans(waves, end_ns)
        soaks = sum(1 for *_, is_soak, _ in spans if is_soak)
        soak_width = min(_SOAK_WIDTH, (right - left) * 0.4 / soaks) if soaks else 0.0
        active_s = sum(end - start for start, end, is_soak, _ in spans if not is_soak) or 1.0
        scale = (right - left - soaks * soak_width) / active_s
        stretches = []
        at = left
        for start, end, is_soak, name in spans:
            width = soak_width if is_soak else (end - start) * scale
            stretches.append(Stretch(start, end, at, at + width, is_soak, name))
            at += width
        self.stretches = tuple(stretches)

    def __call__(self, value_s: float) -> float:
        """Where an instant lies; the axis' ends for those beyond them."""
        for stretch in self.stretches:
            if value_s <= stretch.end_s:
                span = (stretch.end_s - stretch.start_s) or 1.0
                share = max(0.0, (value_s - stretch.start_s) / span)
                return stretch.left + share * (stretch.right - stretch.left)
        return self.stretches[-1].right


def _spans(waves: Sequence[WaveRecord], end_ns: int) -> list[tuple[float, float, bool, str]]:
    """(start, end, is soak, wave) of the whole rollout without gaps, in seconds."""
    spans: list[tuple[float, float, bool, str]] = []
    at, end = 0, max(end_ns, 1)
    for wave in waves:
        if wave.start_ns is None:
            continue
        done = end if wave.end_ns is None else wave.end_ns
        spans.append((at / 1e9, done / 1e9, False, wave.name))
        at = done
        if wave.soak_end_ns is not None and wave.soak_end_ns > done:
            spans.append((done / 1e9, wave.soak_end_ns / 1e9, True, wave.name))
            at = wave.soak_end_ns
    if at < end or not spans:
        spans.append((at / 1e9, end / 1e9, False, ""))
    return spans
