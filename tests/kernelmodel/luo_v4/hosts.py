"""Kernels that run LUO v4, and subsystems and handlers that write down what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kernelmodel import kexec
from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.boot import boot
from kernelmodel.errors import KernelError
from kernelmodel.fs import File, NullInode, null_file
from kernelmodel.kernel import Kernel
from kernelmodel.kho.fdt import Fdt
from kernelmodel.luo_v4.client import LiveupdateClient
from kernelmodel.luo_v4.core import LuoV4
from kernelmodel.luo_v4.handler import FileHandler, LuoFile
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.syscalls import DEV_NULL, Task
from tests.kernelmodel import kernels

RELEASE = "6.18+luo-v4"
PREPARE, FREEZE = LiveupdateEvent.PREPARE, LiveupdateEvent.FREEZE
FINISH, CANCEL = LiveupdateEvent.FINISH, LiveupdateEvent.CANCEL
UNDEFINED, NORMAL = LiveupdateState.UNDEFINED, LiveupdateState.NORMAL
PREPARED, FROZEN = LiveupdateState.PREPARED, LiveupdateState.FROZEN
UPDATED = LiveupdateState.UPDATED


def power_on(cmdline: str = kernels.CMDLINE) -> Kernel:
    return kernels.power_on(cmdline, RELEASE)


def luo_of(kernel: Kernel) -> LuoV4:
    assert kernel.luo_v4 is not None
    return kernel.luo_v4


def jump(kernel: Kernel, release: str = RELEASE, cmdline: str | None = None) -> Kernel:
    """Load, FREEZE if that is due, jump; the kernel that comes up."""
    return kernels.reboot(kernel, release, cmdline)


def freeze(kernel: Kernel) -> None:
    """reboot(2) up to the point of no return."""
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    kexec.kernel_kexec(kernel)


def jump_on(kernel: Kernel) -> Kernel:
    """The jump of a kernel that is frozen already."""
    assert kernel.kexec_image is not None
    given = kexec.jump(kernel, kernel.kexec_image)
    return boot(kernel.machine, *given, kernel.clock, config=kernel.config)


class Agent(LiveupdateClient):
    """A process with /dev/liveupdate open."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(Task(kernel, "agent"))
        self.kernel = kernel

    def null(self) -> int:
        return self.task.open(DEV_NULL)

    def memfd(self, size: int, content: bytes = b"", at: int = 0) -> int:
        fd = self.task.memfd_create()
        self.task.ftruncate(fd, size)
        self.task.pwrite(fd, content, at)
        return fd

    def preserved(self, session: int, *tokens: int) -> None:
        """Files of the toy handler."""
        for token in tokens:
            fd = self.null()
            self.preserve_fd(session, fd, token)
            self.task.close(fd)


@dataclass
class Failures:
    """What injected failures there are, by the function that they are injected into.

    A key is the function, or (function, what its context says); a value the error to raise.
    """

    errors: dict[object, Exception] = field(default_factory=dict)

    def __call__(self, function: str, **context: object) -> None:
        for key in (function, *((function, value) for value in context.values())):
            if key in self.errors:
                raise self.errors[key]


def failing(kernel: Kernel, *keys: object, error: Exception) -> Failures:
    failures = Failures(dict.fromkeys(keys, error))
    kernel.fail_function = failures
    return failures


Log = list[tuple[object, ...]]


class Recorder(SubsystemOps):
    """A subsystem: `log` gets (what, name, data), `fail` has what to raise from which call."""

    def __init__(self, log: Log, fail: dict[str, KernelError] | None = None) -> None:
        self.log = log
        self.fail = {} if fail is None else fail

    def _called(self, what: str, h: Subsystem, data: int) -> None:
        self.log.append((what, h.name, data))
        if what in self.fail:
            raise self.fail[what]

    def prepare(self, h: Subsystem) -> int:
        self._called("prepare", h, 0)
        return 100 + ord(h.name[0])

    def freeze(self, h: Subsystem, data: int) -> int:
        self._called("freeze", h, data)
        return data + 1000

    def cancel(self, h: Subsystem, data: int) -> None:
        self._called("cancel", h, data)

    def boot(self, h: Subsystem, data: int) -> None:
        self._called("boot", h, data)

    def finish(self, h: Subsystem, data: int) -> None:
        self._called("finish", h, data)


def with_subsystems(kernel: Kernel, *names: str) -> tuple[Log, dict[str, Recorder]]:
    """Register recording subsystems; their common log and their operations by name."""
    log: Log = []
    found = {name: Recorder(log) for name in names}
    for name, ops in found.items():
        luo_of(kernel).subsystems.register(Subsystem(name, ops))
    return log, found


def three() -> tuple[Kernel, Agent, Log, dict[str, Recorder]]:
    """A kernel with the recording subsystems a, b and c."""
    kernel = power_on()
    return kernel, Agent(kernel), *with_subsystems(kernel, "a", "b", "c")


def lose_property(kernel: Kernel, pa: int, name: str) -> None:
    """Take a subsystem's property out of LUO's page."""
    tree = Fdt.parse(kernel.memory.read(pa, PAGE_SIZE))
    node = tree.root.subnode("subsystems")
    assert node is not None
    del node.props[name]
    kernel.memory.write(pa, tree.pack())


class Toy(FileHandler):
    """Takes /dev/null; `log` as with `Recorder`, `fail` by callback or (callback, token)."""

    def __init__(self, kernel: Kernel, compatible: str = "toy-v1", log: Log | None = None) -> None:
        super().__init__(compatible)
        self.kernel = kernel
        self.log: Log = [] if log is None else log
        self.fail: dict[object, KernelError] = {}

    def _called(self, what: str, luo_file: LuoFile, *more: object) -> None:
        self.log.append((what, luo_file.token, *more))
        error = self.fail.get(what) or self.fail.get((what, luo_file.token))
        if error is not None:
            raise error

    def can_preserve(self, file: File) -> bool:
        return isinstance(file.inode, NullInode)

    def preserve(self, luo_file: LuoFile) -> None:
        self._called("preserve", luo_file)

    def unpreserve(self, luo_file: LuoFile) -> None:
        self._called("unpreserve", luo_file)

    def prepare(self, luo_file: LuoFile) -> int:
        self._called("prepare", luo_file)
        return 7000 + luo_file.token

    def freeze(self, luo_file: LuoFile) -> int:
        self._called("freeze", luo_file)
        return luo_file.data + 100

    def cancel(self, luo_file: LuoFile) -> None:
        self._called("cancel", luo_file)

    def retrieve(self, luo_file: LuoFile) -> File:
        self._called("retrieve", luo_file)
        assert luo_file.data == 7100 + luo_file.token
        return null_file(self.kernel.new_ino())

    def finish(self, luo_file: LuoFile, *, reclaimed: bool) -> None:
        self._called("finish", luo_file, reclaimed)

    def take_log(self) -> Log:
        log = self.log[:]
        self.log.clear()
        return log


def with_toy(kernel: Kernel, compatible: str = "toy-v1", log: Log | None = None) -> Toy:
    handler = Toy(kernel, compatible, log)
    luo_of(kernel).register_file_handler(handler)
    return handler


def kernel_in(state: LiveupdateState) -> tuple[Kernel, Agent, int]:
    """A kernel in this state, its agent, and a session `vm` with a memfd as token 1."""
    kernel = power_on()
    agent = Agent(kernel)
    session = agent.create_session("vm")
    agent.preserve_fd(session, agent.memfd(10_000, b"guest"), 1)
    if state is NORMAL:
        return kernel, agent, session
    agent.set_event(PREPARE)
    if state is FROZEN:
        freeze(kernel)
    if state is UPDATED:
        kernel = jump(kernel)
        agent = Agent(kernel)
        session = agent.retrieve_session("vm")
    assert agent.state() is state
    return kernel, agent, session
