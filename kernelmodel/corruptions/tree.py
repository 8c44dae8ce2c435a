"""Corruptions of the radix tree of preserved memory.

C: kernel/liveupdate/kexec_handover.c, 7.3. The tree is walked twice: by kho_extend_scratch(), which
looks for gigabytes without preserved memory, and by kho_mem_deserialize(), which reserves every
entry and tags its first page. Neither doubts what it finds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from kernelmodel.abi.kexec_handover import KHO_PROP_MEMORY_MAP
from kernelmodel.corruptions.corruption import Corruption, Outcome
from kernelmodel.corruptions.handed_over import HandedOver, NotThere, overlaid
from kernelmodel.corruptions.reader import Write, u64
from kernelmodel.memory import GIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["CORRUPTIONS"]

_FILE: Final = "kernel/liveupdate/kexec_handover.c"
_WALK: Final = f"kho_radix_walk_tree(), {_FILE}"
_DESERIALIZE: Final = f"kho_mem_deserialize(), {_FILE}"
_RESTORE: Final = f"kho_restore_page(), {_FILE}"
#: A slot of the root that no order uses: orders are 0 to 52, and all above 1 share slot 0.
_UNUSED_SLOT: Final = 3


def _root_at(place: Callable[[HandedOver], int]) -> Callable[[HandedOver], list[Write]]:
    def writes(handed: HandedOver) -> list[Write]:
        fdt = handed.fdt()
        fdt.root.props[KHO_PROP_MEMORY_MAP] = place(handed).to_bytes(8, "little")
        return handed.put_fdt(fdt)

    return writes


def _folio(handed: HandedOver, index: int = 0) -> int:
    """The frame of a memfd's folio."""
    return handed.folio_pfn(handed.memfd(1), index)


def _leaf_slot(handed: HandedOver) -> int:
    return handed.path(_folio(handed), 0)[-1]


def _endless(handed: HandedOver) -> list[Write]:
    """Five tables, each full of the next; the last one's bitmap is empty."""
    nodes = [frame << PAGE_SHIFT for frame in handed.spare_frames(5)]
    writes = [u64(handed.tree_pa() + 8 * _UNUSED_SLOT, nodes[0])]
    for node, child in pairwise(nodes):
        writes.append((node, struct.pack("<Q", child) * 512))
    return [*writes, (nodes[-1], bytes(PAGE_SIZE))]


def _key_of_spare_frame(handed: HandedOver) -> list[Write]:
    return handed.put_key(handed.spare_frames(1)[0], 0, present=True)


def _key_of_last_gigabyte(handed: HandedOver) -> list[Write]:
    top = max(ram.end for ram in handed.memory_map)
    if top < 2 * GIB:
        raise NotThere("two gigabytes of memory")
    return handed.put_key((top // GIB - 1) * GIB >> PAGE_SHIFT, 18, present=True)


def _last_folio_larger(handed: HandedOver) -> list[Write]:
    """Of the first memfd whose last folio could head a block of two."""
    for memfd in handed.memfds():
        nr = memfd.ser.nr_folios
        pfn = handed.folio_pfn(memfd, nr - 1) if nr else 1
        if pfn % 2 == 0 and (pfn + 1, 0) not in set(handed.preserved()):
            writes = handed.put_key(pfn, 0, present=False)
            return writes + overlaid(handed, writes).put_key(pfn, 1, present=True)
    raise NotThere("a last folio that could head a block of two")


def _key_of_huge_page_around_folio(handed: HandedOver) -> list[Write]:
    return handed.put_key(_folio(handed) & -512, 9, present=True)


CORRUPTIONS: Final = (
    Corruption(
        "tree-root-outside",
        "The FDT puts the root of the tree behind all memory.",
        _WALK,
        Outcome.FAULT,
        "the root is read without a check",
        _root_at(lambda handed: handed.outside()),
    ),
    Corruption(
        "tree-node-outside",
        "A pointer of the tree's root leads behind all memory.",
        _WALK,
        Outcome.FAULT,
        "pointers are followed without a check",
        lambda handed: [u64(handed.tree_pa() + 8 * _UNUSED_SLOT, handed.outside())],
    ),
    Corruption(
        "tree-leaf-outside",
        "The pointer to the bitmap of a memfd's first folio leads behind all memory.",
        _WALK,
        Outcome.FAULT,
        "pointers are followed without a check",
        lambda handed: [u64(_leaf_slot(handed), handed.outside())],
    ),
    Corruption(
        "tree-root-loop",
        "A pointer of the tree's root leads to the root.",
        _DESERIALIZE,
        Outcome.FAULT,
        "the walk ends after six levels; addresses read as bits are keys far behind all memory",
        lambda handed: [u64(handed.tree_pa(), handed.tree_pa())],
    ),
    Corruption(
        "tree-endless",
        "Five tables that are full of pointers to the next one hang off the root.",
        _WALK,
        Outcome.HANG,
        "68 billion bitmaps are looked at, one by one, before anything else happens",
        _endless,
    ),
    Corruption(
        "key-outside",
        "A frame behind all memory is preserved.",
        _DESERIALIZE,
        Outcome.FAULT,
        "the tag is written into a struct page that does not exist",
        lambda handed: handed.put_key(handed.outside() >> PAGE_SHIFT, 0, present=True),
    ),
    Corruption(
        "key-of-spare-frame",
        "A frame that nobody uses is preserved.",
        _DESERIALIZE,
        Outcome.WRONG_MEMORY,
        "it is reserved, and nobody gives it back",
        _key_of_spare_frame,
    ),
    Corruption(
        "key-in-scratch",
        "The first frame of the first scratch area is preserved.",
        _DESERIALIZE,
        Outcome.WRONG_MEMORY,
        "scratch is not looked at: the frame is reserved, and nobody gives it back",
        lambda handed: handed.put_key(
            handed.scratch_areas()[0].ser.addr >> PAGE_SHIFT, 0, present=True
        ),
    ),
    Corruption(
        "key-of-tree-node",
        "The root of the tree is preserved itself.",
        _DESERIALIZE,
        Outcome.WRONG_MEMORY,
        "it is reserved, and nobody gives it back",
        lambda handed: handed.put_key(handed.tree_pa() >> PAGE_SHIFT, 0, present=True),
    ),
    Corruption(
        "key-overlap",
        "The 2 MiB around a memfd's first folio are preserved as well, as one block.",
        _DESERIALIZE,
        Outcome.WRONG_MEMORY,
        "larger orders come first, so the small entries' tags stand; the rest of the block is "
        "reserved, and nobody gives it back",
        _key_of_huge_page_around_folio,
    ),
    Corruption(
        "key-of-gigabyte",
        "The last whole gigabyte of memory is preserved as one block.",
        _DESERIALIZE,
        Outcome.WRONG_MEMORY,
        "all of it that is not in use is reserved, and nobody gives it back",
        _key_of_last_gigabyte,
    ),
    Corruption(
        "key-of-folio-larger",
        "The last folio of a memfd is preserved as a block of two pages.",
        _RESTORE,
        Outcome.ACCEPTED,
        "the order is that of the tag: behind the file's end it has what the next frame held",
        _last_folio_larger,
    ),
    Corruption(
        "key-missing-folio",
        "The first folio of a memfd is not preserved.",
        _RESTORE,
        Outcome.FILE_REFUSED,
        "its frame carries no tag",
        lambda handed: handed.put_key(_folio(handed), 0, present=False),
        errno="EIO",
    ),
    Corruption(
        "key-missing-table",
        "A page of a memfd's folio table is not preserved.",
        _RESTORE,
        Outcome.FILE_REFUSED,
        "a table that cannot be restored whole is not restored",
        lambda handed: handed.put_key(
            handed.table_pages(handed.memfd(1))[0] >> PAGE_SHIFT, 0, present=False
        ),
        errno="EINVAL",
    ),
)
