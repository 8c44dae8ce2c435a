"""`handler-subsystem`: a subsystem that belongs to file handlers, counted by LUO.

Proposal: P. Yadav, 27 Oct 2025, as a middle way: keep subsystems, but tie them to handlers with
`.subsystem = &luo_hugetlb_subsys`, let LUO count their files, and let memfd and guest_memfd name
the same one. Nobody else can reach it, and a host without preserved huge pages never asks it.
Never merged; needs LUO v4 and this extension of it (`kernelmodel.luo_v4.handler_subsystem`).

Happy path: as `files-then-subsystem`, but files do their work at PRESERVE_FD, each VMM on its own
CPU, and only the list of the pool is left to PREPARE, from which on pools are frozen.

Unhappy paths: see `v4`. The last file goes after PREPARE: LUO cancels the subsystem there and
then. A kernel with the subsystem after one without is no panic.

Our reading: that files work at PRESERVE_FD was agreed on 7 Oct; that the whole pool is listed is
what he had agreed to on 14 Oct. The subsystem's own `preserve`, with its first file, has nothing
to do for hugetlb; `unpreserve`, with the last, does what `cancel` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kernelmodel.hugetlb_designs.v4 import MarkingSubsystem
from kernelmodel.luo_v4.handler import FileHandler

__all__ = ["HandlerSubsystem"]


class HandlerSubsystem(MarkingSubsystem):
    """The handlers' own subsystem."""

    name: ClassVar[str] = "handler-subsystem"
    source: ClassVar[str] = "P. Yadav, 27 Oct 2025"
    callbacks: ClassVar[tuple[str, ...]] = (
        "a file's callback at PRESERVE_FD",
        "handlers' .subsystem, counted",
        "a subsystem's preserve, unpreserve",
        "early read of a subsystem's data",
    )

    def bind(self, handlers: Sequence[FileHandler]) -> None:
        """LUO registers it with the first of them."""
        for handler in handlers:
            handler.subsystem = self.subsystem
