"""KHO's scratch areas: memory that the next kernel may use before it knows what is preserved.

Reserved once, on the cold boot, and handed from kernel to kernel unchanged. One area below
4 GiB, one anywhere, one for each NUMA node with memory; sized by `kho_scratch=` or as a
percentage of what this kernel itself has reserved by then. Up to 7.2 boot's huge pages counted as
reserved too, which left no room for scratch where they took more than a fifth of memory; 7.3
leaves them out.

A KHO boot of 7.3 extends scratch, for itself: by every gigabyte in which nothing is preserved.

C: kernel/liveupdate/kexec_handover.c (kho_reserve_scratch, kho_extend_scratch and what they call),
7.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelmodel import params
from kernelmodel.abi.kexec_handover import KHO_BITMAP_SIZE_LOG2, KHO_TREE_MAX_DEPTH, KhoScratch
from kernelmodel.errors import NoMemory
from kernelmodel.kho.key_runs import KeyRuns
from kernelmodel.kho.radix_walk import IncomingTree
from kernelmodel.memory import GIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.memblock import NUMA_NO_NODE, Memblock
from kernelmodel.mm.mmzone import MAX_ORDER_NR_PAGES

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = [
    "KHO_SCRATCH_ALIGN",
    "ScratchParam",
    "cold_boot_scratch",
    "extend_scratch",
    "memparse",
    "reserve_scratch",
]

#: Every area is rounded to whole largest-order blocks: 4 MiB on x86.
KHO_SCRATCH_ALIGN = PAGE_SIZE * MAX_ORDER_NR_PAGES
_LOWMEM_END = (1 << 32) - 1
_PERCENT = re.compile(r"(\+?[0-9]+)%")
_PERCENT_DIGITS = 10
_U64 = (1 << 64) - 1
_GIB_PFN_SHIFT = GIB.bit_length() - 1 - PAGE_SHIFT
#: Levels of the tree in which the extension notes gigabytes, and gigabytes to its leaves.
_BUSY_LEVELS = KHO_TREE_MAX_DEPTH
_BUSY_PER_LEAF = 1 << KHO_BITMAP_SIZE_LOG2


def memparse(text: str) -> int | None:
    """A size such as `64M` in bytes; None if it is none. C: memparse().

    As there, what does not fit 64 bits is the largest number.
    """
    size, behind = params.memparse(text)
    return None if behind or not text else size


@dataclass(frozen=True, slots=True)
class ScratchParam:
    """`kho_scratch=`: a percentage, or three sizes in bytes (`percent` is None then)."""

    percent: int | None = 200
    lowmem: int = 0
    globl: int = 0
    pernode: int = 0

    @classmethod
    def read(cls, values: Iterable[str]) -> tuple[ScratchParam, list[str]]:
        """What all `kho_scratch=` of a command line come to, and those that say nothing.

        The last that can be read counts.
        """
        param, unreadable = cls(), []
        for text in values:
            said = cls.parse(text)
            if said is None:
                unreadable.append(text)
            else:
                param = said
        return param, unreadable

    @classmethod
    def parse(cls, text: str) -> ScratchParam | None:
        """Read `N%` or `low,global,pernode`; None for anything else, which changes nothing.

        C: kho_parse_scratch_size().
        """
        match = _PERCENT.fullmatch(text)
        if match is not None:
            percent = int(match[1])
            fits = len(match[1]) <= _PERCENT_DIGITS and percent < 1 << 32
            return cls(percent) if fits else None
        sizes = [memparse(part) for part in text.split(",")]
        if len(sizes) != 3 or None in sizes:
            return None
        lowmem, globl, pernode = (size or 0 for size in sizes)
        if lowmem + globl + pernode & _U64 == 0:
            return None
        return cls(None, lowmem, globl, pernode)


def _round_up(size: int) -> int:
    return -(-size // KHO_SCRATCH_ALIGN) * KHO_SCRATCH_ALIGN & _U64


def reserve_scratch(
    memblock: Memblock, param: ScratchParam, nids: list[int], *, with_hugetlb: bool = False
) -> tuple[int, list[KhoScratch]]:
    """Reserve the array and all areas; returns the array's address and the areas in its order.

    C: kho_reserve_scratch(). Areas come from the top of what is free. `with_hugetlb` counts huge
    pages as the kernel's own.

    Raises:
        NoMemory: one of them does not fit; what was reserved before it is free again.
    """

    def percent_of(limit: int | None = None, nid: int = NUMA_NO_NODE) -> int:
        assert param.percent is not None
        reserved = memblock.reserved_kern_size(limit, nid, with_hugetlb=with_hugetlb)
        return reserved * param.percent // 100

    lowmem, globl = param.lowmem, param.globl
    if param.percent is not None:
        lowmem = percent_of(_LOWMEM_END)
        globl = percent_of() - lowmem
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
            size = param.pernode if param.percent is None else percent_of(nid=nid)
            area(size, None, nid)
    except NoMemory:
        for done in areas:
            memblock.free(done.addr, done.size)
        memblock.free(array, -(-array_size // PAGE_SIZE) << PAGE_SHIFT)
        raise
    return array, areas


def cold_boot_scratch(kernel: Kernel) -> tuple[int, list[KhoScratch]]:
    """Reserve what this kernel's command line asks for. Returns and raises as above."""
    param, unreadable = ScratchParam.read(kernel.params.values("kho_scratch"))
    for text in unreadable:
        kernel.printk(f"KHO: cannot parse kho_scratch={text}, it changes nothing")
    nids = list(kernel.page_alloc.nodes)
    with_hugetlb = not kernel.release.kho_extends_scratch
    return reserve_scratch(kernel.memblock, param, nids, with_hugetlb=with_hugetlb)


def extend_scratch(memblock: Memblock, tree: IncomingTree) -> int:
    """Mark every gigabyte without a preserved page or a node of the tree; keys that were seen.

    C: kho_extend_scratch(). The areas handed over stay scratch, whatever lies beside them.

    Raises:
        NoMemory: no pages to note the gigabytes in; nothing is marked then.
    """
    top = -(-memblock.memory.regions[-1][1] // GIB)
    busy = bytearray(top)  # a flag for each gigabyte
    keys = 0
    for run in tree.batches():
        if isinstance(run, KeyRuns):  # of one bitmap, which is an eighth of a gigabyte
            keys += run.pages.total
            first = int(run.pages.pfns[0]) >> _GIB_PFN_SHIFT
            end = first + 1
        else:
            pfn, order, nr = run
            keys += nr
            first = pfn >> _GIB_PFN_SHIFT
            end = (pfn + (nr << order) - 1 >> _GIB_PFN_SHIFT) + 1
        busy[first:end] = b"\1" * (min(end, top) - first)
    for gigabyte in {pfn >> _GIB_PFN_SHIFT for pfn in tree.node_frames()}:
        if gigabyte < top:  # or firmware does not know of that memory
            busy[gigabyte] = 1
    _alloc_busy_tree(memblock, busy)
    first = busy.find(0)
    while first >= 0:
        end = busy.find(1, first)
        end = top if end < 0 else end
        memblock.mark_kho_scratch(first * GIB, (end - first) * GIB)
        first = busy.find(0, end)
    return keys


def _alloc_busy_tree(memblock: Memblock, busy: bytearray) -> None:
    """The kernel notes them in a tree of its own, from scratch, and frees that afterwards."""
    leaves = [1 in busy[at : at + _BUSY_PER_LEAF] for at in range(0, len(busy), _BUSY_PER_LEAF)]
    wanted = _BUSY_LEVELS - 1 + sum(leaves)
    if memblock.find_in_range(wanted * PAGE_SIZE, PAGE_SIZE) is not None:
        return  # there is room for all of them, and nothing is left of what is taken and given back
    pages: list[int] = []
    try:
        pages.extend(memblock.alloc_range(PAGE_SIZE, PAGE_SIZE) for _ in range(wanted))
    finally:
        for page in pages:
            memblock.free(page, PAGE_SIZE)
