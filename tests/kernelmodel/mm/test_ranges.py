"""Ranges behave as the plain sets and dicts of integers that they stand for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kernelmodel.mm.ranges import RangeMap, RangeSet

POINTS = range(48)
SPAN = st.tuples(st.integers(0, 47), st.integers(0, 47))
SET_STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), SPAN), max_size=30)
MAP_STEPS = st.lists(st.tuples(st.sampled_from("abc-"), SPAN), max_size=30)


def build(steps: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    ranges, model = RangeSet(), set[int]()
    for step, (start, end) in steps:
        if step == "add":
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
    return ranges, model


def points(ranges: RangeSet) -> list[int]:
    return [point for start, end in ranges for point in range(start, end)]


@given(SET_STEPS)
def test_a_range_set_holds_what_a_set_would(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, model = build(steps)
    assert points(ranges) == sorted(model)
    assert ranges.total == len(model)
    assert bool(ranges) == bool(model)
    assert [point in ranges for point in POINTS] == [point in model for point in POINTS]


@given(SET_STEPS)
def test_ranges_are_never_empty_nor_adjacent(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges = list(build(steps)[0])
    assert all(start < end for start, end in ranges)
    assert all(left[1] < right[0] for left, right in pairwise(ranges))


@given(SET_STEPS)
def test_how_it_was_built_does_not_matter(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, model = build(steps)
    assert ranges == RangeSet((point, point + 1) for point in sorted(model, reverse=True))
    assert list(reversed(ranges)) == list(ranges)[::-1]


@given(SET_STEPS, SPAN)
def test_questions_about_a_span(
    steps: list[tuple[str, tuple[int, int]]], span: tuple[int, int]
) -> None:
    ranges, model = build(steps)
    asked = set(range(*span))
    inside = [p for low, high in ranges.within(*span) for p in range(low, high)]
    outside = [p for low, high in ranges.gaps(*span) for p in range(low, high)]
    assert inside == sorted(asked & model)
    assert outside == sorted(asked - model)
    if asked:
        assert ranges.contains(*span) == (asked <= model)
        assert ranges.overlaps(*span) == bool(asked & model)
        assert ranges.take(*span) == (asked <= model)
        assert points(ranges) == sorted(model - asked if asked <= model else model)


def test_a_copy_is_independent() -> None:
    ranges = RangeSet([(0, 4)])
    copy = ranges.copy()
    copy.add(10, 12)
    assert list(ranges) == [(0, 4)]
    assert list(copy) == [(0, 4), (10, 12)]


@given(MAP_STEPS)
def test_a_range_map_holds_what_a_dict_would(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, model = RangeMap[str](), dict[int, str]()
    for value, (start, end) in steps:
        if value == "-":
            ranges.clear(start, end)
        else:
            ranges.put(start, end, value)
        for point in range(start, end):
            model.pop(point, None)
            if value != "-":
                model[point] = value
    held = {point: value for low, high, value in ranges for point in range(low, high)}
    assert held == model
    assert [low for low, _, _ in ranges] == sorted(low for low, _, _ in ranges)
    for point in POINTS:
        got = ranges.get(point)
        assert (got[2] if got else None) == model.get(point)
    cut = {point: value for low, high, value in ranges.within(8, 24) for point in range(low, high)}
    assert cut == {point: value for point, value in model.items() if 8 <= point < 24}
