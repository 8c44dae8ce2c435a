"""Who owns what is preserved: every key of the outgoing tree, by name.

KHO itself keeps no list of owners, only keys. Here each of its users is asked what it believes to
have preserved, so that checks can hold that against the tree: a key that nobody claims has leaked,
and what is claimed without a key would be lost at the jump.

A file handler's `private`, or the operations of an FLB, that preserve more than the one page at
their `data` say so by being `KeepsPages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kernelmodel.abi.kexec_handover import KHO_PROP_SUBTREE_DATA, KHO_PROP_SUBTREE_SIZE
from kernelmodel.abi.luo import LUO_SUBTREE
from kernelmodel.abi.memblock import MEMBLOCK_KHO_NODE
from kernelmodel.kho.fdt import Fdt
from kernelmodel.kho.pages import blocks_by_node
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.kho.block import KhoBlockSet
    from kernelmodel.luo.handler import Flb, LuoFile
    from kernelmodel.luo.session import LuoSession

__all__ = ["KeepsPages", "Preserved", "page_at", "preserved_by_owner"]


@dataclass(frozen=True, slots=True)
class Preserved:
    """`nr` adjacent keys of one order, the first at page frame `pfn`.

    `own` pages were allocated to be handed over; others belong to a file that is handed over.
    """

    owner: str
    pfn: int
    order: int = 0
    nr: int = 1
    own: bool = True

    @property
    def end_pfn(self) -> int:
        """First frame behind."""
        return self.pfn + (self.nr << self.order)


@runtime_checkable
class KeepsPages(Protocol):
    """Something that has preserved more than one page."""

    def preserved_pages(self, kernel: Kernel) -> Iterable[Preserved]:
        """All of it; `owner` says what it is, whose it is comes before."""
        ...


def preserved_by_owner(kernel: Kernel) -> Iterator[Preserved]:
    """What KHO's users have in the outgoing tree, from their own books."""
    kho, luo = kernel.kho, kernel.luo
    if not kho.fdt_pa:
        return
    yield Preserved("KHO: FDT", kho.fdt_pa >> PAGE_SHIFT)
    if kernel.luo_v4 is not None:
        yield from kernel.luo_v4.preserved_pages(kernel)
    else:
        yield from _subtrees(kernel)
    if MEMBLOCK_KHO_NODE in kho.outgoing_subtrees:
        for entry in kernel.reserve_mem.table:
            for pfn, order in blocks_by_node(kho, *entry.pages):
                yield Preserved(f"KHO: reserve_mem {entry.name}", pfn, order, own=False)
    if luo.flbs.outgoing_pa:
        yield Preserved("LUO: table of FLBs", luo.flbs.outgoing_pa >> PAGE_SHIFT)
    yield from _blocks("LUO: block of sessions", luo.sessions.outgoing_blocks)
    for session in luo.sessions.outgoing:
        yield from _session(kernel, session)
    for flb in luo.flbs.registered:
        yield from _flb(kernel, flb)


def _subtrees(kernel: Kernel) -> Iterator[Preserved]:
    """Blobs that hang in the FDT, as its bytes say."""
    fdt = Fdt.parse(kernel.memory.read(kernel.kho.fdt_pa, PAGE_SIZE))
    for node in fdt.root.subnodes:
        pa, size = node.u64(KHO_PROP_SUBTREE_DATA), node.u64(KHO_PROP_SUBTREE_SIZE)
        if pa and size:
            order = max(0, (size - 1).bit_length() - PAGE_SHIFT)
            owner = "LUO: header" if node.name == LUO_SUBTREE else f"KHO: subtree {node.name}"
            yield Preserved(owner, pa >> PAGE_SHIFT, order)


def _blocks(owner: str, blocks: KhoBlockSet) -> Iterator[Preserved]:
    return (Preserved(owner, pa >> PAGE_SHIFT) for pa in blocks.blocks)


def _session(kernel: Kernel, session: LuoSession) -> Iterator[Preserved]:
    name = session.name.rstrip(b"\0").decode(errors="replace")
    yield from _blocks(f"session {name}: block of files", session.file_set.block_set)
    for luo_file in session.file_set.files:
        owner = f"session {name}, token {luo_file.token}"
        for preserved in _file(kernel, luo_file):
            yield replace(preserved, owner=f"{owner}: {preserved.owner}")


def _file(kernel: Kernel, luo_file: LuoFile) -> Iterator[Preserved]:
    yield from page_at(kernel, "entry", luo_file.data)
    if isinstance(luo_file.private, KeepsPages):
        yield from luo_file.private.preserved_pages(kernel)


def _flb(kernel: Kernel, flb: Flb) -> Iterator[Preserved]:
    if not flb.outgoing_count:
        return
    if isinstance(flb.ops, KeepsPages):
        for preserved in flb.ops.preserved_pages(kernel):
            yield replace(preserved, owner=f"FLB {flb.name}: {preserved.owner}")
    else:
        yield from page_at(kernel, f"FLB {flb.name}", flb.outgoing_data)


def page_at(kernel: Kernel, owner: str, data: int) -> Iterator[Preserved]:
    """The page whose address a u64 is, if it is one: handlers may keep any number there."""
    tree = kernel.kho.outgoing_tree
    pfn = data >> PAGE_SHIFT
    if tree is None or not data or data % PAGE_SIZE or not kernel.page_alloc.pfn_valid(pfn):
        return
    if tree.has(pfn, 0):
        yield Preserved(owner, pfn)
