"""The ioctls of /dev/liveupdate and of a session's descriptor.

Both decode alike: number, encoding, direction (sessions only), size, trailing bytes, in this order,
and only then is anything done. The answer is copied into the caller's structure at the very end.

Unhappy path: an answer that cannot be copied back is EFAULT after the fact. A session that was made
or retrieved for it is closed again, a retrieved one with all that closing means; a file that was
preserved stays so, one that was retrieved stays with its session, and what is finished is finished.

C: kernel/liveupdate/luo_core.c (luo_ioctl), luo_session.c (luo_session_ioctl), 7.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from kernelmodel.abi.luo import (
    LIVEUPDATE_CREATE_SESSION,
    LIVEUPDATE_RETRIEVE_SESSION,
    LIVEUPDATE_SESSION_FINISH,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_NAME_LENGTH,
    LIVEUPDATE_SESSION_PRESERVE_FD,
    LIVEUPDATE_SESSION_RETRIEVE_FD,
)
from kernelmodel.errors import BadAddress, InvalidArgument, NotTty, TooBig
from kernelmodel.fs import File, UserBuffer
from kernelmodel.luo.session import LuoSession

if TYPE_CHECKING:
    from kernelmodel.luo.core import Luo
    from kernelmodel.syscalls import Task

__all__ = ["LiveupdateDevice", "SessionOperations"]


_T = TypeVar("_T")
#: By number: the size of the structure, whose last field is mandatory in all, and what does it.
_Table = dict[int, tuple[int, _T]]

_FD_TOKEN: Final = struct.Struct("<IiQ")
_U32: Final = struct.Struct("<I")
_S32: Final = struct.Struct("<i")

#: Numbers that are for the other direction: of a session that is retrieved, and of one that is not.
_NOT_INCOMING: Final = frozenset({LIVEUPDATE_SESSION_PRESERVE_FD & 0xFF})
_NOT_OUTGOING: Final = frozenset(
    {LIVEUPDATE_SESSION_RETRIEVE_FD & 0xFF, LIVEUPDATE_SESSION_FINISH & 0xFF}
)


def _decode(table: _Table[_T], cmd: int, arg: UserBuffer, wrong: frozenset[int]) -> _T:
    """What does it, its structure checked; see the module's text for the order."""
    entry = table.get(cmd & 0xFF)
    if entry is None:
        raise InvalidArgument("unknown ioctl number", cmd=cmd)
    if len(arg) < 4:
        raise BadAddress("no room for a size")
    size: int = _U32.unpack_from(arg)[0]
    full, function = entry
    if cmd & ~0xFF != LIVEUPDATE_CREATE_SESSION:
        raise NotTty("wrong ioctl encoding", cmd=cmd)
    if cmd & 0xFF in wrong:
        raise InvalidArgument("wrong direction for this session")
    if size < full:
        raise InvalidArgument("structure too small", size=size)
    if size > full and any(arg[full:size]):  # found before the reading faults
        raise TooBig("unknown trailing fields", size=size)
    if len(arg) < size:
        raise BadAddress("shorter than it says", size=size)
    return function


def _respond(arg: UserBuffer) -> bytearray:
    """The caller's structure, for the answer. C: luo_ucmd_respond(). Raises: BadAddress."""
    if not isinstance(arg, bytearray):
        raise BadAddress("the answer cannot be written")
    return arg


def _respond_fd(task: Task, fd: int, file: File, arg: UserBuffer) -> None:
    """Answer with a descriptor, which both structures have after their size, and install it.

    If the answer cannot be copied, the file is let go.
    """
    try:
        answer = _respond(arg)
    except BadAddress:
        file.put()
        raise
    _S32.pack_into(answer, 4, fd)
    task.files.fd_install(fd, file)


class LiveupdateDevice:
    """File operations of /dev/liveupdate."""

    __slots__ = ("luo",)

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """The opener is gone; sessions live on their own descriptors. C: luo_release()."""
        self.luo.in_use = False

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_ioctl(). {u32 size, s32 fd, u8 name[64]} both ways."""
        _decode(_DEVICE, cmd, arg, frozenset())(self, task, arg)
        return 0

    def create(self, task: Task, arg: UserBuffer) -> None:
        """C: luo_ioctl_create_session()."""
        fd = task.files.get_unused_fd()
        _respond_fd(task, fd, self.luo.sessions.create(_name(arg)), arg)

    def retrieve(self, task: Task, arg: UserBuffer) -> None:
        """C: luo_ioctl_retrieve_session()."""
        fd = task.files.get_unused_fd()
        _respond_fd(task, fd, self.luo.sessions.retrieve(_name(arg)), arg)


_DEVICE: Final[_Table[Callable[[LiveupdateDevice, Task, UserBuffer], None]]] = {
    LIVEUPDATE_CREATE_SESSION & 0xFF: (72, LiveupdateDevice.create),
    LIVEUPDATE_RETRIEVE_SESSION & 0xFF: (72, LiveupdateDevice.retrieve),
}


def _name(arg: UserBuffer) -> bytes:
    return bytes(arg[8 : 8 + LIVEUPDATE_SESSION_NAME_LENGTH])


class SessionOperations:
    """File operations of a session's descriptor."""

    __slots__ = ("luo",)

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        self.luo.sessions.release(_session(file))

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_session_ioctl()."""
        session = _session(file)
        wrong = _NOT_INCOMING if session.retrieved else _NOT_OUTGOING
        _decode(_SESSION, cmd, arg, wrong)(self, task, session, arg)
        return 0

    def preserve_fd(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_preserve_fd()."""
        _, fd, token = _FD_TOKEN.unpack_from(arg)
        with self.luo.kernel.clock.lock(session.lock_name):
            self.luo.sessions.preserve_fd(task, session, fd, token)
        _respond(arg)

    def retrieve_fd(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_retrieve_fd()."""
        token = _FD_TOKEN.unpack_from(arg)[2]
        with self.luo.kernel.clock.lock(session.lock_name):
            fd = task.files.get_unused_fd()
            _respond_fd(task, fd, session.file_set.retrieve_file(token), arg)

    def finish(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, u32 reserved}. C: luo_session_finish()."""
        _check_reserved(arg)
        self.luo.sessions.finish(session)
        _respond(arg)

    def get_name(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, u32 reserved, u8 name[64]}. C: luo_session_get_name()."""
        _check_reserved(arg)
        _respond(arg)[8:72] = session.name


_SESSION: Final[_Table[Callable[[SessionOperations, Task, LuoSession, UserBuffer], None]]] = {
    LIVEUPDATE_SESSION_PRESERVE_FD & 0xFF: (16, SessionOperations.preserve_fd),
    LIVEUPDATE_SESSION_RETRIEVE_FD & 0xFF: (16, SessionOperations.retrieve_fd),
    LIVEUPDATE_SESSION_FINISH & 0xFF: (8, SessionOperations.finish),
    LIVEUPDATE_SESSION_GET_NAME & 0xFF: (72, SessionOperations.get_name),
}


def _check_reserved(arg: UserBuffer) -> None:
    if any(arg[4:8]):
        raise InvalidArgument("reserved field is not zero")


def _session(file: File) -> LuoSession:
    session = file.private
    assert isinstance(session, LuoSession)
    return session
