"""Scripts of live-update operations, run on a modelled host: what a real kernel is compared with.

Every operation is the system calls that a small C program would make, and prints
`T LINE op ok[ extra]` or `T LINE op ERRNO`; each boot ends with `T end BOOT`.

Happy path: `Script.parse` a text, then `play` yields the trace's lines.

Unhappy paths: a text that is no such script is a `ScriptError`; a kernel that panics, at boot or
later, ends the trace there, as does a reboot that is refused (`Host.play` says which).

A boot can also be given files: `Host.take_over` starts it from a `Handover` that another process
left, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.corruptions.catalogue import CORRUPTIONS, corrupt
from kernelmodel.corruptions.handed_over import NotThere
from kernelmodel.errors import BadFileDescriptor, KernelError, KernelPanic
from kernelmodel.handover import Handover
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.machine import Firmware, Machine
from kernelmodel.memory import MIB
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.script import CMDLINE, Script, ScriptError, number
from kernelmodel.script_ops import HugeProgram, Program
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import Task

__all__ = ["CMDLINE", "CONFIG", "Host", "Script", "ScriptError", "how_it_ended", "play"]

#: As the kernel that the recordings were taken from was built.
CONFIG: Final = KernelConfig(
    kexec_handover_debug=True,
    liveupdate_test=True,
    kernel_bytes=32 * MIB,
    initrd_bytes=8 * MIB,
)
_RELEASE: Final = "7.3.4"
_CPUS: Final = 2
#: Flags of kexec_file_load with which it looks at its files.
_LOADING: Final = range(0, sum(kexec.KexecFileFlags) + 1, 2)


def play(script: Script, release: str = _RELEASE) -> Iterator[str]:
    """The trace of a script, line by line, on a host of its own that runs `release`."""
    with suppress(KernelPanic, KernelError):
        yield from Host(script, CATALOGUE[release]).play()


def how_it_ended(ending: KernelPanic | KernelError) -> str:
    """What ended a trace before its end, in words."""
    if isinstance(ending, KernelPanic):
        return f"panic: {ending}"
    return f"the kernel goes on, its reboot was refused: {ending}"


class Host:
    """The machine that a script runs on. Its memory is all that goes from boot to boot."""

    def __init__(
        self, script: Script, release: Release | None = None, machine: Machine | None = None
    ) -> None:
        self.script = script
        self.release = release or CATALOGUE[_RELEASE]
        self.machine = machine or Machine(script.machine_spec(_CPUS))
        self.clock = Clock(CostModel.load(), _CPUS, 0, ("conform",))
        #: The process of the boot that runs.
        self.task: Task | None = None
        #: What `tryreboot` is jumping into.
        self._image: kexec.Kimage | None = None
        self._boot_index = 0

    def play(self) -> Iterator[str]:
        """The trace of all boots.

        Raises:
            KernelPanic: a kernel died, and the trace ends there.
            KernelError: a reboot was refused, or the loading of the kernel for it.
        """
        kernel = self.power_on()
        for index in range(len(self.script.boots)):
            yield from self.run_boot(kernel, index)
            if index + 1 < len(self.script.boots):
                kernel = self.boot(*self.kexec(kernel))

    def power_on(self) -> Kernel:
        """Boot for the first time."""
        firmware = self.machine.cold_firmware(self.script.cmdline_of(0))
        return self.boot(self._release_of(0), firmware)

    def _release_of(self, index: int) -> Release:
        if self.script.kernel_of(index) == "no-memfd":
            return replace(self.release, memfd=None)
        return self.release

    def take_over(self, handover: Handover) -> Kernel:
        """Boot what lies in the memory of a handover.

        Raises:
            KernelPanic: there is no kernel there, or it does not come up.
        """
        firmware = handover.firmware
        self.machine.memory = handover.memory_of()
        assert firmware.kernel is not None, "checked when the handover was read"
        return self.boot(kexec.release_at(self.machine, firmware.kernel[0]), firmware)

    def boot(self, release: Release, firmware: Firmware) -> Kernel:
        """Boot with what a kernel is given. Raises: KernelPanic."""
        return boot(self.machine, release, firmware, self.clock, config=CONFIG)

    def run_boot(self, kernel: Kernel, index: int) -> Iterator[str]:
        """Everything that boot `index` + 1 prints."""
        self._boot_index = index
        if index + 1 < len(self.script.boots):
            cmdline = self.script.cmdline_of(index + 1)
            kexec.kexec_file_load(kernel, self._release_of(index + 1), cmdline)
        program = (HugeProgram if self.script.huge else Program)(kernel)
        self.task = program.task
        for step in self.script.boots[index]:
            if step.op == "load":
                answer = self._load(kernel, index, *map(number, step.args))
                yield f"T {step.line} {step.op} {answer}"
                continue
            if step.op == "tryreboot":
                try:
                    self._image = kexec.kernel_kexec(kernel)
                except KernelError as refused:
                    yield f"T {step.line} {step.op} {refused.name}"
                    continue
                return
            yield f"T {step.line} {step.op} {program.run(step)}"
        yield f"T end {index + 1}"

    def _load(self, kernel: Kernel, index: int, flags: int, length: int = -1) -> str:
        """kexec_file_load(2) of the next boot's kernel; what the trace says of it.

        The command line is cut or filled up to `length`, unless that is negative. In the last boot
        there are no files to load.
        """
        last = index + 1 == len(self.script.boots)
        cmdline = "" if last else self.script.cmdline_of(index + 1)
        if length >= 0:
            cmdline = cmdline[:length].ljust(length)
        try:
            if last and flags in _LOADING:
                raise BadFileDescriptor("no kernel to load")
            kexec.kexec_file_load(kernel, self._release_of(index + 1 - last), cmdline, flags)
        except KernelError as refused:
            return refused.name
        return "ok"

    def kexec(self, kernel: Kernel) -> tuple[Release, Firmware]:
        """Jump; what the next kernel is given. Raises what refuses the reboot."""
        image, self._image = self._image or kexec.kernel_kexec(kernel), None
        release, firmware = kexec.jump(kernel, image)
        return release, self._corrupt(firmware)

    def _corrupt(self, firmware: Firmware) -> Firmware:
        """Do to the handover what the script's jump says.

        Raises:
            ScriptError: it has no such thing to corrupt.
        """
        label = self.script.corruptions[self._boot_index] if self.script.corruptions else ""
        if not label:
            return firmware
        try:
            return corrupt(CORRUPTIONS[label], self.machine.memory, firmware)
        except NotThere as missing:
            raise ScriptError([(0, f"kexec {label}: {missing}")]) from None
