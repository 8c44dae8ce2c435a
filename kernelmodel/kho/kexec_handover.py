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

from typing import TYPE_CHECKING

from kernelmodel.abi.kexec_handover import KhoKexecMetadata, KhoScratch
from kernelmodel.errors import InvalidArgument, KernelError, NoEntry, NoMemory, TooBig
from kernelmodel.kho.incoming import KhoIn, deserialize, incoming_tree, read_handover
from kernelmodel.kho.metadata import add_metadata, incoming_metadata
from kernelmodel.kho.radix_tree import KeyRun, KhoRadixTree
from kernelmodel.kho.radix_walk import IncomingTree
from kernelmodel.kho.root_fdt import RootFdt, blob_of
from kernelmodel.kho.scratch import cold_boot_scratch, extend_scratch
from kernelmodel.kho.tags import PageTags
from kernelmodel.machine import Firmware
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.mmzone import MAX_PAGE_ORDER
from kernelmodel.mm.ranges import RangeSet

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["TREE_LOCK", "Kho"]

TREE_LOCK = "kho_radix_tree"


class Kho:
    """KHO of one booted kernel: `incoming` what it was given, the rest what it will give."""

    __slots__ = (
        "_fdt",
        "_tree",
        "_walked",
        "debugfs_fdt_size",
        "enabled",
        "fdt_pa",
        "incoming",
        "kernel",
        "leaked",
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
        #: Preserved entries that nobody has restored yet.
        self.tags = PageTags()
        #: Frames that a restore took back and lost when it failed: in use, and nobody's.
        self.leaked = RangeSet()
        self._tree: KhoRadixTree | None = None
        #: The incoming tree as extending scratch found it.
        self._walked: IncomingTree | None = None
        self._fdt = RootFdt(self._write_fdt)
        #: Bytes of the FDT that debugfs shows, 0 if it does not.
        self.debugfs_fdt_size = 0

    # The incoming side, in the order of boot.

    def populate(self, firmware: Firmware) -> None:
        """Look at what firmware hands over, before anything is allocated. C: kho_populate()."""
        self.incoming = read_handover(self.kernel, firmware)
        if self.incoming is not None:
            self.scratch = list(self.incoming.scratch)
            self.scratch_array_pa = self.incoming.scratch_pa

    def memory_init_early(self) -> None:
        """Let boot use what holds nothing preserved. C: kho_memory_init_early().

        Releases before 7.3 have no such thing: until the tree is read, scratch is all they have.
        """
        if self.incoming is None or not self.kernel.release.kho_extends_scratch:
            return
        self._walked = incoming_tree(self.kernel, self.incoming)
        try:
            keys = extend_scratch(self.kernel.memblock, self._walked)
        except NoMemory as error:
            self.kernel.printk(f"KHO: scratch is not extended: {error}")
            return
        self.kernel.charge("kho_extend_scratch", keys)

    def memory_init(self) -> None:
        """Reserve what is preserved, or, on a cold boot, scratch. C: kho_memory_init().

        A kdump kernel (from 7.3 on) does neither: its memory is too small to share, and what was
        preserved is not its own.
        """
        if self.kernel.is_kdump and self.kernel.release.kho_extends_scratch:
            self.kernel.printk("KHO: disabled, this is a kdump kernel")
            self.enabled = False
        elif self.incoming is not None:
            tree, self._walked = self._walked, None
            if tree is None or not tree.is_as_it_was:
                tree = incoming_tree(self.kernel, self.incoming)
            deserialize(self.kernel, tree, self.tags)
        elif self.enabled:
            try:
                self.scratch_array_pa, self.scratch = cold_boot_scratch(self.kernel)
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
            add_metadata(self)
            if self.incoming is None:
                self.debugfs_fdt_size = self._fdt.packed_size
        except KernelError as error:
            kernel.printk(f"KHO: cannot initialise, disabling KHO: {error}")
            self._give_up()

    def _give_up(self) -> None:
        """What kho_init() undoes when it fails."""
        if self.fdt_pa:
            self.unpreserve_free(self.fdt_pa)
        if self._tree is not None:
            self._tree.destroy()
        self.enabled, self._tree, self.fdt_pa = False, None, 0

    def _start_fdt(self, tree: KhoRadixTree) -> None:
        self._fdt = RootFdt(self._write_fdt)
        self._fdt.start(self.kernel.release.kho or "", tree.root_pa)
        # what building it leaves at the end of the page stays there
        strings = self._fdt.strings_block
        self.kernel.memory.write(self.fdt_pa + PAGE_SIZE - len(strings), strings)

    def _write_fdt(self, packed: bytes) -> None:
        self.kernel.memory.write(self.fdt_pa, packed)

    def kexec_metadata(self) -> KhoKexecMetadata | None:
        """What the previous kernel said of itself; None if it said nothing of use."""
        return incoming_metadata(self)

    def add_subtree(self, name: str, pa: int, size: int) -> None:
        """Hang a blob into the FDT. C: kho_add_subtree().

        Raises:
            Exists: the name is taken.
            NoMemory: the FDT's page has no room, or there is no FDT.
        """
        if not self.fdt_pa:
            raise NoMemory("KHO has no FDT")
        self._fdt.add(name, pa, size)

    def remove_subtree(self, name: str) -> None:
        """Take a blob out of the FDT; one that is not there is none. C: kho_remove_subtree().

        The bytes that the shorter FDT no longer covers stay as they were.
        """
        self._fdt.remove(name)

    @property
    def outgoing_subtrees(self) -> dict[str, tuple[int, int]]:
        """(address, size) of the blobs that the next kernel will find."""
        return {node.name: blob_of(node) for node in self._fdt.root.subnodes}

    def retrieve_subtree(self, name: str) -> tuple[int, int]:
        """(address, size) of an incoming blob. C: kho_retrieve_subtree().

        Raises:
            NoEntry: no KHO boot, or no such subtree.
            InvalidArgument: the subtree's properties are not what they should be.
        """
        node = self.incoming.fdt.root.subnode(name) if self.incoming is not None else None
        if node is None:
            raise NoEntry("no such subtree", name=name)
        return blob_of(node)

    # Preserving.

    def preserve_folios(self, pfn: int, order: int, nr: int = 1) -> None:
        """Preserve `nr` adjacent folios of one order. C: kho_preserve_folio().

        Raises:
            InvalidArgument: KHO has no tree, or, with CONFIG_KEXEC_HANDOVER_DEBUG, a folio lies
                in scratch.
            OutOfRange: no key can be made of so large an address.
            NoMemory: no page for a node of the tree.
        """
        kernel, tree = self.kernel, self._tree
        if kernel.config.kexec_handover_debug:
            self.check_scratch(pfn, nr << order)
        if tree is None:
            raise InvalidArgument("KHO is not initialised")
        kernel.clock.charge_locked(TREE_LOCK, "kho_radix_add_key", nr)
        tree.add_run(pfn, order, nr)

    def check_scratch(self, pfn: int, nr_pages: int) -> None:
        """Refuse scratch, which only a kernel with debug checks does.

        Without them it is preserved, and the next kernel's image or first allocations may
        overwrite it. Raises: InvalidArgument.
        """
        if self.kernel.config.kexec_handover_debug and self.scratch_overlap(pfn, nr_pages):
            self.kernel.warn_on("preserving scratch memory")
            raise InvalidArgument("scratch cannot be preserved", pfn=pfn)

    def unpreserve_folios(self, pfn: int, order: int, nr: int = 1) -> None:
        """Take the keys back; one that is not set is none. C: kho_unpreserve_folio()."""
        if self._tree is not None:
            self.kernel.clock.charge_locked(TREE_LOCK, "kho_radix_del_key", nr)
            self._tree.del_run(pfn, order, nr)

    @property
    def preserved_keys(self) -> int:
        """Keys set in the outgoing tree."""
        return self._tree.nr_keys if self._tree is not None else 0

    def scratch_overlap(self, pfn: int, nr_pages: int) -> bool:
        """Whether the frames meet a scratch area. C: kho_scratch_overlap()."""
        start, end = pfn << PAGE_SHIFT, pfn + nr_pages << PAGE_SHIFT
        return any(start < area.addr + area.size and area.addr < end for area in self.scratch)

    def alloc_preserve(self, size: int) -> int:
        """A zeroed, preserved block that holds `size` bytes; its address. C: kho_alloc_preserve().

        Raises InvalidArgument for size 0, TooBig above the largest order, NoMemory.
        """
        kernel = self.kernel
        kernel.fail_function("kho_alloc_preserve")
        if size == 0:
            raise InvalidArgument("size 0")
        if size > PAGE_SIZE << MAX_PAGE_ORDER:
            raise TooBig("above the largest order", size=size)
        order = 0 if size <= PAGE_SIZE else (size - 1).bit_length() - PAGE_SHIFT
        pfn = kernel.page_alloc.alloc_pages(order)
        if order:
            kernel.memory.zero(pfn, 1 << order)
        else:
            kernel.memory.clear_page(pfn)
        try:
            self.preserve_folios(pfn, order)
        except KernelError:
            kernel.page_alloc.free_pages(pfn, order)
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
        which takes the order from the tag: callers that do not know it ask `restore_folio`.
        """
        kernel = self.kernel
        restored = self.tags.take(pfn, order, nr)
        if restored:
            kernel.page_alloc.adjust_managed(pfn, restored << order)
        kernel.charge("kho_restore_page", restored << order)
        return restored

    def tag_order(self, pfn: int) -> int | None:
        """The order in the tag of this frame; None if it is not the head of a tagged entry."""
        return self.tags.order(pfn)

    def restore_folio(self, pa: int) -> int | None:
        """Take back the entry at this address; its order, None with a warning if none is there.

        C: kho_restore_page(), kho_restore_folio().
        """
        kernel, pfn = self.kernel, pa >> PAGE_SHIFT
        order = self.tags.take_entry(pfn)
        if order is None:
            kernel.warn_on(f"restoring {pa:#x}, which is not preserved")
            return None
        kernel.page_alloc.adjust_managed(pfn, 1 << order)
        kernel.charge("kho_restore_page", 1 << order)
        return order

    def restore_free(self, pa: int, *, page_only: bool = False) -> bool:
        """Restore a block and give it to the page allocator; False if none is there.

        With `page_only`, what an entry has beyond one page is lost. C: kho_restore_free(),
        kho_restore_page() and free_page().
        """
        kernel, pfn = self.kernel, pa >> PAGE_SHIFT
        order = self.tags.take_entry(pfn)
        if order is None:
            kernel.warn_on(f"restoring {pa:#x}, which is not preserved")
            return False
        kernel.charge("kho_restore_page", 1 << order)
        kernel.charge("kho_unpreserve_free")
        if page_only and order:
            kernel.page_alloc.adjust_managed(pfn + 1, (1 << order) - 1)
            self.leaked.add(pfn + 1, pfn + (1 << order))
            order = 0
        kernel.page_alloc.free_pages(pfn, order, new=True)
        return True

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
        return self.kernel.memory.content_digest(self._tree.extents() if self._tree else ())

    def outgoing_nodes(self) -> list[tuple[int, int]]:
        """Pages of the outgoing tree as (level, address)."""
        return self._tree.nodes() if self._tree is not None else []
