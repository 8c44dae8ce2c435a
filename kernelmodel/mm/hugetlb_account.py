"""What one file or private mapping of huge pages owes: to its pool, its mount, its tasks' cgroups.

Reproduces the order of checks in alloc_hugetlb_folio(), hugetlb_reserve_pages() and
free_huge_folio() of Linux 7.3's mm/hugetlb.c: cgroup, subpool, pool, and the same backwards.

Happy path: `reserve` indices, `take` folios for them, `give_back` what is dropped.

Unhappy paths: `reserve` is ENOMEM, whoever refuses; `take` returns how many folios are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kernelmodel.errors import NoMemory
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hstate_pool import Runs
from kernelmodel.mm.hugetlb_cgroup import Charges, HugetlbCgroup
from kernelmodel.mm.hugetlb_subpool import HugepageSubpool
from kernelmodel.mm.mempolicy import Placement
from kernelmodel.mm.ranges import RangeSet

__all__ = ["HugetlbAccount"]


class _Paid:
    """Who paid for indices that were promised, for folios, for folios without a promise."""

    __slots__ = ("deferred", "promised", "used")

    def __init__(self, order: int) -> None:
        self.promised = Charges(order, rsvd=True)
        self.used = Charges(order, rsvd=False)
        self.deferred = Charges(order, rsvd=True)


class HugetlbAccount:
    """Counts by page index; the indices themselves are the file's."""

    __slots__ = ("_paid", "hstate", "subpool")

    def __init__(self, hstate: Hstate, subpool: HugepageSubpool | None = None) -> None:
        self.hstate = hstate
        self.subpool = subpool
        #: None until a cgroup pays for the first time: most files have none.
        self._paid: _Paid | None = None

    def _paid_by_cgroups(self) -> _Paid:
        if self._paid is None:
            self._paid = _Paid(self.hstate.order)
        return self._paid

    def reserve(self, gaps: Sequence[tuple[int, int]], place: Placement) -> None:
        """Promise folios to ranges of indices. C: hugetlb_reserve_pages().

        Raises:
            NoMemory: cgroup, mount or pool refuse; nothing is changed.
        """
        n = 0
        for low, high in gaps:
            n += high - low
        order, cgroup, subpool = self.hstate.order, place.cgroup, self.subpool
        if cgroup is not None:
            cgroup.charge(order, n, rsvd=True)
        try:
            needed = n if subpool is None else subpool.get(n)
            try:
                self.hstate.reserve(needed, place)
            except NoMemory:
                if subpool is not None:
                    subpool.undo_get(n, needed)
                raise
        except NoMemory:
            if cgroup is not None:
                cgroup.uncharge(order, n, rsvd=True)
            raise
        if cgroup is not None:
            for low, high in gaps:
                self._paid_by_cgroups().promised.note(low, high, cgroup)

    def take(
        self, index: int, n: int, nids: list[int], place: Placement, *, promised: bool
    ) -> tuple[Runs, int]:
        """Folios for `n` indices from `index` on; returns (runs, folios missing).

        As `n` faults in turn would have it. C: alloc_hugetlb_folio().
        """
        if promised and place.cgroup is None:  # the pool alone is asked, for what it promised
            return self.hstate.alloc_upto(n, nids, reserved=True)
        room = n if promised or self.subpool is None else self.subpool.room(n)
        wanted = self._charge(room, place.cgroup, promised=promised)
        own = wanted
        if not promised:
            own = 0 if self.subpool is None else wanted - self.subpool.get(wanted)
        runs, missing = self.hstate.alloc_upto(own, nids, reserved=True)
        unused, rest = missing, wanted - own
        if not missing:
            more, missing = self.hstate.alloc_upto(rest, nids)
            runs += more
        else:
            missing += rest
        self._refund(missing, unused, place.cgroup, promised=promised)
        if place.cgroup is not None and wanted < room and not missing:
            place.cgroup.refused(self.hstate.order)  # of the next one
        if not promised and self.subpool is not None and wanted - missing < n:
            self.subpool.fail_get()
        end = index + wanted - missing
        if place.cgroup is not None:
            paid = self._paid_by_cgroups()
            paid.used.note(index, end, place.cgroup)
            if not promised:
                paid.deferred.note(index, end, place.cgroup)
        return runs, n - wanted + missing

    def _charge(self, n: int, cgroup: HugetlbCgroup | None, *, promised: bool) -> int:
        """How many of `n` folios the cgroup allows; it has paid for them."""
        if cgroup is None:
            return n
        order = self.hstate.order
        if promised:
            return cgroup.charge_upto(order, n)
        n = cgroup.charge_upto(order, n, rsvd=True)
        got = cgroup.charge_upto(order, n)
        cgroup.uncharge(order, n - got, rsvd=True)
        return got

    def _refund(self, n: int, own: int, cgroup: HugetlbCgroup | None, *, promised: bool) -> None:
        """`n` of the folios paid for could not be had, `own` of them promised to the mount."""
        if not promised and self.subpool is not None:
            self.subpool.undo_get(n, n - own)
        if cgroup is not None:
            cgroup.uncharge(self.hstate.order, n)
            if not promised:
                cgroup.uncharge(self.hstate.order, n, rsvd=True)

    def give_back(self, runs: Runs, indices: RangeSet) -> None:
        """Folios are dropped. C: free_huge_folio()."""
        if self._paid is not None:
            for low, high in indices:
                self._paid.used.uncharge(low, high)
                self._paid.deferred.uncharge(low, high)
        if self.subpool is not None:
            self.hstate.resv_huge_pages += self.subpool.put_folios(indices.total)
        self.hstate.free_folios(runs)

    def forget(self, ranges: Iterable[tuple[int, int]], nr_folios: int) -> None:
        """Indices leave the reservation map, `nr_folios` of them with their folio.

        C: hugetlb_unreserve_pages().
        """
        total = 0
        for low, high in ranges:
            total += high - low
            if self._paid is not None:
                self._paid.promised.uncharge(low, high)
        unused = total - nr_folios
        self.hstate.unreserve(unused if self.subpool is None else self.subpool.put(unused))
