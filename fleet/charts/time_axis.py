"""The time axis of a rollout, shortened where nothing happens.

A canary may soak for ten minutes after an update of ten seconds, and one host's cold boot may keep
a wave waiting for a quarter of an hour. Drawn to scale, every update would be a hairline between
long empty stretches; here a soak and a wait have the width of their label, and say how long
they are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final

from msgspec import Struct

from fleet.api import WaveRecord
from node.api import UpdateResult

__all__ = ["Stretch", "StretchKind", "TimeAxis"]

_SHORT_WIDTH: Final = 62.0  # of a stretch that is shortened
_MOST_SHORT: Final = 0.45  # share of the axis that shortened stretches may have together
_WAIT_FROM_S: Final = 60.0  # shorter waits are drawn to scale
_KEPT_S: Final = 5.0  # of a wait, so much on either side stays to scale


class StretchKind(StrEnum):
    """What a part of the axis stands for."""

    ACTIVE = "active"  # to scale
    WAIT = "wait"  # hosts are updating, none of them starts or ends: shortened
    SOAK = "soak"  # shortened


class Stretch(Struct, frozen=True):
    """A part of the axis that is drawn at one scale; instants in seconds."""

    start_s: float
    end_s: float
    left: float
    right: float
    kind: StretchKind
    wave: str  # its wave's name where a wave begins with it, else ""


class _Span(Struct, frozen=True):
    start_s: float
    end_s: float
    kind: StretchKind
    wave: str


class TimeAxis:
    """Maps virtual seconds to pixels between `left` and `right`."""

    def __init__(
        self,
        waves: Sequence[WaveRecord],
        results: Sequence[UpdateResult],
        end_ns: int,
        left: float,
        right: float,
    ) -> None:
        events = sorted({at / 1e9 for r in results for at in (r.start_ns, r.end_ns)})
        spans = [part for span in _spans(waves, end_ns) for part in _cut(span, events)]
        short = sum(1 for span in spans if span.kind is not StretchKind.ACTIVE)
        width = min(_SHORT_WIDTH, (right - left) * _MOST_SHORT / short) if short else 0.0
        active_s = sum(s.end_s - s.start_s for s in spans if s.kind is StretchKind.ACTIVE) or 1.0
        scale = (right - left - short * width) / active_s
        stretches = []
        at = left
        for span in spans:
            is_active = span.kind is StretchKind.ACTIVE
            wide = (span.end_s - span.start_s) * scale if is_active else width
            stretches.append(Stretch(span.start_s, span.end_s, at, at + wide, span.kind, span.wave))
            at += wide
        self.stretches = tuple(stretches)
        self._ends = [stretch.end_s for stretch in stretches]

    def __call__(self, value_s: float) -> float:
        """Where an instant lies; the axis' ends for those beyond them."""
        index = min(bisect_left(self._ends, value_s), len(self.stretches) - 1)
        stretch = self.stretches[index]
        share = (value_s - stretch.start_s) / ((stretch.end_s - stretch.start_s) or 1.0)
        return stretch.left + min(max(share, 0.0), 1.0) * (stretch.right - stretch.left)


def _spans(waves: Sequence[WaveRecord], end_ns: int) -> Iterator[_Span]:
    """The whole rollout without gaps: updates and soak of each wave."""
    at, end = 0, max(end_ns, 1)
    for wave in waves:
        if wave.start_ns is None:
            continue
        done = end if wave.end_ns is None else wave.end_ns
        yield _Span(at / 1e9, done / 1e9, StretchKind.ACTIVE, wave.name)
        at = done
        if wave.soak_end_ns is not None and wave.soak_end_ns > done:
            yield _Span(done / 1e9, wave.soak_end_ns / 1e9, StretchKind.SOAK, "")
            at = wave.soak_end_ns
    if at < end or at == 0:
        yield _Span(at / 1e9, end / 1e9, StretchKind.ACTIVE, "")


def _cut(span: _Span, events: Sequence[float]) -> Iterator[_Span]:
    """A span with the long waits between `events` cut out of it."""
    if span.kind is not StretchKind.ACTIVE:
        yield span
        return
    inside = events[bisect_right(events, span.start_s) : bisect_left(events, span.end_s)]
    wave, at = span.wave, span.start_s
    for start, end in pairwise((span.start_s, *inside, span.end_s)):
        if end - start < _WAIT_FROM_S:
            continue
        yield _Span(at, start + _KEPT_S, StretchKind.ACTIVE, wave)
        yield _Span(start + _KEPT_S, end - _KEPT_S, StretchKind.WAIT, "")
        wave, at = "", end - _KEPT_S
    yield _Span(at, span.end_s, StretchKind.ACTIVE, wave)
