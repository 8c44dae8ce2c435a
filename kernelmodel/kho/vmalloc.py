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

#: Flags of an area that can be handed over.
_ALLOC: Final = int(VmFlags.ALLOC)
_HUGE_VMAP: Final = int(VmFlags.ALLOW_HUGE_VMAP)
#: Up to so many entries of a chunk, Python's own integers are faster than arrays.
_FEW: Final = 16
_CHUNK: Final = struct.Struct(f"<{1 + KHO_VMALLOC_PHYS_PER_CHUNK}Q")
_U64: Final = struct.Struct("<Q")
_NONE: Final = bytes(8)
_PA_BITS: Final = 52


def preserve_vmalloc(kho: Kho, area: VmallocArea) -> KhoVmalloc:
    """Preserve the pages and describe them. C: kho_preserve_vmalloc().

    Raises:
        NotSupported: the area has flags that cannot be handed over.
        NoMemory: no page for a chunk or a node; nothing stays preserved.
    """
    kernel = kho.kernel
    kernel.fail_function("kho_preserve_vmalloc")
    flags = int(area.flags)
    if flags & ~(_ALLOC | _HUGE_VMAP):
        raise NotSupported("not just allocated memory", flags=area.flags)
    order, total = area.order, area.nr_pages
    kernel.charge("kho_preserve_vmalloc", total)
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
                kernel.memory.write(chunk + 8 * (1 + slot), _entries(pfn, order, take))
                pfn, slot = pfn + (take << order), slot + take
                if slot == KHO_VMALLOC_PHYS_PER_CHUNK:
                    following = _alloc_chunk(kho)
                    kernel.memory.write_u64(chunk, following)
                    chunk, slot = following, 0
    except KernelError:
        for pfn, blocks in done:
            kho.unpreserve_folios(pfn, order, blocks)
        _drop_chunks(kho, first)
        raise
    kept = KHO_VMALLOC_ALLOC if flags & _ALLOC else 0
    kept |= KHO_VMALLOC_HUGE_VMAP if flags & _HUGE_VMAP else 0
    return KhoVmalloc(first, total, kept, order)


def _entries(pfn: int, order: int, blocks: int) -> bytes:
    """A chunk's entries for adjacent blocks."""
    start, step = pfn << PAGE_SHIFT, PAGE_SIZE << order
    if blocks == 1:
        return _U64.pack(start)
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
    flags = _ALLOC if ser.flags & KHO_VMALLOC_ALLOC else 0
    flags |= _HUGE_VMAP if ser.flags & KHO_VMALLOC_HUGE_VMAP else 0
    return VmallocArea(tuple(extents), order, flags)


def _restore_chunks(kho: Kho, ser: KhoVmalloc, order: int, extents: list[tuple[int, int]]) -> int:
    """Restore what the chunks list into `extents`; how many pages, -1 if something is wrong.

    A chunk is read before anybody knows whether it was preserved.
    """
    total = 0
    chunk = ser.first
    while chunk:
        page = kho.kernel.memory.read(chunk, PAGE_SIZE)
        for pfn, blocks in _chunk_runs(page, order, ser.total_pages - total >> order):
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
        if not kho.restore_free(chunk, page_only=True):
            return -1
        chunk = _U64.unpack_from(page)[0]
    return total


def _chunk_runs(page: bytes, order: int, most: int) -> list[tuple[int, int]]:
    """A chunk's entries up to the first zero, as runs of adjacent blocks (pfn, blocks).

    `most` blocks are what should be there at most.
    """
    pa: int = _U64.unpack_from(page, 8)[0]
    blocks = min(most, KHO_VMALLOC_PHYS_PER_CHUNK)
    if blocks == 1 and pa and page[16:24] == _NONE:  # as the list of a small table is
        return [(pa >> PAGE_SHIFT, 1)]
    if pa and blocks > 0 and pa + (blocks << PAGE_SHIFT + order) < 1 << _PA_BITS:
        # nearly always they are all adjacent: compared with what they would be then
        ended = _NONE if blocks < KHO_VMALLOC_PHYS_PER_CHUNK else b""
        if page.startswith(_entries(pa >> PAGE_SHIFT, order, blocks) + ended, 8):
            return [(pa >> PAGE_SHIFT, blocks)]
    runs: list[tuple[int, int]] = []
    following = -1
    for entry in _CHUNK.unpack(page)[1:]:
        if not entry:
            break
        pfn = entry >> PAGE_SHIFT
        if pfn == following:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((pfn, 1))
        following = pfn + (1 << order)
    return runs
