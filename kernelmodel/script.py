"""The text of a script of live-update operations, read and checked.

One operation a line, `op arg…`; empty lines and lines that start with `#` are skipped but
counted; a line `kexec [LABEL]` ends a boot, with the handover corrupted as the label says. A first
line `#! memory=SIZE [nodes=N] [PARAMS]` describes the machine, PARAMS being the whole command line,
and makes it a script about huge pages, in which lengths of files count those. `#! plain
memory=SIZE …` is an ordinary script on such a machine; it knows the operations on huge pages too.
Before the operations of a boot, a line `boot [kernel=NAME] [PARAMS]` says that it is a boot of
another kernel, or adds to its command line.

Unhappy path: `ScriptError` with every fault of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from kernelmodel.corruptions.catalogue import CORRUPTIONS
from kernelmodel.errors import ERRNO_CLASSES
from kernelmodel.machine import MachineSpec
from kernelmodel.memory import GIB, KIB, MIB

__all__ = [
    "CMDLINE",
    "FAILING",
    "HUGE_PAGE_ORDERS",
    "KERNELS",
    "Given",
    "Script",
    "ScriptError",
    "Step",
    "number",
]

#: The command line of the kernel that the recordings were taken from, and a size to match.
CMDLINE: Final = "liveupdate=on kho_scratch=32M,128M,32M"
_MEMORY: Final = 2 * GIB
#: QEMU's firmware keeps ACPI's tables there.
_FIRMWARE_BYTES: Final = 128 * KIB
HUGE_PAGE_ORDERS: Final = {"2M": 9, "1G": 18}
_UNITS: Final = {"M": MIB, "G": GIB}
_NODES_MAX: Final = 8
_KEXEC_WORDS_MAX: Final = 2
#: Bytes that a length can be, by its kind.
_MOST: Final = {"p": 4096, "n": 1 << 32}
_U64: Final = (1 << 64) - 1
_NUMBERS: Final = range(-1 << 63, 1 << 64)
_NUMBER: Final = re.compile(r"-?[0-9]+|(0[xX])[0-9a-fA-F]+")

#: Kernels that a boot can be of instead of the usual one.
KERNELS: Final = {"no-memfd": "built without CONFIG_LIVEUPDATE_MEMFD"}

#: Kernel functions that `fail` makes fail, and where that happens on the modelled host.
FAILING: Final = {
    "memfd_luo_preserve": "memfd_luo_preserve",
    "memfd_luo_freeze": "luo_file_freeze",
    "memfd_luo_retrieve": "luo_retrieve_file",
    "kho_alloc_preserve": "kho_alloc_preserve",
    "kho_preserve_vmalloc": "kho_preserve_vmalloc",
    "memfd_pin_folios": "memfd_pin_folios",
    "memfd_alloc_file": "memfd_alloc_file",
    "luo_session_alloc": "luo_session_alloc",
    "luo_session_getfile": "luo_session_getfile",
    "luo_flb_file_preserve": "luo_flb_file_preserve",
    "kho_block_set_grow": "kho_block_set_grow",
    "luo_session_serialize": "luo_session_serialize",
    "__xa_insert": "xa_insert",
}

#: Arguments of each operation: v a variable, i an integer, c one from 1 on, n a length, p one of up
#: to a page, r the same and perhaps an r, s a size, w a word, f a function that can fail, e an
#: error's name; `?` from here on optional, `*` any number of the last.
_OPERATIONS: Final = {
    "open": "v",
    "null": "v",
    "tmpfile": "v?w",
    "close": "v",
    "dup": "vv",
    "create": "vvw",
    "retrieve": "vvw",
    "memfd": "vi?w",
    "fill": "vini",
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
    "rawin": "vrii?*",
    "read": "w",
    "write": "w?w",
    "fail": "fce",
    "tryreboot": "",
    "load": "i?p",
    "pool": "si?i",
    "overcommit": "si",
    "hstat": "s?i",
    "hmem": "vsi?i",
    "map": "wvii?w",
    "pmap": "wsi?w",
    "touch": "wii",
    "unmap": "w",
}
#: Lines that are no operations.
_ELSEWHERE: Final = {
    "boot": "a boot line stands before all operations of its boot",
    "kexec": "kexec takes one label at most",
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
class Given:
    """What a boot is given: words for its command line, and a kernel's name."""

    params: str = ""
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, cut at its `kexec` lines: `boots[k]` are the operations of boot k + 1."""

    boots: tuple[tuple[Step, ...], ...]
    memory_bytes: int = _MEMORY
    cmdline: str = CMDLINE
    #: Lengths of files count huge pages.
    huge: bool = False
    #: NUMA nodes that share the memory equally.
    nodes: int = 1
    #: Of each jump, the label of what it does to the handover, or "".
    corruptions: tuple[str, ...] = ()
    #: Of each boot, what its `boot` line says.
    given: tuple[Given, ...] = ()

    def cmdline_of(self, boot_index: int) -> str:
        """The whole command line of a boot, 0 being the first."""
        return (
            f"{self.cmdline} {self.given[boot_index].params}".rstrip()
            if self.given
            else self.cmdline
        )

    def kernel_of(self, boot_index: int) -> str:
        """The name of the kernel of a boot, "" for the usual one."""
        return self.given[boot_index].kernel if self.given else ""

    @property
    def node_bytes(self) -> tuple[int, ...]:
        """Bytes of memory of each node."""
        return (self.memory_bytes // self.nodes,) * self.nodes

    def machine_spec(self, cpus: int) -> MachineSpec:
        """The machine to play it on, which has the firmware of the one that recordings are of."""
        return MachineSpec(self.node_bytes, cpus, _FIRMWARE_BYTES)

    def uses(self, op: str) -> bool:
        """Whether an operation occurs in it."""
        return any(step.op == op for steps in self.boots for step in steps)

    @classmethod
    def parse(cls, text: str) -> Script:
        """Read a script.

        Raises:
            ScriptError: with every fault in it.
        """
        lines = text.splitlines()
        faults: list[tuple[int, str]] = []
        given = lines[0].startswith("#!") if lines else False
        machine, machine_faults = _machine(lines[0]) if given else (_Machine(), [])
        faults += [(1, what) for what in machine_faults]
        boots: list[list[Step]] = [[]]
        corruptions: list[str] = []
        boot_lines = [Given()]
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if words[0] == "kexec" and len(words) <= _KEXEC_WORDS_MAX:
                boots.append([])
                boot_lines.append(Given())
                corruptions += words[1:] or [""]
                if corruptions[-1] and corruptions[-1] not in CORRUPTIONS:
                    faults.append((number, _no_corruption(corruptions[-1])))
                continue
            if words[0] == "boot" and not boots[-1]:
                boot_lines[-1], why = _given(words[1:])
            else:
                why = _fault(words, huge=given)
            if why:
                faults.append((number, why))
            elif words[0] != "boot":
                boots[-1].append(Step(number, words[0], tuple(words[1:])))
        if faults:
            raise ScriptError(faults)
        return cls(
            tuple(tuple(steps) for steps in boots),
            machine.memory_bytes,
            machine.cmdline,
            machine.huge,
            machine.nodes,
            tuple(corruptions),
            tuple(boot_lines),
        )


@dataclass(frozen=True, slots=True)
class _Machine:
    """What the first line says."""

    memory_bytes: int = _MEMORY
    cmdline: str = CMDLINE
    huge: bool = False
    nodes: int = 1


def _machine(line: str) -> tuple[_Machine, list[str]]:
    """A line `#! [plain] memory=SIZE [nodes=N] [PARAMS]`, and what is wrong with it."""
    faults: list[str] = []
    first, _, rest = line.removeprefix("#!").strip().partition(" ")
    huge = first != "plain"
    if not huge:
        first, _, rest = rest.strip().partition(" ")
    memory, nodes = _MEMORY, 1
    size = first.removeprefix("memory=")
    digits, unit = size[:-1], _UNITS.get(size[-1:])
    if first == f"memory={size}" and unit and digits.isdecimal() and int(digits):
        memory = int(digits) * unit
    else:
        faults.append(f"{first!r} is no memory size; memory=4G is")
    if rest.startswith("nodes="):
        word, _, rest = rest.partition(" ")
        count = word.removeprefix("nodes=")
        if count.isdecimal() and 1 <= int(count) <= _NODES_MAX:
            nodes = int(count)
        else:
            faults.append(f"{word!r} is no number of nodes; 1 to {_NODES_MAX} are")
        if memory % (nodes * MIB):
            faults.append(f"{size} cannot be shared equally by {nodes} nodes, in whole megabytes")
    rest = rest.strip()
    return _Machine(memory, rest if rest or huge else CMDLINE, huge, nodes), faults


def _given(words: list[str]) -> tuple[Given, str]:
    """What a `boot` line says, and what is wrong with it."""
    kernel = ""
    if words and words[0].startswith("kernel="):
        kernel = words[0].removeprefix("kernel=")
        words = words[1:]
        if kernel not in KERNELS:
            return Given(), f"{kernel!r} is no kernel; there are {', '.join(KERNELS)}"
    return Given(" ".join(words), kernel), ""


def _no_corruption(label: str) -> str:
    near = get_close_matches(label, CORRUPTIONS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{label!r} is no corruption{hint}"


def _fault(words: list[str], *, huge: bool) -> str:
    op, *args = words
    if op in _ELSEWHERE:
        return _ELSEWHERE[op]
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
    return next(filter(None, map(_fault_of_argument, kinds, args)), "")


def _fault_of_argument(kind: str, arg: str) -> str:
    if kind == "r":
        kind, arg = "p", arg.removesuffix("r")
    if kind in "icnp" and _parse(arg) is None:
        if _NUMBER.fullmatch(arg):
            return f"{arg!r} does not fit in 64 bits"
        return f"{arg!r} is no number; 4096 and 0x1000 are"
    if kind in _MOST and number(arg) > _MOST[kind]:
        return f"{arg!r} is more than the {_MOST[kind]} bytes that it can be"
    if kind == "c" and number(arg) < 1:
        return f"{arg!r} is no call; the next one is 1"
    if kind == "s" and arg not in HUGE_PAGE_ORDERS:
        return f"{arg!r} is no huge page size; 2M and 1G are"
    if kind == "f" and arg not in FAILING:
        return f"{arg!r} cannot be made to fail; {', '.join(FAILING)} can"
    if kind == "e" and arg not in ERRNO_CLASSES:
        return f"{arg!r} is no error; ENOMEM is"
    return ""


def _parse(text: str) -> int | None:
    """As strtoull() has it: what is below zero counts from 2^64 down."""
    match = _NUMBER.fullmatch(text)
    value = int(match[0], 16 if match[1] else 10) if match else 1 << 64
    return value & _U64 if value in _NUMBERS else None


def number(text: str) -> int:
    """A number of a script that was read without faults."""
    value = _parse(text)
    assert value is not None, "checked when the script was read"
    return value
