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

#: Flags of an area that can be handed over, as they are handed over.
_KEPT: Final = {
    0: 0,
    int(VmFlags.ALLOC): KHO_VMALLOC_ALLOC,
    int(VmFlags.ALLOW_HUGE_VMAP): KHO_VMALLOC_HUGE_VMAP,
    int(VmFlags.ALLOC | VmFlags.ALLOW_HUGE_VMAP): KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP,
}
_AREA_FLAGS: Final = {kept: flags for flags, kept in _KEPT.items()}
_KNOWN_FLAGS: Final = KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP
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
    kept = _KEPT.get(area.flags)
    if kept is None:
        raise NotSupported("not just allocated memory", flags=area.flags)
    order, total = area.order, area.nr_pages
    kernel.charge("kho_preserve_vmalloc", total)
    write = kernel.memory.write
    first = chunk = _alloc_chunk(kho)
    slot = 0
    done: list[tuple[int, int]] = []
    try:
        for start, nr_pages in area.extents:
            pfn, blocks = start, nr_pages >> order
            while blocks:
                take = min(blocks, KHO_VMALLOC_PHYS_PER_CHUNK - slot)
                kho.preserve_folios(pfn, order, take)
                done.append((pfn, take))
                write(chunk + 8 + 8 * slot, _entries(pfn, order, take))
                slot += take
                if slot == KHO_VMALLOC_PHYS_PER_CHUNK:
                    following = _alloc_chunk(kho)
                    kernel.memory.write_u64(chunk, following)
                    chunk, slot = following, 0
                pfn, blocks = pfn + (take << order), blocks - take
    except KernelError:
        for pfn, blocks in done:
            kho.unpreserve_folios(pfn, order, blocks)
        _drop_chunks(kho, first)
        raise
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
    extents: list[tuple[int, int]] = []
    order = ser.order & 31  # an int is shifted, and x86 looks at five bits of the distance
    left = _restore_chunks(kho, ser, order, extents)
    if left is not None:
        kho.kernel.charge("kho_restore_vmalloc", ser.total_pages - left)
    if left != 0 or not extents:  # an area of no pages cannot be mapped
        for pfn, nr_pages in extents:
            kho.leaked.add(pfn, pfn + nr_pages)
        return None
    return VmallocArea(tuple(extents), order, _AREA_FLAGS[ser.flags & _KNOWN_FLAGS])


def _restore_chunks(
    kho: Kho, ser: KhoVmalloc, order: int, extents: list[tuple[int, int]]
) -> int | None:
    """Restore what the chunks list into `extents`; how many pages are missing.

    None if something is wrong. A chunk is read before anybody knows whether it was preserved.
    """
    kernel, left, chunk = kho.kernel, ser.total_pages, ser.first
    while chunk:
        page = kernel.memory.read(chunk, PAGE_SIZE)
        for pfn, blocks in _chunk_runs(page, order, left >> order):
            fit = min(blocks, left >> order)
            restored = kho.restore_folios(pfn, order, fit)
            if restored:
                extents.append((pfn, restored << order))
            if restored != fit:
                missing = pfn + (restored << order)
                kernel.warn_on(f"vmalloc page {missing:#x} is not preserved")
            if restored != blocks:
                return None
            left -= blocks << order
        if not kho.restore_free(chunk, page_only=True):
            return None
        chunk = _U64.unpack_from(page)[0]
    return left


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
    listed = np.frombuffer(page, dtype="<u8", offset=8)
    if not listed.all():
        listed = listed[: int(listed.argmin())]
    pfns = listed >> PAGE_SHIFT
    if not len(pfns):
        return []
    cuts = (np.flatnonzero(pfns[1:] != pfns[:-1] + (1 << order)) + 1).tolist()
    first = [0, *cuts]
    ends = [*cuts, len(pfns)]
    return [(pfn, end - at) for pfn, at, end in zip(pfns[first].tolist(), first, ends, strict=True)]
