"""From the entry point to the first process: `boot` brings a kernel up from bytes and firmware.

The order is that of x86-64 in Linux 7.3: setup_arch (memory map, kho_populate), early mm (extend
scratch, gigantic pages, memory map), kho_memory_init, the page allocator, LUO's early initcall,
the other CPUs, deferred struct pages, then initcalls: the pools of smaller huge pages (subsys),
KHO's outgoing side (fs), LUO's outgoing side and the file handlers (late).

It states the work in phases that a live update's blackout is made of: kho, hugetlb, memmap, init.

Unhappy paths: a handover that KHO refuses makes an ordinary boot; one that LUO refuses, memory
that early boot cannot allocate, or a fault in reading what was handed over panics.

Simplifications, and what a test could notice: page tables, per-CPU areas and hash tables are
blocks of plausible size, so that free memory is right to a few per mille and no further. A cold
boot has no initrd, and that of a kexec stays reserved, where the kernel frees it after unpacking.
"""

from __future__ import annotations

from kernelmodel.errors import KernelError, KernelPanic, NoMemory
from kernelmodel.handlers import register_handlers
from kernelmodel.kernel import FailFunction, Kernel, KernelConfig, no_failures
from kernelmodel.machine import Firmware, Machine
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.free_extents import free_extents
from kernelmodel.mm.hugetlb_vmemmap import STRUCT_PAGES_PER_FRAME
from kernelmodel.mm.memblock import MemblockFlags
from kernelmodel.mm.mmzone import MAX_ORDER_NR_PAGES, MAX_PAGE_ORDER
from kernelmodel.releases import Release
from kernelmodel.sim.clock import Clock

__all__ = ["STRUCT_PAGE_SIZE", "boot"]

STRUCT_PAGE_SIZE = 64
_COLD_KERNEL_BASE = 16 * MIB
_VMEMMAP_PIECE = 2 * MIB
_PERCPU_BYTES = 512 * KIB
_NODE_DATA_BYTES = 256 * KIB


def boot(
    machine: Machine,
    release: Release,
    firmware: Firmware,
    clock: Clock,
    *,
    config: KernelConfig | None = None,
    fail_function: FailFunction = no_failures,
) -> Kernel:
    """Boot `release`; memory and `firmware` are all it has to go by. C: start_kernel().

    Raises:
        KernelPanic: it does not come up.
    """
    kernel = Kernel(
        machine,
        release,
        firmware,
        clock,
        config=config or KernelConfig(),
        fail_function=fail_function,
    )
    try:
        with clock.phase("kho"):
            kernel.charge("start_kernel_early")
            _setup_arch(kernel)
            kernel.kho.memory_init_early()
        with clock.phase("hugetlb"):
            _hugetlb_bootmem_alloc(kernel)
        with clock.phase("memmap"):
            early = _mm_core_init(kernel)
        with clock.phase("init"):
            kernel.live_update.early_startup()
            kernel.charge("smp_bringup", machine.spec.cpus - 1)
        with clock.phase("memmap"):
            _page_alloc_init_late(kernel, early)
        with clock.phase("init"):
            _do_initcalls(kernel)
    except NoMemory as error:
        raise KernelPanic(f"out of memory while booting: {error}") from error
    return kernel


def _setup_arch(kernel: Kernel) -> None:
    """Memory map, what is in use already, KHO's handover. C: setup_arch()."""
    memblock, firmware = kernel.memblock, kernel.firmware
    for ram in firmware.memory_map:
        memblock.add(ram.base, ram.size, ram.nid)
    memblock.reserve(0, MIB)
    kern = MemblockFlags.RSRV_KERN
    if firmware.kernel is not None:
        memblock.reserve(*firmware.kernel, flags=kern)
    else:
        memblock.reserve(_COLD_KERNEL_BASE, kernel.config.kernel_bytes, flags=kern)
    if firmware.initrd is not None:
        memblock.reserve(*firmware.initrd, flags=kern)
    kernel.kho.populate(firmware)
    kernel.fail_function("start_kernel")
    total = sum(ram.size for ram in firmware.memory_map)
    _alloc(kernel, PAGE_SIZE * (2 + total // GIB), PAGE_SIZE)  # page tables of the direct map
    memblock.set_reserved_nodes()
    for nid in kernel.page_alloc.nodes:
        _alloc(kernel, _NODE_DATA_BYTES, PAGE_SIZE, nid)


def _alloc(kernel: Kernel, size: int, align: int, nid: int = -1) -> int:
    """Allocate early memory and clear it. C: memblock_alloc_node()."""
    size = -(-size // PAGE_SIZE) * PAGE_SIZE
    pa = kernel.memblock.alloc_range(size, align, nid=nid)
    kernel.memory.zero(pa >> PAGE_SHIFT, size >> PAGE_SHIFT)
    return pa


def _alloc_vmemmap(kernel: Kernel, size: int, nid: int) -> None:
    """A node's struct pages, 2 MiB by 2 MiB, on the node while it has room. C: sparse_init().

    Taken in as large pieces as there are, which is where single ones would have come to lie.
    """
    memblock = kernel.memblock
    size = -(-size // _VMEMMAP_PIECE) * _VMEMMAP_PIECE
    piece = GIB
    while size:
        piece = min(piece, size)
        wanted = size // piece
        for pa, nr in memblock.alloc_runs(piece, wanted, _VMEMMAP_PIECE, nid):
            kernel.memory.zero(pa >> PAGE_SHIFT, nr * piece >> PAGE_SHIFT)
            kernel.hugetlb.vmemmap.add_home(nid, pa >> PAGE_SHIFT, nr * piece >> PAGE_SHIFT)
            wanted -= nr
            size -= nr * piece
        if wanted and piece > _VMEMMAP_PIECE:
            piece = max(_VMEMMAP_PIECE, piece // (2 * _VMEMMAP_PIECE) * _VMEMMAP_PIECE)
        elif wanted:  # the node is full
            pa = _alloc(kernel, piece, _VMEMMAP_PIECE, nid)
            kernel.hugetlb.vmemmap.add_home(nid, pa >> PAGE_SHIFT, piece >> PAGE_SHIFT)
            size -= piece


def _hugetlb_bootmem_alloc(kernel: Kernel) -> None:
    """Gigantic pages from memblock, less what a handover brings. C: hugetlb_bootmem_alloc()."""
    if kernel.hugetlb_design is not None:
        kernel.hugetlb.subtract_preserved(kernel.hugetlb_design.early_boot())
        if kernel.luo.enabled and kernel.hugetlb.cma.asked_for:
            kernel.hugetlb.cma.disable("disabled, huge pages are to survive live updates")
    real_scratch: list[tuple[int, int]] = []
    if kernel.kho.incoming is not None and kernel.release.kho_extends_scratch:
        real_scratch = [(area.addr, area.addr + area.size) for area in kernel.kho.scratch]
    got = kernel.hugetlb.bootmem_alloc(kernel.memblock, real_scratch)
    kernel.charge("hugetlb_alloc_gigantic", got)


def _mm_core_init(kernel: Kernel) -> int:
    """Struct pages of early memory, KHO, the page allocator. C: sparse_init(), mm_core_init().

    Returns the struct pages that are initialised by then.
    """
    memblock = kernel.memblock
    for nid, node in kernel.page_alloc.nodes.items():
        left_out, heads = kernel.hugetlb.boot_hvo(nid)
        size = node.layout.present_pages * STRUCT_PAGE_SIZE - left_out * PAGE_SIZE
        _alloc_vmemmap(kernel, size, nid)
        if heads:
            pa = _alloc(kernel, heads * PAGE_SIZE, PAGE_SIZE, nid)
            kernel.hugetlb.vmemmap.add_home(nid, pa >> PAGE_SHIFT, heads)
    _alloc(kernel, _PERCPU_BYTES * kernel.machine.spec.cpus, PAGE_SIZE)
    kernel.reserve_mem.setup()
    early = sum([node.layout.early_pages for node in kernel.page_alloc.nodes.values()])
    kernel.charge("memmap_init_page", early)
    kernel.kho.memory_init()
    if kernel.kho.incoming is not None:
        for area in kernel.kho.scratch:
            _set_cma(kernel, area.addr, area.size)
    blocks = 0
    for pfn, nr_pages in memblock.free_pages():
        kernel.page_alloc.free_range(pfn, nr_pages)
        blocks += -(-nr_pages // MAX_ORDER_NR_PAGES)
    for free in memblock.free_extents():
        free_extents(kernel.page_alloc, free)
        blocks += int((-(-free.counts // MAX_ORDER_NR_PAGES)).sum())
    memblock.clear_kho_scratch_only()
    for node in kernel.page_alloc.nodes.values():
        node.settle_kernel()
    kernel.page_alloc.setup_lowmem_reserve()
    kernel.charge("memblock_free_pages", blocks)
    return early


def _set_cma(kernel: Kernel, base: int, size: int) -> None:
    """Only whole pageblocks change their type; an area from a bad handover may cut one."""
    start = -(-base >> PAGE_SHIFT + MAX_PAGE_ORDER) << MAX_PAGE_ORDER
    end = base + size >> PAGE_SHIFT + MAX_PAGE_ORDER << MAX_PAGE_ORDER
    if start < end:
        kernel.page_alloc.set_cma(start, end - start)


def _page_alloc_init_late(kernel: Kernel, early: int) -> None:
    """Deferred struct pages and gigantic pages, a thread for each node. C: page_alloc_init_late().

    Preserved pages gain nothing: theirs were initialised serially.
    """
    preserved = kernel.kho.tags.nr_pages
    gigantic = {
        nid: sum(n << hstate.order for _, n in runs)
        for hstate in kernel.hugetlb.hstates.values()
        for nid, runs in hstate.bootmem_runs().items()
    }
    total = sum([node.layout.present_pages for node in kernel.page_alloc.nodes.values()])
    left = max(0, total - preserved - sum(gigantic.values()) - early)
    for nid, node in kernel.page_alloc.nodes.items():
        with kernel.clock.lane(f"pgdatinit{nid}"):
            kernel.charge("memmap_init_page", left * node.layout.present_pages // total)
            if gigantic.get(nid):
                whole = gigantic[nid] * PAGE_SIZE // GIB
                if kernel.hugetlb.vmemmap.enabled:
                    kernel.charge("memmap_init_page", whole * STRUCT_PAGES_PER_FRAME)
                else:
                    kernel.charge("hugetlb_gather_bootmem", whole)


def _do_initcalls(kernel: Kernel) -> None:
    """Everything that registers itself, in the kernel's order. C: do_initcalls()."""
    kernel.charge("initcalls")
    pool_pages = kernel.hugetlb.init(kernel.page_alloc)
    threads = max(1, kernel.machine.spec.cpus // 4)  # hugepage_alloc_threads' default
    kernel.charge("hugetlb_alloc_pool", -(-pool_pages // threads))  # the largest of equal shares
    if kernel.hugetlb_design is not None:
        kernel.hugetlb_design.pools_ready()
    for warning in kernel.hugetlb.warnings:
        kernel.printk(f"HugeTLB: {warning}")
    kernel.kho.init()
    if kernel.kho.incoming is None:
        for area in kernel.kho.scratch:
            if kernel.kho.enabled:
                _set_cma(kernel, area.addr, area.size)
            kernel.page_alloc.free_range(area.addr >> PAGE_SHIFT, area.size >> PAGE_SHIFT)
    kernel.live_update.late_startup()
    kernel.reserve_mem.prepare()
    try:
        register_handlers(kernel)
    except KernelError as error:
        kernel.printk(f"file handlers are not registered: {error}")
