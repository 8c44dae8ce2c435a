"""Writing a `.kho` file from a modelled host's memory: everything that a handover consists of.

That is the pages of the radix tree, which are in no tree themselves, and every preserved page: the
FDT, the subtrees' blobs, all that LUO wrote, and the files' content, which is worked out while it
is written. A host's guests can be terabytes; they can be left out, and are absent then.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.handlers.folio_table import PreservedFolios
from kernelmodel.image.frames import Image
from kernelmodel.image.load import HEADER, KHO_MAGIC
from kernelmodel.inspect.handover import preserved_frames
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from kernelmodel.mm.ranges import RangeSet

__all__ = ["Handover", "gzipped_image", "handover_of", "save_image"]

_ENTRY_BYTES: Final = 8 + PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Handover:
    """What an image of `memory` consists of: `frames`, of which `guests` hold files' content."""

    memory: PhysicalMemory
    fdt_pa: int
    frames: RangeSet
    guests: RangeSet

    def extents(self, *, guests: bool = True) -> list[tuple[int, int]]:
        """Frames as ascending (first, end)."""
        chosen = self.frames
        if not guests:
            chosen = chosen.copy()
            for first, end in self.guests:
                chosen.remove(first, end)
        return list(chosen)

    def image_bytes(self, *, guests: bool = True) -> int:
        """Size of the `.kho` file, without gzip."""
        pages = sum(end - first for first, end in self.extents(guests=guests))
        return HEADER.size + pages * _ENTRY_BYTES


def handover_of(kernel: Kernel) -> Handover:
    """What `kernel` would hand over if it jumped now."""
    frames = RangeSet(
        (pa >> PAGE_SHIFT, (pa >> PAGE_SHIFT) + 1) for _, pa in kernel.kho.outgoing_nodes()
    )
    for run in kernel.kho.outgoing_runs():
        frames.add(run.pfn, run.end_pfn)
    guests = RangeSet()
    for session in kernel.luo.sessions.outgoing:
        for luo_file in session.file_set.files:
            if isinstance(luo_file.private, PreservedFolios):
                order = luo_file.private.order
                for folios in single_folio_runs(luo_file.private.runs):
                    guests.add(folios.pfn, folios.pfn + (folios.nr << order))
    return Handover(kernel.memory, kernel.kho.fdt_pa, frames, guests)


def gzipped_image(handover: Handover, *, guests: bool = True) -> bytes:
    """A `.kho` file of the handover, gzipped, with or without the content of `guests`."""
    out = io.BytesIO()
    extents = handover.extents(guests=guests)
    with _gzip(out) as packed:
        for part in _parts(handover.fdt_pa, extents, handover.memory.page):
            packed.write(part)
    return out.getvalue()


def save_image(image: Image, path: Path) -> int:
    """Write what belongs to the handover in an image, say a whole memory's; pages written.

    The file is gzipped if its name ends in `.gz`.

    Raises:
        OSError: it cannot be written.
    """
    wanted, nodes = preserved_frames(image)
    frames = RangeSet(wanted)
    for pfn in nodes:
        frames.add(pfn, pfn + 1)
    held = [part for first, end in frames for part in image.frames.held(first, end - first)]
    with path.open("wb") as file, _gzip(file) if path.suffix == ".gz" else nullcontext(file) as out:
        for part in _parts(image.fdt_pa, held, lambda pfn: image.frames.frame(pfn) or b""):
            out.write(part)
    return sum(end - first for first, end in held)


def _gzip(out: IO[bytes]) -> gzip.GzipFile:
    # neither name nor time in it: the same memory is the same file
    return gzip.GzipFile("", "wb", 1, out, mtime=0)


def _parts(
    fdt_pa: int, extents: list[tuple[int, int]], page: Callable[[int], bytes | bytearray]
) -> Iterator[bytes]:
    yield HEADER.pack(KHO_MAGIC, fdt_pa, sum(end - first for first, end in extents))
    for first, end in extents:
        for pfn in range(first, end):
            yield pfn.to_bytes(8, "little")
            yield bytes(page(pfn))
