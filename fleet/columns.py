"""Which column of a table is which of ours.

A mapping `[fleet.columns.hosts]` has our names on the left and theirs on the right, and three
keys more: `domains`, a table of further failure domains and their columns; `ignore`, columns to
leave alone although they look like misspelt ones of ours; `memory_unit`, what a number without a
unit counts.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Final

from fleet.bad_input import Faults, Place, did_you_mean
from fleet.fields import Fields
from fleet.tables import Table
from fleet.units import Unfit, parse_size, shown

__all__ = ["ColumnMap", "ColumnNames", "Columns", "read_column_map", "resolve_columns"]

#: Names under which tables keep failure domains; others need `domains` in the mapping.
WELL_KNOWN_DOMAINS: Final = (
    *("region", "datacenter", "zone", "room", "row", "cell"),
    *("power", "pdu", "switch", "tor"),
)


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns of one kind of table."""

    section: str  # where a scenario maps them
    noun: str  # what its rows are
    required: tuple[str, ...]
    optional: tuple[str, ...]
    has_domains: bool = False  # whether further columns may be failure domains

    @property
    def all(self) -> tuple[str, ...]:
        """Required and optional ones."""
        return self.required + self.optional


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """What a scenario says about a table's columns, each name with its place."""

    names: dict[str, tuple[str, Place]] = field(default_factory=dict)  # ours -> theirs
    domains: dict[str, tuple[str, Place]] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    memory_unit: int = 1  # bytes that a plain number in `memory` counts


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a row our columns are."""

    at: dict[str, int]  # our column -> its index
    domains: dict[str, int]  # failure domain -> its index, the rack not among them
    unused: tuple[str, ...]
    memory_unit: int
    complete: bool = True  # whether none is missing, so that rows can be used


def read_column_map(fields: Fields | None, ours: ColumnNames) -> ColumnMap:
    """Read `[fleet.columns.hosts]` or `.vms`."""
    if fields is None:
        return ColumnMap()
    names = {
        name: (fields.text(name), fields.place(name)) for name in ours.all if fields.given(name)
    }
    domains: dict[str, tuple[str, Place]] = {}
    table = fields.table("domains") if ours.has_domains else None
    if table is not None:
        for name in table.free_keys():
            domains[name] = (table.text(name), table.place(name))
            if not name.isprintable() or name.strip() != name or not name or name == "rack":
                table.complain(name, "cannot be the name of a further failure domain")
    ignore = fields.take("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        fields.complain("ignore", "is no list of column names", 'ignore = ["owner"]')
        ignore = []
    unit = 1
    if (given := fields.take("memory_unit")) is not None:
        try:
            unit = parse_size(f"1{given}") if isinstance(given, str) else parse_size(given)
        except Unfit:
            unit = 0
        if unit < 1:
            fields.complain("memory_unit", f"{shown(given)} is no unit", "B, KiB, MiB or GiB")
            unit = 1
    fields.close()
    return ColumnMap(names, domains, frozenset(map(str, ignore)), unit)


def resolve_columns(
    table: Table, mapping: ColumnMap, ours: ColumnNames, other: ColumnNames, faults: Faults
) -> Columns | None:
    """Find our columns in a table, noting those that are not there; the others can be checked.

    None if the table is of the `other` kind: its columns are not ours by another name.
    """
    before = len(faults)
    there = {*table.columns, *mapping.names}
    if there >= set(other.required) and not there >= set(ours.required):
        right = f"one with {', '.join(ours.required)}"
        faults.add((table.file, table.header), f"is a table of {other.noun}", right)
        return None
    index = {name: nr for nr, name in enumerate(table.columns)}

    def find(names: dict[str, tuple[str, Place]]) -> dict[str, int]:
        for theirs, place in names.values():
            if theirs not in index:
                right = did_you_mean(theirs, table.columns, noun="columns")
                faults.add(place, f'{table.file} has no column "{theirs}"', right)
        return {name: index[theirs] for name, (theirs, _) in names.items() if theirs in index}

    at = find(mapping.names)
    at |= {name: index[name] for name in ours.all if name in index and name not in mapping.names}
    domains = find(mapping.domains)
    unused = [name for name, nr in index.items() if nr not in {*at.values(), *domains.values()}]
    if ours.has_domains:
        domains |= {name: index[name] for name in unused if name in WELL_KNOWN_DOMAINS}
        unused = [name for name in unused if name not in domains]
    looked_for = at | dict.fromkeys(mapping.names, 0)
    _note_missing(table, ours, looked_for, faults)
    complete = len(faults) == before
    strange = [name for name in unused if name not in mapping.ignore]
    _note_misspelt(table, ours, looked_for, strange, faults)
    return Columns(at, domains, tuple(unused), mapping.memory_unit, complete)


def _note_missing(table: Table, ours: ColumnNames, at: dict[str, int], faults: Faults) -> None:
    for name in ours.required:
        if name not in at:
            near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.6)
            theirs = near[0] if near else "their name for it"
            right = f'add it, or map it: {name} = "{theirs}" in [{ours.section}]'
            faults.add((table.file, table.header), f'no column "{name}"', right)


def _note_misspelt(
    table: Table, ours: ColumnNames, at: dict[str, int], unused: list[str], faults: Faults
) -> None:
    """A misspelt optional column would be left out in silence, its pool with it."""
    absent = [name for name in ours.optional if name not in at]
    for name in unused:
        if near := difflib.get_close_matches(name, absent, n=1, cutoff=0.8):
            right = f"rename it, or add it to `ignore` in [{ours.section}]"
            what = f'column "{name}" looks like {near[0]} misspelt'
            faults.add((table.file, table.header), what, right)
