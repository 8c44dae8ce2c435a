"""The one file of a sweep: every run that has ended, as a row of a DuckDB table.

It is what a sweep that was interrupted goes on from, and what people query:

    SELECT wave_size, avg(rollout_seconds) FROM runs WHERE error = '' GROUP BY wave_size

`runs` has a row a run: `cell`, `seed`, `overrides` as a shell takes them, `state`, `why`, `digest`,
`error`, a column for each parameter (its label) and one for each metric (infinity for a downtime
that a lost VM decides, NULL for what the run does not have). `plan` has one row, which says what
was swept. Rows are committed as runs end: whatever kills the sweep costs the runs that were under
way.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import duckdb

from fleet.sweep.cells import Cell
from fleet.sweep.metrics import METRICS
from fleet.sweep.plan import SweepPlan
from fleet.sweep.worker import Outcome
from fleet.unwritable import CannotWrite, errno_told

__all__ = ["COLUMNS", "Store", "StoreError"]

_OURS: Final = ("cell", "seed", "overrides", "state", "why", "digest", "error")
_LAST: Final = ("wall_seconds", "peak_rss_bytes")

#: What no parameter can be called: the columns that every sweep has.
COLUMNS: Final = (*_OURS, *METRICS, *_LAST)


class StoreError(Exception):
    """A file that is no store of this sweep, or holds runs that nobody asked to go on with."""


class Store:
    """The rows of one sweep. A context manager."""

    def __init__(self, path: Path, plan: SweepPlan) -> None:
        """Open the file at `path`, or make it.

        Raises:
            StoreError: it holds something else, or is in use.
            CannotWrite: it cannot be written.
        """
        self.path = path
        self._names = [parameter.name for parameter in plan.parameters]
        is_new = not path.exists()
        try:
            self._db = duckdb.connect(str(path))
            if not self._db.execute("SHOW TABLES").fetchall():  # or killed before it had any
                self._create(plan)
            else:
                self._check(plan)
        except duckdb.Error as error:
            if "Could not set lock" in str(error):
                raise StoreError(f"{path}: another sweep is at work there") from None
            if is_new:
                path.unlink(missing_ok=True)  # half of one that nobody can open
            if is_new or errno_told(error) is not None:
                raise _unwritten(path, error) from error
            raise StoreError(f"{path}: not the results of a sweep") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._db.close()

    def outcomes(self) -> list[Outcome]:
        """Every run so far, in the order in which they ended."""
        metrics = ", ".join(f'"{name}"' for name in METRICS)
        rows = self._db.execute(
            f"SELECT cell, seed, error, state, why, digest, wall_seconds, peak_rss_bytes, "  # noqa: S608 # our own names
            f"{metrics} FROM runs ORDER BY rowid"
        ).fetchall()
        return [
            Outcome(
                cell=row[0],
                seed=row[1],
                error=row[2],
                state=row[3],
                why=row[4],
                digest=row[5],
                wall_seconds=row[6],
                peak_rss_bytes=row[7],
                metrics={
                    name: value
                    for name, value in zip(METRICS, row[8:], strict=True)
                    if value is not None
                },
            )
            for row in rows
        ]

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Keep the outcome of a run; it is on disk when this returns.

        Raises:
            CannotWrite: the file cannot be written.
        """
        row: list[object] = [outcome.cell, outcome.seed, shlex.join(cell.overrides)]
        row += [outcome.state, outcome.why, outcome.digest, outcome.error]
        row += [choice.label for choice in cell.choices]
        row += [outcome.metrics.get(name) for name in METRICS]
        row += [outcome.wall_seconds, outcome.peak_rss_bytes]
        marks = ", ".join("?" * len(row))
        with _writing(self.path):
            self._db.execute(f"INSERT INTO runs VALUES ({marks})", row)  # noqa: S608 # marks only

    def agree(self, cells: Sequence[Cell]) -> None:
        """Call the cells that have rows already by the names that they have now.

        Raises:
            StoreError: a name is that of other rows, whose cells the experiment no longer has.
            CannotWrite: the file cannot be written.
        """
        columns = [f'"{_quoted(name)}"' for name in self._names]
        rows = self._db.execute(f"SELECT DISTINCT cell, {', '.join(columns)} FROM runs").fetchall()  # noqa: S608 # quoted
        held = {key: tuple(labels) for key, *labels in rows}
        ours = {cell.key: tuple(choice.label for choice in cell.choices) for cell in cells}
        named = set(ours.values())
        for key, labels in held.items():
            if key not in ours and labels in named:
                pairs = zip(self._names, labels, strict=True)
                setting = ", ".join(f"{name} {label}" for name, label in pairs)
                raise StoreError(
                    f"{self.path}: {setting} meant something else when its runs were made; "
                    "choose another --out, or other names"
                )
        renamed = [key for key in held if key in ours and held[key] != ours[key]]
        sets = ", ".join(f"{column} = ?" for column in columns)
        with _writing(self.path):
            for key in renamed:
                self._db.execute(f"UPDATE runs SET {sets} WHERE cell = ?", [*ours[key], key])  # noqa: S608 # quoted

    def forget_failed(self) -> None:
        """Drop the rows of runs that failed, so that they are made again.

        Raises:
            CannotWrite: the file cannot be written.
        """
        with _writing(self.path):
            self._db.execute("DELETE FROM runs WHERE error <> ''")

    def write_parquet(self, path: Path) -> None:
        """The same rows as one Parquet file; from now on no log belongs to the store.

        Raises:
            CannotWrite: one of them cannot be written.
        """
        with _writing(self.path):
            self._db.execute("CHECKPOINT")  # closing would keep silent about what has no room
        with _writing(path):
            self._db.execute(f"COPY runs TO '{_escaped(path)}' (FORMAT parquet)")

    def _create(self, plan: SweepPlan) -> None:
        names: Sequence[str] = self._columns()
        kinds = {"seed": "UBIGINT", "peak_rss_bytes": "BIGINT", "wall_seconds": "DOUBLE"}
        kinds |= dict.fromkeys(METRICS, "DOUBLE")
        columns = ", ".join(f'"{_quoted(name)}" {kinds.get(name, "VARCHAR")}' for name in names)
        self._db.begin()
        self._db.execute(
            "CREATE TABLE plan"
            " (name VARCHAR, scenario VARCHAR, base_digest VARCHAR, cost_digest VARCHAR)"
        )
        row = [plan.name, str(plan.scenario), plan.base_digest, plan.cost_digest]
        self._db.execute("INSERT INTO plan VALUES (?, ?, ?, ?)", row)
        self._db.execute(f"CREATE TABLE runs ({columns})")
        self._db.commit()

    def _check(self, plan: SweepPlan) -> None:
        try:
            row = self._db.execute("SELECT base_digest, cost_digest FROM plan").fetchone()
            held = [name for name, *_ in self._db.execute("DESCRIBE runs").fetchall()]
        except duckdb.CatalogException:
            raise StoreError(f"{self.path}: not the results of a sweep") from None
        except duckdb.BinderException:
            row = None
        if row is None or (row[0] == plan.base_digest and row[1] != plan.cost_digest):
            said = "results of another version of lufleet, with other costs; choose another --out"
            raise StoreError(f"{self.path}: {said}")
        if row[0] != plan.base_digest:
            raise StoreError(f"{self.path}: results of another scenario, or of one that was edited")
        if held != self._columns():
            raise StoreError(f"{self.path}: results of a sweep over other parameters")

    def _columns(self) -> list[str]:
        return [*_OURS, *self._names, *METRICS, *_LAST]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """As `fleet.unwritable.writing`; of a disk that is full DuckDB says that a commit failed."""
    try:
        yield
    except duckdb.Error as error:
        if errno_told(error) is None and not isinstance(error, duckdb.IOException):
            raise
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: duckdb.Error) -> CannotWrite:
    number = errno_told(error)
    return CannotWrite(path, str(error) if number is None else os.strerror(number), number)


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")


def _quoted(name: str) -> str:
    return name.replace('"', '""')
