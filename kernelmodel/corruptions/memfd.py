"""Corruptions of what the memfd handler leaves: its entry, the folio table, the folios.

C: mm/memfd_luo.c, kernel/liveupdate/kexec_handover.c (kho_restore_vmalloc), 7.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kernelmodel.abi.folio_table import FOLIO_SER_SIZE
from kernelmodel.abi.memfd import MEMFD_LUO_FOLIO_UPTODATE, MemfdLuoSer
from kernelmodel.corruptions.corruption import Corruption, Outcome
from kernelmodel.corruptions.handed_over import Found, HandedOver
from kernelmodel.corruptions.reader import Write, u64
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["CORRUPTIONS"]

_RETRIEVE: Final = "memfd_luo_retrieve(), mm/memfd_luo.c"
_FOLIOS: Final = "memfd_luo_retrieve_folios(), mm/memfd_luo.c"
_VMALLOC: Final = "kho_restore_vmalloc(), kernel/liveupdate/kexec_handover.c"
_PFN_BITS: Final = 52
_PER_PAGE: Final = PAGE_SIZE // FOLIO_SER_SIZE

_Memfd = Found[MemfdLuoSer]


def _entry(
    change: Callable[[HandedOver, _Memfd], Write], nr_folios: int = 1
) -> Callable[[HandedOver], list[Write]]:
    """Change something of the first memfd with so many folios."""
    return lambda handed: [change(handed, handed.memfd(nr_folios))]


def _folio(index: int, change: Callable[[HandedOver, int], int]) -> Callable[..., list[Write]]:
    """Change the first word of a folio's entry: its frame, and its flags above that."""

    def writes(handed: HandedOver) -> list[Write]:
        pa = handed.folio_pa(handed.memfd(index + 1), index)
        return [u64(pa, change(handed, handed.word(pa)))]

    return writes


def _pfn(word: int, pfn: int) -> int:
    return word >> _PFN_BITS << _PFN_BITS | pfn


def _first_folio_twice(handed: HandedOver) -> list[Write]:
    memfd = handed.memfd(2)
    second = handed.folio_pa(memfd, 1)
    return [u64(second, _pfn(handed.word(second), handed.folio_pfn(memfd, 0)))]


def _index(index: int, value: Callable[[_Memfd], int]) -> Callable[[HandedOver], list[Write]]:
    def writes(handed: HandedOver) -> list[Write]:
        memfd = handed.memfd(index + 1)
        return [u64(handed.folio_pa(memfd, index) + 8, value(memfd))]

    return writes


def _room(handed: HandedOver, memfd: _Memfd) -> int:
    return len(handed.table_pages(memfd)) * _PER_PAGE


_FIELDS: Final = (
    Corruption(
        "memfd-seals-unknown",
        "A memfd has a seal that this kernel does not know.",
        _RETRIEVE,
        Outcome.FILE_REFUSED,
        "unknown seals are refused before anything else",
        _entry(lambda _, memfd: memfd.but(seals=memfd.ser.seals | 1 << 31), 0),
        errno="EOPNOTSUPP",
    ),
    Corruption(
        "memfd-flags-unknown",
        "The entry of a memfd has a flag set; no flags are defined.",
        _RETRIEVE,
        Outcome.ACCEPTED,
        "they are not looked at",
        _entry(lambda _, memfd: memfd.but(flags=1), 0),
    ),
    Corruption(
        "memfd-position-negative",
        "The position of a memfd is a negative number.",
        _RETRIEVE,
        Outcome.ACCEPTED,
        "a position that no file can have is not taken, it is 0",
        _entry(lambda _, memfd: memfd.but(pos=1 << 63), 0),
    ),
    Corruption(
        "memfd-size-more",
        "A memfd is said to be a page longer than it is.",
        _RETRIEVE,
        Outcome.CONTENT_CHANGED,
        "the size is taken; the page more is a hole",
        _entry(lambda _, memfd: memfd.but(size=memfd.ser.size + PAGE_SIZE), 0),
    ),
    Corruption(
        "memfd-size-max",
        "A memfd is said to have the largest size there is.",
        _RETRIEVE,
        Outcome.CONTENT_CHANGED,
        "the size is taken",
        _entry(lambda _, memfd: memfd.but(size=(1 << 63) - 1), 0),
    ),
    Corruption(
        "memfd-size-zero",
        "A memfd with folios is said to be empty.",
        _RETRIEVE,
        Outcome.CONTENT_CHANGED,
        "the size is taken; its folios lie behind the end",
        _entry(lambda _, memfd: memfd.but(size=0)),
    ),
    Corruption(
        "memfd-entry-absent",
        "The entry of a memfd with folios reads as zero.",
        _RETRIEVE,
        Outcome.CONTENT_CHANGED,
        "that is the entry of an empty file; table and folios stay reserved",
        _entry(lambda _, memfd: (memfd.pa, bytes(PAGE_SIZE))),
    ),
    Corruption(
        "memfd-folios-none",
        "A memfd with folios is said to have none.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "the file is one hole; table and folios stay reserved",
        _entry(lambda _, memfd: memfd.but(nr_folios=0)),
    ),
    Corruption(
        "memfd-folios-fewer",
        "A memfd is said to have one folio less than it has.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "its last page is a hole; the folio stays reserved",
        _entry(lambda _, memfd: memfd.but(nr_folios=memfd.ser.nr_folios - 1), 2),
    ),
    Corruption(
        "memfd-folios-behind-table",
        "A memfd is said to have one folio more than its table has room for.",
        _FOLIOS,
        Outcome.FAULT,
        "the table is read on into the unmapped page behind it",
        _entry(lambda handed, memfd: memfd.but(nr_folios=_room(handed, memfd) + 1)),
    ),
)

_TABLE: Final = (
    Corruption(
        "table-first-zero",
        "A memfd with folios has no chunk that lists its folio table.",
        _VMALLOC,
        Outcome.FILE_REFUSED,
        "the pages of the table are counted",
        _entry(lambda _, memfd: memfd.but(folios_first=0)),
        errno="EINVAL",
    ),
    Corruption(
        "table-first-outside",
        "The chunk that lists a memfd's folio table is behind all memory.",
        _VMALLOC,
        Outcome.FAULT,
        "it is read without a check",
        _entry(lambda handed, memfd: memfd.but(folios_first=handed.outside())),
    ),
    Corruption(
        "table-pages-more",
        "A memfd's folio table is said to have one page more than it has.",
        _VMALLOC,
        Outcome.FILE_REFUSED,
        "the pages of the table are counted",
        _entry(lambda _, memfd: memfd.but(folios_total_pages=memfd.ser.folios_total_pages + 1)),
        errno="EINVAL",
    ),
    Corruption(
        "table-pages-fewer",
        "A memfd's folio table is said to have one page less than it has.",
        _VMALLOC,
        Outcome.FILE_REFUSED,
        "the pages of the table are counted",
        _entry(lambda _, memfd: memfd.but(folios_total_pages=memfd.ser.folios_total_pages - 1)),
        errno="EINVAL",
    ),
    Corruption(
        "table-flags-unknown",
        "A memfd's folio table has a flag that this kernel does not know.",
        _VMALLOC,
        Outcome.ACCEPTED,
        "unknown flags are dropped",
        _entry(lambda _, memfd: memfd.but(folios_flags=memfd.ser.folios_flags | 1 << 15)),
    ),
    Corruption(
        "table-order",
        "A memfd's folio table is said to be made of blocks of 2 MiB.",
        _VMALLOC,
        Outcome.FILE_REFUSED,
        "a block is more than the pages that the table has",
        _entry(lambda _, memfd: memfd.but(folios_order=9)),
        errno="EINVAL",
    ),
    Corruption(
        "table-chunk-loop",
        "The chunk that lists a memfd's folio table goes on with itself.",
        _VMALLOC,
        Outcome.FILE_REFUSED,
        "the pages of the table are counted, and none can be restored twice",
        _entry(lambda _, memfd: u64(memfd.ser.folios_first, memfd.ser.folios_first)),
        errno="EINVAL",
    ),
    Corruption(
        "table-chunk-absent",
        "The chunk that lists a memfd's folio table reads as zero.",
        _VMALLOC,
        Outcome.FILE_REFUSED,
        "the pages of the table are counted",
        _entry(lambda _, memfd: (memfd.ser.folios_first, bytes(PAGE_SIZE))),
        errno="EINVAL",
    ),
    Corruption(
        "table-page-absent",
        "The first page of a memfd's folio table reads as zero.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "entries without a frame are passed over: holes; the folios stay reserved",
        _entry(lambda handed, memfd: (handed.table_pages(memfd)[0], bytes(PAGE_SIZE))),
    ),
)

_FOLIO: Final = (
    Corruption(
        "folio-frame-zero",
        "The first folio of a memfd has no frame.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "it is passed over: a hole; the folio stays reserved",
        _folio(0, lambda _, word: _pfn(word, 0)),
    ),
    Corruption(
        "folio-not-preserved",
        "The first folio of a memfd is in a frame that is not preserved.",
        _FOLIOS,
        Outcome.FILE_REFUSED,
        "the frame carries no tag; the folios behind it are freed",
        _folio(0, lambda handed, word: _pfn(word, handed.spare_frames(1)[0])),
        errno="EIO",
    ),
    Corruption(
        "folio-outside",
        "The first folio of a memfd is behind all memory.",
        _FOLIOS,
        Outcome.FILE_REFUSED,
        "a frame that does not exist is not online; the folios behind it are freed",
        _folio(0, lambda handed, word: _pfn(word, handed.outside() >> PAGE_SHIFT)),
        errno="EIO",
    ),
    Corruption(
        "folio-twice",
        "The second folio of a memfd is in the frame of the first.",
        _FOLIOS,
        Outcome.FILE_REFUSED,
        "a frame can be restored once",
        _first_folio_twice,
        errno="EIO",
    ),
    Corruption(
        "folio-index-twice",
        "The second folio of a memfd has the index of the first.",
        _FOLIOS,
        Outcome.FILE_REFUSED,
        "the page cache has a folio there already",
        _index(1, lambda _: 0),
        errno="EEXIST",
    ),
    Corruption(
        "folio-index-behind-size",
        "The first folio of a memfd has an index behind the file's end.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "the size is not looked at: where it was is a hole",
        _index(0, lambda memfd: (memfd.ser.size >> PAGE_SHIFT) + 16),
    ),
    Corruption(
        "folio-flags-unknown",
        "The first folio of a memfd has flags that this kernel does not know.",
        _FOLIOS,
        Outcome.ACCEPTED,
        "they are not looked at",
        _folio(0, lambda _, word: word | 1 << 63),
    ),
    Corruption(
        "folio-not-uptodate",
        "The first folio of a memfd is said not to be up to date.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "a read takes it for allocated and never written: zeroes",
        _folio(0, lambda _, word: word & ~(MEMFD_LUO_FOLIO_UPTODATE << _PFN_BITS)),
    ),
    Corruption(
        "folio-content",
        "The content of a memfd's first folio is another.",
        _FOLIOS,
        Outcome.CONTENT_CHANGED,
        "content carries no checksum",
        lambda handed: [(handed.folio_pfn(handed.memfd(1), 0) << PAGE_SHIFT, b"\x5a" * PAGE_SIZE)],
    ),
)

CORRUPTIONS: Final = (*_FIELDS, *_TABLE, *_FOLIO)
