"""Whether two handovers are the same but for where things lie.

Everything that can be reached from the root FDT is compared byte by byte. Where the two differ,
there must be addresses (or frame numbers) of preserved pages, and one must always stand for
the same other. The pages of the radix tree, whose bits are addresses, are compared by what
they say.

The two must have been made at different addresses: where both say the same, that is no address.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.conformance.kho_reader import PAGE, Image, fdt_nodes, preserved

__all__ = ["differences"]

_FRAME_BITS = (1 << 52) - 1


@dataclass
class _Side:
    image: Image
    #: Order by frame number.
    keys: dict[int, int] = field(init=False)
    root: int = field(init=False)

    def __post_init__(self) -> None:
        read, fdt_pa = self.image.read, self.image.fdt_pa
        self.keys = dict(preserved(read, fdt_pa))
        node = fdt_nodes(read(fdt_pa, PAGE))[""]
        self.root = struct.unpack("<Q", node["preserved-memory-map"])[0] // PAGE

    def page(self, frame: int) -> bytes:
        return self.image.read(frame * PAGE, PAGE)

    def frame(self, word: int) -> int | None:
        """The preserved frame that a word can stand for."""
        frame = word & _FRAME_BITS if word % PAGE or word >> 52 else word // PAGE
        return frame if frame in self.keys or frame == self.root else None


def differences(one: Image, other: Image) -> list[str]:
    """What is not the same, and preserved pages that nothing leads to; empty if all is well."""
    a, b = _Side(one), _Side(other)
    found: list[str] = []
    same = {one.fdt_pa // PAGE: other.fdt_pa // PAGE}
    todo = list(same)
    while todo:
        frame = todo.pop()
        if frame == a.root:
            continue
        for at, here, there in _words(a.page(frame), b.page(same[frame])):
            to, fro = a.frame(here), b.frame(there)
            if to is None or fro is None:
                found.append(f"{frame * PAGE + at:#x}: {here:#x} and {there:#x}")
            elif to not in same:
                same[to] = fro
                todo.append(to)
            elif same[to] != fro:
                found.append(f"{frame * PAGE + at:#x}: {to:#x} is {same[to]:#x} and {fro:#x}")
    if {same.get(frame): order for frame, order in a.keys.items()} != b.keys:
        found.append(f"{len(a.keys)} and {len(b.keys)} pages are preserved, or not the same ones")
    return found


def _words(one: bytes, other: bytes) -> Iterator[tuple[int, int, int]]:
    """Where two pages differ, and the words that do; in an FDT these are aligned to four bytes."""
    at = 0
    while at < PAGE:
        if one[at : at + 4] == other[at : at + 4]:
            at += 4
            continue
        here, there = (int.from_bytes(page[at : at + 8], "little") for page in (one, other))
        yield at, here, there
        at += 8
