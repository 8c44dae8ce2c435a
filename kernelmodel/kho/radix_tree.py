"""KHO's record of preserved memory: a radix tree of bitmaps that lives in the memory itself.

A preserved block of order `o` at frame `pfn` is one key, `1 << (52 - o) | pfn >> o`. Levels 5
to 1 are pages of 512 physical addresses, level 0 pages are bitmaps of 32,768 keys. The tree's
own pages are not in the tree: whoever reads it takes care not to overwrite them.

The next kernel gets the root's address and nothing else, so both sides here work on bytes at
physical addresses. Keys come in runs (the folios of one VM lie side by side) and are set and
found as runs; the bytes are the same as if they had come one by one.

C: kernel/liveupdate/kexec_handover.c (kho_radix_*), include/linux/kho_radix_tree.h, 7.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kernelmodel.abi.kexec_handover import (
    KHO_BITMAP_SIZE_LOG2,
    KHO_ORDER_0_LOG2,
    KHO_TABLE_SIZE_LOG2,
    KHO_TREE_MAX_DEPTH,
)
from kernelmodel.errors import NoMemory, OutOfRange
from kernelmodel.kho.key_runs import KeyBatch, KeyRun, KeyRuns, single_runs
from kernelmodel.kho.radix_pages import bit_runs, leaf_runs, table_entries
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.frame_set import TILE_LOG2, by_tile

__all__ = ["TABLE_SHIFTS", "KeyRun", "KhoRadixTree", "encode_key"]

#: By level, how far a key is shifted for the index into a table of that level.
TABLE_SHIFTS = (
    0,
    *(
        KHO_BITMAP_SIZE_LOG2 + KHO_TABLE_SIZE_LOG2 * level
        for level in range(KHO_TREE_MAX_DEPTH - 1)
    ),
)
_ROOT_LEVEL = KHO_TREE_MAX_DEPTH - 1
#: The order bit of keys of order 0, and behind them all.
_ORDER_0 = 1 << KHO_ORDER_0_LOG2
_KEYS_END = 2 * _ORDER_0
_BITMAP_BITS = 1 << KHO_BITMAP_SIZE_LOG2
_BITMAP_MASK = _BITMAP_BITS - 1
#: From so many bits on, bytes are moved instead of reckoning with them as a number.
_MANY_BITS = 512
_ONES, _ZEROES = b"\xff" * PAGE_SIZE, bytes(PAGE_SIZE)
_TABLE_MASK = (1 << KHO_TABLE_SIZE_LOG2) - 1


def encode_key(pfn: int, order: int) -> int:
    """The key of the block of `order` at `pfn`. C: kho_radix_encode_key()."""
    return (_ORDER_0 | pfn) >> order


class KhoRadixTree:
    """The tree whose root page lies at `root_pa`.

    `alloc_page` yields the physical address of a zeroed page for a new node (or raises
    `NoMemory`), `free_page` takes one back; a tree that is only read has neither. Adding a key
    twice or taking away what is not there is silent, and changes nothing.
    """

    __slots__ = ("_alloc_page", "_bitmaps", "_free_page", "_made", "_tables", "memory", "root_pa")

    def __init__(
        self,
        memory: PhysicalMemory,
        root_pa: int,
        alloc_page: Callable[[], int] | None = None,
        free_page: Callable[[int], None] | None = None,
    ) -> None:
        self.memory = memory
        self.root_pa = root_pa
        self._alloc_page = alloc_page
        self._free_page = free_page
        #: Bitmaps that were walked to, where they lie in memory, and the addresses of the tables
        #: above them, by the key's upper bits. Nodes are pages that nobody but this tree writes
        #: to, and none leaves it before all do.
        self._bitmaps: dict[int, bytearray] = {}
        #: Nodes that this object made, as (first key, how far below the root, page frame).
        self._made = [(0, 0, root_pa >> PAGE_SHIFT)]
        self._tables: dict[int, int] = {}

    @property
    def nr_keys(self) -> int:
        """Keys that were set by this object."""
        return sum(int.from_bytes(page, "little").bit_count() for page in self._bitmaps.values())

    def add_run(self, pfn: int, order: int, nr: int = 1) -> None:
        """Set the keys of `nr` consecutive blocks. C: kho_radix_add_page().

        Raises:
            OutOfRange: the last of the keys has more bits than a key of order 0.
            NoMemory: no page for a node. None of the keys is set then, as if whoever adds them
                had taken back those that were done.
        """
        key = (_ORDER_0 | pfn) >> order
        page = self._bitmaps.get(key >> KHO_BITMAP_SIZE_LOG2)
        if page is not None:  # as most often
            bit = key & _BITMAP_MASK
            if nr == 1:
                page[bit >> 3] |= 1 << (bit & 7)
                return
            if bit + nr <= _BITMAP_BITS:
                _put_bits(page, bit, nr, True)
                return
        at, end = key, key + nr
        if end > _KEYS_END:
            raise OutOfRange("key is too wide", pfn=pfn, order=order)
        try:
            while at < end:
                bit = at & _BITMAP_MASK
                take = min(end - at, _BITMAP_BITS - bit)
                _put_bits(self._bitmap(at), bit, take, True)
                at += take
        except NoMemory:
            self._clear(key, at)
            raise NoMemory("no page for a node of the radix tree", pfn=pfn) from None

    def add_pages(self, pages: Extents) -> None:
        """Set the keys of many runs of pages (order 0), nodes made in the order of the runs.

        Raises:
            NoMemory: no page for a node. None of the keys is set then; nodes may be new.
        """
        frames = pages.frames()
        numbers = frames >> KHO_BITMAP_SIZE_LOG2
        low = int(numbers.min())
        first_at = np.full(int(numbers.max()) - low + 1, -1, dtype=np.int64)
        first_at[numbers[::-1] - low] = np.arange(len(numbers))[::-1]  # what is written last stays
        touched = np.flatnonzero(first_at >= 0)
        bitmaps = {
            number: self._bitmap(encode_key(number << KHO_BITMAP_SIZE_LOG2, 0))
            for number in (touched[np.argsort(first_at[touched])] + low).tolist()
        }
        assert TILE_LOG2 == KHO_BITMAP_SIZE_LOG2, "a tile's frames are a bitmap's keys"
        for number, at in by_tile(frames):
            flags = np.zeros(_BITMAP_BITS, dtype=np.bool_)
            flags[frames[at] & _BITMAP_MASK] = True
            page = bitmaps[number]
            bits = int.from_bytes(page, "little")
            bits |= int.from_bytes(np.packbits(flags, bitorder="little"), "little")
            page[:] = bits.to_bytes(PAGE_SIZE, "little")

    def del_run(self, pfn: int, order: int, nr: int = 1) -> None:
        """Clear the keys of `nr` consecutive blocks; nodes stay. C: kho_radix_del_page()."""
        key = encode_key(pfn, order)
        self._clear(key, key + nr)

    def _clear(self, key: int, end: int) -> None:
        while key < end:
            bit = key & _BITMAP_MASK
            take = min(end - key, _BITMAP_BITS - bit)
            if key >> KHO_BITMAP_SIZE_LOG2 in self._bitmaps or self._leaf(key, create=False):
                _put_bits(self._bitmap(key), bit, take, False)
            key += take

    def has(self, pfn: int, order: int) -> bool:
        """Whether the key of this block is set."""
        key = encode_key(pfn, order)
        leaf = self._leaf(key, create=False)
        if leaf == 0:
            return False
        bit = key & _BITMAP_MASK
        return bool(self.memory.read(leaf + (bit >> 3), 1)[0] >> (bit & 7) & 1)

    def _bitmap(self, key: int) -> bytearray:
        """The bitmap of a key, made if there is none. Raises: NoMemory; no node is new then."""
        number = key >> KHO_BITMAP_SIZE_LOG2
        page = self._bitmaps.get(number)
        if page is None:
            leaf = self._leaf(key, create=True)
            page = self._bitmaps[number] = self.memory.writable(leaf >> PAGE_SHIFT)
        return page

    def _leaf(self, key: int, *, create: bool) -> int:
        """The bitmap page of a key, 0 if there is none. Raises: as `_bitmap`."""
        memory = self.memory
        node, level = self._tables.get(key >> TABLE_SHIFTS[2], 0), 1
        if not node:
            node, level = self.root_pa, _ROOT_LEVEL
        while level:
            if level == 1:
                self._tables[key >> TABLE_SHIFTS[2]] = node
            slot = node + 8 * (key >> TABLE_SHIFTS[level] & _TABLE_MASK)
            node = memory.u64(slot)
            if not node:
                return self._grow(key, level, slot) if create else 0
            level -= 1
        return node

    def _grow(self, key: int, level: int, slot: int) -> int:
        """New nodes for a key, down from a free slot of a table of `level`; the bitmap page."""
        if self._alloc_page is None:
            raise NoMemory("a tree that is only read does not grow")
        write_u64, made, anchor, before = self.memory.write_u64, self._made, slot, len(self._made)
        try:
            for above in range(level, 0, -1):
                node = self._alloc_page()
                first = key >> TABLE_SHIFTS[above] << TABLE_SHIFTS[above]
                made.append((first, KHO_TREE_MAX_DEPTH - above, node >> PAGE_SHIFT))
                write_u64(slot, node)
                slot = node + 8 * (key >> TABLE_SHIFTS[above - 1] & _TABLE_MASK)
        except NoMemory:
            if self._free_page is not None and len(made) > before:
                write_u64(anchor, 0)
                for _, _, pfn in made[before:]:
                    self._free_page(pfn << PAGE_SHIFT)
                del made[before:]
            raise
        if level > 1:
            self._tables[key >> TABLE_SHIFTS[2]] = made[-2][2] << PAGE_SHIFT
        return node

    def destroy(self) -> None:
        """Free all nodes, the root among them. C: kho_radix_destroy_tree()."""
        self._bitmaps.clear()
        self._tables.clear()
        if self._free_page is not None:
            for _, pa in self.nodes():
                self._free_page(pa)

    def walk(self) -> list[tuple[int, int, int]]:
        """All node pages as (level, physical address, first key), parents first, ascending by key.

        C: kho_radix_walk_tree().
        """
        found: list[tuple[int, int, int]] = []
        self._walk(_ROOT_LEVEL, self.root_pa, 0, found)
        return found

    def _walk(self, level: int, pa: int, prefix: int, found: list[tuple[int, int, int]]) -> None:
        found.append((level, pa, prefix))
        shift = TABLE_SHIFTS[level]
        level -= 1
        for index, child in table_entries(self.memory.read(pa, PAGE_SIZE)):
            if level:
                self._walk(level, child, prefix | index << shift, found)
            else:
                found.append((0, child, prefix | index << shift))

    def nodes(self) -> list[tuple[int, int]]:
        """All node pages as (level, physical address), parents first, ascending by key."""
        return [(level, pa) for level, pa, _ in self.walk()]

    def extents(self) -> list[tuple[int, int] | Extents]:
        """The frames of all nodes and then of all keys, ascending; what this object made of them.

        A node stands before those below it; nodes that follow one another in memory, too, are one.
        """
        found: list[tuple[int, int] | Extents] = []
        first = end = self.root_pa >> PAGE_SHIFT
        for _, _, pfn in sorted(self._made):
            if pfn != end:
                found.append((first, end - first))
                first = pfn
            end = pfn + 1
        found.append((first, end - first))
        for number in sorted(self._bitmaps):
            keys = leaf_runs(bit_runs(bytes(self._bitmaps[number])), number << KHO_BITMAP_SIZE_LOG2)
            found += [
                run.pages if isinstance(run, KeyRuns) else (run[0], run[2] << run[1])
                for run in keys
            ]
        return found

    def runs(self) -> Iterator[KeyRun]:
        """All keys, ascending: the largest orders first, by address within an order.

        Runs are cut where a bitmap ends.
        """
        return single_runs(self.batches())

    def batches(self) -> Iterator[KeyBatch]:
        """As `runs`, and those of a bitmap with many pages at once."""
        for level, pa, prefix in self.walk():
            if level == 0:
                yield from leaf_runs(bit_runs(self.memory.read(pa, PAGE_SIZE)), prefix)


def _put_bits(page: bytearray, bit: int, nr: int, present: bool) -> None:
    """Set or clear `nr` bits of a bitmap from `bit` on."""
    first, last = bit >> 3, bit + nr + 7 >> 3
    if nr >= _MANY_BITS and not (bit | nr) & 7:  # whole bytes, as large runs mostly are
        page[first:last] = (_ONES if present else _ZEROES)[: last - first]
        return
    bits, mask = int.from_bytes(page[first:last], "little"), (1 << nr) - 1 << (bit & 7)
    page[first:last] = (bits | mask if present else bits & ~mask).to_bytes(last - first, "little")
