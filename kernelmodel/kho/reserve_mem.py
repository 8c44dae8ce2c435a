"""`reserve_mem=SIZE:ALIGN:NAME`: memory with a name, at the same place in the next kernel.

Happy path: while memblock rules, each word is looked up by name in what the previous kernel handed
over, and revived if it is there; otherwise memory is allocated. At the end of boot all of them are
preserved and described in the blob "memblock". `find` answers whoever knows a name.

Unhappy paths: a word that cannot be read, a name that is taken, a ninth word and an allocation
that fails are messages, nothing more. A reservation of another size than was handed over, or not
aligned as asked, is not revived: new memory is allocated for it. On a KHO boot that is scratch,
which a kernel with debug checks refuses to preserve; it then hands over none of the reservations.

Two traps of 7.3 are kept. Only whole pages are preserved, so the end of a reservation that has no
whole number of them is free memory for the next kernel although it says "revived". And `kho=off`
revives too, but hands nothing on.

C: mm/memblock.c (reserve_mem(), reserve_mem_kho_revive(), prepare_kho_fdt()), 7.3; how it answers
to odd words was seen on a running 7.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernelmodel.abi.memblock import (
    MEMBLOCK_KHO_COMPATIBLE,
    MEMBLOCK_KHO_NODE,
    RESERVE_MEM_KHO_COMPATIBLE,
    RESERVE_MEM_SIZE,
    RESERVE_MEM_START,
)
from kernelmodel.errors import KernelError, NoMemory
from kernelmodel.kho.fdt import Fdt, FdtError, FdtNode, stringlist_contains
from kernelmodel.kho.pages import preserve_pages, unpreserve_pages
from kernelmodel.kho.scratch import memparse
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["Reservation", "ReserveMem"]

_MAX_ENTRIES: Final = 8
_NAME_SIZE: Final = 16
_SMP_CACHE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Reservation:
    """Named memory, in bytes. C: struct reserve_mem_table."""

    name: str
    start: int
    size: int

    @property
    def pages(self) -> tuple[int, int]:
        """(first frame, frames) as they are preserved: whole ones, from the first byte's on."""
        return self.start >> PAGE_SHIFT, self.size >> PAGE_SHIFT


class ReserveMem:
    """The named memory of one kernel."""

    __slots__ = ("_kernel", "table")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.table: list[Reservation] = []

    def find(self, name: str) -> Reservation | None:
        """The reservation of that name. C: reserve_mem_find_by_name()."""
        return next((entry for entry in self.table if entry.name == name), None)

    def setup(self) -> None:
        """Read the command line's words while memblock still allocates. C: reserve_mem()."""
        for word in self._kernel.params.values("reserve_mem"):
            why = self._reserve(word)
            if why:
                self._kernel.printk(f"reserve_mem={word}: {why}")

    def _reserve(self, word: str) -> str:
        """Do as the word says; why that failed, or ""."""
        size_text, _, rest = word.partition(":")
        align_text, _, name = rest.partition(":")
        size, align = memparse(size_text), memparse(align_text or "0")
        if not size or align is None or not 0 < len(name.encode()) < _NAME_SIZE:
            return "should be SIZE:ALIGN:NAME, the name of at most 15 bytes"
        if len(self.table) >= _MAX_ENTRIES:
            return f"there are {_MAX_ENTRIES} already"
        if self.find(name) is not None:
            return f"there is a {name!r} already"
        align = max(align, _SMP_CACHE_BYTES)
        start = self._revive(name, size, align)
        if start is None:
            try:
                start = self._kernel.memblock.alloc_range(size, align)
            except NoMemory:
                return "there is no such memory"
        self.table.append(Reservation(name, start, size))
        return ""

    def _revive(self, name: str, size: int, align: int) -> int | None:
        """Where the previous kernel had it. C: reserve_mem_kho_revive()."""
        node = self._incoming_node(name)
        if node is None:
            return None
        start, had = node.u64(RESERVE_MEM_START), node.u64(RESERVE_MEM_SIZE)
        if start is None or had is None:
            self._kernel.printk(f"reserve_mem: {name!r} was handed over without start or size")
            return None
        if start & align - 1 or had != size:
            self._kernel.printk(f"reserve_mem: {name!r} was handed over otherwise than asked for")
            return None
        self._kernel.printk(f"reserve_mem: {name!r} is revived")
        return start

    def _incoming_node(self, name: str) -> FdtNode | None:
        kernel = self._kernel
        try:
            pa, _ = kernel.kho.retrieve_subtree(MEMBLOCK_KHO_NODE)
            tree = Fdt.parse(kernel.memory.read(pa, PAGE_SIZE))
        except KernelError:
            return None
        except FdtError as error:
            kernel.printk(f"reserve_mem: what was handed over is no tree: {error}")
            return None
        node = tree.root.subnode(name)
        if node is None or not _is(tree.root, MEMBLOCK_KHO_COMPATIBLE):
            return None
        return node if _is(node, RESERVE_MEM_KHO_COMPATIBLE) else None

    def prepare(self) -> None:
        """Preserve all of them and say where they are. late_initcall. C: reserve_mem_init()."""
        kho = self._kernel.kho
        if not kho.enabled or not self.table:
            return
        done: list[Reservation] = []
        fdt_pa = 0
        try:
            fdt_pa = kho.alloc_preserve(PAGE_SIZE)
            for entry in self.table:
                preserve_pages(kho, *entry.pages)
                done.append(entry)
            page, size = self._describe().built(PAGE_SIZE)
            self._kernel.memory.write(fdt_pa, page)
            kho.add_subtree(MEMBLOCK_KHO_NODE, fdt_pa, size)
        except KernelError as error:
            for entry in done:
                unpreserve_pages(kho, *entry.pages)
            if fdt_pa:
                kho.unpreserve_free(fdt_pa)
            self._kernel.printk(f"reserve_mem: nothing is handed over: {error}")

    def _describe(self) -> Fdt:
        """C: prepare_kho_fdt()."""
        tree = Fdt()
        tree.append_prop(tree.root, "compatible", MEMBLOCK_KHO_COMPATIBLE.encode() + b"\0")
        for entry in self.table:
            node = FdtNode(entry.name)
            tree.root.subnodes.append(node)
            tree.append_prop(node, "compatible", RESERVE_MEM_KHO_COMPATIBLE.encode() + b"\0")
            tree.append_prop(node, RESERVE_MEM_START, entry.start.to_bytes(8, "little"))
            tree.append_prop(node, RESERVE_MEM_SIZE, entry.size.to_bytes(8, "little"))
        return tree


def _is(node: FdtNode, compatible: str) -> bool:
    return stringlist_contains(node.props.get("compatible", b""), compatible)
