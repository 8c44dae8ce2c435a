"""The radix tree of preserved memory, as an image has it.

Faults that are looked for: pages of the tree that are not there, that are reached twice or
misaligned; keys without an order or beyond the address space; entries of different orders that
overlap; pages of the tree that are preserved themselves (the next kernel may write to them); pages
that are preserved and not in the image.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import islice
from typing import Final

import numpy as np

from kernelmodel.abi.kexec_handover import (
    KHO_BITMAP_SIZE_LOG2,
    KHO_ORDER_0_LOG2,
    KHO_TABLE_SIZE_LOG2,
    KHO_TREE_MAX_DEPTH,
)
from kernelmodel.inspect.reader import PA_BITS, Reader, span_text
from kernelmodel.memory import PAGE_SHIFT

__all__ = ["Preserved", "read_tree"]

_TOP_PFN: Final = 1 << PA_BITS - PAGE_SHIFT
#: A tree with so many runs of keys was not written by a kernel, or is not for us.
_RUNS_MAX: Final = 1 << 20
#: Nor one with so many pages that cannot be read, or keys that cannot be.
_BAD_MAX: Final = 1 << 12
#: Runs of missing frames that a fault names.
_NAMED: Final = 3


class Preserved:
    """Preserved entries: `orders` counts them by order, look-ups tell which one a frame is in."""

    def __init__(self, runs: list[tuple[int, int, int]], reader: Reader) -> None:
        """`runs` are (pfn, end pfn, order), each of adjacent entries of one order."""
        self.orders: Counter[int] = Counter()
        for pfn, end, order in runs:
            self.orders[order] += end - pfn >> order
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._orders: list[int] = []
        for pfn, end, order in sorted(runs):
            if self._ends and pfn < self._ends[-1]:
                overlap = span_text(pfn, min(end, self._ends[-1]))
                both = f"of order {self._orders[-1]} and of order {order}"
                reader.faults.add(f"{overlap} is preserved twice, as part {both}")
                if end <= self._ends[-1]:
                    continue
                pfn = self._ends[-1]  # noqa: PLW2901 - the rest of it
            if self._ends and (pfn, order) == (self._ends[-1], self._orders[-1]):
                self._ends[-1] = end
            else:
                self._starts.append(pfn)
                self._ends.append(end)
                self._orders.append(order)

    @property
    def nr_entries(self) -> int:
        """Keys in the tree."""
        return self.orders.total()

    @property
    def nr_pages(self) -> int:
        """Pages of 4 KiB that they cover."""
        return sum(count << order for order, count in self.orders.items())

    def runs(self) -> list[tuple[int, int]]:
        """All preserved frames as ascending, disjoint (first, end)."""
        return list(zip(self._starts, self._ends, strict=True))

    def holds(self, pfn: int) -> bool:
        """Whether the frame is part of an entry."""
        at = bisect_right(self._starts, pfn) - 1
        return at >= 0 and pfn < self._ends[at]

    def order_at(self, pfn: int) -> tuple[int, int] | None:
        """(order, end of the run of adjacent entries) if an entry starts at this frame."""
        at = bisect_right(self._starts, pfn) - 1
        if at < 0 or pfn >= self._ends[at]:
            return None
        order = self._orders[at]
        return None if pfn & (1 << order) - 1 else (order, self._ends[at])

    def missing(self, reader: Reader) -> None:
        """Note which preserved pages the image lacks. It may: absent frames read as zero."""
        total = 0
        gaps: list[tuple[int, int]] = []
        for first, end in self.runs():
            at = first
            for low, high in [*reader.frames.held(first, end - first), (end, end)]:
                if at < low:
                    total += low - at
                    gaps.append((at, low))
                at = high
        if total:
            named = ", ".join(span_text(*gap) for gap in islice(gaps, _NAMED))
            more = ", …" if len(gaps) > _NAMED else ""
            reader.notes.add(
                f"{total} of {self.nr_pages} preserved pages are not in the image and read as "
                f"zero: {named}{more}"
            )


def read_tree(reader: Reader, root_pa: int) -> Preserved:
    """Walk the tree from its root page."""
    walk = _Walk(reader)
    walk.run(root_pa)
    preserved = Preserved(walk.runs, reader)
    for pfn in walk.nodes:
        if preserved.holds(pfn):
            reader.faults.add(f"{pfn << PAGE_SHIFT:#x} is a page of the radix tree and preserved")
    preserved.missing(reader)
    return preserved


class _Walk:
    """One walk: keys found so far as `runs`, pages that were read, how often something was bad."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.runs: list[tuple[int, int, int]] = []
        self.nodes: list[int] = []
        self._bad = 0

    def run(self, root_pa: int) -> None:
        """Read pages until there are no more, or too much is wrong."""
        stack = [(KHO_TREE_MAX_DEPTH - 1, root_pa, 0)]
        while stack:
            if self._bad >= _BAD_MAX or len(self.runs) > _RUNS_MAX:
                why = "too much of it is wrong" if self._bad >= _BAD_MAX else "it has too many keys"
                self.reader.faults.add(f"the radix tree at {root_pa:#x} is not read on: {why}")
                return
            level, pa, prefix = stack.pop()
            page = self.reader.claim(pa, f"a page of the radix tree (level {level})")
            if page is None:
                self._bad += 1
                continue
            self.nodes.append(pa >> PAGE_SHIFT)
            if level == 0:
                self._read_bitmap(pa, page, prefix)
                continue
            table = np.frombuffer(page, dtype="<u8")
            shift = KHO_BITMAP_SIZE_LOG2 + KHO_TABLE_SIZE_LOG2 * (level - 1)
            stack.extend(
                (level - 1, int(table[index]), prefix | index << shift)
                for index in reversed(np.flatnonzero(table).tolist())
            )

    def _read_bitmap(self, pa: int, page: bytes, prefix: int) -> None:
        bits = np.unpackbits(np.frombuffer(page, dtype=np.uint8), bitorder="little")
        edges = np.flatnonzero(np.diff(bits, prepend=np.uint8(0), append=np.uint8(0)))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            key, end = prefix | first, (prefix | last - 1) + 1
            while key < end:
                # keys with one order bit more start where this order's keys end
                stop = min(end, 1 << key.bit_length()) if key else 1
                if wrong := self._add_keys(key, stop):
                    self.reader.faults.add(f"key {key:#x} in the bitmap at {pa:#x} {wrong}")
                    self._bad += 1
                    if self._bad >= _BAD_MAX:
                        return
                key = stop

    def _add_keys(self, key: int, stop: int) -> str:
        """Note keys of one order; what is wrong with them, "" if nothing is."""
        order = KHO_ORDER_0_LOG2 - (key.bit_length() - 1)
        if key == 0 or order < 0:
            return "has no order"
        top = 1 << key.bit_length() - 1
        pfn, end = key - top << order, stop - top << order
        if end > _TOP_PFN:
            return f"stands for {pfn << PAGE_SHIFT:#x}, beyond any memory"
        self.runs.append((pfn, end, order))
        return ""
