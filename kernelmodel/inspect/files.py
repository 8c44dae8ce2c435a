"""What file handlers leave behind: `memfd-v2` (Linux 7.3) and `huge-memfd-v1` (RFC, Dec 2025)."""

from __future__ import annotations

from typing import Any, Final

from kernelmodel.abi.hugetlb import HugemfdSer
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.abi.memfd import (
    MEMFD_LUO_FOLIO_DIRTY,
    MEMFD_LUO_FOLIO_UPTODATE,
    MemfdLuoSer,
)
from kernelmodel.inspect.folios import Folio, check_preserved, content_hash, read_folios
from kernelmodel.inspect.preserved import Preserved
from kernelmodel.inspect.reader import Reader
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["read_file"]

#: F_SEAL_SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, EXEC: those that memfd's handler knows.
_KNOWN_SEALS: Final = 0x3F
_LOFF_MAX: Final = (1 << 63) - 1
_HUGE_ORDER_MAX: Final = 18


def read_file(
    reader: Reader, preserved: Preserved, compatible: str, data: int, what: str, *, hashes: bool
) -> dict[str, Any]:
    """What a file's serialised data at `data` says, as far as it can be read."""
    if compatible == "memfd-v2":
        return _memfd(reader, preserved, data, what, hashes=hashes)
    if compatible == "huge-memfd-v1":
        return _huge_memfd(reader, preserved, data, what, hashes=hashes)
    reader.faults.add(f"{what} is {compatible!r}, of which no handler is known (data {data:#x})")
    return {}


def _entry(reader: Reader, preserved: Preserved, data: int, what: str) -> bytes | None:
    page = reader.claim(data, f"the entry of {what}")
    if page is not None:
        check_preserved(reader, preserved, data, 0, f"the entry of {what}")
    return page


def _memfd(
    reader: Reader, preserved: Preserved, data: int, what: str, *, hashes: bool
) -> dict[str, Any]:
    page = _entry(reader, preserved, data, what)
    if page is None:
        return {}
    ser = MemfdLuoSer.unpack(page)
    if ser.seals & ~_KNOWN_SEALS:
        reader.faults.add(f"{what} has unknown seals {ser.seals:#x}")
    if ser.flags:
        reader.faults.add(f"{what} has unknown flags {ser.flags:#x}")
    _check_size(reader, ser.size, ser.pos, what)
    vmalloc = KhoVmalloc(
        ser.folios_first, ser.folios_total_pages, ser.folios_flags, ser.folios_order
    )
    known = MEMFD_LUO_FOLIO_DIRTY | MEMFD_LUO_FOLIO_UPTODATE
    folios = read_folios(reader, preserved, vmalloc, ser.nr_folios, what, flags=known)
    _check_cover(reader, folios, ser.size, what)
    said = {"pos": ser.pos, "size": ser.size, "seals": ser.seals, "nr_folios": ser.nr_folios}
    return _hashed(reader, said, folios, what, hashes=hashes)


def _huge_memfd(
    reader: Reader, preserved: Preserved, data: int, what: str, *, hashes: bool
) -> dict[str, Any]:
    page = _entry(reader, preserved, data, what)
    if page is None:
        return {}
    ser = HugemfdSer.unpack(page)
    said = {"pos": ser.pos, "size": ser.size, "order": ser.order, "nr_folios": ser.nr_folios}
    _check_size(reader, ser.size, ser.pos, what)
    if not 0 < ser.order <= _HUGE_ORDER_MAX:
        reader.faults.add(f"{what} is on huge pages of order {ser.order}: there are none such")
        return said
    if ser.size % (PAGE_SIZE << ser.order):
        reader.faults.add(f"{what} has a size that is no multiple of its huge pages: {ser.size}")
    vmalloc = KhoVmalloc(
        ser.folios_first, ser.folios_total_pages, ser.folios_flags, ser.folios_order
    )
    folios = read_folios(reader, preserved, vmalloc, ser.nr_folios, what, order=ser.order)
    _check_cover(reader, folios, ser.size, what)
    return _hashed(reader, said, folios, what, hashes=hashes)


def _hashed(
    reader: Reader, said: dict[str, Any], folios: list[Folio], what: str, *, hashes: bool
) -> dict[str, Any]:
    if not hashes:
        return said
    return {**said, "fnv1a": content_hash(reader, folios, said["size"], what)}


def _check_size(reader: Reader, size: int, pos: int, what: str) -> None:
    for name, value in (("size", size), ("position", pos)):
        if value > _LOFF_MAX:
            reader.faults.add(f"{what} has the {name} {value}, which no file can have")


def _check_cover(reader: Reader, folios: list[Folio], size: int, what: str) -> None:
    """Every page up to the size has a folio, and no folio lies behind it: holes were filled."""
    nr_pages = size + PAGE_SIZE - 1 >> PAGE_SHIFT
    covered = sum(folio.nr_pages for folio in folios if folio.index < nr_pages)
    if covered < nr_pages:
        reader.faults.add(f"{what} has {covered} of the {nr_pages} pages that its size takes")
    if folios and folios[-1].index >= nr_pages:
        reader.faults.add(f"{what} has a folio at page {folios[-1].index}, behind its size")
