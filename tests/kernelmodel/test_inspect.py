"""Reading images without a kernel: what is right is read, what is wrong is told, nothing raises."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelmodel.image.fnv import FNV_BASIS, fnv1a, fnv1a_zeroes
from kernelmodel.image.load import load_image
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.memory import MIB, PAGE_SHIFT, PAGE_SIZE, GuestContent
from tests.conformance.kho_reader import handover
from tests.kernelmodel.handovers import (
    CHAINS,
    REAL,
    image_of,
    modelled_host,
    poke,
    real_description,
    real_pages,
    tree_root,
)

Change = Callable[[dict[int, bytes], int], None]


def inspected(pages: dict[int, bytes], fdt_pa: int) -> dict[str, Any]:
    return inspect_image(image_of(pages, fdt_pa))


def u64(pages: dict[int, bytes], pa: int) -> int:
    value: int = struct.unpack_from("<Q", pages[pa >> PAGE_SHIFT], pa % PAGE_SIZE)[0]
    return value


def luo_pa(pages: dict[int, bytes], _fdt_pa: int) -> int:
    """LuoSer's address: the page that begins with its name."""
    (pfn,) = [pfn for pfn, page in pages.items() if page.startswith(b"luo-v5\0")]
    return pfn << PAGE_SHIFT


def plain_hash(data: bytes) -> int:
    digest = FNV_BASIS
    for byte in data:
        digest = (digest ^ byte) * 1099511628211 % (1 << 64)
    return digest


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 65_535, 65_536, 65_537, 150_001])
def test_the_hash_is_that_of_a_plain_loop(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert fnv1a(FNV_BASIS, data) == plain_hash(data)
    half = size // 2
    assert fnv1a(fnv1a(FNV_BASIS, data[:half]), data[half:]) == plain_hash(data)
    assert fnv1a_zeroes(7, size) == fnv1a(7, bytes(size))


@pytest.mark.parametrize("path", [REAL, CHAINS], ids=["img1", "chains"])
def test_a_real_kernels_image_is_read_in_every_field_and_without_a_fault(path: Path) -> None:
    description = real_description(path.name.partition(".")[0])
    said = inspect_image(load_image(path))
    assert said == description
    assert list(said) == list(description)


def test_a_modelled_hosts_image_is_read_without_a_fault() -> None:
    host = modelled_host()
    said = inspect_image(host.image())
    assert "faults" not in said
    plain, huge = said["sessions"]
    assert plain["files"][0] == {
        "compatible": "memfd-v2",
        "token": 1,
        "pos": 77,
        "size": len(host.content),
        "seals": 2,
        "nr_folios": 5,
        "fnv1a": f"{plain_hash(host.content):016x}",
    }
    guest = b"".join(GuestContent("guest", 1).page(index) for index in range(512))
    assert huge["files"] == [
        {
            "compatible": "huge-memfd-v1",
            "token": 9,
            "pos": 0,
            "size": 4 * MIB,
            "order": 9,
            "nr_folios": 2,
            "fnv1a": f"{fnv1a_zeroes(fnv1a(FNV_BASIS, guest), 2 * MIB):016x}",
        }
    ]
    assert said["hugetlb"] == {"9": 2}
    assert said["orders"]["9"] == 2
    assert said["flbs"] == [["hugetlb-v1", 1]]


def test_it_agrees_with_the_reader_that_shares_no_code() -> None:
    host = modelled_host("7.3.4")
    image = host.image()
    other = handover(host.kernel.memory.read, image.fdt_pa)
    assert inspect_image(image) == other


def test_without_hashes_no_content_is_looked_at() -> None:
    pages, fdt_pa = real_pages()
    said = inspect_image(image_of(pages, fdt_pa), hashes=False)
    assert "fnv1a" not in said["sessions"][0]["files"][0]


# What is wrong is told, with its address.


def faults_after(change: Change) -> list[str]:
    pages, fdt_pa = real_pages()
    change(pages, fdt_pa)
    said = inspected(pages, fdt_pa)
    json.dumps(said)
    faults: list[str] = said.get("faults", [])
    return faults


def drop_the_fdt(pages: dict[int, bytes], fdt_pa: int) -> None:
    del pages[fdt_pa >> PAGE_SHIFT]


def another_kho(pages: dict[int, bytes], fdt_pa: int) -> None:
    at = pages[fdt_pa >> PAGE_SHIFT].index(b"kho-v4")
    poke(pages, fdt_pa + at, b"kho-v3")


def another_luo(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, luo_pa(pages, fdt_pa), b"luo-v4")


def endless_sessions(pages: dict[int, bytes], fdt_pa: int) -> None:
    block = u64(pages, luo_pa(pages, fdt_pa) + 16)
    poke(pages, block, struct.pack("<Q", block))


def no_entries(pages: dict[int, bytes], fdt_pa: int) -> None:
    block = u64(pages, luo_pa(pages, fdt_pa) + 16)
    poke(pages, block + 8, struct.pack("<Q", 0))


def too_many_entries(pages: dict[int, bytes], fdt_pa: int) -> None:
    block = u64(pages, luo_pa(pages, fdt_pa) + 16)
    poke(pages, block + 8, struct.pack("<Q", 1 << 60))


def same_names(pages: dict[int, bytes], fdt_pa: int) -> None:
    block = u64(pages, luo_pa(pages, fdt_pa) + 16)
    poke(pages, block + 16 + 80, b"vm-0".ljust(64, b"\0"))


def first_file(pages: dict[int, bytes], fdt_pa: int) -> int:
    """Address of the first file's entry in its block."""
    return u64(pages, u64(pages, luo_pa(pages, fdt_pa) + 16) + 16 + 64) + 16


def other_handler(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, first_file(pages, fdt_pa), b"memfd-v9")


def same_token(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, first_file(pages, fdt_pa) + 64 + 56, struct.pack("<Q", 1))


def data_beyond_memory(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, first_file(pages, fdt_pa) + 48, struct.pack("<Q", 1 << 60))


def shared_data(pages: dict[int, bytes], fdt_pa: int) -> None:
    entry = first_file(pages, fdt_pa)
    poke(pages, entry + 64 + 48, struct.pack("<Q", u64(pages, entry + 48)))


def memfd_at(pages: dict[int, bytes], fdt_pa: int) -> int:
    return u64(pages, first_file(pages, fdt_pa) + 48)


def absurd_folios(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, memfd_at(pages, fdt_pa) + 24, struct.pack("<Q", 1 << 63))


def absurd_size(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, memfd_at(pages, fdt_pa) + 8, struct.pack("<Q", (1 << 64) - 1))


def strange_seals(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, memfd_at(pages, fdt_pa) + 16, struct.pack("<I", 0x100))


def looping_chunks(pages: dict[int, bytes], fdt_pa: int) -> None:
    chunk = u64(pages, memfd_at(pages, fdt_pa) + 32)
    poke(pages, chunk, struct.pack("<Q", chunk))


def table_at(pages: dict[int, bytes], fdt_pa: int) -> int:
    return u64(pages, u64(pages, memfd_at(pages, fdt_pa) + 32) + 8)


def folio_twice(pages: dict[int, bytes], fdt_pa: int) -> None:
    table = table_at(pages, fdt_pa)
    poke(pages, table + 16, struct.pack("<Q", u64(pages, table)))


def index_twice(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, table_at(pages, fdt_pa) + 24, struct.pack("<Q", 0))


def folio_elsewhere(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, table_at(pages, fdt_pa), struct.pack("<Q", 3 << 52 | 0x12345))


def drop_content(pages: dict[int, bytes], fdt_pa: int) -> None:
    del pages[u64(pages, table_at(pages, fdt_pa)) & (1 << 52) - 1]


def looping_tree(pages: dict[int, bytes], fdt_pa: int) -> None:
    root = tree_root(pages, fdt_pa)
    poke(pages, root + 8 * 100, struct.pack("<Q", root))


def tree_out_of_the_image(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, tree_root(pages, fdt_pa) + 8 * 100, struct.pack("<Q", 0x7777000))


def leaf_of(pages: dict[int, bytes], fdt_pa: int) -> int:
    node = tree_root(pages, fdt_pa)
    for _ in range(5):
        words = struct.unpack("<512Q", pages[node >> PAGE_SHIFT])
        node = next(word for word in words if word)
    return node


def one_key_less(pages: dict[int, bytes], fdt_pa: int) -> None:
    bit = (fdt_pa >> PAGE_SHIFT) % (1 << 15)
    leaf = leaf_of(pages, fdt_pa)
    byte = pages[leaf >> PAGE_SHIFT][bit >> 3] & ~(1 << (bit & 7))
    poke(pages, leaf + (bit >> 3), bytes([byte]))


def entries_overlap(pages: dict[int, bytes], fdt_pa: int) -> None:
    """A path for order 1, which the root has at index 1, with a key that covers the FDT's page."""
    at = tree_root(pages, fdt_pa)
    for level, spare in enumerate(range(0x9990000, 0x9995000, PAGE_SIZE)):
        poke(pages, at + (8 if level == 0 else 0), struct.pack("<Q", spare))
        pages[spare >> PAGE_SHIFT] = bytes(PAGE_SIZE)
        at = spare
    key = fdt_pa >> PAGE_SHIFT + 1
    poke(pages, at + (key >> 3), bytes([1 << (key & 7)]))


def absurd_flbs(pages: dict[int, bytes], fdt_pa: int) -> None:
    poke(pages, u64(pages, luo_pa(pages, fdt_pa) + 24) + 8, struct.pack("<Q", 1 << 40))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (drop_the_fdt, "the FDT at 0x4af000 is not in the image"),
        (another_kho, "the FDT at 0x4af000 is 'kho-v3', not 'kho-v4'"),
        (another_luo, "LUO's data are 'luo-v4', not 'luo-v5'"),
        (endless_sessions, "a block of the sessions at 0x6dd000 is reached twice"),
        (no_entries, "has 0 entries; 1 to 51"),
        (too_many_entries, "has 1152921504606846976 entries"),
        (same_names, "there are 2 sessions of the name 'vm-0'"),
        (other_handler, "'memfd-v9', of which no handler is known"),
        (same_token, "session 'vm-0' has two files with the token 1"),
        (data_beyond_memory, "is said to be at 0x1000000000000000, which is no physical address"),
        (shared_data, "the page of the entry of file 1 of session 'vm-0' already"),
        (absurd_folios, "says 9223372036854775808 folios, its table has room for 256"),
        (absurd_size, "the size 18446744073709551615, which no file can have"),
        (strange_seals, "has unknown seals 0x100"),
        (looping_chunks, "a chunk of the folio table of file 1 of session 'vm-0' at"),
        (folio_twice, "is part of file 1 of session 'vm-0' twice"),
        (index_twice, "has two folios at index 0"),
        (folio_elsewhere, "has a folio at 0x12345000 that is not preserved"),
        (looping_tree, "a page of the radix tree (level 5) already"),
        (tree_out_of_the_image, "a page of the radix tree (level 4) at 0x7777000 is not in the"),
        (one_key_less, "the FDT at 0x4af000 is not preserved"),
        (entries_overlap, "is preserved twice, as part of order"),
        (absurd_flbs, "1099511627776 FLBs at"),
    ],
)
def test_what_is_wrong_is_told(change: Change, fault: str) -> None:
    faults = faults_after(change)
    assert any(fault in sentence for sentence in faults), faults


def test_content_that_the_image_lacks_is_noted_and_no_fault() -> None:
    pages, fdt_pa = real_pages()
    drop_content(pages, fdt_pa)
    said = inspected(pages, fdt_pa)
    assert "faults" not in said
    (note,) = said["notes"]
    assert note.startswith("1 of 39 preserved pages are not in the image and read as zero: ")


def test_bytes_behind_a_frozen_table_are_no_fault() -> None:
    def beyond(pages: dict[int, bytes], fdt_pa: int) -> None:
        poke(pages, table_at(pages, fdt_pa) + 4000, b"\xff" * 16)

    assert faults_after(beyond) == []
