"""The blob "memblock": what `reserve_mem=` of the command line got, for the next kernel to find.

A flattened device tree of its own: the root says what it is, and each reservation is a node of its
name with start and size in bytes. C: include/linux/kho/abi/memblock.h, 7.3.
"""

from __future__ import annotations

__all__ = [
    "MEMBLOCK_KHO_COMPATIBLE",
    "MEMBLOCK_KHO_NODE",
    "RESERVE_MEM_KHO_COMPATIBLE",
    "RESERVE_MEM_SIZE",
    "RESERVE_MEM_START",
]

#: The subtree's name in KHO's FDT.
MEMBLOCK_KHO_NODE = "memblock"
MEMBLOCK_KHO_COMPATIBLE = "memblock-v1"
RESERVE_MEM_KHO_COMPATIBLE = "reserve-mem-v1"
RESERVE_MEM_START = "start"
RESERVE_MEM_SIZE = "size"
