"""The machine that a real kernel runs on: QEMU, emulating one CPU and some NUMA nodes.

Happy path: `Emulator(...).run(stops)` starts it, serves its stops, and says "" when it went off.

Unhappy paths: a machine that neither goes off nor stops in time is ended, and `run` says so, as it
does of a QEMU that fails by itself.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet.recorder.debugger import Debugger, DebuggerError
from fleet.recorder.stops import RecorderError, Stops
from kernelmodel.memory import GIB, MIB

__all__ = ["TOO_LATE", "Emulator"]

#: What became of a machine that did not go off in time.
TOO_LATE: Final = "the machine had to be stopped: its time was over"

_CPUS: Final = 1
#: Up to here an address is an offset in the memory's file.
_FLAT_BYTES: Final = 3 * GIB
_ACCEPT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Emulator:
    """A machine. `folder` holds `kernel` and `initrd`; `console` and `trace` appear there."""

    folder: Path
    node_bytes: tuple[int, ...]
    cmdline: str
    timeout_s: float

    @property
    def memory(self) -> Path:
        """The machine's memory as a file, where a debugger is needed."""
        return self.folder / "memory"

    def run(self, stops: Stops | None) -> str:
        """Let it run until it goes off; why it was ended before, or "".

        Raises:
            RecorderError: a stop cannot be served.
        """
        for port in ("console", "trace"):
            (self.folder / port).write_bytes(b"")
        if stops is None:
            return self._run_alone()
        if len(self.node_bytes) > 1 or self.node_bytes[0] > _FLAT_BYTES:
            raise RecorderError(
                "failures, corruption and images need one node of at most 3G of memory"
            )
        socket = self.folder / "debugger"
        socket.unlink(missing_ok=True)
        try:
            with Debugger(socket) as debugger:
                return self._run_with(debugger, stops)
        finally:
            self.memory.unlink(missing_ok=True)

    def _command(self, *more: str) -> list[str]:
        return [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", str(_CPUS),
            "-m", f"{sum(self.node_bytes) // MIB}M", "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot",
            "-serial", f"file:{self.folder / 'console'}",
            "-serial", f"file:{self.folder / 'trace'}",
            "-kernel", str(self.folder / "kernel"), "-initrd", str(self.folder / "initrd"),
            "-append", self.cmdline, *more,
        ]  # fmt: skip

    def _nodes(self) -> list[str]:
        """Options for more than one node; the CPU is on the first."""
        options: list[str] = []
        for nid, size in enumerate(self.node_bytes if len(self.node_bytes) > 1 else ()):
            cpu = ",cpus=0" if nid == 0 else ""
            options += ["-object", f"memory-backend-ram,id=node{nid},size={size // MIB}M"]
            options += ["-numa", f"node,nodeid={nid},memdev=node{nid}{cpu}"]
        return options

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 # our own command
            self._command(*more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def _run_alone(self) -> str:
        with self._start(*self._nodes()) as machine:
            try:
                _, complaint = machine.communicate(timeout=self.timeout_s)
            except subprocess.TimeoutExpired:
                return TOO_LATE
            finally:
                machine.kill()
        return _verdict(machine.returncode, complaint)

    def _run_with(self, debugger: Debugger, stops: Stops) -> str:
        size = sum(self.node_bytes) // MIB
        memory = f"memory-backend-file,id=ram,size={size}M,mem-path={self.memory},share=on"
        options = ("-object", memory, "-machine", "pc,memory-backend=ram", *debugger.options)
        deadline = time.monotonic() + self.timeout_s
        with self._start(*options) as machine:
            try:
                debugger.accept(_ACCEPT_TIMEOUT_S)
                stops.arm(debugger)
                while (at := debugger.run(max(0.1, deadline - time.monotonic()))) is not None:
                    stops.handle(debugger, at)
                _, complaint = machine.communicate(timeout=_ACCEPT_TIMEOUT_S)
            except (TimeoutError, subprocess.TimeoutExpired):
                return TOO_LATE
            except DebuggerError as error:
                raise RecorderError(f"QEMU's debugger: {error}") from error
            finally:
                machine.kill()
        return _verdict(machine.returncode, complaint)


def _verdict(exit_code: int, complaint: bytes) -> str:
    return f"QEMU failed: {complaint.decode(errors='replace').strip()}" if exit_code else ""
