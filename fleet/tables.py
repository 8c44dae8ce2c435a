"""Tables as people have them: CSV, JSON lines and Parquet, row by row with line numbers.

The format goes by the file's name. CSV is read with the standard library, since its errors and
ours must name lines, which DuckDB's reader hides once it has parsed; Parquet is read with DuckDB
and its rows count as lines. A CSV may be separated by commas, semicolons or tabs, whichever its
header has most of; lines that begin with `#` are comments, and blank lines are skipped. Cells
that are not there are None.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from fleet.bad_input import Faults, Place
from fleet.toml_source import read_text

__all__ = ["Row", "Table", "read_table"]

#: One row: the line it begins on and its cells in the order of the columns.
Row = tuple[int, Sequence[object]]

_CSV: Final = (".csv", ".tsv")
_JSON_LINES: Final = (".jsonl", ".ndjson")
_PARQUET: Final = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Table:
    """One table that was read. `header` is the line of its column names, 0 if they have none."""

    file: str
    header: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    damaged: bool = False  # whether there are further rows, which cannot be read


def read_table(path: Path, named_at: Place, faults: Faults) -> Table | None:
    """Read a table by the format that its name tells, None if it cannot be used at all.

    `named_at` is where the path was given, to be blamed if there is no such file.
    """
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return _read_parquet(path, named_at, faults)
    if suffix not in (*_CSV, *_JSON_LINES):
        known = ", ".join((*_CSV, *_JSON_LINES, *_PARQUET))
        faults.add(named_at, f"{path.name}: unknown kind of table", f"known: {known}")
        return None
    before = len(faults)
    text = read_text(path, named_at, faults)
    if len(faults) > before:
        return None
    lines = text.replace("\r\n", "\n").split("\n")
    read = _read_csv if suffix in _CSV else _read_json_lines
    return read(str(path), lines, faults)


def _read_csv(file: str, lines: list[str], faults: Faults) -> Table | None:
    start = next((nr for nr, line in enumerate(lines) if line.strip() and line[0] != "#"), None)
    if start is None:
        faults.add((file, 1), "has no header", "a line with the names of the columns")
        return None
    reader = csv.reader(
        (f"{line}\n" if line.strip() and line[0] != "#" else "\n" for line in lines),
        delimiter=max(",;\t", key=lines[start].count),
        strict=True,
    )
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    begins, damaged = 1, False
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = tuple(name.strip() for name in cells)
            elif len(cells) == len(columns):
                rows.append((line, [cell.strip() or None for cell in cells]))
            else:
                damaged = True
                what = f"has {len(cells)} cells, the header {len(columns)} columns"
                faults.add((file, line), what, alike=f"cells of {file}")
    except csv.Error as error:
        faults.add((file, begins), f"not valid CSV from here on: {error}")
        damaged = True
    if not columns or not _distinct(columns, (file, start + 1), faults):
        return None
    return Table(file, start + 1, columns, tuple(rows), damaged)


def _distinct(columns: Iterable[str], place: Place, faults: Faults) -> bool:
    seen: dict[str, None] = {}
    fine = True
    for column in columns:
        if column in seen or not column:
            if column:
                faults.add(place, f'column "{column}" is there twice')
            else:  # an index, as a rule
                right = "give it one, or leave it out: to_csv(…, index=False) in pandas"
                faults.add(place, "a column has no name", right)
            fine = False
        seen[column] = None
    return fine


def _read_json_lines(file: str, lines: list[str], faults: Faults) -> Table | None:
    before = len(faults)
    objects: list[tuple[int, dict[str, object]]] = []
    columns: dict[str, None] = {}
    decoder = msgspec.json.Decoder()
    for nr, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            faults.add((file, nr), f"not valid JSON: {error}", alike=f"JSON of {file}")
            continue
        if not isinstance(found, dict):
            faults.add((file, nr), "is no JSON object", '{"host": "…", …}', alike=f"JSON of {file}")
            continue
        columns |= dict.fromkeys(found)
        objects.append((nr, found))
    names = tuple(columns)
    rows = tuple((nr, [found.get(name) for name in names]) for nr, found in objects)
    return Table(file, 1, names, rows, damaged=len(faults) > before)


def _read_parquet(path: Path, named_at: Place, faults: Faults) -> Table | None:
    import duckdb  # noqa: PLC0415  # 0.1 s that only Parquet should cost

    if any(c in "*?[" for c in str(path)):
        faults.add(named_at, f"{path.name}: DuckDB takes * ? [ for a pattern", "rename the file")
        return None
    if not path.is_file():
        faults.add(named_at, f"cannot read {path}: no such file")
        return None
    try:
        with duckdb.connect() as connection:
            found = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            described = found.description or ()
            columns = tuple(column[0] for column in described)
            as_json = {nr for nr, column in enumerate(described) if str(column[1]) == "JSON"}
            rows = tuple(
                (nr, [_plain(cell) if at in as_json else cell for at, cell in enumerate(row)])
                for nr, row in enumerate(found.fetchall(), start=1)
            )
    except duckdb.Error as error:
        first = str(error).splitlines()[0]
        faults.add((str(path), 0), f"not readable as Parquet: {first}")
        return None
    return Table(str(path), 0, columns, rows)


def _plain(cell: object) -> object:
    """What a cell of DuckDB's type JSON says; it comes as JSON text, strings in their quotes."""
    try:
        return msgspec.json.decode(cell) if isinstance(cell, str) else cell
    except msgspec.DecodeError:  # Parquet promises nothing
        return cell
