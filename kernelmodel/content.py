"""Rules for what a run of page frames holds: cheaper than bytes, and never a different answer."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

__all__ = ["PAGE_SIZE", "Content", "GuestContent", "Piece"]

PAGE_SIZE = 4096


class Content(Protocol):
    """A rule for the bytes of a run of frames. Constants: equal contents yield equal bytes."""

    def page(self, index: int) -> bytes:
        """The 4096 bytes of the run's page `index`."""
        ...

    def key(self) -> bytes:
        """A name for the rule; two rules with one key are one rule."""
        ...


#: (frame, frames, content, first page of the content); content is None for plain bytes or nothing.
Piece = tuple[int, int, Content | None, int]


class GuestContent(NamedTuple):
    """What a guest keeps in its RAM: a seeded function of (VM, page, version).

    Page `index` is guest page `index`; a guest that writes to a page moves it to the next
    version. The bytes are those of SHAKE-128 over the three, so no page equals another.
    """

    vm: str
    version: int

    def page(self, index: int) -> bytes:
        """The bytes of guest page `index` in this version."""
        seed = f"{self.vm}\0{self.version}\0{index}".encode()
        return hashlib.shake_128(seed).digest(PAGE_SIZE)

    def key(self) -> bytes:
        """VM and version."""
        return f"guest\0{self.vm}\0{self.version}".encode()
