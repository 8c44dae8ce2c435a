"""Corruptions of KHO's own: the root FDT, its subtrees, the scratch array, the kexec metadata.

C: kernel/liveupdate/kexec_handover.c, 7.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from kernelmodel.abi.kexec_handover import (
    KEXEC_METADATA_NODE,
    KHO_PROP_MEMORY_MAP,
    KHO_PROP_SUBTREE_DATA,
    KHO_PROP_SUBTREE_SIZE,
    KhoKexecMetadata,
    KhoScratch,
)
from kernelmodel.abi.luo import LUO_SUBTREE
from kernelmodel.corruptions.corruption import Corruption, Outcome
from kernelmodel.corruptions.handed_over import Found, HandedOver, NotThere
from kernelmodel.corruptions.reader import Write
from kernelmodel.kho.fdt import FdtNode
from kernelmodel.machine import Firmware
from kernelmodel.memory import PAGE_SIZE

__all__ = ["CORRUPTIONS"]

_FILE: Final = "kernel/liveupdate/kexec_handover.c"
_POPULATE: Final = f"kho_populate(), {_FILE}"
_SUBTREE: Final = f"kho_retrieve_subtree(), {_FILE}"
_METADATA: Final = f"kho_in_kexec_metadata(), {_FILE}"
_MEMBLOCK: Final = "memblock_mark_kho_scratch(), mm/memblock.c"


def _root_prop(name: str, value: bytes | None) -> Callable[[HandedOver], list[Write]]:
    """Another value of a property of the root, or none."""

    def writes(handed: HandedOver) -> list[Write]:
        fdt = handed.fdt()
        if value is None:
            del fdt.root.props[name]
        else:
            fdt.root.props[name] = value
        return handed.put_fdt(fdt)

    return writes


def _subtree_prop(tree: str, name: str, value: bytes | None) -> Callable[[HandedOver], list[Write]]:
    def writes(handed: HandedOver) -> list[Write]:
        fdt = handed.fdt()
        node = fdt.root.subnode(tree)
        if node is None:
            raise NotThere(f"no subtree {tree}")
        if value is None:
            del node.props[name]
        else:
            node.props[name] = value
        return handed.put_fdt(fdt)

    return writes


def _without_luo(handed: HandedOver) -> list[Write]:
    fdt = handed.fdt()
    fdt.root.subnodes = [node for node in fdt.root.subnodes if node.name != LUO_SUBTREE]
    return handed.put_fdt(fdt)


def _second_luo(handed: HandedOver) -> list[Write]:
    fdt = handed.fdt()
    props = {KHO_PROP_SUBTREE_DATA: bytes(8), KHO_PROP_SUBTREE_SIZE: bytes(8)}
    fdt.root.subnodes.append(FdtNode(LUO_SUBTREE, props))
    return handed.put_fdt(fdt)


def _metadata(handed: HandedOver) -> Found[KhoKexecMetadata]:
    node = handed.fdt().root.subnode(KEXEC_METADATA_NODE)
    pa = node.u64(KHO_PROP_SUBTREE_DATA) if node is not None else None
    if pa is None:
        raise NotThere("no kexec metadata")
    return handed.at(pa, KhoKexecMetadata)


def _all_areas_empty(handed: HandedOver) -> list[Write]:
    return [area.but(size=0) for area in handed.scratch_areas()]


def _areas_overlap(handed: HandedOver) -> list[Write]:
    first, second = handed.scratch_areas()[:2]
    return [first.but(addr=second.ser.addr, size=min(first.ser.size, second.ser.size))]


def _nothing(_: HandedOver) -> list[Write]:
    return []


def _array_of(nr_bytes: Callable[[int], int]) -> Callable[[Firmware], Firmware]:
    def firmware(given: Firmware) -> Firmware:
        assert given.scratch is not None, "a handover names its scratch array"
        pa, size = given.scratch
        return replace(given, scratch=(pa, nr_bytes(size)))

    return firmware


_FDT: Final = (
    Corruption(
        "fdt-magic",
        "The first byte of the FDT's magic number is another.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "the header check fails, before anything was changed",
        lambda handed: [(handed.fdt_pa, b"\xd1")],
    ),
    Corruption(
        "fdt-truncated",
        "The FDT says that it is as long as half its header.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "the header check fails: the blocks do not lie within the size",
        lambda handed: [(handed.fdt_pa + 4, b"\0\0\0\x14")],
    ),
    Corruption(
        "fdt-totalsize",
        "The FDT says that it is two pages long.",
        _POPULATE,
        Outcome.ACCEPTED,
        "the header is checked against its own size, and the blocks lie in the first page",
        lambda handed: [(handed.fdt_pa + 4, b"\0\0\x20\0")],
    ),
    Corruption(
        "fdt-compatible",
        "The FDT is of another version, kho-v3.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "the versions are compared as strings",
        _root_prop("compatible", b"kho-v3\0"),
    ),
    Corruption(
        "fdt-no-memory-map",
        "The FDT lacks the property preserved-memory-map.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "without a tree there is nothing to revive",
        _root_prop(KHO_PROP_MEMORY_MAP, None),
    ),
    Corruption(
        "fdt-memory-map-short",
        "The property preserved-memory-map has four bytes.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "it must have eight",
        _root_prop(KHO_PROP_MEMORY_MAP, bytes([0, 16, 0, 0])),
    ),
    Corruption(
        "fdt-memory-map-zero",
        "The property preserved-memory-map is zero.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "it must not be",
        _root_prop(KHO_PROP_MEMORY_MAP, bytes(8)),
    ),
    Corruption(
        "fdt-page-absent",
        "The page of the FDT reads as zero.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "the header check fails",
        lambda handed: [(handed.fdt_pa, bytes(PAGE_SIZE))],
    ),
)

_SUBTREES: Final = (
    Corruption(
        "luo-subtree-missing",
        "The FDT has no subtree of LUO.",
        _SUBTREE,
        Outcome.LOST,
        "LUO takes it for a handover of a kernel without LUO and counts from 0",
        _without_luo,
    ),
    Corruption(
        "luo-subtree-no-data",
        "LUO's subtree lacks the property preserved-data.",
        _SUBTREE,
        Outcome.PANIC,
        "EINVAL, and LUO does not go on without knowing what was preserved",
        _subtree_prop(LUO_SUBTREE, KHO_PROP_SUBTREE_DATA, None),
    ),
    Corruption(
        "luo-subtree-data-short",
        "The property preserved-data of LUO's subtree has four bytes.",
        _SUBTREE,
        Outcome.PANIC,
        "EINVAL as for a missing one",
        _subtree_prop(LUO_SUBTREE, KHO_PROP_SUBTREE_DATA, bytes(4)),
    ),
    Corruption(
        "luo-subtree-no-size",
        "LUO's subtree lacks the property blob-size.",
        _SUBTREE,
        Outcome.PANIC,
        "EINVAL as for a missing address",
        _subtree_prop(LUO_SUBTREE, KHO_PROP_SUBTREE_SIZE, None),
    ),
    Corruption(
        "luo-subtree-size-zero",
        "The property blob-size of LUO's subtree is zero.",
        "luo_early_startup(), kernel/liveupdate/luo_core.c",
        Outcome.PANIC,
        "a blob shorter than its structure is EINVAL",
        _subtree_prop(LUO_SUBTREE, KHO_PROP_SUBTREE_SIZE, bytes(8)),
    ),
    Corruption(
        "luo-subtree-twice",
        "A second subtree of LUO stands behind the first, with address and size zero.",
        _SUBTREE,
        Outcome.ACCEPTED,
        "the first of a name is taken",
        _second_luo,
    ),
    Corruption(
        "metadata-version",
        "The kexec metadata is of version 2.",
        _METADATA,
        Outcome.ACCEPTED,
        "metadata that is not understood is ignored, kexecs are counted from 1 again",
        lambda handed: [_metadata(handed).but(version=2)],
    ),
    Corruption(
        "metadata-short",
        "The kexec metadata is said to have 72 bytes.",
        _METADATA,
        Outcome.ACCEPTED,
        "it is ignored, as one of another version",
        _subtree_prop(KEXEC_METADATA_NODE, KHO_PROP_SUBTREE_SIZE, (72).to_bytes(8, "little")),
    ),
    Corruption(
        "metadata-count-max",
        "The kexec metadata counts as many kexecs as can be counted.",
        _METADATA,
        Outcome.ACCEPTED,
        "the count goes on with 0",
        lambda handed: [_metadata(handed).but(kexec_count=(1 << 32) - 1)],
    ),
)

_SCRATCH: Final = (
    Corruption(
        "scratch-last-area-empty",
        "The last scratch area has size zero.",
        _MEMBLOCK,
        Outcome.ACCEPTED,
        "marking nothing succeeds; the other areas have room",
        lambda handed: [handed.scratch_areas()[-1].but(size=0)],
    ),
    Corruption(
        "scratch-all-empty",
        "All scratch areas have size zero.",
        "memblock_alloc_range_nid(), mm/memblock.c",
        Outcome.PANIC,
        "early boot may allocate from scratch only, and there is none",
        _all_areas_empty,
    ),
    Corruption(
        "scratch-area-outside",
        "The last scratch area is behind all memory.",
        "memblock_add(), mm/memblock.c",
        Outcome.HANG,
        "it is taken for memory and allocated from first; what is written there is gone",
        lambda handed: [handed.scratch_areas()[-1].but(addr=handed.outside())],
    ),
    Corruption(
        "scratch-areas-overlap",
        "The first scratch area begins where the second does.",
        _MEMBLOCK,
        Outcome.ACCEPTED,
        "memory that is scratch twice is scratch",
        _areas_overlap,
    ),
    Corruption(
        "scratch-array-empty",
        "Firmware data says that the scratch array has no bytes.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        "nothing cannot be mapped",
        _nothing,
        firmware=_array_of(lambda _: 0),
    ),
    Corruption(
        "scratch-array-cut",
        "Firmware data says that the scratch array ends within its last entry.",
        _POPULATE,
        Outcome.ACCEPTED,
        "only whole entries count; the other areas have room",
        _nothing,
        firmware=_array_of(lambda size: size - 8),
    ),
    Corruption(
        "scratch-array-longer",
        "Firmware data says that the scratch array has one entry more; there it is zero.",
        _POPULATE,
        Outcome.ACCEPTED,
        "an area of size zero is none",
        _nothing,
        firmware=_array_of(lambda size: size + KhoScratch.SIZE),
    ),
)

CORRUPTIONS: Final = (*_FDT, *_SUBTREES, *_SCRATCH)
