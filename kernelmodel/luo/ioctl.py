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
from kernelmodel.fs import ANON_INO, File, Inode, UserBuffer
from kernelmodel.luo.session import LuoSession

if TYPE_CHECKING:
    from kernelmodel.luo.core import Luo
    from kernelmodel.syscalls import Task

__all__ = ["LiveupdateDevice", "SessionOperations"]


_T = TypeVar("_T")
#: By number: the size of the structure, whose last field is mandatory in all, the same as its first
#: field says it, and what does it.
_Table = dict[int, tuple[int, bytes, _T]]

_FD_TOKEN: Final = struct.Struct("<IiQ")
_U32: Final = struct.Struct("<I")
_S32: Final = struct.Struct("<i")
_NAME: Final = slice(8, 8 + LIVEUPDATE_SESSION_NAME_LENGTH)

#: Numbers that are for the other direction: of a session that is retrieved, and of one that is not.
_NOT_INCOMING: Final = frozenset({LIVEUPDATE_SESSION_PRESERVE_FD & 0xFF})
_NOT_OUTGOING: Final = frozenset(
    {LIVEUPDATE_SESSION_RETRIEVE_FD & 0xFF, LIVEUPDATE_SESSION_FINISH & 0xFF}
)
_NOTHING: Final[frozenset[int]] = frozenset()


def _decode(table: _Table[_T], cmd: int, arg: UserBuffer, wrong: frozenset[int]) -> _T:
    """What does it, its structure checked; see the module's text for the order."""
    number = cmd & 0xFF
    if number not in table:
        raise InvalidArgument("unknown ioctl number", cmd=cmd)
    full, as_field, function = table[number]
    encoded = cmd - number == LIVEUPDATE_CREATE_SESSION
    if encoded and arg[:4] == as_field and len(arg) == full and number not in wrong:
        return function  # as mostly: nothing of what follows is the matter
    if len(arg) < 4:
        raise BadAddress("no room for a size")
    size: int = _U32.unpack_from(arg)[0]
    if not encoded:
        raise NotTty("wrong ioctl encoding", cmd=cmd)
    if number in wrong:
        raise InvalidArgument("wrong direction for this session")
    if size < full:
        raise InvalidArgument("structure too small", size=size)
    if size > full and any(arg[full:size]):  # found before the reading faults
        raise TooBig("unknown trailing fields", size=size)
    if len(arg) < size:
        raise BadAddress("shorter than it says", size=size)
    return function


def _entry(size: int, function: _T) -> tuple[int, bytes, _T]:
    return size, _U32.pack(size), function


def _respond_fd(task: Task, fd: int, file: File, arg: UserBuffer) -> None:
    """Answer with a descriptor, which both structures have after their size, and install it.

    If the answer cannot be copied, the file is let go.
    """
    try:
        _S32.pack_into(arg, 4, fd)
    except TypeError:
        file.put()
        raise BadAddress("the answer cannot be written") from None
    task.files.fdt[fd] = file


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
        _decode(_DEVICE, cmd, arg, _NOTHING)(self, task, arg)
        return 0

    def create(self, task: Task, arg: UserBuffer) -> None:
        """C: luo_ioctl_create_session()."""
        fd = task.files.get_unused_fd()
        _respond_fd(task, fd, self.luo.sessions.create(bytes(arg[_NAME])), arg)

    def retrieve(self, task: Task, arg: UserBuffer) -> None:
        """C: luo_ioctl_retrieve_session()."""
        fd = task.files.get_unused_fd()
        _respond_fd(task, fd, self.luo.sessions.retrieve(bytes(arg[_NAME])), arg)


_DEVICE: Final[_Table[Callable[[LiveupdateDevice, Task, UserBuffer], None]]] = {
    LIVEUPDATE_CREATE_SESSION & 0xFF: _entry(72, LiveupdateDevice.create),
    LIVEUPDATE_RETRIEVE_SESSION & 0xFF: _entry(72, LiveupdateDevice.retrieve),
}


class SessionOperations:
    """File operations of a session's descriptor."""

    __slots__ = ("clock", "inode", "sessions")

    def __init__(self, luo: Luo) -> None:
        self.clock = luo.kernel.clock
        self.sessions = luo.sessions
        #: All sessions' files have the same. C: anon_inode_inode
        self.inode = Inode(ANON_INO)

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        self.sessions.release(file.private)

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_session_ioctl(); copying the structure back is luo_ucmd_respond()."""
        session: LuoSession = file.private
        wrong = _NOT_INCOMING if session.retrieved else _NOT_OUTGOING
        _decode(_SESSION, cmd, arg, wrong)(self, task, session, arg)
        if not isinstance(arg, bytearray):
            raise BadAddress("the answer cannot be written")
        return 0

    def preserve_fd(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_preserve_fd()."""
        _, fd, token = _FD_TOKEN.unpack_from(arg)
        with self.clock.lock(session.lock_name):
            if self.sessions.serialized:
                self.sessions.block()
            session.file_set.preserve_file(task, token, fd)

    def retrieve_fd(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_retrieve_fd()."""
        token = _FD_TOKEN.unpack_from(arg)[2]
        with self.clock.lock(session.lock_name):
            fd = task.files.get_unused_fd()
            _respond_fd(task, fd, session.file_set.retrieve_file(token), arg)

    def finish(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, u32 reserved}. C: luo_session_finish()."""
        _check_reserved(arg)
        self.sessions.finish(session)

    def get_name(self, task: Task, session: LuoSession, arg: UserBuffer) -> None:
        """{u32 size, u32 reserved, u8 name[64]}. C: luo_session_get_name()."""
        _check_reserved(arg)
        if isinstance(arg, bytearray):
            arg[_NAME] = session.name


_SESSION: Final[_Table[Callable[[SessionOperations, Task, LuoSession, UserBuffer], None]]] = {
    LIVEUPDATE_SESSION_PRESERVE_FD & 0xFF: _entry(16, SessionOperations.preserve_fd),
    LIVEUPDATE_SESSION_RETRIEVE_FD & 0xFF: _entry(16, SessionOperations.retrieve_fd),
    LIVEUPDATE_SESSION_FINISH & 0xFF: _entry(8, SessionOperations.finish),
    LIVEUPDATE_SESSION_GET_NAME & 0xFF: _entry(72, SessionOperations.get_name),
}


def _check_reserved(arg: UserBuffer) -> None:
    if arg[4:8] != bytes(4):
        raise InvalidArgument("reserved field is not zero")
