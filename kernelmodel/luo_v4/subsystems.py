"""Subsystems: parts of the kernel that take part in a live update as a whole, with a u64 each.

Happy path: a subsystem registers; PREPARE calls `prepare` of all, in the order of registration,
and writes their data; FREEZE calls `freeze`, which may change the data. In the next kernel a
subsystem that registers and finds data of its name gets `boot`, and `finish` at FINISH.

Unhappy paths, with the quirks that the proposal's code has:

* prepare of number k fails: those before k get `cancel`, in the order of registration (not in
  reverse), and their data are zeroed; k has undone itself. No room for the properties (ENOSPC) or
  a property that is missing (ENOENT): all get `cancel`.
* freeze of number k fails: only those before k get `cancel`. k and the later ones, although they
  are prepared, get none, while the system goes back to NORMAL. They will be asked to prepare
  again. A missing property (ENOENT) cancels all.
* finish finds no data for a registered subsystem: panic. A subsystem that is new in this kernel
  is enough.

Ours: that `boot` is called at registration, that setting up the properties comes after all have
prepared, and that a subsystem may be `unregister`ed only if it is registered (else ENOENT).

C: kernel/liveupdate/luo_subsystems.c, proposal v4 of Sep 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelmodel.abi.luo_v4 import LiveupdateState
from kernelmodel.errors import Busy, Exists, KernelError, KernelPanic, NoEntry, NotSupported

if TYPE_CHECKING:
    from kernelmodel.luo_v4.core import LuoV4

__all__ = ["LuoSubsystems", "Subsystem", "SubsystemOps"]


class SubsystemOps:
    """C: struct liveupdate_subsystem_ops. All of them may be absent; these do nothing."""

    __slots__ = ()

    def prepare(self, h: Subsystem) -> int:
        """Serialise; returns the data. What it raises fails PREPARE; it undoes itself then."""
        return 0

    def freeze(self, h: Subsystem, data: int) -> int:
        """Last look before the jump; returns the data. What it raises fails the reboot."""
        return data

    def cancel(self, h: Subsystem, data: int) -> None:
        """Undo `prepare`, and `freeze` if it came to that."""

    def boot(self, h: Subsystem, data: int) -> None:
        """The next kernel: this is what the previous one left."""

    def finish(self, h: Subsystem, data: int) -> None:
        """The live update is over; free what nobody claimed."""


@dataclass(slots=True, eq=False)
class Subsystem:
    """C: struct liveupdate_subsystem.

    `users` is None for a subsystem as v4 knows it, always part of a live update; a number for one
    that LUO counts (`kernelmodel.luo_v4.handler_subsystem`), which takes part while it is not 0.
    """

    name: str
    ops: SubsystemOps
    data: int = 0
    prepared: bool = False
    users: int | None = None

    @property
    def active(self) -> bool:
        """Whether it takes part in a live update."""
        return self.users != 0


class LuoSubsystems:
    """All subsystems of one kernel, in the order of registration."""

    __slots__ = ("luo", "registered")

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo
        self.registered: list[Subsystem] = []

    def register(self, h: Subsystem) -> None:
        """C: liveupdate_register_subsystem(). Calls `boot` if there are data of its name.

        Raises:
            NotSupported: live update is off. Busy: neither NORMAL nor UPDATED. Exists.
        """
        self._check_quiet()
        if any(other.name == h.name for other in self.registered):
            raise Exists("subsystem exists", name=h.name)
        self.registered.append(h)
        incoming = self.luo.fdt_in
        data = None if incoming is None else incoming.subsystem(h.name)
        if data is not None:
            h.ops.boot(h, data)

    def unregister(self, h: Subsystem) -> None:
        """C: liveupdate_unregister_subsystem().

        Raises:
            NotSupported: live update is off. Busy: neither NORMAL nor UPDATED. NoEntry.
        """
        self._check_quiet()
        if h not in self.registered:
            raise NoEntry("no such subsystem", name=h.name)
        self.registered.remove(h)

    def _check_quiet(self) -> None:
        if not self.luo.enabled:
            raise NotSupported("live update is off")
        if not self.luo.quiet:
            raise Busy("a live update is under way", state=self.luo.state.name)

    def data(self, h: Subsystem) -> int:
        """What the previous kernel left for it. C: liveupdate_get_subsystem_data().

        Raises:
            NoEntry: the state is not UPDATED, or there is nothing of this name.
        """
        incoming = self.luo.fdt_in
        data = None
        if self.luo.state is LiveupdateState.UPDATED and incoming is not None:
            data = incoming.subsystem(h.name)
        if data is None:
            raise NoEntry("no data for this subsystem", name=h.name)
        return data

    # Events; the caller holds the state's semaphore for writing.

    def _active(self) -> Iterator[Subsystem]:
        return (h for h in list(self.registered) if h.active)

    def prepare(self) -> None:
        """Raises what a subsystem raised, NoSpace or NoEntry; see the module's text."""
        for h in self._active():
            try:
                self.luo.kernel.fail_function("luo_subsystem_prepare", name=h.name)
                h.data = h.ops.prepare(h)
            except KernelError:
                self.cancel(before=h)
                raise
            h.prepared = True
        try:
            self.luo.fdt.setup_subsystems(h.name for h in self._active())
            self._commit()
        except KernelError:
            self.cancel()
            raise

    def freeze(self) -> None:
        """Raises what a subsystem raised, or NoEntry; see the module's text."""
        for h in self._active():
            try:
                self.luo.kernel.fail_function("luo_subsystem_freeze", name=h.name)
                h.data = h.ops.freeze(h, h.data)
            except KernelError:
                self.cancel(before=h)
                raise
        try:
            self._commit()
        except KernelError:
            self.cancel()
            raise

    def _commit(self) -> None:
        self.luo.kernel.fail_function("luo_subsystems_commit_data_to_fdt")
        gone = [h.name for h in self.registered if not h.active]
        self.luo.fdt.commit_subsystems({h.name: h.data for h in self._active()}, gone)

    def cancel(self, before: Subsystem | None = None) -> None:
        """`cancel` of those that are prepared, up to but without `before`."""
        for h in list(self.registered):
            if h is before:
                break
            self.cancel_one(h)

    def cancel_one(self, h: Subsystem) -> None:
        """`cancel` of one, if it is prepared."""
        if h.prepared:
            h.ops.cancel(h, h.data)
            h.data = 0
            h.prepared = False

    def finish(self) -> None:
        """Raises: KernelPanic if a subsystem has no data."""
        incoming = self.luo.fdt_in
        assert incoming is not None, "UPDATED means that there is one"
        for h in list(self.registered):
            data = incoming.subsystem(h.name)
            if data is not None:
                h.ops.finish(h, data)
            elif h.users is None:
                raise KernelPanic(f"luo: no data for the subsystem {h.name!r} at finish")
