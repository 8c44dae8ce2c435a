"""The cells of a sweep: grids, and samples that fill their ranges evenly."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import correlation

import pytest
from msgspec.structs import replace

from fleet.sweep.cells import cells_of, halton
from fleet.sweep.plan import Range
from tests.fleet.sweep_plans import PLAN, RANGED


def test_a_grid_has_every_combination_in_order() -> None:
    labels = ["".join(f"{choice.label} " for choice in cell.choices) for cell in cells_of(PLAN)]
    assert labels == ["1 10 ", "1 20 ", "1 30 ", "2 10 ", "2 20 ", "2 30 "]
    assert cells_of(PLAN)[4].overrides == ("a=2", "b=20")


@pytest.mark.parametrize("method", ["random", "halton"])
def test_samples_repeat_stay_in_range_and_fill_it(method: str) -> None:
    plan = replace(RANGED, method=method)
    cells = cells_of(plan)
    assert cells == cells_of(plan)
    assert cells != cells_of(replace(plan, sampling_seed=77))
    assert len(cells) == 64
    rates = [cell.choices[0].number or 0.0 for cell in cells]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert 20 <= sum(rate < 0.01 for rate in rates) <= 44, "half of them, on a logarithmic scale"
    assert {cell.choices[1].label for cell in cells} >= {"2", "8", "15"}
    assert all(cell.overrides[2].startswith('rollout.soak="') for cell in cells)
    assert {cell.choices[3].label for cell in cells} == {"10", "20"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halton_is_even(seed: int) -> None:
    for base in (2, 3, 5):
        values = halton(200, base, seed, axis=base)
        gaps = [high - low for low, high in pairwise(sorted(values))]
        assert max(gaps) < base / 200 * 2, base
        assert sorted(int(value * base) for value in values[:base]) == list(range(base))
        assert values[:50] == halton(50, base, seed, axis=base), "more samples move none"


def test_parameters_are_not_varied_as_one() -> None:
    """Plain Halton sequences of large bases rise together: bases 11 and 13 ten times over."""
    axes = [halton(12, base, 1, axis) for axis, base in enumerate((2, 3, 5, 7, 11, 13, 17, 19))]
    assert all(
        abs(correlation(one, other)) < 0.95 for one in axes for other in axes if one != other
    )


def test_another_seed_of_the_sampling_gives_other_cells() -> None:
    plan = replace(RANGED, method="halton")
    first, second = (
        {cell.key for cell in cells_of(replace(plan, sampling_seed=seed))} for seed in (1, 2)
    )
    assert len(first & second) <= 2


@pytest.mark.parametrize("log", [False, True])
def test_whole_numbers_of_a_range_are_sampled_alike_its_ends_too(log: bool) -> None:
    spread = Range("rollout.wave_size", 1, 4, log=log, whole=True)
    found = Counter(spread.sample((nr + 0.5) / 1000).label for nr in range(1000))
    expected = [431, 252, 179, 138] if log else [250] * 4  # log(2), log(3/2), log(4/3), log(5/4)
    assert [found[label] for label in "1234"] == pytest.approx(expected, abs=1)
