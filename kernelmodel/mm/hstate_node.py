"""One node's part of a pool of huge pages: which folios it owns, and which of them are free.

Reproduces the per-node lists and counters of Linux 7.3's struct hstate. Folios are counted in
units of their own size (pfn >> order) and kept as ranges, so a pool of 100,000 pages that were
never touched is one entry.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelmodel.errors import ModelBug
from kernelmodel.mm.ranges import RangeSet

__all__ = ["HstateNode", "Turns", "spread", "validate_hstate_node"]


class HstateNode:
    """One node's part of a pool; ranges are folio numbers (pfn >> order)."""

    __slots__ = (
        "free",
        "max_huge_pages",
        "nr_free",
        "nr_huge_pages",
        "optimized",
        "owned",
        "surplus",
    )

    def __init__(self) -> None:
        #: Every folio of the pool, and those of them that are free.
        self.owned = RangeSet()
        self.free = RangeSet()
        #: Those that do without most of their struct pages.
        self.optimized = RangeSet()
        self.nr_huge_pages = 0
        self.nr_free = 0
        self.surplus = 0
        #: What the command line asked of this node by name.
        self.max_huge_pages = 0

    def own(self, folio: int, n: int) -> None:
        """Folios enter the pool, in use."""
        if self.owned.overlaps(folio, folio + n):
            raise ModelBug(f"folios {folio:#x}+{n:#x} are in the pool already")
        self.owned.add(folio, folio + n)
        self.nr_huge_pages += n

    def disown(self, folio: int, n: int) -> None:
        """Folios that are not free leave the pool."""
        self.owned.remove(folio, folio + n)
        self.nr_huge_pages -= n

    def check_in_use(self, folio: int, n: int) -> None:
        """Folios about to be freed belong to the pool and are not free.

        Raises:
            ModelBug: they do not, or are.
        """
        if not self.owned.contains(folio, folio + n):
            raise ModelBug(f"folios {folio:#x}+{n:#x} do not belong to the pool")
        if self.free.overlaps(folio, folio + n):
            raise ModelBug(f"double free in folios {folio:#x}+{n:#x}")

    def enqueue(self, folio: int, n: int) -> None:
        """Folios become free. C: enqueue_hugetlb_folio()."""
        self.free.add(folio, folio + n)
        self.nr_free += n

    def take(self, folio: int) -> None:
        """Take one particular free folio."""
        self.free.remove(folio, folio + 1)
        self.nr_free -= 1

    def dequeue(self, n: int, *, highest: bool = False) -> list[tuple[int, int]]:
        """Take `n` free folios, lowest or highest first, as runs (folio, number)."""
        lowest = self.free.lowest()
        if not highest and lowest is not None and 0 < n <= lowest[1] - lowest[0]:  # as most often
            self.free.take(lowest[0], lowest[0] + n)
            self.nr_free -= n
            return [(lowest[0], n)]
        runs: list[tuple[int, int]] = []
        left = n
        for low, high in (reversed(self.free) if highest else iter(self.free)) if n else ():
            take = min(left, high - low)
            runs.append((high - take if highest else low, take))
            left -= take
            if not left:
                break
        if left:
            raise ModelBug(f"{left} more folios were taken than are free")
        for folio, take in runs:
            self.free.remove(folio, folio + take)
        self.nr_free -= n
        return runs


def spread(n: int, room: Sequence[int], first: int) -> list[int]:
    """Share `n` out in turn, beginning with index `first`, to each no more than its room."""
    taken = [0] * len(room)
    turns = [*range(first, len(room)), *range(first)]
    while n:
        turns = [at for at in turns if room[at] > taken[at]]
        if not turns:
            break
        rounds = min(n // len(turns), *(room[at] - taken[at] for at in turns))
        for at in turns if rounds else turns[:n]:
            taken[at] += max(1, rounds)
        n -= rounds * len(turns) if rounds else n
    return taken


class Turns:
    """Whose turn it is among nodes. C: next_nid_to_alloc, next_nid_to_free of struct hstate.

    The turn is a node's, whoever asks: who wants pages of one node only leaves it there.
    """

    __slots__ = ("nid",)

    def __init__(self) -> None:
        self.nid = 0

    def share(self, n: int, nids: Sequence[int], room: Sequence[int]) -> list[int]:
        """Share `n` out among `nids` (ascending); each one's part. C: hstate_next_node_to_alloc().

        A node that has no room is passed over; the turn is then with who comes after the last one
        that had.
        """
        if not n or not nids:
            return [0] * len(nids)
        first = next((at for at, nid in enumerate(nids) if nid >= self.nid), 0)
        taken = spread(n, room, first)
        rounds = max(taken)
        turns = [*range(first, len(nids)), *range(first)]
        last = [at for at in turns if rounds and taken[at] == rounds]
        self.nid = nids[(last[-1] + 1) % len(nids)] if last else nids[first]
        return taken

    def fill(self, n: int, nids: Sequence[int], room: Sequence[int]) -> list[int]:
        """Take `n` from as few of `nids` (ascending) as will do; each one's part.

        The turn is then with who comes after the last one that was asked.
        """
        first = next((at for at, nid in enumerate(nids) if nid >= self.nid), 0)
        taken = [0] * len(nids)
        for at in (*range(first, len(nids)), *range(first)):
            taken[at] = min(n, room[at])
            n -= taken[at]
            self.nid = nids[(at + 1) % len(nids)]
            if not n:
                break
        return taken


def validate_hstate_node(node: HstateNode, where: str) -> None:
    """Counters agree with the folios, and what is free is owned.

    Raises:
        ModelBug: they do not.
    """
    if (node.owned.total, node.free.total) != (node.nr_huge_pages, node.nr_free):
        raise ModelBug(f"{where}: counters and folios differ")
    # a shrinking pool gives up any free page of a node: its surplus can be more than what is left
    if node.surplus < 0:
        raise ModelBug(f"{where}: surplus {node.surplus}")
    for low, high in (*node.free, *node.optimized):
        if not node.owned.contains(low, high):
            raise ModelBug(f"{where}: folios {low:#x}-{high:#x} are not its own")
