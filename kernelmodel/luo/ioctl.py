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
from typing import TYPE_CHECKING, Any, Final

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

#: What does an ioctl, and of its structure, whose last field is mandatory in all, the size and what
#: the first field says of it.
_Call = tuple[Callable[[Any, "Task", File, UserBuffer], None], int, bytes]

_NAMED: Final = struct.Struct(f"<Ii{LIVEUPDATE_SESSION_NAME_LENGTH}s")
_FD_TOKEN: Final = struct.Struct("<IiQ")
_U32: Final = struct.Struct("<I")
_S32: Final = struct.Struct("<i")

#: Calls that are for the other direction: of a session that is retrieved, and of one that is not.
_NOT_INCOMING: Final = frozenset({LIVEUPDATE_SESSION_PRESERVE_FD})
_NOT_OUTGOING: Final = frozenset({LIVEUPDATE_SESSION_RETRIEVE_FD, LIVEUPDATE_SESSION_FINISH})


class _Operations:
    """What files of both kinds have in common: how an ioctl is decoded and answered."""

    __slots__ = ("_calls", "_wrong")

    def __init__(self, calls: dict[int, _Call], wrong: frozenset[int] = frozenset()) -> None:
        self._calls = calls
        self._wrong = wrong

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_ioctl(), luo_session_ioctl(); an answer is copied back by luo_ucmd_respond()."""
        if cmd in self._calls and cmd not in self._wrong:
            function, full, size = self._calls[cmd]
            if arg[:4] != size or len(arg) != full:  # else, as mostly, there is nothing to refuse
                function = self._decode(cmd, arg)
        else:
            function = self._decode(cmd, arg)
        function(self, task, file, arg)
        if type(arg) is bytes:
            raise BadAddress("the answer cannot be written")
        return 0

    def _decode(self, cmd: int, arg: UserBuffer) -> Callable[[Any, Task, File, UserBuffer], None]:
        """What does it, its structure checked; see the module's text for the order."""
        known = LIVEUPDATE_CREATE_SESSION | cmd & 0xFF
        if known not in self._calls:
            raise InvalidArgument("unknown ioctl number", cmd=cmd)
        if len(arg) < 4:
            raise BadAddress("no room for a size")
        size: int = _U32.unpack_from(arg)[0]
        function, full, _ = self._calls[known]
        if cmd != known:
            raise NotTty("wrong ioctl encoding", cmd=cmd)
        if cmd in self._wrong:
            raise InvalidArgument("wrong direction for this session")
        if size < full:
            raise InvalidArgument("structure too small", size=size)
        if size > full and any(arg[full:size]):  # found before the reading faults
            raise TooBig("unknown trailing fields", size=size)
        if len(arg) < size:
            raise BadAddress("shorter than it says", size=size)
        return function


def _call(function: Callable[[Any, Task, File, UserBuffer], None], size: int) -> _Call:
    return function, size, _U32.pack(size)


def _respond_fd(task: Task, fd: int, file: File, arg: UserBuffer) -> None:
    """Answer with a descriptor, which all structures have after their size, and install it.

    If the answer cannot be copied, the file is let go.
    """
    try:
        _S32.pack_into(arg, 4, fd)
    except TypeError:
        file.put()
        raise BadAddress("the answer cannot be written") from None
    task.files.fdt[fd] = file


class LiveupdateDevice(_Operations):
    """File operations of /dev/liveupdate; both structures are {u32 size, s32 fd, u8 name[64]}."""

    __slots__ = ("luo",)

    def __init__(self, luo: Luo) -> None:
        super().__init__(_DEVICE)
        self.luo = luo

    def release(self, file: File) -> None:
        """The opener is gone; sessions live on their own descriptors. C: luo_release()."""
        self.luo.in_use = False

    def create(self, task: Task, file: File, arg: UserBuffer) -> None:
        """C: luo_ioctl_create_session()."""
        fd = task.files.get_unused_fd()
        name: bytes = _NAMED.unpack_from(arg)[2]
        _respond_fd(task, fd, self.luo.sessions.create(name), arg)

    def retrieve(self, task: Task, file: File, arg: UserBuffer) -> None:
        """C: luo_ioctl_retrieve_session()."""
        fd = task.files.get_unused_fd()
        name: bytes = _NAMED.unpack_from(arg)[2]
        _respond_fd(task, fd, self.luo.sessions.retrieve(name), arg)


_DEVICE: Final = {
    LIVEUPDATE_CREATE_SESSION: _call(LiveupdateDevice.create, 72),
    LIVEUPDATE_RETRIEVE_SESSION: _call(LiveupdateDevice.retrieve, 72),
}


class SessionOperations(_Operations):
    """File operations of a session's descriptor, of one that was retrieved or of one that was not.

    `private` of its file is the session.
    """

    __slots__ = ("_clock", "_sessions")

    def __init__(self, luo: Luo, *, retrieved: bool) -> None:
        super().__init__(_SESSION, _NOT_INCOMING if retrieved else _NOT_OUTGOING)
        self._clock = luo.kernel.clock
        self._sessions = luo.sessions

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        self._sessions.release(file.private)

    def preserve_fd(self, task: Task, file: File, arg: UserBuffer) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_preserve_fd()."""
        session: LuoSession = file.private
        _, fd, token = _FD_TOKEN.unpack_from(arg)
        with self._clock.lock(session.lock_name):
            if self._sessions.serialized:
                self._sessions.block()
            session.file_set.preserve_file(task, token, fd)

    def retrieve_fd(self, task: Task, file: File, arg: UserBuffer) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_retrieve_fd()."""
        session: LuoSession = file.private
        token = _FD_TOKEN.unpack_from(arg)[2]
        with self._clock.lock(session.lock_name):
            fd = task.files.get_unused_fd()
            _respond_fd(task, fd, session.file_set.retrieve_file(token), arg)

    def finish(self, task: Task, file: File, arg: UserBuffer) -> None:
        """{u32 size, u32 reserved}. C: luo_session_finish()."""
        _check_reserved(arg)
        self._sessions.finish(file.private)

    def get_name(self, task: Task, file: File, arg: UserBuffer) -> None:
        """{u32 size, u32 reserved, u8 name[64]}. C: luo_session_get_name()."""
        _check_reserved(arg)
        if isinstance(arg, bytearray):
            arg[8:72] = file.private.name


_SESSION: Final = {
    LIVEUPDATE_SESSION_PRESERVE_FD: _call(SessionOperations.preserve_fd, 16),
    LIVEUPDATE_SESSION_RETRIEVE_FD: _call(SessionOperations.retrieve_fd, 16),
    LIVEUPDATE_SESSION_FINISH: _call(SessionOperations.finish, 8),
    LIVEUPDATE_SESSION_GET_NAME: _call(SessionOperations.get_name, 72),
}


def _check_reserved(arg: UserBuffer) -> None:
    if arg[4:8] != bytes(4):
        raise InvalidArgument("reserved field is not zero")
