"""What the next kernel is handed, for whoever wants to find a structure in it and change a byte.

`HandedOver` works on anything that reads physical memory: a modelled host's memory between the
jump and the boot, or a real machine's that a debugger holds still at that moment. It follows the
structures as the next kernel would, and trusts them: it is for handovers that a kernel wrote, on
their way to be spoilt.

Unhappy path: `NotThere`, when the handover has no such thing (no session, no file with folios).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from kernelmodel.abi.folio_table import FOLIO_SER_SIZE
from kernelmodel.abi.kexec_handover import (
    KHO_BITMAP_SIZE_LOG2,
    KHO_PROP_MEMORY_MAP,
    KHO_PROP_SUBTREE_DATA,
    KHO_TABLE_SIZE_LOG2,
    KHO_TREE_MAX_DEPTH,
    KhoBlockHeaderSer,
    KhoScratch,
)
from kernelmodel.abi.layout import Ser, cstring
from kernelmodel.abi.luo import (
    LUO_SUBTREE,
    LuoFileSer,
    LuoFlbHeaderSer,
    LuoFlbSer,
    LuoSer,
    LuoSessionSer,
)
from kernelmodel.abi.memfd import MemfdLuoSer
from kernelmodel.corruptions.reader import MemoryReader, Overlay, Write, u64
from kernelmodel.kho.fdt import Fdt
from kernelmodel.kho.radix_pages import decode_key
from kernelmodel.kho.radix_tree import TABLE_SHIFTS, encode_key
from kernelmodel.memory import MIB, PAGE_SHIFT, PAGE_SIZE, MemoryRange
from kernelmodel.mm.ranges import RangeSet

__all__ = ["Found", "HandedOver", "Node", "NotThere", "overlaid"]

_TABLE_MASK: Final = (1 << KHO_TABLE_SIZE_LOG2) - 1
_MEMFD: Final = b"memfd-v2"
#: Below lie the real-mode area and what firmware and boot loader left.
_SPARE_FROM: Final = 2 * MIB
_S = TypeVar("_S", bound=Ser)


class NotThere(LookupError):
    """The handover does not have what is to be corrupted; the message says what."""


@dataclass(frozen=True, slots=True)
class Found(Generic[_S]):
    """A structure and the physical address at which it stands."""

    pa: int
    ser: _S

    def but(self, **changes: object) -> Write:
        """The structure with other values in some fields."""
        return self.pa, replace(self.ser, **changes).pack()


@dataclass(frozen=True, slots=True)
class Node:
    """A page of the radix tree: a table, or at level 0 a bitmap whose first key is `prefix`."""

    level: int
    pa: int
    prefix: int


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A handover between the jump and the next boot.

    `scratch` is (physical address, size in bytes) of the scratch array that firmware data names,
    `memory_map` the installed RAM.
    """

    memory: MemoryReader
    fdt_pa: int
    scratch: tuple[int, int]
    memory_map: tuple[MemoryRange, ...]

    def at(self, pa: int, kind: type[_S]) -> Found[_S]:
        """The structure of this kind at `pa`."""
        return Found(pa, kind.unpack(self.memory.read(pa, kind.SIZE)))

    def word(self, pa: int) -> int:
        """The little-endian u64 at `pa`."""
        return int.from_bytes(self.memory.read(pa, 8), "little")

    # FDT, scratch, memory.

    def fdt(self) -> Fdt:
        """The root FDT, a fresh copy."""
        return Fdt.parse(self.memory.read(self.fdt_pa, PAGE_SIZE))

    def put_fdt(self, fdt: Fdt) -> list[Write]:
        """Another FDT in its place."""
        return [(self.fdt_pa, fdt.pack())]

    def scratch_areas(self) -> list[Found[KhoScratch]]:
        """The entries of the scratch array."""
        pa, size = self.scratch
        return [self.at(pa + at, KhoScratch) for at in range(0, size, KhoScratch.SIZE)]

    def outside(self) -> int:
        """A page-aligned address well behind all memory."""
        return 2 * max(ram.end for ram in self.memory_map)

    def spare_frames(self, nr: int) -> list[int]:
        """Frames that belong to nobody: not preserved, no scratch, no node of the tree."""
        taken = [(node.pa >> PAGE_SHIFT, (node.pa >> PAGE_SHIFT) + 1) for node in self.nodes()]
        taken += [(pfn, pfn + (1 << order)) for pfn, order in self.preserved()]
        for area in self.scratch_areas():
            end = area.ser.addr + area.ser.size
            taken.append((area.ser.addr >> PAGE_SHIFT, end >> PAGE_SHIFT))
        busy = RangeSet(taken)
        frames: list[int] = []
        for ram in self.memory_map:
            first = max(ram.base, _SPARE_FROM) >> PAGE_SHIFT
            for low, high in busy.gaps(first, ram.end >> PAGE_SHIFT):
                frames += range(low, min(high, low + nr - len(frames)))
        if len(frames) < nr:
            raise NotThere(f"{nr} spare frames")
        return frames

    # The radix tree.

    def tree_pa(self) -> int:
        """Address of the tree's root page."""
        return self.fdt().root.u64(KHO_PROP_MEMORY_MAP) or 0

    def path(self, pfn: int, order: int) -> list[int]:
        """Addresses of the pointers, from the root's down, that lead to this key's bitmap."""
        key = encode_key(pfn, order)
        node = self.tree_pa()
        slots: list[int] = []
        for level in range(KHO_TREE_MAX_DEPTH - 1, 0, -1):
            index = key >> TABLE_SHIFTS[level] & _TABLE_MASK
            slots.append(node + 8 * index)
            node = self.word(slots[-1])
            if not node:
                break
        return slots

    def key_byte(self, pfn: int, order: int) -> tuple[int, int]:
        """(address, bit number) of this key's bit. Raises: NotThere, if it has no bitmap."""
        bitmap = self.word(self.path(pfn, order)[-1])
        if not bitmap:
            raise NotThere("the tree has no bitmap for this key")
        bit = encode_key(pfn, order) & (1 << KHO_BITMAP_SIZE_LOG2) - 1
        return bitmap + (bit >> 3), bit & 7

    def put_key(self, pfn: int, order: int, *, present: bool) -> list[Write]:
        """Set or clear a key; missing nodes are made in spare frames."""
        slots = self.path(pfn, order)
        writes: list[Write] = []
        missing = KHO_TREE_MAX_DEPTH - 1 - len(slots) + (not self.word(slots[-1]))
        key = encode_key(pfn, order)
        bit = key & (1 << KHO_BITMAP_SIZE_LOG2) - 1
        if missing and not present:
            return []
        if not missing:
            pa, shift = self.key_byte(pfn, order)
            byte = self.memory.read(pa, 1)[0]
            byte = byte | 1 << shift if present else byte & ~(1 << shift)
            return [(pa, bytes([byte]))]
        slot = slots[-1]
        frames = [frame for frame in self.spare_frames(missing + 1) if frame != pfn]
        for depth, frame in enumerate(frames[:missing]):
            node = frame << PAGE_SHIFT
            writes += [(node, bytes(PAGE_SIZE)), u64(slot, node)]
            level = missing - 1 - depth
            if level:
                index = key >> TABLE_SHIFTS[level] & _TABLE_MASK
                slot = node + 8 * index
            else:
                writes.append((node + (bit >> 3), bytes([1 << (bit & 7)])))
        return writes

    def nodes(self) -> list[Node]:
        """The tree's pages, level by level, root first."""
        level = KHO_TREE_MAX_DEPTH - 1
        tables = [Node(level, self.tree_pa(), 0)]
        found = list(tables)
        while level:
            shift = TABLE_SHIFTS[level]
            level -= 1
            tables = [
                Node(level, child, table.prefix | index << shift)
                for table in tables
                for index, child in enumerate(struct.unpack("<512Q", self.page(table.pa)))
                if child
            ]
            found += tables
        return found

    def preserved(self) -> Iterator[tuple[int, int]]:
        """(pfn, order) of everything that is preserved."""
        for node in self.nodes():
            if node.level == 0:
                bits = int.from_bytes(self.page(node.pa), "little")
                while bits:
                    low = bits & -bits
                    yield decode_key(node.prefix | low.bit_length() - 1)
                    bits ^= low

    def page(self, pa: int) -> bytes:
        """The page at `pa`."""
        return self.memory.read(pa, PAGE_SIZE)

    # LUO.

    def luo(self) -> Found[LuoSer]:
        """LUO's blob."""
        node = self.fdt().root.subnode(LUO_SUBTREE)
        pa = node.u64(KHO_PROP_SUBTREE_DATA) if node is not None else None
        if pa is None:
            raise NotThere("LUO handed nothing over")
        return self.at(pa, LuoSer)

    def blocks(self, head_pa: int) -> list[Found[KhoBlockHeaderSer]]:
        """The blocks of a chain."""
        found: list[Found[KhoBlockHeaderSer]] = []
        while head_pa:
            found.append(self.at(head_pa, KhoBlockHeaderSer))
            head_pa = found[-1].ser.next
        return found

    def _entries(self, head_pa: int, kind: type[_S]) -> Iterator[Found[_S]]:
        for block in self.blocks(head_pa):
            for index in range(block.ser.count):
                yield self.at(block.pa + KhoBlockHeaderSer.SIZE + index * kind.SIZE, kind)

    def session_blocks(self, nr: int = 1) -> list[Found[KhoBlockHeaderSer]]:
        """The blocks of the sessions. Raises: NotThere, if there are fewer than `nr`."""
        return _at_least(nr, self.blocks(self.luo().ser.sessions_pa), "blocks of sessions")

    def sessions(self, nr: int = 1) -> list[Found[LuoSessionSer]]:
        """The sessions. Raises: NotThere, if there are fewer than `nr`."""
        found = list(self._entries(self.luo().ser.sessions_pa, LuoSessionSer))
        return _at_least(nr, found, "sessions")

    def session_with_files(self, nr: int = 1) -> Found[LuoSessionSer]:
        """The first session with that many files."""
        return _first((s for s in self.sessions() if s.ser.count >= nr), f"session of {nr} files")

    def files(self, session: Found[LuoSessionSer]) -> list[Found[LuoFileSer]]:
        """A session's files."""
        return list(self._entries(session.ser.files, LuoFileSer))

    def memfds(self) -> Iterator[Found[MemfdLuoSer]]:
        """The entries of all plain memfds, session by session."""
        for session in self.sessions():
            for file in self.files(session):
                if cstring(file.ser.compatible) == _MEMFD:
                    yield self.at(file.ser.data, MemfdLuoSer)

    def memfd(self, nr_folios: int = 0) -> Found[MemfdLuoSer]:
        """The first plain memfd with at least so many folios."""
        found = (memfd for memfd in self.memfds() if memfd.ser.nr_folios >= nr_folios)
        return _first(found, f"memfd of {nr_folios} folios")

    # The folio table of a memfd.

    def chunks(self, memfd: Found[MemfdLuoSer]) -> list[int]:
        """Addresses of the chunks that list the table's pages."""
        found: list[int] = []
        at = memfd.ser.folios_first
        while at:
            found.append(at)
            at = self.word(at)
        return found

    def table_pages(self, memfd: Found[MemfdLuoSer]) -> list[int]:
        """Addresses of the table's pages."""
        pages: list[int] = []
        for chunk in self.chunks(memfd):
            words = struct.unpack("<512Q", self.page(chunk))[1:]
            pages += words[: words.index(0) if 0 in words else None]
        return pages

    def folio_pa(self, memfd: Found[MemfdLuoSer], index: int) -> int:
        """Address of a folio's entry in the table."""
        page, slot = divmod(index, PAGE_SIZE // FOLIO_SER_SIZE)
        return self.table_pages(memfd)[page] + slot * FOLIO_SER_SIZE

    def folio_pfn(self, memfd: Found[MemfdLuoSer], index: int) -> int:
        """A folio's frame."""
        return self.word(self.folio_pa(memfd, index)) & (1 << 52) - 1

    # FLBs.

    def flb_header(self) -> Found[LuoFlbHeaderSer]:
        """The head of the FLB table."""
        return self.at(self.luo().ser.flbs_pa, LuoFlbHeaderSer)

    def flbs(self) -> list[Found[LuoFlbSer]]:
        """The entries of the FLB table. Raises: NotThere, if there are none."""
        header = self.flb_header()
        first = header.pa + LuoFlbHeaderSer.SIZE
        found = [
            self.at(first + index * LuoFlbSer.SIZE, LuoFlbSer) for index in range(header.ser.count)
        ]
        return _at_least(1, found, "FLBs")


def overlaid(handed: HandedOver, writes: list[Write]) -> HandedOver:
    """The handover as it will be once these writes are made."""
    return replace(handed, memory=Overlay(handed.memory, writes))


_T = TypeVar("_T")


def _at_least(nr: int, found: list[_T], what: str) -> list[_T]:
    if len(found) < nr:
        raise NotThere(f"{len(found)} {what}, not {nr}")
    return found


def _first(found: Iterator[_T], what: str) -> _T:
    one = next(found, None)
    if one is None:
        raise NotThere(f"no {what}")
    return one
