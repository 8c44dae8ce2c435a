"""A TOML file whose mistakes can be pointed at.

The standard parser gives values and forgets where they stood, so the text is read twice:
`tomllib` says what the values are and tree-sitter's TOML grammar where their keys stand.
Each value has a path, ("rollout", "gate", "max_lost_vms") or ("faults", 0, "host"), and
`TomlSource.place(path)` is the file and line to complain about. Values given on the command
line (`--set rollout.soak=1min`) replace those of the file and are complained about as
`--set rollout.soak`.

Syntax errors: the parser stops at its first. The line is then blanked and the rest parsed
again, so that several are found in one go; after an unclosed bracket or string nothing that
follows can be trusted and the search ends.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np
import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from fleet.bad_input import Faults, Place

__all__ = ["Key", "TomlSource", "TomlValue", "dotted", "key_positions", "plain"]

#: What a parsed file consists of. `object` stands for dates and times, which nothing here uses.
TomlValue = object
Key = tuple[str | int, ...]

_AT: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_SYNTAX_ERRORS_SHOWN: Final = 50
_LIST_GOES_ON: Final = ("Unclosed", "Unterminated", "at end of document")


def dotted(key: Key) -> str:
    """('faults', 0, 'host') as `faults.0.host`."""
    return ".".join(map(str, key))


class TomlSource:
    """The values of one file with overrides applied, and where each came from."""

    def __init__(self, file: str, text: str, overrides: Sequence[str], faults: Faults) -> None:
        self.file = file
        self.values: dict[str, TomlValue] = {}
        #: Whether lines had to be left out, so that a missing key proves nothing.
        self.damaged = False
        self.has_lines = True
        self._raw: dict[Key, str] = {}  # overrides as they were typed
        self._lines: dict[Key, int] = {}
        self._parse(text, faults)
        for override in overrides:
            self._override(override, faults)

    @classmethod
    def read(
        cls, path: Path, overrides: Sequence[str], faults: Faults, named_at: Place | None = None
    ) -> TomlSource:
        """Read the file, noting what is wrong with it in `faults`.

        `named_at` is where its name was given, to be blamed if there is no such file.
        """
        text = read_text(path, named_at or (str(path), 0), faults)
        return cls(str(path), text, overrides, faults)

    @classmethod
    def of_values(
        cls, name: str, values: Mapping[str, object], overrides: Sequence[str], faults: Faults
    ) -> TomlSource:
        """The same of values that no file holds: they are at `name`, which has no lines."""
        source = cls(name, "", (), faults)
        source.values = {str(key): plain(value) for key, value in values.items()}
        source.has_lines = False
        for override in overrides:
            source._override(override, faults)
        return source

    def place(self, key: Key) -> Place:
        """File and line of a value, or of the nearest thing around it that has a line."""
        for length in range(len(key), 0, -1):
            if key[:length] in self._raw:
                return f"--set {dotted(key[:length])}", 0
        if key not in self._lines:  # there only because of what was put into it
            for inner in self._raw:
                if key and inner[: len(key)] == key:
                    return f"--set {dotted(inner)}", 0
        for length in range(len(key), 0, -1):
            if line := self._lines.get(key[:length]):
                return self.file, line
        return self.file, int(self.has_lines)

    def typed(self, key: Key) -> str | None:
        """The text of an override as it was typed, None for a value from the file."""
        return self._raw.get(key)

    def _parse(self, text: str, faults: Faults) -> None:
        lines = text.replace("\r\n", "\n").split("\n")
        for _ in range(_SYNTAX_ERRORS_SHOWN):
            try:
                self.values = tomllib.loads("\n".join(lines) + "\n")
            except RecursionError:
                faults.add((self.file, 0), "is nested too deeply", "a scenario needs four levels")
                return
            except ValueError as error:  # TOMLDecodeError, and int() of a number without end
                message = str(error)
                at = _AT.search(message)
                line = min(int(at[1]), len(lines)) if at and at[1] else len(lines)
                what = _AT.sub("", message)
                what = f"not valid TOML: {what[:1].lower()}{what[1:]}"
                faults.add((self.file, max(line, 1)), what)
                self.damaged = True
                blanked = lines[line - 1] if lines else ""
                if any(word in message for word in _LIST_GOES_ON) or not blanked.strip():
                    return
                if blanked.lstrip().startswith("["):
                    return  # what follows would land in the wrong table
                lines[line - 1] = ""
            else:
                break
        self._lines = key_positions("\n".join(lines) + "\n")

    def _override(self, override: str, faults: Faults) -> None:
        name, equals, raw = override.partition("=")
        place = (f"--set {name.strip()}", 0)
        try:
            key = _parse_key(name)
        except (ValueError, RecursionError):
            faults.add(place, "not a key", "write it as --set rollout.wave_size=4")
            return
        if not equals:
            faults.add(place, "has no value", f"write it as --set {name.strip()}=VALUE")
            return
        parent: TomlValue = self.values
        full: list[str | int] = []
        for nr, part in enumerate(key):
            last = nr == len(key) - 1
            if isinstance(parent, list):
                if not (part.isascii() and part.isdecimal() and int(part[:9]) < len(parent)):
                    there = f"0 to {len(parent) - 1}" if parent else "none at all"
                    faults.add(
                        place, f"{dotted(tuple(full))} has no item {part}", f"it has {there}"
                    )
                    return
                full.append(int(part[:9]))
                if last:
                    parent[int(part[:9])] = _parse_value(raw)
                else:
                    parent = parent[int(part[:9])]
            elif isinstance(parent, dict):
                full.append(part)
                if last:
                    parent[part] = _parse_value(raw)
                else:
                    parent = parent.setdefault(part, {})
            else:
                faults.add(place, f"{dotted(tuple(full))} is a value, not a table")
                return
        self._raw = {
            old: text for old, text in self._raw.items() if old[: len(full)] != tuple(full)
        }
        self._raw[tuple(full)] = raw.strip()


def read_text(path: Path, named_at: Place, faults: Faults) -> str:
    """The text of a UTF-8 file; `named_at` is blamed if there is no such file."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        faults.add(named_at, f"cannot read {path}: {why}")
        return ""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.add((str(path), line), "is not UTF-8 text", "save the file as UTF-8")
        return data.decode("utf-8-sig", "replace")


def plain(value: object) -> TomlValue:
    """A value as a TOML file would have it."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _parse_key(text: str) -> tuple[str, ...]:
    """The parts of a dotted key, quoted ones included."""
    parts: list[str] = []
    if "\n" in text or "\r" in text:
        raise ValueError(text)
    parsed: TomlValue = tomllib.loads(f"{text} = 0")
    while isinstance(parsed, dict):
        if len(parsed) != 1:
            raise ValueError(text)
        ((part, parsed),) = parsed.items()
        parts.append(part)
    return tuple(parts)


def _parse_value(text: str) -> TomlValue:
    """A TOML value, or the bare text where it is none: `--set update.target=7.3.4`."""
    try:
        values: dict[str, TomlValue] = tomllib.loads(f"v = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return values["v"] if list(values) == ["v"] else text.strip()


def key_positions(text: str) -> dict[Key, int]:
    """The line, counted from 1, on which each key of a TOML text stands.

    A table's line is that of its header, an array's items have lines of their own.
    """
    tree = Parser(Language(tree_sitter_toml.language())).parse(text.encode())
    found: dict[Key, int] = {}
    items: dict[Key, int] = {}  # arrays of tables -> their items so far
    for node in _statements(tree.root_node):
        if node.type == "pair":
            _note_pair(node, (), found)
            continue
        names = next((child for child in node.named_children if child.type.endswith("_key")), None)
        if names is None:
            continue
        table: Key = ()
        parts = _key_parts(names)
        for nr, part in enumerate(parts):
            table = (*table, part)
            found.setdefault(table, _line(node))
            if node.type == "table_array_element" and nr == len(parts) - 1:
                items[table] = items.get(table, -1) + 1
            if table in items:
                table = (*table, items[table])
                found.setdefault(table, _line(node))
        for child in _statements(node):
            _note_pair(child, table, found)
    return found


def _statements(node: Node) -> Iterator[Node]:
    """The tables and pairs in a node, those inside what the grammar failed on too."""
    for child in node.named_children:
        if child.type in ("pair", "table", "table_array_element"):
            yield child
        elif child.type == "ERROR":
            yield from (c for c in child.named_children if c.type == "pair")


def _line(node: Node) -> int:
    return node.start_point[0] + 1


def _note_pair(pair: Node, table: Key, found: dict[Key, int]) -> None:
    names, *values = (c for c in pair.named_children if c.type != "comment")
    key = table
    for part in _key_parts(names):
        key = (*key, part)
        found.setdefault(key, _line(pair))
    for value in values:
        _note_value(value, key, found)


def _note_value(value: Node, key: Key, found: dict[Key, int]) -> None:
    """Descend into arrays and inline tables, which may hold keys and lines of their own."""
    pending = [(value, key)]
    while pending:
        node, at = pending.pop()
        if node.type == "array":
            elements = (c for c in node.named_children if c.type != "comment")
            for nr, element in enumerate(elements):
                found.setdefault((*at, nr), _line(element))
                pending.append((element, (*at, nr)))
        elif node.type == "inline_table":
            for pair in (c for c in node.named_children if c.type == "pair"):
                names, *values = (c for c in pair.named_children if c.type != "comment")
                inner = at
                for part in _key_parts(names):
                    inner = (*inner, part)
                    found.setdefault(inner, _line(pair))
                pending += [(v, inner) for v in values]


def _key_parts(node: Node) -> tuple[str, ...]:
    """The parts of a bare, quoted or dotted key."""
    text = (node.text or b"").decode(errors="replace")
    try:
        return _parse_key(text)
    except (ValueError, RecursionError):  # only in what tomllib refused as well
        return (text,)
