"""The file of a sweep whose experiment was edited: names go with what they stand for."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from msgspec.structs import replace

from fleet.sweep.cells import cells_of
from fleet.sweep.plan import Parameter, SweepPlan
from fleet.sweep.store import Store, StoreError
from tests.fleet.sweep_plans import PLAN, choices, outcome

ONE = replace(PLAN, parameters=(Parameter('it\'s "a"', choices("a", 1, 2)),))
NAME = ONE.parameters[0].name


def swept(folder: Path, plan: SweepPlan) -> Path:
    """A store with a run of each cell."""
    path = folder / "sweep.duckdb"
    with Store(path, plan) as store:
        for cell in cells_of(plan):
            store.add(cell, outcome(cell, 1, 60.0))
    return path


def test_a_value_that_is_called_otherwise_by_now_is_so_in_every_row(tmp_path: Path) -> None:
    path = swept(tmp_path, ONE)
    first, second = ONE.parameters[0].choices
    # The two have changed names, and there is a third.
    new = (replace(first, label="2"), replace(second, label="1"), *choices("a", 3))
    plan = replace(ONE, parameters=(Parameter(NAME, new),))
    with Store(path, plan) as store:
        store.agree(cells_of(plan))
        parquet = tmp_path / "runs.parquet"
        store.write_parquet(parquet)
    rows = duckdb.read_parquet(str(parquet)).order("overrides").fetchall()
    assert [(row[2], row[7]) for row in rows] == [("a=1", "2"), ("a=2", "1")]


def test_a_name_that_meant_something_else_is_not_mixed_in(tmp_path: Path) -> None:
    """Else GROUP BY puts together what has nothing in common but its name."""
    path = swept(tmp_path, ONE)
    plan = replace(ONE, parameters=(Parameter(NAME, choices("b", 2, 3)),))
    with Store(path, plan) as store, pytest.raises(StoreError, match=f"{NAME} 2 meant something"):
        store.agree(cells_of(plan))


def test_runs_of_values_that_were_taken_out_stay(tmp_path: Path) -> None:
    path = swept(tmp_path, ONE)
    plan = replace(ONE, parameters=(Parameter(NAME, choices("a", 2, 3)),))
    with Store(path, plan) as store:
        store.agree(cells_of(plan))
        assert len(store.outcomes()) == 2
