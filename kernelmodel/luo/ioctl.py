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
from typing import TYPE_CHECKING

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


class _Command:
    """One request, copied in. C: struct luo_ucmd.

    `arg` is the kernel's copy, as long as the structure that it knows.
    """

    __slots__ = ("_size", "_user", "arg", "file", "task")

    def __init__(self, task: Task, file: File, user: UserBuffer, size: int, full: int) -> None:
        self.task = task
        self.file = file
        self._user = user
        self._size = min(size, full)
        self.arg = bytearray(full)
        self.arg[: self._size] = user[: self._size]

    def respond(self) -> None:
        """Copy the answer back. C: luo_ucmd_respond(). Raises: BadAddress."""
        if not isinstance(self._user, bytearray):
            raise BadAddress("the answer cannot be written")
        self._user[: self._size] = self.arg[: self._size]

    def respond_fd(self, fd: int) -> None:
        """As `respond`, with a descriptor. Both structures have it after their size."""
        struct.pack_into("<i", self.arg, 4, fd)
        self.respond()


#: The size of the structure, its size up to the last mandatory field, and what does it.
_Ioctl = tuple[int, int, Callable[[_Command], None]]


def _dispatch(
    table: dict[int, _Ioctl],
    task: Task,
    file: File,
    cmd: int,
    arg: UserBuffer,
    check: Callable[[int], None],
) -> int:
    """Common decoding; see the module's text for the order."""
    entry = table.get(cmd & 0xFF)
    if entry is None:
        raise InvalidArgument("unknown ioctl number", cmd=cmd)
    if len(arg) < 4:
        raise BadAddress("no room for a size")
    size: int = struct.unpack_from("<I", arg)[0]
    full, minimum, function = entry
    if cmd & ~0xFF != LIVEUPDATE_CREATE_SESSION:
        raise NotTty("wrong ioctl encoding", cmd=cmd)
    check(cmd & 0xFF)
    if size < minimum:
        raise InvalidArgument("structure too small", size=size)
    if any(arg[full:size]):  # found before the reading faults
        raise TooBig("unknown trailing fields", size=size)
    if len(arg) < size:
        raise BadAddress("shorter than it says", size=size)
    function(_Command(task, file, arg, size, full))
    return 0


class LiveupdateDevice:
    """File operations of /dev/liveupdate."""

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """The opener is gone; sessions live on their own descriptors. C: luo_release()."""
        self.luo.in_use = False

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_ioctl(). {u32 size, s32 fd, u8 name[64]} both ways."""
        table: dict[int, _Ioctl] = {
            LIVEUPDATE_CREATE_SESSION & 0xFF: (72, 72, self._create),
            LIVEUPDATE_RETRIEVE_SESSION & 0xFF: (72, 72, self._retrieve),
        }
        return _dispatch(table, task, file, cmd, arg, lambda _nr: None)

    def _create(self, command: _Command) -> None:
        """C: luo_ioctl_create_session()."""
        command.task.files.install_new(
            lambda: self.luo.sessions.create(_name(command)), command.respond_fd
        )

    def _retrieve(self, command: _Command) -> None:
        """C: luo_ioctl_retrieve_session()."""
        command.task.files.install_new(
            lambda: self.luo.sessions.retrieve(_name(command)), command.respond_fd
        )


def _name(command: _Command) -> bytes:
    return bytes(command.arg[8 : 8 + LIVEUPDATE_SESSION_NAME_LENGTH])


class SessionOperations:
    """File operations of a session's descriptor."""

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        self.luo.sessions.release(_session(file))

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """C: luo_session_ioctl()."""
        table: dict[int, _Ioctl] = {
            LIVEUPDATE_SESSION_PRESERVE_FD & 0xFF: (16, 16, self._preserve_fd),
            LIVEUPDATE_SESSION_RETRIEVE_FD & 0xFF: (16, 16, self._retrieve_fd),
            LIVEUPDATE_SESSION_FINISH & 0xFF: (8, 8, self._finish),
            LIVEUPDATE_SESSION_GET_NAME & 0xFF: (72, 72, self._get_name),
        }

        def check_direction(nr: int) -> None:
            outgoing = {LIVEUPDATE_SESSION_PRESERVE_FD & 0xFF}
            incoming = {LIVEUPDATE_SESSION_RETRIEVE_FD & 0xFF, LIVEUPDATE_SESSION_FINISH & 0xFF}
            if nr in (outgoing if _session(file).retrieved else incoming):
                raise InvalidArgument("wrong direction for this session")

        return _dispatch(table, task, file, cmd, arg, check_direction)

    def _preserve_fd(self, command: _Command) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_preserve_fd()."""
        _, fd, token = struct.unpack("<IiQ", command.arg)
        session = _session(command.file)
        with self.luo.kernel.clock.lock(f"luo_session:{session.name.hex()}"):
            self.luo.sessions.preserve_fd(command.task, session, fd, token)
        command.respond()

    def _retrieve_fd(self, command: _Command) -> None:
        """{u32 size, s32 fd, u64 token}. C: luo_session_retrieve_fd()."""
        session = _session(command.file)
        (token,) = struct.unpack_from("<Q", command.arg, 8)
        with self.luo.kernel.clock.lock(f"luo_session:{session.name.hex()}"):
            command.task.files.install_new(
                lambda: session.file_set.retrieve_file(token), command.respond_fd
            )

    def _finish(self, command: _Command) -> None:
        """{u32 size, u32 reserved}. C: luo_session_finish()."""
        _check_reserved(command)
        self.luo.sessions.finish(_session(command.file))
        command.respond()

    def _get_name(self, command: _Command) -> None:
        """{u32 size, u32 reserved, u8 name[64]}. C: luo_session_get_name()."""
        _check_reserved(command)
        command.arg[8:72] = _session(command.file).name
        command.respond()


def _check_reserved(command: _Command) -> None:
    if any(command.arg[4:8]):
        raise InvalidArgument("reserved field is not zero")


def _session(file: File) -> LuoSession:
    session = file.private
    assert isinstance(session, LuoSession)
    return session
