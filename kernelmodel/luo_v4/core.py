"""LUO as proposed in September 2025 (v4): one state for the whole system, moved by events.

::

    UNDEFINED ── boot ──► NORMAL ── PREPARE ──► PREPARED ── FREEZE ──► FROZEN ── kexec
                  │        ▲  ▲ ◄── CANCEL ───────┘ │                     │        ╷
                  │        │  ├ ◄── freeze failed ──┘                     │        ╷
                  │        │  └ ◄── CANCEL ───────────────────────────────┘        ╷
                  └─────► UPDATED ◄╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶╶┘
                           │ ── FINISH ──► NORMAL

| event | raised by | from | a failure |
|---|---|---|---|
| PREPARE | ioctl SET_EVENT | NORMAL | subsystems are cancelled, NORMAL |
| FREEZE | reboot(2) with an image, in PREPARED alone | PREPARED | NORMAL, and the reboot fails |
| CANCEL | ioctl SET_EVENT | PREPARED, FROZEN | of KHO: nothing happens |
| FINISH | ioctl SET_EVENT | UPDATED | panics |

Happy path, in the order in which things are called: PREPARE makes LUO's page, lets the subsystems
prepare (sessions are the first, so all files come before any other subsystem), writes their data,
and finalises KHO. FREEZE asks the same once more. The next kernel finds the page and is UPDATED;
handlers and subsystems register; the agent retrieves sessions and files; FINISH lets subsystems
finish in the same order and frees the page.

Unhappy paths: a transition takes `luo_state_rwsem` for writing; killed while waiting is EAGAIN, the
wrong state EINVAL, an event that there is not (FREEZE by ioctl too) EOPNOTSUPP. If finalising KHO
fails its error is returned, and the state is PREPARED all the same. A reboot in any other state
than PREPARED freezes nothing and goes on: the next kernel starts from nothing. A page that is
there and not understood panics at boot.

Ours: a freeze that fails aborts KHO's finalising, since NORMAL would else refuse every preserve
with no event left to change that; a handler can be unregistered in NORMAL and UPDATED only;
`liveupdate=off` in the next kernel ignores what came over; asking a subsystem costs nothing beyond
what it does itself.

C: kernel/liveupdate/luo_core.c, proposal v4 of Sep 2025 (20250929010321.3462457). Never merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.errors import (
    Again,
    Busy,
    Exists,
    InvalidArgument,
    KernelError,
    NoEntry,
    NotSupported,
)
from kernelmodel.fs import File, Inode
from kernelmodel.luo_v4.device import LiveupdateDevice, SessionOperations
from kernelmodel.luo_v4.fdt import LuoFdtIn, LuoFdtOut
from kernelmodel.luo_v4.global_state import FhGlobalStates
from kernelmodel.luo_v4.handler import FileHandler
from kernelmodel.luo_v4.handler_subsystem import HandlerSubsystems
from kernelmodel.luo_v4.kho import FinalizedKho
from kernelmodel.luo_v4.owners import preserved_pages
from kernelmodel.luo_v4.session import LuoSessions
from kernelmodel.luo_v4.subsystems import LuoSubsystems
from kernelmodel.owners import Preserved

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["LuoV4"]

_STATE_LOCK = "luo_state_rwsem"
_NORMAL, _PREPARED = LiveupdateState.NORMAL, LiveupdateState.PREPARED
_FROZEN, _UPDATED = LiveupdateState.FROZEN, LiveupdateState.UPDATED


class LuoV4:
    """LUO of one booted kernel. C: the statics of luo_core.c."""

    __slots__ = (
        "_kho",
        "enabled",
        "fdt",
        "fdt_in",
        "global_states",
        "handler_subsystems",
        "handlers",
        "in_use",
        "kernel",
        "session_ops",
        "sessions",
        "state",
        "subsystems",
    )

    def __init__(self, kernel: Kernel, kho: FinalizedKho) -> None:
        self.kernel = kernel
        self._kho = kho
        self.enabled = (
            kernel.params.flag("liveupdate", default=False) and kernel.release.luo is not None
        )
        self.state = LiveupdateState.UNDEFINED
        self.in_use = False
        self.fdt = LuoFdtOut(kernel, kho)
        #: What the previous kernel left, until FINISH.
        self.fdt_in: LuoFdtIn | None = None
        self.handlers: list[FileHandler] = []
        self.subsystems = LuoSubsystems(self)
        self.sessions = LuoSessions(self)
        self.session_ops = SessionOperations(self)
        self.global_states = FhGlobalStates(self)
        self.handler_subsystems = HandlerSubsystems(self)

    @property
    def quiet(self) -> bool:
        """Whether things may come and go: NORMAL or UPDATED."""
        return self.state in {_NORMAL, _UPDATED}

    # Boot.

    def early_startup(self) -> None:
        """Find out which state this kernel starts in. early_initcall. C: luo_startup().

        Raises:
            KernelPanic: what came over is not what this release understands.
        """
        if self.enabled and not self._kho.enabled:
            self.kernel.printk("luo: KHO is disabled, disabling live update")
            self.enabled = False
        if not self.enabled:
            return
        self.kernel.charge("luo_early_startup")
        self.fdt_in = LuoFdtIn.load(self.kernel)
        self.state = _NORMAL if self.fdt_in is None else _UPDATED
        self.subsystems.register(self.sessions.subsystem)

    def late_startup(self) -> None:
        """/dev/liveupdate. late_initcall."""
        if self.enabled and not self._kho.enabled:
            self.kernel.printk("luo: KHO is disabled, disabling live update")
            self.enabled = False
        if self.enabled:
            self.kernel.charge("luo_late_startup")
        else:
            self.state = LiveupdateState.UNDEFINED

    # Events.

    @contextmanager
    def _transition(self, *sources: LiveupdateState) -> Iterator[None]:
        """Hold the state for writing, in one of these states.

        Raises: Again: killed while waiting. InvalidArgument: another state.
        """
        try:
            self.kernel.fail_function("down_write_killable", lock=_STATE_LOCK)
        except KernelError as error:
            raise Again("killed while waiting for the state") from error
        with self.kernel.clock.lock(_STATE_LOCK):
            if self.state not in sources:
                raise InvalidArgument("not in this state", state=self.state.name)
            yield

    def set_event(self, event: int) -> None:
        """What SET_EVENT on the device may raise. C: luo_ioctl_set_event().

        Raises:
            NotSupported: unknown, or FREEZE. Others: the event's.
        """
        match event:
            case LiveupdateEvent.PREPARE:
                self.prepare()
            case LiveupdateEvent.CANCEL:
                self.cancel()
            case LiveupdateEvent.FINISH:
                self.finish()
            case _:
                raise NotSupported("no such event", event=event)

    def prepare(self) -> None:
        """C: luo_prepare().

        Raises:
            Again, InvalidArgument. Others: a subsystem's; nothing stays prepared. What
            finalising KHO raised; the system is PREPARED then.
        """
        with self._transition(_NORMAL):
            self.fdt.create()
            try:
                self.subsystems.prepare()
            except KernelError:
                self.fdt.destroy()
                raise
            self.state = _PREPARED
        self._kho.finalize()

    def reboot(self) -> None:
        """FREEZE, before the jump; nothing at all unless PREPARED. C: liveupdate_reboot().

        Raises:
            Again. Others: a subsystem's; the system is NORMAL then.
        """
        if self.state is not _PREPARED:
            return
        with self._transition(_PREPARED):
            try:
                self.subsystems.freeze()
            except KernelError:
                self.state = _NORMAL
                self.fdt.destroy()
                self._kho.abort()
                raise
            self.state = _FROZEN

    def cancel(self) -> None:
        """C: luo_cancel(). Raises: Again, InvalidArgument; what aborting KHO raised."""
        with self._transition(_PREPARED, _FROZEN):
            self._kho.abort()
            self.subsystems.cancel()
            self.fdt.destroy()
            self.state = _NORMAL

    def finish(self) -> None:
        """C: luo_finish(). Raises: Again, InvalidArgument. KernelPanic: see subsystems."""
        with self._transition(_UPDATED):
            assert self.fdt_in is not None, "UPDATED means that there is one"
            self.subsystems.finish()
            self._kho.restore_free(self.fdt_in.pa)
            self.fdt_in = None
            self.state = _NORMAL

    # Handlers.

    def register_file_handler(self, handler: FileHandler) -> None:
        """C: liveupdate_register_file_handler().

        Raises:
            NotSupported: live update is off. Busy: neither NORMAL nor UPDATED. Exists: the
            compatible string is taken. Again: its module is going away.
        """
        self._check_quiet()
        if self.handler_named(handler.compatible.encode()) is not None:
            raise Exists("handler exists", compatible=handler.compatible)
        if handler.module_gone:
            raise Again("the handler's module is going", compatible=handler.compatible)
        self.handler_subsystems.handler_registered(handler)
        self.global_states.handler_registered(handler)
        self.handlers.append(handler)

    def unregister_file_handler(self, handler: FileHandler) -> None:
        """C: liveupdate_unregister_file_handler().

        Raises:
            NotSupported: live update is off. NoEntry: it is not registered. Busy: a session has
            files of it, or the state is neither NORMAL nor UPDATED.
        """
        self._check_quiet()
        if handler not in self.handlers:
            raise NoEntry("no such handler", compatible=handler.compatible)
        if handler.nr_files:
            raise Busy("handler has files", files=handler.nr_files)
        self.handlers.remove(handler)
        self.handler_subsystems.handler_unregistered(handler)

    def _check_quiet(self) -> None:
        if not self.enabled:
            raise NotSupported("live update is off")
        if not self.quiet:
            raise Busy("a live update is under way", state=self.state.name)

    def handler_for(self, file: File) -> FileHandler:
        """The first handler that takes the file. Raises: NoEntry."""
        for handler in self.handlers:
            if handler.can_preserve(file):
                return handler
        raise NoEntry("no handler for this file")

    def handler_named(self, compatible: bytes) -> FileHandler | None:
        """The handler with this compatible string."""
        return next((h for h in self.handlers if h.compatible.encode() == compatible), None)

    # The device.

    def open(self) -> File:
        """open(2) of /dev/liveupdate. C: luo_open().

        Raises:
            NoEntry: LUO is off, there is no device. Busy: somebody has it open.
            KernelPanic: what came over cannot be read.
        """
        if not self.enabled:
            raise NoEntry("no such device", path="/dev/liveupdate")
        if self.in_use:
            raise Busy("/dev/liveupdate is open already")
        self.sessions.deserialize()
        self.in_use = True
        return File(Inode(self.kernel.new_ino()), LiveupdateDevice(self))

    def preserved_pages(self, kernel: Kernel) -> Iterator[Preserved]:
        """What sessions, files, subsystems and states have preserved, by owner."""
        return preserved_pages(self)

    def held_files(self) -> Iterator[File]:
        """Every file that a session holds a reference to."""
        for session in self.sessions.sessions:
            for luo_file in session.files.files.values():
                if luo_file.file is not None:
                    yield luo_file.file
