"""What the previous kernel handed over, as early boot sees it: FDT, scratch array, tree.

Happy path: `read_handover` looks at what firmware names before anything is allocated, tells
memblock of scratch and confines it to that; `deserialize` walks the tree much later, reserves
every entry and tags its first page.

Unhappy paths: an FDT that is none, of another format or without a tree is no handover, and boot
is an ordinary one. Nobody checks what the tree says: an entry where there is no memory faults, one
that covers what is in use already reserves it again.

C: kernel/liveupdate/kexec_handover.c (kho_populate, kho_mem_deserialize), 7.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

import numpy as np

from kernelmodel.abi.kexec_handover import KHO_PROP_MEMORY_MAP, KhoScratch
from kernelmodel.errors import KernelPanic
from kernelmodel.kho.fdt import Fdt, FdtError, stringlist_contains
from kernelmodel.kho.key_runs import KeyRuns
from kernelmodel.kho.radix_walk import IncomingTree
from kernelmodel.kho.tags import PageTags
from kernelmodel.machine import Firmware
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.extents import Extents

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["KhoIn", "deserialize", "incoming_tree", "read_handover"]


@dataclass(frozen=True, slots=True)
class KhoIn:
    """What this kernel was handed. C: struct kho_in."""

    fdt_pa: int
    fdt: Fdt
    root_pa: int
    scratch_pa: int
    scratch: tuple[KhoScratch, ...]


def read_handover(kernel: Kernel, firmware: Firmware) -> KhoIn | None:
    """What firmware points to, if this kernel can make something of it. C: kho_populate().

    From a handover that is taken on, memblock allocates from scratch alone.
    """
    kho = kernel.release.kho
    if firmware.fdt is None or firmware.scratch is None or kho is None:
        return None
    kernel.charge("kho_populate")
    memory, memblock = kernel.memory, kernel.memblock
    fdt_pa = firmware.fdt[0]
    scratch_pa, scratch_len = firmware.scratch
    try:
        if not memory.is_ram(fdt_pa, PAGE_SIZE):
            raise FdtError("nothing can be read where it should be")
        fdt = Fdt.follow(memory.read(fdt_pa, PAGE_SIZE))
        root_pa = _tree_of(fdt, kho)
    except FdtError as error:
        kernel.printk(f"KHO: disabling KHO revival: {error}")
        return None
    if not scratch_len:
        kernel.printk("KHO: disabling KHO revival: an array of no bytes cannot be mapped")
        return None
    raw = memory.read(scratch_pa, scratch_len)
    whole = scratch_len // KhoScratch.SIZE * KhoScratch.SIZE
    scratch = tuple(starmap(KhoScratch, KhoScratch.FORMAT.iter_unpack(raw[:whole])))
    for area in scratch:
        if area.size and not memory.is_ram(area.addr, area.size):
            # it is taken for memory, the highest is allocated first, and nothing written stays
            raise KernelPanic(f"hang: scratch at {area.addr:#x} is no memory")
        memblock.mark_kho_scratch(area.addr, area.size)
    memblock.reserve(scratch_pa, scratch_len)
    memblock.set_kho_scratch_only()
    return KhoIn(fdt_pa, fdt, root_pa, scratch_pa, scratch)


def _tree_of(fdt: Fdt, kho: str) -> int:
    """Address of the tree's root page. Raises: FdtError."""
    compatible = fdt.root.props.get("compatible", b"")
    if not stringlist_contains(compatible, kho):
        said = compatible.rstrip(b"\0").decode("ascii", "replace")
        raise FdtError(f"compatible is {said!r}, expected {kho!r}")
    root_pa = fdt.root.u64(KHO_PROP_MEMORY_MAP)
    if not root_pa:
        raise FdtError(f"no {KHO_PROP_MEMORY_MAP}")
    return root_pa


def incoming_tree(kernel: Kernel, incoming: KhoIn) -> IncomingTree:
    """The tree as it is now. Raises: KernelPanic, if it cannot be walked."""
    end_pfn = max(ram.end for ram in kernel.firmware.memory_map) >> PAGE_SHIFT
    return IncomingTree(kernel.memory, incoming.root_pa, end_pfn)


def deserialize(kernel: Kernel, tree: IncomingTree, tags: PageTags) -> None:
    """Reserve and tag all entries, in the tree's order. C: kho_mem_deserialize().

    Raises:
        KernelPanic: an entry lies where there is no memory.
    """
    is_ram, memblock = kernel.memory.is_ram, kernel.memblock
    found: list[tuple[int, int, int]] = []
    scattered: list[Extents] = []
    try:
        for run in tree.batches():
            if isinstance(run, KeyRuns):
                _check_pages(kernel, run.pages)
                scattered.append(run.pages)
                tags.put_pages(run.pages)
                kernel.charge_each("kho_reserve_preserved", run.pages.counts)
                kernel.charge_each("kho_init_preserved_page", run.pages.counts)
                continue
            pfn, order, nr = run
            if not is_ram(pfn << PAGE_SHIFT, nr << order + PAGE_SHIFT):
                # nobody looks before the struct pages of an entry are written
                raise KernelPanic(f"unable to handle page fault: no memory map for {pfn:#x}")
            tags.put(pfn, order, nr)
            found.append(run)
    finally:
        if found:
            kernel.charge_each("kho_reserve_preserved", [nr for _, _, nr in found])
            kernel.charge_each("kho_init_preserved_page", [nr << order for _, order, nr in found])
    memblock.reserve_noinit(
        [(pfn << PAGE_SHIFT, pfn + (nr << order) << PAGE_SHIFT) for pfn, order, nr in found]
    )
    if scattered:
        memblock.reserve_noinit_pages(
            Extents(
                np.concatenate([pages.pfns for pages in scattered]),
                np.concatenate([pages.counts for pages in scattered]),
            )
        )


def _check_pages(kernel: Kernel, pages: Extents) -> None:
    first, end = int(pages.pfns[0]), int(pages.ends[-1])
    if kernel.memory.is_ram(first << PAGE_SHIFT, end - first << PAGE_SHIFT):
        return
    for pfn, nr_pages in pages:
        if not kernel.memory.is_ram(pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT):
            raise KernelPanic(f"unable to handle page fault: no memory map for {pfn:#x}")
