"""What of a host's memory is left for VMs: an estimate, on the safe side.

The kernel model decides for itself what it reserves; this is the arithmetic of an administrator
who checks beforehand. Struct pages take 64 bytes for every 4 KiB. Hugepage pools take what they
say, and gigantic pages need whole aligned gigabytes. KHO's scratch areas
take what `kho_scratch=` says, or by default 200 % of what the kernel has reserved for itself when
they are made, twice: once for low memory and anywhere together, once over the nodes. That memory
takes movable allocations only and cannot be preserved, so that no VM may count on it. The kernel
keeps a reserve for its image, its CPUs and what it allocates while it runs, and the tables of
preserved folios need room as well.
"""

from __future__ import annotations

from msgspec import Struct

from fleet.kernel_parameters import kho_scratch
from kernelmodel.machine import GIB, MIB, MachineSpec
from node.api import HostSpec

__all__ = ["HostMemory", "estimate", "memfd_need", "struct_pages"]

STRUCT_PAGE_BYTES = 64
PAGE_BYTES = 4096
#: Kernel image, boot allocations and user space of the hypervisor itself.
RESERVE_BYTES = 192 * MIB
#: Per-CPU areas and stacks.
RESERVE_PER_CPU = MIB
#: Scratch areas are rounded up to 4 MiB each.
SCRATCH_ALIGN = 4 * MIB
#: A plain memfd's preservation keeps 16 bytes for each page and needs 8 more for a while.
FOLIO_TABLE_BYTES = 24


class HostMemory(Struct, frozen=True):
    """Where a host's memory goes, in bytes."""

    total: int
    pools: int  # hugepage pools
    struct_pages: int
    scratch: int  # KHO scratch areas
    reserve: int  # the kernel's own
    gigantic: int  # 1 GiB pages that there is room for, were nothing else in memory
    scratch_areas: tuple[int, ...]  # bytes of each at most

    @property
    def left(self) -> int:
        """For plain memfds; negative if not even the rest fits."""
        taken = self.pools + self.struct_pages + self.scratch + self.reserve
        return self.total - taken


def struct_pages(memory_bytes: int) -> int:
    """Bytes of struct pages that describe this much memory."""
    return memory_bytes // PAGE_BYTES * STRUCT_PAGE_BYTES


def estimate(host: HostSpec) -> HostMemory:
    """Where the memory of a host goes."""
    total = sum(host.node_bytes)
    own = struct_pages(total) + RESERVE_BYTES + RESERVE_PER_CPU * host.cpus
    areas = _scratch(host, own)
    return HostMemory(
        total=total,
        pools=sum(pool.page_bytes * pool.count for pool in host.hugepages),
        struct_pages=struct_pages(total),
        scratch=sum(areas),
        reserve=RESERVE_BYTES + RESERVE_PER_CPU * host.cpus,
        gigantic=_whole_gigabytes(host),
        scratch_areas=areas,
    )


def _whole_gigabytes(host: HostSpec) -> int:
    """Aligned gigabytes of RAM around the holes; the first is where the kernel itself lies."""
    ranges = MachineSpec(host.node_bytes, host.cpus).memory_map()
    return sum(max(r.end // GIB - max(-(-r.base // GIB), 1), 0) for r in ranges)


def _scratch(host: HostSpec, own: int) -> tuple[int, ...]:
    """Bytes of each scratch area of a kernel that has reserved `own` bytes.

    How a percentage is shared out depends on where the kernel's memory lies; low memory and
    anywhere together are taken for one area, so that none is larger than the largest of these.
    """
    nodes = len(host.node_bytes)
    param = kho_scratch(host.cmdline)
    if param.percent is None:
        areas = [param.lowmem, param.globl, *(param.pernode for _ in range(nodes))]
    else:
        share = own * param.percent // 100
        areas = [share, 0, *(share // nodes for _ in range(nodes))]
    return tuple(area + SCRATCH_ALIGN for area in areas)


def memfd_need(memory_bytes: int) -> int:
    """What a plain memfd VM needs of a host: its memory and the table that preserves it."""
    return memory_bytes + memory_bytes // PAGE_BYTES * FOLIO_TABLE_BYTES
