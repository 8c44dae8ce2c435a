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
from dataclasses import dataclass

import numpy as np

from kernelmodel.abi.kexec_handover import (
    KHO_ORDER_0_LOG2,
    KHO_TABLE_SIZE_LOG2,
    KHO_TREE_MAX_DEPTH,
)
from kernelmodel.errors import KernelPanic, NoMemory, OutOfRange
from kernelmodel.memory import PAGE_SIZE, PhysicalMemory

__all__ = ["BITMAP_LOG2", "KeyRun", "KhoRadixTree", "decode_key", "encode_key", "leaf_runs"]

BITMAP_LOG2 = 15
_BITMAP_BITS = 1 << BITMAP_LOG2
_TABLE_MASK = (1 << KHO_TABLE_SIZE_LOG2) - 1
_FULL_PAGE = b"\xff" * PAGE_SIZE
#: Above so many runs in one bitmap, unpacking all its bits at once is faster.
_FEW_RUNS = 48


def encode_key(pfn: int, order: int) -> int:
    """The key of the block of `order` at `pfn`. C: kho_radix_encode_key()."""
    return 1 << (KHO_ORDER_0_LOG2 - order) | pfn >> order


def decode_key(key: int) -> tuple[int, int]:
    """(pfn, order) of a key. C: kho_radix_decode_key().

    Raises:
        KernelPanic: its order bit stands above order 0. The kernel shifts by that order and walks
            off the end of its memory map.
    """
    top = key.bit_length() - 1
    order = KHO_ORDER_0_LOG2 - top
    if order < 0:
        raise KernelPanic(f"unable to handle page fault: radix key {key:#x} has no order")
    return (key & ~(1 << top)) << order, order


@dataclass(frozen=True, slots=True)
class KeyRun:
    """`nr` consecutive blocks of one order, the first at `pfn`."""

    pfn: int
    order: int
    nr: int

    @property
    def end_pfn(self) -> int:
        """First frame behind the run."""
        return self.pfn + (self.nr << self.order)


class KhoRadixTree:
    """The tree whose root page lies at `root_pa`.

    `alloc_page` yields the physical address of a zeroed page for a new node (or raises
    `NoMemory`), `free_page` takes one back; a tree that is only read has neither. `nr_keys` counts
    the keys that were set by this object: adding one twice or taking away what is not there is
    silent, and changes nothing.
    """

    __slots__ = ("_alloc_page", "_free_page", "memory", "nr_keys", "root_pa")

    def __init__(
        self,
        memory: PhysicalMemory,
        root_pa: int,
        alloc_page: Callable[[], int] | None = None,
        free_page: Callable[[int], None] | None = None,
    ) -> None:
        self.memory = memory
        self.root_pa = root_pa
        self.nr_keys = 0
        self._alloc_page = alloc_page
        self._free_page = free_page

    def add_run(self, pfn: int, order: int, nr: int = 1) -> None:
        """Set the keys of `nr` consecutive blocks. C: kho_radix_add_page().

        Raises:
            OutOfRange: the last of the keys has more bits than a key of order 0.
            NoMemory: no page for a node. None of the keys is set then, as if whoever adds them
                had taken back those that were done.
        """
        key = encode_key(pfn, order)
        if (key + nr - 1).bit_length() > KHO_ORDER_0_LOG2 + 1:
            raise OutOfRange("key is too wide", pfn=pfn, order=order)
        done = self._change(key, nr, present=True)
        if done < nr:
            self._change(key, done, present=False)
            raise NoMemory("no page for a node of the radix tree", pfn=pfn)

    def del_run(self, pfn: int, order: int, nr: int = 1) -> None:
        """Clear the keys of `nr` consecutive blocks; nodes stay. C: kho_radix_del_page()."""
        self._change(encode_key(pfn, order), nr, present=False)

    def has(self, pfn: int, order: int) -> bool:
        """Whether the key of this block is set."""
        key = encode_key(pfn, order)
        leaf = self._leaf(key, create=False)
        if leaf == 0:
            return False
        bit = key & (_BITMAP_BITS - 1)
        return bool(self.memory.read(leaf + (bit >> 3), 1)[0] >> (bit & 7) & 1)

    def _change(self, key: int, nr: int, *, present: bool) -> int:
        """Set or clear `nr` keys; how many were done before a node could not be had."""
        done = 0
        while done < nr:
            bit = key & (_BITMAP_BITS - 1)
            take = min(nr - done, _BITMAP_BITS - bit)
            try:
                leaf = self._leaf(key, create=present)
            except NoMemory:
                break
            if leaf:
                first, last = bit >> 3, (bit + take + 7) >> 3
                bits = int.from_bytes(self.memory.read(leaf + first, last - first), "little")
                mask = ((1 << take) - 1) << (bit & 7)
                were = (bits & mask).bit_count()
                bits = bits | mask if present else bits & ~mask
                self.nr_keys += (take if present else 0) - were
                self.memory.write(leaf + first, bits.to_bytes(last - first, "little"))
            key += take
            done += take
        return done

    def _leaf(self, key: int, *, create: bool) -> int:
        """The bitmap page of a key, 0 if there is none. Raises: NoMemory; no node is new then."""
        node = self.root_pa
        anchor = 0
        new: list[int] = []
        for level in range(KHO_TREE_MAX_DEPTH - 1, 0, -1):
            index = key >> (BITMAP_LOG2 + KHO_TABLE_SIZE_LOG2 * (level - 1)) & _TABLE_MASK
            slot = node + 8 * index
            node = self.memory.u64(slot)
            if node == 0:
                if not create or self._alloc_page is None:
                    return 0
                try:
                    node = self._alloc_page()
                except NoMemory:
                    if anchor and self._free_page is not None:
                        self.memory.write_u64(anchor, 0)
                        for page in new:
                            self._free_page(page)
                    raise
                anchor = anchor or slot
                new.append(node)
                self.memory.write_u64(slot, node)
        return node

    def destroy(self) -> None:
        """Free all nodes, the root among them. C: kho_radix_destroy_tree()."""
        if self._free_page is not None:
            for _, pa in list(self.nodes()):
                self._free_page(pa)

    def nodes(self) -> Iterator[tuple[int, int]]:
        """All node pages as (level, physical address), parents first, ascending by key."""
        stack = [(KHO_TREE_MAX_DEPTH - 1, self.root_pa)]
        while stack:
            level, pa = stack.pop()
            yield level, pa
            if level:
                table = np.frombuffer(self.memory.read(pa, PAGE_SIZE), dtype="<u8")
                entries = table[table != 0].tolist()
                stack.extend((level - 1, entry) for entry in reversed(entries))

    def runs(self) -> Iterator[KeyRun]:
        """All keys, ascending: the largest orders first, by address within an order.

        C: kho_radix_walk_tree(); runs are cut where a bitmap ends.
        """
        stack = [(KHO_TREE_MAX_DEPTH - 1, self.root_pa, 0)]
        while stack:
            level, pa, prefix = stack.pop()
            if level == 0:
                yield from leaf_runs(self.memory.read(pa, PAGE_SIZE), prefix)
                continue
            table = np.frombuffer(self.memory.read(pa, PAGE_SIZE), dtype="<u8")
            shift = BITMAP_LOG2 + KHO_TABLE_SIZE_LOG2 * (level - 1)
            stack.extend(
                (level - 1, int(table[index]), prefix | index << shift)
                for index in reversed(np.flatnonzero(table).tolist())
            )


def leaf_runs(bitmap: bytes, prefix: int) -> Iterator[KeyRun]:
    """The runs of set bits of one bitmap whose first key is `prefix`."""
    for first, last in _bit_runs(bitmap):
        key, end = prefix | first, prefix | (last - 1)
        while key <= end:
            if key == 0:  # no order bit at all: no key that a kernel sets, and no address
                key += 1
                continue
            pfn, order = decode_key(key)
            # keys with one order bit more start where this order's keys end
            stop = min(end + 1, 1 << key.bit_length())
            yield KeyRun(pfn, order, stop - key)
            key = stop


def _bit_runs(bitmap: bytes) -> Iterator[tuple[int, int]]:
    if bitmap == _FULL_PAGE:
        yield 0, _BITMAP_BITS
        return
    bits = int.from_bytes(bitmap, "little")
    at = 0
    for _ in range(_FEW_RUNS):
        if not bits:
            return
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        at += skip
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield at, at + ones
        bits >>= ones
        at += ones
    if not bits:
        return
    flags = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")[at:]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags, [0])).astype(np.int8))) + at
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
