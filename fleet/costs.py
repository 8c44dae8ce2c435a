"""The cost rows that a scenario overrides, as the text that its shards are given.

`[costs]` holds tables as a cost profile does (`kernelmodel.sim.profile`); `profile = "mine.toml"`
names a file of them, over which the scenario's own rows lie. A row that the scenario gives
without kind and source does not keep those of the file: it is not what they vouched for.
"""

from __future__ import annotations

from pathlib import Path

from fleet.bad_input import Faults
from fleet.fields import Fields
from fleet.toml_source import TomlSource, TomlValue
from kernelmodel.sim.cost import CostModel, CostProfileError, format_profile

__all__ = ["read_costs"]

_LARGEST = (1 << 63) - 1
_PROVENANCE = ("kind", "source")
_NOT_PLAIN = "a cost row holds whole numbers, texts and lists of whole numbers"


def read_costs(fields: Fields | None, folder: Path, faults: Faults) -> str:
    """The overriding rows of `[costs]` as TOML text, "" if there are none."""
    if fields is None:
        return ""
    before = len(faults)
    source = None
    tables: dict[str, TomlValue] = {}
    if fields.given("profile"):
        name = fields.text("profile")
        source = TomlSource.read(folder / name, (), faults, fields.place("profile"))
        tables = dict(source.values)
    ours = {name: fields.take(name) for name in fields.free_keys() if name != "profile"}
    for name, table in tables.items():
        if not _is_plain(table, 0):
            faults.add(source.place((name,)) if source else fields.place(), f"{name}: {_NOT_PLAIN}")
    for name, table in ours.items():
        if not _is_plain(table, 0):
            fields.complain(name, _NOT_PLAIN)
    if len(faults) > before:
        return ""
    text = format_profile(_overlaid(tables, ours))
    try:
        CostModel.load(text)
    except CostProfileError as error:
        for fault in error.faults:
            where, _, what = fault.partition(": ")
            key = tuple(where.split("."))
            place = source.place(key) if source and key[0] not in ours else fields.place(*key)
            faults.add(place, f"cost row {where}: {what}")
    return text


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
