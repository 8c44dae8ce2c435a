"""The cost rows that a scenario overrides, as the text that its shards are given.

`[costs]` holds tables as a cost profile does (`kernelmodel.sim.profile`); `profile = "mine.toml"`
names a file of them, over which the scenario's own rows lie. A row that the scenario gives
without kind and source does not keep those of the file: it is not what they vouched for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleet.bad_input import Faults, Place
from fleet.fields import Fields
from fleet.toml_source import Key, TomlSource, TomlValue
from kernelmodel.sim.cost import CostModel, CostProfileError, format_profile

__all__ = ["read_costs"]

_LARGEST = (1 << 63) - 1
_PROVENANCE = ("kind", "source")


def read_costs(fields: Fields | None, folder: Path, faults: Faults) -> str:
    """The overriding rows of `[costs]` as TOML text, "" if there are none."""
    if fields is None:
        return ""
    tables: dict[str, TomlValue] = {}
    if fields.given("profile"):
        name = fields.text("profile")
        source = TomlSource.read(folder / name, (), faults, fields.place("profile"))
        if _check(source.values, source.place, faults):
            tables = source.values
    ours = {name: fields.take(name) for name in fields.free_keys() if name != "profile"}
    merged = _overlaid(tables, ours)
    if _check(merged, lambda key: fields.place(*map(str, key)), faults):
        return format_profile(merged)
    return ""


def _check(tables: dict[str, TomlValue], place: Callable[[Key], Place], faults: Faults) -> bool:
    """Whether rows can be used, noting what is wrong with them at their places."""
    before = len(faults)
    for name, table in tables.items():
        if not _is_plain(table, 0):
            what = "a cost row holds whole numbers, texts and lists of whole numbers"
            faults.add(place((name,)), f"cost row {name}: {what}")
    if len(faults) > before:
        return False
    try:
        CostModel.load(format_profile(tables))
    except CostProfileError as error:
        for fault in error.faults:
            where, _, what = fault.partition(": ")
            faults.add(place(tuple(where.split("."))), f"cost row {where}: {what}")
    return len(faults) == before


def _is_plain(value: object, depth: int) -> bool:
    """Whether a value is of the kinds that a profile is made of; deeper ones never are."""
    if isinstance(value, dict):
        return depth < 2 and all(_is_plain(inner, depth + 1) for inner in value.values())
    if isinstance(value, list):
        return depth < 5 and all(_is_plain(inner, depth + 1) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _LARGEST
    return isinstance(value, str) and value.isprintable()


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
