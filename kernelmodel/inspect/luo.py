"""LUO's part of an image, `luo-v5`: sessions, their files, FLBs.

Faults that are looked for, beside those of single structures: block chains that loop, entry counts
that no kernel accepts (a block without entries makes the next kernel panic), names twice or
without an end, tokens twice, another number of files than a session says, an FLB page that
overflows, counts of the hugetlb proposal that are not those of its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from kernelmodel.abi.hugetlb import HUGETLB_SER_MAX_HSTATES, HugetlbSer
from kernelmodel.abi.kexec_handover import KhoBlockHeaderSer
from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo import (
    LUO_FLB_PGCNT,
    LuoFileSer,
    LuoFlbHeaderSer,
    LuoFlbSer,
    LuoSer,
    LuoSessionSer,
)
from kernelmodel.inspect.files import read_file
from kernelmodel.inspect.folios import check_preserved
from kernelmodel.inspect.preserved import Preserved
from kernelmodel.inspect.reader import Reader
from kernelmodel.memory import PAGE_SIZE

__all__ = ["LUO_COMPATIBLE", "read_luo", "text_of"]

LUO_COMPATIBLE: Final = "luo-v5"
_HUGETLB_FLB: Final = "hugetlb-v1"
_HUGE_MEMFD: Final = "huge-memfd-v1"


def text_of(raw: bytes) -> str:
    """A C string; bytes that are no UTF-8 are spelt out."""
    return cstring(raw).decode("utf-8", "backslashreplace")


def read_luo(
    reader: Reader, preserved: Preserved, ser: LuoSer, *, hashes: bool
) -> tuple[list[dict[str, Any]], list[list[Any]], dict[str, int]]:
    """(sessions, FLBs as [name, count], preserved huge pages by order as the proposal counts)."""
    sessions = list(_sessions(reader, preserved, ser.sessions_pa, hashes=hashes))
    for name, times in Counter(session["name"] for session in sessions).items():
        if times > 1:
            reader.faults.add(f"there are {times} sessions of the name {name!r}")
    flbs, hugetlb_pa = _flbs(reader, preserved, ser.flbs_pa)
    huge_files = [
        file
        for session in sessions
        for file in session["files"]
        if file["compatible"] == _HUGE_MEMFD
    ]
    counts = _hugetlb_counts(reader, preserved, hugetlb_pa) if hugetlb_pa is not None else {}
    held: Counter[str] = Counter()
    for file in huge_files:
        if file.get("nr_folios"):
            held[str(file["order"])] += file["nr_folios"]
    if (huge_files or counts) and dict(held) != counts:
        told = f"{_HUGETLB_FLB} counts {counts or 'nothing'}"
        reader.faults.add(f"{told}, files hold {dict(held) or 'nothing'} (huge pages by order)")
    return sessions, flbs, counts


def _blocks(
    reader: Reader, preserved: Preserved, head_pa: int, entry_size: int, what: str
) -> Iterator[bytes]:
    """The entries of a chain of blocks, as far as it can be followed."""
    capacity = (PAGE_SIZE - KhoBlockHeaderSer.SIZE) // entry_size
    at = head_pa
    while at:
        page = reader.claim(at, f"a block of {what}")
        if page is None:
            return
        check_preserved(reader, preserved, at, 0, f"a block of {what}")
        header = KhoBlockHeaderSer.unpack(page)
        if not 1 <= header.count <= capacity:
            reader.faults.add(
                f"the block of {what} at {at:#x} has {header.count} entries; 1 to {capacity} "
                "is what a kernel accepts"
            )
            return
        for index in range(header.count):
            start = KhoBlockHeaderSer.SIZE + index * entry_size
            yield page[start : start + entry_size]
        at = header.next


def _sessions(
    reader: Reader, preserved: Preserved, sessions_pa: int, *, hashes: bool
) -> Iterator[dict[str, Any]]:
    for raw in _blocks(reader, preserved, sessions_pa, LuoSessionSer.SIZE, "the sessions"):
        entry = LuoSessionSer.unpack(raw)
        name = text_of(entry.name)
        what = f"session {name!r}"
        if b"\0" not in entry.name:
            reader.faults.add(f"the name of {what} does not end")
        elif not name:
            reader.faults.add("a session has no name")
        files: list[dict[str, Any]] = []
        tokens: set[int] = set()
        for raw_file in _blocks(
            reader, preserved, entry.files, LuoFileSer.SIZE, f"the files of {what}"
        ):
            file = LuoFileSer.unpack(raw_file)
            compatible = text_of(file.compatible)
            this = f"file {file.token} of {what}"
            if file.token in tokens:
                reader.faults.add(f"{what} has two files with the token {file.token}")
                this += " (again)"
            tokens.add(file.token)
            said = read_file(reader, preserved, compatible, file.data, this, hashes=hashes)
            files.append({"compatible": compatible, "token": file.token, **said})
        if len(files) != entry.count:
            reader.faults.add(f"{what} says {entry.count} files, {len(files)} can be read")
        yield {"name": name, "files": files}


def _flbs(reader: Reader, preserved: Preserved, flbs_pa: int) -> tuple[list[list[Any]], int | None]:
    """([name, count] of each, data of the hugetlb proposal's one)."""
    if flbs_pa == 0:
        reader.faults.add("LUO has no page for FLBs")
        return [], None
    page = reader.claim(flbs_pa, "the page of the FLBs")
    if page is None:
        return [], None
    check_preserved(reader, preserved, flbs_pa, 0, "the page of the FLBs")
    header = LuoFlbHeaderSer.unpack(page)
    room = (PAGE_SIZE - LuoFlbHeaderSer.SIZE) // LuoFlbSer.SIZE
    if header.pgcnt != LUO_FLB_PGCNT:
        reader.faults.add(f"the FLBs at {flbs_pa:#x} are said to take {header.pgcnt} pages, not 1")
    if header.count > room:
        reader.faults.add(f"{header.count} FLBs at {flbs_pa:#x}; there is room for {room}")
    flbs: list[list[Any]] = []
    hugetlb_pa: int | None = None
    for index in range(min(header.count, room)):
        entry = LuoFlbSer.unpack(page, LuoFlbHeaderSer.SIZE + index * LuoFlbSer.SIZE)
        name = text_of(entry.name)
        if any(name == known for known, _ in flbs):
            reader.faults.add(f"there are two FLBs of the name {name!r}")
        elif name == _HUGETLB_FLB:
            hugetlb_pa = entry.data
        flbs.append([name, entry.count])
    return flbs, hugetlb_pa


def _hugetlb_counts(reader: Reader, preserved: Preserved, pa: int) -> dict[str, int]:
    """Pages by order that the proposal's FLB counts."""
    what = f"the counts of {_HUGETLB_FLB}"
    page = reader.claim(pa, what)
    if page is None:
        return {}
    check_preserved(reader, preserved, pa, 0, what)
    nr_hstates = page[HugetlbSer.SIZE - 1]
    if nr_hstates > HUGETLB_SER_MAX_HSTATES:
        reader.faults.add(f"{what} at {pa:#x} are for {nr_hstates} sizes; there is room for 4")
    counts: dict[str, int] = {}
    for hstate in HugetlbSer.unpack(page).hstates:
        if hstate.nr_pages:  # a slot stays when its last page is gone
            order = str(hstate.order)
            counts[order] = counts.get(order, 0) + hstate.nr_pages
    return counts
