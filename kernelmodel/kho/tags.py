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

from kernelmodel.mm.ranges import RangeSet

__all__ = ["PageTags"]


class PageTags:
    """Tags of entries that nobody has restored yet; entries come and go in runs of one order."""

    __slots__ = ("_by_order", "untagged")

    def __init__(self) -> None:
        #: Frames of entries that lost their tag to one they overlap: reserved for ever.
        self.untagged = RangeSet()
        #: Entries of each order as numbers (pfn >> order).
        self._by_order: dict[int, RangeSet] = {}

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Adjacent entries as page frames (first, end, order), large orders first."""
        for order in sorted(self._by_order, reverse=True):
            for low, high in self._by_order[order]:
                yield low << order, high << order, order

    def put(self, pfn: int, order: int, nr: int = 1) -> None:
        """Tag `nr` adjacent entries; a tag that one of their first pages had before is gone."""
        end = pfn + (nr << order)
        for larger, entries in self._by_order.items():
            if larger > order:  # smaller ones come later
                self._lose(larger, entries, -(-pfn >> larger), -(-end >> larger))
        if order not in self._by_order:
            self._by_order[order] = RangeSet()
        self._by_order[order].add(pfn >> order, end >> order)

    def _lose(self, order: int, entries: RangeSet, first: int, last: int) -> None:
        if not entries.overlaps(first, last):  # nearly always
            return
        for low, high in entries.within(first, last):
            self.untagged.add(low << order, high << order)
        entries.remove(first, last)

    def order(self, pfn: int) -> int | None:
        """The order in the tag of this page; None if it has none."""
        for order, entries in self._by_order.items():
            number = pfn >> order
            if number << order == pfn and entries.contains(number, number + 1):
                return order
        return None

    def count(self, pfn: int, order: int, most: int) -> int:
        """How many entries of `order`, `most` at most, are tagged one after the other from pfn."""
        entries = self._by_order.get(order)
        first = pfn >> order
        if entries is None or first << order != pfn:
            return 0
        if entries.contains(first, first + most):  # nearly always
            return most
        parts = entries.within(first, first + most)
        return parts[0][1] - first if parts and parts[0][0] == first else 0

    def take(self, pfn: int, order: int, nr: int) -> None:
        """Clear the tags of `nr` entries, and of all that share pages with them."""
        end = pfn + (nr << order)
        for other, entries in self._by_order.items():
            if other > order:
                self._lose(other, entries, pfn >> other, -(-end >> other))
            else:  # they share all their pages with the entries
                entries.remove(pfn >> other, end >> other)
        if self.untagged:
            self.untagged.remove(pfn, end)
