"""Folio tables of preserved files: the vmalloc area that holds one, its entries, their content.

Faults that are looked for: chunks and table pages that are shared, missing or not preserved; a
table shorter than its file says; folios that are not preserved or have the wrong size, at one
index twice, or beyond the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernelmodel.abi.folio_table import FOLIO_SER_SIZE
from kernelmodel.abi.kexec_handover import (
    KHO_VMALLOC_ALLOC,
    KHO_VMALLOC_HUGE_VMAP,
    KhoVmalloc,
)
from kernelmodel.abi.memfd import MEMFD_LUO_FOLIO_UPTODATE
from kernelmodel.image.fnv import FNV_BASIS, fnv1a, fnv1a_zeroes
from kernelmodel.inspect.preserved import Preserved
from kernelmodel.inspect.reader import Reader
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["Folio", "check_preserved", "content_hash", "read_folios"]

_ENTRY_SHIFT: Final = 52
_PFN_MASK: Final = (1 << _ENTRY_SHIFT) - 1
#: The largest block that a vmalloc area is made of, and more: 1 GiB.
_AREA_ORDER_MAX: Final = 18
#: Frames that are hashed at once.
_BATCH: Final = 16


@dataclass(frozen=True, slots=True, order=True)
class Folio:
    """A run of adjacent frames: `nr_pages` from `pfn` on, at page `index` of the file."""

    index: int
    pfn: int
    nr_pages: int


def read_folios(
    reader: Reader,
    preserved: Preserved,
    vmalloc: KhoVmalloc,
    nr_folios: int,
    what: str,
    *,
    order: int | None = None,
    flags: int = 0,
) -> list[Folio]:
    """The folios of a file, by index.

    With `order`, all of them are of that order and indexes count such folios; without, each has
    the order that it is preserved with and indexes count pages. `flags` are those that are known.
    """
    if nr_folios == 0:
        if vmalloc != KhoVmalloc(0, 0, 0, 0):
            reader.faults.add(f"{what} has no folios, but a folio table at {vmalloc.first:#x}")
        return []
    folios: list[Folio] = []
    for pfn, index, nr in _entries(reader, preserved, vmalloc, nr_folios, what, order, flags):
        folios += _resolved(reader, preserved, pfn, index, nr, order, what)
    folios.sort()
    reach = 0
    for folio in folios:
        if folio.index < reach:
            reader.faults.add(f"{what} has two folios at index {folio.index}")
        reach = max(reach, folio.index + folio.nr_pages)
        reader.claim_frames(folio.pfn, folio.nr_pages, what)
    return folios


def _entries(
    reader: Reader,
    preserved: Preserved,
    vmalloc: KhoVmalloc,
    nr_folios: int,
    what: str,
    order: int | None,
    flags: int,
) -> Iterator[tuple[int, int, int]]:
    """The table's entries as runs (pfn, index, entries), those without an address left out."""
    pages = list(_table_pages(reader, preserved, vmalloc, what))
    if len(pages) != vmalloc.total_pages:
        reader.faults.add(
            f"the folio table of {what} says {vmalloc.total_pages} pages and has {len(pages)}"
        )
    room = len(pages) * (PAGE_SIZE // FOLIO_SER_SIZE)
    if nr_folios > room:
        reader.faults.add(f"{what} says {nr_folios} folios, its table has room for {room}")
    left = nr_folios
    for page in pages:
        entries = np.frombuffer(page, dtype="<u8").reshape(-1, 2)[: max(0, left)]
        left -= len(entries)
        for pfn, index, nr, word_flags in _entry_runs(entries, 1 << (order or 0)):
            if word_flags & ~flags:
                reader.faults.add(f"{what} has a folio with unknown flags {word_flags:#x}")
            if flags & MEMFD_LUO_FOLIO_UPTODATE and not word_flags & MEMFD_LUO_FOLIO_UPTODATE:
                reader.faults.add(f"{what} has a folio that is not up to date: it reads as zero")
            if pfn:
                yield pfn, index, nr
            else:
                reader.faults.add(f"{what} has no address for its folio at index {index}")


def _table_pages(
    reader: Reader, preserved: Preserved, vmalloc: KhoVmalloc, what: str
) -> Iterator[bytes]:
    """The pages of a vmalloc area in order, as far as they can be had."""
    if vmalloc.flags & ~(KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP):
        reader.faults.add(f"the folio table of {what} has unknown flags {vmalloc.flags:#x}")
    if vmalloc.order > _AREA_ORDER_MAX:
        reader.faults.add(f"the folio table of {what} has blocks of order {vmalloc.order}")
        return
    at, pages = vmalloc.first, 0
    while at:
        chunk = _claim(reader, preserved, at, 0, f"a chunk of the folio table of {what}")
        if chunk is None:
            return
        at, *blocks = np.frombuffer(chunk, dtype="<u8").tolist()
        for block in blocks:
            if block == 0:
                break
            part = f"the folio table of {what}"
            for page in range(1 << vmalloc.order):
                if pages == vmalloc.total_pages:
                    reader.faults.add(f"{part} goes on behind its {pages} pages, at {block:#x}")
                    return
                head = vmalloc.order if page == 0 else None
                found = _claim(reader, preserved, block + (page << PAGE_SHIFT), head, part)
                pages += 1
                if found is None:
                    return
                yield found


def _claim(
    reader: Reader, preserved: Preserved, pa: int, order: int | None, what: str
) -> bytes | None:
    """A page of metadata; with `order`, the head of a preserved entry of that order."""
    page = reader.claim(pa, what)
    if page is not None and order is not None:
        check_preserved(reader, preserved, pa, order, what)
    return page


def check_preserved(reader: Reader, preserved: Preserved, pa: int, order: int, what: str) -> None:
    """Note if `pa` is not preserved as an entry of `order`: the next kernel cannot restore it."""
    found = preserved.order_at(pa >> PAGE_SHIFT)
    if found is None:
        reader.faults.add(f"{what} at {pa:#x} is not preserved")
    elif found[0] != order:
        reader.faults.add(f"{what} at {pa:#x} is preserved with order {found[0]}, not {order}")


def _entry_runs(entries: NDArray[np.uint64], step: int) -> Iterator[tuple[int, int, int, int]]:
    """Entries as runs (pfn, index, entries, flags) in which frames and indexes follow on."""
    if len(entries) == 0:
        return
    words, indexes = entries[:, 0], entries[:, 1]
    breaks = (np.diff(words) != np.uint64(step)) | (np.diff(indexes) != np.uint64(1))
    # a step that runs over into the flags begins a new run
    breaks |= (words[1:] & np.uint64(_PFN_MASK)) < np.uint64(step)
    cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(words)]
    for first, last in pairwise(cuts):
        word = int(words[first])
        yield word & _PFN_MASK, int(indexes[first]), last - first, word >> _ENTRY_SHIFT


def _resolved(
    reader: Reader,
    preserved: Preserved,
    pfn: int,
    index: int,
    nr: int,
    order: int | None,
    what: str,
) -> Iterator[Folio]:
    """A run of entries, each of which must be a preserved entry."""
    done = 0
    while done < nr:
        at = pfn + (done << (order or 0))
        found = preserved.order_at(at)
        if found is None or (order is not None and found[0] != order):
            why = "not preserved" if found is None else f"preserved with order {found[0]}"
            reader.faults.add(f"{what} has a folio at {at << PAGE_SHIFT:#x} that is {why}")
            yield _folio(at, index + done, 1, order or 0, indexed=order is not None)
            done += 1
            continue
        own, end = found
        if order is None and own:  # adjacent entries of the table cannot be adjacent folios
            yield _folio(at, index + done, 1, own, indexed=False)
            done += 1
        else:
            take = min(nr - done, end - at >> own)
            yield _folio(at, index + done, take, own, indexed=order is not None)
            done += take


def _folio(pfn: int, index: int, nr: int, order: int, *, indexed: bool) -> Folio:
    return Folio(index << order if indexed else index, pfn, nr << order)


def content_hash(reader: Reader, folios: list[Folio], size: int, what: str) -> str | None:
    """The hash of a file's bytes up to its size; holes and absent frames are zero.

    None, with a fault, if folios are claimed so often that hashing would have no end.
    """
    digest, at, end = FNV_BASIS, 0, -(-size // PAGE_SIZE)
    for folio in folios:
        first, last = max(folio.index, at), min(folio.index + folio.nr_pages, end)
        if first >= last:
            continue
        digest = fnv1a_zeroes(digest, first - at << PAGE_SHIFT)
        at = first
        pfn = folio.pfn + first - folio.index
        for low, high in reader.frames.held(pfn, last - first):
            digest = fnv1a_zeroes(digest, low - pfn - (at - first) << PAGE_SHIFT)
            at = first + low - pfn
            for frame in range(low, high, _BATCH):
                batch = range(frame, min(frame + _BATCH, high))
                reader.hash_budget -= len(batch) << PAGE_SHIFT
                if reader.hash_budget < 0:
                    reader.faults.add(f"{what} is not hashed: files claim more than there is")
                    return None
                data = b"".join(reader.frames.frame(one) or bytes(PAGE_SIZE) for one in batch)
                digest = fnv1a(digest, data[: size - (at << PAGE_SHIFT)])
                at += len(batch)
    return f"{fnv1a_zeroes(digest, max(0, size - (at << PAGE_SHIFT))):016x}"
