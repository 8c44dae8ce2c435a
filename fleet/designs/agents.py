"""What an agent does for a live update, the same words for both LUOs.

Happy path: `create`, `preserve` for each VM, `settle` (PREPARE, which the LUO of 7.3 has not), the
jump by somebody else; in the next kernel `retrieve_session`, `retrieve`, `finish` for each VM and
`finish_all` (FINISH, which the LUO of 7.3 has not). `give_up` before the jump undoes it all.

Unhappy paths: what the kernel refuses is raised as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.client import LiveupdateClient
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task

__all__ = ["DesignAgent", "SessionsAgent", "V4Agent", "agent_of"]


class DesignAgent(ABC):
    """The process that holds the sessions, by the VM's name."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.task = Task(kernel, "luod")
        self.sessions: dict[str, int] = {}

    @abstractmethod
    def create(self, name: str) -> None:
        """A new session."""

    def preserve(self, name: str, vmm: Task, fd: int, token: int) -> None:
        """A VMM's descriptor into the session."""
        mine = vmm.send_fd(fd, self.task)
        try:
            self._preserve(self.sessions[name], mine, token)
        finally:
            self.task.close(mine)

    @abstractmethod
    def _preserve(self, session: int, fd: int, token: int) -> None: ...

    def settle(self) -> None:  # noqa: B027 # only v4 has something to do
        """Everything is preserved that is to be."""

    def give_up(self) -> None:
        """Not now: sessions are closed."""
        for name in list(self.sessions):
            self.close(name)

    @abstractmethod
    def retrieve_session(self, name: str) -> None:
        """The session of the previous kernel."""

    def retrieve(self, name: str, token: int, vmm: Task) -> int:
        """A file of it; its descriptor in the VMM."""
        mine = self._retrieve(self.sessions[name], token)
        try:
            return self.task.send_fd(mine, vmm)
        finally:
            self.task.close(mine)

    @abstractmethod
    def _retrieve(self, session: int, token: int) -> int: ...

    @abstractmethod
    def finish(self, name: str) -> None:
        """The VM has all it needs."""

    def finish_all(self) -> None:  # noqa: B027 # as above
        """Every VM has."""

    def close(self, name: str) -> None:
        """close(2) of a session's descriptor."""
        self.task.close(self.sessions.pop(name))


class SessionsAgent(DesignAgent):
    """Of the LUO of 7.3."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.device = self.task.open(DEV_LIVEUPDATE)

    def create(self, name: str) -> None:
        """CREATE_SESSION."""
        self.sessions[name] = self.task.create_session(self.device, name)

    def _preserve(self, session: int, fd: int, token: int) -> None:
        self.task.preserve_fd(session, fd, token)

    def retrieve_session(self, name: str) -> None:
        """RETRIEVE_SESSION."""
        self.sessions[name] = self.task.retrieve_session(self.device, name)

    def _retrieve(self, session: int, token: int) -> int:
        return self.task.retrieve_fd(session, token)

    def finish(self, name: str) -> None:
        """FINISH, and close."""
        self.task.finish_session(self.sessions[name])
        self.close(name)


class V4Agent(DesignAgent):
    """Of LUO v4."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.client = LiveupdateClient(self.task)

    def create(self, name: str) -> None:
        """CREATE_SESSION."""
        self.sessions[name] = self.client.create_session(name)

    def _preserve(self, session: int, fd: int, token: int) -> None:
        self.client.preserve_fd(session, fd, token)

    def settle(self) -> None:
        """PREPARE."""
        self.client.set_event(LiveupdateEvent.PREPARE)

    def give_up(self) -> None:
        """CANCEL, if there is something to be cancelled, and close."""
        if self.client.state() in {LiveupdateState.PREPARED, LiveupdateState.FROZEN}:
            self.client.set_event(LiveupdateEvent.CANCEL)
        super().give_up()

    def retrieve_session(self, name: str) -> None:
        """RETRIEVE_SESSION."""
        self.sessions[name] = self.client.retrieve_session(name)

    def _retrieve(self, session: int, token: int) -> int:
        return self.client.restore_fd(session, token)

    def finish(self, name: str) -> None:
        """FINISH of the session, and close."""
        self.client.session_set_event(self.sessions[name], LiveupdateEvent.FINISH)
        self.close(name)

    def finish_all(self) -> None:
        """FINISH of the system."""
        if self.client.state() is LiveupdateState.UPDATED:
            self.client.set_event(LiveupdateEvent.FINISH)


def agent_of(kernel: Kernel) -> DesignAgent:
    """An agent for the LUO that this kernel runs. Raises: as opening the device."""
    return V4Agent(kernel) if kernel.luo_v4 is not None else SessionsAgent(kernel)
