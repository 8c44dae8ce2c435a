"""The tags that boot writes into the first page of every preserved entry: a magic and its order.

Whoever restores knows an address and nothing else; order and permission come from the tag. A tag
belongs to one page, so where keys of two orders begin at the same frame the one that was met last
has its order stand, which is the smaller: the walk visits large orders first. Entries that merely
overlap keep a tag each.

Simplification, *one owner*: once an entry is restored, entries that share pages with it cannot be
restored any more. The kernel gives those pages away twice and goes on with a page that two users
hold; a test that overlaps preservations and restores both notices.

C: kernel/liveupdate/kexec_handover.c (union kho_page_info in page->private), 7.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernelmodel.mm.extents import Extents, Frames
from kernelmodel.mm.frame_set import FrameSet
from kernelmodel.mm.ranges import RangeSet

__all__ = ["PageTags"]

#: Pages of one run that are held one by one.
_FEW = 64


class PageTags:
    """Tags of entries that nobody has restored yet; entries come and go in runs of one order."""

    __slots__ = ("_alone", "_by_order", "_pages", "_scattered", "untagged")

    def __init__(self) -> None:
        #: Frames of entries that lost their tag to one they overlap: reserved for ever.
        self.untagged = RangeSet()
        #: Entries of each order as numbers (pfn >> order).
        self._by_order: dict[int, RangeSet] = {}
        #: Of order 0 those that lie few together, as long as entries are `_alone`: most of what a
        #: kernel hands over are structures of a page each, which are restored one by one.
        self._pages: set[int] = set()
        #: Entries of order 0 that came as scattered pages, if any did.
        self._scattered: FrameSet | None = None
        #: Whether no entries of different orders have pages in common, and none is scattered.
        self._alone = True

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Adjacent entries as page frames (first, end, order), large orders first."""
        self._settle()
        for order in sorted(self._by_order, reverse=True):
            for low, high in self._by_order[order]:
                yield low << order, high << order, order
        for batch in self._scattered.runs() if self._scattered is not None else ():
            for pfn, nr in batch:
                yield pfn, pfn + nr, 0

    @property
    def nr_pages(self) -> int:
        """Pages of all entries, those that several share counted for each."""
        ranges = sum(entries.total << order for order, entries in self._by_order.items())
        ranges += len(self._pages)
        return ranges + (self._scattered.total if self._scattered is not None else 0)

    def put(self, pfn: int, order: int, nr: int = 1) -> None:
        """Tag `nr` adjacent entries; a tag that one of their first pages had before is gone.

        As a key is in a tree once, so is an entry put once.
        """
        end = pfn + (nr << order)
        mine = self._by_order.get(order)
        if mine is None:
            mine = self._by_order[order] = RangeSet()
        if order and self._pages:
            self._settle()
        for other, entries in self._by_order.items():
            if other != order and entries.overlaps(pfn >> other, -(-end >> other)):
                self._settle()
                self._alone = False
                if other > order:  # smaller ones come later
                    self._lose(other, entries, -(-pfn >> other), -(-end >> other))
        if order == 0 and nr <= _FEW and self._alone:
            self._pages.update(range(pfn, end))
        else:
            mine.add(pfn >> order, end >> order)

    def _settle(self) -> None:
        """Hold pages as the entries of any other order."""
        if self._pages:
            entries = self._by_order[0]
            for pfn in sorted(self._pages):
                entries.add(pfn, pfn + 1)
            self._pages.clear()

    def put_pages(self, pages: Extents) -> None:
        """Tag many runs of single pages, as `put` does."""
        self._settle()
        frames = pages.frames()
        if self._scattered is None:
            self._scattered = FrameSet()
            self._alone = False
        self._scattered.add(frames)
        first, last = int(frames.min()), int(frames.max())
        for order, entries in self._by_order.items():
            if not order:
                continue
            for low, high in list(entries.within(first >> order, (last >> order) + 1)):
                heads = np.arange(low, high) << order
                for lost in (heads[self._scattered.has(heads)] >> order).tolist():
                    self._lose(order, entries, lost, lost + 1)

    def _lose(self, order: int, entries: RangeSet, first: int, last: int) -> None:
        if not entries.overlaps(first, last):  # nearly always
            return
        for low, high in entries.within(first, last):
            self.untagged.add(low << order, high << order)
        entries.remove(first, last)

    def order(self, pfn: int) -> int | None:
        """The order in the tag of this page; None if it has none."""
        if pfn in self._pages:
            return 0
        for order, entries in self._by_order.items():
            number = pfn >> order
            if number << order == pfn and entries.contains(number, number + 1):
                return order
        return 0 if self._scattered is not None and pfn in self._scattered else None

    def count(self, pfn: int, order: int, most: int) -> int:
        """How many entries of `order`, `most` at most, are tagged one after the other from pfn."""
        self._settle()
        if order == 0 and self._scattered is not None:
            return self._count_pages(self._scattered, pfn, most)
        entries = self._by_order.get(order)
        first = pfn >> order
        if entries is None or first << order != pfn:
            return 0
        if entries.contains(first, first + most):  # nearly always
            return most
        parts = entries.within(first, first + most)
        return parts[0][1] - first if parts and parts[0][0] == first else 0

    def _count_pages(self, scattered: FrameSet, pfn: int, most: int) -> int:
        entries = self._by_order.get(0, RangeSet())
        found = 0
        while found < most:
            at = pfn + found
            low, high = next(iter(entries.within(at, pfn + most)), (at, at))
            here = high - low if low == at else 0
            here = here or scattered.run_length(at, most - found)
            if not here:
                break
            found += here
        return found

    def take_pages(self, frames: Frames) -> bool:
        """Clear these single pages' tags; False if not each has one, and its page to itself."""
        self._settle()
        scattered = self._scattered or FrameSet()
        known = scattered.has(frames)
        there, rest = frames[known], frames[~known].tolist()
        listed = self._by_order.get(0, RangeSet())
        if len(rest) != len(set(rest)) or not all(pfn in listed for pfn in rest):
            return False
        if any(
            bool(((frames >= low) & (frames < high)).any())
            for low, high in self._shared_within(int(frames.min()), int(frames.max()) + 1)
        ):
            return False
        before = scattered.total
        scattered.discard(there)
        if before - scattered.total != len(there):
            scattered.add(there)  # one is asked for twice
            return False
        for pfn in rest:
            listed.remove(pfn, pfn + 1)
        return True

    def _shared_within(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Frames of [first, last) that larger entries hold, or held."""
        yield from self.untagged.within(first, last)
        for order, entries in self._by_order.items():
            if order:
                for low, high in entries.within(first >> order, -(-last >> order)):
                    yield low << order, high << order

    def take_entry(self, pfn: int) -> int | None:
        """Clear the tag of this page as `take` does; its order, None if it has none."""
        if pfn in self._pages:  # nearly always
            self._pages.remove(pfn)
            return 0
        if self._alone:
            for order, entries in reversed(self._by_order.items()):
                number = pfn >> order
                if number << order == pfn and entries.take(number, number + 1):
                    return order
            return None
        found = self.order(pfn)
        if found is not None:
            self.take(pfn, found, 1)
        return found

    def take(self, pfn: int, order: int, most: int) -> int:
        """Clear the tags of as many entries as `count` says, and of all that share their pages.

        Returns how many those are.
        """
        if order == 0 and self._pages.issuperset(range(pfn, pfn + most)):
            self._pages.difference_update(range(pfn, pfn + most))
            return max(0, most)
        if self._alone and most > 0 and order in self._by_order:  # nearly always
            first = pfn >> order
            if first << order == pfn and self._by_order[order].take(first, first + most):
                return most
        nr = self.count(pfn, order, most)
        if not nr:
            return 0
        end = pfn + (nr << order)
        for other, entries in self._by_order.items():
            if other > order:
                self._lose(other, entries, pfn >> other, -(-end >> other))
            else:  # they share all their pages with the entries
                entries.remove(pfn >> other, end >> other)
        if self._scattered is not None:
            self._scattered.discard_run(pfn, end)
        if self.untagged:
            self.untagged.remove(pfn, end)
        return nr
