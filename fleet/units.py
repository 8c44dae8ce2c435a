"""What people write for sizes, durations and shares, as integers.

Sizes are binary, `512GiB`, `2M` (as the kernel has it) or plain bytes; `GB` is refused, because
half of its readers mean 2^30 and half 10^9. Durations need a unit. Fractions must come out even,
so `1.5GiB` is fine and `0.3B` is not. Everything raises `Unfit`, whose two halves are what is
wrong with the value and what would be right; where it stands the caller knows.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

__all__ = [
    "Unfit",
    "counted",
    "parse_count",
    "parse_duration_ns",
    "parse_share",
    "parse_size",
    "plural",
    "show_duration",
    "show_size",
    "shown",
]

_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    **{
        name: 1 << (10 * power)
        for power, letter in enumerate("kmgt", start=1)
        for name in (letter, f"{letter}i", f"{letter}ib")
    },
}
_DECIMAL_UNITS: Final = ("kb", "mb", "gb", "tb")
_DURATION_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_NUMBER_UNIT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-zµ]*)", re.ASCII)
_SIZE_RIGHT: Final = 'write bytes or a size like "512GiB"'
_DURATION_RIGHT: Final = 'write a duration like "30s", "5min" or "1h30min"'


class Unfit(Exception):
    """A value that cannot be what it has to be."""

    def __init__(self, what: str, right: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.right = right


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) > 10**30:
        return "a huge number"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 60 else f"{text[:60]}…"


def parse_size(value: object) -> int:
    """Bytes of "512GiB", "2M", "1073741824" or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise Unfit(f"{shown(value)} is negative", _SIZE_RIGHT)
        return value
    match = _NUMBER_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise Unfit(f"{shown(value)} is not a size", _SIZE_RIGHT)
    number, unit = match[1], match[2].lower()
    if unit in _DECIMAL_UNITS:
        binary = f"{number}{unit[0].upper()}iB"
        raise Unfit(f"{shown(value)} may be decimal or binary", f"write {binary} or bytes")
    if unit not in _SIZE_UNITS:
        raise Unfit(f"{shown(value)} has an unknown unit", "known: KiB, MiB, GiB, TiB")
    size = Fraction(number) * _SIZE_UNITS[unit]
    if size.denominator != 1:
        raise Unfit(f"{shown(value)} is not a whole number of bytes", _SIZE_RIGHT)
    return int(size)


def parse_duration_ns(value: object) -> int:
    """Nanoseconds of "30s", "250ms" or "1h30min"."""
    if not isinstance(value, str):
        raise Unfit(f"{shown(value)} has no unit", _DURATION_RIGHT)
    text = value.strip()
    total = Fraction(0)
    at = 0
    while match := _NUMBER_UNIT.match(text, at):
        unit = match[2].replace("µ", "u")
        if unit not in _DURATION_UNITS:
            known = ", ".join(_DURATION_UNITS)
            raise Unfit(f"{shown(value)} has an unknown unit of time", f"known: {known}")
        total += Fraction(match[1]) * _DURATION_UNITS[unit]
        at = match.end()
    if at == 0 or at != len(text):
        raise Unfit(f"{shown(value)} is not a duration", _DURATION_RIGHT)
    if total.denominator != 1:
        raise Unfit(f"{shown(value)} is not a whole number of nanoseconds", _DURATION_RIGHT)
    return int(total)


def parse_count(value: object, at_least: int, at_most: int) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        hint = "write it without quotes" if isinstance(value, str) and value.isdecimal() else ""
        raise Unfit(f"{shown(value)} is not a whole number", hint)
    if value < at_least:
        raise Unfit(f"{shown(value)} is too small", f"{at_least} or more")
    if value > at_most:
        raise Unfit(f"{shown(value)} is too large", f"{at_most} or less")
    return value


def parse_share(value: object, of: int, at_least: int, at_most: int) -> int:
    """A whole number, or "25%" of `of` rounded down."""
    if isinstance(value, str):
        number = value.strip().removesuffix("%").strip()
        percent = _NUMBER_UNIT.fullmatch(number)
        if not value.strip().endswith("%") or percent is None or percent[2]:
            raise Unfit(f"{shown(value)} is no share", 'write a whole number or "25%"')
        if Fraction(percent[1]) > 100:
            raise Unfit(f"{shown(value)} is more than all", "100% or less")
        share = int(Fraction(percent[1]) * of / 100)
        if share < at_least:
            raise Unfit(f"{shown(value)} of {of} is {share}", f"{at_least} or more")
        return share
    return parse_count(value, at_least, at_most)


def plural(number: int, noun: str) -> str:
    """The noun for a number of things: "page", "pages"."""
    return noun if number == 1 else f"{noun}s"


def counted(number: int, noun: str) -> str:
    """A number of things: "1 host", "1,234 hosts"."""
    return f"{number:,} {plural(number, noun)}"


def show_size(size: int) -> str:
    """Bytes in the largest unit that keeps them exact and short, or else with one decimal."""
    units = ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"))
    for power, unit in units:
        if size and size % (1 << power) == 0 and size >> power < 10_000:
            return f"{size >> power}{unit}"
    for power, unit in units:
        if size >= 1 << power:
            return f"{size / (1 << power):.1f}{unit}"
    return f"{size}B"


def show_duration(ns: int) -> str:
    """Nanoseconds as people write them: 90 s are 1min30s."""
    parts: list[str] = []
    for unit in ("d", "h", "min", "s", "ms", "us", "ns"):
        number, ns = divmod(ns, _DURATION_UNITS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
