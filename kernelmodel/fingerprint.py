"""A fingerprint of what frames hold, which does not depend on where or how they are held.

Content comes in pieces: a rule's key, its first page, pages. Pieces that go on where the one before
ended are one piece, so that it makes no difference how whoever asks has cut them. A page of bytes
that no rule yields is a piece of no pages, its key the bytes up to 128, 1,024 or its end: the first
of these behind which there are only zeroes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernelmodel.content import PAGE_SIZE, Content, Piece
from kernelmodel.mm.extents import Extents, ScatteredPages
from kernelmodel.scattered import PAGE_BITS, ScatteredFrames

__all__ = ["Fingerprint", "content_digest", "scattered_digest"]

_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_HEADER: Final = struct.Struct("<QQQ")
_PIECE: Final = _HEADER.pack
#: Zeroes that a page may end in, the most first, and the bytes before them. What two kernels hand
#: each other are pages of a few dozen bytes: hashed to their ends they cost a tenth of an update.
_TAILS: Final = tuple((bytes(PAGE_SIZE - size), size) for size in (128, 1024))
#: Pieces whose bytes are put together at a time.
_STRIDE: Final = 1 << 16

Numbers = NDArray[np.int64]


class Fingerprint:
    """The fingerprint of pieces in their order."""

    __slots__ = ("_content", "_content_key", "_digest", "_first", "_key", "_pages")

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._key: bytes | None = None
        self._content: Content | None = None
        self._content_key = b""
        self._first = self._pages = 0

    def piece(self, key: bytes, first: int, pages: int) -> None:
        """`pages` pages of a rule from page `first` on; without a key, as many of zeroes."""
        if key == self._key and (key == b"" or first == self._first + self._pages):
            self._pages += pages
            return
        if self._key is not None:
            self._digest.update(_HEADER.pack(len(self._key), self._first, self._pages) + self._key)
        self._key, self._first, self._pages = key, first, pages

    def page(self, page: bytes | bytearray) -> None:
        """A page of bytes that no rule yields."""
        if page == _ZERO_PAGE:
            self.piece(b"", 0, 1)
            return
        self._flush()
        self._digest.update(b"".join(_plain(page)))
        self._key = None

    def key_of(self, content: Content) -> bytes:
        """Its key, made once for a content of many pieces."""
        if content is not self._content:
            self._content, self._content_key = content, content.key()
        return self._content_key

    def cells(self, cells: Numbers, keys: list[bytes]) -> None:
        """Single pages, rule << PAGE_BITS | page each; `keys` are the rules' from number 1 on."""
        starts = np.flatnonzero(np.diff(cells, prepend=0) != 1)
        pages = np.diff(starts, append=len(cells))
        numbers, firsts = cells[starts] >> PAGE_BITS, cells[starts] & (1 << PAGE_BITS) - 1
        # the first piece may go on with what came before, the last with what follows
        for at in (0, len(starts) - 1)[: len(starts)]:
            if at:
                self._flush()
                self._key = None
                self._absorb(numbers[1:at], firsts[1:at], pages[1:at], keys)
            self.piece(keys[int(numbers[at]) - 1], int(firsts[at]), int(pages[at]))

    def digest(self) -> bytes:
        """16 bytes; nothing can be added after it."""
        self._flush()
        return self._digest.digest()

    def _flush(self) -> None:
        if self._key is not None:
            self._digest.update(_HEADER.pack(len(self._key), self._first, self._pages) + self._key)

    def _absorb(self, numbers: Numbers, firsts: Numbers, pages: Numbers, keys: list[bytes]) -> None:
        """Pieces none of which goes on with another."""
        lengths = np.array([0, *map(len, keys)])[numbers]
        cuts = np.flatnonzero(np.diff(lengths)) + 1
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(numbers)], strict=True):
            for at in range(first, last, _STRIDE):
                part = slice(at, min(last, at + _STRIDE))
                length = int(lengths[at])
                table = np.zeros((len(keys) + 1, length), dtype=np.uint8)
                for number in np.unique(numbers[part]).tolist():
                    table[number] = np.frombuffer(keys[number - 1], dtype=np.uint8)
                header = np.stack((lengths[part], firsts[part], pages[part]), axis=1)
                rows = np.empty((len(header), _HEADER.size + length), dtype=np.uint8)
                rows[:, : _HEADER.size] = header.astype("<u8").view(np.uint8)
                rows[:, _HEADER.size :] = table[numbers[part]]
                self._digest.update(rows.data)


def _plain(page: bytes | bytearray) -> tuple[bytes, bytes | bytearray]:
    for tail, size in _TAILS:
        if page.endswith(tail):
            return _PIECE(size, 0, 0), page[:size]
    return _PIECE(PAGE_SIZE, 0, 0), page


def content_digest(
    extents: Iterable[tuple[int, int]],
    segments: Callable[[int, int], list[Piece]],
    plain: Mapping[int, bytes | bytearray],
) -> bytes:
    """`PhysicalMemory.content_digest` of extents (pfn, nr_pages).

    `segments` is the memory's, `plain` its frames that hold bytes.
    """
    parts: list[bytes | bytearray] = []
    # The last piece, which may go on: its key (None for bytes, which never do), first page, pages.
    key: bytes | None = None
    start = nr = 0
    for pfn, nr_pages in extents:
        for frame, frames, content, first in segments(pfn, nr_pages):
            if content is not None:
                new = content.key()
            elif frame in plain and (page := plain[frame]) != _ZERO_PAGE:
                parts += _plain(page)
                key = None
                continue
            else:
                new = b""
            if new == key and (first == start + nr or not new):
                nr += frames
                parts[-2] = _PIECE(len(new), start, nr)
            else:
                key, start, nr = new, first, frames
                parts += (_PIECE(len(new), first, frames), new)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def scattered_digest(
    extents: Iterable[tuple[int, int] | Extents],
    segments: Callable[[int, int], list[Piece]],
    plain: Mapping[int, bytes | bytearray],
    here: ScatteredFrames | None,
) -> bytes:
    """As `content_digest`, of extents among which there are batches; `here` lie scattered."""
    fingerprint = Fingerprint()

    def add(pfn: int, nr_pages: int) -> None:
        for frame, frames, content, first in segments(pfn, nr_pages):
            if content is not None:
                fingerprint.piece(fingerprint.key_of(content), first, frames)
            elif frame in plain:
                fingerprint.page(plain[frame])
            else:
                fingerprint.piece(b"", 0, frames)

    keys = [content.key() for content in here.contents] if here is not None else []
    for batch in extents:
        if not isinstance(batch, Extents):
            add(*batch)
            continue
        frames = batch.frames()
        cells = here.cells(frames) if here is not None else np.zeros_like(frames)
        cuts = (np.flatnonzero(np.diff(cells > 0)) + 1).tolist()
        for first, last in zip([0, *cuts], [*cuts, len(cells)], strict=True):
            if cells[first]:
                fingerprint.cells(cells[first:last], keys)
            else:
                for run in ScatteredPages(first, frames[first:last]).extents(first, last):
                    add(*run)
    return fingerprint.digest()
