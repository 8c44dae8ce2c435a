"""Preserving vmalloc areas: the blocks one by one, and a chain of chunks that lists them.

A chunk is a page {u64 next, u64 phys[511]}; its list ends at the first zero. When slot 511 has
just been filled the next chunk is allocated at once, so a list of an exact multiple of 511
entries is followed by an empty chunk.

Unhappy paths: an area that is more than allocated memory (I/O, mapped for users) is EOPNOTSUPP,
and a preserve that fails half way is undone. A restore that fails gives nothing back: what it has
restored so far belongs to nobody from then on.

Simplification, *blocks are whole*: a block whose page is tagged with another order than the area's
fails the restore, where the kernel takes as many pages as the tag says.

C: kernel/liveupdate/kexec_handover.c (kho_preserve_vmalloc and its counterparts), 7.3.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from kernelmodel.abi.kexec_handover import (
    KHO_VMALLOC_ALLOC,
    KHO_VMALLOC_HUGE_VMAP,
    KHO_VMALLOC_PHYS_PER_CHUNK,
    KhoVmalloc,
)
from kernelmodel.errors import KernelError, NotSupported
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.vmalloc import VmallocArea, VmFlags

__all__ = ["preserve_vmalloc", "restore_vmalloc", "unpreserve_vmalloc"]

#: Flags of an area and how they are handed over.
_FLAGS: Final = {
    VmFlags.ALLOC: KHO_VMALLOC_ALLOC,
    VmFlags.ALLOW_HUGE_VMAP: KHO_VMALLOC_HUGE_VMAP,
}
_FLAGS_SUPPORTED: Final = sum(_FLAGS)
#: Up to so many entries of a chunk, Python's own integers are faster than arrays.
_FEW: Final = 16
_FEW_ENTRIES: Final = struct.Struct(f"<{_FEW}Q")


def preserve_vmalloc(kho: Kho, area: VmallocArea) -> KhoVmalloc:
    """Preserve the pages and describe them. C: kho_preserve_vmalloc().

    Raises:
        NotSupported: the area has flags that cannot be handed over.
        NoMemory: no page for a chunk or a node; nothing stays preserved.
    """
    kernel = kho.kernel
    kernel.fail_function("kho_preserve_vmalloc")
    if area.flags & ~_FLAGS_SUPPORTED:
        raise NotSupported("not just allocated memory", flags=area.flags)
    kernel.charge("kho_preserve_vmalloc", area.nr_pages)
    order = area.order
    first = chunk = _alloc_chunk(kho)
    done: list[tuple[int, int]] = []
    slot = 0
    try:
        for start, nr_pages in area.extents:
            pfn, end = start, start + nr_pages
            while pfn < end:
                take = min(end - pfn >> order, KHO_VMALLOC_PHYS_PER_CHUNK - slot)
                kho.preserve_folios(pfn, order, take)
                done.append((pfn, take))
                stop = pfn + (take << order)
                kernel.memory.write(chunk + 8 * (1 + slot), _entries(pfn, order, take))
                pfn, slot = stop, slot + take
                if slot == KHO_VMALLOC_PHYS_PER_CHUNK:
                    following = _alloc_chunk(kho)
                    kernel.memory.write_u64(chunk, following)
                    chunk, slot = following, 0
    except KernelError:
        for pfn, blocks in done:
            kho.unpreserve_folios(pfn, order, blocks)
        _drop_chunks(kho, first)
        raise
    flags = sum(kept for flag, kept in _FLAGS.items() if area.flags & flag)
    return KhoVmalloc(first, area.nr_pages, flags, order)


def _entries(pfn: int, order: int, blocks: int) -> bytes:
    """A chunk's entries for adjacent blocks."""
    start, step = pfn << PAGE_SHIFT, PAGE_SIZE << order
    if blocks <= _FEW:
        return struct.pack(f"<{blocks}Q", *range(start, start + blocks * step, step))
    return np.arange(start, start + blocks * step, step, dtype="<u8").tobytes()


def _alloc_chunk(kho: Kho) -> int:
    """C: new_vmalloc_chunk(), which does not go through kho_alloc_preserve()."""
    pfn = kho.kernel.page_alloc.alloc_pages(0)
    kho.kernel.memory.clear_page(pfn)
    try:
        kho.preserve_folios(pfn, 0)
    except KernelError:
        kho.kernel.page_alloc.free_pages(pfn, 0)
        raise
    return pfn << PAGE_SHIFT


def _drop_chunks(kho: Kho, chunk: int) -> None:
    while chunk:
        following = kho.kernel.memory.u64(chunk)
        kho.unpreserve_free(chunk)
        chunk = following


def unpreserve_vmalloc(kho: Kho, ser: KhoVmalloc, area: VmallocArea) -> None:
    """Undo `preserve_vmalloc`; the area itself stays. C: kho_unpreserve_vmalloc()."""
    for pfn, nr_pages in area.extents:
        kho.unpreserve_folios(pfn, area.order, nr_pages >> area.order)
    _drop_chunks(kho, ser.first)


def restore_vmalloc(kho: Kho, ser: KhoVmalloc) -> VmallocArea | None:
    """Take back an area; None if its chunks do not describe one. C: kho_restore_vmalloc().

    Flags that nobody knows are passed over.
    """
    kernel = kho.kernel
    extents: list[tuple[int, int]] = []
    order = ser.order & 31  # an int is shifted, and x86 looks at five bits of the distance
    total = _restore_chunks(kho, ser, order, extents)
    if total >= 0:
        kernel.charge("kho_restore_vmalloc", total)
    if total != ser.total_pages or total == 0:  # an area of no pages cannot be mapped
        for pfn, nr_pages in extents:
            kho.leaked.add(pfn, pfn + nr_pages)
        return None
    flags = sum(flag for flag, kept in _FLAGS.items() if ser.flags & kept)
    return VmallocArea(tuple(extents), order, flags)


def _restore_chunks(kho: Kho, ser: KhoVmalloc, order: int, extents: list[tuple[int, int]]) -> int:
    """Restore what the chunks list into `extents`; how many pages, -1 if something is wrong.

    A chunk is read before anybody knows whether it was preserved.
    """
    total = 0
    chunk = ser.first
    while chunk:
        for pfn, blocks in _chunk_entries(kho, chunk, order):
            fit = min(blocks, ser.total_pages - total >> order)
            restored = kho.restore_folios(pfn, order, fit)
            if restored:
                extents.append((pfn, restored << order))
            if restored != fit:
                missing = pfn + (restored << order)
                kho.kernel.warn_on(f"vmalloc page {missing:#x} is not preserved")
            if restored != blocks:
                return -1
            total += blocks << order
        following = kho.kernel.memory.u64(chunk)
        if not _restore_free_page(kho, chunk):
            return -1
        chunk = following
    return total


def _restore_free_page(kho: Kho, pa: int) -> bool:
    """Restore a chunk's page and free it; of a larger entry the rest is lost."""
    order, pfn = kho.restore_folio(pa), pa >> PAGE_SHIFT
    if order is None:
        return False
    kho.kernel.charge("kho_unpreserve_free")
    kho.kernel.page_alloc.free_pages(pfn, 0)
    kho.leaked.add(pfn + 1, pfn + (1 << order))
    return True


def _chunk_entries(kho: Kho, chunk: int, order: int) -> list[tuple[int, int]]:
    """Entries up to the first zero, as runs of adjacent blocks (pfn, blocks)."""
    page = kho.kernel.memory.read(chunk, PAGE_SIZE)
    if not any(page[8 * (1 + _FEW) : 8 * (2 + _FEW)]):
        return _short_runs(_FEW_ENTRIES.unpack_from(page, 8), order)
    return _long_runs(np.frombuffer(page, dtype="<u8")[1:], order)


def _short_runs(entries: tuple[int, ...], order: int) -> list[tuple[int, int]]:
    """As `_long_runs`, faster for a few entries."""
    runs: list[tuple[int, int]] = []
    following = -1
    for entry in entries:
        if not entry:
            break
        pfn = entry >> PAGE_SHIFT
        if pfn == following:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((pfn, 1))
        following = pfn + (1 << order)
    return runs


def _long_runs(entries: npt.NDArray[np.uint64], order: int) -> list[tuple[int, int]]:
    ends = np.flatnonzero(entries == 0)
    pfns = entries[: ends[0] if len(ends) else None] >> np.uint64(PAGE_SHIFT)
    cuts = np.flatnonzero(np.diff(pfns) != np.uint64(1 << order)) + 1
    return [(int(run[0]), len(run)) for run in np.split(pfns, cuts) if len(run)]
