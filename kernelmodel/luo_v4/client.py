"""LUO v4's ioctls as a small library wraps them, for agents and tests.

Every method makes one system call with the structure as the kernel knows it, and raises what that
returns. A `Task` opens the device by the same path as that of the merged LUO.
"""

from __future__ import annotations

import struct

from kernelmodel.abi.luo_v4 import (
    LIVEUPDATE_IOCTL_CREATE_SESSION,
    LIVEUPDATE_IOCTL_GET_STATE,
    LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
    LIVEUPDATE_IOCTL_SET_EVENT,
    LIVEUPDATE_SESSION_GET_STATE,
    LIVEUPDATE_SESSION_NAME_LENGTH,
    LIVEUPDATE_SESSION_PRESERVE_FD,
    LIVEUPDATE_SESSION_RESTORE_FD,
    LIVEUPDATE_SESSION_SET_EVENT,
    LIVEUPDATE_SESSION_UNPRESERVE_FD,
    LiveupdateEvent,
    LiveupdateState,
)
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task

__all__ = ["LiveupdateClient"]


class LiveupdateClient:
    """A process that has /dev/liveupdate open. Raises: as the open(2)."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.device = task.open(DEV_LIVEUPDATE)

    # The system.

    def state(self) -> LiveupdateState:
        """LIVEUPDATE_IOCTL_GET_STATE."""
        return self._get_state(self.device, LIVEUPDATE_IOCTL_GET_STATE)

    def set_event(self, event: LiveupdateEvent) -> None:
        """LIVEUPDATE_IOCTL_SET_EVENT: PREPARE, CANCEL or FINISH."""
        self.task.ioctl(
            self.device, LIVEUPDATE_IOCTL_SET_EVENT, bytearray(struct.pack("<II", 8, event))
        )

    def create_session(self, name: str) -> int:
        """LIVEUPDATE_IOCTL_CREATE_SESSION; the session's descriptor."""
        return self._named(LIVEUPDATE_IOCTL_CREATE_SESSION, name)

    def retrieve_session(self, name: str) -> int:
        """LIVEUPDATE_IOCTL_RETRIEVE_SESSION; the session's descriptor."""
        return self._named(LIVEUPDATE_IOCTL_RETRIEVE_SESSION, name)

    # One session.

    def session_state(self, session: int) -> LiveupdateState:
        """LIVEUPDATE_SESSION_GET_STATE."""
        return self._get_state(session, LIVEUPDATE_SESSION_GET_STATE)

    def session_set_event(self, session: int, event: LiveupdateEvent) -> None:
        """LIVEUPDATE_SESSION_SET_EVENT: for this session alone."""
        self.task.ioctl(
            session, LIVEUPDATE_SESSION_SET_EVENT, bytearray(struct.pack("<II", 8, event))
        )

    def preserve_fd(self, session: int, fd: int, token: int) -> None:
        """LIVEUPDATE_SESSION_PRESERVE_FD."""
        self.task.ioctl(
            session,
            LIVEUPDATE_SESSION_PRESERVE_FD,
            bytearray(struct.pack("<IiQ", 16, fd, token)),
        )

    def unpreserve_fd(self, session: int, token: int) -> None:
        """LIVEUPDATE_SESSION_UNPRESERVE_FD."""
        self.task.ioctl(
            session,
            LIVEUPDATE_SESSION_UNPRESERVE_FD,
            bytearray(struct.pack("<IIQ", 16, 0, token)),
        )

    def restore_fd(self, session: int, token: int) -> int:
        """LIVEUPDATE_SESSION_RESTORE_FD; the file's descriptor."""
        arg = bytearray(struct.pack("<IiQ", 16, 0, token))
        self.task.ioctl(session, LIVEUPDATE_SESSION_RESTORE_FD, arg)
        return int.from_bytes(arg[4:8], "little", signed=True)

    def _get_state(self, fd: int, cmd: int) -> LiveupdateState:
        arg = bytearray(struct.pack("<II", 8, 0))
        self.task.ioctl(fd, cmd, arg)
        return LiveupdateState(int.from_bytes(arg[4:8], "little"))

    def _named(self, cmd: int, name: str) -> int:
        raw = name.encode()[:LIVEUPDATE_SESSION_NAME_LENGTH]
        arg = bytearray(struct.pack("<Ii56s", 64, 0, raw))
        self.task.ioctl(self.device, cmd, arg)
        return int.from_bytes(arg[4:8], "little", signed=True)
