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

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo import LUO_SUBTREE, LuoSer
from kernelmodel.errors import (
    Busy,
    Exists,
    InvalidArgument,
    IoError,
    KernelError,
    KernelPanic,
    NoEntry,
    NotSupported,
)
from kernelmodel.fs import File, Inode
from kernelmodel.luo.flb import LuoFlbs
from kernelmodel.luo.handler import FileHandler
from kernelmodel.luo.ioctl import IncomingSession, LiveupdateDevice, OutgoingSession
from kernelmodel.luo.liveupdate_test import LiveupdateTest
from kernelmodel.luo.session import LuoSessions

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["Luo"]

#: Callbacks without which there is no handler.
_REQUIRED = ("preserve", "unpreserve", "retrieve", "finish", "can_preserve")


@lru_cache(maxsize=64)
def _missing(kind: type[FileHandler]) -> str:
    """Those that this kind of handler has not."""
    lacks = [name for name in _REQUIRED if getattr(kind, name) is getattr(FileHandler, name)]
    return " ".join(lacks)


@lru_cache(maxsize=64)
def _text(buffer: bytes) -> str:
    """What a buffer holds up to its first NUL; what is no text equals none."""
    return cstring(buffer).decode(errors="surrogateescape")


class Luo:
    """LUO of one booted kernel. C: struct luo_global and the statics of luo_core.c."""

    __slots__ = (
        "enabled",
        "flbs",
        "handlers",
        "in_use",
        "incoming_ops",
        "kernel",
        "liveupdate_num",
        "luo_ser_pa",
        "outgoing_ops",
        "preserved_ids",
        "sessions",
        "test_flbs",
    )

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        release = kernel.release
        self.enabled = (
            kernel.params.flag("liveupdate", default=False)
            and release.luo is not None
            and release.luo_design == "sessions"
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
        self.test_flbs = LiveupdateTest(self.flbs) if kernel.config.liveupdate_test else None
        self.outgoing_ops = OutgoingSession(self)
        self.incoming_ops = IncomingSession(self)

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
        raw = kernel.memory.read(pa, LuoSer.SIZE)
        name, number, sessions_pa, flbs_pa = LuoSer.FORMAT.unpack(raw)
        compatible = cstring(name).decode("ascii", "replace")
        if compatible != kernel.release.luo:
            raise KernelPanic(f"luo: incompatible handover {compatible!r}")
        self.liveupdate_num = number
        try:
            self.sessions.setup_incoming(sessions_pa)
        except KernelError as error:
            raise KernelPanic(f"luo: cannot read the sessions: {error}") from error
        finally:
            kernel.kho.restore_free(pa)
        self.flbs.incoming_pa = flbs_pa

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
            ser = LuoSer.FORMAT.pack(compatible, number, 0, flbs_pa)
            self.kernel.memory.write(self.luo_ser_pa, ser)
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
            NotSupported: LUO is off. InvalidArgument: one of the callbacks that every handler
            has is missing. Exists: the compatible string is taken.
        """
        if not self.enabled:
            raise NotSupported("live update is off")
        kind: Any = type(handler)  # which can be hashed, whatever mypy takes its class for
        if missing := _missing(kind):
            raise InvalidArgument("handler is incomplete", missing=missing)
        for other in self.handlers:
            if other.compatible == handler.compatible:
                raise Exists("handler exists", compatible=handler.compatible)
        self.handlers.append(handler)
        if self.test_flbs is not None:
            self.test_flbs.register(handler)

    def handler_for(self, file: File) -> FileHandler:
        """The first handler that takes the file. Raises: NoEntry."""
        for handler in self.handlers:
            if handler.can_preserve(file):
                return handler
        raise NoEntry("no handler for this file")

    def handler_named(self, compatible: bytes) -> FileHandler:
        """The handler whose compatible string this buffer holds. Raises: NoEntry."""
        wanted = _text(compatible)
        for handler in self.handlers:
            if handler.compatible == wanted:
                return handler
        raise NoEntry("no handler", compatible=cstring(compatible).decode(errors="replace"))

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
