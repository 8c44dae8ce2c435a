"""What a real kernel answers: a script, played under QEMU by a program of our own.

The machine is emulated (no KVM) and has one CPU, which is quickest, and one NUMA node. Its first
process is `player`, a small C program that is compiled here; the trace comes out of the second
serial port, the kernel's own messages out of the first. Initrds are nested: the one of boot k
holds kernel and initrd of boot k + 1, which is loaded before the boot's first operation, as on the
modelled host.

Happy path: `with Recorder(kernel) as recorder: recorder.record(text).trace`.

Unhappy paths: a missing program or kernel image, a kernel that takes no handover, an emulator that
ends or hangs are `RecorderError`s that say what would help. A kernel that panics is a result: the
trace ends there, as does one whose reboot is refused.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

from fleet.recorder.initramfs import archive
from kernelmodel.conform import Script
from kernelmodel.memory import MIB

__all__ = ["Recorder", "RecorderError", "Recording"]

#: Programs that it takes, and the Debian packages that have them.
PROGRAMS: Final = {"qemu-system-x86_64": "qemu-system-x86", "gcc": "gcc"}

#: Seconds that one boot may take by default; about 2 on an idle machine.
BOOT_TIMEOUT_S: Final = 60.0

_PLAYER: Final = Path(__file__).with_name("player")
_DIRECTORIES: Final = ("dev", "proc", "sys", "tmp")
#: A panic resets the machine, and a reset ends the emulator. On a busy machine the emulated timer
#: is late, and a kernel that checks it would panic for that alone.
_CONSOLE: Final = "console=ttyS0 loglevel=5 panic=-1 no_timer_check"
_CPUS: Final = 1
_PANIC: Final = "Kernel panic"
_CONSOLE_LINES_SHOWN: Final = 25


class RecorderError(Exception):
    """No recording could be made; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What came of a script on a real kernel."""

    trace: tuple[str, ...]
    #: Why it ended before the script did: the first line of a panic, or a refused reboot; or "".
    ended_by: str
    #: Everything that the kernels printed.
    console: str


class Recorder:
    """Records scripts on one kernel image; its program is compiled once, its files are temporary.

    Raises:
        RecorderError: a program is missing, or the image is not there.
    """

    def __init__(self, kernel: Path, boot_timeout_s: float = BOOT_TIMEOUT_S) -> None:
        missing = [
            f"{name} (Debian package {package})"
            for name, package in PROGRAMS.items()
            if shutil.which(name) is None
        ]
        if missing:
            raise RecorderError(f"not installed: {', '.join(missing)}")
        try:
            self._kernel = kernel.read_bytes()
        except OSError as error:
            raise RecorderError(f"{kernel}: no kernel image: {error.strerror}") from None
        if self._kernel[0x202:0x206] != b"HdrS":
            raise RecorderError(f"{kernel}: no kernel image; arch/x86/boot/bzImage is one")
        self._boot_timeout_s = boot_timeout_s
        self._folder = TemporaryDirectory(prefix="lufleet-record-")
        self._path = Path(self._folder.name)

    def __enter__(self) -> Self:
        try:
            self._player = self._compile()
        except RecorderError:
            self._folder.cleanup()
            raise
        (self._path / "kernel").write_bytes(self._kernel)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def _compile(self) -> bytes:
        program = self._path / "player"
        sources = [str(path) for path in sorted(_PLAYER.glob("*.c"))]
        done = subprocess.run(  # noqa: S603 # our own sources
            ["gcc", "-std=gnu11", "-O2", "-static", "-o", str(program), *sources],  # noqa: S607
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RecorderError(
                "gcc cannot compile and link the player statically (Debian package libc6-dev has "
                f"what it needs):\n{done.stderr.strip()}"
            )
        return program.read_bytes()

    def record(self, text: str) -> Recording:
        """Play a script.

        Raises:
            kernelmodel.conform.ScriptError: it is none.
            RecorderError: the kernel did not play it to its end, and did not panic either.
        """
        script = Script.parse(text)
        nr_boots = len(script.boots)
        (self._path / "initrd").write_bytes(self._initrd(text, script.cmdline, 1, nr_boots))
        for port in ("console", "trace"):
            (self._path / port).write_bytes(b"")
        why_stopped = self._emulate(script, self._boot_timeout_s * nr_boots)
        console = self._output("console")
        lines = self._output("trace").splitlines()
        notes = [line.removeprefix("# ") for line in lines if line.startswith("#")]
        trace = tuple(line for line in lines if not line.startswith("#"))
        panics = [line[line.index(_PANIC) :] for line in console.splitlines() if _PANIC in line]
        ended_by = "; ".join(notes or panics[:1])
        if why_stopped or not (ended_by or trace[-1:] == (f"T end {nr_boots}",)):
            last = "\n".join(console.splitlines()[-_CONSOLE_LINES_SHOWN:])
            raise RecorderError(
                f"{why_stopped or 'the machine stopped'} after {len(trace)} lines of the trace. "
                f"The kernel's last words:\n{last}"
            )
        return Recording(trace, ended_by, console)

    def _initrd(self, text: str, cmdline: str, boot: int, nr_boots: int) -> bytes:
        """The initrd of a boot, with those of all later ones inside."""
        files = {
            "init": self._player,
            "script": text.encode(),
            "boot-number": str(boot).encode(),
        }
        if boot < nr_boots:
            files["kernel"] = self._kernel
            files["cmdline"] = f"{cmdline} {_CONSOLE}".encode()
            files["initrd"] = self._initrd(text, cmdline, boot + 1, nr_boots)
        return archive(files, _DIRECTORIES)

    def _emulate(self, script: Script, timeout_s: float) -> str:
        """Run the machine until it resets; why it was stopped before, or ""."""
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", str(_CPUS),
            "-m", str(script.memory_bytes // MIB), "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot",
            "-serial", f"file:{self._path / 'console'}", "-serial", f"file:{self._path / 'trace'}",
            "-kernel", str(self._path / "kernel"), "-initrd", str(self._path / "initrd"),
            "-append", f"{script.cmdline} {_CONSOLE}",
        ]  # fmt: skip
        with subprocess.Popen(  # noqa: S603 # see above
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as emulator:
            try:
                _, complaint = emulator.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                return f"the machine was stopped after {timeout_s:.0f} s"
            finally:
                emulator.kill()
        if emulator.returncode:
            return f"QEMU failed: {complaint.decode(errors='replace').strip()}"
        return ""

    def _output(self, port: str) -> str:
        return (self._path / port).read_bytes().decode(errors="replace").replace("\r", "")
