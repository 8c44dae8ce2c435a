"""Writing a `.kho` file from a modelled host's memory: everything that a handover consists of.

That is the pages of the radix tree, which are in no tree themselves, and every preserved page: the
FDT, the subtrees' blobs, all that LUO wrote, and the files' content, which is worked out while it
is written. A host's guests can be terabytes; they can be left out, and are absent then.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.handlers.folio_table import PreservedFolios
from kernelmodel.image.frames import Image
from kernelmodel.image.load import HEADER, KHO_MAGIC
from kernelmodel.inspect.handover import preserved_frames
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from kernelmodel.mm.ranges import RangeSet

__all__ = [
    "IMAGE_BYTES_MAX",
    "Handover",
    "ImageTooBig",
    "handover_of",
    "image_parts",
    "save_image",
    "write_image",
]

#: An image is not made bigger than this unless somebody says so.
IMAGE_BYTES_MAX: Final = 4 << 30
_ENTRY_BYTES: Final = 8 + PAGE_SIZE


class ImageTooBig(Exception):
    """The image would be absurdly large; the message says how large."""


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


def write_image(
    handover: Handover, path: Path, *, guests: bool = True, max_bytes: int = IMAGE_BYTES_MAX
) -> int:
    """Write the file, gzipped if its name ends in `.gz`; its size without gzip.

    Raises:
        ImageTooBig: it would be more than `max_bytes`, and nothing is written.
        OSError: it cannot be written.
    """
    size = handover.image_bytes(guests=guests)
    if size > max_bytes:
        bare = handover.image_bytes(guests=False)
        raise ImageTooBig(
            f"the image would take {size:,} bytes, more than {max_bytes:,}; without the content of "
            f"files it takes {bare:,}"
        )
    _write(path, image_parts(handover, guests=guests))
    return size


def _write(path: Path, parts: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        packed = path.suffix == ".gz"
        # neither name nor time in it: the same memory is the same file
        with gzip.GzipFile("", "wb", 1, file, mtime=0) if packed else nullcontext(file) as out:
            for part in parts:
                out.write(part)


def image_parts(handover: Handover, *, guests: bool = True) -> Iterator[bytes]:
    """The file's bytes, piece by piece."""
    yield from _parts(handover.fdt_pa, handover.extents(guests=guests), handover.memory.page)


def save_image(image: Image, path: Path) -> int:
    """Write what belongs to the handover in an image, say a whole memory's; pages written.

    Raises:
        OSError: it cannot be written.
    """
    wanted, nodes = preserved_frames(image)
    frames = RangeSet(wanted)
    for pfn in nodes:
        frames.add(pfn, pfn + 1)
    held = [part for first, end in frames for part in image.frames.held(first, end - first)]
    _write(path, _parts(image.fdt_pa, held, lambda pfn: image.frames.frame(pfn) or b""))
    return sum(end - first for first, end in held)


def _parts(
    fdt_pa: int, extents: list[tuple[int, int]], page: Callable[[int], bytes | bytearray]
) -> Iterator[bytes]:
    yield HEADER.pack(KHO_MAGIC, fdt_pa, sum(end - first for first, end in extents))
    for first, end in extents:
        for pfn in range(first, end):
            yield pfn.to_bytes(8, "little")
            yield bytes(page(pfn))
