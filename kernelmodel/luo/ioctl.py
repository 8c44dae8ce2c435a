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

#: The fields of a structure, its size first.
_Fields = tuple[Any, ...]
#: What does an ioctl, and the structure, whose last field is mandatory in all.
_Function = Callable[[Any, "Task", File, UserBuffer, _Fields], None]
_Calls = dict[int, tuple[_Function, struct.Struct]]

_NAMED: Final = struct.Struct(f"<Ii{LIVEUPDATE_SESSION_NAME_LENGTH}s")
_FD_TOKEN: Final = struct.Struct("<IiQ")
_RESERVED: Final = struct.Struct("<II")
_U32: Final = struct.Struct("<I")
_S32: Final = struct.Struct("<i")

#: Calls that are for the other direction: of a session that is retrieved, and of one that is not.
_NOT_INCOMING: Final = frozenset({LIVEUPDATE_SESSION_PRESERVE_FD})
_NOT_OUTGOING: Final = frozenset({LIVEUPDATE_SESSION_RETRIEVE_FD, LIVEUPDATE_SESSION_FINISH})
_NOT_READ: Final[_Fields] = (-1,)


class _Operations:
    """What files of both kinds have in common: how an ioctl is decoded and answered."""

    __slots__ = ("_calls", "_wrong")

    def __init__(self, calls: _Calls, wrong: frozenset[int] = frozenset()) -> None:
        self._calls = calls
        self._wrong = wrong

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_ioctl(), luo_session_ioctl(); an answer is copied back by luo_ucmd_respond()."""
        fields = _NOT_READ
        if cmd in self._calls and cmd not in self._wrong:
            function, form = self._calls[cmd]
            try:
                fields = form.unpack(arg)
            except struct.error:  # another length
                fields = _NOT_READ
        if fields[0] != len(arg):  # else, as mostly, there is nothing to refuse
            function, fields = self._decode(cmd, arg)
        function(self, task, file, arg, fields)
        if type(arg) is bytes:
            raise BadAddress("the answer cannot be written")
        return 0

    def _decode(self, cmd: int, arg: UserBuffer) -> tuple[_Function, _Fields]:
        """What does it, its structure checked; see the module's text for the order."""
        known = LIVEUPDATE_CREATE_SESSION | cmd & 0xFF
        if known not in self._calls:
            raise InvalidArgument("unknown ioctl number", cmd=cmd)
        if len(arg) < 4:
            raise BadAddress("no room for a size")
        size: int = _U32.unpack_from(arg)[0]
        function, form = self._calls[known]
        if cmd != known:
            raise NotTty("wrong ioctl encoding", cmd=cmd)
        if cmd in self._wrong:
            raise InvalidArgument("wrong direction for this session")
        if size < form.size:
            raise InvalidArgument("structure too small", size=size)
        if size > form.size and any(arg[form.size : size]):  # found before the reading faults
            raise TooBig("unknown trailing fields", size=size)
        if len(arg) < size:
            raise BadAddress("shorter than it says", size=size)
        return function, form.unpack_from(arg)


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

    def create(self, task: Task, file: File, arg: UserBuffer, fields: _Fields) -> None:
        """C: luo_ioctl_create_session()."""
        fd = task.files.get_unused_fd()
        _respond_fd(task, fd, self.luo.sessions.create(fields[2]), arg)

    def retrieve(self, task: Task, file: File, arg: UserBuffer, fields: _Fields) -> None:
        """C: luo_ioctl_retrieve_session()."""
        fd = task.files.get_unused_fd()
        _respond_fd(task, fd, self.luo.sessions.retrieve(fields[2]), arg)


_DEVICE: Final[_Calls] = {
    LIVEUPDATE_CREATE_SESSION: (LiveupdateDevice.create, _NAMED),
    LIVEUPDATE_RETRIEVE_SESSION: (LiveupdateDevice.retrieve, _NAMED),
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

    def preserve_fd(self, task: Task, file: File, arg: UserBuffer, fields: _Fields) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_preserve_fd()."""
        session: LuoSession = file.private
        _, fd, token = fields
        with self._clock.lock(session.lock_name):
            if self._sessions.serialized:
                self._sessions.block()
            session.file_set.preserve_file(task, token, fd)

    def retrieve_fd(self, task: Task, file: File, arg: UserBuffer, fields: _Fields) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_retrieve_fd()."""
        session: LuoSession = file.private
        with self._clock.lock(session.lock_name):
            fd = task.files.get_unused_fd()
            _respond_fd(task, fd, session.file_set.retrieve_file(fields[2]), arg)

    def finish(self, task: Task, file: File, arg: UserBuffer, fields: _Fields) -> None:
        """{u32 size, u32 reserved}. C: luo_session_finish()."""
        if fields[1]:
            raise InvalidArgument("reserved field is not zero")
        self._sessions.finish(file.private)

    def get_name(self, task: Task, file: File, arg: UserBuffer, fields: _Fields) -> None:
        """{u32 size, u32 reserved, u8 name[64]}. C: luo_session_get_name()."""
        if fields[1]:
            raise InvalidArgument("reserved field is not zero")
        if isinstance(arg, bytearray):
            arg[8:72] = file.private.name


_SESSION: Final[_Calls] = {
    LIVEUPDATE_SESSION_PRESERVE_FD: (SessionOperations.preserve_fd, _FD_TOKEN),
    LIVEUPDATE_SESSION_RETRIEVE_FD: (SessionOperations.retrieve_fd, _FD_TOKEN),
    LIVEUPDATE_SESSION_FINISH: (SessionOperations.finish, _RESERVED),
    LIVEUPDATE_SESSION_GET_NAME: (SessionOperations.get_name, _NAMED),
}
