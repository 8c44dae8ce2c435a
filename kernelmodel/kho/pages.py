"""Preserving ranges of pages that are no folios: cut into blocks, each with a key of its own.

A range is cut greedily: the largest power of two that the frame number is aligned to and that
still fits, and no block lies on two nodes. Nothing caps the order, so gigabytes are few keys.

Unhappy paths: preserving that fails takes back the blocks that were done. Restoring cuts the same
way but for the nodes, so a block that was halved between two nodes comes back only with its first
half: 7.3 has it so. A block that was not preserved ends a restore; those before it stay restored.

C: kernel/liveupdate/kexec_handover.c (kho_preserve_pages, kho_restore_pages), 7.3.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernelmodel.errors import KernelError
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.memory import PAGE_SHIFT

__all__ = ["blocks_by_node", "blocks_of", "preserve_pages", "restore_pages", "unpreserve_pages"]


def blocks_of(pfn: int, nr_pages: int) -> Iterator[tuple[int, int]]:
    """The range as (first frame, order), without regard to nodes."""
    end = pfn + nr_pages
    while pfn < end:
        order = _order(pfn, end)
        yield pfn, order
        pfn += 1 << order


def _order(pfn: int, end: int) -> int:
    fits = (end - pfn).bit_length() - 1
    return min(fits, (pfn & -pfn).bit_length() - 1) if pfn else fits


def blocks_by_node(kho: Kho, pfn: int, nr_pages: int) -> Iterator[tuple[int, int]]:
    """The range as (first frame, order), each block on one node: what keys it is given."""
    pfn_to_nid = kho.kernel.page_alloc.pfn_to_nid
    end = pfn + nr_pages
    while pfn < end:
        order = _order(pfn, end)
        while pfn_to_nid(pfn) != pfn_to_nid(pfn + (1 << order) - 1):
            order -= 1
        yield pfn, order
        pfn += 1 << order


def preserve_pages(kho: Kho, pfn: int, nr_pages: int) -> None:
    """Preserve a range. C: kho_preserve_pages().

    Raises what `Kho.preserve_folios` raises; none of the range's keys is set then.
    """
    kho.check_scratch(pfn, nr_pages)
    done: list[tuple[int, int]] = []
    try:
        for block in blocks_by_node(kho, pfn, nr_pages):
            kho.preserve_folios(*block)
            done.append(block)
    except KernelError:
        for block in done:
            kho.unpreserve_folios(*block)
        raise


def unpreserve_pages(kho: Kho, pfn: int, nr_pages: int) -> None:
    """Take back the keys of a range that was preserved as one. C: kho_unpreserve_pages()."""
    for block in blocks_by_node(kho, pfn, nr_pages):
        kho.unpreserve_folios(*block)


def restore_pages(kho: Kho, pfn: int, nr_pages: int) -> bool:
    """Take back a range; whether all of it was there. C: kho_restore_pages()."""
    return all(
        kho.restore_folio(at << PAGE_SHIFT) is not None for at, _ in blocks_of(pfn, nr_pages)
    )
