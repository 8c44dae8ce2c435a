"""Cost profiles: the TOML that rows and spreads are read from.

A table for each op, and tables ``[spread.NAME]``::

    [kho_extend_scratch]
    per_unit_ps = 38_000
    kind = "measured"
    source = "our 12 TiB hosts, kernel 7.3.4, 2026-11"

    [spread.boot-tail]
    points = [[0, 900], [500, 1000], [990, 1400], [1000, 3000]]
    kind = "measured"
    source = "4,000 boots"

A profile overrides field by field. It cannot name a new op, for nothing would charge it, nor give
a row another unit, for what is counted stays the same, but it may add spreads. Figures that come
without kind and source become estimates that say so: they never inherit what the old row claimed.

Unhappy path: `CostProfileError`, with every fault of the profile at once, each as
``op.field: what is wrong``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from reprlib import repr as _short
from typing import Any, Final

from kernelmodel.sim.cost_rows import KINDS, CostRow, Spread

__all__ = ["UNSOURCED", "CostProfileError", "format_profile", "read_profile"]

#: The source of figures that a profile gives without one.
UNSOURCED: Final = "overridden by the profile, which names no source"

_FIGURES: Final = ("base_ns", "per_unit_ps")
_TEXTS: Final = ("unit", "kind", "source", "spread", "stream")
_REQUIRED: Final = ("unit", "kind", "source")
_POINTS_RULE: Final = (
    "pairs [quantile, multiplier] in whole permille are expected, the quantiles rising from 0 to "
    "1000, the multipliers above 0 and never falling"
)

Rows = dict[str, CostRow]
Spreads = dict[str, Spread]


class CostProfileError(ValueError):
    """A profile that cannot be used; `faults` has every reason at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(tuple(faults))
        self.faults: tuple[str, ...] = tuple(faults)

    def __str__(self) -> str:
        return "; ".join(self.faults)


def read_profile(
    text: str, rows: Mapping[str, CostRow], spreads: Mapping[str, Spread]
) -> tuple[Rows, Spreads]:
    """`rows` and `spreads` with the profile `text` over them; new ops only over no rows at all."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CostProfileError([f"the cost profile is not TOML: {error}"]) from None
    faults: list[str] = []
    new_spreads = dict(spreads)
    for name, table in _tables(tables.pop("spread", {}), "spread", faults):
        faults += _spread_faults(name, table) or _add_spread(name, table, new_spreads)
    new_rows = dict(rows)
    for op, table in _tables(tables, "", faults):
        if rows and op not in rows:
            near = get_close_matches(op, rows, n=1) or get_close_matches(op, rows, n=3, cutoff=0.4)
            faults.append(
                f"{op}: no such row" + (f"; did you mean {_either(near)}?" if near else "")
            )
        else:
            old = rows.get(op)
            faults += _row_faults(op, table, old, new_spreads) or _add_row(op, table, old, new_rows)
    if faults:
        raise CostProfileError(faults)
    return new_rows, new_spreads


def _either(names: Sequence[str]) -> str:
    """("a", "b", "c") as a, b or c."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def format_profile(tables: Mapping[str, object]) -> str:
    """A profile's parsed tables as TOML text again: how a scenario's rows reach its shards.

    Sorted, so equal tables give equal text. Values are what a profile may hold: tables,
    integers, strings and lists of integers.
    """
    return "".join(_format_table((), tables))


def _format_table(path: tuple[str, ...], table: Mapping[str, object]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        yield f"[{'.'.join(map(_format_value, path))}]\n"
    for key in sorted(plain):
        yield f"{_format_value(key)} = {_format_value(plain[key])}\n"
    for key, value in sorted(table.items()):
        if isinstance(value, Mapping):
            yield from _format_table((*path, key), value)


def _format_value(value: object) -> str:
    # JSON is TOML here, but for one control character that only TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _tables(
    value: object, where: str, faults: list[str]
) -> Iterator[tuple[str, dict[str, object]]]:
    if not isinstance(value, dict):
        faults.append(f"{where}: tables [{where}.NAME] are expected")
        return
    for name, table in value.items():
        if isinstance(table, dict):
            yield name, table
        else:
            full = f"{where}.{name}" if where else name
            faults.append(f"{full}: a table of fields is expected, not {_short(table)}")


def _row_faults(
    op: str, table: dict[str, object], old: CostRow | None, spreads: Spreads
) -> list[str]:
    faults = [
        f"{op}.{key}: {fault}" for key, value in table.items() if (fault := _fault(key, value))
    ]
    if old is None:
        faults += [f"{op}.{key}: missing" for key in _REQUIRED if key not in table]
    elif ("kind" in table) != ("source" in table):
        faults.append(f"{op}: kind and source are given together or not at all")
    if old is not None and isinstance(unit := table.get("unit"), str) and unit != old.unit:
        faults.append(f"{op}.unit: it is charged for each {old.unit}; convert what is per {unit}")
    spread = table.get("spread")
    if isinstance(spread, str) and spread and spread not in spreads:
        faults.append(f"{op}.spread: {spread!r} is not defined; there are {', '.join(spreads)}")
    return faults


def _fault(key: str, value: object) -> str:
    if key in _FIGURES:
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return "" if ok else f"a whole number >= 0 is expected, not {_short(value)}"
    if key not in _TEXTS:
        return f"unknown; a row has {', '.join(_FIGURES + _TEXTS)}"
    if not isinstance(value, str):
        return f"a string is expected, not {_short(value)}"
    if key == "kind" and value not in KINDS:
        return f"one of {', '.join(KINDS)} is expected, not {_short(value)}"
    if key == "source" and not value.strip():
        return "empty; say where the figures are from"
    return ""


def _add_row(op: str, table: dict[str, object], old: CostRow | None, rows: Rows) -> list[str]:
    if old is not None and "source" not in table:
        table = {"kind": "estimate", "source": UNSOURCED} | table
    fields: dict[str, Any] = dict(table)  # checked by _row_faults
    rows[op] = replace(old or CostRow(op, 0, 0, "", "", ""), **fields)
    return []


def _spread_faults(name: str, table: dict[str, object]) -> list[str]:
    where = f"spread.{name}"
    faults = [
        f"{where}.{key}: {fault}"
        for key, value in table.items()
        if key in ("kind", "source") and (fault := _fault(key, value))
    ]
    known = ("points", "kind", "source")
    faults += [
        f"{where}.{key}: unknown; a spread has {', '.join(known)}"
        for key in table
        if key not in known
    ]
    if _points(table.get("points")) is None:
        faults.append(f"{where}.points: {_POINTS_RULE}")
    return faults


def _add_spread(name: str, table: dict[str, object], spreads: Spreads) -> list[str]:
    points = _points(table["points"])
    if points is not None:
        kind = str(table.get("kind", "estimate"))
        spreads[name] = Spread(name, points, kind, str(table.get("source", UNSOURCED)))
    return []


def _points(value: object) -> tuple[tuple[int, int], ...] | None:
    if not isinstance(value, list):
        return None
    points: list[tuple[int, int]] = []
    for pair in value:
        match pair:
            case [int(quantile), int(multiplier)]:
                points.append((quantile, multiplier))
            case _:
                return None
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    whole = len(points) > 1 and points[0][0] == 0 and points[-1][0] == 1000
    return tuple(points) if whole and rising and points[0][1] > 0 else None
