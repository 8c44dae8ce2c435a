"""What is done to a real kernel while its machine stands still: failures, tampering, dumps.

The machine stops where the player asks for something, where a function is to fail, and at every
jump into the next kernel (C: machine_kexec()), when all that is handed over lies in memory. Its
memory is a file that we have mapped as well.

Happy path: `arm` before the machine starts, then `handle` every stop.

Unhappy paths: a System.map without a function, or of another kernel; memory in which no handover is
found. All are `RecorderError`s.

C: a function that fails is what CONFIG_FAIL_FUNCTION does, from outside: it returns at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleet.recorder.debugger import Debugger
from kernelmodel.errors import ERRNO_CLASSES
from kernelmodel.image.load import NotAnImage, load_image
from kernelmodel.image.write import save_image

__all__ = ["RECORDER_SECTION", "RecorderError", "Stops", "SystemMap", "Tamper"]

#: Where the player is linked to call the recorder.
RECORDER_SECTION: Final = 0x1000_0000
_JUMP: Final = "machine_kexec"

#: Gets a reader of physical memory (address, size) and the address of KHO's root FDT; returns
#: what to write where.
Tamper = Callable[[Callable[[int, int], bytes], int], "list[tuple[int, bytes]]"]


class RecorderError(Exception):
    """No recording could be made; the text says why and what would help."""


class SystemMap:
    """Addresses of a kernel's functions, from the System.map of its build."""

    def __init__(self, kernel: Path, given: Path | None) -> None:
        """Look beside the image and at the top of its build tree, unless a file is given.

        Raises:
            RecorderError: there is none.
        """
        beside = [kernel.with_name("System.map"), *(p / "System.map" for p in kernel.parents[3:4])]
        found = [path for path in ([given] if given else beside) if path.is_file()]
        if not found:
            looked = " nor ".join(str(path) for path in ([given] if given else beside))
            raise RecorderError(f"failures and tampering need the kernel's System.map: no {looked}")
        self.path = found[0]
        lines = (line.split() for line in self.path.read_text().splitlines())
        self._addresses = {words[2]: int(words[0], 16) for words in lines if len(words) == 3}

    def address(self, function: str) -> int:
        """Where a function starts, without address randomisation. Raises: RecorderError."""
        if function not in self._addresses:
            raise RecorderError(f"{self.path}: the kernel has no function {function}")
        return self._addresses[function]


@dataclass(slots=True)
class _Failure:
    address: int
    calls_left: int
    errno: int


@dataclass(slots=True)
class Stops:
    """What is planned for one recording; `jumps` counts the kernels that jumped."""

    symbols: SystemMap
    memory: Path
    tamper: Mapping[int, Tamper] = field(default_factory=dict)
    dump: Mapping[int, Path] = field(default_factory=dict)
    jumps: int = 0
    _failures: list[_Failure] = field(default_factory=list)

    def arm(self, debugger: Debugger) -> None:
        """Say where the machine stops. Raises: RecorderError."""
        debugger.break_at(RECORDER_SECTION)
        debugger.break_at(self.symbols.address(_JUMP))

    def handle(self, debugger: Debugger, address: int) -> None:
        """Do what is to be done where it stopped. Raises: RecorderError."""
        if address == RECORDER_SECTION:
            self._add_failure(debugger, debugger.read_text(debugger.argument()))
        elif address == self.symbols.address(_JUMP):
            self._at_jump(debugger)
        else:
            self._maybe_fail(debugger, address)

    def _add_failure(self, debugger: Debugger, request: str) -> None:
        _, function, call, name = request.split()
        address = self.symbols.address(function)
        self._failures.append(_Failure(address, int(call, 0), ERRNO_CLASSES[name].errno))
        debugger.break_at(address)

    def _maybe_fail(self, debugger: Debugger, address: int) -> None:
        here = [failure for failure in self._failures if failure.address == address]
        due = None
        for failure in here:
            failure.calls_left -= 1
            if failure.calls_left == 0:
                self._failures.remove(failure)
                due = due or failure
        if not any(failure.address == address for failure in self._failures):
            debugger.no_break_at(address)
        if due is not None:
            debugger.skip_function(-due.errno)

    def _at_jump(self, debugger: Debugger) -> None:
        for failure in self._failures:  # they were the old kernel's
            debugger.no_break_at(failure.address)
        self._failures.clear()
        self.jumps += 1
        tamper, dump = self.tamper.get(self.jumps), self.dump.get(self.jumps)
        if tamper is None and dump is None:
            return
        try:
            image = load_image(self.memory)
        except NotAnImage as none:
            raise RecorderError(f"at jump {self.jumps}: {none}") from None
        if dump is not None:
            save_image(image, dump)
        if tamper is not None:
            with self.memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                writes = tamper(lambda pa, size: memory[pa : pa + size], image.fdt_pa)
                for pa, data in writes:
                    memory[pa : pa + len(data)] = data
