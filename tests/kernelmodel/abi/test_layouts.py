"""Byte layouts: sizes, fields, and that a layout does not change under an old compatible string."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import astuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernelmodel.abi.folio_runs import FolioRun, FolioRuns, single_folio_runs
from kernelmodel.abi.folio_table import FolioTable, parse_folio_table
from kernelmodel.abi.guest_memfd import GuestHugetlbSer, GuestMemfdSer, KvmVmSer
from kernelmodel.abi.hugetlb import HugemfdSer, HugetlbHstateSer, HugetlbSer
from kernelmodel.abi.kexec_handover import (
    KhoBlockHeaderSer,
    KhoKexecMetadata,
    KhoScratch,
    KhoVmalloc,
)
from kernelmodel.abi.layout import Ser, cstring, to_cstring
from kernelmodel.abi.luo import (
    LuoFileSer,
    LuoFileSetSer,
    LuoFlbHeaderSer,
    LuoFlbSer,
    LuoSer,
    LuoSessionSer,
)
from kernelmodel.abi.memfd import MemfdLuoSer
from kernelmodel.memory import MIB, PAGE_SIZE, MemoryRange, PhysicalMemory
from kernelmodel.releases import CATALOGUE

STRUCTS: dict[type[Ser], int] = {
    KhoScratch: 16,
    KhoVmalloc: 16,
    KhoBlockHeaderSer: 16,
    KhoKexecMetadata: 73,
    LuoSer: 32,
    LuoSessionSer: 80,
    LuoFileSetSer: 16,
    LuoFileSer: 64,
    LuoFlbHeaderSer: 16,
    LuoFlbSer: 64,
    MemfdLuoSer: 48,
    HugetlbHstateSer: 9,
    HugemfdSer: 41,
    KvmVmSer: 8,
    GuestMemfdSer: 48,
    GuestHugetlbSer: 49,
}
#: What each compatible string stands for.
PARTS = {
    "kho": (KhoScratch, KhoVmalloc, KhoBlockHeaderSer, KhoKexecMetadata),
    "luo": (LuoSer, LuoSessionSer, LuoFileSetSer, LuoFileSer, LuoFlbHeaderSer, LuoFlbSer),
    "memfd": (MemfdLuoSer,),
    "hugetlb": (HugetlbHstateSer,),
    "hugemfd": (HugemfdSer,),
    "kvm_vm": (KvmVmSer,),
    "guest_memfd": (GuestMemfdSer,),
    "guest_hugetlb": (GuestHugetlbSer,),
}
#: A layout that changes needs a new string, and then a new line here.
PINNED = {
    ("kho", "kho-v4"): "92affc2115c1",
    ("luo", "luo-v5"): "0aede08a188d",
    ("memfd", "memfd-v2"): "e2289c949736",
    ("hugetlb", "hugetlb-v1"): "5a1bcb0acfa8",
    ("hugemfd", "huge-memfd-v1"): "63b1ab07c3a6",
    ("kvm_vm", "kvm-vm-v1"): "b54ffe5a34e4",
    ("guest_memfd", "guest-memfd-v1"): "c96ee911b231",
    ("guest_hugetlb", "guest-hugetlb-v1"): "c9460fc771dd",
}


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_structures_have_the_kernels_sizes(struct: type[Ser]) -> None:
    assert struct.SIZE == struct.FORMAT.size == STRUCTS[struct]
    data = bytes(n % 256 for n in range(struct.SIZE))
    value = struct.unpack(data)
    assert value.pack() == data
    assert len(astuple(value)) == len(struct.field_names())
    assert struct.unpack(b"\xff" + data, 1) == value


def layout_of(part: str) -> str:
    text = ";".join(
        f"{struct.FORMAT.format} {' '.join(struct.field_names())}" for struct in PARTS[part]
    )
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@pytest.mark.parametrize(("part", "compatible"), PINNED)
def test_a_layout_belongs_to_its_compatible_string(part: str, compatible: str) -> None:
    newest = CATALOGUE["7.3.4+guest-memfd"]
    assert getattr(newest, part) == compatible
    assert layout_of(part) == PINNED[part, compatible]


def test_the_counts_of_huge_pages_fill_37_bytes() -> None:
    assert HugetlbSer.SIZE == 37
    ser = HugetlbSer((HugetlbHstateSer(5, 9), HugetlbHstateSer(1 << 40, 18)))
    assert len(ser.pack()) == 37
    assert ser.pack()[36] == 2
    assert HugetlbSer.unpack(ser.pack()) == ser
    assert len(HugetlbSer.unpack(bytes(36) + b"\xff").hstates) == 4


def test_strings_end_with_a_nul() -> None:
    assert to_cstring("abc", 6) == b"abc\0\0\0"
    with pytest.raises(ValueError, match="does not fit"):
        to_cstring("abc", 3)
    assert cstring(b"abc\0def") == b"abc"
    assert cstring(b"abc") == b"abc"


# Folio tables.

RUN = st.builds(
    FolioRun,
    st.integers(1, 1 << 40),
    st.integers(0, 1 << 30),
    st.integers(1, 600),
    st.sampled_from([1, 512, 1 << 18]),
    st.sampled_from([1, 512]),
    st.sampled_from([0, 3]),
)
Entry = tuple[int, int, int]


def entries_of(runs: Iterable[FolioRun | FolioRuns]) -> list[Entry]:
    return [
        (run.pfn + n * run.step, run.index + n * run.index_step, run.flags)
        for run in single_folio_runs(runs)
        for n in range(run.nr)
    ]


@settings(deadline=None)
@given(st.lists(RUN, min_size=1, max_size=5), st.booleans(), st.integers(0, 300))
def test_a_table_reads_back_from_its_rule_and_from_its_bytes(
    runs: list[FolioRun], plain: bool, more: int
) -> None:
    memory = PhysicalMemory((MemoryRange(0, 4 * MIB, 0),))
    table = FolioTable(tuple(runs))
    total = sum(run.nr for run in runs)
    pages = -(-(total + more) // 256)
    extents = [(10, (pages + 1) // 2), (700, pages - (pages + 1) // 2)]
    at = 0
    for pfn, nr in extents:
        for n in range(nr):
            if plain:
                memory.write((pfn + n) * PAGE_SIZE, table.page(at + n))
        if not plain and nr:
            memory.fill(pfn, nr, table, at)
        at += nr
    raw = b"".join(memory.read(pfn * PAGE_SIZE, nr * PAGE_SIZE) for pfn, nr in extents)
    words = [int.from_bytes(raw[n : n + 8], "little") for n in range(0, 16 * (total + more), 8)]
    from_bytes = [
        (word & (1 << 52) - 1, index, word >> 52)
        for word, index in zip(words[::2], words[1::2], strict=True)
    ]
    assert from_bytes == entries_of(runs) + [(0, 0, 0)] * more
    assert entries_of(parse_folio_table(memory, extents, total + more)) == from_bytes


@example([0, 0, 0, 1 << 63])  # a step that is negative as a signed number
@settings(deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=40))
def test_any_bytes_are_read_as_the_entries_that_they_are(words: list[int]) -> None:
    words = words[: len(words) // 2 * 2]
    memory = PhysicalMemory((MemoryRange(0, MIB, 0),))
    memory.write(5 * PAGE_SIZE, b"".join(word.to_bytes(8, "little") for word in words))
    runs = parse_folio_table(memory, [(5, 1)], len(words) // 2)
    assert entries_of(runs) == [
        (word & (1 << 52) - 1, index, word >> 52)
        for word, index in zip(words[::2], words[1::2], strict=True)
    ]
