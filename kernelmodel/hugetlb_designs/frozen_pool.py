"""`frozen-pool`: the first user writes down the whole pool and freezes it; a sweep marks the used.

Proposal: J. Gunthorpe, 10 Oct 2025, in the thread on hugetlb's shared state: no global data that
anybody may reach; hugetlb is activated as a page provider by whoever preserves a file, lists all
page frames of its pools in vmalloc memory and lets them neither grow nor shrink. Users preserve
their own folios, so that there is no xarray and no call for each page. Just before kexec a sweep
notes which of the listed folios are preserved, and the next kernel frees the others to the pool at
once. Not in Linux 7.3.

Happy path: the first file of huge pages freezes and lists; further files pay for their own folios
alone. The sweep looks each listed folio up in KHO's tree, marks it or preserves it for the pool.
The next kernel allocates what was asked for less what is listed, takes the unmarked folios as free
ones, and gets the marked ones back with their files.

Unhappy paths: while frozen, pools can neither grow nor shrink (`frozen_pools`), from the first
preserve until the last preserving session closes: the limited phase begins and ends without
anybody saying so, which is P. Yadav's objection of 14 Oct. Folios for which the sweep has no
memory left are taken off the list, since there is nobody whom it could tell: the next kernel
allocates others. A pool that had shrunk below what the command line asks for is filled up at boot.
Pages that nobody retrieves stay lost until the next kexec.

Our reading: the shared state is an FLB of the LUO of 7.3 (the thread ended there), with a `freeze`
that the sweep hangs on; "frees the others" needs them to be kept until then, so that the sweep
preserves them. Preserving them when the pool is frozen instead would not do: a file may still take
a free folio and preserve it itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.errors import KernelError
from kernelmodel.hugetlb_designs.base import FlbDesign
from kernelmodel.hugetlb_designs.frozen_pools import FrozenPools
from kernelmodel.hugetlb_designs.pool_list import (
    Marks,
    PoolList,
    early_counts,
    listed,
    pool_folios,
    take_lists,
)
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.owners import Preserved

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["FrozenPool"]


class FrozenPool(FlbDesign):
    """The list, the frozen pools and the sweep."""

    name: ClassVar[str] = "frozen-pool"
    source: ClassVar[str] = "J. Gunthorpe, 10 Oct 2025"
    callbacks: ClassVar[tuple[str, ...]] = (
        "a call of the FLB just before kexec",
        "liveupdate_flb_incoming_early",
    )

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel, compatible)
        self.flb.freeze = self.sweep
        self.pools = FrozenPools(kernel)
        self.list: PoolList | None = None

    @property
    def shared_bytes(self) -> int:
        """What is written so far."""
        return self.list.nbytes if self.list is not None else 0

    # Outgoing.

    def preserve(self) -> tuple[int, object]:
        """The first user: freeze the pools, list them. Raises: NoMemory, and they are not."""
        self.pools.freeze()
        try:
            self.list = PoolList(self.kernel, listed({}, pool_folios(self.kernel)))
        except KernelError:
            self.pools.thaw()
            raise
        return self.list.pa, self.list

    def unpreserve(self, data: int, obj: object) -> None:
        """The last user has gone: everything is as it was."""
        assert self.list is not None, "written by the first user"
        self.list.free()
        self.list = None
        self.pools.thaw()

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Preserve, once the list is there: it is written under the FLB's lock."""
        # the count of users goes up under that lock: a store
        self.kernel.clock.charge_locked(f"luo_flb:{self.flb.name}", "hugetlb_luo_folio_ser")
        super().preserve_folios(order, runs)

    def sweep(self) -> None:
        """Which folios are preserved by now? The others are kept for the pool."""
        kernel = self.kernel
        tree = kernel.kho.outgoing_tree
        assert self.list is not None, "the FLB is live"
        assert tree is not None, "KHO preserved the list"
        preserved: Marks = {}
        for run in kernel.kho.outgoing_runs():
            low = run.pfn >> run.order
            preserved.setdefault(run.order, RangeSet()).add(low, low + run.nr)
        marked: Marks = {}
        others: Marks = {}
        for order, folios in pool_folios(kernel).items():
            kernel.charge("kho_radix_add_key", folios.total)  # a look-up is the same walk
            keys = preserved.get(order, RangeSet())
            marked[order] = RangeSet(
                part for low, high in folios for part in keys.within(low, high)
            )
            others[order] = RangeSet()
            for low, high in folios:
                for start, end in keys.gaps(low, high):
                    try:
                        kernel.kho.preserve_folios(start << order, order, end - start)
                    except KernelError as error:
                        kernel.warn_on(f"huge pages of a pool are not kept: {error}")
                    else:
                        others[order].add(start, end)
        self.list.rewrite(listed(marked, others))

    def preserved_pages(self, kernel: Kernel) -> Iterator[Preserved]:
        """The list; what the sweep preserved comes after anybody could ask."""
        if self.list is not None:
            yield from self.list.preserved_pages()

    # Incoming.

    def early_boot(self) -> dict[int, int]:
        """As many pages of each size as are listed, whoever has them."""
        return early_counts(self.kernel, self.kernel.luo.flbs.incoming_early(self.flb.name))

    def pools_ready(self) -> None:
        """Folios that no file preserved are free ones of their pool from now on."""
        pa = self.kernel.luo.flbs.incoming_early(self.flb.name)
        if not pa:
            return
        _, others, _ = take_lists(self.kernel, pa)
        for order, folios in others.items():
            if order in self.kernel.hugetlb.hstates:
                for low, high in folios:
                    self.discard_folios(order, low << order, high - low)

    def retrieve(self, data: int) -> object:
        """Everything was read while booting."""
        return data

    def finish(self, data: int, obj: object) -> None:
        """The last file is done; the list is gone since boot."""
