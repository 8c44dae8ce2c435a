"""What is done to a real kernel while its machine stands still: failures, tampering, dumps.

The machine stops where the player asks for something, where a function is to fail, at every jump
into the next kernel (C: machine_kexec()), when all that is handed over lies in memory, and at the
next kernel's first look at it (C: kho_populate()). Its memory is a file that we map as well.

Happy path: `arm` before the machine starts, then `handle` every stop.

Unhappy paths: a System.map without a function, or of another kernel; memory in which no handover is
found. All are `RecorderError`s.

C: a function that fails is what CONFIG_FAIL_FUNCTION does, from outside: it returns at once.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleet.recorder.debugger import Debugger
from kernelmodel.corruptions.corruption import Corruption
from kernelmodel.corruptions.handed_over import HandedOver, NotThere
from kernelmodel.errors import ERRNO_CLASSES
from kernelmodel.image.load import NotAnImage, load_image
from kernelmodel.image.write import save_image
from kernelmodel.machine import Firmware
from kernelmodel.memory import MemoryRange
from kernelmodel.script import number
from kernelmodel.script_failures import ScriptFailures

__all__ = ["RECORDER_SECTION", "RecorderError", "Stops", "SystemMap"]

#: Where the player is linked to call the recorder.
RECORDER_SECTION: Final = 0x1000_0000
_SYMBOL: Final = re.compile(r"^([0-9a-f]{16}) [A-Za-z] (\S+)$", re.MULTILINE)
_JUMP: Final = "machine_kexec"
_POPULATE: Final = "kho_populate"


class RecorderError(Exception):
    """No recording could be made; the text says why and what would help."""


class SystemMap:
    """Addresses of a kernel's functions, from the System.map of its build."""

    def __init__(self, kernel: Path, given: Path | None) -> None:
        """Look beside the image and at the top of its build tree, unless a file is given.

        Raises:
            RecorderError: there is none.
        """
        beside = [kernel.with_name("System.map")]
        if kernel.absolute().parent.name == "boot":
            beside.append(kernel.absolute().parents[3] / "System.map")
        found = [path for path in ([given] if given else beside) if path.is_file()]
        if not found:
            looked = " nor ".join(str(path) for path in ([given] if given else beside))
            raise RecorderError(
                f"failures, corruption and images need the kernel's System.map: no {looked}"
            )
        self.path = found[0]
        lines = _SYMBOL.findall(self.path.read_text(errors="replace"))
        if not lines:
            raise RecorderError(f"{self.path}: no System.map: there are no addresses in it")
        self._addresses = {name: int(address, 16) for address, name in lines}

    def address(self, function: str) -> int:
        """Where a function starts, without address randomisation. Raises: RecorderError."""
        if function not in self._addresses:
            raise RecorderError(f"{self.path}: the kernel has no function {function}")
        return self._addresses[function]


@dataclass(slots=True)
class Stops:
    """What is planned for one recording; `jumps` counts the kernels that jumped."""

    symbols: SystemMap
    memory: Path
    memory_map: tuple[MemoryRange, ...]
    tamper: Mapping[int, Corruption] = field(default_factory=dict)
    dump: Mapping[int, Path] = field(default_factory=dict)
    jumps: int = 0
    #: Whether a kernel has been given a handover that is not what the one before left.
    tampered: bool = False
    _failures: ScriptFailures = field(default_factory=ScriptFailures)
    #: Functions that the machine stops at, by their addresses.
    _watched: dict[int, str] = field(default_factory=dict)

    def arm(self, debugger: Debugger) -> None:
        """Say where the machine stops. Raises: RecorderError."""
        debugger.break_at(RECORDER_SECTION)
        debugger.break_at(self.symbols.address(_JUMP))
        if self.tamper:
            debugger.break_at(self.symbols.address(_POPULATE))

    def handle(self, debugger: Debugger, address: int) -> None:
        """Do what is to be done where it stopped. Raises: RecorderError."""
        if address == RECORDER_SECTION:
            self._add_failure(debugger, debugger.read_text(*debugger.arguments(1)))
        elif address == self.symbols.address(_JUMP):
            self._at_jump(debugger)
        elif self.tamper and address == self.symbols.address(_POPULATE):
            self._at_first_look(debugger)
        else:
            self._maybe_fail(debugger, address)

    def _add_failure(self, debugger: Debugger, request: str) -> None:
        _, function, call, error = request.split()
        address = self.symbols.address(function)
        self._failures.add(function, number(call), error)
        self._watched[address] = function
        debugger.break_at(address)

    def _maybe_fail(self, debugger: Debugger, address: int) -> None:
        function = self._watched.get(address, "")
        error = self._failures.call(function)
        if function not in self._failures.functions:
            debugger.no_break_at(address)
        if error:
            debugger.skip_function(-ERRNO_CLASSES[error].errno)

    def _at_jump(self, debugger: Debugger) -> None:
        for address in self._watched:  # they were the old kernel's
            debugger.no_break_at(address)
        self._watched.clear()
        self._failures.clear()
        self.jumps += 1
        dump = self.dump.get(self.jumps)
        if dump is not None:
            try:
                save_image(load_image(self.memory), dump)
            except NotAnImage as none:
                raise RecorderError(f"at jump {self.jumps}: {none}") from None

    def _at_first_look(self, debugger: Debugger) -> None:
        """C: kho_populate(fdt_phys, fdt_len, scratch_phys, scratch_len)."""
        tamper = self.tamper.get(self.jumps)
        if tamper is None:
            return
        fdt_pa, fdt_size, scratch_pa, scratch_size = debugger.arguments(4)
        with self.memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            scratch = (scratch_pa, scratch_size)
            handed = HandedOver(_Mapped(memory), fdt_pa, scratch, self.memory_map)
            try:
                writes = tamper.writes(handed)
            except NotThere as missing:
                raise RecorderError(f"at jump {self.jumps}: {missing}") from None
            self.tampered = True
            for pa, data in writes:
                memory[pa : pa + len(data)] = data
        if tamper.firmware is not None:
            given = Firmware("", self.memory_map, (fdt_pa, fdt_size), scratch)
            for index, value in enumerate(_arguments(tamper.firmware(given))):
                debugger.set_argument(index, value)


def _arguments(firmware: Firmware) -> tuple[int, ...]:
    """What kho_populate() is called with."""
    assert firmware.fdt is not None
    assert firmware.scratch is not None
    return *firmware.fdt, *firmware.scratch


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A machine's memory, in which an address is an offset; there is zero behind its end."""

    memory: mmap.mmap

    def read(self, pa: int, size: int) -> bytes:
        return self.memory[pa : pa + size].ljust(size, b"\0")
