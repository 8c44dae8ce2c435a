"""What the proposal `flb-counts` leaves in memory (RFC, Dec 2025; not in Linux 7.3).

The FLB `hugetlb-v1` points to one `HugetlbSer` with the number of preserved pages of each
hstate and nothing else; a hugetlb memfd (`huge-memfd-v1`) brings its own folio table.
Source: RFC 20251206230222.853493.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from kernelmodel.abi.layout import Ser

__all__ = ["HUGETLB_SER_MAX_HSTATES", "HugemfdSer", "HugetlbHstateSer", "HugetlbSer"]

HUGETLB_SER_MAX_HSTATES = 4


@dataclass(frozen=True, slots=True)
class HugetlbHstateSer(Ser):
    """C: struct hugetlb_hstate_ser."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QB")
    SIZE: ClassVar[int] = 9
    nr_pages: int
    order: int


@dataclass(frozen=True, slots=True)
class HugetlbSer:
    """C: struct hugetlb_ser: an array of four hstates and how many of them are used, 37 bytes."""

    #: The array as (number of pages, order) in turn, and how many are used.
    FORMAT: ClassVar[struct.Struct] = struct.Struct("<" + "QB" * HUGETLB_SER_MAX_HSTATES + "B")
    SIZE: ClassVar[int] = HUGETLB_SER_MAX_HSTATES * HugetlbHstateSer.SIZE + 1
    hstates: tuple[HugetlbHstateSer, ...]

    def pack(self) -> bytes:
        """The bytes that the kernel would write."""
        used = b"".join(h.pack() for h in self.hstates)
        return used.ljust(self.SIZE - 1, b"\0") + bytes([len(self.hstates)])

    @classmethod
    def unpack(cls, data: bytes) -> HugetlbSer:
        """Read the structure; a count beyond the array is cut to the array."""
        nr_hstates = min(data[cls.SIZE - 1], HUGETLB_SER_MAX_HSTATES)
        size = HugetlbHstateSer.SIZE
        return cls(tuple(HugetlbHstateSer.unpack(data, i * size) for i in range(nr_hstates)))


@dataclass(frozen=True, slots=True)
class HugemfdSer(Ser):
    """C: struct hugemfd_ser; four of the fields are its struct kho_vmalloc."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQQQIHHB")
    SIZE: ClassVar[int] = 41
    size: int
    pos: int
    nr_folios: int
    folios_first: int
    folios_total_pages: int
    folios_flags: int
    folios_order: int
    order: int
