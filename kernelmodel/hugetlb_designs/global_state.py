"""`global-state`: every file updates shared, serialised state under its lock.

Proposal: P. Tatashin, summary of 7 Oct 2025: heavy work in PRESERVE_FD, and state that belongs to
a file handler, `liveupdate_fh_global_state_get/put`: made with the first preserved file, changed
under its lock by each, destroyed with the last, readable at boot. One locking scheme, and nobody
has to say when it begins or ends. It became the FLB. Never merged in this form; needs LUO v4 with
that extension (`kernelmodel.luo_v4.global_state`).

Happy path: the state is a chain of lists, one for each file: PRESERVE_FD gets the state, puts the
file's folios in and the list into the chain. The next kernel reads the lengths before it allocates
huge pages, and the lists when a file is first looked at; files that are retrieved claim their
folios, get and put for each, which is what P. Yadav held against it (9 Oct).

Unhappy paths: what no file claimed is freed when the last file finishes, which in v4 is the
system's FINISH at the latest. The state belongs to memfd's handler: a guest_memfd on huge pages
cannot share it, and finds no handler (ENOENT), so that VMs backed by one cannot be preserved. A
chain that leads back into itself hangs the boot.

Our reading: what the state holds. The mail names the calls; a list of folios is what their use
"for each folio" needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.abi.hugetlb_pool import HugetlbPoolSer
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.hugetlb_designs.pool_list import (
    Marks,
    PoolList,
    early_counts,
    listed,
    take_lists,
)
from kernelmodel.hugetlb_designs.v4 import V4Design, free_unclaimed
from kernelmodel.luo_v4.early import global_state_early
from kernelmodel.luo_v4.global_state import GlobalStateOps
from kernelmodel.luo_v4.handler import FileHandler
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.owners import Preserved

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["GlobalState"]

_NEXT_AT = HugetlbPoolSer.SIZE - 8


class GlobalState(V4Design, GlobalStateOps):
    """The state of memfd's handler."""

    name: ClassVar[str] = "global-state"
    source: ClassVar[str] = "P. Tatashin, 7 Oct 2025"
    callbacks: ClassVar[tuple[str, ...]] = (
        "a file's callback at PRESERVE_FD",
        "liveupdate_fh_global_state_get, _put",
        "global_state_create, _restore, _destroy",
        "early read of a global state",
    )
    takes_guest_memfd: ClassVar[bool] = False

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel)
        self._handler: FileHandler | None = None
        #: Lists of the files that are preserved, by their first folio, in the order of the chain.
        self.lists: dict[int, PoolList] = {}
        #: Folios of the previous kernel's files that nobody has claimed.
        self.unclaimed: Marks = {}

    @property
    def shared_bytes(self) -> int:
        """What is written so far."""
        head = HugetlbPoolSer.SIZE if self.lists else 0
        return head + sum(part.nbytes for part in self.lists.values())

    @property
    def handler(self) -> FileHandler:
        """The handler of memfds."""
        assert self._handler is not None, "files come when handlers are registered"
        return self._handler

    def bind(self, handlers: Sequence[FileHandler]) -> None:
        """One handler can have it: that of memfds, which comes first."""
        self._handler = handlers[0]
        self._handler.global_state = self

    # Outgoing.

    def global_state_create(self, h: FileHandler) -> tuple[int, object]:
        """The chain's head, still empty. Raises: NoMemory."""
        pa = self.kernel.kho.alloc_preserve(HugetlbPoolSer.SIZE)
        return pa, pa

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Preserve, then put a list into the chain, under the state's lock. Raises: NoMemory."""
        super().preserve_folios(order, runs)
        try:
            with self.luo_v4.global_states.get(self.handler) as head:
                self.kernel.charge("kho_radix_add_key", sum(run.nr for run in runs))
                folios = RangeSet((r.pfn >> order, (r.pfn >> order) + r.nr) for r in runs)
                self.lists[runs[0].pfn] = PoolList(self.kernel, listed({order: folios}, {}))
                self._chain(head)
        except KernelError:
            super().unpreserve_folios(order, runs)
            raise

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Take its list out of the chain."""
        with self.luo_v4.global_states.get(self.handler) as head:
            self.kernel.charge("kho_radix_del_key", sum(run.nr for run in runs))
            gone = self.lists.pop(runs[0].pfn)
            self._chain(head)
            gone.free()
        super().unpreserve_folios(order, runs)

    def _chain(self, head: object) -> None:
        """Each list points to the one that came before it, the head to the last."""
        assert isinstance(head, int), "made by `global_state_create`"
        parts = list(self.lists.values())
        self.kernel.memory.write_u64(head + _NEXT_AT, parts[-1].pa if parts else 0)
        for before, part in zip([None, *parts], parts, strict=False):
            wanted = before.pa if before is not None else 0
            if part.next != wanted:
                part.link(wanted)

    def preserved_pages(self, kernel: Kernel) -> Iterator[Preserved]:
        """The head and the chain."""
        for name, ops, data in self.luo_v4.global_states.outgoing():
            if ops is self:
                yield Preserved(f"head of {name}", data >> PAGE_SHIFT)
        for part in self.lists.values():
            yield from part.preserved_pages()

    # Incoming.

    def early_boot(self) -> dict[int, int]:
        """Pages by order, from the lengths of all lists."""
        counts: dict[int, int] = {}
        seen: set[int] = set()
        pa = global_state_early(self.kernel, self.kernel.release.hugemfd or "")
        while pa:
            if pa in seen:
                raise KernelPanic(f"hang: the chain of huge pages comes back to {pa:#x}")
            seen.add(pa)
            for order, n in early_counts(self.kernel, pa).items():
                counts[order] = counts.get(order, 0) + n
            pa = self.kernel.memory.u64(pa + _NEXT_AT)
        return counts

    def global_state_restore(self, h: FileHandler, data: int) -> object:
        """Read the chain and free it."""
        pa = data
        while pa:
            marked, _, pa = take_lists(self.kernel, pa)
            for order, folios in marked.items():
                for low, high in folios:
                    self.unclaimed.setdefault(order, RangeSet()).add(low, high)
        return self.unclaimed

    def file_incoming(self) -> None:
        """Restore the state, if that was not done."""
        with self.luo_v4.global_states.get(self.handler, incoming=True):
            pass

    def retrieve_folios(self, order: int, pfn: int, nr: int) -> int:
        """Claim them, under the state's lock."""
        restored = super().retrieve_folios(order, pfn, nr)
        with self.luo_v4.global_states.get(self.handler, incoming=True):
            self.kernel.charge("kho_radix_del_key", restored)
            low = pfn >> order
            if order in self.unclaimed:
                self.unclaimed[order].remove(low, low + restored)
        return restored

    def discard_folios(self, order: int, pfn: int, nr: int) -> int:
        """Left to the state's end, which sees what no file claimed."""
        return 0

    def global_state_destroy(
        self, h: FileHandler, data: int, obj: object, *, incoming: bool
    ) -> None:
        """The last file is gone."""
        if not incoming:
            self.kernel.kho.unpreserve_free(data)
            return
        if obj is None:
            self.global_state_restore(h, data)
        free_unclaimed(self, self.unclaimed)
