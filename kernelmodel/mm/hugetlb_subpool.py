"""A mount's share of a pool of huge pages: `size=` limits it, `min_size=` assures it.

Reproduces struct hugepage_subpool of Linux 7.3's mm/hugetlb.c, as seen on the running kernel.
Files of a mount ask it before they ask the pool: how many of the pages they want have to be had
beyond those that the mount was promised when it was made.

Unhappy paths: beyond `size` ENOMEM (a promise) or ENOSPC (a page). A fault that the pool refuses,
though the mount has room, leaves the mount with a page less for ever; with `size` and `min_size`
its promises then outlive it. Linux 7.3 does so, seen on the running kernel.
"""

from __future__ import annotations

from kernelmodel.errors import NoMemory
from kernelmodel.mm.hstate import Hstate

__all__ = ["HugepageSubpool"]


class HugepageSubpool:
    """C: struct hugepage_subpool. Counts huge pages; a limit of None is none."""

    __slots__ = ("hstate", "max_hpages", "min_hpages", "rsv_hpages", "used_hpages")

    def __init__(self, hstate: Hstate, max_hpages: int | None, min_hpages: int | None) -> None:
        """C: hugepage_new_subpool().

        Raises:
            NoMemory: the pool cannot promise `min_hpages`.
        """
        hstate.reserve(min_hpages or 0)
        self.hstate = hstate
        self.max_hpages = max_hpages
        self.min_hpages = min_hpages
        self.used_hpages = 0
        #: What is left of the mount's own promises.
        self.rsv_hpages = min_hpages or 0
        hstate.min_size_mounts += bool(min_hpages)

    def get(self, n: int) -> int:
        """Count `n` pages in; how many of them the pool must see to. C: hugepage_subpool_get_pages.

        Raises:
            NoMemory: more than `size`; nothing is changed.
        """
        if self.room(n) < n:
            raise NoMemory("mount is full", wanted=n, used=self.used_hpages, limit=self.max_hpages)
        self._count(n)
        own = min(n, self.rsv_hpages)
        self.rsv_hpages -= own
        return n - own

    def _count(self, n: int) -> None:
        """Pages are counted only against a limit."""
        if self.max_hpages is not None:
            self.used_hpages += n

    def undo_get(self, n: int, from_pool: int) -> None:
        """A `get` of `n` pages, `from_pool` of which the pool was to see to, came to nothing."""
        self._count(-n)
        self.rsv_hpages += n - from_pool

    def fail_get(self) -> None:
        """A fault gets no page: what that leaves behind. C: alloc_hugetlb_folio(), out_subpool_put.

        Only a page of the mount's own promises is counted out again.
        """
        if self.room(1) and not self.rsv_hpages:
            self._count(1)

    def room(self, n: int) -> int:
        """How many of `n` pages `size` lets in."""
        return n if self.max_hpages is None else min(n, self.max_hpages - self.used_hpages)

    def put(self, n: int) -> int:
        """Count `n` pages out; how many promises the pool gets back.

        Without `size` the mount takes promises back as long as it misses any, however many pages
        its files have. C: hugepage_subpool_put_pages().
        """
        self._count(-n)
        if self.min_hpages is None or self.used_hpages >= self.min_hpages:
            return n
        kept = min(n, max(0, self.min_hpages - self.rsv_hpages))
        self.rsv_hpages += kept
        return n - kept

    def put_folios(self, n: int) -> int:
        """Count `n` freed folios out, one by one; for how many the mount keeps a promise."""
        return sum(self.put(1) == 0 for _ in range(n))

    def close(self) -> None:
        """The mount and its last file are gone. C: unlock_or_release_subpool()."""
        if self.used_hpages if self.max_hpages is not None else self.rsv_hpages != self.min_hpages:
            return  # pages that it counts by mistake keep it
        self.hstate.unreserve(self.min_hpages or 0)
        self.hstate.min_size_mounts -= bool(self.min_hpages)
