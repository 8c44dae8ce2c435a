"""The pool of one huge page size: what is there, what is free, what is promised.

Reproduces Linux 7.3's mm/hugetlb.c for one struct hstate. Pages come into the pool at boot
(gigantic ones from memblock, smaller ones from the page allocator), by writing `nr_hugepages`,
as surplus when `nr_overcommit_hugepages` allows it, or out of a handover. A free page may be
promised (`resv_huge_pages`); those who hold no promise can have only what is free beyond all
promises.

Happy path: `bootmem_alloc`, `init`, then `alloc_folios` / `free_folios`.

Unhappy paths: a folio that cannot be had is ENOSPC, a promise that cannot be made is ENOMEM; a
pool shrunk below what is in use keeps those pages as surplus and drops them when they are freed.

Simplifications, and what a test could notice:

- *Lowest free folio first*; the kernel takes the one freed last. Only page frame numbers show it.
- *Pools keep out of CMA*, hence of KHO's scratch; the kernel may put a movable size there and has
  to migrate such a page before it can be pinned.
- *No HVO*: the page frames that optimised vmemmap frees are not given to the page allocator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kernelmodel.errors import ModelBug, NoMemory, NoSpace
from kernelmodel.mm.hstate_door import PoolDoor
from kernelmodel.mm.hstate_node import HstateNode, spread
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.mmzone import MAX_PAGE_ORDER, PAGE_SHIFT
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.ranges import RangeSet

__all__ = ["Hstate", "Runs"]

#: Runs of folios: (pfn of the first, number of folios).
Runs = list[tuple[int, int]]


class Hstate:
    """The pool of one huge page size. C: struct hstate."""

    __slots__ = (
        "_allocator",
        "_bootmem",
        "_next_nid",
        "door",
        "max_huge_pages",
        "nodes",
        "nr_overcommit_huge_pages",
        "order",
        "resv_huge_pages",
    )

    def __init__(self, order: int, nids: Iterable[int], door: PoolDoor) -> None:
        self.order = order
        self.door = door
        #: Pages that the command line or the last resize asked for.
        self.max_huge_pages = 0
        self.nr_overcommit_huge_pages = 0
        self.resv_huge_pages = 0
        self.nodes = {nid: HstateNode() for nid in nids}
        self._allocator: PageAllocator | None = None
        self._bootmem: dict[int, Runs] = {}
        self._next_nid = 0

    # Counters.

    @property
    def is_gigantic(self) -> bool:
        """Whether the page allocator has no blocks of this size. C: hstate_is_gigantic()."""
        return self.order > MAX_PAGE_ORDER

    @property
    def nr_huge_pages(self) -> int:
        """Pages in the pool, used, free and surplus."""
        return sum(node.nr_huge_pages for node in self.nodes.values())

    @property
    def free_huge_pages(self) -> int:
        """Pages that nobody uses; some of them may be promised."""
        return sum(node.nr_free for node in self.nodes.values())

    @property
    def surplus_huge_pages(self) -> int:
        """Pages beyond the pool's set size, which go when they are freed."""
        return sum(node.surplus for node in self.nodes.values())

    @property
    def persistent_huge_pages(self) -> int:
        """Pages of the pool's set size: all but surplus ones."""
        return self.nr_huge_pages - self.surplus_huge_pages

    @property
    def available_huge_pages(self) -> int:
        """Free pages that are not promised."""
        return self.free_huge_pages - self.resv_huge_pages

    @property
    def allocator(self) -> PageAllocator:
        """The page allocator, known from `init` on."""
        if self._allocator is None:
            raise ModelBug("hugetlb is used before its initcall")
        return self._allocator

    # Boot.

    def bootmem_alloc(self, memblock: Memblock, avoid: RangeSet | None) -> int:
        """Take gigantic pages from memblock; returns how many. C: hugetlb_hstate_alloc_pages().

        Evenly from all nodes unless the command line named some, from wherever there is room
        when a node has too little.
        """
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
        got = sum(n for runs in self._bootmem.values() for _, n in runs)
        self._next_nid += got
        return got

    def _bootmem_take(self, memblock: Memblock, n: int, nid: int, avoid: RangeSet | None) -> int:
        """Take up to `n` pages from exactly this node; returns how many are missing."""
        size = 1 << (self.order + PAGE_SHIFT)
        runs = memblock.alloc_hugetlb(size, n, nid, avoid) if n else []
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
        if self.is_gigantic:
            for nid, runs in self._bootmem.items():
                for address, n in runs:
                    pfn = address >> PAGE_SHIFT
                    allocator.adjust_managed(pfn, n << self.order)
                    self.nodes[nid].own(pfn >> self.order, n)
                    self.nodes[nid].enqueue(pfn >> self.order, n)
            self._bootmem.clear()
            return 0
        named = {nid: node.max_huge_pages for nid, node in self.nodes.items()}
        if any(named.values()):
            return sum(self._grow(n, [nid]) for nid, n in named.items() if n)
        return self._grow(self.max_huge_pages, list(self.nodes))

    def _fresh(self, n: int, nids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Up to `n` new folios of the page allocator as (nid, folio, count), spread evenly."""
        room = [self.allocator.nr_available(self.order, nid) for nid in nids]
        fresh = []
        for nid, take in zip(nids, spread(n, room, self._next_nid % len(nids)), strict=True):
            if self.is_gigantic:
                runs, _ = self.allocator.alloc_contig(self.order, take, nid)
            else:
                runs, _ = self.allocator.alloc_upto(self.order, take, nid, thisnode=True)
            for pfn, count in runs:
                self.nodes[nid].own(pfn >> self.order, count)
                fresh.append((nid, pfn >> self.order, count))
        self._next_nid += sum(count for _, _, count in fresh)
        return fresh

    def _grow(self, n: int, nids: Sequence[int]) -> int:
        """Add up to `n` free folios; returns how many. C: alloc_pool_huge_folio()."""
        fresh = self._fresh(n, nids)
        for nid, folio, count in fresh:
            self.nodes[nid].enqueue(folio, count)
        return sum(count for _, _, count in fresh)

    def _release(self, nid: int, folio: int, n: int) -> None:
        """Hand folios that are in use or off the free list to the page allocator."""
        self.nodes[nid].disown(folio, n)
        self.allocator.free_run(folio << self.order, n << self.order)

    def _shrink(self, n: int, nids: Sequence[int], *, surplus: bool = False) -> int:
        """Give up to `n` free folios back; returns how many. C: remove_pool_hugetlb_folio()."""
        nodes = [self.nodes[nid] for nid in nids]
        room = [min(node.nr_free, node.surplus) if surplus else node.nr_free for node in nodes]
        shrunk = spread(n, room, 0)
        for nid, take in zip(nids, shrunk, strict=True):
            for folio, count in self.nodes[nid].dequeue(take, highest=True):
                self._release(nid, folio, count)
            self.nodes[nid].surplus -= take if surplus else 0
        return sum(shrunk)

    def _dequeue(self, n: int, nid: int) -> Runs:
        """Take `n` free folios, from `nid` first and then from the nodes after it."""
        runs: Runs = []
        nids = list(self.nodes)
        at = nids.index(nid)
        for other in nids[at:] + nids[:at]:
            take = min(n, self.nodes[other].nr_free)
            runs += [(folio << self.order, m) for folio, m in self.nodes[other].dequeue(take)]
            n -= take
        if n:
            raise ModelBug(f"{n} more folios were taken than are free")
        return runs

    def _alloc_surplus(self, n: int, nid: int | None = None) -> list[tuple[int, int, int]]:
        """Up to `n` folios beyond the pool's size. C: alloc_surplus_hugetlb_folio()."""
        n = min(n, self.nr_overcommit_huge_pages - self.surplus_huge_pages)
        if n <= 0:
            return []
        nids = list(self.nodes)
        fresh: list[tuple[int, int, int]] = []
        if nid is not None:
            fresh = self._fresh(n, [nid])
            nids.remove(nid)
        if nids:
            fresh += self._fresh(n - sum(count for _, _, count in fresh), nids)
        for owner, _, count in fresh:
            self.nodes[owner].surplus += count
        return fresh

    # What users of huge pages call.

    def alloc_upto(self, n: int, nid: int, *, reserved: bool = False) -> tuple[Runs, int]:
        """Up to `n` folios for use; returns (runs, folios missing). C: alloc_hugetlb_folio().

        With `reserved` the caller uses up promises made to it before, and misses none.
        """
        if reserved:
            if n > self.resv_huge_pages:
                raise ModelBug(f"{n} promises used of {self.resv_huge_pages} made")
            self.resv_huge_pages -= n
            return self._dequeue(n, nid), 0
        take = min(n, max(0, self.available_huge_pages))
        runs = self._dequeue(take, nid)
        extra = self._alloc_surplus(n - take, nid)
        runs += [(folio << self.order, count) for _, folio, count in extra]
        return runs, n - take - sum(count for _, _, count in extra)

    def alloc_folios(self, n: int, nid: int, *, reserved: bool = False) -> Runs:
        """`n` folios or none, from `nid` if it has them, as runs (pfn, number of folios).

        Raises:
            NoSpace: there are not so many.
        """
        runs, missing = self.alloc_upto(n, nid, reserved=reserved)
        if missing:
            self.free_folios(runs)
            raise NoSpace("huge page pool exhausted", wanted=n, missing=missing, order=self.order)
        return runs

    def free_folios(self, runs: Iterable[tuple[int, int]]) -> None:
        """Take folios back from their user; surplus ones leave the pool. C: free_huge_folio()."""
        for nid, folio, count in self._by_node(runs):
            node = self.nodes[nid]
            node.check_in_use(folio, count)
            gone = min(count, node.surplus)
            if gone:
                node.surplus -= gone
                self._release(nid, folio, gone)
            node.enqueue(folio + gone, count - gone)

    def _by_node(self, runs: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int, int]]:
        for pfn, n in runs:
            left = n
            for nid in self.nodes:
                spans = self.allocator.nodes[nid].spans
                for low, high in spans.within(pfn, pfn + (n << self.order)):
                    yield nid, low >> self.order, (high - low) >> self.order
                    left -= (high - low) >> self.order
            if left:
                raise ModelBug(f"{left} folios from page frame {pfn:#x} on lie on no node")

    def reserve(self, n: int) -> None:
        """Promise `n` more folios, adding surplus ones if need be. C: gather_surplus_pages().

        Raises:
            NoMemory: neither the pool nor overcommit has them; nothing is changed.
        """
        needed = self.resv_huge_pages + n - self.free_huge_pages
        if needed > 0:
            fresh = self._alloc_surplus(needed)
            if sum(count for _, _, count in fresh) < needed:
                for nid, folio, count in fresh:
                    self.nodes[nid].surplus -= count
                    self._release(nid, folio, count)
                raise NoMemory("too few huge pages to reserve", wanted=n, missing=needed)
            for nid, folio, count in fresh:
                self.nodes[nid].enqueue(folio, count)
        self.resv_huge_pages += n

    def unreserve(self, n: int) -> None:
        """Take `n` promises back; surplus pages go. C: return_unused_surplus_pages()."""
        if n > self.resv_huge_pages:
            raise ModelBug(f"{n} promises returned of {self.resv_huge_pages} made")
        self.resv_huge_pages -= n
        self._shrink(min(n, self.surplus_huge_pages), list(self.nodes), surplus=True)

    def add_preserved(self, runs: Iterable[tuple[int, int]]) -> None:
        """Folios that come back from a handover enter the books as in use."""
        for nid, folio, count in self._by_node(runs):
            self.nodes[nid].own(folio, count)

    # sysfs.

    def set_max_huge_pages(self, count: int, nid: int | None = None) -> None:
        """Write `nr_hugepages`, for all nodes or one.

        A pool that cannot grow or shrink so far goes as far as it can, without an error.
        """
        nids = list(self.nodes) if nid is None else [nid]
        if nid is not None:
            count += self.nr_huge_pages - self.nodes[nid].nr_huge_pages
        # Growing turns surplus pages into persistent ones before it allocates.
        grow = count - self.persistent_huge_pages
        if grow > 0:
            turned = spread(grow, [self.nodes[other].surplus for other in nids], 0)
            for other, take in zip(nids, turned, strict=True):
                self.nodes[other].surplus -= take
            self._grow(grow - sum(turned), nids)
        # Shrinking leaves what is in use or promised, counted among the persistent pages.
        free = self.free_huge_pages
        if free > self.persistent_huge_pages:
            free = max(0, free - self.surplus_huge_pages)
        floor = max(count, self.resv_huge_pages + self.persistent_huge_pages - free)
        self._shrink(max(0, self.persistent_huge_pages - floor), nids)
        # What stays beyond the new size becomes surplus, whatever overcommit says.
        rest = max(0, self.persistent_huge_pages - count)
        room = [self.nodes[other].nr_huge_pages - self.nodes[other].surplus for other in nids]
        for other, take in zip(nids, spread(rest, room, 0), strict=True):
            self.nodes[other].surplus += take
        self.max_huge_pages = self.persistent_huge_pages

    def sysfs(self, nid: int | None = None) -> dict[str, str]:
        """The files of `hugepages-*kB`, in all or below a node's directory, and their text."""
        nodes = list(self.nodes.values()) if nid is None else [self.nodes[nid]]
        values = {
            "nr_hugepages": sum(node.nr_huge_pages for node in nodes),
            "free_hugepages": sum(node.nr_free for node in nodes),
            "surplus_hugepages": sum(node.surplus for node in nodes),
        }
        if nid is None:
            values["nr_overcommit_hugepages"] = self.nr_overcommit_huge_pages
            values["resv_hugepages"] = self.resv_huge_pages
        return {name: f"{value}\n" for name, value in values.items()}
