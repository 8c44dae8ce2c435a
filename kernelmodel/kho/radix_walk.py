"""Walking a radix tree that another kernel left, whatever stands in it, in bounded time.

The kernel walks depth first, follows every pointer and calls back for every key; it doubts
nothing. Of a sound tree that is what happens here. Of rubbish most cannot be told apart by what
comes of it: a pointer to where there is no memory faults, keys without memory behind them fault
when they are reserved, one as well as all, and a subtree that is reached a thousand times is the
same subtree. So each page is looked at once for each level that it is reached at, and keys behind
the end of memory are told once for all.

Unhappy paths: a fault is a panic, as is a walk that would keep a CPU busy for minutes: nothing
else runs so early, so nobody ever hears of that kernel again.

C: kernel/liveupdate/kexec_handover.c (kho_radix_walk_tree), 7.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import itemgetter, or_
from typing import Final

from kernelmodel.abi.kexec_handover import (
    KHO_BITMAP_SIZE_LOG2,
    KHO_ORDER_0_LOG2,
    KHO_TABLE_SIZE_LOG2,
    KHO_TREE_MAX_DEPTH,
)
from kernelmodel.errors import KernelPanic
from kernelmodel.kho.key_runs import KeyBatch, KeyRun, single_runs
from kernelmodel.kho.radix_pages import (
    bit_runs,
    decode_key,
    leaf_runs,
    table_entries,
)
from kernelmodel.kho.radix_tree import TABLE_SHIFTS, encode_key
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory

__all__ = ["IncomingTree"]

#: Pages looked at, a third of a microsecond each: a minute and a half.
_VISITS_MAX: Final = 1 << 28
_ROOT_LEVEL: Final = KHO_TREE_MAX_DEPTH - 1
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
#: By level: what hangs below a page whose first key is smaller than that is of several orders.
_ONE_ORDER_FROM: Final = tuple(
    1 << KHO_BITMAP_SIZE_LOG2 + KHO_TABLE_SIZE_LOG2 * level for level in range(KHO_TREE_MAX_DEPTH)
)


#: A page as it is read at one level: its bytes, and of a table its slots (index, address).
_Node = tuple[bytes, tuple[tuple[int, int], ...]]
_PAGE: Final = itemgetter(0)
#: Of what a node is found by: (level, address).
_ADDRESS: Final = itemgetter(1)


class IncomingTree:
    """The tree whose root is at `root_pa`; `end_pfn` is the first frame behind all memory.

    Raises:
        KernelPanic: the walk faults, or does not end.
    """

    def __init__(self, memory: PhysicalMemory, root_pa: int, end_pfn: int) -> None:
        self._memory = memory
        #: Keys from this one on, of order 0, are behind the end of memory.
        self._end_key = encode_key(end_pfn, 0)
        self._nodes: dict[tuple[int, int], _Node] = {}
        #: Pages that were looked at again, and what `_below` has found out.
        self._again = 0
        self._known: dict[tuple[int, int], tuple[int, bool]] = {}
        self._runs: list[KeyBatch] = []
        #: The first key of those that are behind the end of memory.
        self._outside: int | None = None
        self._visit(_ROOT_LEVEL, root_pa, 0, True)
        self._frames = [pa >> PAGE_SHIFT for _, pa in self._nodes]

    @property
    def is_as_it_was(self) -> bool:
        """Whether all of its pages still hold what was read from them."""
        # broken entries lead anywhere, not only to where pages begin: those are not looked for
        if reduce(or_, map(_ADDRESS, self._nodes)) % PAGE_SIZE:
            return False
        return list(map(self._memory.page, self._frames)) == list(map(_PAGE, self._nodes.values()))

    def _visit(self, level: int, pa: int, prefix: int, inside: bool) -> None:
        """Walk what hangs at a page, and note its keys unless all are outside."""
        if (level, pa) in self._nodes:
            self._visit_again(level, pa, prefix, inside)
            return
        page = self._memory.read(pa, PAGE_SIZE)
        begins_inside = inside and (prefix < _ONE_ORDER_FROM[level] or self._is_inside(prefix))
        if level == 0:
            self._nodes[0, pa] = page, ()
            if begins_inside:
                self._runs += leaf_runs(bit_runs(page), prefix)
        else:
            entries, shift = table_entries(page), TABLE_SHIFTS[level]
            self._nodes[level, pa] = page, entries
            for index, child in entries:
                self._visit(level - 1, child, prefix | index << shift, begins_inside)
        if inside and not begins_inside and self._outside is None and self._below(level, pa)[1]:
            self._outside = prefix

    def _visit_again(self, level: int, pa: int, prefix: int, inside: bool) -> None:
        """As `_visit`, of a page that was walked already and is reached by another key."""
        self._again += self._below(level, pa)[0]
        if len(self._nodes) + self._again > _VISITS_MAX:
            raise KernelPanic("hang: the walk of the radix tree of preserved memory does not end")
        if inside:
            self._note(level, pa, prefix)

    def _note(self, level: int, pa: int, prefix: int) -> None:
        if not self._below(level, pa)[1]:
            return
        page, entries = self._nodes[level, pa]
        if prefix >= _ONE_ORDER_FROM[level] and not self._is_inside(prefix):
            self._outside = prefix if self._outside is None else self._outside
        elif level == 0:
            self._runs += leaf_runs(bit_runs(page), prefix)
        else:
            shift = TABLE_SHIFTS[level]
            for index, child in entries:
                self._note(level - 1, child, prefix | index << shift)

    def _is_inside(self, prefix: int) -> bool:
        """Whether the first key of a page whose keys are of one order is in memory."""
        order = KHO_ORDER_0_LOG2 + 1 - prefix.bit_length()
        return order >= 0 and prefix << order < self._end_key

    def _below(self, level: int, pa: int) -> tuple[int, bool]:
        """Pages that a walk from this node looks at, each time anew, and whether it finds keys."""
        known = self._known.get((level, pa))
        if known is None:
            page, entries = self._nodes[level, pa]
            below = [self._below(level - 1, child) for _, child in entries]
            has_keys = any(keys for _, keys in below) if level else page != _ZERO_PAGE
            known = self._known[level, pa] = 1 + sum(visits for visits, _ in below), has_keys
        return known

    def node_frames(self) -> list[int]:
        """Frames of the tree's pages, each at least once."""
        return self._frames

    def runs(self) -> Iterator[KeyRun]:
        """All keys in memory, ascending, and one of those that are wholly behind its end."""
        return single_runs(self.batches())

    def batches(self) -> Iterable[KeyBatch]:
        """As `runs`, and those of a bitmap with many pages at once."""
        return self._runs if self._outside is None else self._and_outside(self._runs, self._outside)

    @staticmethod
    def _and_outside(runs: list[KeyBatch], outside: int) -> Iterator[KeyBatch]:
        yield from runs
        yield (*decode_key(outside), 1)  # one without an order faults when it is its turn
