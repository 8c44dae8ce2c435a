"""Pools of huge pages: what is there, what is free, what is promised.

Reproduces Linux 7.3's mm/hugetlb.c: one `Hstate` for each page size with its counters, in all
and by node. Pages come into a pool at boot (gigantic ones from memblock, smaller ones from the
page allocator), by writing `nr_hugepages`, as surplus when `nr_overcommit_hugepages` allows it,
or out of a handover. A free page may be promised (`resv_huge_pages`); those who hold no promise
can have only what is free beyond all promises.

Happy path: `HugetlbState(cmdline)`, `bootmem_alloc`, `init`, then `alloc_folios` / `free_folios`.

Unhappy paths: a pool that boot cannot fill stays smaller and says so in `warnings`; a folio that
cannot be had is ENOSPC, a promise that cannot be made is ENOMEM; a pool shrunk below what is in
use keeps those pages as surplus and drops them when they are freed.

Nothing here knows of LUO or KHO. What a handover design needs are `subtract_preserved` (before
boot allocates) and `add_preserved` (pages that come back): ours, after the RFC of Dec 2025.

Simplifications, and what a test could notice:

- *Lowest free folio first*; the kernel takes the one freed last. Only page frame numbers show it.
- *Pools keep out of CMA*, hence of KHO's scratch; the kernel may put a movable size there and has
  to migrate such a page before it can be pinned.
- *No HVO*: the page frames that optimised vmemmap frees are not given to the page allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from kernelmodel.errors import InvalidArgument, ModelBug, NoMemory, NoSpace
from kernelmodel.mm.hugetlb_cmdline import parse_cmdline
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.mmzone import MAX_PAGE_ORDER, PAGE_SHIFT
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.ranges import RangeSet

__all__ = ["Hstate", "HstateNode", "HugetlbState", "Runs", "validate_hugetlb"]

#: Runs of folios: (pfn of the first, number of folios).
Runs = list[tuple[int, int]]


class HstateNode:
    """One node's part of a pool; ranges are folio numbers (pfn >> order)."""

    __slots__ = ("free", "max_huge_pages", "nr_free", "nr_huge_pages", "owned", "surplus")

    def __init__(self) -> None:
        #: Every folio of the pool, and those of them that are free.
        self.owned = RangeSet()
        self.free = RangeSet()
        self.nr_huge_pages = 0
        self.nr_free = 0
        self.surplus = 0
        #: What the command line asked of this node by name.
        self.max_huge_pages = 0


class Hstate:
    """The pool of one huge page size. C: struct hstate."""

    __slots__ = (
        "_allocator",
        "_bootmem",
        "_next_nid",
        "max_huge_pages",
        "nodes",
        "nr_overcommit_huge_pages",
        "order",
        "resv_huge_pages",
    )

    def __init__(self, order: int, nids: Iterable[int]) -> None:
        self.order = order
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
        size = 1 << (self.order + PAGE_SHIFT)
        nids = list(self.nodes)
        by_node = any(node.max_huge_pages for node in self.nodes.values())
        if by_node:
            wanted = [node.max_huge_pages for node in self.nodes.values()]
        else:
            wanted = _spread(self.max_huge_pages, [self.max_huge_pages] * len(nids), self._turn())
        missing = 0
        for nid, n in zip(nids, wanted, strict=True):
            missing += self._bootmem_take(memblock, size, n, nid, avoid)
        for nid in reversed(nids):
            if missing and not by_node:
                missing = self._bootmem_take(memblock, size, missing, nid, avoid)
        got = sum(n for runs in self._bootmem.values() for _, n in runs)
        self._next_nid += got
        return got

    def _bootmem_take(
        self, memblock: Memblock, size: int, n: int, nid: int, avoid: RangeSet | None
    ) -> int:
        """Take up to `n` pages from exactly this node; returns how many are missing."""
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
                    self._own(nid, pfn >> self.order, n)
                    self._enqueue(nid, pfn >> self.order, n)
            self._bootmem.clear()
            return 0
        named = {nid: node.max_huge_pages for nid, node in self.nodes.items()}
        if any(named.values()):
            return sum(self._grow(n, [nid]) for nid, n in named.items() if n)
        return self._grow(self.max_huge_pages, list(self.nodes))

    # Moving folios between the page allocator, the pool and its users.

    def _turn(self) -> int:
        return self._next_nid % len(self.nodes)

    def _own(self, nid: int, folio: int, n: int) -> None:
        node = self.nodes[nid]
        if node.owned.overlaps(folio, folio + n):
            raise ModelBug(f"folios {folio:#x}+{n:#x} are in the pool already")
        node.owned.add(folio, folio + n)
        node.nr_huge_pages += n

    def _enqueue(self, nid: int, folio: int, n: int) -> None:
        node = self.nodes[nid]
        node.free.add(folio, folio + n)
        node.nr_free += n

    def _fresh(self, n: int, nids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Up to `n` new folios of the page allocator as (nid, folio, count), spread evenly."""
        room = [self.allocator.nr_available(self.order, nid) for nid in nids]
        fresh = []
        for nid, take in zip(nids, _spread(n, room, self._next_nid % len(nids)), strict=True):
            if self.is_gigantic:
                runs, _ = self.allocator.alloc_contig(self.order, take, nid)
            else:
                runs, _ = self.allocator.alloc_upto(self.order, take, nid, thisnode=True)
            for pfn, count in runs:
                self._own(nid, pfn >> self.order, count)
                fresh.append((nid, pfn >> self.order, count))
        self._next_nid += sum(count for _, _, count in fresh)
        return fresh

    def _grow(self, n: int, nids: Sequence[int]) -> int:
        """Add up to `n` free folios; returns how many. C: alloc_pool_huge_folio()."""
        grown = 0
        for nid, folio, count in self._fresh(n, nids):
            self._enqueue(nid, folio, count)
            grown += count
        return grown

    def _release(self, nid: int, folio: int, n: int) -> None:
        """Hand folios that are in use or off the free list to the page allocator."""
        node = self.nodes[nid]
        node.owned.remove(folio, folio + n)
        node.nr_huge_pages -= n
        self.allocator.free_run(folio << self.order, n << self.order)

    def _shrink(self, n: int, nids: Sequence[int], *, surplus: bool = False) -> int:
        """Give up to `n` free folios back; returns how many. C: remove_pool_hugetlb_folio()."""
        nodes = [self.nodes[nid] for nid in nids]
        room = [min(node.nr_free, node.surplus) if surplus else node.nr_free for node in nodes]
        shrunk = _spread(n, room, 0)
        for nid, take in zip(nids, shrunk, strict=True):
            node = self.nodes[nid]
            for low, high in _highest(node.free, take):
                node.free.remove(low, high)
                self._release(nid, low, high - low)
            node.nr_free -= take
            node.surplus -= take if surplus else 0
        return sum(shrunk)

    def _dequeue(self, n: int, nid: int) -> Runs:
        """Take `n` free folios, from `nid` first and then from the nodes after it."""
        runs: Runs = []
        nids = list(self.nodes)
        at = nids.index(nid)
        for other in nids[at:] + nids[:at]:
            node = self.nodes[other]
            take = min(n, node.nr_free)
            for low, high in _lowest(node.free, take):
                node.free.remove(low, high)
                runs.append((low << self.order, high - low))
            node.nr_free -= take
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
            if not node.owned.contains(folio, folio + count):
                raise ModelBug(f"folios {folio:#x}+{count:#x} do not belong to the pool")
            if node.free.overlaps(folio, folio + count):
                raise ModelBug(f"double free in folios {folio:#x}+{count:#x}")
            gone = min(count, node.surplus)
            if gone:
                node.surplus -= gone
                self._release(nid, folio, gone)
            self._enqueue(nid, folio + gone, count - gone)

    def _by_node(self, runs: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int, int]]:
        for pfn, n in runs:
            left = n
            for nid in self.nodes:
                for low, high in self.allocator.nodes[nid].spans.within(
                    pfn, pfn + (n << self.order)
                ):
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
                self._enqueue(nid, folio, count)
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
            self._own(nid, folio, count)

    # sysfs.

    def set_max_huge_pages(self, count: int, nid: int | None = None) -> None:
        """Write `nr_hugepages`, for all nodes or one.

        A pool that cannot grow or shrink so far goes as far as it can, without an error.
        C: the function of the same name.
        """
        nids = list(self.nodes) if nid is None else [nid]
        if nid is not None:
            count += self.nr_huge_pages - self.nodes[nid].nr_huge_pages
        # Growing turns surplus pages into persistent ones before it allocates.
        grow = count - self.persistent_huge_pages
        if grow > 0:
            turned = _spread(grow, [self.nodes[other].surplus for other in nids], 0)
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
        for other, take in zip(nids, _spread(rest, room, 0), strict=True):
            self.nodes[other].surplus += take
        self.max_huge_pages = self.persistent_huge_pages

    def sysfs(self) -> dict[str, str]:
        """The files of `hugepages-*kB` with what reading them gives."""
        values = {
            "nr_hugepages": self.nr_huge_pages,
            "nr_overcommit_hugepages": self.nr_overcommit_huge_pages,
            "free_hugepages": self.free_huge_pages,
            "resv_hugepages": self.resv_huge_pages,
            "surplus_hugepages": self.surplus_huge_pages,
        }
        return {name: f"{value}\n" for name, value in values.items()}


class HugetlbState:
    """All pools of one kernel, in the order in which the kernel registers their sizes."""

    __slots__ = ("default_order", "hstates", "warnings")

    def __init__(self, cmdline: str, nids: Iterable[int] = (0,)) -> None:
        nids = tuple(nids)
        request = parse_cmdline(cmdline, frozenset(nids))
        self.default_order = request.default_order
        self.warnings = list(request.warnings)
        self.hstates: dict[int, Hstate] = {}
        for size in request.sizes:
            hstate = Hstate(size.order, nids)
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

    def bootmem_alloc(self, memblock: Memblock, avoid: RangeSet | None = None) -> int:
        """Allocate gigantic pages; returns how many. C: hugetlb_bootmem_alloc().

        `avoid` holds KHO's real scratch in bytes.
        """
        return self._fill(
            (hstate for hstate in self.hstates.values() if hstate.is_gigantic),
            lambda hstate: hstate.bootmem_alloc(memblock, avoid),
        )

    def init(self, allocator: PageAllocator) -> int:
        """Fill the pools; returns pages taken from the page allocator. C: hugetlb_init()."""
        for hstate in self.hstates.values():
            if hstate.is_gigantic:
                hstate.init(allocator)
        return self._fill(
            (hstate for hstate in self.hstates.values() if not hstate.is_gigantic),
            lambda hstate: hstate.init(allocator),
        )

    def _fill(self, hstates: Iterable[Hstate], fill: Callable[[Hstate], int]) -> int:
        total = 0
        for hstate in hstates:
            got = fill(hstate)
            if got < hstate.max_huge_pages:
                self.warnings.append(
                    f"order {hstate.order}: {got} of {hstate.max_huge_pages} huge pages allocated"
                )
                hstate.max_huge_pages = got
            total += got
        return total

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


def _spread(n: int, room: Sequence[int], first: int) -> list[int]:
    """Share `n` out in turn, beginning with index `first`, to each no more than its room."""
    taken = [0] * len(room)
    turns = [*range(first, len(room)), *range(first)]
    while n:
        turns = [at for at in turns if room[at] > taken[at]]
        if not turns:
            break
        share, extra = divmod(n, len(turns))
        for place, at in enumerate(turns):
            take = min(room[at] - taken[at], share + (place < extra))
            taken[at] += take
            n -= take
    return taken


def _lowest(ranges: RangeSet, n: int) -> list[tuple[int, int]]:
    out = []
    for low, high in ranges if n else ():
        take = min(n, high - low)
        out.append((low, low + take))
        n -= take
        if not n:
            break
    return out


def _highest(ranges: RangeSet, n: int) -> list[tuple[int, int]]:
    out = []
    for low, high in reversed(ranges) if n else ():
        take = min(n, high - low)
        out.append((high - take, high))
        n -= take
        if not n:
            break
    return out


def validate_hugetlb(state: HugetlbState) -> None:
    """Counters agree with the folios, promises with what is free, pools with each other.

    Raises:
        ModelBug: they do not.
    """
    seen = RangeSet()
    total = 0
    for order, hstate in state.hstates.items():
        if not 0 <= hstate.resv_huge_pages <= hstate.free_huge_pages:
            raise ModelBug(
                f"order {order}: {hstate.resv_huge_pages} promised, {hstate.free_huge_pages} free"
            )
        for nid, node in hstate.nodes.items():
            _validate_node(node, f"order {order} node {nid}")
            for low, high in node.owned:
                seen.add(low << order, high << order)
                total += (high - low) << order
                if hstate.allocator.any_free(low << order, (high - low) << order):
                    raise ModelBug(f"order {order} node {nid}: a folio is in the page allocator")
    if seen.total != total:
        raise ModelBug("two pools own the same page")


def _validate_node(node: HstateNode, where: str) -> None:
    if (node.owned.total, node.free.total) != (node.nr_huge_pages, node.nr_free):
        raise ModelBug(f"{where}: counters and folios differ")
    if not 0 <= node.surplus <= node.nr_huge_pages:
        raise ModelBug(f"{where}: surplus {node.surplus} of {node.nr_huge_pages}")
    for low, high in node.free:
        if not node.owned.contains(low, high):
            raise ModelBug(f"{where}: free folios {low:#x}-{high:#x} are not its own")
