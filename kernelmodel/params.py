"""The kernel command line. C: kernel/params.c, lib/kstrtox.c (kstrtobool), 7.3."""

from __future__ import annotations

__all__ = ["KernelParams"]

_TRUE = frozenset({"1", "y", "Y", "t", "T", "on", "oN", "On", "ON"})
_FALSE = frozenset({"0", "n", "N", "f", "F", "of", "off", "OFF", "Off"})


class KernelParams:
    """`name=value` words; of a name given twice the last counts here."""

    __slots__ = ("_values", "cmdline")

    def __init__(self, cmdline: str) -> None:
        self.cmdline = cmdline
        self._values: dict[str, str] = {}
        for word in cmdline.split():
            name, _, value = word.partition("=")
            self._values[name] = value

    def get(self, name: str) -> str | None:
        """The value; empty for a bare word, None if it is not there."""
        return self._values.get(name)

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean as kstrtobool() reads it; what it cannot read leaves the default."""
        value = self._values.get(name)
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        return default
