"""HVO: huge pages that do without most of their struct pages.

Reproduces the accounting of Linux 7.3's mm/hugetlb_vmemmap.c, as seen on the running kernel. The
struct pages of a huge page fill 8 frames (2 MiB) or 4096 (1 GiB), of which all but the first say
the same. With `hugetlb_free_vmemmap=on`, or once `vm.hugetlb_optimize_vmemmap` is 1, a page that
enters a pool gets one new frame for its first struct pages and gives all its frames to the page
allocator; before it can leave, it must have the others back.

Gigantic pages of boot never had the frames: they are known before the memory map is made.

Happy path: `optimize` when folios enter, `restore` before they leave.

Unhappy paths: a folio for whose new frame there is no memory stays as it is; a folio whose frames
cannot be had again cannot leave its pool.

Simplification: the frames of a node's memory map are interchangeable. Only their numbers show it.
"""

from __future__ import annotations

from typing import Final

from kernelmodel.errors import ModelBug
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.ranges import RangeSet

__all__ = ["STRUCT_PAGES_PER_FRAME", "HugetlbVmemmap", "vmemmap_frames"]

#: struct page has 64 bytes.
STRUCT_PAGES_PER_FRAME: Final = 64


def vmemmap_frames(order: int) -> int:
    """Frames that the struct pages of one folio fill; 0 if they fill none whole."""
    return (1 << order) // STRUCT_PAGES_PER_FRAME


class HugetlbVmemmap:
    """Frames of the memory map that huge pages gave up, on one kernel."""

    __slots__ = ("_added", "_home", "enabled", "extra", "moved", "released")

    def __init__(self, *, enabled: bool) -> None:
        #: vm.hugetlb_optimize_vmemmap.
        self.enabled = enabled
        #: The memory map's own frames by node, as boot allocated them; those gone from it.
        self._home: dict[int, RangeSet] = {}
        #: What boot allocated and nobody looked at yet: (node, first frame, frames).
        self._added: list[tuple[int, int, int]] = []
        self.released = RangeSet()
        #: Frames of the page allocator that hold struct pages now.
        self.extra = RangeSet()
        #: Page frames (of memory, not of its map) whose struct pages left their first place.
        self.moved = RangeSet()

    def add_home(self, nid: int, pfn: int, nr: int) -> None:
        """Frames that hold a node's memory map from boot on."""
        self._added.append((nid, pfn, nr))

    def _home_of(self, nid: int) -> RangeSet:
        for owner, pfn, nr in self._added:
            if owner not in self._home:
                self._home[owner] = RangeSet()
            self._home[owner].add(pfn, pfn + nr)
        self._added.clear()
        return self._home.get(nid, RangeSet())

    def never_had(self, pfn: int, nr_pages: int) -> None:
        """Page frames whose struct pages were left out of the memory map at boot."""
        self.moved.add(pfn, pfn + nr_pages)

    def optimize(self, allocator: PageAllocator, nid: int, pfn: int, n: int, order: int) -> int:
        """Free the map of `n` adjacent folios; how many of them could. C: vmemmap_optimize."""
        frames = vmemmap_frames(order)
        if not self.enabled or frames < 2:  # nothing to share below two frames
            return 0
        heads, missing = allocator.alloc_upto(0, n, nid, thisnode=True)
        done = n - missing
        for start, end in ((low, high) for low, high in self._pieces(pfn, done << order)):
            self._free(allocator, nid, (end - start >> order) * frames, (start, end))
        for head, count in heads:
            self.extra.add(head, head + count)
        return done

    def _pieces(self, pfn: int, nr_pages: int) -> list[tuple[int, int]]:
        end = pfn + nr_pages
        return [*self.moved.within(pfn, end), *self.moved.gaps(pfn, end)]

    def _free(self, allocator: PageAllocator, nid: int, nr: int, folios: tuple[int, int]) -> None:
        """Give up the frames behind some folios, from where those are."""
        if self.moved.contains(*folios):
            extra = _take(self.extra, nr, allocator.nodes[nid].spans)
            for start, count in extra:
                allocator.free_run(start, count)
            nr -= sum(count for _, count in extra)  # a frame that boot did allocate is left
        home = _take(self._home_of(nid), nr)
        if sum(count for _, count in home) < nr:
            raise ModelBug("more frames of the memory map were given up than there are")
        for start, count in home:
            allocator.free_range(start, count)
            self.released.add(start, start + count)
        self.moved.add(*folios)

    def restore(self, allocator: PageAllocator, nid: int, n: int, order: int) -> int:
        """Get the map of `n` optimised folios back; for how many there was memory.

        C: hugetlb_vmemmap_restore_folios().
        """
        each = vmemmap_frames(order) - 1
        runs, missing = allocator.alloc_upto(0, n * each, nid, thisnode=True)
        done = n - -(-missing // each)
        spare = n * each - missing - done * each
        for start, count in runs:
            self.extra.add(start, start + count)
        if spare:
            for start, count in _take(self.extra, spare, allocator.nodes[nid].spans):
                allocator.free_run(start, count)
        return done


def _take(frames: RangeSet, nr: int, within: RangeSet | None = None) -> list[tuple[int, int]]:
    """Take up to `nr` frames out, highest first, as runs; only those in `within` if it is given."""
    taken: list[tuple[int, int]] = []
    for low, high in reversed(frames):
        parts = [(low, high)] if within is None else list(within.within(low, high))[::-1]
        for start, end in parts:
            count = min(nr, end - start)
            if count:
                taken.append((end - count, count))
                nr -= count
    for start, count in taken:
        frames.remove(start, start + count)
    return taken
