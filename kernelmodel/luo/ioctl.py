"""The ioctls of /dev/liveupdate and of a session's descriptor.

Both decode alike: number, encoding, direction (sessions only), size, trailing bytes, in this order,
and only then is anything done: by a method that takes what the structure says. Who knows that its
structure is right, as `kernelmodel.syscalls` does, may call that method without making one. The
answer is copied into the caller's structure at the very end.

Unhappy path: an answer that cannot be copied back is EFAULT after the fact. A session that was made
or retrieved for it is closed again, a retrieved one with all that closing means; a file that was
preserved stays so, one that was retrieved stays with its session, and what is finished is finished.

C: kernel/liveupdate/luo_core.c (luo_ioctl), luo_session.c (luo_session_ioctl), 7.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

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

__all__ = ["IncomingSession", "LiveupdateDevice", "OutgoingSession"]

#: What does an ioctl, and the structure that it is given, whose last field is mandatory in all: its
#: size, and what the method takes. It returns what it answers, a descriptor or a name, if anything.
_Call = tuple[Callable[..., int | bytes | None], struct.Struct]

_NAMED: Final = struct.Struct(f"<I4x{LIVEUPDATE_SESSION_NAME_LENGTH}s")
_FD_TOKEN: Final = struct.Struct("<IiQ")
_TOKEN: Final = struct.Struct("<I4xQ")
_RESERVED: Final = struct.Struct("<II")
_RESERVED_NAME: Final = struct.Struct(f"<II{LIVEUPDATE_SESSION_NAME_LENGTH}x")
_U32: Final = struct.Struct("<I")
_S32: Final = struct.Struct("<i")


class _Operations:
    """What files of both kinds have in common: how an ioctl is decoded and answered."""

    __slots__ = ()

    #: By number; and those of them that are for sessions of the other direction.
    calls: ClassVar[dict[int, _Call]]
    wrong: ClassVar[frozenset[int]] = frozenset()

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_ioctl(), luo_session_ioctl(); an answer is copied back by luo_ucmd_respond()."""
        function, fields = self._decode(cmd, arg)
        answer = function(self, task, file, *fields)
        if isinstance(arg, bytearray):
            if isinstance(answer, bytes):
                arg[8 : 8 + len(answer)] = answer
            elif answer is not None:
                _S32.pack_into(arg, 4, answer)
            return 0
        if isinstance(answer, int):
            task.close(answer)
        raise BadAddress("the answer cannot be written")

    def _decode(
        self, cmd: int, arg: UserBuffer
    ) -> tuple[Callable[..., int | bytes | None], tuple[Any, ...]]:
        """What does it, its structure checked; see the module's text for the order."""
        known = LIVEUPDATE_CREATE_SESSION | cmd & 0xFF
        if known not in self.calls and known not in self.wrong:
            raise InvalidArgument("unknown ioctl number", cmd=cmd)
        if len(arg) < 4:
            raise BadAddress("no room for a size")
        size: int = _U32.unpack_from(arg)[0]
        if cmd != known:
            raise NotTty("wrong ioctl encoding", cmd=cmd)
        if cmd in self.wrong:
            raise InvalidArgument("wrong direction for this session")
        function, form = self.calls[cmd]
        if size < form.size:
            raise InvalidArgument("structure too small", size=size)
        if size > form.size and any(arg[form.size : size]):  # found before the reading faults
            raise TooBig("unknown trailing fields", size=size)
        if len(arg) < size:
            raise BadAddress("shorter than it says", size=size)
        return function, form.unpack_from(arg)[1:]


class LiveupdateDevice(_Operations):
    """File operations of /dev/liveupdate; both structures are {u32 size, s32 fd, u8 name[64]}."""

    __slots__ = ("luo",)

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """The opener is gone; sessions live on their own descriptors. C: luo_release()."""
        self.luo.in_use = False

    def create(self, task: Task, file: File, name: bytes) -> int:
        """The session's descriptor. C: luo_ioctl_create_session()."""
        fd = task.files.get_unused_fd()
        task.files.fdt[fd] = self.luo.sessions.create(name)
        return fd

    def retrieve(self, task: Task, file: File, name: bytes) -> int:
        """The session's descriptor. C: luo_ioctl_retrieve_session()."""
        fd = task.files.get_unused_fd()
        task.files.fdt[fd] = self.luo.sessions.retrieve(name)
        return fd

    calls: ClassVar[dict[int, _Call]] = {
        LIVEUPDATE_CREATE_SESSION: (create, _NAMED),
        LIVEUPDATE_RETRIEVE_SESSION: (retrieve, _NAMED),
    }


class _SessionOperations(_Operations):
    """File operations of a session's descriptor; `private` of its file is the session."""

    __slots__ = ("_clock", "_sessions")

    def __init__(self, luo: Luo) -> None:
        self._clock = luo.kernel.clock
        self._sessions = luo.sessions

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        self._sessions.release(file.private)

    def get_name(self, task: Task, file: File, reserved: int) -> bytes:
        """{u32 size, u32 reserved, u8 name[64]}. C: luo_session_get_name()."""
        if reserved:
            raise InvalidArgument("reserved field is not zero")
        name: bytes = file.private.name
        return name


class OutgoingSession(_SessionOperations):
    """What a session's descriptor can do before the jump."""

    __slots__ = ()

    def preserve_fd(self, task: Task, file: File, fd: int, token: int) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_preserve_fd()."""
        session: LuoSession = file.private
        with self._clock.lock(session.lock_name):
            if self._sessions.serialized:
                self._sessions.block()
            session.file_set.preserve_file(task, token, fd)

    calls: ClassVar[dict[int, _Call]] = {
        LIVEUPDATE_SESSION_PRESERVE_FD: (preserve_fd, _FD_TOKEN),
        LIVEUPDATE_SESSION_GET_NAME: (_SessionOperations.get_name, _RESERVED_NAME),
    }
    wrong = frozenset({LIVEUPDATE_SESSION_RETRIEVE_FD, LIVEUPDATE_SESSION_FINISH})


class IncomingSession(_SessionOperations):
    """What a session's descriptor can do after the jump."""

    __slots__ = ()

    def retrieve_fd(self, task: Task, file: File, token: int) -> int:
        """{u32 size, s32 fd, u64 token}; the file's descriptor. C: luo_session_retrieve_fd()."""
        session: LuoSession = file.private
        with self._clock.lock(session.lock_name):
            fd = task.files.get_unused_fd()
            task.files.fdt[fd] = session.file_set.retrieve_file(token)
            return fd

    def finish(self, task: Task, file: File, reserved: int = 0) -> None:
        """{u32 size, u32 reserved}. C: luo_session_finish()."""
        if reserved:
            raise InvalidArgument("reserved field is not zero")
        sessions = self._sessions
        if sessions.serialized:
            sessions.block()
        sessions.kernel.charge("luo_session_finish")
        file.private.file_set.finish()

    calls: ClassVar[dict[int, _Call]] = {
        LIVEUPDATE_SESSION_RETRIEVE_FD: (retrieve_fd, _TOKEN),
        LIVEUPDATE_SESSION_FINISH: (finish, _RESERVED),
        LIVEUPDATE_SESSION_GET_NAME: (_SessionOperations.get_name, _RESERVED_NAME),
    }
    wrong = frozenset({LIVEUPDATE_SESSION_PRESERVE_FD})
