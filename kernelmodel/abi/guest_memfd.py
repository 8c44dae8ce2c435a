"""What guest memory and VMs leave in memory across a live update. None is in Linux 7.3.

`GuestMemfdSer` has the fields of the proposal for guest_memfd (T. Sahu, v4 of 28 Jul 2026,
20260728121138.1103610); their order is ours. `GuestHugetlbSer`, guest_memfd on huge pages, is our
proposal: the same with a page size. `KvmVmSer` keeps the type of a VM, which the former proposal
asks for without a layout. Folio tables are those of memfds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from kernelmodel.abi.layout import Ser

__all__ = ["GuestHugetlbSer", "GuestMemfdSer", "KvmVmSer"]


@dataclass(frozen=True, slots=True)
class GuestMemfdSer(Ser):
    """A guest_memfd on 4 KiB pages; the last four fields are its struct kho_vmalloc."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQQQQIHH")
    SIZE: ClassVar[int] = 48
    size: int
    flags: int
    nr_folios: int
    vm_token: int
    folios_first: int
    folios_total_pages: int
    folios_flags: int
    folios_order: int


@dataclass(frozen=True, slots=True)
class GuestHugetlbSer(Ser):
    """A guest_memfd on huge pages of `order`."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQQQQIHHB")
    SIZE: ClassVar[int] = 49
    size: int
    flags: int
    nr_folios: int
    vm_token: int
    folios_first: int
    folios_total_pages: int
    folios_flags: int
    folios_order: int
    order: int


@dataclass(frozen=True, slots=True)
class KvmVmSer(Ser):
    """A VM: its type."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<Q")
    SIZE: ClassVar[int] = 8
    vm_type: int
