"""Small booted kernels, jumps between them, and a file handler that records what is asked of it."""

from __future__ import annotations

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import KernelError
from kernelmodel.fs import File, NullInode, null_file
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.luo.handler import FileHandler, LuoFile
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import MIB
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, DEV_NULL, Task

CMDLINE = "liveupdate=on kho_scratch=16M,32M,8M"
CONFIG = KernelConfig(kexec_handover_debug=True, kernel_bytes=8 * MIB, initrd_bytes=2 * MIB)


def power_on(
    cmdline: str = CMDLINE,
    release: str = "7.3.4",
    node_bytes: tuple[int, ...] = (256 * MIB,),
    config: KernelConfig = CONFIG,
) -> Kernel:
    machine = Machine(MachineSpec(node_bytes, 2))
    clock = Clock(CostModel.load(), 2, 0)
    return boot(machine, CATALOGUE[release], machine.cold_firmware(cmdline), clock, config=config)


def reboot(kernel: Kernel, release: str = "", cmdline: str | None = None) -> Kernel:
    """Load, freeze, jump; the kernel that comes up."""
    target = CATALOGUE[release] if release else kernel.release
    kexec.kexec_file_load(kernel, target, kernel.params.cmdline if cmdline is None else cmdline)
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    return boot(kernel.machine, *given, kernel.clock, config=kernel.config)


class Agent:
    """A process with /dev/liveupdate open."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.task = Task(kernel, "agent")
        self.device = self.task.open(DEV_LIVEUPDATE)

    def session(self, name: str) -> int:
        return self.task.create_session(self.device, name)

    def retrieve(self, name: str) -> int:
        return self.task.retrieve_session(self.device, name)

    def null(self) -> int:
        return self.task.open(DEV_NULL)

    def memfd(self, size: int, content: bytes = b"", flags: int = 0) -> int:
        fd = self.task.memfd_create(flags)
        self.task.ftruncate(fd, size)
        if content:
            self.task.pwrite(fd, content, 0)
        return fd


class ToyHandler(FileHandler):
    """Takes /dev/null; `log` has what was called with which token, `fail` what to refuse.

    A key of `fail` is a callback's name, or (name, token); its value the error to raise.
    """

    def __init__(self, kernel: Kernel, compatible: str = "toy-v1") -> None:
        super().__init__(compatible)
        self.kernel = kernel
        self.log: list[tuple[str, int]] = []
        self.fail: dict[object, KernelError] = {}
        self.busy = False

    def _called(self, what: str, luo_file: LuoFile) -> None:
        self.log.append((what, luo_file.token))
        error = self.fail.get(what) or self.fail.get((what, luo_file.token))
        if error is not None:
            raise error

    def can_preserve(self, file: File) -> bool:
        return isinstance(file.inode, NullInode)

    def preserve(self, luo_file: LuoFile) -> None:
        self._called("preserve", luo_file)
        luo_file.data = 1000 + luo_file.token

    def unpreserve(self, luo_file: LuoFile) -> None:
        self._called("unpreserve", luo_file)

    def freeze(self, luo_file: LuoFile) -> None:
        self._called("freeze", luo_file)

    def unfreeze(self, luo_file: LuoFile) -> None:
        self._called("unfreeze", luo_file)

    def retrieve(self, luo_file: LuoFile) -> File:
        self._called("retrieve", luo_file)
        assert luo_file.data == 1000 + luo_file.token
        return null_file(self.kernel.new_ino())

    def can_finish(self, luo_file: LuoFile) -> bool:
        self.log.append(("can_finish", luo_file.token))
        return not self.busy

    def finish(self, luo_file: LuoFile) -> None:
        self._called("finish", luo_file)

    def take_log(self) -> list[tuple[str, int]]:
        log, self.log = self.log, []
        return log


def with_toy(kernel: Kernel, compatible: str = "toy-v1") -> ToyHandler:
    handler = ToyHandler(kernel, compatible)
    kernel.luo.register_file_handler(handler)
    return handler
