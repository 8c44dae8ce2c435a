"""What designs on LUO v4 have in common: how they meet their LUO, and a subsystem that marks.

Those designs run on the LUO of September 2025 over the memory management and the KHO of 7.3, like
the others, so that a difference between two designs is one of the designs.

`MarkingSubsystem` is what three arguments of the month after share: files of huge pages tell
hugetlb which folios are theirs (a mark in an xarray, at run time), hugetlb writes them down once,
in the subsystem's PREPARE, and `finish` frees what nobody claimed.

Happy path: marks, `prepare` writes a `pool_list`, the next kernel's `boot` reads it, files that
are retrieved claim their folios, `finish` finds nothing left.

Unhappy paths: with no mark nothing is stored. A session that closes after PREPARE takes its marks
back, and the list is written anew at FREEZE. `prepare` that fails undoes itself. A folio that no
file claimed, whether its session was never retrieved or its file failed to come back, is free in
its pool after FINISH; a folio that was lost between the two stays lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.errors import KernelError
from kernelmodel.hugetlb_designs.base import HugetlbDesign
from kernelmodel.hugetlb_designs.frozen_pools import FrozenPools
from kernelmodel.hugetlb_designs.pool_list import (
    Marks,
    PoolList,
    early_counts,
    listed,
    pool_folios,
    take_lists,
)
from kernelmodel.luo_v4.core import LuoV4
from kernelmodel.luo_v4.early import subsystem_early
from kernelmodel.luo_v4.handler import FileHandler
from kernelmodel.luo_v4.subsystems import Subsystem, SubsystemOps
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.owners import Preserved

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["MarkingSubsystem", "V4Design", "free_unclaimed"]

_MARKS_LOCK = "hugetlb_marks"


class V4Design(HugetlbDesign):
    """A design on LUO v4."""

    luo: ClassVar[str] = "v4"
    at_preserve_fd: ClassVar[bool] = True

    @property
    def luo_v4(self) -> LuoV4:
        """The LUO."""
        assert self.kernel.luo_v4 is not None, "designs of v4 are carried by releases with v4"
        return self.kernel.luo_v4


def free_unclaimed(design: HugetlbDesign, unclaimed: Marks) -> int:
    """Give what is still preserved of these folios to their pools; how many."""
    freed = 0
    tags = design.kernel.kho.tags
    for order, folios in unclaimed.items():
        if order not in design.kernel.hugetlb.hstates:
            continue
        for low, high in folios:
            at = low
            while at < high:
                n = tags.count(at << order, order, high - at)
                if n:
                    freed += HugetlbDesign.discard_folios(design, order, at << order, n)
                at += n or 1
    unclaimed.clear()
    return freed


class MarkingSubsystem(V4Design, SubsystemOps):
    """hugetlb as a subsystem of v4."""

    #: Whether the whole pool is listed, and frozen from PREPARE on, or marked folios only.
    whole_pool: ClassVar[bool] = True
    #: Whether the list can be read before gigantic pages are allocated.
    reads_early: ClassVar[bool] = True

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel)
        self.subsystem = Subsystem(compatible, self)
        self.pools = FrozenPools(kernel)
        self.marks: Marks = {}
        #: Folios that hugetlb preserved for the pool, with PREPARE.
        self.others: Marks = {}
        self.list: PoolList | None = None
        self._stale = False  # the list, since a session was closed
        #: Folios of the previous kernel's files that nobody has claimed.
        self.unclaimed: Marks = {}

    @property
    def shared_bytes(self) -> int:
        """What is written so far."""
        return self.list.nbytes if self.list is not None else 0

    def bind(self, handlers: Sequence[FileHandler]) -> None:
        """An ordinary subsystem, which anybody in the kernel can reach."""
        self.luo_v4.subsystems.register(self.subsystem)

    # Outgoing, file by file.

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Mark, then preserve."""
        self._mark(order, runs)
        try:
            super().preserve_folios(order, runs)
        except KernelError:
            self._unmark(order, runs)
            raise

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Take the marks back."""
        self._unmark(order, runs)
        super().unpreserve_folios(order, runs)

    def _mark(self, order: int, runs: list[FolioRun]) -> None:
        marks = self.marks.setdefault(order, RangeSet())
        with self.kernel.clock.lock(_MARKS_LOCK):
            # an xarray's walk is charged like that of KHO's radix tree
            self.kernel.charge("kho_radix_add_key", sum(run.nr for run in runs))
        for run in runs:
            low = run.pfn >> order
            marks.add(low, low + run.nr)

    def _unmark(self, order: int, runs: list[FolioRun]) -> None:
        marks = self.marks[order]
        self._stale = True
        with self.kernel.clock.lock(_MARKS_LOCK):
            self.kernel.charge("kho_radix_del_key", sum(run.nr for run in runs))
        for run in runs:
            low = run.pfn >> order
            marks.remove(low, low + run.nr)
        if not marks:
            del self.marks[order]

    # Outgoing, the subsystem's events.

    def prepare(self, h: Subsystem) -> int:
        """Freeze the pools, keep what no file keeps, write the list; 0 if there is no mark.

        Raises: NoMemory, NoSpace; nothing is done then.
        """
        self._undo()  # of a freeze that another subsystem made fail
        if not self.marks:
            return 0
        try:
            if self.whole_pool:
                self.pools.freeze()
                self._preserve_others()
            self.list = PoolList(self.kernel, listed(self.marks, self.others))
            self._stale = False
        except KernelError:
            self._undo()
            raise
        return self.list.pa

    def _preserve_others(self) -> None:
        for order, folios in pool_folios(self.kernel).items():
            marks = self.marks.get(order, RangeSet())
            kept = self.others.setdefault(order, RangeSet())
            for low, high in folios:
                for start, end in marks.gaps(low, high):
                    self.kernel.kho.preserve_folios(start << order, order, end - start)
                    kept.add(start, end)

    def freeze(self, h: Subsystem, data: int) -> int:
        """A session may have been closed since PREPARE; its folios are not handed over."""
        if self.list is not None and self._stale:
            if not self.marks:
                self._undo()
                return 0
            self.list.rewrite(listed(self.marks, self.others))
        return data

    def cancel(self, h: Subsystem, data: int) -> None:
        """Everything is as before PREPARE; marks stay with their files."""
        self._undo()

    def _undo(self) -> None:
        if self.list is not None:
            self.list.free()
            self.list = None
        for order, folios in self.others.items():
            for low, high in folios:
                self.kernel.kho.unpreserve_folios(low << order, order, high - low)
        self.others.clear()
        if self.pools.since_ns is not None:
            self.pools.thaw()

    def preserved_pages(self, kernel: Kernel) -> Iterator[Preserved]:
        """The list, and the folios that the pool keeps."""
        if self.list is not None:
            yield from self.list.preserved_pages()
        for order, folios in self.others.items():
            for low, high in folios:
                yield Preserved("folios of the pool", low << order, order, high - low, own=False)

    # Incoming.

    def early_boot(self) -> dict[int, int]:
        """Listed pages by order; without `reads_early` of sizes that are allocated late only.

        LUO v4 hands out data from the early initcalls on. Pages that the page allocator has come
        after that, gigantic ones before.
        """
        pa = subsystem_early(self.kernel, self.subsystem.name) or 0
        return {
            order: n
            for order, n in early_counts(self.kernel, pa).items()
            if self.reads_early or not self.kernel.hugetlb.hstate(order).is_gigantic
        }

    def boot(self, h: Subsystem, data: int) -> None:
        """Read the list; folios that no file preserved are free ones from now on."""
        if data:
            self.unclaimed, others, _ = take_lists(self.kernel, data)
            free_unclaimed(self, others)

    def retrieve_folios(self, order: int, pfn: int, nr: int) -> int:
        """Claim them."""
        restored = super().retrieve_folios(order, pfn, nr)
        low = pfn >> order
        with self.kernel.clock.lock(_MARKS_LOCK):
            self.kernel.charge("kho_radix_del_key", restored)
            if order in self.unclaimed:
                self.unclaimed[order].remove(low, low + restored)
        return restored

    def discard_folios(self, order: int, pfn: int, nr: int) -> int:
        """Left to `finish`, which sees what no file claimed."""
        return 0

    def finish(self, h: Subsystem, data: int) -> None:
        """Free what nobody claimed."""
        free_unclaimed(self, self.unclaimed)
