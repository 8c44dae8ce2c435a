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
from dataclasses import dataclass
from typing import Final

from kernelmodel.abi.kexec_handover import KHO_TABLE_SIZE_LOG2, KHO_TREE_MAX_DEPTH
from kernelmodel.errors import KernelPanic
from kernelmodel.kho.key_runs import KeyRun, KeyRuns, single_runs
from kernelmodel.kho.radix_tree import (
    BITMAP_LOG2,
    TABLE_SHIFTS,
    BitRuns,
    bit_runs,
    decode_key,
    leaf_runs,
    table_entries,
)
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory

__all__ = ["IncomingTree"]

#: Pages looked at, a third of a microsecond each: a minute and a half.
_VISITS_MAX: Final = 1 << 28
_ROOT_LEVEL: Final = KHO_TREE_MAX_DEPTH - 1
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class _Subtree:
    """What hangs below one page at one level.

    `entries` are a table's slots (index, address), `bits` a bitmap's runs of bits, `visits` the
    pages that a walk from here looks at.
    """

    page: bytes
    entries: list[tuple[int, int]]
    bits: BitRuns
    visits: int
    has_keys: bool


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
        self._runs: list[KeyRun | KeyRuns] | None = None
        self._survey(_ROOT_LEVEL, root_pa)

    @property
    def is_as_it_was(self) -> bool:
        """Whether all of its pages still hold what was read from them."""
        read = self._memory.read
        return all(read(pa, PAGE_SIZE) == tree.page for (_, pa), tree in self._subtrees.items())

    def _survey(self, level: int, pa: int) -> _Subtree:
        known = self._subtrees.get((level, pa))
        if known is not None:
            self._visit(known.visits)
            return known
        self._visit(1)
        page = self._memory.read(pa, PAGE_SIZE)
        entries: list[tuple[int, int]] = []
        bits: BitRuns = []
        visits, keys = 1, False
        if page == _ZERO_PAGE:
            pass
        elif level == 0:
            bits, keys = bit_runs(page), True
        else:
            entries = table_entries(page)
            for _, child in entries:
                below = self._survey(level - 1, child)
                visits += below.visits
                keys = keys or below.has_keys
        tree = self._subtrees[level, pa] = _Subtree(page, entries, bits, visits, keys)
        return tree

    def _visit(self, pages: int) -> None:
        self._visits += pages
        if self._visits > _VISITS_MAX:
            raise KernelPanic("hang: the walk of the radix tree of preserved memory does not end")

    def node_frames(self) -> Iterator[int]:
        """Frames of the tree's pages, each at least once."""
        return (pa >> PAGE_SHIFT for _, pa in self._subtrees)

    def runs(self) -> Iterator[KeyRun]:
        """All keys in memory, ascending, and one of those that are wholly behind its end."""
        return single_runs(self.batches())

    def batches(self) -> Iterator[KeyRun | KeyRuns]:
        """As `runs`, and those of a bitmap with many pages at once."""
        return self._walk() if self._runs is None else iter(self._runs)

    def _walk(self) -> Iterator[KeyRun | KeyRuns]:
        runs: list[KeyRun | KeyRuns] = []
        outside: int | None = None
        stack = [(_ROOT_LEVEL, self._root_pa, 0)]
        while stack:
            level, pa, prefix = stack.pop()
            tree = self._subtrees[level, pa]
            if not tree.has_keys:
                continue
            if self._is_outside(level, prefix):
                outside = prefix if outside is None else outside
            elif level == 0:
                for run in leaf_runs(tree.bits, prefix):
                    runs.append(run)
                    yield run
            else:
                shift = TABLE_SHIFTS[level]
                for index, child in reversed(tree.entries):
                    stack.append((level - 1, child, prefix | index << shift))
        if outside is not None:
            behind = KeyRun(*decode_key(outside), 1)
            runs.append(behind)
            yield behind
        self._runs = runs

    def _is_outside(self, level: int, prefix: int) -> bool:
        """Whether all keys that begin so are of one order and behind the end of memory."""
        if prefix < 1 << BITMAP_LOG2 + KHO_TABLE_SIZE_LOG2 * level:
            return False  # keys of several orders
        try:
            pfn, _ = decode_key(prefix)
        except KernelPanic:  # told when it is its turn
            return True
        return pfn >= self._end_pfn
