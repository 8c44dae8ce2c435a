"""All huge page pools of one kernel.

Reproduces Linux 7.3's mm/hugetlb.c as far as boot and /proc see it: which sizes exist, how many
pages the command line gives each, when they are allocated. `Hstate` is the pool of one size.

Happy path: `HugetlbState(cmdline)`, `bootmem_alloc` while memblock rules, `init` at the initcall.

Unhappy paths: a pool that boot cannot fill stays smaller; that, and what is wrong on the command
line, is said in `warnings`.

Nothing here knows of LUO or KHO. What a handover design needs are `subtract_preserved` (before
boot allocates) and `Hstate.add_preserved` (pages that come back): ours, after the RFC, Dec 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kernelmodel.errors import InvalidArgument, ModelBug
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hstate_door import PoolDoor
from kernelmodel.mm.hstate_node import validate_hstate_node
from kernelmodel.mm.hugetlb_cma import HugetlbCma
from kernelmodel.mm.hugetlb_cmdline import GIGANTIC_ORDER, HPAGE_ORDER, parse_cmdline
from kernelmodel.mm.hugetlb_vmemmap import HugetlbVmemmap, vmemmap_frames
from kernelmodel.mm.hugetlbfs import HugetlbInode
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.ranges import RangeSet

__all__ = ["HugetlbState", "validate_hugetlb"]


class HugetlbState:
    """All pools of one kernel, in the order in which the kernel registers their sizes."""

    __slots__ = (
        "cma",
        "default_order",
        "door",
        "hstates",
        "lost_files",
        "vmemmap",
        "warnings",
    )

    def __init__(
        self,
        cmdline: str,
        nids: Iterable[int] = (0,),
        orders: tuple[int, ...] = (HPAGE_ORDER, GIGANTIC_ORDER),
    ) -> None:
        """`orders` are the sizes that the architecture has; the first is the default one."""
        nids = tuple(nids)
        request = parse_cmdline(cmdline, frozenset(nids), orders)
        self.default_order = request.default_order
        self.warnings = list(request.warnings)
        self.hstates: dict[int, Hstate] = {}
        self.door = PoolDoor()
        #: Files of which only a part came back from a handover: nobody has them, and they keep it.
        self.lost_files: list[HugetlbInode] = []
        self.vmemmap = HugetlbVmemmap(enabled=request.free_vmemmap)
        self.cma = HugetlbCma(request.cma, nids)
        for size in request.sizes:
            hstate = Hstate(size.order, nids, self.door, self.vmemmap, self.cma)
            hstate.max_huge_pages = size.nr
            for nid, n in size.by_node.items():
                hstate.nodes[nid].max_huge_pages = n
            self.hstates[size.order] = hstate

    def hstate(self, order: int) -> Hstate:
        """The pool of one size. C: size_to_hstate().

        Raises:
            InvalidArgument: this kernel has no such size.
        """
        if order not in self.hstates:
            raise InvalidArgument("no huge pages of this size", order=order)
        return self.hstates[order]

    def subtract_preserved(self, preserved: Mapping[int, int]) -> None:
        """Let boot allocate fewer pages, by those that a handover will bring back.

        `preserved` has pages by order. Where more come back than were asked for, nothing is
        allocated, with a warning; counts by node are given up for one in all.
        """
        for order, n in preserved.items():
            hstate = self.hstate(order)
            if any(node.max_huge_pages for node in hstate.nodes.values()):
                self.warnings.append(f"order {order}: pages are preserved, nodes are not heeded")
                for node in hstate.nodes.values():
                    node.max_huge_pages = 0
            if n > hstate.max_huge_pages:
                self.warnings.append(
                    f"order {order}: {n} pages preserved, {hstate.max_huge_pages} asked for"
                )
            hstate.max_huge_pages = max(0, hstate.max_huge_pages - n)

    def bootmem_alloc(self, memblock: Memblock, avoid: Iterable[tuple[int, int]] = ()) -> int:
        """Allocate gigantic pages; returns how many. C: hugetlb_bootmem_alloc().

        `avoid` are KHO's real scratch areas as (base, end).
        """
        self.cma.reserve(memblock)
        self.warnings += self.cma.warnings
        gigantic = [hstate for hstate in self.hstates.values() if hstate.is_gigantic]
        if self.cma.areas and not self.cma.only and any(h.max_huge_pages for h in gigantic):
            self.warnings.append("hugetlb_cma is enabled, skip boot time allocation")
            for hstate in gigantic:
                hstate.max_huge_pages = 0
        total = 0
        for hstate in gigantic:
            total += self._filled(hstate, hstate.bootmem_alloc(memblock, avoid))
        return total

    def init(self, allocator: PageAllocator) -> int:
        """Fill the pools; returns pages taken from the page allocator. C: hugetlb_init()."""
        self.cma.activate(allocator)
        for hstate in self.hstates.values():
            if hstate.is_gigantic:
                hstate.init(allocator)
        total = 0
        for hstate in self.hstates.values():
            if not hstate.is_gigantic:
                total += self._filled(hstate, hstate.init(allocator))
        return total

    def _filled(self, hstate: Hstate, got: int) -> int:
        """Boot got so many pages for a pool, maybe fewer than it wants; how many."""
        if got < hstate.max_huge_pages:
            self.warnings.append(
                f"order {hstate.order}: {got} of {hstate.max_huge_pages} huge pages allocated"
            )
            hstate.max_huge_pages = got
        return got

    def boot_hvo(self, nid: int) -> tuple[int, int]:
        """What gigantic pages of boot are to a node's memory map with HVO.

        Returns (frames of the map that are left out, frames that take the place of them).
        """
        if not self.vmemmap.enabled:
            return 0, 0
        runs = [
            (n, vmemmap_frames(hstate.order))
            for hstate in self.hstates.values()
            for _, n in hstate.bootmem_runs().get(nid, ())
        ]
        return sum(n * frames for n, frames in runs), sum(n for n, _ in runs)

    def meminfo(self) -> str:
        """The hugetlb lines of /proc/meminfo."""
        default = self.hstates[self.default_order]
        total = sum(h.nr_huge_pages << h.order for h in self.hstates.values())
        return (
            f"HugePages_Total:   {default.nr_huge_pages:5d}\n"
            f"HugePages_Free:    {default.free_huge_pages:5d}\n"
            f"HugePages_Rsvd:    {default.resv_huge_pages:5d}\n"
            f"HugePages_Surp:    {default.surplus_huge_pages:5d}\n"
            f"Hugepagesize:   {4 << default.order:8d} kB\n"
            f"Hugetlb:        {total * 4:8d} kB\n"
        )


def validate_hugetlb(state: HugetlbState) -> None:
    """Counters agree with the folios, promises with what is free, pools with each other.

    Raises:
        ModelBug: they do not.
    """
    seen = RangeSet()
    total = 0
    for order, hstate in state.hstates.items():
        if hstate.persistent_huge_pages < 0:
            raise ModelBug(f"order {order}: {hstate.surplus_huge_pages} surplus pages")
        excused = hstate.min_size_mounts or hstate.took_promised
        broken = hstate.resv_huge_pages > hstate.free_huge_pages and not excused
        if hstate.resv_huge_pages < 0 or broken:
            raise ModelBug(
                f"order {order}: {hstate.resv_huge_pages} promised, {hstate.free_huge_pages} free"
            )
        for nid, node in hstate.nodes.items():
            validate_hstate_node(node, f"order {order} node {nid}")
            for low, high in node.owned:
                seen.add(low << order, high << order)
                total += (high - low) << order
                if hstate.allocator.any_free(low << order, (high - low) << order):
                    raise ModelBug(f"order {order} node {nid}: a folio is in the page allocator")
    if seen.total != total:
        raise ModelBug("two pools own the same page")
