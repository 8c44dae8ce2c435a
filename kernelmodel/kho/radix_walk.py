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

from collections.abc import Iterator
from typing import Final

import numpy as np

from kernelmodel.abi.kexec_handover import KHO_TABLE_SIZE_LOG2, KHO_TREE_MAX_DEPTH
from kernelmodel.errors import KernelPanic
from kernelmodel.kho.radix_tree import BITMAP_LOG2, KeyRun, decode_key, leaf_runs
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory

__all__ = ["IncomingTree"]

#: Pages looked at, a third of a microsecond each: a minute and a half.
_VISITS_MAX: Final = 1 << 28
_ROOT_LEVEL: Final = KHO_TREE_MAX_DEPTH - 1
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class IncomingTree:
    """The tree whose root is at `root_pa`; `end_pfn` is the first frame behind all memory.

    Raises:
        KernelPanic: the walk faults, or does not end.
    """

    def __init__(self, memory: PhysicalMemory, root_pa: int, end_pfn: int) -> None:
        self._memory = memory
        self._root_pa = root_pa
        self._end_pfn = end_pfn
        #: By level and address: pages that a walk from there looks at, and whether it has keys.
        self._subtrees: dict[tuple[int, int], tuple[int, bool]] = {}
        self._visits = 0
        self._survey(_ROOT_LEVEL, root_pa)

    def _survey(self, level: int, pa: int) -> tuple[int, bool]:
        known = self._subtrees.get((level, pa))
        if known is not None:
            self._visit(known[0])
            return known
        self._visit(1)
        visits, keys = 1, False
        page = self._memory.read(pa, PAGE_SIZE)
        if page != _ZERO_PAGE:
            if level == 0:
                keys = True
            else:
                table = np.frombuffer(page, dtype="<u8")
                for child in table[table != 0].tolist():
                    below, found = self._survey(level - 1, child)
                    visits += below
                    keys = keys or found
        self._subtrees[level, pa] = visits, keys
        return visits, keys

    def _visit(self, pages: int) -> None:
        self._visits += pages
        if self._visits > _VISITS_MAX:
            raise KernelPanic("hang: the walk of the radix tree of preserved memory does not end")

    def node_frames(self) -> Iterator[int]:
        """Frames of the tree's pages, each at least once."""
        return (pa >> PAGE_SHIFT for _, pa in self._subtrees)

    def runs(self) -> Iterator[KeyRun]:
        """All keys in memory, ascending, and one of those that are wholly behind its end."""
        outside: int | None = None
        stack = [(_ROOT_LEVEL, self._root_pa, 0)]
        while stack:
            level, pa, prefix = stack.pop()
            if not self._subtrees[level, pa][1]:
                continue
            if self._is_outside(level, prefix):
                outside = prefix if outside is None else outside
                continue
            page = self._memory.read(pa, PAGE_SIZE)
            if level == 0:
                yield from leaf_runs(page, prefix)
                continue
            table = np.frombuffer(page, dtype="<u8")
            shift = BITMAP_LOG2 + KHO_TABLE_SIZE_LOG2 * (level - 1)
            stack.extend(
                (level - 1, int(table[index]), prefix | index << shift)
                for index in reversed(np.flatnonzero(table).tolist())
            )
        if outside is not None:
            pfn, order = decode_key(outside)
            yield KeyRun(pfn, order, 1)

    def _is_outside(self, level: int, prefix: int) -> bool:
        """Whether all keys that begin so are of one order and behind the end of memory."""
        if prefix < 1 << BITMAP_LOG2 + KHO_TABLE_SIZE_LOG2 * level:
            return False  # keys of several orders
        try:
            pfn, _ = decode_key(prefix)
        except KernelPanic:  # told when it is its turn
            return True
        return pfn >= self._end_pfn
