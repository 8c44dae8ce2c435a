"""File-lifecycle-bound state: one object for all files of some handlers.

Happy path: the first preserved file creates it (count 0 → 1), further files count up, sessions
that close count down, the last one removes it. Freeze writes {name, data, count} of every
live FLB into one page. The next kernel retrieves an FLB when someone first asks for it and
finishes it with the last file.

Unhappy paths: a preserve callback that fails undoes the handler's earlier FLBs. On the incoming
side the count is loaded by the first look at the FLB: if nobody ever looked, the first put
decrements 0, which warns, and finish never runs.

C: kernel/liveupdate/luo_flb.c, 7.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.layout import cstring, to_cstring
from kernelmodel.abi.luo import (
    LIVEUPDATE_HNDL_COMPAT_LENGTH,
    LUO_FLB_PGCNT,
    LUO_SUBTREE,
    LuoFlbHeaderSer,
    LuoFlbSer,
    LuoSer,
)
from kernelmodel.errors import (
    ERRNO_CLASSES,
    Exists,
    InvalidArgument,
    KernelError,
    KernelPanic,
    NoData,
    NoEntry,
    NoSpace,
    NotSupported,
)
from kernelmodel.luo.handler import FileHandler, Flb
from kernelmodel.memory import PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.luo.core import Luo

__all__ = ["LUO_FLB_MAX", "LuoFlbs", "stored_error"]

#: So many entries without a match end in a hole of memory sooner or later.
_MANY_ENTRIES = 1 << 16
_HEADER, _ENTRY = LuoFlbHeaderSer.FORMAT, LuoFlbSer.FORMAT
LUO_FLB_MAX = (LUO_FLB_PGCNT * PAGE_SIZE - LuoFlbHeaderSer.SIZE) // LuoFlbSer.SIZE


def stored_error(errno: int) -> KernelError:
    """An error that was kept as a number, raised again."""
    cls = next(c for c in ERRNO_CLASSES.values() if c.errno == -errno)
    return cls("stored by an earlier attempt")


class LuoFlbs:
    """All FLBs of one kernel: the outgoing page and, if there was one, the incoming."""

    __slots__ = ("incoming_pa", "luo", "outgoing_pa", "registered")

    def __init__(self, luo: Luo) -> None:
        self.luo = luo
        self.registered: list[Flb] = []
        self.incoming_pa = 0
        self.outgoing_pa = 0

    def setup_outgoing(self) -> int:
        """Allocate the page; returns its address. C: luo_flb_setup_outgoing()."""
        self.outgoing_pa = self.luo.kernel.kho.alloc_preserve(LUO_FLB_PGCNT * PAGE_SIZE)
        self.luo.kernel.memory.write(self.outgoing_pa, _HEADER.pack(LUO_FLB_PGCNT, 0))
        return self.outgoing_pa

    def register(self, handler: FileHandler, flb: Flb) -> None:
        """Tie an FLB to a handler. C: liveupdate_register_flb().

        Raises:
            NotSupported: LUO is off. InvalidArgument: the handler is not registered. NoMemory.
            Exists: linked already, or the name is another FLB's. NoSpace: there are 63 already.
        """
        if not self.luo.enabled:
            raise NotSupported("live update is off")
        if handler not in self.luo.handlers:
            raise InvalidArgument("handler is not registered", handler=handler.compatible)
        self.luo.kernel.fail_function("should_failslab", site="liveupdate_register_flb")
        if flb in handler.flbs:
            raise Exists("already linked", flb=flb.name)
        if flb.users == 0:
            if len(self.registered) >= LUO_FLB_MAX:
                raise NoSpace("too many FLBs")
            if any(other.name == flb.name for other in self.registered):
                raise Exists("name is taken", flb=flb.name)
            self.registered.append(flb)
        flb.users += 1
        handler.flbs.append(flb)

    def unregister(self, handler: FileHandler, flb: Flb) -> None:
        """Undo `register`; the last handler's link takes the FLB's place with it.

        C: liveupdate_unregister_flb().
        """
        if flb in handler.flbs:
            handler.flbs.remove(flb)
            flb.users -= 1
            if flb.users == 0:
                self.registered.remove(flb)

    # Outgoing.

    def get_outgoing(self, flb: Flb) -> object:
        """The object of the outgoing side, and a reference on it. C: liveupdate_flb_get_outgoing().

        Raises:
            NotSupported: LUO is off. NoEntry: no file is preserved, or the FLB has no object.
        """
        if not self.luo.enabled:
            raise NotSupported("live update is off")
        if flb.outgoing_obj is None:
            raise NoEntry("no outgoing object", flb=flb.name)
        flb.outgoing_count += 1
        flb.outgoing_gets += 1
        return flb.outgoing_obj

    def put_outgoing(self, flb: Flb) -> None:
        """Drop that reference; the last one of all removes the object.

        C: liveupdate_flb_put_outgoing().
        """
        flb.outgoing_gets -= 1
        self._put_outgoing(flb)

    def file_preserve(self, handler: FileHandler) -> None:
        """A file of this handler is about to be preserved. C: luo_flb_file_preserve()."""
        self.luo.kernel.fail_function("luo_flb_file_preserve")
        for at, flb in enumerate(handler.flbs):
            if not flb.outgoing_count:  # else its lock is held for no time
                try:
                    with self.luo.kernel.clock.lock(f"luo_flb:{flb.name}"):
                        self.luo.kernel.charge("luo_flb_preserve")
                        flb.outgoing_data, flb.outgoing_obj = flb.ops.preserve()
                except KernelError:
                    for other in reversed(handler.flbs[:at]):
                        self._put_outgoing(other)
                    raise
            flb.outgoing_count += 1

    def file_unpreserve(self, handler: FileHandler) -> None:
        """C: luo_flb_file_unpreserve()."""
        for flb in reversed(handler.flbs):
            self._put_outgoing(flb)

    def _put_outgoing(self, flb: Flb) -> None:
        flb.outgoing_count -= 1
        if flb.outgoing_count == 0:
            flb.ops.unpreserve(flb.outgoing_data, flb.outgoing_obj)
            flb.outgoing_data, flb.outgoing_obj = 0, None

    def serialize(self) -> None:
        """Write every live FLB into the page; cannot fail. C: luo_flb_serialize()."""
        live = [flb for flb in self.registered if flb.outgoing_count > 0]
        for flb in live:
            if flb.freeze is not None:
                flb.freeze()
        if live:
            self.luo.kernel.charge("luo_flb_serialize", len(live))
        page = _HEADER.pack(LUO_FLB_PGCNT, len(live))
        for flb in live:
            name = to_cstring(flb.name, LIVEUPDATE_HNDL_COMPAT_LENGTH)
            page += _ENTRY.pack(name, flb.outgoing_data, flb.outgoing_count)
        self.luo.kernel.memory.write(self.outgoing_pa, page)

    # Incoming.

    def incoming_early(self, name: str) -> int:
        """An incoming FLB's data before LUO is up; 0 if nothing that fits came over.

        C: the proposal's liveupdate_flb_incoming_early(), not in Linux 7.3.
        """
        kernel = self.luo.kernel
        try:
            pa, size = kernel.kho.retrieve_subtree(LUO_SUBTREE)
        except KernelError:
            return 0
        if size < LuoSer.SIZE:
            return 0
        ser = LuoSer.unpack(kernel.memory.read(pa, LuoSer.SIZE))
        if cstring(ser.compatible).decode("ascii", "replace") != kernel.release.luo:
            return 0
        entry = self.incoming_entry(name, ser.flbs_pa)
        return entry.data if entry is not None else 0

    def incoming_entry(self, name: str, table_pa: int) -> LuoFlbSer | None:
        """What the previous kernel wrote of this FLB into the table at `table_pa`, if anything.

        C: luo_flb_retrieve_one().
        """
        if table_pa == 0:
            return None
        memory = self.luo.kernel.memory
        count = _HEADER.unpack(memory.read(table_pa, LuoFlbHeaderSer.SIZE))[1]
        at = table_pa + LuoFlbHeaderSer.SIZE
        # the kernel trusts the count and runs off the page; what lies there decides
        wanted = name.encode()
        for index in range(count):
            if index == _MANY_ENTRIES:
                raise KernelPanic("unable to handle page fault: behind the FLB table")
            raw = memory.read(at + index * LuoFlbSer.SIZE, LuoFlbSer.SIZE)
            if cstring(raw[:LIVEUPDATE_HNDL_COMPAT_LENGTH]) == wanted:
                return LuoFlbSer.unpack(raw)
        return None

    def _retrieve_one(self, flb: Flb) -> None:
        if flb.incoming_finished:
            raise NoData("FLB is finished", flb=flb.name)
        if flb.incoming_error:
            raise stored_error(flb.incoming_error)
        if flb.incoming_retrieved:
            return
        if self.incoming_pa == 0:
            raise NoData("no incoming FLBs", flb=flb.name)
        entry = self.incoming_entry(flb.name, self.incoming_pa)
        if entry is None:
            raise NoEntry("no such incoming FLB", flb=flb.name)
        flb.incoming_data, flb.incoming_count = entry.data, entry.count
        try:
            flb.incoming_obj = flb.ops.retrieve(entry.data)
        except KernelError as error:
            flb.incoming_error = -error.errno
            raise
        flb.incoming_retrieved = True

    def get_incoming(self, flb: Flb) -> object:
        """The object, retrieved at the first call; counts a user. C: liveupdate_flb_get_incoming().

        Raises:
            NotSupported: LUO is off. NoData, NoEntry: nothing came over. Others: of the FLB.
        """
        if not self.luo.enabled:
            raise NotSupported("live update is off")
        if not flb.incoming_retrieved or flb.incoming_finished:
            self._retrieve_one(flb)
        flb.incoming_count += 1
        return flb.incoming_obj

    def put_incoming(self, flb: Flb) -> None:
        """Drop a user; the last one finishes. C: luo_flb_file_finish_one()."""
        users = flb.incoming_count
        if users <= 0:
            self.luo.kernel.warn_on(f"FLB {flb.name}: incoming count drops below zero")
            return
        flb.incoming_count = users - 1
        if users > 1:
            return
        try:
            self._retrieve_one(flb)
        except KernelError:
            return
        self.luo.kernel.charge("luo_flb_finish")
        flb.ops.finish(flb.incoming_data, flb.incoming_obj)
        flb.incoming_data, flb.incoming_obj = 0, None
        flb.incoming_finished = True

    def file_finish(self, handler: FileHandler) -> None:
        """A file of this handler has finished. C: luo_flb_file_finish()."""
        for flb in reversed(handler.flbs):
            self.put_incoming(flb)
