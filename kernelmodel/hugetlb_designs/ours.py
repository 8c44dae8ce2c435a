"""`ours`: `flb-counts` with a count for each node, so that pools stay where they were.

Ours; on the LUO of 7.3. Not in Linux.

`flb-counts` tells the next kernel how many pages come back, and not where they are. What it then
allocates is spread evenly, and `hugepages=<node>:<n>` is given up with a warning: a host whose VMs
use node 0 more than node 1 comes up with too many pages on node 0 and too few on node 1, although
the sum is right. Here the FLB counts by page size and node, which is 11 bytes for each, and boot
takes from each node what this node lacks.

Happy path: as `flb-counts`, node by node: a node is to have what the command line asked of it, or
its even share, and gets that less what comes back there.

Unhappy paths: more counts than fit a page (372, of page sizes times nodes) are ENOSPC at preserve.
A node to which more comes back than it was to have takes its surplus from the others' shares, so
that the sum stays what was asked for; if all is more than that, the pool is larger, with a
warning, as in `flb-counts`. What a node cannot give is tried from any node. Pages that nobody
retrieves stay lost until the next kexec, exactly as in `flb-counts`: they may be written to by
devices, and nobody but their session's owner can say that they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.abi.hugetlb_pool import HUGETLB_NODES_MAX, HugetlbNodeSer, HugetlbNodesSer
from kernelmodel.errors import KernelError, NoSpace
from kernelmodel.hugetlb_designs.base import FlbDesign
from kernelmodel.mm.hstate_node import spread

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.mm.hugetlb import Hstate

__all__ = ["Ours"]


class Ours(FlbDesign):
    """Counts by page size and node."""

    name: ClassVar[str] = "ours"
    source: ClassVar[str] = "ours"
    callbacks: ClassVar[tuple[str, ...]] = ("liveupdate_flb_incoming_early",)

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel, compatible)
        #: What boot was to allocate, by order.
        self._asked: dict[int, int] = {}

    @property
    def shared_bytes(self) -> int:
        """What is written so far."""
        return 2 + len(self._read(self.flb.outgoing_data)) * HugetlbNodeSer.SIZE

    # Outgoing.

    def preserve(self) -> tuple[int, object]:
        """An empty page of counts."""
        pa = self.kernel.kho.alloc_preserve(HugetlbNodesSer.SIZE)
        return pa, pa

    def unpreserve(self, data: int, obj: object) -> None:
        """Nobody preserves huge pages any more."""
        self.kernel.kho.unpreserve_free(data)

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Count, then preserve. Raises: NoSpace, no room for another count."""
        self._add(order, runs, 1)
        try:
            super().preserve_folios(order, runs)
        except KernelError:
            self._add(order, runs, -1)
            raise

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Count out."""
        self._add(order, runs, -1)
        super().unpreserve_folios(order, runs)

    def _read(self, pa: int) -> dict[tuple[int, int], int]:
        """Pages by (order, node)."""
        if not pa:
            return {}
        ser = HugetlbNodesSer.unpack(self.kernel.memory.read(pa, HugetlbNodesSer.SIZE))
        return {(node.order, node.nid): node.nr_pages for node in ser.nodes}

    def _add(self, order: int, runs: list[FolioRun], sign: int) -> None:
        """Count pages in or out. Raises: NoSpace, and nothing is counted."""
        hstate = self.kernel.hugetlb.hstate(order)
        with self.kernel.clock.lock(f"luo_flb:{self.flb.name}"):
            counts = self._read(self.flb.outgoing_data)
            for nid, _, n in hstate.by_node((run.pfn, run.nr) for run in runs):
                counts[order, nid] = counts.get((order, nid), 0) + sign * n
            if len(counts) > HUGETLB_NODES_MAX:
                raise NoSpace("too many huge page sizes and nodes", counts=len(counts))
            nodes = tuple(HugetlbNodeSer(n, nid, of) for (of, nid), n in counts.items())
            self.kernel.memory.write(self.flb.outgoing_data, HugetlbNodesSer(nodes).pack())

    # Incoming.

    def early_boot(self) -> dict[int, int]:
        """Let each node allocate what it lacks; sizes of which more comes back than asked for.

        Those are returned, for the same warning as in `flb-counts`.
        """
        kernel = self.kernel
        counts = self._read(kernel.luo.flbs.incoming_early(self.flb.name))
        too_many: dict[int, int] = {}
        for order, hstate in kernel.hugetlb.hstates.items():
            back = {nid: counts.get((order, nid), 0) for nid in hstate.nodes}
            total = sum(n for (of, _), n in counts.items() if of == order)
            if total > hstate.max_huge_pages:
                too_many[order] = total
            elif total:
                self._by_node(hstate, back, total)
        return too_many

    def _by_node(self, hstate: Hstate, back: dict[int, int], total: int) -> None:
        wanted = {nid: node.max_huge_pages for nid, node in hstate.nodes.items()}
        if not any(wanted.values()):
            n = hstate.max_huge_pages
            wanted = dict(zip(wanted, spread(n, [n] * len(wanted), 0), strict=True))
        lacking = [max(0, wanted[nid] - back[nid]) for nid in hstate.nodes]
        hstate.max_huge_pages -= total
        give_up = spread(sum(lacking) - hstate.max_huge_pages, lacking, 0)
        for node, lack, less in zip(hstate.nodes.values(), lacking, give_up, strict=True):
            node.max_huge_pages = lack - less
        self._asked[hstate.order] = hstate.max_huge_pages

    def pools_ready(self) -> None:
        """What a node could not give is tried from any."""
        for order, asked in self._asked.items():
            hstate = self.kernel.hugetlb.hstate(order)
            missing = max(0, asked - hstate.nr_huge_pages)
            hstate.grow(missing, list(hstate.nodes), hstate.alloc_turns)
            hstate.max_huge_pages = hstate.nr_huge_pages

    def retrieve(self, data: int) -> object:
        """The address is all there is; the counts were read while booting."""
        return data

    def finish(self, data: int, obj: object) -> None:
        """The last file is done: free the page."""
        self.kernel.kho.restore_free(data)
