"""Rules for what a run of page frames holds: cheaper than bytes, and never a different answer."""

from __future__ import annotations

import hashlib
from typing import Protocol

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


class GuestContent:
    """What a guest keeps in its RAM: a seeded function of (VM, page, version).

    Page `index` is guest page `index`; a guest that writes to a page moves it to the next
    version. The bytes are those of SHAKE-128 over the three, so no page equals another.
    """

    __slots__ = ("_key", "version", "vm")

    def __init__(self, vm: str, version: int) -> None:
        self.vm = vm
        self.version = version
        # asked for at every look at the guest's memory
        self._key = f"guest\0{vm}\0{version}".encode()

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, GuestContent) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"GuestContent({self.vm!r}, {self.version})"

    def page(self, index: int) -> bytes:
        """The bytes of guest page `index` in this version."""
        seed = f"{self.vm}\0{self.version}\0{index}".encode()
        return hashlib.shake_128(seed).digest(PAGE_SIZE)

    def key(self) -> bytes:
        """VM and version."""
        return self._key
