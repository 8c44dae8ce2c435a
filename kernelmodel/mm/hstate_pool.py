"""Where the folios of a pool of huge pages come from, and where they go when it shrinks.

Reproduces the lower half of Linux 7.3's struct hstate: which folios a pool owns, which of them
are free, and the ways in and out. Gigantic pages come from memblock or the CMA areas at boot, and
from contiguous free memory later; smaller ones from the page allocator. With HVO every folio that
enters gives up most of its struct pages (`hugetlb_vmemmap`) and needs them back to leave.

Happy path: `bootmem_alloc`, `init`; `fresh` and `release` afterwards.

Unhappy paths: a pool that cannot be filled stays smaller; a folio whose struct pages cannot be had
again stays, as a free surplus one.

Simplifications, and what a test could notice:

- *Lowest free folio first*; the kernel takes the one freed last. Only page frame numbers show it.
- *Of the kernel's own pages only those of its boot lie in the way of run-time gigantic pages*: one
  gigabyte a node. What it takes later, anywhere, is not modelled; and as pages that it preserves
  lie elsewhere than ours, a machine of 8 GiB gave 4 for 3 after a kexec.
- *Run-time gigantic pages consist of what is free*: the kernel also moves movable pages away, free
  huge pages of a smaller size among them, so that what was demoted can be one page again.
- *Pools keep out of scratch*: the kernel may put a movable size there and has to migrate such a
  page before it can be pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kernelmodel.errors import ModelBug
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hstate_door import PoolDoor
from kernelmodel.mm.hstate_node import HstateNode, Turns, spread
from kernelmodel.mm.hugetlb_cma import HugetlbCma
from kernelmodel.mm.hugetlb_vmemmap import HugetlbVmemmap
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.mmzone import MAX_PAGE_ORDER
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.ranges import RangeSet

__all__ = ["HstatePool", "Runs"]

#: Runs of folios: (pfn of the first, number of folios).
Runs = list[tuple[int, int]]
#: Folios of known nodes: (nid, folio number, number of folios).
Fresh = list[tuple[int, int, int]]


class HstatePool:
    """The folios of one huge page size."""

    __slots__ = (
        "_allocator",
        "_bootmem",
        "_spans",
        "alloc_turns",
        "cma",
        "door",
        "free_turns",
        "is_gigantic",
        "max_huge_pages",
        "nodes",
        "order",
        "vmemmap",
    )

    def __init__(
        self,
        order: int,
        nids: Iterable[int],
        door: PoolDoor,
        vmemmap: HugetlbVmemmap,
        cma: HugetlbCma,
    ) -> None:
        self.order = order
        #: Whether the page allocator has no blocks of this size. C: hstate_is_gigantic().
        self.is_gigantic = order > MAX_PAGE_ORDER
        self.door = door
        self.vmemmap = vmemmap
        self.cma = cma
        #: Pages that the command line or the last resize asked for.
        self.max_huge_pages = 0
        self.nodes = {nid: HstateNode() for nid in nids}
        self._allocator: PageAllocator | None = None
        #: Which page frames each node has, known from `init` on.
        self._spans: list[tuple[int, RangeSet]] = []
        self._bootmem: dict[int, Runs] = {}
        #: Whose turn it is to get or to give a folio. Boot has turns of its own.
        self.alloc_turns = Turns()
        self.free_turns = Turns()

    @property
    def allocator(self) -> PageAllocator:
        """The page allocator, known from `init` on."""
        if self._allocator is None:
            raise ModelBug("hugetlb is used before its initcall")
        return self._allocator

    # Boot.

    def bootmem_alloc(self, memblock: Memblock, avoid: Iterable[tuple[int, int]]) -> int:
        """Take gigantic pages from memblock; returns how many. C: hugetlb_hstate_alloc_pages().

        Evenly from all nodes unless the command line named some, from wherever there is room
        when a node has too little.
        """
        if not self.max_huge_pages or (self.cma.areas and not self.cma.only):
            return 0
        nids = list(self.nodes)
        wanted = [node.max_huge_pages for node in self.nodes.values()]
        by_node = any(wanted)
        if not by_node:
            wanted = spread(self.max_huge_pages, [self.max_huge_pages] * len(nids), 0)
        missing = 0
        for nid, n in zip(nids, wanted, strict=True):
            missing += self._bootmem_take(memblock, n, nid, avoid)
        for nid in reversed(nids):
            if missing and not by_node:
                missing = self._bootmem_take(memblock, missing, nid, avoid)
        return sum(n for runs in self._bootmem.values() for _, n in runs)

    def _bootmem_take(
        self, memblock: Memblock, n: int, nid: int, avoid: Iterable[tuple[int, int]]
    ) -> int:
        """Take up to `n` pages from exactly this node; returns how many are missing."""
        if not n:
            return 0
        if self.cma.only:
            runs = self.cma.take_early(nid, n)
        else:
            runs = memblock.alloc_hugetlb(1 << (self.order + PAGE_SHIFT), n, nid, avoid)
        self._bootmem.setdefault(nid, []).extend(runs)
        return n - sum(count for _, count in runs)

    def bootmem_runs(self) -> Mapping[int, Runs]:
        """Gigantic pages taken at boot and not yet in the pool: (address, pages) by node."""
        return self._bootmem

    def init(self, allocator: PageAllocator) -> int:
        """Fill the pool at its initcall; returns the pages taken from the page allocator.

        Gigantic boot pages become free folios here. C: gather_bootmem_prealloc(),
        hugetlb_init_hstates().
        """
        self._allocator = allocator
        self._spans = [(nid, allocator.nodes[nid].spans) for nid in self.nodes]
        if self.is_gigantic:
            for nid, runs in self._bootmem.items():
                for address, n in runs:
                    pfn = address >> PAGE_SHIFT
                    allocator.adjust_managed(pfn, n << self.order)
                    if self.vmemmap.enabled:
                        self.vmemmap.never_had(pfn, n << self.order)
                        self.nodes[nid].optimized.add(pfn >> self.order, (pfn >> self.order) + n)
                    self.nodes[nid].own(pfn >> self.order, n)
                    self.nodes[nid].enqueue(pfn >> self.order, n)
            self._bootmem.clear()
            return 0
        named = {nid: node.max_huge_pages for nid, node in self.nodes.items()}
        if any(named.values()):
            return sum(self.grow(n, [nid], Turns()) for nid, n in named.items() if n)
        return self.grow(_as_int(self.max_huge_pages), list(self.nodes), Turns())

    # In.

    def fresh(self, n: int, nids: Sequence[int], turns: Turns | None = None) -> Fresh:
        """Up to `n` new folios from these nodes, in turn or else one node after the other."""
        room = [self._nr_available(nid) for nid in nids]
        if turns is not None:
            takes = turns.share(n, nids, room)
        else:
            takes = []
            for available in room:
                takes.append(min(available, n - sum(takes)))
        fresh: Fresh = []
        for nid, take in zip(nids, takes, strict=True):
            for pfn, count in self._take(nid, take):
                self.own(nid, pfn >> self.order, count)
                fresh.append((nid, pfn >> self.order, count))
        return fresh

    def _nr_available(self, nid: int) -> int:
        room = 0
        if self.is_gigantic:
            room = self.cma.nr_available(self.allocator, self.order, nid)
        if not (self.is_gigantic and self.cma.only):
            room += self.allocator.nr_available(self.order, nid)
        return room

    def _take(self, nid: int, n: int) -> Runs:
        """`n` folios that exactly this node is known to have. C: alloc_gigantic_folio()."""
        if not self.is_gigantic:
            return self.allocator.alloc_upto(self.order, n, nid, thisnode=True)[0]
        runs = self.cma.take(self.allocator, self.order, n, nid)
        left = n - sum(count for _, count in runs)
        if left and not self.cma.only:
            runs += self.allocator.alloc_contig(self.order, left, nid)[0]
        return runs

    def own(self, nid: int, folio: int, n: int) -> None:
        """Folios enter the pool, in use, and give up struct pages if HVO is on."""
        self.nodes[nid].own(folio, n)
        if self.vmemmap.enabled:
            done = self.vmemmap.optimize(self.allocator, nid, folio << self.order, n, self.order)
            self.nodes[nid].optimized.add(folio, folio + done)

    def grow(self, n: int, nids: Sequence[int], turns: Turns) -> int:
        """Add up to `n` free folios in turn; returns how many. C: alloc_pool_huge_folio()."""
        if not n:
            return 0
        fresh = self.fresh(n, nids, turns)
        for nid, folio, count in fresh:
            self.nodes[nid].enqueue(folio, count)
        return sum(count for _, _, count in fresh)

    # Out.

    def restore_vmemmap(self, nid: int, folio: int, n: int) -> int:
        """Get struct pages back for folios about to leave; for how many, from the first on."""
        optimized = self.nodes[nid].optimized
        at, end = folio, folio + n
        while at < end:
            parts = optimized.within(at, end)
            if not parts:
                return n
            part = parts[0]
            got = self.vmemmap.restore(self.allocator, nid, part[1] - part[0], self.order)
            optimized.remove(part[0], part[0] + got)
            if got < part[1] - part[0]:
                return part[0] + got - folio
            at = part[1]
        return n

    def release(self, nid: int, folio: int, n: int) -> int:
        """Hand folios off the free list to the page allocator; returns how many went.

        Those whose struct pages cannot be had stay in the pool, off its free list.
        """
        gone = 0
        while gone < n:  # what leaves is memory for the struct pages of the next
            ready = self.restore_vmemmap(nid, folio + gone, n - gone)
            if not ready:
                break
            self.nodes[nid].disown(folio + gone, ready)
            self.allocator.free_run(folio + gone << self.order, ready << self.order)
            gone += ready
        return gone

    def dequeue(self, n: int, nids: Iterable[int]) -> Runs:
        """Take up to `n` free folios, from one node after the other."""
        runs: Runs = []
        for nid in nids:
            node = self.nodes[nid]
            take = min(n, node.nr_free)
            runs += [(folio << self.order, count) for folio, count in node.dequeue(take)]
            n -= take
        return runs

    def by_node(self, pfn: int, n: int) -> list[tuple[int, int, int]]:
        """A run cut at the borders of nodes: (nid, folio number, number of folios).

        Raises:
            ModelBug: part of it lies on no node.
        """
        order, end = self.order, pfn + (n << self.order)
        parts: list[tuple[int, int, int]] = []
        for nid, spans in self._spans:
            if spans.contains(pfn, end):  # as nearly always
                return [(nid, pfn >> order, n)]
        for nid, spans in self._spans:
            parts += [
                (nid, low >> order, high - low >> order) for low, high in spans.within(pfn, end)
            ]
        left = n - sum(count for _, _, count in parts)
        if left:
            raise ModelBug(f"{left} folios from page frame {pfn:#x} on lie on no node")
        return parts


def _as_int(n: int) -> int:
    """What the threads that fill a pool at boot make of a count: its low 32 bits, with a sign.

    Of 10^12 pages none, of 2^32 + 5 five; as one thread does, several share the count before.
    C: hugetlb_pages_alloc_boot_node().
    """
    return max(0, (n + (1 << 31)) % (1 << 32) - (1 << 31))
