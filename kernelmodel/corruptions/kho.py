"""Corruptions of KHO's own: the root FDT, the scratch array.

C: kernel/liveupdate/kexec_handover.c, 7.3.
"""

from __future__ import annotations

from typing import Final

from kernelmodel.abi.kexec_handover import KHO_PROP_MEMORY_MAP
from kernelmodel.corruptions.corruption import Corruption, Outcome
from kernelmodel.corruptions.handed_over import HandedOver, Write

__all__ = ["CORRUPTIONS"]

_FILE: Final = "kernel/liveupdate/kexec_handover.c"
_POPULATE: Final = f"kho_populate(), {_FILE}"


def _root_prop(handed: HandedOver, name: str, value: bytes | None) -> list[Write]:
    fdt = handed.fdt()
    if value is None:
        del fdt.root.props[name]
    else:
        fdt.root.props[name] = value
    return handed.put_fdt(fdt)


CORRUPTIONS: Final = (
    Corruption(
        "fdt-magic",
        "The first byte of the FDT's magic number is another.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        lambda handed: [(handed.fdt_pa, b"\xd1")],
    ),
    Corruption(
        "fdt-totalsize",
        "The FDT says that it is longer than its page.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        lambda handed: [(handed.fdt_pa + 4, b"\0\0\x20\0")],
    ),
    Corruption(
        "fdt-compatible",
        "The FDT is of another version, kho-v3.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        lambda handed: _root_prop(handed, "compatible", b"kho-v3\0"),
    ),
    Corruption(
        "fdt-no-memory-map",
        "The FDT lacks the property preserved-memory-map.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        lambda handed: _root_prop(handed, KHO_PROP_MEMORY_MAP, None),
    ),
    Corruption(
        "fdt-memory-map-short",
        "The property preserved-memory-map has four bytes.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        lambda handed: _root_prop(handed, KHO_PROP_MEMORY_MAP, bytes([0, 16, 0, 0])),
    ),
    Corruption(
        "fdt-memory-map-zero",
        "The property preserved-memory-map is zero.",
        _POPULATE,
        Outcome.NOT_REVIVED,
        lambda handed: _root_prop(handed, KHO_PROP_MEMORY_MAP, bytes(8)),
    ),
)
