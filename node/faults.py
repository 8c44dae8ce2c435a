"""Faults that a scenario injects into a host, by kind, in the order in which they were given.

| kind | what it does |
|---|---|
| `slow-boot` | everything from the jump to the agent takes `factor` times as long |
| `freeze-fails` | LUO's freeze of a file fails with `errno` (EBUSY), `times` times |
| `kexec-load-fails` | kexec_file_load fails with `errno` (EADDRNOTAVAIL) |
| `next-kernel-panics` | the kernel that was jumped into panics early |
| `boot-hangs` | it never gets to its agent; the watchdog resets the host |
| `drop-preserved-page` | one page of a VM loses its key in KHO's radix tree before the jump |
| `corrupt-folio-entry` | one entry of a VM's folio table points elsewhere after the jump |

The last two change bytes in physical memory and nothing else: what follows is for the next kernel
to find out. A rule strikes `times` times (0: always) and is then used up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.abi.layout import cstring
from kernelmodel.errors import ERRNO_CLASSES, KernelPanic, ModelBug, kernel_error
from kernelmodel.handlers.folio_table import PreservedFolios
from kernelmodel.kernel import FailFunction, Kernel, no_failures
from kernelmodel.luo.handler import LuoFile
from kernelmodel.memory import PAGE_SHIFT
from node.api import FaultSpec
from node.vm import MEMORY_TOKEN

__all__ = [
    "FAULT_KINDS",
    "LARGEST_FACTOR",
    "BootHang",
    "Faults",
    "corrupt_folio_entry",
    "drop_preserved_page",
    "strike_memory",
    "why_wrong",
]

#: Kind → the fields of a FaultSpec that mean something for it, beside host and times.
FAULT_KINDS: Final[dict[str, frozenset[str]]] = {
    "slow-boot": frozenset({"factor"}),
    "freeze-fails": frozenset({"errno"}),
    "kexec-load-fails": frozenset({"errno"}),
    "next-kernel-panics": frozenset(),
    "boot-hangs": frozenset(),
    "drop-preserved-page": frozenset({"vm"}),
    "corrupt-folio-entry": frozenset({"vm"}),
}

#: Kernel functions that can be made to fail.
_KIND_AT: Final = {"luo_file_freeze": "freeze-fails", "kexec_file_load": "kexec-load-fails"}
#: What a `slow-boot` may be slowed by at most.
LARGEST_FACTOR: Final = 1000.0
_DEFAULT_ERRNO: Final = {"freeze-fails": "EBUSY", "kexec-load-fails": "EADDRNOTAVAIL"}


def why_wrong(spec: FaultSpec) -> str:
    """What is wrong with a fault and what would be right, "" if nothing is."""
    if spec.kind not in FAULT_KINDS:
        return f"no fault {spec.kind!r}; there are: {', '.join(FAULT_KINDS)}"
    if spec.times < 0:
        return f"times is {spec.times}, should be a count, or 0 for always"
    if spec.errno and spec.errno not in ERRNO_CLASSES:
        return f"errno is {spec.errno!r}, should be one of {', '.join(ERRNO_CLASSES)}"
    if not 0 < spec.factor <= LARGEST_FACTOR:
        return f"factor is {spec.factor:g}, should be above 0 and at most {LARGEST_FACTOR:g}"
    return ""


class BootHang(KernelPanic):
    """The booting kernel stopped making progress; a watchdog will notice."""


@dataclass(slots=True, eq=False)
class _Rule:
    """A fault and how often it still strikes; None: always."""

    spec: FaultSpec
    left: int | None


class Faults:
    """The rules of one host and how often each may still strike."""

    __slots__ = ("_rules",)

    def __init__(self, specs: Iterable[FaultSpec]) -> None:
        self._rules: list[_Rule] = []
        for spec in specs:
            self.add(spec)

    def add(self, spec: FaultSpec) -> None:
        """Arm one more."""
        if wrong := why_wrong(spec):
            raise ModelBug(f"{spec.host}: {wrong}")
        self._rules.append(_Rule(spec, spec.times or None))

    def strike(self, kind: str) -> FaultSpec | None:
        """The first rule of this kind that still strikes, used up by one; None if there is none."""
        if not self._rules:  # nearly every host
            return None
        return next(self.strikes(kind), None)

    def strikes(self, kind: str) -> Iterator[FaultSpec]:
        """Every rule of this kind in turn, each used up by one when it is its turn."""
        for rule in [rule for rule in self._rules if rule.spec.kind == kind]:
            if rule.left is not None:
                rule.left -= 1
                if rule.left == 0:
                    self._rules.remove(rule)
            yield rule.spec

    def hook(self) -> FailFunction:
        """What a kernel is to call from here on; a rule that is armed later is not in it yet."""
        return self.fail_function if self._rules else no_failures

    def fail_function(self, function: str, **context: object) -> None:
        """What a kernel calls at its named functions. See `kernelmodel.kernel.FailFunction`."""
        if function == "start_kernel":
            if self.strike("next-kernel-panics"):
                raise KernelPanic("injected: panic while booting")
            if self.strike("boot-hangs"):
                raise BootHang("injected: boot makes no progress")
            return
        kind = _KIND_AT.get(function)
        spec = self.strike(kind) if kind is not None else None
        if kind is not None and spec is not None:
            raise kernel_error(spec.errno or _DEFAULT_ERRNO[kind], "injected", function=function)


def drop_preserved_page(kernel: Kernel, luo_file: LuoFile) -> None:
    """Clear the key of the file's middle folio: KHO forgets one page."""
    tree = kernel.kho.outgoing_tree
    run, order = _middle_run(luo_file)
    if tree is not None:
        tree.del_run(run[0] + (run[1] // 2 << order), order)


def corrupt_folio_entry(kernel: Kernel, luo_file: LuoFile) -> None:
    """Let the first entry of the file's folio table point to another frame: one bit flips."""
    _, order = _middle_run(luo_file)
    table = _preserved(luo_file).table
    if table is None:
        raise ModelBug("an empty file has no folio table")
    entry_pa = table.extents[0][0] << PAGE_SHIFT
    kernel.memory.write_u64(entry_pa, kernel.memory.u64(entry_pa) ^ 1 << order)


def strike_memory(rules: Faults, kernel: Kernel) -> None:
    """Let the faults that change memory do so; the moment is just before the jump."""
    for kind, damage in _DAMAGE.items():
        for spec in rules.strikes(kind):  # each rule once: two flips of one bit would undo it
            luo_file = _preserved_file(kernel, spec.vm)
            if luo_file is not None:
                damage(kernel, luo_file)


_DAMAGE: Final = {
    "drop-preserved-page": drop_preserved_page,
    "corrupt-folio-entry": corrupt_folio_entry,
}


def _preserved_file(kernel: Kernel, vm: str) -> LuoFile | None:
    """The memory file of a VM among the outgoing sessions; any VM's if none is named."""
    for session in kernel.luo.sessions.outgoing:
        if not vm or cstring(session.name) == vm.encode():
            for luo_file in session.file_set.files:
                if luo_file.token == MEMORY_TOKEN:
                    return luo_file
    return None


def _middle_run(luo_file: LuoFile) -> tuple[tuple[int, int], int]:
    folios = _preserved(luo_file)
    runs = list(single_folio_runs(folios.runs))
    run = runs[len(runs) // 2]
    return (run.pfn, run.nr), folios.order


def _preserved(luo_file: LuoFile) -> PreservedFolios:
    folios = luo_file.private
    if not isinstance(folios, PreservedFolios):
        raise ModelBug("the file's handler keeps no folios")
    return folios
