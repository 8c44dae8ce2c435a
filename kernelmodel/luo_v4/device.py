"""The ioctls of LUO v4: /dev/liveupdate and the descriptors of sessions.

Arguments, all starting with {u32 size}: GET_STATE and SET_EVENT {u32 state or event}, of the
device and of a session alike; CREATE_SESSION and RETRIEVE_SESSION {s32 fd, u8 name[56]};
PRESERVE_FD and RESTORE_FD {s32 fd, u64 token}; UNPRESERVE_FD {u32 reserved, u64 token}.

Unhappy paths, in this order: a number outside the table EINVAL; another direction or size encoded
than `_IO(0xBA, nr)` ENOTTY; a size below the structure's EINVAL; non-zero bytes behind it E2BIG.
That order, and the fields named here beyond those of the table in `kernelmodel.abi.luo_v4`, are
taken from the merged LUO. Simplification: memory that an answer cannot be written to is EFAULT
before anything is done, whether or not there is an answer.

C: kernel/liveupdate/luo_ioctl.c, luo_session.c, proposal v4 of Sep 2025.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

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
)
from kernelmodel.errors import BadAddress, InvalidArgument, NotTty, TooBig
from kernelmodel.fs import File
from kernelmodel.luo_v4.session import LuoSession

if TYPE_CHECKING:
    from kernelmodel.luo_v4.core import LuoV4
    from kernelmodel.syscalls import Task

__all__ = ["LiveupdateDevice", "SessionOperations"]

#: By command: the structure's size and what works on it.
_Table = dict[int, tuple[int, Callable[["Task", File, bytearray], None]]]

_STATE_SIZE = 8
_NAME_SIZE = 8 + LIVEUPDATE_SESSION_NAME_LENGTH
_FD_SIZE = 16


def _dispatch(table: _Table, task: Task, file: File, cmd: int, arg: bytes | bytearray) -> int:
    by_number = {known & 0xFF: known for known in table}
    if cmd & 0xFF not in by_number:
        raise InvalidArgument("unknown ioctl number", cmd=cmd)
    if len(arg) < 4:
        raise BadAddress("no room for a size")
    if cmd not in table:
        raise NotTty("wrong ioctl encoding", cmd=cmd)
    size: int = struct.unpack_from("<I", arg)[0]
    full, function = table[cmd]
    if size < full:
        raise InvalidArgument("structure too small", size=size)
    if len(arg) < size:
        raise BadAddress("shorter than it says", size=size)
    if any(arg[full:size]):
        raise TooBig("unknown trailing fields", size=size)
    if not isinstance(arg, bytearray):
        raise BadAddress("an answer could not be written")
    known = bytearray(arg[:full])
    function(task, file, known)
    arg[:full] = known
    return 0


class LiveupdateDevice:
    """File operations of /dev/liveupdate."""

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo
        self._table: _Table = {
            LIVEUPDATE_IOCTL_GET_STATE: (_STATE_SIZE, self._get_state),
            LIVEUPDATE_IOCTL_SET_EVENT: (_STATE_SIZE, self._set_event),
            LIVEUPDATE_IOCTL_CREATE_SESSION: (_NAME_SIZE, self._create),
            LIVEUPDATE_IOCTL_RETRIEVE_SESSION: (_NAME_SIZE, self._retrieve),
        }

    def release(self, file: File) -> None:
        """The opener is gone; sessions live on their own descriptors. C: luo_release()."""
        self.luo.in_use = False

    def ioctl(self, task: Task, file: File, cmd: int, arg: bytes | bytearray) -> int:
        """C: luo_ioctl()."""
        return _dispatch(self._table, task, file, cmd, arg)

    def _get_state(self, task: Task, file: File, arg: bytearray) -> None:
        struct.pack_into("<I", arg, 4, self.luo.state)

    def _set_event(self, task: Task, file: File, arg: bytearray) -> None:
        self.luo.set_event(*struct.unpack_from("<I", arg, 4))

    def _create(self, task: Task, file: File, arg: bytearray) -> None:
        number = task.files.install_new(lambda: self.luo.sessions.create(bytes(arg[8:])))
        struct.pack_into("<i", arg, 4, number)

    def _retrieve(self, task: Task, file: File, arg: bytearray) -> None:
        number = task.files.install_new(lambda: self.luo.sessions.retrieve(bytes(arg[8:])))
        struct.pack_into("<i", arg, 4, number)


class SessionOperations:
    """File operations of a session's descriptor. Each runs under the session's mutex."""

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo
        self._table: _Table = {
            LIVEUPDATE_SESSION_PRESERVE_FD: (_FD_SIZE, self._preserve_fd),
            LIVEUPDATE_SESSION_UNPRESERVE_FD: (_FD_SIZE, self._unpreserve_fd),
            LIVEUPDATE_SESSION_RESTORE_FD: (_FD_SIZE, self._restore_fd),
            LIVEUPDATE_SESSION_GET_STATE: (_STATE_SIZE, self._get_state),
            LIVEUPDATE_SESSION_SET_EVENT: (_STATE_SIZE, self._set_event),
        }

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        session = _session(file)
        with self.luo.kernel.clock.lock(session.mutex):
            self.luo.sessions.release(session)

    def ioctl(self, task: Task, file: File, cmd: int, arg: bytes | bytearray) -> int:
        """C: luo_session_ioctl()."""
        with self.luo.kernel.clock.lock(_session(file).mutex):
            return _dispatch(self._table, task, file, cmd, arg)

    def _preserve_fd(self, task: Task, file: File, arg: bytearray) -> None:
        _, fd, token = struct.unpack("<IiQ", arg)
        self.luo.sessions.preserve_fd(task, _session(file), fd, token)

    def _unpreserve_fd(self, task: Task, file: File, arg: bytearray) -> None:
        _, reserved, token = struct.unpack("<IIQ", arg)
        if reserved:
            raise InvalidArgument("reserved field is not zero")
        self.luo.sessions.unpreserve_fd(_session(file), token)

    def _restore_fd(self, task: Task, file: File, arg: bytearray) -> None:
        (token,) = struct.unpack_from("<Q", arg, 8)
        session = _session(file)
        number = task.files.install_new(lambda: self.luo.sessions.restore_fd(session, token))
        struct.pack_into("<i", arg, 4, number)

    def _get_state(self, task: Task, file: File, arg: bytearray) -> None:
        struct.pack_into("<I", arg, 4, _session(file).state)

    def _set_event(self, task: Task, file: File, arg: bytearray) -> None:
        self.luo.sessions.set_event(_session(file), *struct.unpack_from("<I", arg, 4))


def _session(file: File) -> LuoSession:
    session = file.private
    assert isinstance(session, LuoSession), "sessions' operations get sessions' files"
    return session
