"""What `[costs]` may hold, and that each figure that cannot be is named, all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.scenario import BadInput, load_scenario

SMALL = Path(__file__).parents[2] / "examples" / "small.toml"

UNFIT = [
    # --set costs., what is said
    ("vm_pause.base_ns=1.5e6", "1500000.0 is neither a whole number nor a text"),
    ("vm_pause.base_ns=true", "true is neither"),
    ("vm_pause.base_ns=-1", "a whole number >= 0 is expected, not -1"),
    ("vm_pause.base_ns=9223372036854775807", "is too large, 31622400000000000 or less"),
    ("vm_boot.per_unit_ps=1000000000000001", "is too large, 1000000000000000 or less"),
    ("memmap_init_page.per_unit_ps=1000000000000", "is too large, 11921000000 or less"),
    ('vm_pause.source="a\\tb"', "has characters that cannot be printed"),
    (f"vm_pause.kind='{'x' * 500}'", "one of published, measured, estimate is expected"),
    ("vm_pause=3", "a table of fields is expected, not 3"),
    ("spread.boot-tail.points=[[0, 0.5], [1000, 1]]", "a list holds whole numbers"),
    ("spread.boot-tail.points=[[0, 1], [1000, [2]]]", "a list holds whole numbers"),
    ("spread.boot-tail.points=[[0, 1], [1000, 1000001]]", "1000000 permille or less"),
    ("spread=[]", "tables [spread.NAME] are expected"),
]


def said(*overrides: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load_scenario(SMALL, overrides)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(("given", "what"), UNFIT)
def test_a_figure_that_cannot_be_is_named(given: str, what: str) -> None:
    key = given.partition("=")[0]
    (fault,) = said(f"costs.{given}", *(["costs.vm_pause.source=ours"] if "kind" in key else []))
    assert fault.startswith(f"--set costs.{key}: cost row {key}: ")
    assert what in fault
    assert len(fault) < 200


def test_rows_that_cannot_be_are_all_named_whatever_is_wrong_with_each() -> None:
    given = ("vm_pause.base_ns=0.5", "vm_boot=3", "userspace_init.base_ns=-1", "vm_bot.base_ns=1")
    found = said(*(f"costs.{one}" for one in given))
    assert sorted(fault.partition(":")[0] for fault in found) == sorted(
        f"--set costs.{one.partition('=')[0]}" for one in given
    )


def test_a_row_is_not_blamed_for_a_spread_that_could_not_be_read() -> None:
    (fault,) = said("costs.spread.slow.points=[0.5]", "costs.vm_boot.spread=slow")
    assert "spread.slow.points" in fault


def test_a_spread_cannot_make_a_year_a_thousand_years() -> None:
    widest = "costs.spread.boot-tail.points=[[0, 1000], [1000, 1000000]]"
    (fault,) = said(widest, "costs.initcalls.base_ns=31622400000000000")
    assert "costs.initcalls.base_ns: cost row initcalls: with the spread boot-tail up to" in fault
    assert load_scenario(SMALL, [widest]).cost_profile


def test_the_largest_figures_run() -> None:
    most = [
        "costs.vm_pause.base_ns=31622400000000000",
        "costs.vm_boot.per_unit_ps=1000000000000000",
    ]
    assert "31622400000000000" in load_scenario(SMALL, most).cost_profile
