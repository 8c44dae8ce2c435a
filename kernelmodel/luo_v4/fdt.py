"""LUO's own page, a device tree: one on the way out, one that came in.

Outgoing: made at PREPARE and hung into KHO as `LUO`, gone with CANCEL. Every step reads the page,
changes the tree and writes it back, so that the page is all there is. Subsystems get their
property, still zero, when all have prepared (`setup_subsystems`), and their data at once after
that and again after freeze (`commit_subsystems`).

Incoming: read once, early, and kept until FINISH.

Unhappy paths: a tree that does not fit its page is ENOSPC; a property that should be there and is
not is ENOENT going out, a panic coming in; so is anything about the incoming page that is not as
it must be.

C: kernel/liveupdate/luo_core.c, luo_subsystems.c, proposal v4 of Sep 2025. Ours: the order of
nodes and properties, which is that in which the library puts new ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo_v4 import (
    LUO_SESSION_COMPATIBLE,
    LUO_SESSION_NODE,
    LUO_SUBSYSTEMS_COMPATIBLE,
    LUO_SUBSYSTEMS_NODE,
    LUO_SUBTREE,
)
from kernelmodel.errors import KernelError, KernelPanic, NoEntry, NoSpace
from kernelmodel.kho.fdt import Fdt, FdtError, FdtNode
from kernelmodel.luo_v4.kho import FinalizedKho
from kernelmodel.memory import PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["LuoFdtIn", "LuoFdtOut"]


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


class LuoFdtOut:
    """The page that the next kernel will read. Its address is 0 while there is none."""

    __slots__ = ("_kernel", "_kho", "pa")

    def __init__(self, kernel: Kernel, kho: FinalizedKho) -> None:
        self._kernel = kernel
        self._kho = kho
        self.pa = 0

    def create(self) -> None:
        """Raises: Busy, Exists, NoMemory from KHO; nothing is left then."""
        pa = self._kho.alloc_preserve(PAGE_SIZE)
        tree = Fdt()
        compatible = (self._kernel.release.luo or "").encode() + b"\0"
        tree.append_prop(tree.root, "compatible", compatible)
        self._kernel.memory.write(pa, tree.pack())
        try:
            self._kho.add_subtree(LUO_SUBTREE, pa, PAGE_SIZE)
        except KernelError:
            self._kho.unpreserve_free(pa)
            raise
        self.pa = pa

    def destroy(self) -> None:
        """Take the page out of KHO and free it."""
        if self.pa:
            self._kho.remove_subtree(LUO_SUBTREE)
            self._kho.unpreserve_free(self.pa)
            self.pa = 0

    def _node(self, tree: Fdt, name: str, compatible: str) -> FdtNode:
        node = tree.root.subnode(name)
        if node is None:
            node = tree.add_subnode(tree.root, name)
            tree.set_prop(node, "compatible", compatible.encode() + b"\0")
        return node

    def _read(self) -> Fdt:
        try:
            return Fdt.parse(self._kernel.memory.read(self.pa, PAGE_SIZE))
        except FdtError as error:
            raise NoEntry("no tree on the page", why=str(error)) from error

    def _write(self, tree: Fdt) -> None:
        packed = tree.pack()
        if len(packed) > PAGE_SIZE:
            raise NoSpace("no room in the page", size=len(packed))
        self._kernel.memory.write(self.pa, packed)

    def set_sessions(self, data: int, pgcnt: int, count: int) -> None:
        """The node `luo-session`. Raises: NoSpace."""
        tree = self._read()
        node = self._node(tree, LUO_SESSION_NODE, LUO_SESSION_COMPATIBLE)
        for name, value in (("count", count), ("data", data), ("pgcnt", pgcnt)):
            tree.set_prop(node, name, _u64(value))
        self._write(tree)

    def setup_subsystems(self, names: Iterable[str]) -> None:
        """The node `subsystems`, data still zero. Raises: NoSpace."""
        tree = self._read()
        node = self._node(tree, LUO_SUBSYSTEMS_NODE, LUO_SUBSYSTEMS_COMPATIBLE)
        for name in names:
            tree.set_prop(node, name, _u64(0))
        self._write(tree)

    def commit_subsystems(self, data: dict[str, int], gone: Iterable[str] = ()) -> None:
        """Write the data of all subsystems. Those `gone` since the setup lose their property.

        Raises: NoEntry if a property is not there.
        """
        tree = self._read()
        node = tree.root.subnode(LUO_SUBSYSTEMS_NODE)
        for name, value in data.items():
            if node is None or name not in node.props:
                raise NoEntry("no property for a subsystem", subsystem=name)
            node.props[name] = _u64(value)
        for name in gone:
            if node is not None:
                node.props.pop(name, None)
        self._write(tree)


class LuoFdtIn:
    """The page of the previous kernel."""

    __slots__ = ("_tree", "pa")

    def __init__(self, pa: int, tree: Fdt) -> None:
        self.pa = pa
        self._tree = tree

    @classmethod
    def load(cls, kernel: Kernel) -> LuoFdtIn | None:
        """What KHO brought; None if there is no subtree. It restores and allocates nothing.

        Raises:
            KernelPanic: it is there and not what this kernel understands.
        """
        try:
            pa, _ = kernel.kho.retrieve_subtree(LUO_SUBTREE)
        except NoEntry:
            return None
        except KernelError as error:
            raise KernelPanic(f"luo: cannot read the handover: {error}") from error
        try:
            tree = Fdt.parse(kernel.memory.read(pa, PAGE_SIZE))
        except FdtError as error:
            raise KernelPanic(f"luo: the handover is no device tree: {error}") from error
        _check_compatible(tree.root, kernel.release.luo or "")
        found = cls(pa, tree)
        _check_compatible(found.node(LUO_SUBSYSTEMS_NODE), LUO_SUBSYSTEMS_COMPATIBLE)
        _check_compatible(found.node(LUO_SESSION_NODE), LUO_SESSION_COMPATIBLE)
        return found

    def node(self, name: str) -> FdtNode:
        """Raises: KernelPanic if it is not there."""
        node = self._tree.root.subnode(name)
        if node is None:
            raise KernelPanic(f"luo: the handover has no node {name!r}")
        return node

    def subsystem(self, name: str) -> int | None:
        """The u64 of a subsystem; None if it has none."""
        return self.node(LUO_SUBSYSTEMS_NODE).u64(name)

    def sessions(self) -> tuple[int, int, int]:
        """(address, pages, count) of the sessions' array. Raises: KernelPanic."""
        node = self.node(LUO_SESSION_NODE)
        data, pgcnt, count = (node.u64(name) for name in ("data", "pgcnt", "count"))
        if data is None or pgcnt is None or count is None:
            raise KernelPanic("luo: the handover's node of sessions lacks a property")
        return data, pgcnt, count


def _check_compatible(node: FdtNode, wanted: str) -> None:
    found = cstring(node.props.get("compatible", b"")).decode("ascii", "replace")
    if found != wanted:
        raise KernelPanic(f"luo: incompatible handover: {found!r}, expected {wanted!r}")
