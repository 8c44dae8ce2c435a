"""The Live Update Orchestrator: /dev/liveupdate, early and late initialisation, the reboot hook.

Happy path: early init reads the incoming `LuoSer` (and panics if it is not what it must be),
late init makes the outgoing one with the next number and hangs it into KHO's FDT as `LUO`.
`reboot` freezes and serialises sessions, then FLBs; after that the jump cannot fail.

Unhappy paths: without KHO, LUO turns itself off. An incoming blob of another version, or a
session chain that cannot be read, panics, whatever `liveupdate=` says: memory that devices may
still write to must not be used by a kernel that does not know it.

C: kernel/liveupdate/luo_core.c, 7.3. There is no global state machine in 7.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo import (
    LIVEUPDATE_CREATE_SESSION,
    LIVEUPDATE_RETRIEVE_SESSION,
    LIVEUPDATE_SESSION_FINISH,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_NAME_LENGTH,
    LIVEUPDATE_SESSION_PRESERVE_FD,
    LIVEUPDATE_SESSION_RETRIEVE_FD,
    LUO_SUBTREE,
    LuoSer,
)
from kernelmodel.errors import (
    BadAddress,
    Busy,
    Exists,
    InvalidArgument,
    IoError,
    KernelError,
    KernelPanic,
    NoEntry,
    NotSupported,
    NotTty,
    TooBig,
)
from kernelmodel.fs import File, Inode
from kernelmodel.luo.flb import LuoFlbs
from kernelmodel.luo.handler import FileHandler
from kernelmodel.luo.liveupdate_test import LiveupdateTest
from kernelmodel.luo.session import LuoSession, LuoSessions

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.syscalls import Task

__all__ = ["LiveupdateDevice", "Luo", "SessionOperations"]

#: An ioctl's implementation and the size of its structure up to the last mandatory field.
_Ioctl = tuple[int, int, Callable[["Task", File, bytearray], int]]


class Luo:
    """LUO of one booted kernel. C: struct luo_global and the statics of luo_core.c."""

    __slots__ = (
        "enabled",
        "flbs",
        "handlers",
        "in_use",
        "kernel",
        "liveupdate_num",
        "luo_ser_pa",
        "preserved_ids",
        "session_ops",
        "sessions",
        "test_flbs",
    )

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.enabled = (
            kernel.params.flag("liveupdate", default=False) and kernel.release.luo is not None
        )
        #: How many live updates led to this kernel.
        self.liveupdate_num = 0
        self.luo_ser_pa = 0
        self.in_use = False
        self.handlers: list[FileHandler] = []
        #: Objects preserved, or retrieved and not finished, in whatever session.
        self.preserved_ids: set[tuple[FileHandler, int]] = set()
        self.sessions = LuoSessions(self)
        self.flbs = LuoFlbs(self)
        self.test_flbs = LiveupdateTest(self.flbs)
        self.session_ops = SessionOperations(self)

    # Boot.

    def early_startup(self) -> None:
        """Read what came over. early_initcall. C: luo_early_startup().

        Raises:
            KernelPanic: it is not what this release understands.
        """
        kernel = self.kernel
        if kernel.release.luo is None:
            return
        if not kernel.kho.enabled:
            if self.enabled:
                kernel.printk("luo: KHO is disabled, disabling live update")
            self.enabled = False
            return
        kernel.charge("luo_early_startup")
        try:
            pa, size = kernel.kho.retrieve_subtree(LUO_SUBTREE)
        except NoEntry:
            return
        except KernelError as error:
            raise KernelPanic(f"luo: cannot read the handover: {error}") from error
        if size < LuoSer.SIZE:
            raise KernelPanic(f"luo: handover blob has {size} bytes")
        ser = LuoSer.unpack(kernel.memory.read(pa, LuoSer.SIZE))
        if cstring(ser.compatible).decode("ascii", "replace") != kernel.release.luo:
            raise KernelPanic(f"luo: incompatible handover {cstring(ser.compatible)!r}")
        self.liveupdate_num = ser.liveupdate_num
        try:
            self.sessions.setup_incoming(ser.sessions_pa)
        except KernelError as error:
            raise KernelPanic(f"luo: cannot read the sessions: {error}") from error
        finally:
            kernel.kho.restore_free(pa)
        self.flbs.incoming_pa = ser.flbs_pa

    def late_startup(self) -> None:
        """Make the outgoing side. late_initcall. C: luo_late_startup()."""
        if not self.enabled:
            return
        kho = self.kernel.kho
        self.kernel.charge("luo_late_startup")
        try:
            self.luo_ser_pa = kho.alloc_preserve(LuoSer.SIZE)
        except KernelError as error:
            self._disable(error)
            return
        try:
            flbs_pa = self.flbs.setup_outgoing()
            compatible = (self.kernel.release.luo or "").encode().ljust(8, b"\0")
            number = self.liveupdate_num + 1 & (1 << 64) - 1
            ser = LuoSer(compatible, number, 0, flbs_pa)
            self.kernel.memory.write(self.luo_ser_pa, ser.pack())
            kho.add_subtree(LUO_SUBTREE, self.luo_ser_pa, LuoSer.SIZE)
        except KernelError as error:
            kho.unpreserve_free(self.luo_ser_pa)
            self._disable(error)

    def _disable(self, error: KernelError) -> None:
        self.kernel.printk(f"luo: cannot set up the outgoing state: {error}")
        self.enabled = False

    def reboot(self) -> None:
        """Freeze and serialise before the jump. C: liveupdate_reboot().

        Raises what a file's freeze raises; nothing has changed then.
        """
        if not self.enabled:
            return
        with self.kernel.clock.lock("luo_serialize_rwsem"):
            sessions_pa = self.sessions.serialize()
            self.kernel.memory.write_u64(self.luo_ser_pa + 16, sessions_pa)
            self.flbs.serialize()

    # Handlers.

    def register_file_handler(self, handler: FileHandler) -> None:
        """C: liveupdate_register_file_handler().

        Raises:
            NotSupported: LUO is off. Exists: the compatible string is taken.
        """
        if not self.enabled:
            raise NotSupported("live update is off")
        if any(other.compatible == handler.compatible for other in self.handlers):
            raise Exists("handler exists", compatible=handler.compatible)
        self.handlers.append(handler)
        if self.kernel.config.liveupdate_test:
            self.test_flbs.register(handler)

    def handler_for(self, file: File) -> FileHandler:
        """The first handler that takes the file. Raises: NoEntry."""
        for handler in self.handlers:
            if handler.can_preserve(file):
                return handler
        raise NoEntry("no handler for this file")

    def handler_named(self, compatible: bytes) -> FileHandler:
        """The handler with this compatible string. Raises: NoEntry."""
        for handler in self.handlers:
            if handler.compatible.encode() == compatible:
                return handler
        raise NoEntry("no handler", compatible=compatible.decode(errors="replace"))

    # The device.

    def open(self) -> File:
        """open(2) of /dev/liveupdate. C: luo_open().

        Raises:
            NoEntry: LUO is off, there is no device. Busy: somebody has it open.
            IoError: what came over cannot be read; every open fails so.
        """
        if not self.enabled:
            raise NoEntry("no such device", path="/dev/liveupdate")
        if self.in_use:
            raise Busy("/dev/liveupdate is open already")
        try:
            self.sessions.deserialize()
        except KernelError as error:
            raise IoError("cannot read the incoming sessions") from error
        self.in_use = True
        return File(Inode(self.kernel.new_ino()), LiveupdateDevice(self))


def _dispatch(
    table: dict[int, _Ioctl],
    task: Task,
    file: File,
    cmd: int,
    arg: bytearray,
    check: Callable[[int], None],
) -> int:
    """Common decoding: number, encoding, direction, size, trailing bytes, in this order."""
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
    if len(arg) < size:
        raise BadAddress("shorter than it says", size=size)
    if size > full and any(arg[full:size]):
        raise TooBig("unknown trailing fields", size=size)
    known = bytearray(full)
    take = min(size, full)
    known[:take] = arg[:take]
    result = function(task, file, known)
    arg[:take] = known[:take]
    return result


class LiveupdateDevice:
    """File operations of /dev/liveupdate."""

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """The opener is gone; sessions live on their own descriptors. C: luo_release()."""
        self.luo.in_use = False

    def ioctl(self, task: Task, file: File, cmd: int, arg: bytearray) -> int:
        """C: luo_ioctl(). {u32 size, s32 fd, u8 name[64]} both ways."""
        table: dict[int, _Ioctl] = {
            LIVEUPDATE_CREATE_SESSION & 0xFF: (72, 72, self._create),
            LIVEUPDATE_RETRIEVE_SESSION & 0xFF: (72, 72, self._retrieve),
        }
        return _dispatch(table, task, file, cmd, arg, lambda _nr: None)

    def _create(self, task: Task, file: File, arg: bytearray) -> int:
        return self._reply(task, arg, lambda: self.luo.sessions.create(_name(arg)))

    def _retrieve(self, task: Task, file: File, arg: bytearray) -> int:
        return self._reply(task, arg, lambda: self.luo.sessions.retrieve(_name(arg)))

    @staticmethod
    def _reply(task: Task, arg: bytearray, session_file: Callable[[], File]) -> int:
        struct.pack_into("<i", arg, 4, task.files.install_new(session_file))
        return 0


def _name(arg: bytearray) -> bytes:
    return bytes(arg[8 : 8 + LIVEUPDATE_SESSION_NAME_LENGTH])


class SessionOperations:
    """File operations of a session's descriptor."""

    def __init__(self, luo: Luo) -> None:
        self.luo = luo

    def release(self, file: File) -> None:
        """C: luo_session_release()."""
        self.luo.sessions.release(_session(file))

    def ioctl(self, task: Task, file: File, cmd: int, arg: bytearray) -> int:
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

    def _preserve_fd(self, task: Task, file: File, arg: bytearray) -> int:
        """{u32 size, s32 fd, u64 token}."""
        _, fd, token = struct.unpack("<IiQ", arg)
        session = _session(file)
        with self.luo.kernel.clock.lock(f"luo_session:{session.name.hex()}"):
            self.luo.sessions.preserve_fd(task, session, fd, token)
        return 0

    def _retrieve_fd(self, task: Task, file: File, arg: bytearray) -> int:
        """{u32 size, s32 fd, u64 token}."""
        session = _session(file)
        (token,) = struct.unpack_from("<Q", arg, 8)
        with self.luo.kernel.clock.lock(f"luo_session:{session.name.hex()}"):
            number = task.files.install_new(lambda: session.file_set.retrieve_file(token))
        struct.pack_into("<i", arg, 4, number)
        return 0

    def _finish(self, task: Task, file: File, arg: bytearray) -> int:
        """{u32 size, u32 reserved}."""
        if any(arg[4:8]):
            raise InvalidArgument("reserved field is not zero")
        self.luo.sessions.finish(_session(file))
        return 0

    def _get_name(self, task: Task, file: File, arg: bytearray) -> int:
        """{u32 size, u32 reserved, u8 name[64]}."""
        if any(arg[4:8]):
            raise InvalidArgument("reserved field is not zero")
        arg[8:72] = _session(file).name
        return 0


def _session(file: File) -> LuoSession:
    session = file.private
    assert isinstance(session, LuoSession)
    return session
