"""What work costs: rows from `op` to integer nanoseconds, each naming where its figures are from.

A row says ``base_ns + units * per_unit_ps / 1000``, rounded to the nearest nanosecond. Units are
the things an operation loops over (a folio, a radix key, a MiB) and picoseconds per unit keep
41 ns and 0.3 ns exact. `kind` is a promise to the reader of a report:

``published``   the figure, or arithmetic on it that the source text shows ("derived"), is public
``measured``    somebody ran it and the source says on what
``estimate``    ours; the source says what it leans on

A row may name a `spread`: a quantile table that turns one uniform draw into a multiplier, so that
boots have tails. Both axes are integers in permille, linear in between. A row may also name a
`stream`, the group that a fault can slow as a whole (`Clock.slow("boot", ...)`).

Profiles are TOML: a table per op, and tables ``[spread.NAME]``. The built-in one is
`profiles/default.toml`; a user's profile overrides rows of it field by field. Figures given without
a source are labelled as such and never inherit the old row's claim.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import blake2b
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from kernelmodel.errors import ModelBug

__all__ = ["KINDS", "CostModel", "CostProfileError", "CostRow", "Spread", "profile_toml"]

KINDS: Final = ("published", "measured", "estimate")
UNSOURCED: Final = "overridden by the profile, which names no source"

_PERMILLE: Final = 1000
_ROW_KEYS: Final = ("base_ns", "per_unit_ps", "unit", "kind", "source", "spread", "stream")
_SPREAD_KEYS: Final = ("points", "kind", "source")


class CostProfileError(ValueError):
    """A profile that cannot be used; `faults` has every reason at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(tuple(faults))
        self.faults: tuple[str, ...] = tuple(faults)

    def __str__(self) -> str:
        return "; ".join(self.faults)


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantile table: `points` are (quantile, multiplier), both in permille, both rising."""

    name: str
    points: tuple[tuple[int, int], ...]
    kind: str
    source: str

    RESOLUTION = 1_000_000
    """Draws are integers in [0, RESOLUTION): a thousand steps between two permille."""

    def multiplier_permille(self, drawn: int) -> int:
        """The multiplier at quantile drawn / RESOLUTION."""
        scale = self.RESOLUTION // _PERMILLE
        (left, low), *rest = self.points
        for right, high in rest:
            if drawn <= right * scale:
                span = (right - left) * scale
                return low + (high - low) * (drawn - left * scale) // span
            left, low = right, high
        raise ModelBug(f"quantile {drawn} lies outside the spread {self.name!r}")


@dataclass(frozen=True, slots=True)
class CostRow:
    """One operation's cost; see the module's text for the fields."""

    op: str
    base_ns: int
    per_unit_ps: int
    unit: str
    kind: str
    source: str
    spread: str = ""
    stream: str = ""

    def cost_ns(self, units: int) -> int:
        """Nanoseconds for `units`, to the nearest (half up); without spread."""
        return self.base_ns + (units * self.per_unit_ps + 500) // 1000


class CostModel:
    """Rows and spreads, immutable after loading; hosts of one run share it."""

    def __init__(self, rows: Mapping[str, CostRow], spreads: Mapping[str, Spread]) -> None:
        self.rows: Mapping[str, CostRow] = MappingProxyType(dict(sorted(rows.items())))
        self.spreads: Mapping[str, Spread] = MappingProxyType(dict(sorted(spreads.items())))

    @classmethod
    def load(cls, profile_toml: str = "") -> CostModel:
        """The built-in profile with the rows of `profile_toml` (TOML text) over it.

        Raises CostProfileError with every fault of the profile.
        """
        builtin = (files("kernelmodel.sim") / "profiles" / "default.toml").read_text("utf-8")
        model = cls({}, {})._overridden(builtin, new_rows=True)
        return model._overridden(profile_toml, new_rows=False) if profile_toml else model

    def cost_ns(self, op: str, units: int = 1) -> int:
        """Nanoseconds for `units` of `op`, without spread."""
        return self.row(op).cost_ns(units)

    def row(self, op: str) -> CostRow:
        """The row of `op`; an op without one is our mistake."""
        try:
            return self.rows[op]
        except KeyError:
            near = get_close_matches(op, self.rows, n=3)
            hint = f"; close: {', '.join(near)}" if near else ""
            raise ModelBug(f"no cost row for {op!r}{hint}") from None

    def ops_slowed_by(self, name: str) -> tuple[str, ...]:
        """The ops that `name` stands for: itself, or every op of the stream so called."""
        if name in self.rows:
            return (name,)
        ops = tuple(op for op, row in self.rows.items() if row.stream == name)
        if not ops:
            raise ModelBug(f"{name!r} is neither an op nor a stream of the cost model")
        return ops

    def digest(self) -> str:
        """Hex over everything that can change a time; not over sources, which cannot."""
        rows = [
            [r.op, r.base_ns, r.per_unit_ps, r.unit, r.spread, r.stream] for r in self.rows.values()
        ]
        spreads = [[s.name, s.points] for s in self.spreads.values()]
        text = json.dumps(["lufleet cost 1", rows, spreads], separators=(",", ":"))
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def _overridden(self, text: str, *, new_rows: bool) -> CostModel:
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CostProfileError([f"cost profile is not TOML: {error}"]) from None
        faults: list[str] = []
        spreads = dict(self.spreads)
        given = tables.pop("spread", {})
        if isinstance(given, dict):
            for name, table in given.items():
                _read_spread(name, table, spreads, faults)
        else:
            faults.append("spread: a table of spreads is expected, as [spread.NAME]")
        rows = dict(self.rows)
        for op, table in tables.items():
            if not new_rows and op not in rows:
                near = get_close_matches(op, rows, n=1)
                faults.append(f"{op}: no such row" + (f"; did you mean {near[0]}?" if near else ""))
            else:
                _read_row(op, table, rows, faults)
        for row in rows.values():
            if row.spread and row.spread not in spreads:
                faults.append(f"{row.op}: spread {row.spread!r} is not defined")
        if faults:
            raise CostProfileError(faults)
        return CostModel(rows, spreads)


def profile_toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Parsed rows back to TOML text, sorted: what a scenario hands to its shards as text.

    The inverse of parsing for what a profile may hold: integers, strings and lists of integers.
    """
    lines: list[str] = []
    for name in sorted(tables):
        nested = {f"{name}.{key}": val for key, val in tables[name].items() if _is_table(val)}
        plain = {key: val for key, val in tables[name].items() if not _is_table(val)}
        if plain or not nested:
            lines.append(f"[{json.dumps(name)}]")
            lines += [f"{json.dumps(key)} = {json.dumps(plain[key])}" for key in sorted(plain)]
        for key in sorted(nested):
            table = nested[key]
            assert isinstance(table, Mapping)
            lines.append(f"[{json.dumps(name)}.{json.dumps(key[len(name) + 1 :])}]")
            lines += [f"{json.dumps(k)} = {json.dumps(table[k])}" for k in sorted(table)]
    return "\n".join(lines) + "\n" if lines else ""


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _read_row(op: str, table: object, rows: dict[str, CostRow], faults: list[str]) -> None:
    if not isinstance(table, dict):
        faults.append(f"{op}: a table of {', '.join(_ROW_KEYS)} is expected, not {table!r}")
        return
    before = len(faults)
    for key, value in table.items():
        if key not in _ROW_KEYS:
            faults.append(f"{op}.{key}: unknown; a row has {', '.join(_ROW_KEYS)}")
        elif key in ("base_ns", "per_unit_ps"):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                faults.append(f"{op}.{key}: {value!r} is not a whole number >= 0")
        elif not isinstance(value, str):
            faults.append(f"{op}.{key}: {value!r} is not a string")
    old = rows.get(op)
    if old is None:
        faults += [f"{op}.{key}: missing" for key in ("unit", "kind", "source") if key not in table]
        old = CostRow(op, 0, 0, "", "", "")
    elif not {"kind", "source"} & set(table):
        table = table | {"kind": "estimate", "source": UNSOURCED}
    elif not {"kind", "source"} <= set(table):
        faults.append(f"{op}: kind and source are given together or not at all")
    if len(faults) > before:
        return
    row = replace(old, **table)
    if row.kind not in KINDS:
        faults.append(f"{op}.kind: {row.kind!r} is none of {', '.join(KINDS)}")
    if not row.source.strip():
        faults.append(f"{op}.source: empty; say where the figures are from")
    rows[op] = row


def _read_spread(name: str, table: object, spreads: dict[str, Spread], faults: list[str]) -> None:
    where = f"spread.{name}"
    if not isinstance(table, dict) or "points" not in table:
        faults.append(f"{where}: a table of {', '.join(_SPREAD_KEYS)} is expected")
        return
    before = len(faults)
    faults += [f"{where}.{key}: unknown" for key in table if key not in _SPREAD_KEYS]
    kind = table.get("kind", "estimate")
    source = table.get("source", UNSOURCED)
    if kind not in KINDS:
        faults.append(f"{where}.kind: {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(source, str) or not source.strip():
        faults.append(f"{where}.source: empty; say where the table is from")
    points = _points(table["points"])
    if points is None:
        faults.append(
            f"{where}.points: pairs [quantile, multiplier] in whole permille are expected, "
            "quantiles rising from 0 to 1000, multipliers never falling and above 0"
        )
    elif len(faults) == before:
        spreads[name] = Spread(name, points, kind, source)


def _points(value: object) -> tuple[tuple[int, int], ...] | None:
    if not isinstance(value, list) or len(value) < 2:
        return None
    points: list[tuple[int, int]] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or any(type(n) is not int for n in pair):
            return None
        points.append((pair[0], pair[1]))
    quantiles = [quantile for quantile, _ in points]
    multipliers = [multiplier for _, multiplier in points]
    rising = all(a < b for a, b in zip(quantiles, quantiles[1:], strict=False))
    if not rising or quantiles[0] != 0 or quantiles[-1] != _PERMILLE:
        return None
    if multipliers[0] <= 0 or multipliers != sorted(multipliers):
        return None
    return tuple(points)
