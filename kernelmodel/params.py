"""The kernel command line. C: kernel/params.c, lib/kstrtox.c (kstrtobool), 7.3.

Words are `name=value`; a value may stand in double quotes, `-` in a name is as good as `_`, and
what follows a bare `--` is for the first process. Every word of a name is given to that name's
parser in turn, so one that cannot be read changes nothing that an earlier one said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

__all__ = ["KernelParams"]

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')


class KernelParams:
    """The words for the kernel, in their order."""

    __slots__ = ("_values", "cmdline")

    def __init__(self, cmdline: str) -> None:
        self.cmdline = cmdline
        self._values = _parse(cmdline)

    def get(self, name: str) -> str | None:
        """The last value; empty for a bare word, None if it is not there."""
        values = self._values.get(name)
        return values[-1] if values else None

    def values(self, name: str) -> tuple[str, ...]:
        """All values in their order."""
        return self._values.get(name, ())

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean; words that say neither leave what was there before."""
        for value in self.values(name):
            said = _kstrtobool(value)
            default = default if said is None else said
        return default


@lru_cache(maxsize=256)  # a fleet's hosts boot with few command lines
def _parse(cmdline: str) -> Mapping[str, tuple[str, ...]]:
    values: dict[str, tuple[str, ...]] = {}
    for word in _WORD.findall(cmdline):
        if word == "--":
            break
        name, _, value = word.strip('"').partition("=")
        name = name.replace("-", "_")
        values[name] = (*values.get(name, ()), value.strip('"'))
    return MappingProxyType(values)


def _kstrtobool(value: str) -> bool | None:
    """Only the first letter counts, after an `o` the second. C: kstrtobool()."""
    first, second = value[:1].lower(), value[1:2].lower()
    if first in {"1", "y", "t"} or (first, second) == ("o", "n"):
        return True
    if first in {"0", "n", "f"} or (first, second) == ("o", "f"):
        return False
    return None
