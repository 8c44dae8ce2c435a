"""What KHO shows below /sys/kernel/debug: FDTs and blobs as bytes, scratch as lists.

`kho/out` is what this kernel will hand over: scratch, each blob in `sub_fdts` under its name, and
the FDT. The last is there on a cold boot only, and shows as many bytes as the FDT had when KHO
came up: blobs that were added later move its strings behind that. `kho/in`, on a KHO boot, is what
this kernel was handed, read where it lay: a blob whose page was freed in the meantime shows what
is there now. A kernel without KHO shows neither. `memblock/reserve_mem_param` names the memory
that `reserve_mem=` got.

C: kernel/liveupdate/kexec_handover_debugfs.c, mm/memblock.c, 7.3, built with
CONFIG_KEXEC_HANDOVER_DEBUGFS; names and contents were seen on a running 7.3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from kernelmodel.abi.kexec_handover import KHO_PROP_SUBTREE_DATA, KHO_PROP_SUBTREE_SIZE
from kernelmodel.memory import PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["debugfs_files", "string_get_size"]

#: A file, made when it is read.
Content = Callable[[], bytes]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: Bytes of a blob that are shown at most: more is no blob, but a size that was tampered with.
_SHOWN_MAX: Final = 1 << 20


def debugfs_files(kernel: Kernel) -> dict[str, Content]:
    """The files by path."""
    files = dict(_kho_out(kernel)) | dict(_kho_in(kernel)) if kernel.kho.enabled else {}
    table = kernel.reserve_mem.table
    if table:
        files["memblock/reserve_mem_param"] = lambda: "".join(
            f"{entry.name}\t\t({string_get_size(entry.size)})\n" for entry in table
        ).encode()
    return files


def _bytes(kernel: Kernel, pa: int, size: int) -> Content:
    return partial(kernel.memory.read, pa, min(size, _SHOWN_MAX))


def _kho_out(kernel: Kernel) -> Iterator[tuple[str, Content]]:
    kho = kernel.kho
    areas = kho.scratch
    if kho.debugfs_fdt_size:
        yield "kho/out/fdt", _bytes(kernel, kho.fdt_pa, kho.debugfs_fdt_size)
    yield "kho/out/scratch_phys", lambda: "".join(f"{a.addr:#x}\n" for a in areas).encode()
    yield "kho/out/scratch_len", lambda: "".join(f"{a.size:#x}\n" for a in areas).encode()
    for name, (pa, size) in kho.outgoing_subtrees.items():
        yield f"kho/out/sub_fdts/{name}", _bytes(kernel, pa, size)


def _kho_in(kernel: Kernel) -> Iterator[tuple[str, Content]]:
    incoming = kernel.kho.incoming
    if incoming is None:
        return
    size = int.from_bytes(kernel.memory.read(incoming.fdt_pa + 4, 4), "big")
    yield "kho/in/fdt", _bytes(kernel, incoming.fdt_pa, min(size, PAGE_SIZE))
    for node in incoming.fdt.root.subnodes:
        pa, size = node.u64(KHO_PROP_SUBTREE_DATA), node.u64(KHO_PROP_SUBTREE_SIZE) or 0
        if pa is not None and kernel.memory.is_ram(pa, min(size, _SHOWN_MAX)):
            yield f"kho/in/sub_fdts/{node.name}", _bytes(kernel, pa, size)


def string_get_size(size: int) -> str:
    """A size with three digits: 4.88 KiB. C: string_get_size()."""
    unit = 0
    while size >> 10 * (unit + 1) and unit + 1 < len(_UNITS):
        unit += 1
    if not unit:
        return f"{size} {_UNITS[0]}"
    whole = size >> 10 * unit
    decimals = max(0, 3 - len(str(whole)))
    scaled = (size * 10**decimals * 2 + (1 << 10 * unit)) >> 10 * unit + 1
    digits = str(scaled)
    if decimals:
        digits = f"{digits[:-decimals]}.{digits[-decimals:]}"
    return f"{digits} {_UNITS[unit]}"
