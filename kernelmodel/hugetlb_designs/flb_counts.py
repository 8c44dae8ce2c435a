"""`flb-counts`: the FLB carries only how many pages of each size are preserved.

Proposal: RFC of Dec 2025 (P. Yadav, 20251206230222.853493), on the LUO of 7.3. Not in Linux 7.3.

Happy path: the first preserved hugetlb file allocates one page with a `HugetlbSer`; each file
adds its folios to the count of its page size, in place, under the FLB's lock. The next kernel
reads the counts before it allocates huge pages and takes that many fewer; the preserved ones
join their pool when their file is retrieved, or free when it finishes unretrieved.

Unhappy paths: a fifth page size has no slot and is ENOSPC. More pages preserved than asked for
raise the pool, with a warning. If the file is never retrieved nor finished, the pool stays short
of its pages until the next kexec.

Simplification: *a file's folios are counted at once and for no time*; the RFC counts each of them
under the lock. As dear as a mark of `subsystem-prepare`, that would show in preserve as it does
there.
"""

from __future__ import annotations

from operator import attrgetter
from typing import ClassVar, Final

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.abi.hugetlb import HugetlbHstateSer, HugetlbSer
from kernelmodel.errors import KernelError, NoSpace
from kernelmodel.hugetlb_designs.base import FlbDesign
from kernelmodel.memory import PAGE_SHIFT

__all__ = ["FlbCounts"]

_NR: Final = attrgetter("nr")
_unpack_from, _pack_into = HugetlbHstateSer.FORMAT.unpack_from, HugetlbHstateSer.FORMAT.pack_into
#: From one hstate of the structure to the next, and where each has its order.
_STEP: Final = HugetlbHstateSer.SIZE
_ORDER: Final = HugetlbHstateSer.SIZE - 1
#: Where it says how many of them are used.
_USED: Final = HugetlbSer.SIZE - 1


class FlbCounts(FlbDesign):
    """The FLB's operations and the counting. C: the RFC's hugetlb_flb_ops."""

    name: ClassVar[str] = "flb-counts"
    source: ClassVar[str] = "RFC of Dec 2025 (P. Yadav, 20251206230222.853493)"
    callbacks: ClassVar[tuple[str, ...]] = ("liveupdate_flb_incoming_early",)

    @property
    def shared_bytes(self) -> int:
        """The structure."""
        return HugetlbSer.SIZE if self.flb.outgoing_data else 0

    # Outgoing.

    def preserve(self) -> tuple[int, object]:
        """An empty HugetlbSer in preserved memory."""
        pa = self.kernel.kho.alloc_preserve(HugetlbSer.SIZE)
        return pa, pa

    def unpreserve(self, data: int, obj: object) -> None:
        """Nobody preserves huge pages any more."""
        self.kernel.kho.unpreserve_free(data)

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Count, then preserve. Raises: NoSpace, no slot for another page size."""
        nr_folios: int = sum(map(_NR, runs))
        self.add(order, nr_folios)
        try:
            self.folios.preserve_folios(order, runs)
        except KernelError:
            self.add(order, -nr_folios)
            raise

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Count out."""
        self.add(order, -sum(map(_NR, runs)))
        super().unpreserve_folios(order, runs)

    def add(self, order: int, nr_pages: int) -> None:
        """Count pages in, or out with a negative number.

        Raises:
            NoSpace: no slot for another page size.
        """
        # The FLB's lock is held for no time, so nobody can wait for it.
        page = self.kernel.memory.writable(self.flb.outgoing_data >> PAGE_SHIFT)
        at, end = 0, page[_USED] * _STEP
        while at < end and page[at + _ORDER] != order:
            at += _STEP
        if at == end:
            if at == _USED:
                raise NoSpace("too many huge page sizes", order=order)
            page[_USED] += 1
        counted, _ = _unpack_from(page, at)
        _pack_into(page, at, counted + nr_pages, order)

    # Incoming.

    def early_boot(self) -> dict[int, int]:
        """The counts, straight from memory; before LUO is up.

        C: the RFC's liveupdate_flb_incoming_early(). Empty if nothing readable came over.
        """
        kernel = self.kernel
        pa = kernel.luo.flbs.incoming_early(self.flb.name)
        if not pa:
            return {}
        ser = HugetlbSer.unpack(kernel.memory.read(pa, HugetlbSer.SIZE))
        counts: dict[int, int] = {}
        for hstate in ser.hstates:
            if hstate.nr_pages and hstate.order in kernel.hugetlb.hstates:
                counts[hstate.order] = counts.get(hstate.order, 0) + hstate.nr_pages
        return counts

    def retrieve(self, data: int) -> object:
        """The address is all there is; the counts were read while booting."""
        return data

    def finish(self, data: int, obj: object) -> None:
        """The last file is done: free the page."""
        self.kernel.kho.restore_free(data)
