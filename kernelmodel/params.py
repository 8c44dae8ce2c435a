"""The kernel command line. C: kernel/params.c, lib/kstrtox.c (kstrtobool), lib/cmdline.c, 7.3.

Words are `name=value`; a value may stand in double quotes, `-` in a name is as good as `_`, and
what follows a bare `--` is for the first process. Every word of a name is given to that name's
parser in turn, so one that cannot be read changes nothing that an earlier one said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

__all__ = ["KernelParams", "kstrtobool", "memparse"]

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
#: An octal number ends before the first 8 or 9, and `0x` without a digit is the number 0.
_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[0-9]+)")
_SHIFTS = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_U64 = (1 << 64) - 1


class KernelParams:
    """The words for the kernel, in their order."""

    __slots__ = ("_values", "_words", "cmdline")

    def __init__(self, cmdline: str) -> None:
        self.cmdline = cmdline
        self._words, self._values = _parse(cmdline)

    def get(self, name: str) -> str | None:
        """The last value; empty for a bare word, None if it is not there."""
        values = self._values.get(name)
        return values[-1] if values else None

    def values(self, name: str) -> tuple[str, ...]:
        """All values in their order."""
        return self._values.get(name, ())

    def words(self) -> Iterator[tuple[str, str]]:
        """(name, value) of each word, in their order; the value of a bare word is empty."""
        return iter(self._words)

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean; words that say neither leave what was there before."""
        for value in self.values(name):
            said = kstrtobool(value)
            default = default if said is None else said
        return default


@lru_cache(maxsize=256)  # a fleet's hosts boot with few command lines
def _parse(cmdline: str) -> tuple[tuple[tuple[str, str], ...], Mapping[str, tuple[str, ...]]]:
    words: list[tuple[str, str]] = []
    values: dict[str, tuple[str, ...]] = {}
    for word in _WORD.findall(cmdline):
        if word == "--":
            break
        name, _, value = word.strip('"').partition("=")
        name, value = name.replace("-", "_"), value.strip('"')
        words.append((name, value))
        values[name] = (*values.get(name, ()), value)
    return tuple(words), MappingProxyType(values)


def kstrtobool(value: str) -> bool | None:
    """Only the first letter counts, after an `o` the second. C: kstrtobool()."""
    first, second = value[:1].lower(), value[1:2].lower()
    if first in {"1", "e", "y", "t"} or (first, second) == ("o", "n"):
        return True
    if first in {"0", "d", "n", "f"} or (first, second) == ("o", "f"):
        return False
    return None


def memparse(text: str) -> tuple[int, str]:
    """A size such as `64M` in bytes, and what stands behind it. C: memparse().

    0 where there is no number, and the whole text behind it. What does not fit 64 bits, with its
    suffix or without, is the largest number.
    """
    match = _NUMBER.match(text)
    if match is None:
        return 0, text
    base = 16 if match["hex"] else 8 if match["octal"] else 10
    number = min(int(match["hex"] or match[0], base), _U64)
    behind = text[match.end() :]
    shift = _SHIFTS.get(behind[:1].upper())
    if shift is None:
        return number, behind
    return min(number << shift, _U64), behind[1:]
