"""A small reader of handovers that shares no code with the model.

Written from the description of the format alone: root FDT, radix tree, LUO's blocks, memfd's
tables. It checks nothing that it does not need and raises whatever Python raises. `read` gives
bytes at a physical address.
"""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Read = Callable[[int, int], bytes]

PAGE = 4096


@dataclass
class Image:
    """A `.kho` file: some pages of physical memory."""

    fdt_pa: int
    pages: dict[int, bytes]

    @classmethod
    def load(cls, path: Path) -> Image:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        magic, fdt_pa, nr_pages = struct.unpack_from("<8sQQ", data)
        assert magic == b"KHOIMG1\0"
        pages = {}
        for at in range(24, 24 + nr_pages * (8 + PAGE), 8 + PAGE):
            (pfn,) = struct.unpack_from("<Q", data, at)
            pages[pfn] = data[at + 8 : at + 8 + PAGE]
        assert len(data) == 24 + nr_pages * (8 + PAGE)
        return cls(fdt_pa, pages)

    def read(self, pa: int, size: int) -> bytes:
        out = b""
        while size:
            page = self.pages.get(pa // PAGE, bytes(PAGE))
            part = page[pa % PAGE :][:size]
            out += part
            pa, size = pa + len(part), size - len(part)
        return out


def u64(read: Read, pa: int) -> int:
    value: int = struct.unpack("<Q", read(pa, 8))[0]
    return value


def text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode()


def fdt_nodes(blob: bytes) -> dict[str, dict[str, bytes]]:
    """Properties by node path; the root is the empty path."""
    total, off_struct, off_strings = struct.unpack_from(">3I", blob, 4)
    assert struct.unpack_from(">I", blob)[0] == 0xD00DFEED
    assert total <= PAGE
    nodes: dict[str, dict[str, bytes]] = {}
    path: list[str] = []
    at = off_struct
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == 1:
            name = text(blob[at:])
            at += (len(name) + 4) // 4 * 4
            path.append(name)
            nodes["/".join(path[1:])] = {}
        elif token == 2:
            path.pop()
        elif token == 3:
            size, offset = struct.unpack_from(">2I", blob, at)
            nodes["/".join(path[1:])][text(blob[off_strings + offset :])] = blob[
                at + 8 : at + 8 + size
            ]
            at += 8 + (size + 3) // 4 * 4
        else:
            assert token == 9
            return nodes


def radix_keys(read: Read, node: int, level: int = 5, prefix: int = 0) -> Iterator[int]:
    page = read(node, PAGE)
    if level == 0:
        for byte, bits in enumerate(page):
            for bit in range(8) if bits else ():
                if bits >> bit & 1:
                    yield prefix << 15 | byte * 8 + bit
        return
    for index, child in enumerate(struct.unpack("<512Q", page)):
        if child:
            yield from radix_keys(read, child, level - 1, prefix << 9 | index)


def order_and_pfn(key: int) -> tuple[int, int]:
    order = 52 - (key.bit_length() - 1)
    return order, (key - (1 << (52 - order))) << order


def blocks(read: Read, head: int, entry_size: int) -> Iterator[bytes]:
    while head:
        following, count = struct.unpack("<QQ", read(head, 16))
        assert 1 <= count <= (PAGE - 16) // entry_size
        for index in range(count):
            yield read(head + 16 + index * entry_size, entry_size)
        head = following


def vmalloc_bytes(read: Read, descriptor: bytes) -> bytes:
    first, total_pages, flags, order = struct.unpack("<QIHH", descriptor)
    assert flags == (1 if total_pages else 0)
    out = b""
    while first:
        following, *entries = struct.unpack("<512Q", read(first, PAGE))
        for entry in entries:
            if not entry:
                break
            out += read(entry, PAGE << order)
        first = following
    assert len(out) == total_pages * PAGE
    return out


def fnv1a(data: bytes) -> str:
    value = 1469598103934665603
    for byte in data:
        value = (value ^ byte) * 1099511628211 % 2**64
    return f"{value:016x}"


def memfd_content(read: Read, pa: int) -> bytes:
    _pos, size, _seals, _flags, nr_folios = struct.unpack("<QQIIQ", read(pa, 32))
    table = vmalloc_bytes(read, read(pa + 32, 16))
    content = bytearray(-(-size // PAGE) * PAGE)
    for index in range(nr_folios):
        word, page = struct.unpack_from("<QQ", table, index * 16)
        assert word >> 52 == 3, "dirty and up to date"
        content[page * PAGE : (page + 1) * PAGE] = read((word & 2**52 - 1) * PAGE, PAGE)
    return bytes(content[:size])


def memfd(read: Read, pa: int) -> dict[str, Any]:
    pos, size, seals, _flags, nr_folios = struct.unpack("<QQIIQ", read(pa, 32))
    digest = fnv1a(memfd_content(read, pa))
    return {"pos": pos, "size": size, "seals": seals, "nr_folios": nr_folios, "fnv1a": digest}


def huge_memfd(read: Read, pa: int) -> dict[str, Any]:
    """As proposed in December 2025; page addresses instead of a hash."""
    size, pos, nr_folios = struct.unpack("<QQQ", read(pa, 24))
    table = vmalloc_bytes(read, read(pa + 24, 16))
    order = read(pa + 40, 1)[0]
    entries = [struct.unpack_from("<QQ", table, index * 16) for index in range(nr_folios)]
    pages = {index: (word & 2**52 - 1) * PAGE for word, index in entries}
    return {"pos": pos, "size": size, "order": order, "pages": pages}


def session_entries(
    read: Read, sessions_pa: int
) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Each session's name and its files as (compatible, token, data)."""
    for entry in blocks(read, sessions_pa, 80):
        name, files_pa, count = struct.unpack("<64sQQ", entry)
        files = [struct.unpack("<48sQQ", file) for file in blocks(read, files_pa, 64)]
        assert len(files) == count
        yield text(name), [(text(kind), token, data) for kind, data, token in files]


def subtree(read: Read, fdt_pa: int, name: str) -> int:
    """Address of a blob."""
    (pa,) = struct.unpack("<Q", fdt_nodes(read(fdt_pa, PAGE))[name]["preserved-data"])
    return int(pa)


def files_of(read: Read, fdt_pa: int) -> Iterator[tuple[str, int, int]]:
    """(compatible, token, data) of every file."""
    for _, files in session_entries(read, u64(read, subtree(read, fdt_pa, "LUO") + 16)):
        yield from files


FILES = {"memfd-v2": memfd, "huge-memfd-v1": huge_memfd}


def handover(read: Read, fdt_pa: int) -> dict[str, Any]:
    """What is handed over, in the form of the images' descriptions."""
    nodes = fdt_nodes(read(fdt_pa, PAGE))
    root = nodes.pop("")
    (tree,) = struct.unpack("<Q", root["preserved-memory-map"])
    keys = [order_and_pfn(key) for key in radix_keys(read, tree)]
    blobs = {
        name: struct.unpack("<QQ", node["preserved-data"] + node["blob-size"])
        for name, node in nodes.items()
    }
    luo_pa = blobs["LUO"][0]
    luo, number, sessions_pa, flbs_pa = struct.unpack("<8sQQQ", read(luo_pa, 32))
    sessions = [
        {
            "name": name,
            "files": [
                {"compatible": kind, "token": token, **FILES[kind](read, data)}
                for kind, token, data in files
            ],
        }
        for name, files in session_entries(read, sessions_pa)
    ]
    pgcnt, nr_flbs = struct.unpack("<QQ", read(flbs_pa, 16))
    assert pgcnt == 1
    flbs = []
    for index in range(nr_flbs):
        name, _data, count = struct.unpack("<48sQQ", read(flbs_pa + 16 + 64 * index, 64))
        flbs.append([text(name), count])
    version, release, kexecs = struct.unpack("<I65sI", read(blobs["kexec-metadata"][0], 73))
    return {
        "fdt_pa": fdt_pa,
        "compatible": text(root["compatible"]),
        "subtrees": {name: size for name, (_, size) in blobs.items()},
        "luo": text(luo),
        "liveupdate_num": number,
        "sessions": sessions,
        "preserved_entries": len(keys),
        "preserved_pages": sum(1 << order for order, _ in keys),
        "orders": {str(order): n for order, n in Counter(order for order, _ in keys).items()},
        "flbs": flbs,
        "kexec_metadata": [version, text(release), kexecs],
    }


def preserved(read: Read, fdt_pa: int) -> set[tuple[int, int]]:
    """Every (pfn, order) in the tree."""
    root = fdt_nodes(read(fdt_pa, PAGE))[""]
    (tree,) = struct.unpack("<Q", root["preserved-memory-map"])
    return {(pfn, order) for order, pfn in map(order_and_pfn, radix_keys(read, tree))}
