"""kexec-metadata: which kernel came before, and how many jumps it has been.

Written once, when KHO comes up. What the previous kernel wrote is read if it is there, long enough
and of this version; otherwise counting starts anew. Its page is never given back.

C: kernel/liveupdate/kexec_handover.c (kho_in_kexec_metadata, kho_out_kexec_metadata), 7.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.kexec_handover import (
    KEXEC_METADATA_NODE,
    KEXEC_METADATA_VERSION,
    KhoKexecMetadata,
)
from kernelmodel.abi.layout import to_cstring
from kernelmodel.errors import KernelError

if TYPE_CHECKING:
    from kernelmodel.kho.kexec_handover import Kho

__all__ = ["add_metadata", "incoming_metadata"]

_RELEASE_SIZE = 65


def incoming_metadata(kho: Kho) -> KhoKexecMetadata | None:
    """What the previous kernel said of itself; None if it said nothing of use."""
    try:
        pa, size = kho.retrieve_subtree(KEXEC_METADATA_NODE)
    except KernelError:
        return None
    if size < KhoKexecMetadata.SIZE:
        return None
    found = KhoKexecMetadata.unpack(kho.kernel.memory.read(pa, KhoKexecMetadata.SIZE))
    return found if found.version == KEXEC_METADATA_VERSION else None


def add_metadata(kho: Kho) -> None:
    """Preserve this kernel's own and hang it into the FDT.

    Raises what allocating, preserving and adding raise; nothing stays preserved then.
    """
    before = incoming_metadata(kho)
    metadata = KhoKexecMetadata(
        KEXEC_METADATA_VERSION,
        to_cstring(kho.kernel.release.utsname, _RELEASE_SIZE),
        1 if before is None else before.kexec_count + 1 & 0xFFFFFFFF,
    )
    pa = kho.alloc_preserve(KhoKexecMetadata.SIZE)
    try:
        kho.kernel.memory.write(pa, metadata.pack())
        kho.add_subtree(KEXEC_METADATA_NODE, pa, KhoKexecMetadata.SIZE)
    except KernelError:
        kho.unpreserve_free(pa)
        raise
