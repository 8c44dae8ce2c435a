"""Subsystems that belong to file handlers: `.subsystem = &luo_hugetlb_subsys`.

Proposal: P. Yadav, 27 Oct 2025, on top of LUO v4, as a way between "no subsystems" and "subsystems
that anybody may reach": a handler names a subsystem, LUO counts, and several handlers (memfd and
guest_memfd on huge pages) may name the same.

Happy path: the subsystem registers with its first handler. While at least one file of its
handlers is preserved it takes part in PREPARE, FREEZE and CANCEL like any subsystem, after all
files because sessions registered before it; with no such file it is not asked and leaves nothing
behind. In the next kernel it gets `boot` and `finish` if it left something.

Unhappy paths: the last file goes after PREPARE, because its session is closed: the subsystem is
cancelled there and then, and FREEZE takes its property out. No data at FINISH is no panic here.

Ours: all of the details; the mail gives the line above, the counting, and who shares. It also gives
the subsystem a `preserve` with its first file and an `unpreserve` with the last: nobody here would
have work for the first, and the second is `cancel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.luo_v4.handler import FileHandler

if TYPE_CHECKING:
    from kernelmodel.luo_v4.core import LuoV4

__all__ = ["HandlerSubsystems"]


class HandlerSubsystems:
    """Counts the preserved files behind every handler's subsystem."""

    __slots__ = ("luo",)

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo

    def handler_registered(self, handler: FileHandler) -> None:
        """A subsystem registers with the first of its handlers. Raises: as registering one."""
        h = handler.subsystem
        if h is not None and h not in self.luo.subsystems.registered:
            h.users = 0
            self.luo.subsystems.register(h)

    def handler_unregistered(self, handler: FileHandler) -> None:
        """…and goes with the last."""
        h = handler.subsystem
        if h is not None and all(other.subsystem is not h for other in self.luo.handlers):
            self.luo.subsystems.unregister(h)

    def file_preserve(self, handler: FileHandler) -> None:
        """A file of this handler is about to be preserved."""
        h = handler.subsystem
        if h is not None:
            assert h.users is not None, "registered with its handler"
            h.users += 1

    def file_unpreserve(self, handler: FileHandler) -> None:
        """A preserved file is let go of."""
        h = handler.subsystem
        if h is not None:
            assert h.users, "counted when the file was preserved"
            h.users -= 1
            if h.users == 0:
                self.luo.subsystems.cancel_one(h)
