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
from collections.abc import Iterator
from typing import NoReturn

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
        self._kho.kernel.fail_function("kho_block_set_grow")
        if self.incoming:
            self._kho.kernel.warn_on("growing a block set that came over")
            raise InvalidArgument("incoming block set")
        blocks, before = self.blocks, len(self.blocks)
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
        write, capacity, at = self._kho.kernel.memory.write, self.capacity, 0
        if len(entries) > len(self.blocks) * capacity:
            raise NoSpace("no block for this entry", index=len(entries) - 1)
        for block in self.blocks:
            part = entries[at : at + capacity]
            if not part:
                break
            write(block + 8, _U64.pack(len(part)) + b"".join(part))
            at += capacity

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
        memory, blocks, at = self._kho.kernel.memory, self.blocks, head_pa
        while at:
            following, count = _header_at(memory.read(at, _HEADER))
            if following and at == head_pa:  # or there is nothing that could be a cycle
                self._check_cycle(head_pa)
            if not 1 <= count <= self.capacity:
                self._refuse(at, InvalidArgument("absurd entry count", count=count))
            if len(blocks) >= KHO_MAX_BLOCKS:
                self._refuse(at, NoSpace("too many blocks"))
            blocks.append(at)
            at = following

    def _refuse(self, at: int, error: KernelError) -> NoReturn:
        """Give back what was taken over and what of the chain can be reached from `at` on."""
        self.destroy()
        while at:
            following = self._kho.kernel.memory.u64(at)
            self._kho.restore_free(at)
            at = following
        raise error

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

    def entries(self) -> Iterator[bytes]:
        """All entries in order, each block's count as it says."""
        read, size = self._kho.kernel.memory.read, self.entry_size
        for block in self.blocks:
            page = read(block, PAGE_SIZE)
            count = _header_at(page)[1]
            if count <= self.capacity:
                for at in range(_HEADER, _HEADER + count * size, size):
                    yield page[at : at + size]
                continue
            # A page that was not preserved can be written to after `restore`. Nobody looks at the
            # count again, so entries are read, behind the page too, until one is wrong.
            for nr in range(count):
                yield read(block + _HEADER + nr * size, size)
