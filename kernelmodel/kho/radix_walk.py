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
from typing import Final

from kernelmodel.abi.kexec_handover import (
    KHO_ORDER_0_LOG2,
    KHO_TABLE_SIZE_LOG2,
    KHO_TREE_MAX_DEPTH,
)
from kernelmodel.errors import KernelPanic
from kernelmodel.kho.key_runs import KeyBatch, KeyRun, single_runs
from kernelmodel.kho.radix_pages import (
    BITMAP_LOG2,
    BitRuns,
    bit_runs,
    decode_key,
    leaf_runs,
    table_entries,
)
from kernelmodel.kho.radix_tree import TABLE_SHIFTS
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory

__all__ = ["IncomingTree"]

#: Pages looked at, a third of a microsecond each: a minute and a half.
_VISITS_MAX: Final = 1 << 28
_ROOT_LEVEL: Final = KHO_TREE_MAX_DEPTH - 1
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
#: By level: what hangs below a page whose first key is smaller than that is of several orders.
_ONE_ORDER_FROM: Final = tuple(
    1 << BITMAP_LOG2 + KHO_TABLE_SIZE_LOG2 * level for level in range(KHO_TREE_MAX_DEPTH)
)


#: What hangs below one page at one level: the page's bytes, of a table its slots (index, address),
#: of a bitmap its runs of bits, the pages that a walk from here looks at, whether there are keys.
_Subtree = tuple[bytes, tuple[tuple[int, int], ...], BitRuns, int, bool]


class IncomingTree:
    """The tree whose root is at `root_pa`; `end_pfn` is the first frame behind all memory.

    Raises:
        KernelPanic: the walk faults, or does not end.
    """

    def __init__(self, memory: PhysicalMemory, root_pa: int, end_pfn: int) -> None:
        self._memory = memory
        self._root_pa = root_pa
        self._end_pfn = end_pfn
        self._subtrees: dict[tuple[int, int], _Subtree] = {}
        self._visits = 0
        self._runs: list[KeyBatch] | None = None
        #: The first key of those that are behind the end of memory.
        self._outside: int | None = None
        self._survey(_ROOT_LEVEL, root_pa)

    @property
    def is_as_it_was(self) -> bool:
        """Whether all of its pages still hold what was read from them."""
        memory = self._memory
        for (_, pa), subtree in self._subtrees.items():
            # broken entries lead anywhere, not only to where pages begin
            now = memory.read(pa, PAGE_SIZE) if pa % PAGE_SIZE else memory.page(pa >> PAGE_SHIFT)
            if now != subtree[0]:
                return False
        return True

    def _survey(self, level: int, pa: int) -> _Subtree:
        known = self._subtrees.get((level, pa))
        self._visits += 1 if known is None else known[3]
        if self._visits > _VISITS_MAX:
            raise KernelPanic("hang: the walk of the radix tree of preserved memory does not end")
        if known is not None:
            return known
        page = self._memory.read(pa, PAGE_SIZE)
        entries: tuple[tuple[int, int], ...] = ()
        bits: BitRuns = ()
        visits, keys = 1, False
        if page == _ZERO_PAGE:
            pass
        elif level == 0:
            bits, keys = bit_runs(page), True
        else:
            entries = table_entries(page)
            for _, child in entries:
                below = self._survey(level - 1, child)
                visits += below[3]
                keys = keys or below[4]
        tree = self._subtrees[level, pa] = page, entries, bits, visits, keys
        return tree

    def node_frames(self) -> list[int]:
        """Frames of the tree's pages, each at least once."""
        return [pa >> PAGE_SHIFT for _, pa in self._subtrees]

    def runs(self) -> Iterator[KeyRun]:
        """All keys in memory, ascending, and one of those that are wholly behind its end."""
        return single_runs(self.batches())

    def batches(self) -> Iterable[KeyBatch]:
        """As `runs`, and those of a bitmap with many pages at once."""
        if self._runs is None:
            self._runs = []
            self._walk(_ROOT_LEVEL, self._root_pa, 0, self._runs)
        return self._runs if self._outside is None else self._and_outside(self._runs, self._outside)

    @staticmethod
    def _and_outside(runs: list[KeyBatch], outside: int) -> Iterator[KeyBatch]:
        yield from runs
        yield (*decode_key(outside), 1)  # one without an order faults when it is its turn

    def _walk(self, level: int, pa: int, prefix: int, runs: list[KeyBatch]) -> None:
        """Add the keys below this page, whose first is `prefix`, unless all are outside."""
        _, entries, bits, _, has_keys = self._subtrees[level, pa]
        if not has_keys:
            return
        if prefix >= _ONE_ORDER_FROM[level]:
            top = prefix.bit_length() - 1
            order = KHO_ORDER_0_LOG2 - top
            if order < 0 or (prefix ^ 1 << top) << order >= self._end_pfn:
                self._outside = prefix if self._outside is None else self._outside
                return
        if level == 0:
            runs += leaf_runs(bits, prefix)
            return
        shift = TABLE_SHIFTS[level]
        for index, child in entries:
            self._walk(level - 1, child, prefix | index << shift, runs)
