"""`ours`: `flb-counts`, and the size that each pool has by now.

Ours; on the LUO of 7.3. Not in Linux.

In `flb-counts` the next kernel makes its pools as large as the command line says, less what comes
back. A pool that was resized at run time is therefore resized back by every update: what an
administrator added is gone, what he took away for other uses is taken from there again. Here the
FLB has, for each page size, the preserved pages, the number that the command line asked for, and
the size that the pool is to have by now; the next kernel goes by the last, unless its own command
line asks for something else than that of its predecessor did: then somebody has decided anew.

Happy path: as `flb-counts`. The freeze of each file brings the sizes up to date, so that a pool
may be resized at any time before the jump and LUO needs no callback that `flb-counts` does not
need. The structure has as many entries as there are page sizes: 27 bytes on x86, where that of
`flb-counts` has 37.

Unhappy paths: as `flb-counts`, but that a fifth page size is ENOSPC for the first file, whatever
its size. A boot that cannot get all pages does not make the pool smaller for good, and neither do
pages that nobody retrieved: the size is what was wanted, not what there is. Such pages stay lost
until the next kexec, as in `flb-counts`: a device may still write to them, and nobody but their
session's owner can say that none does.

Not done, since it would cost elsewhere: a count for each node, from which boot could give each
node what it lacks. The nodes' huge pages are initialised in parallel, a thread a node, and the
boot waits for the node that lacks most; an even share, as in `flb-counts`, is the fastest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.abi.hugetlb import HUGETLB_SER_MAX_HSTATES
from kernelmodel.abi.hugetlb_pool import HugetlbSizeSer, HugetlbSizesSer
from kernelmodel.errors import KernelError, NoSpace
from kernelmodel.hugetlb_designs.base import FlbDesign

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["Ours"]


class Ours(FlbDesign):
    """Counts and sizes."""

    name: ClassVar[str] = "ours"
    source: ClassVar[str] = "ours"
    callbacks: ClassVar[tuple[str, ...]] = ("liveupdate_flb_incoming_early",)

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel, compatible)
        #: Preserved pages by order.
        self.counts: dict[int, int] = {}
        # By order: what the command line asks for, the size to be had at boot, and how many pages
        # there were before anything came back, and with what has come back since.
        self._asked = {o: h.max_huge_pages for o, h in kernel.hugetlb.hstates.items()}
        self._wanted = dict(self._asked)
        self._unchanged: dict[int, int] = {}

    @property
    def shared_bytes(self) -> int:
        """The structure."""
        return len(HugetlbSizesSer(self._sizes()).pack()) if self.flb.outgoing_data else 0

    # Outgoing.

    def preserve(self) -> tuple[int, object]:
        """The structure in preserved memory. Raises: NoSpace, NoMemory."""
        if len(self.kernel.hugetlb.hstates) > HUGETLB_SER_MAX_HSTATES:
            raise NoSpace("too many huge page sizes")
        pa = self.kernel.kho.alloc_preserve(HugetlbSizesSer.SIZE)
        return pa, pa

    def unpreserve(self, data: int, obj: object) -> None:
        """Nobody preserves huge pages any more."""
        self.kernel.kho.unpreserve_free(data)

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Count, then preserve."""
        self._add(order, sum(run.nr for run in runs))
        try:
            super().preserve_folios(order, runs)
        except KernelError:
            self._add(order, -sum(run.nr for run in runs))
            raise

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Count out."""
        self._add(order, -sum(run.nr for run in runs))
        super().unpreserve_folios(order, runs)

    def freeze_folios(self, order: int, runs: list[FolioRun]) -> None:
        """The pools may have been resized since."""
        self._add(order, 0)

    def _add(self, order: int, nr_pages: int) -> None:
        with self.kernel.clock.lock(f"luo_flb:{self.flb.name}"):
            self.counts[order] = self.counts.get(order, 0) + nr_pages
            ser = HugetlbSizesSer(self._sizes())
            self.kernel.memory.write(self.flb.outgoing_data, ser.pack())

    def _sizes(self) -> tuple[HugetlbSizeSer, ...]:
        return tuple(
            HugetlbSizeSer(
                order,
                self.counts.get(order, 0),
                self._asked[order],
                max(0, self._wanted[order] + h.persistent_huge_pages - self._unchanged[order]),
            )
            for order, h in self.kernel.hugetlb.hstates.items()
        )

    # Incoming.

    def early_boot(self) -> dict[int, int]:
        """Set the sizes that pools are to have; the pages of them that come back, by order."""
        kernel = self.kernel
        pa = kernel.luo.flbs.incoming_early(self.flb.name)
        if not pa:
            return {}
        ser = HugetlbSizesSer.unpack(kernel.memory.read(pa, HugetlbSizesSer.SIZE))
        counts: dict[int, int] = {}
        for size in ser.sizes:
            if size.order not in kernel.hugetlb.hstates:
                continue
            if size.nr_asked == self._asked[size.order] != size.nr_wanted:
                self._resize(size)
            if size.nr_preserved:
                counts[size.order] = counts.get(size.order, 0) + size.nr_preserved
        return counts

    def _resize(self, size: HugetlbSizeSer) -> None:
        """The pool had another size than the command line says, and so it shall have."""
        hstate = self.kernel.hugetlb.hstate(size.order)
        self._wanted[size.order] = hstate.max_huge_pages = size.nr_wanted
        for node in hstate.nodes.values():  # which nodes it was resized on is not known
            node.max_huge_pages = 0

    def pools_ready(self) -> None:
        """From here on a change of a pool is somebody's wish, or pages that come back."""
        for order, hstate in self.kernel.hugetlb.hstates.items():
            self._unchanged[order] = hstate.persistent_huge_pages

    def retrieve_folios(self, order: int, pfn: int, nr: int) -> int:
        """Pages that come back change no size."""
        before = self.kernel.hugetlb.hstate(order).nr_huge_pages
        restored = super().retrieve_folios(order, pfn, nr)
        self._came_back(order, before)
        return restored

    def discard_folios(self, order: int, pfn: int, nr: int) -> int:
        """The same."""
        before = self.kernel.hugetlb.hstate(order).nr_huge_pages
        restored = super().discard_folios(order, pfn, nr)
        self._came_back(order, before)
        return restored

    def _came_back(self, order: int, before: int) -> None:
        self._unchanged[order] += self.kernel.hugetlb.hstate(order).nr_huge_pages - before

    def retrieve(self, data: int) -> object:
        """The address is all there is; the numbers were read while booting."""
        return data

    def finish(self, data: int, obj: object) -> None:
        """The last file is done: free the page."""
        self.kernel.kho.restore_free(data)
