"""Typed reading of one TOML table, key by key.

A reader asks for each key it knows; what it did not ask for when it closes the table is
unknown, and said so with the closest key that is known. A value that does not fit is noted and
replaced by a stand-in, so that reading goes on: what comes out of a `Fields` may only be used
once `Faults` turned out empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final, TypeVar

from fleet.bad_input import Faults, Place, did_you_mean
from fleet.toml_source import Key, TomlSource, TomlValue, dotted
from fleet.units import (
    Unfit,
    parse_count,
    parse_duration_ns,
    parse_share,
    shown,
)
from node.api import LONGEST_WAIT_NS

__all__ = ["Fields"]

_T = TypeVar("_T")
_NOT_GIVEN: Final = object()


class Fields:
    """One table: the values under `key` in a source."""

    def __init__(
        self,
        source: TomlSource,
        values: dict[str, TomlValue],
        faults: Faults,
        key: Key = (),
        asked: dict[str, None] | None = None,
    ) -> None:
        self.source = source
        self.faults = faults
        self.key = key
        #: Every key that any table of this source was asked for, items of arrays as `[]`.
        self.asked: dict[str, None] = {} if asked is None else asked
        self._known: dict[str, None] = {}
        self.values = values

    def place(self, *names: str) -> Place:
        """Where a value stands, or where it would; without a name, this table."""
        return self.source.place((*self.key, *names))

    def complain(self, name: str, what: str, right: str = "") -> None:
        """Note a mistake in a value; `what` begins behind the key's name."""
        place, full = self.place(name), dotted((*self.key, name))
        said = what if place[0] == f"--set {full}" else f"{full}: {what}"
        self.faults.add(place, said, right)

    def missing(self, name: str, right: str) -> None:
        """Note that a key is not there, unless lines were left out in which it may have been."""
        if not self.source.damaged:
            self.complain(name, "missing", right)

    def text(
        self,
        name: str,
        default: str | None = None,
        choices: Collection[str] = (),
        noun: str = "",
    ) -> str:
        """A printable string, one of `choices` if there are any."""

        def parse(value: object) -> str:
            if not isinstance(value, str):
                raise Unfit(f"{shown(value)} is not text", "write it in quotes")
            if not value.isprintable():
                raise Unfit(f"{shown(value)} has characters that cannot be printed")
            if choices and value not in choices:
                raise Unfit(f"{shown(value)} is not known", did_you_mean(value, choices, noun=noun))
            return value

        right = f"one of {', '.join(choices)}" if choices else "it is needed"
        return self._read(name, parse, default, "", right, text=True)

    def parsed(self, name: str, parse: Callable[[object], _T], stand_in: _T, right: str) -> _T:
        """A value that must be there, read by a parser that raises `Unfit`."""
        return self._read(name, parse, None, stand_in, right)

    def parsed_text(self, name: str, parse: Callable[[object], str], right: str) -> str:
        """The same for a text."""
        return self._read(name, parse, None, "", right, text=True)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""

        def parse(value: object) -> bool:
            if not isinstance(value, bool):
                raise Unfit(f"{shown(value)} is neither true nor false")
            return value

        return self._read(name, parse, default, default)

    def integer(self, name: str, default: int | None, at_least: int, at_most: int) -> int:
        """A whole number within bounds."""
        return self._read(
            name, lambda value: parse_count(value, at_least, at_most), default, at_least
        )

    def number(self, name: str, default: float | None, above: float, at_most: float) -> float:
        """A number within bounds."""

        def parse(value: object) -> float:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Unfit(f"{shown(value)} is not a number")
            if not above < value <= at_most:
                raise Unfit(
                    f"{shown(value)} is out of range", f"above {above:g}, up to {at_most:g}"
                )
            return float(value)

        return self._read(name, parse, default, at_most)

    def share(
        self, name: str, default: int | None, of: int, at_least: int, at_most: int = 10**9
    ) -> int:
        """A whole number, or a percentage of `of`."""
        return self._read(
            name, lambda value: parse_share(value, of, at_least, at_most), default, at_least
        )

    def duration_ns(self, name: str, default: int | None, *, zero: bool = True) -> int:
        """Nanoseconds of a duration, at most a year."""

        def parse(value: object) -> int:
            ns = parse_duration_ns(value)
            if ns == 0 and not zero:
                raise Unfit("zero leaves no time at all", "something above it")
            if ns > LONGEST_WAIT_NS:
                raise Unfit(f"{shown(value)} is too long", "at most 366 days")
            return ns

        return self._read(name, parse, default, LONGEST_WAIT_NS, 'a duration like "30s"')

    def table(self, name: str) -> Fields | None:
        """A table within this one, None if there is none."""
        self._ask(name)
        if name not in self.values:
            return None
        values = self.values[name]
        if not isinstance(values, dict):
            right = f"[{self._path(name).replace('.[]', '')}]"
            self.complain(name, f"{shown(values)} is no table", right)
            return None
        return Fields(self.source, values, self.faults, (*self.key, name), self.asked)

    def needed_table(self, name: str, right: str) -> Fields | None:
        """A table that must be there, None if it cannot be read."""
        table = self.table(name)
        if name not in self.values:
            self.missing(name, right)
        return table

    def tables(self, name: str) -> Iterator[Fields]:
        """The items of an array of tables; none if it is not there."""
        self._ask(name)
        items = self.values.get(name, [])
        right = f"[[{self._path(name).replace('.[]', '')}]]"
        if isinstance(items, dict) and items and all(map(str.isdecimal, items)):
            self.complain(name, f"has no item {next(iter(items))}", "it has none at all")
            return
        if not isinstance(items, list):
            self.complain(name, "is no list of tables", right)
            return
        for nr, item in enumerate(items):
            key = (*self.key, name, nr)
            if isinstance(item, dict):
                yield Fields(self.source, item, self.faults, key, self.asked)
            else:
                place = self.source.place(key)
                self.faults.add(place, f"{dotted(key)}: {shown(item)} is no table", right)

    def given(self, name: str) -> bool:
        """Whether a key that may be left out is there."""
        self._ask(name)
        return name in self.values

    def take(self, name: str) -> TomlValue:
        """A value as it is, None if it is not there."""
        self._ask(name)
        return self.values.get(name)

    def free_keys(self) -> list[str]:
        """The names of a table whose keys are free, such as domains; all count as known."""
        self.asked[self._path("*")] = None
        self._known |= dict.fromkeys(self.values)
        return list(self.values)

    def close(self) -> None:
        """Note every key that nobody asked for."""
        for name in self.values:
            if name not in self._known:
                self.complain(name, "unknown key", did_you_mean(name, self._known, noun="keys"))

    def _path(self, name: str) -> str:
        return dotted(tuple("[]" if isinstance(k, int) else k for k in (*self.key, name)))

    def _ask(self, name: str) -> None:
        self._known[name] = None
        self.asked[self._path(name)] = None

    def _read(
        self,
        name: str,
        parse: Callable[[object], _T],
        default: _T | None,
        stand_in: _T,
        right: str = "it is needed",
        *,
        text: bool = False,
    ) -> _T:
        self._ask(name)
        value = self.values.get(name, _NOT_GIVEN)
        typed = self.source.typed((*self.key, name)) if text else None
        if typed is not None and not isinstance(value, str):
            value = typed  # --set update.target=6.19 means no number
        if value is _NOT_GIVEN:
            if default is not None:
                return default
            self.missing(name, right)
            return stand_in
        try:
            return parse(value)
        except Unfit as unfit:
            self.complain(name, unfit.what, unfit.right)
            return stand_in
