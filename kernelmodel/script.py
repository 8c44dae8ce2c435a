"""The text of a script of live-update operations, read and checked.

One operation a line, `op arg…`; empty lines and lines that start with `#` are skipped but
counted; a line `kexec` ends a boot. A first line `#! PARAMS` gives memory size and kernel
parameters of a script about huge pages.

Unhappy path: `ScriptError` with every fault of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kernelmodel.memory import GIB

__all__ = ["CMDLINE", "HUGE_PAGE_ORDERS", "Script", "ScriptError", "Step", "number"]

#: The command line of the kernel that the recordings were taken from, and a size to match.
CMDLINE: Final = "liveupdate=on kho_scratch=32M,128M,32M"
_MEMORY: Final = 2 * GIB
HUGE_PAGE_ORDERS: Final = {"2M": 9, "1G": 18}

#: Arguments of each operation: v a variable, i an integer, s a size, w a word; `?` from here on
#: optional, `*` any number of the last one.
_OPERATIONS: Final = {
    "open": "v",
    "null": "v",
    "tmpfile": "v",
    "close": "v",
    "dup": "vv",
    "create": "vvw",
    "retrieve": "vvw",
    "memfd": "vi?w",
    "fill": "viii",
    "seek": "vi",
    "truncate": "vi?i",
    "fallocate": "viii",
    "seal": "vi",
    "stat": "v",
    "preserve": "vvi",
    "fetch": "vvi",
    "finish": "v?i",
    "name": "v",
    "same": "vv",
    "raw": "vii?*",
    "pool": "si",
    "overcommit": "si",
    "hstat": "s",
    "hmem": "vsi?i",
    "map": "wvii?w",
    "pmap": "wsi?w",
    "touch": "wii",
    "unmap": "w",
}
_ONLY_HUGE: Final = {"pool", "overcommit", "hstat", "hmem", "map", "pmap", "touch", "unmap"}


class ScriptError(ValueError):
    """A text that is no script; `faults` are (line, what is wrong)."""

    def __init__(self, faults: list[tuple[int, str]]) -> None:
        super().__init__("\n".join(f"line {line}: {what}" for line, what in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a script and the line it stands on."""

    line: int
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A script, cut at its `kexec` lines: `boots[k]` are the operations of boot k + 1."""

    boots: tuple[tuple[Step, ...], ...]
    memory_bytes: int = _MEMORY
    cmdline: str = CMDLINE
    huge: bool = False

    @classmethod
    def parse(cls, text: str) -> Script:
        """Read a script.

        Raises:
            ScriptError: with every fault in it.
        """
        lines = text.splitlines()
        faults: list[tuple[int, str]] = []
        memory, cmdline, huge = _MEMORY, CMDLINE, False
        if lines and lines[0].startswith("#!"):
            huge = True
            word, _, cmdline = lines[0].removeprefix("#!").strip().partition(" ")
            gib = word.removeprefix("memory=").removesuffix("G")
            if word == f"memory={gib}G" and gib.isdecimal() and int(gib):
                memory = int(gib) * GIB
            else:
                faults.append((1, f"{word!r} is no memory size; memory=4G is"))
        boots: list[list[Step]] = [[]]
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if words == ["kexec"]:
                boots.append([])
                continue
            why = _fault(words, huge=huge)
            if why:
                faults.append((number, why))
            else:
                boots[-1].append(Step(number, words[0], tuple(words[1:])))
        if faults:
            raise ScriptError(faults)
        return cls(tuple(tuple(steps) for steps in boots), memory, cmdline, huge)


def _fault(words: list[str], *, huge: bool) -> str:
    op, *args = words
    if op not in _OPERATIONS or (op in _ONLY_HUGE and not huge):
        known = ", ".join(name for name in _OPERATIONS if huge or name not in _ONLY_HUGE)
        return f"{op!r} is no operation; there are {known}"
    required, _, optional = _OPERATIONS[op].partition("?")
    kinds = required + optional
    if "*" in kinds:
        kinds = kinds[:-1] + "i" * max(0, len(args) - len(required))
    if not len(required) <= len(args) <= len(kinds):
        most = "" if len(kinds) == len(required) else f" to {len(kinds)}"
        return f"{op} takes {len(required)}{most} arguments, not {len(args)}"
    for kind, arg in zip(kinds, args, strict=False):
        if kind == "i" and _parse(arg) is None:
            return f"{arg!r} is no number; 4096 and 0x1000 are"
        if kind == "s" and arg not in HUGE_PAGE_ORDERS:
            return f"{arg!r} is no huge page size; 2M and 1G are"
    return ""


def _parse(text: str) -> int | None:
    try:
        return int(text, 16) if text[:2] in {"0x", "0X"} else int(text)
    except ValueError:
        return None


def number(text: str) -> int:
    """A number of a script that was read without faults."""
    value = _parse(text)
    assert value is not None, "checked when the script was read"
    return value
