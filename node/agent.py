"""The userspace agent of a host: the one process that has /dev/liveupdate open.

It holds the session descriptors, by which sessions live, and lends them to VMMs, which put their
memory in and take it out. The model of luod, as far as its kernel interface goes.
"""

from __future__ import annotations

from kernelmodel.kernel import Kernel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task

__all__ = ["Agent"]


class Agent:
    """One life of the agent: it ends with its kernel."""

    __slots__ = ("device", "incoming", "outgoing", "task")

    def __init__(self, kernel: Kernel) -> None:
        """Open the device.

        Raises:
            NoEntry: this kernel has none. IoError: what came over cannot be read.
        """
        self.task = Task(kernel, "luod")
        self.device = self.task.open(DEV_LIVEUPDATE)
        #: Descriptors of open sessions by name; outgoing and incoming may share a name.
        self.outgoing: dict[str, int] = {}
        self.incoming: dict[str, int] = {}

    def create(self, name: str) -> None:
        """CREATE_SESSION."""
        self.outgoing[_kept(name)] = self.task.create_session(self.device, name)

    def retrieve(self, name: str) -> None:
        """RETRIEVE_SESSION."""
        self.incoming[_kept(name)] = self.task.retrieve_session(self.device, name)

    def preserve(self, session: int, vmm: Task, fd: int, token: int) -> None:
        """PRESERVE_FD, made by a VMM for a descriptor of its own: the session is lent to it."""
        vmm.preserve_in(self.task.files.fdt[session], fd, token)

    def fetch(self, session: int, token: int, vmm: Task) -> int:
        """RETRIEVE_FD, made by a VMM; the descriptor's number there."""
        return vmm.retrieve_from(self.task.files.fdt[session], token)

    def session(self, name: str, *, incoming: bool) -> int:
        """Descriptor of an open session, 0 (the device's) without one.

        An agent has a descriptor of each and knows which is which; here they have names, and both
        directions may share one. `incoming` says which is meant then.
        """
        first, second = self.outgoing, self.incoming
        if incoming:
            first, second = second, first
        name = _kept(name)
        return first.get(name) or second.get(name) or 0

    def close(self, name: str) -> None:
        """close(2) of the descriptor of an open session, the outgoing one first."""
        name = _kept(name)
        sessions = self.outgoing if name in self.outgoing else self.incoming
        self.task.close(sessions.pop(name))


def _kept(name: str) -> str:
    """What the kernel keeps of a session's name: up to a NUL."""
    return name.partition("\0")[0]
