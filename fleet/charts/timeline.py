"""The rollout over time: who was updated when, in which wave, and what went wrong there.

A small fleet is shown host by host, grouped by rack: a light bar from the start of an update to
its end, in it the blackout, in the colour of how it ended. A large one is shown as the number of
hosts in each state over time and, if its racks can be told apart, the share of each rack's hosts
that was in blackout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from fleet.api import RunRecord
from fleet.charts.svg import (
    WIDTH,
    Canvas,
    clock,
    clock_step,
    fitted,
    linear,
    seconds,
    tick_step,
)
from fleet.charts.time_axis import StretchKind, TimeAxis
from node.api import HostOutcome, HostSpec, UpdateResult, VmOutcome

__all__ = ["MOST_ROWS", "timeline_chart"]

MOST_ROWS: Final = 72
_LEFT, _RIGHT, _TOP = 112.0, WIDTH - 16, 40.0
_ROW, _RACK_GAP = 15.0, 9.0
_AREA: Final = 230.0
_COLUMNS: Final = 280
_DIGIT: Final = 7.0  # width of a character on the clock
_STATES: Final = ("updated", "rolled_back", "failed", "updating", "pending")


def timeline_chart(record: RunRecord, domain: str) -> str:
    """The chart of `record`, hosts grouped by the failure domain `domain` ("rack")."""
    hosts = record.scenario.hosts
    if len(hosts) <= MOST_ROWS:
        return _by_host(record, domain)
    values = sorted({host.domains.get(domain, "") for host in hosts}, key=_natural)
    return _by_state(record, domain, values if len(values) <= MOST_ROWS else [])


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts r2 before r10."""
    parts = groupby(name, str.isdecimal)
    chunks = ((is_number, "".join(chars)) for is_number, chars in parts)
    return [(0, int(text), "") if number else (1, 0, text) for number, text in chunks]


def _by_host(record: RunRecord, domain: str) -> str:
    racks: dict[str, list[HostSpec]] = {}
    for host in record.scenario.hosts:
        racks.setdefault(host.domains.get(domain, ""), []).append(host)
    rows = len(record.scenario.hosts)
    height = _TOP + rows * _ROW + max(0, len(racks) - 1) * _RACK_GAP + 42
    canvas = _canvas(record, height, f"one row for each of {rows} hosts, grouped by {domain}")
    axis = TimeAxis(record.waves, record.results, record.virtual_ns, _LEFT, _RIGHT)
    _waves(canvas, axis, height - 42)
    results: dict[str, list[UpdateResult]] = {}
    for result in record.results:
        results.setdefault(result.host, []).append(result)
    y = _TOP
    for name in sorted(racks, key=_natural):
        for host in sorted(racks[name], key=lambda host: _natural(host.name)):
            canvas.line(_LEFT, y + _ROW / 2, _RIGHT, y + _ROW / 2, "rail")
            canvas.text(_LEFT - 8, y + _ROW - 3.5, fitted(host.name, _LEFT - 8), "label", "end")
            updates = results.get(host.name, [])
            for result in updates:
                _update(canvas, axis, y, result)
            if not updates:
                canvas.text(_RIGHT - 4, y + _ROW - 3.5, "not touched", "tick", "end")
            y += _ROW
        y += _RACK_GAP
    return canvas.render()


def _update(canvas: Canvas, axis: TimeAxis, y: float, result: UpdateResult) -> None:
    start, end = axis(result.start_ns / 1e9), axis(result.end_ns / 1e9)
    length = seconds((result.end_ns - result.start_ns) / 1e9)
    tip = f"{result.host}: {_said(result.outcome)} at {clock(result.end_ns / 1e9)} after {length}"
    if result.reason:
        tip += f"; {result.reason}"
    if result.detail:
        tip += f": {result.detail}"
    canvas.rect(start, y + 2, max(2.0, end - start), _ROW - 4, "update", tip)
    if result.blackout_start_ns is not None:
        dark = axis(result.blackout_start_ns / 1e9)
        light = end if result.blackout_end_ns is None else axis(result.blackout_end_ns / 1e9)
        style = f"host-{result.outcome}"
        canvas.rect(dark, y + 2, max(1.5, light - dark), _ROW - 4, style, tip)
    sign, style = _sign(result)
    if sign:
        # Beside the bar, at the chart's right end in its margin.
        canvas.mark(end + 8, y + _ROW / 2, sign, style, tip)


def _sign(result: UpdateResult) -> tuple[str, str]:
    """What stands beside the bar of an update that did not just go well."""
    if any(vm.outcome is VmOutcome.LOST for vm in result.vms):
        return "✕", "sign-bad"
    if result.outcome is not HostOutcome.UPDATED:
        return "▲", "sign-bad"
    if result.reason == "freeze-retried":
        return "↻", "sign-warn"
    if result.reason or any(vm.outcome is VmOutcome.RESTARTED for vm in result.vms):
        return "▲", "sign-warn"
    return "", ""


def _said(outcome: str) -> str:
    return outcome.replace("_", " ")


def _by_state(record: RunRecord, domain: str, racks: Sequence[str]) -> str:
    strips = len(racks) * 8.0 + 30 if racks else 0.0
    height = _TOP + _AREA + strips + 42
    total = len(record.scenario.hosts)
    canvas = _canvas(record, height, f"{total} hosts by state over time")
    axis = TimeAxis(record.waves, record.results, record.virtual_ns, _LEFT, _RIGHT)
    instants = _instants(axis)
    counts = _states_at(record, instants)
    y = linear(0, total, _TOP + _AREA, _TOP)
    floor = [0] * len(instants)
    for state in _STATES:
        ceiling = [low + count for low, count in zip(floor, counts[state], strict=True)]
        if max(counts[state]):
            edge = [(axis(t), y(c)) for t, c in zip(instants, ceiling, strict=True)]
            back = [(axis(t), y(c)) for t, c in zip(instants, floor, strict=True)]
            canvas.path([*edge, *reversed(back)], f"area-{state}", closed=True)
        floor = ceiling
    step = max(1.0, tick_step(total, 5))
    for i in range(int(total / step) + 1):
        canvas.line(_LEFT, y(i * step), _RIGHT, y(i * step), "grid")
        canvas.text(_LEFT - 8, y(i * step) + 4, f"{i * step:,.0f}", "tick", "end")
    canvas.text(_LEFT - 8, _TOP - 8, "hosts", "tick", "end")
    _waves(canvas, axis, height - 42, filled=False)
    if racks:
        _strips(canvas, axis, record, domain, racks)
    return canvas.render()


def _instants(axis: TimeAxis) -> list[float]:
    """Instants that lie evenly on the drawn axis, not in time."""
    out: list[float] = []
    for stretch in axis.stretches:
        share = (stretch.right - stretch.left) / (_RIGHT - _LEFT)
        columns = max(2, round(_COLUMNS * share))
        span = stretch.end_s - stretch.start_s
        out += [stretch.start_s + span * i / columns for i in range(columns)]
    return [*out, axis.stretches[-1].end_s]


def _states_at(record: RunRecord, instants: Sequence[float]) -> dict[str, list[int]]:
    """How many hosts were in each state at each instant; untouched ones are pending."""
    moves: list[tuple[float, str, int]] = []
    for result in record.results:
        start, end = result.start_ns / 1e9, result.end_ns / 1e9
        moves += [(start, "pending", -1), (start, "updating", 1)]
        moves += [(end, "updating", -1), (end, str(result.outcome), 1)]
    moves.sort(key=lambda move: move[0])
    now = Counter(pending=len(record.scenario.hosts))
    counts: dict[str, list[int]] = {state: [] for state in _STATES}
    done = 0
    for instant in instants:
        while done < len(moves) and moves[done][0] <= instant:
            now[moves[done][1]] += moves[done][2]
            done += 1
        for state in _STATES:
            counts[state].append(max(0, now[state]))
    return counts


def _strips(
    canvas: Canvas, axis: TimeAxis, record: RunRecord, domain: str, racks: Sequence[str]
) -> None:
    """One thin row a rack, the darker the more of its hosts were in blackout."""
    rack_of = {host.name: host.domains.get(domain, "") for host in record.scenario.hosts}
    size = Counter(rack_of.values())
    width = (_RIGHT - _LEFT) / _COLUMNS
    dark: Counter[tuple[str, int]] = Counter()
    for result in record.results:
        if result.blackout_start_ns is None:
            continue
        end_ns = result.blackout_end_ns or result.end_ns
        first = int((axis(result.blackout_start_ns / 1e9) - _LEFT) / width)
        last = int((axis(end_ns / 1e9) - _LEFT) / width)
        for column in range(first, min(last, _COLUMNS - 1) + 1):
            dark[rack_of[result.host], column] += 1
    top = _TOP + _AREA + 26
    canvas.text(_LEFT, top - 6, f"hosts in blackout, one row a {domain}", "tick")
    for row, rack in enumerate(racks):
        if row % 4 == 0:
            canvas.text(_LEFT - 8, top + row * 8 + 8, fitted(rack, _LEFT - 8), "tick", "end")
        levels = [min(4, -(-4 * dark[rack, i] // size[rack])) for i in range(_COLUMNS)]
        at = _LEFT
        for level, run in groupby(levels):
            wide = width * len(list(run))
            if level:
                canvas.rect(at, top + row * 8, wide, 7, f"heat-{level}")
            at += wide


def _canvas(record: RunRecord, height: float, what: str) -> Canvas:
    end = clock(record.virtual_ns / 1e9)
    return Canvas(
        "timeline",
        height,
        "Rollout over time",
        f"The rollout in virtual time from 0:00 to {end}, {what}. Soaks and waits are shortened.",
    )


def _waves(canvas: Canvas, axis: TimeAxis, floor: float, *, filled: bool = True) -> None:
    """Bands of the waves with their names above, soaks hatched, the clock below."""
    canvas.raw(
        '<defs><pattern id="soak" width="6" height="6" patternUnits="userSpaceOnUse"'
        ' patternTransform="rotate(45)"><line class="hatch" x1="0" y1="0" x2="0" y2="6"/>'
        '</pattern><pattern id="wait" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<circle class="dots" cx="3" cy="3" r="1"/></pattern></defs>'
    )
    name_end = clock_end = -1e9
    for stretch in axis.stretches:
        wide = stretch.right - stretch.left
        if stretch.kind is not StretchKind.ACTIVE:
            above = 4 if filled else 0
            style = str(stretch.kind)
            canvas.rect(stretch.left, _TOP - above, wide, floor - _TOP + above, style)
            if wide > 40:
                length = seconds(round(stretch.end_s - stretch.start_s))
                middle = stretch.left + wide / 2
                canvas.text(middle, floor + 30, stretch.kind, "tick", "middle")
                canvas.text(middle, floor + 42, length, "tick", "middle")
            continue
        if filled:
            canvas.rect(stretch.left, _TOP - 4, wide, floor - _TOP + 4, "wave")
        if stretch.wave:
            canvas.line(stretch.left, _TOP - 10, stretch.left, floor + 4, "wave-edge")
            if stretch.left > name_end:
                canvas.text(stretch.left + 1, _TOP - 14, stretch.wave, "wave-name")
                name_end = stretch.left + 8 * len(stretch.wave) + 6
        step = clock_step(stretch.end_s - stretch.start_s, max(1, int(wide / 60)))
        first, last = int(stretch.start_s // step) + 1, int(stretch.end_s // step)
        for instant in (stretch.start_s, *(step * i for i in range(first, last + 1))):
            at = axis(instant)
            canvas.line(at, floor, at, floor + 4, "axis")
            half = _DIGIT * len(shown := clock(instant)) / 2
            if at - half > clock_end:
                canvas.text(at, floor + 16, shown, "tick", "middle")
                clock_end = at + half + _DIGIT
