"""Flattened device trees, as far as KHO needs them: two levels, written once, grown, read.

The bytes come out as the kernel's own library writes them, because order and sizes show in a
memory dump: a new subnode is placed before the older ones, a new property before the node's
older ones, the strings block grows downward under construction and upward afterwards, and a
packed tree has no slack. Reading is strict about what a reader must be strict about (magic, bounds,
known tokens) and lenient about the rest. Source: the Devicetree Specification v0.4, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

__all__ = ["FDT_MAGIC", "Fdt", "FdtError", "FdtNode", "stringlist_contains"]

FDT_MAGIC = 0xD00DFEED
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_VERSION, _LAST_COMPATIBLE = 17, 16
_HEADER = struct.Struct(">10I")
_U32 = struct.Struct(">I")
_U32_PAIR = struct.Struct(">II")
_PROP_HEAD = struct.Struct(">III")
_U64 = struct.Struct("<Q")
_BEGIN_NODE_TOKEN, _END_NODE_TOKEN, _END_TOKEN = map(_U32.pack, (_BEGIN_NODE, _END_NODE, _END))
#: A tree written from nothing has its header filled up to whole entries of the reserve map.
_BUILT_RSVMAP = 48
_MAX_DEPTH = 8


class FdtError(ValueError):
    """The bytes are not a flattened device tree that a reader accepts."""


@dataclass(slots=True)
class FdtNode:
    """One node: properties and subnodes in the order in which they stand in the tree."""

    name: str
    props: dict[str, bytes] = field(default_factory=dict)
    subnodes: list[FdtNode] = field(default_factory=list)

    def subnode(self, name: str) -> FdtNode | None:
        """The subnode of that name."""
        for node in self.subnodes:
            if node.name == name:
                return node
        return None

    def copy(self) -> FdtNode:
        """An independent copy."""
        return FdtNode(self.name, self.props.copy(), [node.copy() for node in self.subnodes])

    def u64(self, prop: str) -> int | None:
        """A property that holds one u64 in the CPU's byte order; None if it is no such thing."""
        raw = self.props.get(prop)
        return _U64.unpack(raw)[0] if raw is not None and len(raw) == _U64.size else None


@dataclass(slots=True)
class Fdt:
    """A tree and its strings block (names of properties)."""

    root: FdtNode = field(default_factory=lambda: FdtNode(""))
    strings: list[str] = field(default_factory=list)
    #: Why a tree that was read could not be read to its end.
    broken: str = ""
    #: What the header of a tree that was read says, in bytes.
    total_size: int = 0

    def append_prop(self, node: FdtNode, name: str, value: bytes) -> None:
        """Write a property behind the others, as a tree under construction does.

        Its name goes before the names collected so far: that writer's strings grow downward.
        """
        if name not in self.strings:
            self.strings.insert(0, name)
        node.props[name] = value

    def set_prop(self, node: FdtNode, name: str, value: bytes) -> None:
        """Set a property of a finished tree; a new one goes before the older ones."""
        if name not in self.strings:
            self.strings.append(name)
        if name in node.props:
            node.props[name] = value
        else:
            node.props = {name: value, **node.props}

    def add_subnode(self, parent: FdtNode, name: str) -> FdtNode:
        """Add a subnode to a finished tree: before the older ones."""
        node = FdtNode(name)
        parent.subnodes.insert(0, node)
        return node

    @property
    def strings_block(self) -> bytes:
        """The names of all properties, each ended by a zero."""
        return _strings(tuple(self.strings))[0]

    def built(self, size: int) -> tuple[bytes, int]:
        """A zeroed buffer of `size` bytes after a tree was written into it from nothing.

        The writer builds the strings at the buffer's end and leaves them there; the tree itself
        is a little longer than a packed one. Returns (the buffer, bytes of the tree).
        """
        strings = self.strings_block
        tree = self._at(_BUILT_RSVMAP)
        return tree.ljust(size - len(strings), b"\0") + strings, len(tree)

    def pack(self) -> bytes:
        """The tree's bytes, packed."""
        return self._at(_HEADER.size)

    def _at(self, off_rsvmap: int) -> bytes:
        """The tree's bytes, the reserve map at this offset and all else close behind it."""
        names = tuple(self.strings)
        strings = _strings(names)[0]
        block = _node_bytes(self.root, names) + _END_TOKEN
        off_struct = off_rsvmap + 16
        off_strings = off_struct + len(block)
        total = off_strings + len(strings)
        header = _HEADER.pack(
            FDT_MAGIC,
            total,
            off_struct,
            off_strings,
            off_rsvmap,
            _VERSION,
            _LAST_COMPATIBLE,
            0,
            len(strings),
            len(block),
        )
        return header.ljust(off_struct, b"\0") + block + strings

    @classmethod
    def parse(cls, data: bytes) -> Fdt:
        """Read a tree.

        Raises:
            FdtError: the header, the bounds or the structure are wrong.
        """
        tree = cls.follow(data)
        if tree.broken:
            raise FdtError(tree.broken)
        return tree

    @classmethod
    def follow(cls, data: bytes) -> Fdt:
        """Read a tree, as far as its structure can be followed: `broken` says why not further.

        A reader of the kernel's checks the header and then looks for what it wants.

        Raises:
            FdtError: the header or the bounds are wrong, or there is no root node.
        """
        tree = _followed(data)
        return cls(tree.root.copy(), tree.strings.copy(), tree.broken, tree.total_size)


def stringlist_contains(value: bytes, text: str) -> bool:
    """Whether a property that lists strings, each ended by a zero, has this one among them."""
    return text.encode() in value.split(b"\0")[:-1]


@lru_cache(maxsize=64)
def _strings(names: tuple[str, ...]) -> tuple[bytes, Mapping[str, int]]:
    """The strings block of these names, and where each begins in it."""
    block, offsets = b"", dict[str, int]()
    for name in names:
        offsets[name] = len(block)
        block += name.encode() + b"\0"
    return block, MappingProxyType(offsets)


def _node_bytes(node: FdtNode, names: tuple[str, ...]) -> bytes:
    """The node's tokens; `names` of properties are those in the strings block."""
    block = _opening(node.name, tuple(node.props.items()), names)
    for sub in node.subnodes:
        block += _node_bytes(sub, names)
    return block + _END_NODE_TOKEN


@lru_cache(maxsize=64)
def _opening(name: str, props: tuple[tuple[str, bytes], ...], names: tuple[str, ...]) -> bytes:
    """A node's tokens before its subnodes; what stands between two of them fills up whole words."""
    offsets, raw = _strings(names)[1], name.encode()
    block = _BEGIN_NODE_TOKEN + raw + bytes(4 - len(raw) % 4)  # a zero ends it at least
    for prop, value in props:
        size = len(value)
        block += _PROP_HEAD.pack(_PROP, size, offsets[prop]) + value + bytes(-size % 4)
    return block


@lru_cache(maxsize=64)
def _followed(data: bytes) -> Fdt:
    """What these bytes say, kept for those who read them again: copied, never changed."""
    if len(data) < _HEADER.size:
        raise FdtError("shorter than a header")
    header = _HEADER.unpack_from(data)
    magic, total, off_struct, off_strings, _, version, compatible, _, n_strings, n_struct = header
    if magic != FDT_MAGIC:
        raise FdtError(f"bad magic {magic:#x}")
    if version < _LAST_COMPATIBLE or compatible > _VERSION:
        raise FdtError(f"version {version}, compatible to {compatible}")
    if (
        not _HEADER.size <= total < 1 << 31
        or max(off_struct + n_struct, off_strings + n_strings) > total
    ):
        raise FdtError("a block reaches beyond the tree")
    if max(off_struct + n_struct, off_strings + n_strings) > len(data):
        raise FdtError("a block reaches beyond what there is")
    if off_struct % 4:
        raise FdtError("structure block is not aligned")
    reader = _Reader(
        data[off_struct : off_struct + n_struct], data[off_strings : off_strings + n_strings]
    )
    if reader.token() != _BEGIN_NODE:
        raise FdtError("no root node")
    tree = Fdt(total_size=total)
    try:
        reader.node(tree.root, 0)
        if reader.token() != _END:
            raise FdtError("structure block does not end")
    except FdtError as error:
        tree.broken = str(error)
    tree.strings = [s.decode("ascii", "replace") for s in reader.strings.split(b"\0")[:-1]]
    return tree


class _Reader:
    """A cursor over the structure block."""

    def __init__(self, block: bytes, strings: bytes) -> None:
        self.block = block
        self.strings = strings
        self.at = 0

    def token(self) -> int:
        while True:
            if self.at + 4 > len(self.block):
                raise FdtError("structure block is cut off")
            token: int = _U32.unpack_from(self.block, self.at)[0]
            self.at += 4
            if token != _NOP:
                return token

    def cstring(self, block: bytes, at: int) -> bytes:
        end = block.find(b"\0", at)
        if at >= len(block) or end < 0:
            raise FdtError("unterminated string")
        return block[at:end]

    def node(self, node: FdtNode, depth: int) -> None:
        """Read a node into `node`, which has what was found even if the rest cannot be read."""
        if depth > _MAX_DEPTH:
            raise FdtError("nested too deeply")
        raw = self.cstring(self.block, self.at)
        self.at += (len(raw) + 4) & ~3
        node.name = raw.decode("ascii", "replace")
        while True:
            token = self.token()
            if token == _PROP:
                self._prop(node)
            elif token == _BEGIN_NODE:
                node.subnodes.append(FdtNode(""))
                self.node(node.subnodes[-1], depth + 1)
            elif token == _END_NODE:
                return
            else:
                raise FdtError(f"unknown token {token:#x}")

    def _prop(self, node: FdtNode) -> None:
        start = self.at + _U32_PAIR.size
        if start > len(self.block):
            raise FdtError("structure block is cut off")
        size, offset = _U32_PAIR.unpack_from(self.block, self.at)
        if start + size > len(self.block):
            raise FdtError("property is cut off")
        name = self.cstring(self.strings, offset).decode("ascii", "replace")
        node.props.setdefault(name, self.block[start : start + size])
        self.at = start + ((size + 3) & ~3)
