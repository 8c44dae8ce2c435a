"""Kernel releases that users add to the catalogue: a build of their own, a kernel to come.

    [[release]]
    name = "7.4-rc1"
    based_on = "7.3.4"
    luo = "luo-v6"

What is not said is as in the release that it is based on, one of the catalogue or one further up.
They stand in a scenario, or in a file that scenarios and `lufleet releases` name;
`docs/releases.md` describes every key.

A release that cannot be is refused: a LUO without KHO under it, a string that does not fit where
the kernel keeps it, a name that is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from fleet.bad_input import Faults, Place, did_you_mean, place_text
from fleet.fields import Fields
from fleet.toml_source import TomlSource
from fleet.units import Unfit, shown
from kernelmodel.hugetlb_designs import DESIGNS
from kernelmodel.releases import CATALOGUE, Release

__all__ = ["load_releases", "parse_release", "read_releases"]

_RIGHT: Final = '[[release]] with name = "7.4-rc1", based_on = "7.3.4" and what differs'
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")  # struct new_utsname, 65 bytes
#: Key -> the longest string, without its NUL, that the kernel's structure holds.
_LONGEST: Final = {"kho": 63, "luo": 7, "hugetlb": 47}
_LONGEST_HANDLER: Final = 47
#: File handlers, which need a LUO.
_HANDLERS: Final = ("memfd", "hugemfd", "kvm_vm", "guest_memfd", "guest_hugetlb")
_LONGEST_PROPOSAL: Final = 100


def load_releases(path: Path) -> tuple[Release, ...]:
    """The releases of a file that has them, which may be a scenario.

    Raises:
        BadInput: with every mistake in them.
    """
    faults = Faults()
    source = TomlSource.read(path, (), faults)
    root = Fields(source, source.values, faults)
    own = read_releases(root, path.parent)
    if not len(faults) and not own:
        root.missing("release", _RIGHT)
    faults.raise_if_any()
    return own


def read_releases(root: Fields, folder: Path) -> tuple[Release, ...]:
    """Those of the file that `releases` names, then those of the scenario itself."""
    found: dict[str, Release] = {}
    places: dict[str, Place] = {}
    if root.given("releases"):
        path, named_at = folder / root.text("releases"), root.place("releases")
        source = TomlSource.read(path, (), root.faults, named_at)
        file = Fields(source, source.values, root.faults)
        if source.values and not file.given("release"):
            file.missing("release", _RIGHT)
        _read_all(file, found, places)
        file.close()
    _read_all(root, found, places)
    return tuple(found.values())


def parse_release(value: object, known: Mapping[str, Release]) -> str:
    """The name of a release that is known. Raises: Unfit."""
    text = value.strip() if isinstance(value, str) else ""
    if text not in known:
        right = did_you_mean(text, known, noun="releases")
        raise Unfit(f"{shown(value)} is no release that is modelled", right)
    return text


def _read_all(root: Fields, found: dict[str, Release], places: dict[str, Place]) -> None:
    for fields in root.tables("release"):
        name = fields.parsed_text("name", _parse_name, "what uname -r says")
        known = CATALOGUE | found
        based_on = fields.parsed_text(
            "based_on", partial(parse_release, known=known), "a release that is known"
        )
        made = _read_one(fields, replace(known.get(based_on, CATALOGUE["7.3.4"]), name=name))
        fields.close()
        if name in CATALOGUE:
            fields.complain("name", f'"{name}" is in the catalogue', "a name of its own")
        elif name in places:
            where = place_text(places[name])
            fields.complain("name", f'"{name}" is there twice, first at {where}')
        elif name:
            places[name] = fields.place("name")
            found[name] = replace(made, based_on=based_on)


def _parse_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        right = "up to 64 letters, digits and any of . _ + ~ -"
        raise Unfit(f"{shown(value)} is no name of a release", right)
    return value


def _read_one(fields: Fields, base: Release) -> Release:
    """What a table says beyond its name and base."""
    strings = {key: _string(fields, key, base) for key in (*_LONGEST, *_HANDLERS)}
    made = replace(
        base,
        **strings,  # type: ignore[arg-type] # they are the fields of this type
        kho_extends_scratch=fields.boolean("kho_extends_scratch", base.kho_extends_scratch),
        relocatable=fields.boolean("relocatable", base.relocatable),
        proposal=_proposal(fields, base),
    )
    if fields.given("hugetlb_design"):
        made = replace(made, hugetlb_design=fields.text("hugetlb_design", choices=DESIGNS))
    if made.kho is None:
        _without(fields, "luo", "KHO")
        made = replace(made, luo=None)
    if made.luo is None:
        needing = (*_HANDLERS, "hugetlb", "hugetlb_design")
        for key in needing:
            _without(fields, key, "LUO")
        made = replace(made, **dict.fromkeys(needing))  # type: ignore[arg-type] # as above
    _check_together(fields, base, made)
    return made


def _check_together(fields: Fields, base: Release, made: Release) -> None:
    """Find what goes with something that is not there, or clashes with it."""
    together = {key: getattr(made, key) for key in ("hugetlb", "hugemfd", "hugetlb_design")}
    for key, value in together.items():
        if value is None and any(together.values()):
            fields.missing(key, f"it goes with {', '.join(k for k in together if k != key)}")
    if made.hugetlb_design != base.hugetlb_design and made.hugetlb == base.hugetlb:
        what = f"{made.hugetlb} is the state of the design {base.hugetlb_design}"
        if base.hugetlb is not None:
            fields.complain("hugetlb", what, "another design needs a string of its own")
    if made.guest_hugetlb is not None and made.hugetlb is None:
        fields.missing("hugetlb", "guest_hugetlb goes with it")
    handlers: dict[str, str] = {}
    for key in _HANDLERS:
        name = getattr(made, key)
        if name is not None and (other := handlers.setdefault(name, key)) != key:
            fields.complain(key, f'"{name}" is the name of the {other} handler')


def _string(fields: Fields, key: str, base: Release) -> str | None:
    """A compatible string; false for a kernel without the part."""
    longest = _LONGEST.get(key, _LONGEST_HANDLER)
    inherited: str | None = getattr(base, key)

    def parse(value: object) -> str | None:
        if value is False:
            return None
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise Unfit(f"{shown(value)} is no compatible string", 'text like "luo-v6", or false')
        if not 0 < len(value) <= longest:
            raise Unfit(f"{shown(value)} has {len(value)} bytes", f"1 to {longest}")
        return value

    if not fields.given(key):
        return inherited
    return fields.parsed(key, parse, inherited, "a compatible string")


def _proposal(fields: Fields, base: Release) -> str | None:
    """What it carries that no released kernel does, in a few words."""
    if fields.given("proposal"):
        said = fields.text("proposal")
        if len(said) > _LONGEST_PROPOSAL:
            fields.complain("proposal", "is too long", f"up to {_LONGEST_PROPOSAL} characters")
        return said[:_LONGEST_PROPOSAL] or None
    design = fields.take("hugetlb_design")
    if isinstance(design, str) and design != base.hugetlb_design:
        return f"with the proposal {design}"
    return base.proposal


def _without(fields: Fields, key: str, part: str) -> None:
    """A key that means something only with a part that is not there."""
    if fields.take(key):
        fields.complain(key, f"a kernel without {part} has none", f"leave it out, or add {part}")
