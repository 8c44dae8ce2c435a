"""The FDT that firmware points the next kernel to: where the tree is, and which blobs there are.

Happy path: `start` makes it when KHO comes up, `add` hangs a blob into it, `remove` takes one out.
Each writes its page anew; nothing is left to do before the jump.

Unhappy paths: a name that is taken is EEXIST; a blob for which the page has no room is ENOMEM, and
the bytes of the attempt stay behind the end of the FDT. So do those of a blob that was removed.

C: kernel/liveupdate/kexec_handover.c (kho_add_subtree and its counterpart), 7.3.
"""

from __future__ import annotations

from collections.abc import Callable

from kernelmodel.abi.kexec_handover import (
    KHO_PROP_MEMORY_MAP,
    KHO_PROP_SUBTREE_DATA,
    KHO_PROP_SUBTREE_SIZE,
)
from kernelmodel.errors import Exists, InvalidArgument, NoMemory
from kernelmodel.kho.fdt import Fdt, FdtNode
from kernelmodel.memory import PAGE_SIZE

__all__ = ["RootFdt", "blob_of"]

#: Bytes that a blob adds at most, beside its name: a node, two properties and their names.
_BLOB_ROOM = 80


class RootFdt(Fdt):
    """KHO's FDT; `write` puts its bytes in memory."""

    __slots__ = ("_write", "packed_size")

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write
        #: Bytes of the FDT as it was written last.
        self.packed_size = 0

    def start(self, compatible: str, tree_root_pa: int) -> None:
        """Write it without blobs."""
        self.append_prop(self.root, "compatible", compatible.encode() + b"\0")
        self.append_prop(self.root, KHO_PROP_MEMORY_MAP, tree_root_pa.to_bytes(8, "little"))
        self.step()

    def step(self) -> None:
        """Write it as it is by now. Raises: NoMemory, and nothing is written."""
        packed = self.pack()
        if len(packed) > PAGE_SIZE:
            raise NoMemory("FDT is full")
        self.packed_size = len(packed)
        self._write(packed)

    def add(self, name: str, pa: int, size: int) -> None:
        """Hang a blob into it. Raises: Exists, NoMemory."""
        if self.root.subnode(name) is not None:
            raise Exists("subtree exists", name=name)
        # It is edited in place, and each step leaves its bytes. Where there is room for all of
        # them, the last step writes over what those before it left.
        has_room = self.packed_size + _BLOB_ROOM + len(name.encode()) <= PAGE_SIZE
        node = self.add_subnode(self.root, name)
        try:
            if not has_room:
                self.step()
            self.set_prop(node, KHO_PROP_SUBTREE_DATA, pa.to_bytes(8, "little"))
            if not has_room:
                self.step()
            self.set_prop(node, KHO_PROP_SUBTREE_SIZE, size.to_bytes(8, "little"))
            self.step()
        except NoMemory:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Take a blob out of it; one that is not there is none."""
        node = self.root.subnode(name)
        if node is not None:
            self.root.subnodes.remove(node)
            self.step()


def blob_of(node: FdtNode) -> tuple[int, int]:
    """(address, size) as a blob's node has them. Raises: InvalidArgument."""
    pa, size = node.u64(KHO_PROP_SUBTREE_DATA), node.u64(KHO_PROP_SUBTREE_SIZE)
    if pa is None or size is None:
        raise InvalidArgument("malformed subtree", name=node.name)
    return pa, size
