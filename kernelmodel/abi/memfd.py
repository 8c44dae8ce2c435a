"""What the memfd handler leaves in memory. C: include/linux/kho/abi/memfd.h, memfd-v2."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from kernelmodel.abi.layout import Ser

__all__ = ["MEMFD_LUO_FOLIO_DIRTY", "MEMFD_LUO_FOLIO_UPTODATE", "MemfdLuoSer"]

#: Flags of a folio entry (`kernelmodel.abi.folio_table`).
MEMFD_LUO_FOLIO_DIRTY = 1
MEMFD_LUO_FOLIO_UPTODATE = 2


@dataclass(frozen=True, slots=True)
class MemfdLuoSer(Ser):
    """C: struct memfd_luo_ser; the last four fields are its struct kho_vmalloc."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQIIQQIHH")
    SIZE: ClassVar[int] = 48
    pos: int
    size: int
    seals: int
    flags: int
    nr_folios: int
    folios_first: int
    folios_total_pages: int
    folios_flags: int
    folios_order: int
