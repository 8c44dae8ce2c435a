"""What KHO leaves in memory. C: include/linux/kho/abi/kexec_handover.h and friends, 7.3.

The root FDT carries `compatible` = `kho-v4` and `preserved-memory-map`, the physical address of
the radix tree's root page; a subnode per subtree carries `preserved-data` (physical address)
and `blob-size` (bytes). All u64 properties are in the CPU's byte order, not the tree's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from kernelmodel.abi.layout import Ser

__all__ = [
    "KEXEC_METADATA_NODE",
    "KEXEC_METADATA_VERSION",
    "KHO_BITMAP_SIZE_LOG2",
    "KHO_ORDER_0_LOG2",
    "KHO_PROP_MEMORY_MAP",
    "KHO_PROP_SUBTREE_DATA",
    "KHO_PROP_SUBTREE_SIZE",
    "KHO_TABLE_SIZE_LOG2",
    "KHO_TREE_MAX_DEPTH",
    "KHO_VMALLOC_ALLOC",
    "KHO_VMALLOC_HUGE_VMAP",
    "KHO_VMALLOC_PHYS_PER_CHUNK",
    "KhoBlockHeaderSer",
    "KhoKexecMetadata",
    "KhoScratch",
    "KhoVmalloc",
]

KHO_PROP_MEMORY_MAP = "preserved-memory-map"
KHO_PROP_SUBTREE_DATA = "preserved-data"
KHO_PROP_SUBTREE_SIZE = "blob-size"

#: A key is `1 << (KHO_ORDER_0_LOG2 - order) | pfn >> order`.
KHO_ORDER_0_LOG2 = 52
#: A bitmap, level 0, is a page with a bit for each of so many keys.
KHO_BITMAP_SIZE_LOG2 = 15
#: Tables of levels 5 … 1 hold 512 physical addresses.
KHO_TABLE_SIZE_LOG2 = 9
KHO_TREE_MAX_DEPTH = 6

KHO_VMALLOC_ALLOC = 1
KHO_VMALLOC_HUGE_VMAP = 2
#: A chunk page holds the next chunk's address and 511 entries.
KHO_VMALLOC_PHYS_PER_CHUNK = 511

KEXEC_METADATA_NODE = "kexec-metadata"
KEXEC_METADATA_VERSION = 1


@dataclass(frozen=True, slots=True)
class KhoScratch(Ser):
    """One scratch area. C: struct kho_scratch."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQ")
    SIZE: ClassVar[int] = 16
    addr: int
    size: int


@dataclass(frozen=True, slots=True)
class KhoVmalloc(Ser):
    """A preserved vmalloc area. C: struct kho_vmalloc."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QIHH")
    SIZE: ClassVar[int] = 16
    first: int
    total_pages: int
    flags: int
    order: int


@dataclass(frozen=True, slots=True)
class KhoBlockHeaderSer(Ser):
    """Head of each page of a block chain. C: struct kho_block_header_ser."""

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<QQ")
    SIZE: ClassVar[int] = 16
    next: int
    count: int


@dataclass(frozen=True, slots=True)
class KhoKexecMetadata(Ser):
    """Who handed over, and how many kexecs ago the last cold boot was.

    C: struct kho_kexec_metadata.
    """

    FORMAT: ClassVar[struct.Struct] = struct.Struct("<I65sI")
    SIZE: ClassVar[int] = 73
    version: int
    previous_release: bytes
    kexec_count: int
