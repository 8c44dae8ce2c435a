"""What a real kernel answers: a script, played under QEMU by a program of our own.

The machine is emulated (no KVM) and has one CPU, which is quickest. Its first process is `player`,
a small C program that is compiled here; the trace comes out of the second serial port, the kernel's
own messages out of the first. Initrds are nested: the one of boot k holds kernel and initrd of boot
k + 1, which is loaded before the boot's first operation, as on the modelled host.

Happy path: `with Recorder(kernel) as recorder: recorder.record(text).trace`. What is handed over at
a jump can be tampered with, and dumped.

Unhappy paths: a missing program or kernel image, a kernel that takes no handover, an emulator that
ends or hangs are `RecorderError`s that say what would help. A kernel that panics is a result: the
trace ends there, as does one whose reboot is refused, or one that hangs or goes off over a handover
that the script has corrupted.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

from fleet.recorder.emulator import TOO_LATE, Emulator
from fleet.recorder.initramfs import archive
from fleet.recorder.stops import RECORDER_SECTION, RecorderError, Stops, SystemMap
from kernelmodel.corruptions.catalogue import CORRUPTIONS
from kernelmodel.script import KERNELS, Script

__all__ = ["Recorder", "RecorderError", "Recording"]

#: Programs that it takes, and the Debian packages that have them.
PROGRAMS: Final = {"qemu-system-x86_64": "qemu-system-x86", "gcc": "gcc"}

#: Seconds that one boot may take by default; about 2 on an idle machine.
BOOT_TIMEOUT_S: Final = 60.0

_PLAYER: Final = Path(__file__).with_name("player")
_DIRECTORIES: Final = ("dev", "proc", "sys", "tmp")
#: A panic resets the machine, and a reset ends the emulator. On a busy machine the emulated timer
#: is late, and a kernel that checks it would panic for that alone. Functions are where System.map
#: says.
_CONSOLE: Final = "console=ttyS0 loglevel=5 panic=-1 no_timer_check nokaslr"
_PANIC: Final = "Kernel panic"
_CONSOLE_LINES_SHOWN: Final = 25


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

    def __init__(
        self,
        kernel: Path,
        boot_timeout_s: float = BOOT_TIMEOUT_S,
        *,
        system_map: Path | None = None,
        others: Mapping[str, Path] | None = None,
    ) -> None:
        """Read the images.

        Args:
            kernel: the usual kernel.
            boot_timeout_s: what one boot may take.
            system_map: needed where functions fail or a handover is corrupted or dumped. It is
                looked for beside the image and in its build tree if it is not given.
            others: images of other kernels, by the names that scripts have for them.
        """
        missing = [
            f"{name} (Debian package {package})"
            for name, package in PROGRAMS.items()
            if shutil.which(name) is None
        ]
        if missing:
            raise RecorderError(f"not installed: {', '.join(missing)}")
        self._kernel = _image(kernel)
        self._others = {name: _image(path) for name, path in (others or {}).items()}
        self._kernel_path, self._system_map = kernel, system_map
        self._boot_timeout_s = boot_timeout_s
        self._folder = TemporaryDirectory(prefix="lufleet-record-")
        self._path = Path(self._folder.name)

    def __enter__(self) -> Self:
        try:
            self._player = self._compile()
        except RecorderError:
            self._folder.cleanup()
            raise
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
        command = [
            "gcc", "-std=gnu11", "-O2", "-static", "-no-pie", "-o", str(program),
            f"-Wl,--section-start=.recorder={RECORDER_SECTION:#x}", *sources,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise RecorderError(
                "gcc cannot compile and link the player statically (Debian package libc6-dev has "
                f"what it needs):\n{done.stderr.strip()}"
            )
        return program.read_bytes()

    def record(self, text: str, *, dump: Mapping[int, Path] | None = None) -> Recording:
        """Play a script.

        Args:
            text: the script.
            dump: files for the handover at the jump that ends a boot, by boot from 1 on; before it
                is corrupted. `.kho` or `.kho.gz`.

        Raises:
            kernelmodel.conform.ScriptError: it is none.
            RecorderError: the kernel did not play it to its end, and did not panic either.
        """
        script = Script.parse(text)
        nr_boots = len(script.boots)
        (self._path / "initrd").write_bytes(self._initrd(text, script, 1))
        (self._path / "kernel").write_bytes(self._kernel_of(script, 1))
        machine = Emulator(
            self._path,
            script.node_bytes,
            f"{script.cmdline_of(0)} {_CONSOLE}",
            self._boot_timeout_s * nr_boots,
        )
        stops = self._stops(script, machine, dump or {})
        why_stopped = machine.run(stops)
        console = self._output("console")
        lines = self._output("trace").splitlines()
        notes = [line.removeprefix("# ") for line in lines if line.startswith("#")]
        trace = tuple(line for line in lines if not line.startswith("#"))
        panics = [line[line.index(_PANIC) :] for line in console.splitlines() if _PANIC in line]
        ended_by = "; ".join(notes or panics[:1])
        played = trace[-1:] == (f"T end {nr_boots}",)
        if stops is not None and stops.tampered and why_stopped in {"", TOO_LATE} and not played:
            silent = "the kernel hangs" if why_stopped else "the machine resets without a word"
            why_stopped, ended_by = "", ended_by or silent
        if why_stopped or not (ended_by or played):
            last = "\n".join(console.splitlines()[-_CONSOLE_LINES_SHOWN:])
            raise RecorderError(
                f"{why_stopped or 'the machine stopped'} after {len(trace)} lines of the trace. "
                f"The kernel's last words:\n{last}"
            )
        if stops is not None and stops.jumps < sum(line.startswith("T end") for line in trace) - 1:
            raise RecorderError(f"{stops.symbols.path}: it seems to be of another kernel")
        return Recording(trace, ended_by, console)

    def _stops(self, script: Script, machine: Emulator, dump: Mapping[int, Path]) -> Stops | None:
        tamper = {
            boot: CORRUPTIONS[label] for boot, label in enumerate(script.corruptions, 1) if label
        }
        if not (tamper or dump or script.uses("fail")):
            return None
        if any(given.kernel for given in script.given):
            raise RecorderError("failures, corruption and dumps need one kernel for all boots")
        symbols = SystemMap(self._kernel_path, self._system_map)
        memory_map = script.machine_spec(1).memory_map()
        return Stops(symbols, machine.memory, memory_map, tamper, dump)

    def _initrd(self, text: str, script: Script, boot: int) -> bytes:
        """The initrd of a boot, with those of all later ones inside."""
        files = {
            "init": self._player,
            "script": text.encode(),
            "boot-number": str(boot).encode(),
        }
        if boot < len(script.boots):
            files["kernel"] = self._kernel_of(script, boot + 1)
            files["cmdline"] = f"{script.cmdline_of(boot)} {_CONSOLE}".encode()
            files["initrd"] = self._initrd(text, script, boot + 1)
        return archive(files, _DIRECTORIES)

    def _kernel_of(self, script: Script, boot: int) -> bytes:
        name = script.kernel_of(boot - 1)
        if not name:
            return self._kernel
        if name not in self._others:
            raise RecorderError(
                f"the script needs a kernel {name}, {KERNELS[name]}: name its image"
            )
        return self._others[name]

    def _output(self, port: str) -> str:
        return (self._path / port).read_bytes().decode(errors="replace").replace("\r", "")


def _image(path: Path) -> bytes:
    try:
        image = path.read_bytes()
    except OSError as error:
        raise RecorderError(f"{path}: no kernel image: {error.strerror}") from None
    if image[0x202:0x206] != b"HdrS":
        raise RecorderError(f"{path}: no kernel image; arch/x86/boot/bzImage is one")
    return image
