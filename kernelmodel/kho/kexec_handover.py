"""Kexec HandOver: memory that survives kexec, and how the next kernel learns of it.

Reproduces kernel/liveupdate/kexec_handover.c of Linux 7.3.

Happy path, old kernel: `memory_init` reserves scratch on the cold boot, `init` makes the root
page of the radix tree, the FDT and the kexec metadata; users preserve folios, pages and vmalloc
areas, which sets keys in the tree, and hang their blobs into the FDT. Nothing is finalised: what
is in memory at the jump is what counts.

Happy path, next kernel: `populate` checks FDT and scratch array and confines memblock to scratch;
`memory_init_early` extends scratch to every gigabyte without preserved memory; `memory_init`
walks the tree, reserves every entry and tags its first page; users restore what they know of.

Unhappy paths: a handover that fails a check of `populate` is ignored, and everything preserved is
free memory; scratch that cannot be reserved disables KHO for this boot; a restore of something
that carries no tag (not preserved, restored already, not the head of an entry) fails.

What the kernel does page by page is done for runs here; a run of n costs what n single calls do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelmodel.abi.kexec_handover import (
    KEXEC_METADATA_NODE,
    KEXEC_METADATA_VERSION,
    KHO_PROP_MEMORY_MAP,
    KHO_PROP_SUBTREE_DATA,
    KHO_PROP_SUBTREE_SIZE,
    KhoKexecMetadata,
    KhoScratch,
)
from kernelmodel.abi.layout import cstring, to_cstring
from kernelmodel.errors import (
    Exists,
    InvalidArgument,
    KernelError,
    KernelPanic,
    NoEntry,
    NoMemory,
    TooBig,
)
from kernelmodel.kho.fdt import Fdt, FdtError
from kernelmodel.kho.radix_tree import KeyRun, KhoRadixTree
from kernelmodel.kho.scratch import ScratchParam, reserve_scratch
from kernelmodel.machine import Firmware
from kernelmodel.memory import GIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.mmzone import MAX_PAGE_ORDER
from kernelmodel.mm.ranges import RangeMap, RangeSet

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["Kho", "KhoIn"]

_GIB_PFN_SHIFT = GIB.bit_length() - 1 - PAGE_SHIFT
_TREE_LOCK = "kho_radix_tree"


@dataclass(frozen=True, slots=True)
class KhoIn:
    """What this kernel was handed. C: struct kho_in."""

    fdt_pa: int
    fdt: Fdt
    root_pa: int


class Kho:
    """KHO of one booted kernel: `incoming` what it was given, the rest what it will give."""

    __slots__ = (
        "_fdt",
        "_tree",
        "enabled",
        "fdt_pa",
        "incoming",
        "kernel",
        "preserved_keys",
        "scratch",
        "scratch_array_pa",
        "tags",
    )

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.enabled = kernel.params.flag("kho", default=True) and kernel.release.kho is not None
        self.incoming: KhoIn | None = None
        self.scratch: list[KhoScratch] = []
        self.scratch_array_pa = 0
        self.fdt_pa = 0
        #: Frames of preserved entries nobody has restored yet, with the order in their tag.
        self.tags: RangeMap[int] = RangeMap()
        #: Keys set in the outgoing tree.
        self.preserved_keys = 0
        self._tree: KhoRadixTree | None = None
        self._fdt = Fdt()

    # The incoming side, in the order of boot.

    def populate(self, firmware: Firmware) -> None:
        """Look at what firmware hands over, before anything is allocated. C: kho_populate()."""
        if firmware.fdt is None or firmware.scratch is None or self.kernel.release.kho is None:
            return
        memory, memblock = self.kernel.memory, self.kernel.memblock
        self.kernel.charge("kho_populate")
        fdt_pa = firmware.fdt[0]
        scratch_pa, scratch_len = firmware.scratch
        why = ""
        try:
            fdt = Fdt.parse(memory.read(fdt_pa, PAGE_SIZE))
        except FdtError as error:
            fdt, why = Fdt(), str(error)
        compatible = cstring(fdt.root.props.get("compatible", b"")).decode("ascii", "replace")
        root_pa = fdt.root.u64(KHO_PROP_MEMORY_MAP)
        if not why and compatible != self.kernel.release.kho:
            why = f"compatible is {compatible!r}, expected {self.kernel.release.kho!r}"
        if not why and not root_pa:
            why = f"no {KHO_PROP_MEMORY_MAP}"
        if why:
            self.kernel.printk(f"KHO: disabling KHO revival: {why}")
            return
        assert root_pa is not None
        raw = memory.read(scratch_pa, scratch_len)
        self.scratch = [
            KhoScratch.unpack(raw, at)
            for at in range(0, scratch_len - KhoScratch.SIZE + 1, KhoScratch.SIZE)
        ]
        for area in self.scratch:
            if not memory.is_ram(area.addr, area.size):
                # it would be taken for memory, and the first allocation in it would fault
                raise KernelPanic(f"unable to handle page fault: scratch at {area.addr:#x}")
            memblock.mark_kho_scratch(area.addr, area.size)
        memblock.reserve(scratch_pa, scratch_len)
        self.scratch_array_pa = scratch_pa
        memblock.set_kho_scratch_only()
        self.incoming = KhoIn(fdt_pa, fdt, root_pa)

    def memory_init_early(self) -> None:
        """Let boot use every gigabyte that holds nothing preserved. C: kho_extend_scratch().

        A gigabyte counts as taken with its first preserved page or node of the tree.
        """
        if self.incoming is None:
            return
        tree = KhoRadixTree(self.kernel.memory, self.incoming.root_pa)
        busy = RangeSet()
        keys = 0
        for run in tree.runs():
            keys += run.nr
            busy.add(run.pfn >> _GIB_PFN_SHIFT, (run.end_pfn - 1 >> _GIB_PFN_SHIFT) + 1)
        for _, pa in tree.nodes():
            block = pa >> PAGE_SHIFT + _GIB_PFN_SHIFT
            busy.add(block, block + 1)
        top = max(region.end for region in self.kernel.memblock.memory)
        for first, last in busy.gaps(0, -(-top // GIB)):
            self.kernel.memblock.mark_kho_scratch(first * GIB, (last - first) * GIB)
        self.kernel.charge("kho_extend_scratch", keys)

    def memory_init(self) -> None:
        """Reserve what is preserved, or, on a cold boot, scratch. C: kho_memory_init()."""
        if self.incoming is not None:
            self._mem_deserialize(self.incoming)
        elif self.enabled:
            self._reserve_scratch()

    def _mem_deserialize(self, incoming: KhoIn) -> None:
        """One serial walk over all entries. C: kho_mem_deserialize()."""
        kernel = self.kernel
        for run in KhoRadixTree(kernel.memory, incoming.root_pa).runs():
            nr_pages = run.nr << run.order
            if not kernel.memory.is_ram(run.pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT):
                # nobody looks before the struct pages of an entry are written
                raise KernelPanic(f"unable to handle page fault: no memory map for {run.pfn:#x}")
            kernel.memblock.reserve(run.pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
            kernel.memblock.mark_noinit(run.pfn << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
            self._tag(run)
            kernel.charge("kho_reserve_preserved", run.nr)
            kernel.charge("kho_init_preserved_page", nr_pages)

    def _tag(self, run: KeyRun) -> None:
        start, end = run.pfn, run.end_pfn
        before = self.tags.get(start - 1) if start else None
        if before is not None and before[1] == start and before[2] == run.order:
            start = before[0]
        self.tags.put(start, end, run.order)

    def _reserve_scratch(self) -> None:
        text = self.kernel.params.get("kho_scratch")
        param = ScratchParam.parse(text) if text is not None else None
        if text is not None and param is None:
            self.kernel.printk(f"KHO: cannot parse kho_scratch={text}, keeping the default")
        nids = sorted({region.nid for region in self.kernel.memblock.memory})
        try:
            self.scratch_array_pa, self.scratch = reserve_scratch(
                self.kernel.memblock, param or ScratchParam(), nids
            )
        except NoMemory as error:
            self.kernel.printk(f"KHO: failed to reserve scratch, disabling KHO: {error}")
            self.enabled = False

    # The outgoing side.

    def init(self) -> None:
        """Root page, FDT, metadata. fs_initcall. C: kho_init()."""
        if not self.enabled:
            return
        kernel = self.kernel
        kernel.charge("kho_init")
        try:
            self._tree = KhoRadixTree(
                kernel.memory, kernel.get_zeroed_page(), kernel.get_zeroed_page, kernel.free_page
            )
            self.fdt_pa = self.alloc_preserve(PAGE_SIZE)
            self._start_fdt(self._tree)
            self._add_metadata()
        except KernelError as error:
            kernel.printk(f"KHO: cannot initialise, disabling KHO: {error}")
            self._give_up()

    def _give_up(self) -> None:
        """What kho_init() undoes when it fails."""
        if self.fdt_pa:
            self.unpreserve_free(self.fdt_pa)
        if self._tree is not None:
            self._tree.destroy()
        self.enabled = False
        self._tree = None
        self.fdt_pa = 0

    def _start_fdt(self, tree: KhoRadixTree) -> None:
        kernel = self.kernel
        compatible = (kernel.release.kho or "").encode() + b"\0"
        self._fdt = Fdt()
        self._fdt.append_prop(self._fdt.root, "compatible", compatible)
        root = tree.root_pa.to_bytes(8, "little")
        self._fdt.append_prop(self._fdt.root, KHO_PROP_MEMORY_MAP, root)
        # The sequential writer builds its strings at the end of the page and leaves them there.
        strings = b"".join(name.encode() + b"\0" for name in self._fdt.strings)
        kernel.memory.write(self.fdt_pa + PAGE_SIZE - len(strings), strings)
        self._write_fdt()

    def _add_metadata(self) -> None:
        """C: kho_out_kexec_metadata()."""
        metadata = self.alloc_preserve(KhoKexecMetadata.SIZE)
        try:
            self.kernel.memory.write(metadata, self._next_metadata().pack())
            self.add_subtree(KEXEC_METADATA_NODE, metadata, KhoKexecMetadata.SIZE)
        except KernelError:
            self.unpreserve_free(metadata)
            raise

    def _next_metadata(self) -> KhoKexecMetadata:
        before = self.kexec_metadata()
        return KhoKexecMetadata(
            KEXEC_METADATA_VERSION,
            to_cstring(self.kernel.release.utsname, 65),
            1 if before is None else before.kexec_count + 1 & 0xFFFFFFFF,
        )

    def kexec_metadata(self) -> KhoKexecMetadata | None:
        """What the previous kernel said of itself; None if it said nothing of use."""
        try:
            pa, size = self.retrieve_subtree(KEXEC_METADATA_NODE)
        except KernelError:
            return None
        if size < KhoKexecMetadata.SIZE:
            return None
        found = KhoKexecMetadata.unpack(self.kernel.memory.read(pa, KhoKexecMetadata.SIZE))
        return found if found.version == KEXEC_METADATA_VERSION else None

    def _write_fdt(self) -> None:
        self.kernel.memory.write(self.fdt_pa, self._fdt.pack())

    def add_subtree(self, name: str, pa: int, size: int) -> None:
        """Hang a blob into the FDT. C: kho_add_subtree().

        Raises:
            Exists: the name is taken.
            NoMemory: the FDT's page has no room, or there is no FDT.
        """
        if not self.fdt_pa:
            raise NoMemory("KHO has no FDT")
        if self._fdt.root.subnode(name) is not None:
            raise Exists("subtree exists", name=name)
        node = self._fdt.add_subnode(self._fdt.root, name)
        self._fdt.set_prop(node, KHO_PROP_SUBTREE_DATA, pa.to_bytes(8, "little"))
        self._fdt.set_prop(node, KHO_PROP_SUBTREE_SIZE, size.to_bytes(8, "little"))
        if len(self._fdt.pack()) > PAGE_SIZE:
            self._fdt.root.subnodes.remove(node)
            raise NoMemory("FDT is full", name=name)
        self._write_fdt()

    def retrieve_subtree(self, name: str) -> tuple[int, int]:
        """(address, size) of an incoming blob. C: kho_retrieve_subtree().

        Raises:
            NoEntry: no KHO boot, or no such subtree.
            InvalidArgument: the subtree's properties are not what they should be.
        """
        node = self.incoming.fdt.root.subnode(name) if self.incoming is not None else None
        if node is None:
            raise NoEntry("no such subtree", name=name)
        pa, size = node.u64(KHO_PROP_SUBTREE_DATA), node.u64(KHO_PROP_SUBTREE_SIZE)
        if pa is None or size is None:
            raise InvalidArgument("malformed subtree", name=name)
        return pa, size

    # Preserving.

    def preserve_folios(self, pfn: int, order: int, nr: int = 1) -> None:
        """Preserve `nr` adjacent folios of one order. C: kho_preserve_folio().

        Raises:
            InvalidArgument: KHO has no tree, or, with CONFIG_KEXEC_HANDOVER_DEBUG, the folio
                lies in scratch.
            NoMemory: no page for a node of the tree.
        """
        if self._tree is None:
            raise InvalidArgument("KHO is not initialised")
        if self.kernel.config.kexec_handover_debug and self.scratch_overlap(pfn, nr << order):
            self.kernel.warn_on("preserving scratch memory")
            raise InvalidArgument("scratch cannot be preserved", pfn=pfn)
        with self.kernel.clock.lock(_TREE_LOCK):
            self.kernel.charge("kho_radix_add_key", nr)
        self._tree.add_run(pfn, order, nr)
        self.preserved_keys += nr

    def unpreserve_folios(self, pfn: int, order: int, nr: int = 1) -> None:
        """Take the keys back. C: kho_unpreserve_folio()."""
        if self._tree is None:
            return
        with self.kernel.clock.lock(_TREE_LOCK):
            self.kernel.charge("kho_radix_del_key", nr)
        self._tree.del_run(pfn, order, nr)
        self.preserved_keys -= nr

    def scratch_overlap(self, pfn: int, nr_pages: int) -> bool:
        """Whether the frames meet a scratch area. C: kho_scratch_overlap()."""
        start, end = pfn << PAGE_SHIFT, pfn + nr_pages << PAGE_SHIFT
        return any(start < area.addr + area.size and area.addr < end for area in self.scratch)

    def alloc_preserve(self, size: int) -> int:
        """A zeroed, preserved block that holds `size` bytes; its address. C: kho_alloc_preserve().

        Raises InvalidArgument for size 0, TooBig above the largest order, NoMemory.
        """
        self.kernel.fail_function("kho_alloc_preserve")
        if size == 0:
            raise InvalidArgument("size 0")
        order = max(0, (size - 1).bit_length() - PAGE_SHIFT)
        if order > MAX_PAGE_ORDER:
            raise TooBig("above the largest order", size=size)
        pfn = self.kernel.page_alloc.alloc_pages(order)
        self.kernel.memory.zero(pfn, 1 << order)
        try:
            self.preserve_folios(pfn, order)
        except KernelError:
            self.kernel.page_alloc.free_pages(pfn, order)
            raise
        return pfn << PAGE_SHIFT

    def unpreserve_free(self, pa: int, order: int = 0) -> None:
        """Undo `alloc_preserve`. C: kho_unpreserve_free()."""
        self.unpreserve_folios(pa >> PAGE_SHIFT, order)
        self.kernel.page_alloc.free_pages(pa >> PAGE_SHIFT, order)

    # Restoring.

    def restore_folios(self, pfn: int, order: int, nr: int = 1) -> int:
        """Take back `nr` adjacent folios, each tagged with `order`; how many were there.

        Stops at the first that carries no tag of that order at its head. C: kho_restore_folio(),
        which takes the order from the tag: callers that do not know it ask `tag_order` first.
        """
        kernel = self.kernel
        restored = 0
        while restored < nr:
            at = pfn + (restored << order)
            found = self.tags.get(at)
            if found is None or found[2] != order or at - found[0] & (1 << order) - 1:
                break
            take = min(nr - restored, found[1] - at >> order)
            if not kernel.page_alloc.pfn_valid(at, take << order):
                break
            self.tags.clear(at, at + (take << order))
            kernel.page_alloc.adjust_managed(at, take << order)
            restored += take
        kernel.charge("kho_restore_page", restored << order)
        return restored

    def tag_order(self, pfn: int) -> int | None:
        """The order in the tag of this frame; None if it is not the head of a tagged entry."""
        found = self.tags.get(pfn)
        if found is None or pfn - found[0] & (1 << found[2]) - 1:
            return None
        return found[2]

    def restore_free(self, pa: int) -> None:
        """Restore a block and give it to the page allocator. C: kho_restore_free()."""
        pfn = pa >> PAGE_SHIFT
        order = self.tag_order(pfn)
        if order is None or self.restore_folios(pfn, order) != 1:
            self.kernel.warn_on(f"restoring {pa:#x}, which is not preserved")
            return
        self.kernel.charge("kho_unpreserve_free")
        self.kernel.page_alloc.free_pages(pfn, order)

    # What was handed over, for those who look.

    def outgoing_runs(self) -> list[KeyRun]:
        """Everything preserved so far."""
        return list(self._tree.runs()) if self._tree is not None else []

    @property
    def outgoing_tree(self) -> KhoRadixTree | None:
        """The tree that the next kernel will be given."""
        return self._tree

    def handover_digest(self) -> bytes:
        """Of every byte that is handed over: the tree's pages and all that it lists."""
        extents = [(pa >> PAGE_SHIFT, 1) for _, pa in self.outgoing_nodes()]
        extents += [(run.pfn, run.nr << run.order) for run in self.outgoing_runs()]
        return self.kernel.memory.content_digest(extents)

    def outgoing_nodes(self) -> list[tuple[int, int]]:
        """Pages of the outgoing tree as (level, address)."""
        return list(self._tree.nodes()) if self._tree is not None else []
