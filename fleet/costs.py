"""The cost rows that a scenario overrides, as the text that its shards are given.

`[costs]` holds tables as a cost profile does (`kernelmodel.sim.profile`); `profile = "mine.toml"`
names a file of them, over which the scenario's own rows lie. A row that the scenario gives
without kind and source does not keep those of the file: it is not what they vouched for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fleet.bad_input import Faults, Place
from fleet.fields import Fields
from fleet.toml_source import Key, TomlSource, TomlValue, dotted
from fleet.units import shown
from kernelmodel.sim.cost import CostModel, CostProfileError, format_profile
from node.api import LONGEST_WAIT_NS

__all__ = ["read_cost_file", "read_costs"]

#: The most that a figure may be: beyond, a unit was mistaken, and sums would leave 64 bits.
_LARGEST_PER_UNIT_PS: Final = 10**15
#: What is done for each page is done some billion times: so many times the built-in figure.
_TIMES: Final = 1_000_000
#: The most that luck may make of a figure: several of these are still no overflow.
_LONGEST_NS: Final = 10 * LONGEST_WAIT_NS
_LARGEST_PERMILLE: Final = 1_000_000
_PROVENANCE: Final = ("kind", "source")


def read_costs(fields: Fields | None, folder: Path, faults: Faults) -> str:
    """The overriding rows of `[costs]` as TOML text, "" if there are none."""
    if fields is None:
        return ""
    tables: dict[str, TomlValue] = {}
    if fields.given("profile"):
        before, name = len(faults), fields.text("profile")
        if len(faults) == before:
            tables = read_cost_file(folder / name, fields.place("profile"), faults)
    ours = {name: fields.take(name) for name in fields.free_keys() if name != "profile"}
    merged = _overlaid(tables, ours)
    if _check(merged, lambda key: fields.place(*map(str, key)), faults):
        return format_profile(merged)
    return ""


def read_cost_file(path: Path, named_at: Place, faults: Faults) -> dict[str, TomlValue]:
    """The tables of a file of rows, none if they cannot be used.

    `named_at` is where its name was given, to be blamed if there is no such file.
    """
    source = TomlSource.read(path, (), faults, named_at)
    return source.values if _check(source.values, source.place, faults) else {}


def _check(tables: dict[str, TomlValue], place: Callable[[Key], Place], faults: Faults) -> bool:
    """Whether rows can be used, noting what is wrong with them at their places."""
    before = len(faults)
    plain = dict(tables)
    for name, table in tables.items():
        for key, what, right in _unfit((name,), table):
            faults.add(place(key), f"cost row {dotted(key)}: {what}", right)
            plain.pop(name, None)
    if "spread" in tables and "spread" not in plain:
        return False  # rows may name what could not be read
    try:
        model = CostModel.load(format_profile(plain))
        for op, (base_ns, _, spread) in model.lucky.items():
            longest = base_ns * spread.points[-1][1] // 1000
            if longest > _LONGEST_NS:
                what = f"cost row {op}: with the spread {spread.name} up to {longest} ns"
                given = (op,) if op in plain else ("spread", spread.name)
                faults.add(place(given), what, f"{_LONGEST_NS} or less")
    except CostProfileError as error:
        for fault in error.faults:
            where, _, what = fault.partition(": ")
            faults.add(place(tuple(where.split("."))), f"cost row {where}: {what}")
    return len(faults) == before


def _unfit(key: Key, value: object) -> Iterator[tuple[Key, str, str]]:
    """Where a value is not of the kinds that a profile is made of: the key, what, what is right."""
    if isinstance(value, dict) and len(key) < 3:
        for name, inner in value.items():
            yield from _unfit((*key, name), inner)
    elif isinstance(value, list):
        numbers = [n for point in value for n in (point if isinstance(point, list) else [point])]
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            yield key, "a list holds whole numbers", "points = [[0, 900], [1000, 2000]], say"
        elif max(map(abs, numbers), default=0) > _LARGEST_PERMILLE:
            yield key, "a number is too large", f"{_LARGEST_PERMILLE} permille or less"
    elif isinstance(value, int) and not isinstance(value, bool):
        most = _largest(key)
        if abs(value) > most:
            yield key, f"{shown(value)} is too large", f"{most} or less"
    elif not isinstance(value, str):
        yield key, f"{shown(value)} is neither a whole number nor a text", ""
    elif not value.isprintable():
        yield key, f"{shown(value)} has characters that cannot be printed", ""


def _largest(key: Key) -> int:
    """The most that the figure at `key` may be."""
    if key[-1] != "per_unit_ps":
        return LONGEST_WAIT_NS
    known = CostModel.load().rows.get(str(key[0]))
    return min(_LARGEST_PER_UNIT_PS, _TIMES * max(1000, known.per_unit_ps if known else 0))


def _overlaid(tables: dict[str, TomlValue], ours: dict[str, TomlValue]) -> dict[str, TomlValue]:
    merged = dict(tables)
    for name, table in ours.items():
        under = tables.get(name)
        if not isinstance(under, dict) or not isinstance(table, dict):
            merged[name] = table
        elif name == "spread" or set(_PROVENANCE) & set(table):
            merged[name] = under | table
        else:
            merged[name] = {k: v for k, v in under.items() if k not in _PROVENANCE} | table
    return merged
