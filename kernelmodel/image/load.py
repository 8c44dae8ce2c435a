r"""Reading images: which kind of file it is, and where in it the root FDT lies.

A `.kho` file (gzip around it optional) is {magic `KHOIMG1\0`, u64 address of the FDT, u64 number
of pages}, then {u64 page frame number, 4096 bytes} for each page. Anything else is memory: an ELF
core with physical addresses in its program headers, or raw, where an offset in the file is an
address. In memory the FDT has to be found. Several may lie there, for the one that a kernel was
handed stays where it was; the latest counts, by the number of kexecs in its metadata.

Unhappy paths: what is none of these is `NotAnImage`, which says what would be right. A `.kho` file
that is cut short is read as far as it goes, with a remark, as is a gzip whose checksum is wrong.
"""

from __future__ import annotations

import gzip
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from kernelmodel.abi.kexec_handover import (
    KEXEC_METADATA_NODE,
    KHO_PROP_SUBTREE_DATA,
    KhoKexecMetadata,
)
from kernelmodel.image.frames import Image, Span, SpanFrames, SparseFrames, find_fdts
from kernelmodel.kho.fdt import Fdt, FdtError
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["HEADER", "KHO_MAGIC", "NotAnImage", "load_image"]

KHO_MAGIC: Final = b"KHOIMG1\0"
#: Magic, address of the FDT, number of pages.
HEADER: Final = struct.Struct("<8sQQ")
_ENTRY: Final = 8 + PAGE_SIZE
_GZIP_MAGIC: Final = b"\x1f\x8b"
_DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error)
_ELF_MAGIC: Final = b"\x7fELF"
#: 4 GiB: they are held in memory, and a gzip can claim to be anything.
_PAGES_MAX: Final = 1 << 20

_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_ET_CORE: Final = 4
_PT_LOAD: Final = 1

_WOULD_BE_RIGHT: Final = (
    "a .kho file (it begins with KHOIMG1, or is one in gzip), or physical memory that holds "
    "KHO's FDT: raw with the file's offsets as addresses (QEMU's pmemsave), "
    "or an ELF core (QEMU's dump-guest-memory)"
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class NotAnImage(ValueError):
    """A file in which there is no handover; the message says what would be one."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; what would be right is {_WOULD_BE_RIGHT}")


def load_image(path: Path, fdt_pa: int | None = None) -> Image:
    """Read an image; `fdt_pa` overrides what the file says or a search would find.

    Raises:
        NotAnImage: it is none. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(HEADER.size)
        file.seek(0)
        if start.startswith(_GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_kho(unpacked, fdt_pa, "in the gzip there is no .kho file")
        if start.startswith(KHO_MAGIC):
            return _read_kho(file, fdt_pa, "the .kho file has no header")
        if len(start) == 0:
            raise NotAnImage("the file is empty")
        # a mapping outlives the file that it is made from
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if start.startswith(_ELF_MAGIC):
            return _found_in(SpanFrames(data, _elf_spans(data)), fdt_pa, "the ELF file")
        whole = [Span(0, len(data) >> PAGE_SHIFT, 0)]
        return _found_in(SpanFrames(data, whole, list(_written(file))), fdt_pa, "the file")


# .kho files.


def _read_kho(file: _Readable, fdt_pa: int | None, no_header: str) -> Image:
    header = _take(file, HEADER.size)
    if len(header) < HEADER.size or not header.startswith(KHO_MAGIC):
        raise NotAnImage(no_header)
    _, said_pa, nr_pages = HEADER.unpack(header)
    pages: dict[int, bytes] = {}
    read = twice = 0
    while read < min(nr_pages, _PAGES_MAX) and len(entry := _take(file, _ENTRY)) == _ENTRY:
        pfn = int.from_bytes(entry[:8], "little")
        twice += pfn in pages
        pages.setdefault(pfn, entry[8:])
        read += 1
    remarks = []
    if read < nr_pages:
        remarks.append(f"the file holds only {read} of the {nr_pages} pages that its header says")
    else:
        remarks += _behind(file, nr_pages)
    if twice:
        remarks.append(f"{twice} pages stand in the file again: the first one counts")
    return Image(SparseFrames(pages), said_pa if fdt_pa is None else fdt_pa, remarks=tuple(remarks))


def _behind(file: _Readable, nr_pages: int) -> Iterator[str]:
    """What is wrong with the end of the file. A gzip has its checksum there."""
    try:
        if file.read(1):
            yield f"there is more in the file behind its {nr_pages} pages"
    except _DAMAGED:
        yield "the gzip is damaged: its checksum is wrong or missing, or something is behind it"


def _take(file: _Readable, size: int) -> bytes:
    """The next bytes; fewer at the end, and a gzip that is damaged ends where it is."""
    try:
        return file.read(size)
    except _DAMAGED:
        return b""


# Physical memory.


def _written(file: BinaryIO) -> Iterator[Span]:
    """All whole frames of the file that are no holes, as far as the file system tells."""
    fd, size = file.fileno(), os.fstat(file.fileno()).st_size & -PAGE_SIZE
    at = 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA) & -PAGE_SIZE
            hole = min(size, -(-os.lseek(fd, data, os.SEEK_HOLE) // PAGE_SIZE) * PAGE_SIZE)
        except OSError:  # ENXIO: only a hole is left
            break
        if data < hole:
            yield Span(data >> PAGE_SHIFT, hole - data >> PAGE_SHIFT, data)
        at = max(hole, at + PAGE_SIZE)


def _elf_spans(data: memoryview) -> list[Span]:
    """Where the loadable segments of an ELF core lie in physical memory."""
    if len(data) < _ELF_HEADER.size:
        raise NotAnImage("the ELF file is cut off")
    ident, kind, _, _, _, table, _, _, _, entry_size, nr_entries, *_ = _ELF_HEADER.unpack_from(data)
    if ident[4:6] != b"\x02\x01" or kind != _ET_CORE:
        raise NotAnImage("the ELF file is not a 64-bit little-endian core")
    spans: list[Span] = []
    for index in range(nr_entries):
        at = table + index * entry_size
        if entry_size < _PROGRAM_HEADER.size or at + _PROGRAM_HEADER.size > len(data):
            raise NotAnImage("the ELF file's program headers are cut off")
        type_, _, offset, _, pa, size, _, _ = _PROGRAM_HEADER.unpack_from(data, at)
        size = min(size, max(0, len(data) - offset)) >> PAGE_SHIFT
        if type_ == _PT_LOAD and size and pa % PAGE_SIZE == 0:
            spans.append(Span(pa >> PAGE_SHIFT, size, offset))
    spans.sort(key=lambda span: span.pfn)
    if any(a.pfn + a.nr_pages > b.pfn for a, b in pairwise(spans)):
        raise NotAnImage("the ELF file's segments overlap")
    return spans


def _found_in(frames: SpanFrames, fdt_pa: int | None, what: str) -> Image:
    """The image whose FDT is the latest in these frames, unless it is given."""
    if fdt_pa is not None:
        return Image(frames, fdt_pa)
    found = find_fdts(frames)
    if not found:
        raise NotAnImage(f"in {what} there is no FDT of KHO")
    # of equals the one that lies higher, for no other reason than to pick one
    found.sort(key=lambda pa: (_kexec_count(frames, pa), pa))
    return Image(frames, found[-1], tuple(sorted(found[:-1])))


def _kexec_count(frames: SpanFrames, fdt_pa: int) -> int:
    """What the metadata of an FDT counts, -1 if it has none that can be read."""
    try:
        node = Fdt.parse(frames.frame(fdt_pa >> PAGE_SHIFT) or b"").root
    except FdtError:
        return -1
    subtree = node.subnode(KEXEC_METADATA_NODE)
    pa = subtree.u64(KHO_PROP_SUBTREE_DATA) if subtree is not None else None
    page = frames.frame(pa >> PAGE_SHIFT) if pa is not None and pa % PAGE_SIZE == 0 else None
    return KhoKexecMetadata.unpack(page).kexec_count if page is not None else -1
