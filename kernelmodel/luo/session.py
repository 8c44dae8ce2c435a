"""Sessions: named sets of files, each with a descriptor that decides over its life.

Happy path: an agent creates a session, preserves descriptors in it and keeps its descriptor open.
The jump freezes the files of every session and writes the sessions into a block chain. In the
next kernel the first open of the device reads them back; each session is retrieved by name and
finished, explicitly or by closing it.

Unhappy paths: a session closed before the jump is gone, files and all. A freeze that fails is
undone session by session, last first, and the reboot fails. A chain that cannot be read panics
the booting kernel; a session whose files cannot be read makes every open of the device fail.

Locks, outermost first: luo_serialize_rwsem, the list's rwsem, the session's mutex.

C: kernel/liveupdate/luo_session.c, 7.3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

from kernelmodel.abi.luo import (
    LIVEUPDATE_SESSION_NAME_LENGTH,
    LuoSessionSer,
)
from kernelmodel.errors import Exists, InvalidArgument, KernelError, ModelBug, NoEntry
from kernelmodel.fs import ANON_INO, File, Inode
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.luo.file import LuoFileSet

if TYPE_CHECKING:
    from kernelmodel.luo.core import Luo

__all__ = ["LuoSession", "LuoSessions"]

_pack_session, _unpack_session = LuoSessionSer.FORMAT.pack, LuoSessionSer.FORMAT.unpack


class LuoSession:
    """C: struct luo_session. `name` is the 64-byte buffer."""

    __slots__ = ("file_set", "lock_name", "name", "retrieved")

    def __init__(self, luo: Luo, name: bytes) -> None:
        """C: luo_session_alloc(). Raises: NoMemory."""
        luo.kernel.fail_function("should_failslab", site="luo_session_alloc")
        self.name, self.lock_name = _named(name)
        self.retrieved = False
        self.file_set = LuoFileSet(luo)

    def __repr__(self) -> str:
        return f"LuoSession({self.name.rstrip(bytes(1))!r}, files={len(self.file_set.files)})"


class LuoSessions:
    """Both lists of one kernel. C: struct luo_session_global."""

    __slots__ = (
        "_deserialize_error",
        "_deserialized",
        "_incoming_by_name",
        "_inode",
        "_outgoing_by_name",
        "incoming",
        "incoming_blocks",
        "kernel",
        "luo",
        "outgoing",
        "outgoing_blocks",
        "serialized",
    )

    def __init__(self, luo: Luo) -> None:
        self.luo = luo
        self.kernel = luo.kernel
        self.outgoing: list[LuoSession] = []
        #: The same by their 64-byte names; among one direction's no name is there twice.
        self._outgoing_by_name: dict[bytes, LuoSession] = {}
        self.outgoing_blocks = KhoBlockSet(luo.kernel.kho, LuoSessionSer.SIZE)
        self.incoming: list[LuoSession] = []
        self._incoming_by_name: dict[bytes, LuoSession] = {}
        self.incoming_blocks: KhoBlockSet | None = None
        #: All sessions' files have the same. C: anon_inode_inode
        self._inode = Inode(ANON_INO)
        #: Once true, the serialize lock is held for writing until the kernel dies.
        self.serialized = False
        self._deserialized = False
        self._deserialize_error: KernelError | None = None

    # Outgoing.

    def create(self, name: bytes) -> File:
        """A new session; its file. C: luo_session_create().

        Raises:
            InvalidArgument: empty or without NUL. NoMemory. NoSpace: no block for it. Exists:
                another outgoing session has the name; the block set has grown for it all the same.
        """
        if self.serialized:
            self.block()
        if 0 not in name or not name[0]:
            raise InvalidArgument("bad session name, it takes 1 to 63 bytes")
        self.kernel.charge("luo_session_create")
        session = LuoSession(self.luo, name)
        self.outgoing_blocks.grow(len(self.outgoing) + 1)
        if session.name in self._outgoing_by_name:
            raise _exists(session)
        self._outgoing_by_name[session.name] = session
        self.outgoing.append(session)
        try:
            self.kernel.fail_function("should_failslab", site="luo_session_getfile")
        except KernelError:
            self._remove_outgoing(session)
            raise
        return File(self._inode, self.luo.outgoing_ops, session)

    def _remove_outgoing(self, session: LuoSession) -> None:
        self.outgoing.remove(session)
        del self._outgoing_by_name[session.name]
        self.outgoing_blocks.shrink(len(self.outgoing))

    def release(self, session: LuoSession) -> None:
        """The session's last descriptor is gone. C: luo_session_release()."""
        if self.serialized:
            self.block()
        if session.retrieved:
            try:
                self.kernel.charge("luo_session_finish")
                if session.file_set.files:
                    session.file_set.finish()
            except KernelError as error:
                self.kernel.printk(f"luo: session cannot finish: {error}")
                return
            self.incoming.remove(session)
            del self._incoming_by_name[session.name]
            return
        session.file_set.unpreserve_files()
        self._remove_outgoing(session)

    def serialize(self) -> int:
        """Freeze everything; address of the first session block, 0 without sessions.

        C: luo_session_serialize(). On success no session changes any more.

        Raises what a file's freeze raises; all sessions are then as they were.
        """
        self.kernel.fail_function("luo_session_serialize")
        charge, entries = self.kernel.charge, []
        try:
            for session in self.outgoing:
                charge("luo_session_freeze")
                files, count = session.file_set.freeze()
                charge("luo_session_serialize")
                entries.append(_pack_session(session.name, files, count))
        except KernelError:
            self._unfreeze(len(entries))
            raise
        self.outgoing_blocks.write_entries(entries)
        self.serialized = True
        return self.outgoing_blocks.head_pa if self.outgoing else 0

    def _unfreeze(self, failed: int) -> None:
        """Undo the sessions before this one.

        Up to it, all had a slot by then. Slots are wiped, counts stay as they are: a later attempt
        writes them anew.
        """
        blocks = self.outgoing_blocks
        slots = [blocks.reserve_entry(index) for index in range(failed + 1)]
        for undone in range(failed - 1, -1, -1):
            self.outgoing[undone].file_set.unfreeze()
            self.kernel.memory.write(slots[undone], bytes(LuoSessionSer.SIZE))

    # Incoming.

    def setup_incoming(self, sessions_pa: int) -> None:
        """Take over the chain, at early init. C: luo_session_setup_incoming().

        Raises what a broken chain raises; the caller panics.
        """
        if sessions_pa:
            self.incoming_blocks = KhoBlockSet(self.kernel.kho, LuoSessionSer.SIZE)
            self.incoming_blocks.restore(sessions_pa)

    def deserialize(self) -> None:
        """Read all sessions and their files, once and for all. C: luo_session_deserialize().

        Raises:
            KernelError: the first attempt's error, at every call.
        """
        if self._deserialized:
            if self._deserialize_error is not None:
                raise self._deserialize_error
            return
        self._deserialized = True
        if self.incoming_blocks is None:
            return
        luo, charge, by_name = self.luo, self.kernel.charge, self._incoming_by_name
        try:
            for raw in self.incoming_blocks.entries():
                name, files, count = _unpack_session(raw)
                charge("luo_deserialize_session")
                session = LuoSession(luo, name)
                if session.name in by_name:
                    raise _exists(session)
                by_name[session.name] = session
                self.incoming.append(session)
                session.file_set.deserialize(files, count)
        except KernelError as error:
            self._deserialize_error = error
            raise
        finally:
            self.incoming_blocks.destroy()

    def retrieve(self, name: bytes) -> File:
        """The descriptor of an incoming session, given out once. C: luo_session_retrieve().

        Raises:
            NoEntry: there is none of that name. InvalidArgument: it was retrieved already.
            NoMemory: it can be tried again.
        """
        if self.serialized:
            self.block()
        session = self._incoming_by_name.get(name)
        if session is None:
            # compared up to the first NUL; a name without one is longer than any that is kept
            padded = name.partition(b"\0")[0].ljust(LIVEUPDATE_SESSION_NAME_LENGTH, b"\0")
            session = self._incoming_by_name.get(padded)
        if session is None:
            raise NoEntry("no such session")
        if session.retrieved:
            raise InvalidArgument("session is retrieved already")
        self.kernel.charge("luo_retrieve_session")
        self.kernel.fail_function("should_failslab", site="luo_session_getfile")
        session.retrieved = True
        return File(self._inode, self.luo.incoming_ops, session)

    def block(self) -> NoReturn:
        """Wait for the serialize lock, until the jump. Raises: ModelBug, nobody is to do that."""
        raise ModelBug("a system call after serialisation would block until the jump")


@lru_cache(maxsize=1024)  # a name is seen on both sides of the jump
def _named(name: bytes) -> tuple[bytes, str]:
    """A buffer that holds `name` up to its NUL, cut where that would not fit, and the mutex's name.

    C: strscpy().
    """
    text = name.partition(b"\0")[0][: LIVEUPDATE_SESSION_NAME_LENGTH - 1]
    buffer = text.ljust(LIVEUPDATE_SESSION_NAME_LENGTH, b"\0")
    return buffer, f"luo_session:{buffer.hex()}"


def _exists(session: LuoSession) -> Exists:
    """C: luo_session_insert()."""
    name = session.name.rstrip(b"\0").decode(errors="replace")
    return Exists("session exists", name=name)
