"""Files of huge pages, and mappings of them: who was promised what.

Reproduces the accounting of Linux 7.3's fs/hugetlbfs/inode.c and mm/hugetlb.c for memfds
(MFD_HUGETLB), files of a mount and private anonymous mappings, as recorded from the running kernel.

A file keeps two things by page index: the folios that it has, and its *reservation map*, the
indices that were promised a folio or have one. Mapping a file promises folios to every index of
the mapping that is not in the map; a fault or `fallocate` on a promised index uses the promise
up, on another index it takes what is free beyond all promises, or a surplus page. A private
mapping is promised all its pages when it is made and notes which promises it has used.

Unhappy paths: a promise that cannot be made is ENOMEM from mmap, a page that cannot be had is
ENOSPC from `fallocate` and a SIGBUS on touch, a size that is no multiple is EINVAL, and while
`frozen` (preserved for a live update) the layout answers EPERM.

All work goes by runs: populating a VM of 64 GiB is a handful of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kernelmodel.errors import (
    BadAddress,
    InvalidArgument,
    ModelBug,
    NoSpace,
    NotPermitted,
    NotSupported,
)
from kernelmodel.fs import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hstate_pool import Runs
from kernelmodel.mm.hugetlb_account import HugetlbAccount
from kernelmodel.mm.hugetlb_folio_map import HugetlbFolioMap
from kernelmodel.mm.hugetlb_subpool import HugepageSubpool
from kernelmodel.mm.mempolicy import Placement, placement
from kernelmodel.mm.ranges import RangeSet

__all__ = [
    "HugetlbInode",
    "HugetlbMapping",
    "HugetlbPrivateMapping",
    "validate_hugetlb_inode",
]

_FALLOC_MODES: Final = (0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)
_LAST: Final = 1 << 64


class HugetlbInode:
    """A huge page file. Born with one reference; its folios go with the last one.

    C: struct hugetlbfs_inode_info with its inode's resv_map.
    """

    __slots__ = (
        "_account",
        "_on_evict",
        "folios",
        "frozen",
        "hstate",
        "mappings",
        "page_size",
        "refs",
        "resv",
        "size",
    )

    def __init__(
        self,
        hstate: Hstate,
        subpool: HugepageSubpool | None = None,
        on_evict: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_evict` is called when the inode is gone."""
        self._on_evict = on_evict
        self.hstate = hstate
        #: Bytes in one huge page.
        self.page_size = 1 << hstate.order + PAGE_SHIFT
        self._account = HugetlbAccount(hstate, subpool)
        #: Bytes. Faults reach whole pages below it.
        self.size = 0
        #: Page indices that were promised a folio or have one.
        self.resv = RangeSet()
        self.folios = HugetlbFolioMap(hstate.order)
        #: Layout is preserved: no change of size, no holes, no new pages by `fallocate`.
        self.frozen = False
        #: Through how many shared mappings it can be written. C: i_mmap_writable.
        self.mappings = 0
        self.refs = 1

    def get(self) -> None:
        """One more descriptor or mapping refers to the file."""
        self.refs += 1

    def put(self) -> None:
        """One less; the last one drops all folios and promises. C: hugetlbfs_evict_inode()."""
        self.refs -= 1
        if self.refs < 0:
            raise ModelBug("a huge page file is dropped twice")
        if self.refs == 0:
            self._drop_from(0)
            self._on_evict()

    def ftruncate(self, size: int) -> None:
        """Set the size in bytes; pages and promises from there on go. C: hugetlb_vmtruncate().

        Raises:
            InvalidArgument: no multiple of the page size.
            NotPermitted: the file is frozen and its size would change.
        """
        if size % self.page_size or size < 0:
            raise InvalidArgument("size is no multiple of the huge page size", size=size)
        if self.frozen and size != self.size:
            raise NotPermitted("file is frozen", size=size)
        self.size = size
        self._drop_from(size // self.page_size)

    def _drop_from(self, start: int) -> None:
        promised = self.resv.within(start, _LAST)
        if not promised:  # then there are no folios either, as in a file that grows
            return
        runs, dropped = self.folios.take(start, _LAST)
        self._account.give_back(runs, dropped)
        self.resv.remove(start, _LAST)
        self._account.forget(promised, dropped.total)

    def fallocate(self, mode: int, offset: int, length: int, where: int | Placement = 0) -> None:
        """Allocate or punch, in bytes. C: hugetlbfs_fallocate().

        Raises:
            NotSupported: a mode that huge page files do not have.
            InvalidArgument: an empty or negative range.
            NotPermitted: the file is frozen.
            NoSpace: pages ran out; those allocated so far stay, the size does not change.
        """
        if offset < 0 or length <= 0:
            raise InvalidArgument("fallocate range", offset=offset, length=length)
        if mode not in _FALLOC_MODES:
            raise NotSupported("fallocate mode", mode=mode)
        if self.frozen:
            raise NotPermitted("file is frozen")
        end = offset + length
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._punch_hole(-(-offset // self.page_size), end // self.page_size)
            return
        first, last = offset // self.page_size, -(-end // self.page_size)
        done = self.populate(first, last, where)
        if done < last:
            raise NoSpace("huge page pool exhausted", index=done)
        if not mode & FALLOC_FL_KEEP_SIZE:
            self.size = max(self.size, end)

    def _punch_hole(self, start: int, end: int) -> None:
        """Free the pages of a hole; promises without a page stay. C: hugetlbfs_punch_hole()."""
        runs, indices = self.folios.take(start, end)
        for low, high in indices:
            self.resv.remove(low, high)
        self._account.give_back(runs, indices)
        self._account.forget(indices, indices.total)

    def populate(self, start: int, end: int, where: int | Placement = 0) -> int:
        """Give every index of [start, end) a folio; returns the first index left without.

        Just what a fault on each index in turn would do, of a task on the node `where` or with
        that placement. C: alloc_hugetlb_folio().
        """
        place = placement(where)
        for low, high in self.folios.gaps(start, end):
            parts = [(low, high, True)]  # as in a file that is mapped before it is touched
            if not self.resv.contains(low, high):
                parts = _by_promise(self.resv, low, high)
            for first, last, promised in parts:
                at = self._fill(first, last, place, promised=promised)
                if at < last:
                    return at
        return end

    def _fill(self, first: int, last: int, place: Placement, *, promised: bool) -> int:
        """Folios for indices that have none; the first index left without."""
        at = first
        for stop, nids in place.orders(first, last, list(self.hstate.nodes)):
            runs, missing = self._account.take(at, stop - at, nids, place, promised=promised)
            self.folios.put(at, runs)
            if not promised:
                self.resv.add(at, stop - missing)
            if missing:
                return stop - missing
            at = stop
        return at

    def reserve(self, start: int, end: int, where: int | Placement = 0) -> None:
        """Promise folios to the indices that have no promise. C: hugetlb_reserve_pages().

        Raises:
            NoMemory: they cannot be promised; nothing is changed.
        """
        self._account.reserve(self.resv.gaps(start, end), placement(where))
        self.resv.add(start, end)

    def add_folios(self, index: int, runs: Runs) -> None:
        """Put folios in that came back from a handover and are used in the pool's books."""
        self.resv.add(index, self.folios.put(index, runs))

    def mmap(
        self, start: int, nr: int, where: int | Placement = 0, *, noreserve: bool = False
    ) -> HugetlbMapping:
        """Map `nr` pages from page `start` on, shared and writable. C: hugetlbfs_file_mmap().

        Such a mapping extends the file when it reaches beyond its end.

        Raises:
            InvalidArgument: an empty mapping.
            NoMemory: the pages cannot be promised.
        """
        if start < 0 or nr <= 0:
            raise InvalidArgument("mapping", start=start, nr=nr)
        if not noreserve:
            self.reserve(start, start + nr, where)
        self.size = max(self.size, (start + nr) * self.page_size)
        return HugetlbMapping(self, start, nr)


class HugetlbMapping:
    """A shared mapping of a huge page file, which it keeps alive."""

    __slots__ = ("inode", "nr", "start")

    def __init__(self, inode: HugetlbInode, start: int, nr: int) -> None:
        inode.get()
        inode.mappings += 1
        self.inode = inode
        self.start = start
        self.nr = nr

    def touch(self, page: int, nr: int, where: int | Placement = 0) -> int:
        """Write to pages one after the other; returns how many before a SIGBUS (or all)."""
        _check_inside(page, nr, self.nr)
        inode, first = self.inode, self.start + page
        last, end = first + nr, inode.size // inode.page_size
        at = inode.populate(first, min(last, end), where) if first < end else first
        if end <= at < last:  # no page is made there, but one that `fallocate` made is reached
            at = next((low for low, _ in inode.folios.gaps(at, last)), last)
        return at - first

    def munmap(self) -> None:
        """Unmap. Promises stay with the file."""
        self.inode.mappings -= 1
        self.inode.put()


class HugetlbPrivateMapping:
    """A private anonymous mapping of huge pages (MAP_HUGETLB)."""

    __slots__ = ("_account", "folios", "hstate", "nr", "reserved", "used")

    def __init__(
        self, hstate: Hstate, nr: int, where: int | Placement = 0, *, noreserve: bool = False
    ) -> None:
        """Map `nr` pages.

        Raises:
            InvalidArgument: an empty mapping.
            NoMemory: the pages cannot be promised.
        """
        if nr <= 0:
            raise InvalidArgument("mapping", nr=nr)
        self._account = HugetlbAccount(hstate)
        if not noreserve:
            self._account.reserve([(0, nr)], placement(where))
        self.hstate = hstate
        self.nr = nr
        #: Whether promises were made, and the indices whose promise is used up.
        self.reserved = not noreserve
        self.used = RangeSet()
        self.folios = HugetlbFolioMap(hstate.order)

    def touch(self, page: int, nr: int, where: int | Placement = 0) -> int:
        """Write to pages one after the other; returns how many before a SIGBUS (or all)."""
        _check_inside(page, nr, self.nr)
        place, nids = placement(where), list(self.hstate.nodes)
        for low, high in self.folios.gaps(page, page + nr):
            at = low
            for stop, order in place.orders(low, high, nids):
                n = stop - at
                runs, missing = self._account.take(at, n, order, place, promised=self.reserved)
                self.folios.put(at, runs)
                self.used.add(at, stop - missing)
                if missing:
                    return stop - missing - page
                at = stop
        return nr

    def munmap(self) -> None:
        """Free the pages, then give back the promises never used. C: hugetlb_vm_op_close()."""
        runs, indices = self.folios.take(0, self.nr)
        self._account.give_back(runs, indices)
        if self.reserved:
            self._account.forget([(0, self.nr)], self.used.total)


def _check_inside(page: int, nr: int, mapped: int) -> None:
    if page < 0 or nr < 0 or page + nr > mapped:
        raise BadAddress("beyond the mapping", page=page, nr=nr, mapped=mapped)


def _by_promise(resv: RangeSet, start: int, end: int) -> list[tuple[int, int, bool]]:
    """Cut [start, end) into parts that have a promise and parts that have none."""
    parts = [(low, high, True) for low, high in resv.within(start, end)]
    parts += [(low, high, False) for low, high in resv.gaps(start, end)]
    return sorted(parts)


def validate_hugetlb_inode(inode: HugetlbInode) -> None:
    """Every page that the file has is in its reservation map and in use in the pool.

    Raises:
        ModelBug: it is not.
    """
    total = 0
    for index, pfn, n in inode.folios.runs():
        total += n
        if not inode.resv.contains(index, index + n):
            raise ModelBug(f"pages {index}+{n} are not in the reservation map")
        folio = pfn >> inode.hstate.order
        for node in inode.hstate.nodes.values():
            if node.free.overlaps(folio, folio + n):
                raise ModelBug(f"pages {index}+{n} are free in the pool")
    if total != inode.folios.total:
        raise ModelBug(f"{inode.folios.total} pages counted, {total} held")
