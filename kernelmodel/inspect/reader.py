"""Bounded reading of an image that may be corrupt: faults are noted, and nothing is read twice.

Whatever an image says, the work is proportional to what it holds. A page of metadata belongs to
one structure: who comes to it a second time (a cycle, two owners) hears so and does not go on. What
the frames of files are claimed for is noted and compared at the end.
"""

from __future__ import annotations

from typing import Final

from kernelmodel.image.frames import Frames
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.ranges import RangeSet

__all__ = ["PA_BITS", "Faults", "Reader", "span_text"]

#: Physical addresses of x86-64 have at most 52 bits.
PA_BITS: Final = 52
_FAULTS_MAX: Final = 100


class Faults:
    """Sentences about what is wrong; the first hundred are kept, the others counted."""

    def __init__(self) -> None:
        self._kept: dict[str, None] = {}
        self._more = 0

    def add(self, sentence: str) -> None:
        """Note a fault; one that is known already is the same one."""
        if len(self._kept) < _FAULTS_MAX:
            self._kept[sentence] = None
        elif sentence not in self._kept:
            self._more += 1

    def sentences(self) -> list[str]:
        """All that are kept, and how many are not."""
        more = [f"… and {self._more} more faults"] if self._more else []
        return [*self._kept, *more]


class Reader:
    """The frames of an image, with its faults and who claims which of them."""

    def __init__(self, frames: Frames, faults: Faults, notes: Faults | None = None) -> None:
        self.frames = frames
        self.faults = faults
        #: What is worth knowing and nobody's mistake.
        self.notes = Faults() if notes is None else notes
        self._owners: dict[int, str] = {}
        self._claims: list[tuple[int, int, str]] = []
        #: Bytes of files that may still be hashed: every frame once, and a little.
        self.hash_budget = (frames.total << PAGE_SHIFT) + PAGE_SIZE

    def claim(self, pa: int, what: str) -> bytes | None:
        """The page of a structure at `pa`, which is its page alone; None if it cannot be had."""
        if pa >> PA_BITS:
            self.faults.add(f"{what} is said to be at {pa:#x}, which is no physical address")
            return None
        if pa % PAGE_SIZE:
            self.faults.add(f"{what} at {pa:#x} is not at the start of a page")
            return None
        pfn = pa >> PAGE_SHIFT
        owner = self._owners.get(pfn)
        if owner is not None:
            same = "reached twice" if owner == what else f"the page of {owner} already"
            self.faults.add(f"{what} at {pa:#x} is {same}")
            return None
        self._owners[pfn] = what
        page = self.frames.frame(pfn)
        if page is None:
            self.faults.add(f"{what} at {pa:#x} is not in the image")
        return page

    def claim_frames(self, pfn: int, nr_pages: int, what: str) -> None:
        """Note that these frames hold the content of a file."""
        self._claims.append((pfn, pfn + nr_pages, what))

    def check_claims(self) -> None:
        """Compare all claims: a frame is one thing only."""
        pages = [(pfn, pfn + 1, what) for pfn, what in self._owners.items()]
        reach, widest = 0, ""
        for low, high, what in sorted([*self._claims, *pages]):
            if low < reach:
                both = f"{widest} and of {what}" if what != widest else f"{what} twice"
                self.faults.add(f"{span_text(low, min(reach, high))} is part of {both}")
            if high > reach:
                reach, widest = high, what

    def claimed(self) -> RangeSet:
        """Frames of all structures that were read and of all files' content."""
        pages = ((pfn, pfn + 1) for pfn in self._owners)
        return RangeSet([*pages, *((low, high) for low, high, _ in self._claims)])

    def owned_pages(self) -> list[int]:
        """Frames of all structures that were read."""
        return sorted(self._owners)


def span_text(first: int, end: int) -> str:
    """Frames [first, end) as addresses of bytes."""
    return f"{first << PAGE_SHIFT:#x}–{(end << PAGE_SHIFT) - 1:#x}"
