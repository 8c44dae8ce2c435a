"""KHO's scratch areas: memory that the next kernel may use before it knows what is preserved.

Reserved once, on the cold boot, and handed from kernel to kernel unchanged. One area below
4 GiB, one anywhere, one for each NUMA node with memory; sized by `kho_scratch=` or as a
percentage of what this kernel itself has reserved by then, hugetlb left out.

C: kernel/liveupdate/kexec_handover.c (kho_reserve_scratch and what it calls), 7.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.errors import NoMemory
from kernelmodel.memory import GIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.memblock import NUMA_NO_NODE, Memblock
from kernelmodel.mm.mmzone import MAX_ORDER_NR_PAGES

__all__ = [
    "KHO_SCRATCH_ALIGN",
    "ScratchParam",
    "memparse",
    "reserve_scratch",
]

#: Every area is rounded to whole largest-order blocks: 4 MiB on x86.
KHO_SCRATCH_ALIGN = PAGE_SIZE * MAX_ORDER_NR_PAGES
_LOWMEM_END = (1 << 32) - 1
_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTPEkmgtpe]?)")
_PERCENT = re.compile(r"([0-9]{1,10})%")


def memparse(text: str) -> int | None:
    """A size such as `64M` in bytes; None if it is none. C: memparse()."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    number, suffix = match.groups()
    base = 16 if number[:2].lower() == "0x" else 8 if number[0] == "0" else 10
    try:
        return int(number, base) << _SUFFIXES[suffix.upper()]
    except ValueError:  # 09 and the like
        return None


@dataclass(frozen=True, slots=True)
class ScratchParam:
    """`kho_scratch=`: a percentage, or three sizes in bytes (`percent` is None then)."""

    percent: int | None = 200
    lowmem: int = 0
    globl: int = 0
    pernode: int = 0

    @classmethod
    def parse(cls, text: str) -> ScratchParam | None:
        """Read `N%` or `low,global,pernode`; None for anything else, which changes nothing.

        C: kho_parse_scratch_size().
        """
        match = _PERCENT.fullmatch(text)
        if match is not None:
            percent = int(match[1])
            return cls(percent) if percent < 1 << 32 else None
        sizes = [memparse(part) for part in text.split(",")]
        if len(sizes) != 3 or None in sizes:
            return None
        lowmem, globl, pernode = (size or 0 for size in sizes)
        if lowmem + globl + pernode == 0:
            return None
        return cls(None, lowmem, globl, pernode)


def _round_up(size: int) -> int:
    return -(-size // KHO_SCRATCH_ALIGN) * KHO_SCRATCH_ALIGN


def reserve_scratch(
    memblock: Memblock, param: ScratchParam, nids: list[int]
) -> tuple[int, list[KhoScratch]]:
    """Reserve the array and all areas; returns the array's address and the areas in its order.

    C: kho_reserve_scratch(). Areas come from the top of what is free.

    Raises:
        NoMemory: one of them does not fit; what was reserved before it is free again.
    """
    if param.percent is None:
        lowmem, globl = param.lowmem, param.globl
    else:
        lowmem = memblock.reserved_kern_size(_LOWMEM_END) * param.percent // 100
        globl = memblock.reserved_kern_size() * param.percent // 100 - lowmem
    array_size = KhoScratch.SIZE * (2 + len(nids))
    array = memblock.alloc_range(-(-array_size // PAGE_SIZE) * PAGE_SIZE, PAGE_SIZE)
    areas: list[KhoScratch] = []

    def area(size: int, end: int | None, nid: int) -> None:
        size = _round_up(size)
        addr = memblock.alloc_range(
            size, KHO_SCRATCH_ALIGN, 0, end, nid, exact_nid=nid != NUMA_NO_NODE
        )
        areas.append(KhoScratch(addr, size))

    try:
        area(lowmem, min(_LOWMEM_END, 4 * GIB), NUMA_NO_NODE)
        area(globl, None, NUMA_NO_NODE)
        for nid in nids:
            size = param.pernode
            if param.percent is not None:
                size = memblock.reserved_kern_size(nid=nid) * param.percent // 100
            area(size, None, nid)
    except NoMemory:
        for done in areas:
            memblock.free(done.addr, done.size)
        memblock.free(array, -(-array_size // PAGE_SIZE) << PAGE_SHIFT)
        raise
    return array, areas
