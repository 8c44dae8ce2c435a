"""State that all files of one handler share: `liveupdate_fh_global_state_get/put`.

Proposal: P. Tatashin's meeting summary of 7 Oct 2025, on top of LUO v4. It became the FLB of the
merged LUO.

Happy path: the first file of a handler that is preserved, in whatever session, creates the
state, outside any blackout; each file changes it under the state's lock, between `get` and its
end; the last one that goes destroys it. PREPARE writes {compatible, data} of every live state
into an array, which the subsystem `luo-fh-states-v1-struct` points to. The next kernel can read
the data while it boots (`kernelmodel.luo_v4.early`), restores the state at the first `get`, and
destroys it with the last file that finishes.

The state of the way out and the one that came in are two and never mix. A state belongs to one
handler: two kinds of files that should share one cannot.

Unhappy paths: what `create` raises fails PRESERVE_FD; `get` without a state is ENOENT. A kernel
that has a handler with such state, after one that had none, panics at FINISH like for any new
subsystem. A state whose handler the next kernel lacks stays in memory until the next kexec.

Ours: the array's layout, that a file says which of the two states it means, that `destroy` comes
although nobody ever asked for an incoming state, and that the array is a block of at most the
largest order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernelmodel.abi.layout import cstring, to_cstring
from kernelmodel.abi.luo_v4 import LIVEUPDATE_HNDL_COMPAT_LENGTH, LuoFhStateSer
from kernelmodel.errors import KernelPanic, NoEntry
from kernelmodel.luo_v4.array import NO_ARRAY, SerArray, alloc_array
from kernelmodel.luo_v4.handler import FileHandler
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.mmzone import MAX_PAGE_ORDER
from kernelmodel.sim.lanes import LockBlock

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.luo_v4.core import LuoV4

__all__ = ["FH_STATES_SUBSYSTEM", "FhGlobalStates", "GlobalStateOps", "read_fh_states"]

FH_STATES_SUBSYSTEM: Final = "luo-fh-states-v1-struct"
_HEADER: Final = struct.Struct("<Q")
_COUNT_MAX: Final = (PAGE_SIZE << MAX_PAGE_ORDER) // LuoFhStateSer.SIZE


class GlobalStateOps:
    """What a handler with global state implements."""

    def global_state_create(self, h: FileHandler) -> tuple[int, object]:
        """The first file is preserved: (data, object). What it raises fails the preserve."""
        raise NotImplementedError

    def global_state_restore(self, h: FileHandler, data: int) -> object:
        """First look at what came over. What it raises is `get`'s, each time."""
        raise NotImplementedError

    def global_state_destroy(
        self, h: FileHandler, data: int, obj: object, *, incoming: bool
    ) -> None:
        """The last file is gone; `obj` is None if an incoming state was never restored."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class _State:
    ops: GlobalStateOps
    data: int
    obj: object = None
    files: int = 0
    restored: bool = True


class FhGlobalStates(SubsystemOps):
    """The global states of one kernel; a subsystem of its own."""

    __slots__ = ("_incoming", "_incoming_data", "_outgoing", "array", "luo", "subsystem")

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo
        self.subsystem = Subsystem(FH_STATES_SUBSYSTEM, self)
        self._outgoing: dict[str, _State] = {}
        self._incoming: dict[str, _State] = {}
        #: What came over and no handler has claimed yet.
        self._incoming_data: dict[str, int] = {}
        self.array: SerArray = NO_ARRAY

    def handler_registered(self, handler: FileHandler) -> None:
        """The first handler with such state brings the subsystem along."""
        if handler.global_state is None:
            return
        if self.subsystem not in self.luo.subsystems.registered:
            self.luo.subsystems.register(self.subsystem)
        data = self._incoming_data.pop(handler.compatible, None)
        if data is not None:
            state = _State(handler.global_state, data, restored=False)
            self._incoming[handler.compatible] = state

    # For the handlers.

    @contextmanager
    def get(self, h: FileHandler, *, incoming: bool = False) -> Iterator[object]:
        """The handler's object, under the state's lock until the block ends.

        C: liveupdate_fh_global_state_get(); the block's end is liveupdate_fh_global_state_put().

        Raises:
            NoEntry: there is no state. Others: what restoring raised.
        """
        with self._lock(h):
            state = (self._incoming if incoming else self._outgoing).get(h.compatible)
            if state is None:
                raise NoEntry("no global state", handler=h.compatible, incoming=incoming)
            if not state.restored:
                state.obj = state.ops.global_state_restore(h, state.data)
                state.restored = True
            yield state.obj

    def _lock(self, h: FileHandler) -> LockBlock:
        return self.luo.kernel.clock.lock(f"luo_fh_state:{h.compatible}")

    def outgoing(self) -> Iterator[tuple[str, GlobalStateOps, int]]:
        """(handler's compatible string, operations, data) of every state on the way out."""
        return ((name, state.ops, state.data) for name, state in self._outgoing.items())

    # For LUO, file by file.

    def file_preserve(self, h: FileHandler) -> None:
        """A file is about to be preserved. Raises what `global_state_create` raised."""
        if h.global_state is None:
            return
        state = self._outgoing.get(h.compatible)
        if state is None:  # else its lock is held for no time
            with self._lock(h):
                self.luo.kernel.charge("luo_flb_preserve")
                data, obj = h.global_state.global_state_create(h)
            state = self._outgoing[h.compatible] = _State(h.global_state, data, obj)
        state.files += 1

    def file_unpreserve(self, h: FileHandler) -> None:
        """A preserved file is let go of."""
        self._put(self._outgoing, h, incoming=False)

    def file_deserialize(self, h: FileHandler) -> None:
        """A file came over."""
        state = self._incoming.get(h.compatible)
        if state is not None:
            state.files += 1

    def file_finish(self, h: FileHandler) -> None:
        """A file that came over has finished."""
        self._put(self._incoming, h, incoming=True)

    def _put(self, states: dict[str, _State], h: FileHandler, *, incoming: bool) -> None:
        state = states.get(h.compatible)
        if state is None:
            return
        state.files -= 1
        if state.files == 0:
            del states[h.compatible]
            if incoming:
                self.luo.kernel.charge("luo_flb_finish")
            state.ops.global_state_destroy(h, state.data, state.obj, incoming=incoming)

    # For LUO, as a subsystem.

    def prepare(self, h: Subsystem) -> int:
        """Write the array; its address, 0 if there is nothing to write."""
        self.cancel(h, h.data)  # of a freeze that another subsystem made fail
        if not self._outgoing:
            return 0
        size = _HEADER.size + len(self._outgoing) * LuoFhStateSer.SIZE
        self.array = alloc_array(self.luo.kernel, size)
        self._write()
        return self.array.pa

    def freeze(self, h: Subsystem, data: int) -> int:
        """Write it anew: a session may have been closed since PREPARE."""
        self._write()
        return data

    def _write(self) -> None:
        kernel = self.luo.kernel
        if self.array.pgcnt:
            kernel.charge("luo_flb_serialize", len(self._outgoing))
            kernel.memory.write(self.array.pa, _HEADER.pack(len(self._outgoing)))
            behind = SerArray(self.array.pa + _HEADER.size, self.array.pgcnt)
            behind.write(
                kernel,
                (
                    LuoFhStateSer(to_cstring(name, LIVEUPDATE_HNDL_COMPAT_LENGTH), state.data)
                    for name, state in self._outgoing.items()
                ),
            )

    def cancel(self, h: Subsystem, data: int) -> None:
        """Free the array; the states live on with their files."""
        self.array.free(self.luo.kernel)
        self.array = NO_ARRAY

    def boot(self, h: Subsystem, data: int) -> None:
        """Remember what came over, until its handlers register."""
        self._incoming_data = read_fh_states(self.luo.kernel, data)

    def finish(self, h: Subsystem, data: int) -> None:
        """The array is read; its states went with their files."""
        self._incoming_data.clear()
        if data:
            self.luo.kernel.kho.restore_free(data)


def read_fh_states(kernel: Kernel, pa: int) -> dict[str, int]:
    """The data of every incoming state by its handler's compatible string; 0 for no array.

    Raises:
        KernelPanic: more of them than an array could hold, or not in memory.
    """
    if pa == 0:
        return {}
    (count,) = _HEADER.unpack(kernel.memory.read(pa, _HEADER.size))
    if count > _COUNT_MAX:
        raise KernelPanic(f"luo: {count} global states")
    raw = kernel.memory.read(pa + _HEADER.size, count * LuoFhStateSer.SIZE)
    entries = [LuoFhStateSer.unpack(raw, at) for at in range(0, len(raw), LuoFhStateSer.SIZE)]
    return {cstring(e.compatible).decode("ascii", "replace"): e.data for e in entries}
