"""What a host has for its VMs: the kernel that it runs is booted once to see.

How much of a host its struct pages, KHO's scratch areas, hugepage pools and the kernel itself
leave depends on where each comes to lie: gigantic pages need whole gigabytes, a scratch area one
stretch on its node. An estimate is wrong at the edges, and that is where a check is wanted. The
kernel model answers in a few milliseconds, once for all hosts of the same make.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from msgspec import Struct

from kernelmodel.boot import STRUCT_PAGE_SIZE, boot
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.kernel import Kernel
from kernelmodel.kexec import kexec_file_load
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from node.api import HostSpec, HugepagePool
from node.host import kernel_cmdline

__all__ = ["HostMemory", "memfd_need", "try_boot"]

#: Preserving a plain memfd keeps 16 bytes for each page and needs 8 more for a while.
_FOLIO_TABLE_BYTES = 24
#: Left free beside the VMs: LUO's blocks, KHO's radix tree, what the agent opens.
_SLACK_BYTES = 16 << 20


class HostMemory(Struct, frozen=True):
    """Where a host's memory goes, in bytes; `trouble` says why it cannot be updated live."""

    total: int
    pools: int = 0  # hugepage pools, as large as the kernel got them
    struct_pages: int = 0
    scratch: int = 0  # KHO's scratch areas, which nothing that is preserved may use
    left: int = 0  # for plain memfds
    missing: tuple[HugepagePool, ...] = ()  # pages that the kernel did not get
    trouble: str = ""

    @property
    def kernel(self) -> int:
        """The kernel's own, and what low zones hold back."""
        return self.total - self.pools - self.struct_pages - self.scratch - self.left


def memfd_need(memory_bytes: int) -> int:
    """What a plain memfd VM needs of a host: its memory and the table that preserves it."""
    return memory_bytes + memory_bytes // PAGE_SIZE * _FOLIO_TABLE_BYTES


def try_boot(host: HostSpec, releases: Mapping[str, Release] = CATALOGUE) -> HostMemory:
    """Boot a host's kernel and look at what it has left."""
    release = releases[host.release]
    return _try_boot(host.node_bytes, host.cpus, release, host.hugepages, kernel_cmdline(host))


@lru_cache(maxsize=4096)
def _try_boot(
    node_bytes: tuple[int, ...],
    cpus: int,
    release: Release,
    hugepages: tuple[HugepagePool, ...],
    cmdline: str,
) -> HostMemory:
    total = sum(node_bytes)
    machine = Machine(MachineSpec(node_bytes, cpus))
    clock = Clock(CostModel.load(), cpus, 0, ("check",))
    try:
        kernel = boot(machine, release, machine.cold_firmware(cmdline), clock)
    except KernelPanic as panic:
        return HostMemory(total, trouble=f"its kernel does not boot: {panic}")
    trouble = ""
    if not kernel.kho.enabled:
        said = next((said for said in kernel.messages if said.startswith("KHO")), "KHO is off")
        trouble = f"its kernel cannot be updated live: {said}"
    else:
        try:
            kexec_file_load(kernel, release, cmdline)
        except KernelError as error:
            trouble = f"its kernel cannot load the next one: {error}"
    got = {pool.page_bytes: _pool_pages(kernel, pool) for pool in hugepages}
    nodes = kernel.page_alloc.nodes
    available = sum(kernel.page_alloc.nr_available(0, nid) for nid in nodes) * PAGE_SIZE
    return HostMemory(
        total=total,
        pools=sum(size * count for size, count in got.items()),
        struct_pages=total // PAGE_SIZE * STRUCT_PAGE_SIZE,
        scratch=sum(area.size for area in kernel.kho.scratch),
        left=max(available - _SLACK_BYTES, 0),
        missing=tuple(
            HugepagePool(pool.page_bytes, pool.count - got[pool.page_bytes])
            for pool in hugepages
            if got[pool.page_bytes] < pool.count
        ),
        trouble=trouble,
    )


def _pool_pages(kernel: Kernel, pool: HugepagePool) -> int:
    order = (pool.page_bytes // PAGE_SIZE).bit_length() - 1
    return kernel.hugetlb.hstate(order).nr_huge_pages
