"""Chains of one-page blocks in which variable numbers of equal entries cross kexec.

A block is {u64 next, u64 count} and then entries back to back, as many as the page holds. A set
grows before its owner adds an entry and shrinks after it took one away, so that at freeze time
there is room for all; `count` stays 0 until an entry is written there.

Unhappy paths on the incoming side: a cycle, a count of 0 or above the capacity is EINVAL, more
than 10,000 blocks ENOSPC, and whatever of the chain can be reached is given back. A chain whose
last block nobody filled (a set that grew for an entry that was then refused) has count 0 and is
refused like any other.

C: kernel/liveupdate/kho_block.c, 7.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import chain

from kernelmodel.abi.kexec_handover import KhoBlockHeaderSer
from kernelmodel.errors import InvalidArgument, KernelError, NoSpace
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["KHO_MAX_BLOCKS", "KhoBlockSet"]

KHO_MAX_BLOCKS = 10_000
_HEADER = KhoBlockHeaderSer.SIZE
_U64 = struct.Struct("<Q")
_header_at = KhoBlockHeaderSer.FORMAT.unpack_from


class KhoBlockSet:
    """One chain, outgoing until it is `restore`d from memory. C: struct kho_block_set."""

    __slots__ = ("_kho", "blocks", "capacity", "entry_size", "incoming")

    def __init__(self, kho: Kho, entry_size: int) -> None:
        self._kho = kho
        self.entry_size = entry_size
        self.capacity = (PAGE_SIZE - _HEADER) // entry_size
        self.blocks: list[int] = []
        self.incoming = False

    @property
    def head_pa(self) -> int:
        """Address of the first block, 0 if there is none."""
        return self.blocks[0] if self.blocks else 0

    def grow(self, nr_entries: int) -> None:
        """Make room for so many entries. C: kho_block_set_grow().

        Raises:
            NoSpace: that would be more than 10,000 blocks. NoMemory. In both cases the blocks
                added by this call are gone again. InvalidArgument: an incoming set.
        """
        if self.incoming:
            self._kho.kernel.warn_on("growing a block set that came over")
            raise InvalidArgument("incoming block set")
        blocks = self.blocks
        before = len(blocks)
        try:
            for number in range(before, -(-nr_entries // self.capacity)):
                if number >= KHO_MAX_BLOCKS:
                    raise NoSpace("too many blocks")
                block = self._kho.alloc_preserve(PAGE_SIZE)
                if number:
                    self._kho.kernel.memory.write_u64(blocks[-1], block)
                blocks.append(block)
        except KernelError:
            while len(blocks) > before:
                self._drop_tail()
            raise

    def shrink(self, nr_entries: int) -> None:
        """Free the blocks that so many entries do not need. C: kho_block_set_shrink()."""
        while self.blocks and nr_entries <= (len(self.blocks) - 1) * self.capacity:
            self._drop_tail()

    def destroy(self) -> None:
        """Free all blocks. C: kho_block_set_destroy()."""
        while self.blocks:
            self._drop_tail()

    def _drop_tail(self) -> None:
        block = self.blocks.pop()
        if self.incoming:
            self._kho.restore_free(block)
        else:
            self._kho.unpreserve_free(block)
        if self.blocks:
            tail, kernel = self.blocks[-1], self._kho.kernel
            if self.incoming and self._kho.tag_order(tail >> PAGE_SHIFT) is None:
                kernel.overran = True  # a block that nobody preserved is free memory by now
            kernel.memory.write_u64(tail, 0)

    def reserve_entry(self, index: int) -> int:
        """Address of slot `index`; its block's count then ends with it.

        C: kho_block_it_reserve_entry(). Raises: NoSpace if the set has not grown for it.
        """
        number, slot = index // self.capacity, index % self.capacity
        if number >= len(self.blocks):
            raise NoSpace("no block for this entry", index=index)
        block = self.blocks[number]
        _U64.pack_into(self._kho.kernel.memory.writable(block >> PAGE_SHIFT), 8, slot + 1)
        return block + _HEADER + slot * self.entry_size

    def write_entries(self, entries: list[bytes]) -> None:
        """Reserve the first slots and put these there, a block at a time.

        Raises:
            NoSpace: the set has not grown for so many; nothing is written.
        """
        nr, capacity = len(entries), self.capacity
        if nr > len(self.blocks) * capacity:
            raise NoSpace("no block for this entry", index=nr - 1)
        write, first = self._kho.kernel.memory.write, 0
        for block in self.blocks[: -(-nr // capacity)]:
            count = min(capacity, nr - first)
            part = b"".join(entries[first : first + count])
            write(block + 8, _U64.pack(count) + part)
            first += count

    def clear(self) -> None:
        """Empty every block; the chain stays."""
        for block in self.blocks:
            self._kho.kernel.memory.write(block + 8, bytes(PAGE_SIZE - 8))

    def restore(self, head_pa: int) -> None:
        """Take over a chain from the previous kernel. C: kho_block_set_restore().

        Raises:
            InvalidArgument, NoSpace: see the module's text.
        """
        self.incoming = True
        if head_pa == 0:
            return
        at = head_pa
        while at:
            following, count = _header_at(self._bytes_at(at, _HEADER))
            if following and at == head_pa:  # or there is nothing that could be a cycle
                self._check_cycle(head_pa)
            try:
                if not 1 <= count <= self.capacity:
                    raise InvalidArgument("absurd entry count", count=count)
                if len(self.blocks) >= KHO_MAX_BLOCKS:
                    raise NoSpace("too many blocks")
            except KernelError:
                self.destroy()
                while at:
                    following = self._kho.kernel.memory.u64(at)
                    self._kho.restore_free(at)
                    at = following
                raise
            self.blocks.append(at)
            at = following

    def _check_cycle(self, head_pa: int) -> None:
        memory = self._kho.kernel.memory
        slow = fast = head_pa
        for _ in range(KHO_MAX_BLOCKS):
            if not fast:
                return
            fast = memory.u64(fast)
            if not fast:
                return
            fast, slow = memory.u64(fast), memory.u64(slow)
            if fast and fast == slow:
                break
        raise InvalidArgument("block chain never ends")

    def entries(self) -> Iterator[bytes | bytearray]:
        """All entries in order, each block's count as it says."""
        return chain.from_iterable(map(self._entries_of, self.blocks))

    def _entries_of(self, block: int) -> Iterable[bytes | bytearray]:
        page, size = self._bytes_at(block, PAGE_SIZE), self.entry_size
        count = _header_at(page)[1]
        if count > self.capacity:
            # A page that was not preserved can be written to after `restore`. Nobody looks at the
            # count again, so entries are read, behind the page too, until one is wrong.
            read = self._kho.kernel.memory.read
            return (read(block + _HEADER + nr * size, size) for nr in range(count))
        return [page[at : at + size] for at in range(_HEADER, _HEADER + count * size, size)]

    def _bytes_at(self, at: int, size: int) -> bytes | bytearray:
        """So many bytes at least; a broken chain leads anywhere, not only to where pages begin."""
        memory = self._kho.kernel.memory
        return memory.read(at, size) if at % PAGE_SIZE else memory.page(at >> PAGE_SHIFT)
