"""Sessions: named sets of files with a descriptor and a state of their own. One subsystem of LUO.

Happy path: an agent creates a session while the system is NORMAL or UPDATED and preserves files in
it. The system's PREPARE and FREEZE take every session along, or the agent moves one by itself with
SET_EVENT on its descriptor. In the next kernel sessions are UPDATED, are retrieved by name, and
become NORMAL with FINISH; a descriptor that is still open can then be used for the next update.

Unhappy paths: outside NORMAL and UPDATED no session is created (EAGAIN), outside UPDATED none is
retrieved (EAGAIN). Files come and go only while system and session let them (EBUSY). PREPARE finds
a session that is not NORMAL, FREEZE one that is not PREPARED: EBUSY, and the system's event fails
with it. A session that fails to prepare undoes the sessions before it, in their order. Closing the
descriptor finishes an UPDATED session and cancels a PREPARED or FROZEN one.

A session that goes back after FREEZE leaves its entry in the array, which then names free memory:
the next kernel reads what happens to be there, and mostly panics.

Ours: all four events can be raised on a session's descriptor (FREEZE too, which the device
refuses); CANCEL and FINISH of a session that is in no state for them do nothing; a freeze that
fails cancels all sessions, because LUO will call no `cancel` here; freeze writes the array anew, so
that a session closed since PREPARE is not in it; incoming sessions and their files are read at the
first open of the device; a session that nobody retrieved is gone with FINISH; two incoming
sessions of one name panic.

Locks, outermost first: luo_state_rwsem, the session's mutex.

C: kernel/liveupdate/luo_session.c, proposal v4 of Sep 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo_v4 import (
    LIVEUPDATE_SESSION_NAME_LENGTH,
    LUO_SESSION_NODE,
    LiveupdateEvent,
    LiveupdateState,
    LuoSessionSer,
)
from kernelmodel.errors import (
    AddressInUse,
    Again,
    Busy,
    Exists,
    InvalidArgument,
    KernelError,
    KernelPanic,
    NoEntry,
    NotSupported,
)
from kernelmodel.fs import ANON_INO, File, Inode
from kernelmodel.luo_v4.array import NO_ARRAY, SerArray, alloc_array, take_array
from kernelmodel.luo_v4.file import LuoFiles
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps

if TYPE_CHECKING:
    from kernelmodel.luo_v4.core import LuoV4
    from kernelmodel.syscalls import Task

__all__ = ["LuoSession", "LuoSessions"]

_UNDER_WAY = frozenset({LiveupdateState.PREPARED, LiveupdateState.FROZEN})


class LuoSession:
    """C: struct luo_session. `retrieved`: somebody has, or had, its descriptor."""

    __slots__ = ("files", "name", "retrieved", "state")

    def __init__(self, luo: LuoV4, name: bytes, state: LiveupdateState, *, retrieved: bool) -> None:
        self.name = name
        self.state = state
        self.retrieved = retrieved
        self.files = LuoFiles(luo)

    def __repr__(self) -> str:
        return f"LuoSession({self.name!r}, {self.state.name}, files={len(self.files.files)})"

    @property
    def mutex(self) -> str:
        """The lock's name."""
        return f"luo_session:{self.name.hex()}"

    def prepare(self) -> None:
        """Raises: Busy unless it is NORMAL; others: its files'."""
        if self.state is not LiveupdateState.NORMAL:
            raise Busy("session is not normal", state=self.state.name)
        self.files.prepare()
        self.state = LiveupdateState.PREPARED

    def freeze(self) -> None:
        """Raises: Busy unless it is PREPARED; others: its files', and it is NORMAL then."""
        if self.state is not LiveupdateState.PREPARED:
            raise Busy("session is not prepared", state=self.state.name)
        self.files.luo.kernel.charge("luo_session_freeze")
        try:
            self.files.freeze()
        except KernelError:
            self.state = LiveupdateState.NORMAL
            raise
        self.state = LiveupdateState.FROZEN

    def cancel(self) -> None:
        """Back to NORMAL, if it is PREPARED or FROZEN."""
        if self.state in _UNDER_WAY:
            self.files.cancel()
            self.state = LiveupdateState.NORMAL

    def finish(self) -> None:
        """To NORMAL without files, if it is UPDATED."""
        if self.state is LiveupdateState.UPDATED:
            self.files.luo.kernel.charge("luo_session_finish")
            self.files.finish()
            self.state = LiveupdateState.NORMAL


class LuoSessions(SubsystemOps):
    """All sessions of one kernel, created and incoming. C: struct luo_session_global."""

    __slots__ = ("_deserialized", "array", "luo", "sessions", "subsystem")

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo
        self.sessions: list[LuoSession] = []
        self.subsystem = Subsystem(LUO_SESSION_NODE, self)
        self.array: SerArray = NO_ARRAY
        self._deserialized = False

    def _named(self, name: bytes) -> LuoSession | None:
        return next((session for session in self.sessions if session.name == name), None)

    # What the device can do; the caller holds luo_state_rwsem for reading.

    def create(self, buffer: bytes) -> File:
        """A new session; its file. C: luo_session_create().

        Raises:
            InvalidArgument: name empty or without NUL. Again: neither NORMAL nor UPDATED. Exists.
            NoMemory.
        """
        name = _checked(buffer)
        if not self.luo.quiet:
            raise Again("a live update is under way", state=self.luo.state.name)
        if self._named(name) is not None:
            raise Exists("session exists", name=name.decode(errors="replace"))
        self.luo.kernel.charge("luo_session_create")
        self.luo.kernel.fail_function("should_failslab", site="luo_session_alloc")
        session = LuoSession(self.luo, name, LiveupdateState.NORMAL, retrieved=True)
        self.sessions.append(session)
        return self._getfile(session)

    def retrieve(self, buffer: bytes) -> File:
        """The descriptor of an incoming session. C: luo_session_retrieve().

        Raises:
            InvalidArgument: name empty or without NUL. Again: not UPDATED. NoEntry.
            AddressInUse: somebody took it already, or it is no incoming session.
        """
        name = _checked(buffer)
        if self.luo.state is not LiveupdateState.UPDATED:
            raise Again("no live update has happened", state=self.luo.state.name)
        session = self._named(name)
        if session is None:
            raise NoEntry("no such session", name=name.decode(errors="replace"))
        if session.retrieved:
            raise AddressInUse("session is taken", name=name.decode(errors="replace"))
        self.luo.kernel.charge("luo_retrieve_session")
        session.retrieved = True
        return self._getfile(session)

    def _getfile(self, session: LuoSession) -> File:
        return File(Inode(ANON_INO), self.luo.session_ops, session)

    # What a session's descriptor can do; the caller holds luo_state_rwsem and the session's mutex.

    def preserve_fd(self, task: Task, session: LuoSession, fd: int, token: int) -> None:
        """Raises: Busy: system or session is not in a state for it. Others: the file's."""
        self._check_open(session)
        session.files.preserve(task, fd, token)

    def unpreserve_fd(self, session: LuoSession, token: int) -> None:
        """Raises: Busy: as for `preserve_fd`. NoEntry."""
        self._check_open(session)
        session.files.unpreserve(token)

    def _check_open(self, session: LuoSession) -> None:
        if not self.luo.quiet or session.state is not LiveupdateState.NORMAL:
            raise Busy("files are settled", system=self.luo.state.name, session=session.state.name)

    def restore_fd(self, session: LuoSession, token: int) -> File:
        """Raises: Busy: system or session is not UPDATED. Others: the file's."""
        updated = LiveupdateState.UPDATED
        if self.luo.state is not updated or session.state is not updated:
            raise Busy("not updated", system=self.luo.state.name, session=session.state.name)
        return session.files.restore(token)

    def set_event(self, session: LuoSession, event: int) -> None:
        """An event for this session alone. Raises: Busy. NotSupported: unknown event."""
        match event:
            case LiveupdateEvent.PREPARE:
                session.prepare()
            case LiveupdateEvent.FREEZE:
                session.freeze()
            case LiveupdateEvent.CANCEL:
                session.cancel()
            case LiveupdateEvent.FINISH:
                session.finish()
            case _:
                raise NotSupported("unknown event", event=event)

    def release(self, session: LuoSession) -> None:
        """The session's last descriptor is gone. C: luo_session_release()."""
        session.finish()
        session.cancel()
        session.files.unpreserve_all()
        self.sessions.remove(session)

    # The system's events. C: luo_session_subsys_ops.

    def prepare(self, h: Subsystem) -> int:
        """Prepare every session, write the array and its node; the array's address."""
        kernel = self.luo.kernel
        self.array = alloc_array(kernel, len(self.sessions) * LuoSessionSer.SIZE)
        done: list[LuoSession] = []
        try:
            for session in self.sessions:
                with kernel.clock.lock(session.mutex):
                    session.prepare()
                done.append(session)
            self._write()
        except KernelError:
            for session in done:
                session.cancel()
            self._free_array()
            raise
        return self.array.pa

    def freeze(self, h: Subsystem, data: int) -> int:
        """Freeze every session and write the array anew."""
        try:
            for session in self.sessions:
                with self.luo.kernel.clock.lock(session.mutex):
                    session.freeze()
            self._write()
        except KernelError:
            self.cancel(h, data)
            raise
        return data

    def _write(self) -> None:
        for _ in self.sessions:
            self.luo.kernel.charge("luo_session_serialize")
        self.array.write(
            self.luo.kernel,
            (
                LuoSessionSer(
                    session.name,
                    session.files.array.pa,
                    session.files.array.pgcnt,
                    len(session.files.files),
                )
                for session in self.sessions
            ),
        )
        self.luo.fdt.set_sessions(self.array.pa, self.array.pgcnt, len(self.sessions))

    def cancel(self, h: Subsystem, data: int) -> None:
        """Every session back to NORMAL."""
        for session in self.sessions:
            session.cancel()
        self._free_array()

    def _free_array(self) -> None:
        self.array.free(self.luo.kernel)
        self.array = NO_ARRAY

    def deserialize(self) -> None:
        """Read what came over, once. C: luo_session_deserialize(). Raises: KernelPanic."""
        incoming = self.luo.fdt_in
        if self._deserialized or incoming is None:
            return
        self._deserialized = True
        for entry in take_array(self.luo.kernel, LuoSessionSer, *incoming.sessions()):
            self.luo.kernel.charge("luo_deserialize_session")
            name = cstring(entry.name)
            if self._named(name) is not None:
                raise KernelPanic(f"luo: session {name!r} comes twice")
            session = LuoSession(self.luo, name, LiveupdateState.UPDATED, retrieved=False)
            session.files.deserialize(entry.files, entry.pgcnt, entry.count)
            self.sessions.append(session)

    def finish(self, h: Subsystem, data: int) -> None:
        """Finish every incoming session; one that nobody retrieved is gone."""
        self.deserialize()
        for session in list(self.sessions):
            with self.luo.kernel.clock.lock(session.mutex):
                session.finish()
            if not session.retrieved:
                self.sessions.remove(session)


def _checked(buffer: bytes) -> bytes:
    """The name in a buffer. Raises: InvalidArgument."""
    name, nul, _ = buffer[:LIVEUPDATE_SESSION_NAME_LENGTH].partition(b"\0")
    if not name or not nul:
        raise InvalidArgument("bad session name")
    return name
