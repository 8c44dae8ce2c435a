"""The pool of one huge page size: what is free, what is promised, what is surplus.

Reproduces Linux 7.3's mm/hugetlb.c for one struct hstate, over the folios of `HstatePool`. Pages
come by writing `nr_hugepages`, as surplus when `nr_overcommit_hugepages` allows it, or out of a
handover. A free page may be promised (`resv_huge_pages`); those who hold no promise can have only
what is free beyond all promises.

Happy path: `alloc_upto` / `free_folios`, `reserve` / `unreserve`, `set_max_huge_pages`.

Unhappy paths: folios that cannot be had are counted as missing, for their user to say with which
errno; a promise that cannot be made is ENOMEM; a pool shrunk below what is in use keeps those pages
as surplus and drops them when they are freed.
Whoever keeps the door (`hstate_door`) can hold a pool as it is.

Promises are for the whole pool: a task that may use some nodes only can find them empty, and is
refused, although the pool has what it was promised. They exceed the free pages only where a mount
with `min_size` got its pages as surplus ones and frees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kernelmodel.errors import Busy, ModelBug, NoMemory
from kernelmodel.mm.hstate_door import PoolDoor
from kernelmodel.mm.hstate_pool import Fresh, HstatePool, Runs
from kernelmodel.mm.hugetlb_cma import HugetlbCma
from kernelmodel.mm.hugetlb_vmemmap import HugetlbVmemmap
from kernelmodel.mm.mempolicy import Placement, ring

__all__ = ["Hstate"]


class Hstate(HstatePool):
    """The pool of one huge page size. C: struct hstate."""

    __slots__ = (
        "min_size_mounts",
        "nr_overcommit_huge_pages",
        "resv_huge_pages",
        "took_promised",
    )

    def __init__(
        self,
        order: int,
        nids: Iterable[int],
        door: PoolDoor,
        vmemmap: HugetlbVmemmap,
        cma: HugetlbCma,
    ) -> None:
        super().__init__(order, nids, door, vmemmap, cma)
        self.nr_overcommit_huge_pages = 0
        self.resv_huge_pages = 0
        #: Mounts that hold promises of their own.
        self.min_size_mounts = 0
        #: Whether promised pages were ever demoted.
        self.took_promised = False

    # Counters.

    @property
    def nr_huge_pages(self) -> int:
        """Pages in the pool, used, free and surplus."""
        total = 0
        for node in self.nodes.values():
            total += node.nr_huge_pages
        return total

    @property
    def free_huge_pages(self) -> int:
        """Pages that nobody uses; some of them may be promised."""
        total = 0
        for node in self.nodes.values():
            total += node.nr_free
        return total

    @property
    def surplus_huge_pages(self) -> int:
        """Pages beyond the pool's set size, which go when they are freed."""
        total = 0
        for node in self.nodes.values():
            total += node.surplus
        return total

    @property
    def persistent_huge_pages(self) -> int:
        """Pages of the pool's set size: all but surplus ones."""
        return self.nr_huge_pages - self.surplus_huge_pages

    @property
    def available_huge_pages(self) -> int:
        """Free pages that are not promised.

        All of them where promises are more than that: the kernel's difference has no sign.
        """
        free, resv = self.free_huge_pages, self.resv_huge_pages
        return free - resv if resv <= free else free

    # What users of huge pages call.

    def alloc_upto(
        self, n: int, where: int | Sequence[int], *, reserved: bool = False
    ) -> tuple[Runs, int]:
        """Up to `n` folios for use; returns (runs, folios missing). C: alloc_hugetlb_folio().

        `where` is a node, from which the search goes round, or all nodes to try in their order.
        With `reserved` the caller uses up promises made to it before; it misses none if it may
        have pages of every node.
        """
        nids = ring(list(self.nodes), where) if isinstance(where, int) else where
        if reserved:
            if n > self.resv_huge_pages:
                raise ModelBug(f"{n} promises used of {self.resv_huge_pages} made")
            if nids and n <= self.nodes[nids[0]].nr_free:  # the first node has all, as most often
                self.resv_huge_pages -= n
                return [
                    (folio << self.order, count) for folio, count in self.nodes[nids[0]].dequeue(n)
                ], 0
        take = min(n, sum(self.nodes[nid].nr_free for nid in nids))
        if not reserved:
            take = min(take, max(0, self.available_huge_pages))
        runs = self.dequeue(take, nids)
        extra = self._alloc_surplus(n - take, nids)
        runs += [(folio << self.order, count) for _, folio, count in extra]
        missing = n - take - sum(count for _, _, count in extra)
        if reserved:
            self.resv_huge_pages -= n - missing
        return runs, missing

    def free_folios(self, runs: Iterable[tuple[int, int]]) -> None:
        """Take folios back from their user; surplus ones leave the pool. C: free_huge_folio()."""
        for nid, folio, count in [part for run in runs for part in self.by_node(*run)]:
            node = self.nodes[nid]
            node.check_in_use(folio, count)
            surplus = self.door.remove(self.order, min(count, node.surplus), surplus=True)
            self._free(nid, folio, count, surplus)

    def _free(self, nid: int, folio: int, n: int, surplus: int) -> None:
        """Folios off the free list: the first `surplus` leave, the others become free."""
        node = self.nodes[nid]
        node.surplus -= surplus
        gone = self.release(nid, folio, surplus) if surplus else 0
        node.surplus += surplus - gone  # no struct pages to leave with
        node.enqueue(folio + gone, n - gone)

    def _alloc_surplus(self, n: int, nids: Sequence[int]) -> Fresh:
        """Up to `n` folios beyond the pool's size. C: alloc_surplus_hugetlb_folio()."""
        n = min(n, self.nr_overcommit_huge_pages - self.surplus_huge_pages)
        if n <= 0:
            return []
        fresh = self.fresh(self.door.add(self.order, n, surplus=True), nids)
        for owner, _, count in fresh:
            self.nodes[owner].surplus += count
        return fresh

    def reserve(self, n: int, place: Placement | None = None) -> None:
        """Promise `n` more folios, adding surplus ones if need be. C: hugetlb_acct_memory().

        Raises:
            NoMemory: neither the pool nor overcommit has them, or the task's nodes have too few;
            nothing is changed.
        """
        place = Placement() if place is None else place
        needed = self.resv_huge_pages + n - self.free_huge_pages
        if n and needed > 0:
            nids = place.reservable(ring(list(self.nodes), place.nid))
            fresh = self._alloc_surplus(needed, nids)
            if sum(count for _, _, count in fresh) < needed:
                for nid, folio, count in fresh:
                    self._free(nid, folio, count, count)
                raise NoMemory("too few huge pages to reserve", wanted=n, missing=needed)
            for nid, folio, count in fresh:
                self.nodes[nid].enqueue(folio, count)
        self.resv_huge_pages += n
        nids, room = place.reservable(list(self.nodes)), 0
        for nid in nids:
            room += self.nodes[nid].nr_free
        if n > room:
            self.unreserve(n)
            nids = place.reservable(ring(list(self.nodes), place.nid))
            raise NoMemory("too few huge pages on the task's nodes", wanted=n, nodes=nids)

    def unreserve(self, n: int) -> None:
        """Take `n` promises back; surplus pages go. C: return_unused_surplus_pages()."""
        if n > self.resv_huge_pages:
            raise ModelBug(f"{n} promises returned of {self.resv_huge_pages} made")
        self.resv_huge_pages -= n
        surplus = min(n, self.surplus_huge_pages)
        if surplus:
            self._shrink_surplus(surplus)

    def _shrink_surplus(self, n: int) -> None:
        n = self.door.remove(self.order, n, surplus=True)
        room = [min(node.nr_free, node.surplus) for node in self.nodes.values()]
        takes = self.free_turns.share(n, list(self.nodes), room)
        for nid, take in zip(self.nodes, takes, strict=True):
            for folio, count in self.nodes[nid].dequeue(take, highest=True):
                self._free(nid, folio, count, count)

    def trim_surplus(self) -> None:
        """Let free surplus pages go that nobody was promised: the door was shut when they came."""
        self._shrink_surplus(min(self.surplus_huge_pages, max(0, self.available_huge_pages)))

    def add_preserved(self, runs: Iterable[tuple[int, int]]) -> None:
        """Folios that come back from a handover enter the books as in use, and the pool's size."""
        for pfn, n in runs:
            for nid, folio, count in self.by_node(pfn, n):
                self.own(nid, folio, count)
            self.max_huge_pages += n

    def sysfs(self, nid: int | None = None) -> dict[str, str]:
        """The counters of `hugepages-*kB`, in all or below a node's directory, and their text."""
        nodes = list(self.nodes.values()) if nid is None else [self.nodes[nid]]
        values = {
            "nr_hugepages": sum(node.nr_huge_pages for node in nodes),
            "free_hugepages": sum(node.nr_free for node in nodes),
            "surplus_hugepages": sum(node.surplus for node in nodes),
        }
        if nid is None:
            values["nr_hugepages_mempolicy"] = values["nr_hugepages"]
            values["nr_overcommit_hugepages"] = self.nr_overcommit_huge_pages
            values["resv_hugepages"] = self.resv_huge_pages
        return {name: f"{value}\n" for name, value in values.items()}

    # Resizing.

    def set_max_huge_pages(
        self, count: int, nid: int | None = None, nids: Sequence[int] | None = None
    ) -> None:
        """Write `nr_hugepages`: for all nodes, for one, or for those that a policy allows.

        A pool that cannot grow or shrink so far goes as far as it can, without an error. Whoever
        keeps the door may refuse with one.
        """
        if nid is not None:
            nids = [nid]
            # the others keep their persistent pages
            node = self.nodes[nid]
            count += self.persistent_huge_pages - (node.nr_huge_pages - node.surplus)
        nids = list(self.nodes) if nids is None else nids
        # Growing turns surplus pages into persistent ones before it allocates.
        grow = count - self.persistent_huge_pages
        if grow > 0:
            surplus = [self.nodes[other].surplus for other in nids]
            turned = self.alloc_turns.share(grow, nids, surplus)
            enter = self.door.add(self.order, grow - sum(turned))
            for other, take in zip(nids, turned, strict=True):
                self.nodes[other].surplus -= take
            self.grow(enter, nids, self.alloc_turns)
        # Whoever keeps the door decides over the whole wish to shrink.
        fewer = max(0, self.persistent_huge_pages - count)
        count += fewer - self.door.remove(self.order, fewer)
        # Shrinking leaves what is in use or promised, counted among the persistent pages.
        free = self.free_huge_pages
        if free > self.persistent_huge_pages:
            free = max(0, free - self.surplus_huge_pages)
        floor = max(count, self.resv_huge_pages + self.persistent_huge_pages - free)
        self._shrink(max(0, self.persistent_huge_pages - floor), nids)
        # What stays beyond the new size becomes surplus, whatever overcommit says.
        rest = max(0, self.persistent_huge_pages - count)
        room = [self.nodes[other].nr_huge_pages - self.nodes[other].surplus for other in nids]
        for other, take in zip(nids, self.free_turns.share(rest, nids, room), strict=True):
            self.nodes[other].surplus += take
        self.max_huge_pages = self.persistent_huge_pages

    def _shrink(self, n: int, nids: Sequence[int]) -> None:
        """Give up to `n` free folios back. C: remove_pool_hugetlb_folio()."""
        room = [self.nodes[nid].nr_free for nid in nids]
        takes = self.free_turns.share(n, nids, room)
        for nid, take in zip(nids, takes, strict=True):
            for folio, count in self.nodes[nid].dequeue(take, highest=True):
                gone = self.release(nid, folio, count)
                self.nodes[nid].enqueue(folio + gone, count - gone)
                self.nodes[nid].surplus += count - gone

    def demote(self, n: int, into: Hstate, nid: int | None = None) -> int:
        """Split up to `n` free folios of a node or all into those of a smaller pool; how many.

        If promises are just as many as the free folios there, nothing is done; otherwise promised
        folios go as well, and whoever relies on one gets a SIGBUS. Linux 7.3 does so, seen on the
        running kernel. C: demote_store(), demote_pool_huge_page(). The door's keeper may refuse.

        Raises:
            Busy: there are fewer, and promises are not as many as are left; the others went.
        """
        nids = [other for other in self.nodes if nid in (None, other)]
        done = 0
        while done < n:
            room = [self.nodes[other].nr_free for other in nids]
            if sum(room) == self.resv_huge_pages:
                break
            if not sum(room):
                raise Busy("no free huge page to demote", order=self.order, nid=nid)
            most = self.door.remove(self.order, min(n - done, sum(room)))
            most = self.door.add(into.order, most)
            gone = 0
            for other, take in zip(nids, self.free_turns.fill(most, nids, room), strict=True):
                gone += self._demote_on(other, take, into)
            if not gone:
                break
            done += gone
        return done

    def _demote_on(self, nid: int, n: int, into: Hstate) -> int:
        """Split `n` free folios of a node; how many that was. C: demote_free_hugetlb_folios()."""
        shift, done = self.order - into.order, 0
        for folio, count in self.nodes[nid].dequeue(n, highest=True):
            gone = self.restore_vmemmap(nid, folio, count)
            self.nodes[nid].disown(folio, gone)
            self.nodes[nid].enqueue(folio + gone, count - gone)
            if gone:
                into.own(nid, folio << shift, gone << shift)
                into.nodes[nid].enqueue(folio << shift, gone << shift)
                done += gone
        self.max_huge_pages -= done
        into.max_huge_pages += done << shift
        self.took_promised |= self.free_huge_pages < self.resv_huge_pages
        return done

    def dissolve(self, pfn: int) -> None:
        """Give one free folio to the page allocator. C: dissolve_free_hugetlb_folio().

        Raises:
            Busy: it is in use, or every free one is promised. NoMemory: its struct pages cannot
            be had; it stays, as a surplus page.
        """
        for nid, folio, _ in self.by_node(pfn, 1):
            node = self.nodes[nid]
            if folio not in node.free or self.available_huge_pages <= 0:
                raise Busy("huge page is in use or promised", pfn=pfn)
            if not self.door.remove(self.order, 1):
                raise Busy("the pool may not shrink", pfn=pfn)
            node.take(folio)
            if not self.release(nid, folio, 1):
                node.enqueue(folio, 1)
                node.surplus += 1
                raise NoMemory("no memory for struct pages", pfn=pfn)
            self.max_huge_pages -= 1
