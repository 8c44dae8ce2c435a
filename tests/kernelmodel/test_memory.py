"""Sparse physical memory against a flat list of bytes: runs, pages and files are one content."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.errors import KernelPanic, ModelBug
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SIZE, GuestContent, MemoryRange, PhysicalMemory
from kernelmodel.mm.extents import Extents

PAGES = 24
RAM = (MemoryRange(0, PAGES * PAGE_SIZE, 0),)


@dataclass(frozen=True)
class Pattern:
    """Every byte of page n is n + `seed`."""

    seed: int

    def page(self, index: int) -> bytes:
        return bytes([(index + self.seed) % 256]) * PAGE_SIZE

    def key(self) -> bytes:
        return b"pattern" + bytes([self.seed])


FRAMES = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8)).map(
    lambda pair: (pair[0], min(pair[1], PAGES - pair[0]))
)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, (PAGES - 3) * PAGE_SIZE), st.integers(1, 9000)),
        st.tuples(st.just("fill"), FRAMES, st.integers(0, 3)),
        st.tuples(st.just("zero"), FRAMES, st.none()),
        st.tuples(st.just("clear"), st.integers(0, PAGES - 1), st.none()),
        st.tuples(st.just("copy"), st.integers(0, 9), st.integers(12, 20)),
        st.tuples(
            st.just("scatter"),
            st.lists(st.integers(0, PAGES - 1), min_size=1, unique=True).map(tuple),
            st.integers(0, 3),
        ),
    ),
    max_size=10,
)


def apply(changes: list[tuple[object, ...]]) -> tuple[PhysicalMemory, bytes]:
    memory, flat = PhysicalMemory(RAM), bytearray(PAGES * PAGE_SIZE)
    for n, (change, where, what) in enumerate(changes, 1):
        if change == "write":
            assert isinstance(where, int)
            assert isinstance(what, int)
            data = bytes([n]) * what
            memory.write(where, data)
            flat[where : where + what] = data
        elif change == "clear":
            assert isinstance(where, int)
            memory.clear_page(where)
            flat[where * PAGE_SIZE : (where + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)
        elif change == "scatter":
            assert isinstance(where, tuple)
            assert isinstance(what, int)
            memory.fill_scattered(np.array(where), Pattern(what), 2)
            for index, pfn in enumerate(where, 2):
                page = Pattern(what).page(index)
                flat[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] = page
        elif change == "copy":
            assert isinstance(where, int)
            assert isinstance(what, int)
            memory.copy(where, what, 3)
            start = where * PAGE_SIZE
            flat[what * PAGE_SIZE : (what + 3) * PAGE_SIZE] = flat[start : start + 3 * PAGE_SIZE]
        else:
            assert isinstance(where, tuple)
            pfn, nr = where
            content = b"".join(
                Pattern(what).page(i + 2) if isinstance(what, int) else bytes(PAGE_SIZE)
                for i in range(nr)
            )
            if isinstance(what, int):
                memory.fill(pfn, nr, Pattern(what), 2)
            else:
                memory.zero(pfn, nr)
            flat[pfn * PAGE_SIZE : (pfn + nr) * PAGE_SIZE] = content
    return memory, bytes(flat)


@settings(deadline=None)
@given(CHANGES, st.integers(0, (PAGES - 1) * PAGE_SIZE), st.integers(1, PAGE_SIZE))
def test_every_byte_reads_as_if_memory_were_flat(
    changes: list[tuple[object, ...]], at: int, size: int
) -> None:
    memory, flat = apply(changes)
    assert memory.read(0, len(flat)) == flat
    assert memory.read(at, size) == flat[at : at + size]
    assert memory.u64(at) == int.from_bytes(flat[at : at + 8], "little")


@settings(deadline=None)
@given(CHANGES, FRAMES)
def test_segments_cover_a_range_once_and_say_what_is_there(
    changes: list[tuple[object, ...]], frames: tuple[int, int]
) -> None:
    memory, flat = apply(changes)
    pfn, nr = frames
    at = pfn
    for start, count, content, first in memory.segments(pfn, nr):
        assert start == at
        for n in range(count):
            page = flat[(start + n) * PAGE_SIZE : (start + n + 1) * PAGE_SIZE]
            if content is not None:
                assert content.page(first + n) == page
            elif count > 1:
                assert page == bytes(PAGE_SIZE)
        at += count
    assert at == pfn + nr


@settings(deadline=None, max_examples=25)
@given(CHANGES)
def test_a_saved_memory_is_the_same_bytes_without_any_rule(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[object, ...]]
) -> None:
    memory, flat = apply(changes)
    path = tmp_path_factory.getbasetemp() / "memory"
    memory.save(path)
    assert path.read_bytes() == flat
    loaded = PhysicalMemory.load(path, RAM)
    assert loaded.read(0, len(flat)) == flat
    assert all(content is None for _, _, content, _ in loaded.segments(0, PAGES))


@settings(deadline=None, max_examples=40)
@given(CHANGES, st.integers(1, PAGES - 1))
def test_a_digest_depends_on_content_and_order_alone(
    changes: list[tuple[object, ...]], cut: int
) -> None:
    memory, flat = apply(changes)
    whole = memory.content_digest([(0, PAGES)])
    assert memory.content_digest([(0, cut), (cut, PAGES - cut)]) == whole
    assert memory.content_digest([(n, 1) for n in range(PAGES)]) == whole
    halves = Extents(np.array([0, cut]), np.array([cut, PAGES - cut]))
    assert memory.content_digest([halves]) == whole
    swapped = [(cut, PAGES - cut), (0, cut)]
    rotated = flat[cut * PAGE_SIZE :] + flat[: cut * PAGE_SIZE]
    assert (memory.content_digest(swapped) == whole) == (rotated == flat)


def test_a_digest_follows_content_to_another_place() -> None:
    memory = PhysicalMemory(RAM)
    memory.fill(0, 4, GuestContent("vm", 1), 10)
    memory.write(2 * PAGE_SIZE + 5, b"x")
    memory.copy(0, 9, 4)
    assert memory.content_digest([(9, 4)]) == memory.content_digest([(0, 2), (2, 2)])
    memory.write(9 * PAGE_SIZE, b"\0")
    assert memory.content_digest([(9, 4)]) != memory.content_digest([(0, 4)])


def test_a_large_write_costs_what_it_is_long() -> None:
    memory, data = PhysicalMemory((MemoryRange(0, GIB, 0),)), bytes(range(256)) * (32 * MIB // 256)
    began = time.process_time()
    memory.write(PAGE_SIZE - 8, data)
    assert time.process_time() - began < 2  # a tenth of a second; ten, if each page moved the rest
    assert memory.read(PAGE_SIZE - 8, len(data)) == data


def test_zeroes_count_alike_whether_written_or_not() -> None:
    memory = PhysicalMemory(RAM)
    before = memory.content_digest([(0, PAGES)])
    memory.write(3 * PAGE_SIZE, bytes(PAGE_SIZE))
    assert memory.content_digest([(0, PAGES)]) == before
    memory.write(3 * PAGE_SIZE, b"\1")
    assert memory.content_digest([(0, PAGES)]) != before


@pytest.mark.parametrize("at", [0, 127, 128, 1023, 1024, PAGE_SIZE - 1])
def test_a_digest_tells_where_the_last_byte_of_a_page_lies(at: int) -> None:
    digests = set()
    for offset in (at, (at + 1) % PAGE_SIZE):
        for value in (b"\1", b"\2"):
            memory = PhysicalMemory(RAM)
            memory.write(5 * PAGE_SIZE + offset, value)
            whole = memory.content_digest([(5, 2)])
            assert memory.content_digest([Extents(np.array([5]), np.array([2]))]) == whole
            digests.add(whole)
    assert len(digests) == 4


def test_guest_pages_differ_by_vm_version_and_number() -> None:
    pages = {
        GuestContent(vm, version).page(n) for vm in ("a", "b") for version in (1, 2) for n in (0, 1)
    }
    assert len(pages) == 8
    assert GuestContent("a", 1).page(0) in pages


@pytest.mark.parametrize("pa", [PAGES * PAGE_SIZE, 1 << 45, -8])
def test_memory_that_is_not_there_faults(pa: int) -> None:
    memory = PhysicalMemory(RAM)
    for access in (
        lambda: memory.read(pa, 8),
        lambda: memory.write(pa, b"x"),
        lambda: memory.u64(pa),
        lambda: memory.zero(pa // PAGE_SIZE, 1),
        lambda: memory.clear_page(pa // PAGE_SIZE),
        lambda: memory.writable(pa // PAGE_SIZE),
        lambda: memory.write_u64(pa, 1),
        lambda: memory.fill(pa // PAGE_SIZE, 1, Pattern(0)),
        lambda: list(memory.segments(pa // PAGE_SIZE, 1)),
    ):
        with pytest.raises(KernelPanic, match="page fault"):
            access()
    with pytest.raises(KernelPanic):
        memory.read((PAGES - 1) * PAGE_SIZE, PAGE_SIZE + 1)


# The machine.


def test_ram_lies_around_the_two_holes() -> None:
    (low, high) = MachineSpec((2 * GIB,), 1).memory_map()
    assert (low.base, low.end) == (0, 640 * KIB)
    assert (high.base, high.end) == (MIB, 2 * GIB)
    ranges = MachineSpec((2 * GIB, 4 * GIB), 8).memory_map()
    assert [(r.base, r.end, r.nid) for r in ranges] == [
        (0, 640 * KIB, 0),
        (MIB, 2 * GIB, 0),
        (2 * GIB, 3 * GIB, 1),
        (4 * GIB, 7 * GIB, 1),
    ]


def test_firmware_hides_ram_before_the_hole_and_nowhere_else() -> None:
    kept = 128 * KIB
    ranges = MachineSpec((2 * GIB, 4 * GIB), 8, kept).memory_map()
    assert [(r.base, r.end, r.nid) for r in ranges[2:]] == [
        (2 * GIB, 3 * GIB - kept, 1),
        (4 * GIB, 7 * GIB, 1),
    ]
    ends = [MachineSpec((n * GIB,), 1, kept).memory_map()[-1].end for n in (2, 3)]
    assert ends == [2 * GIB, 3 * GIB - kept]


@pytest.mark.parametrize("spec", [((), 1), ((GIB,), 0), ((GIB + 1,), 1)])
def test_impossible_machines(spec: tuple[tuple[int, ...], int]) -> None:
    with pytest.raises(ModelBug):
        Machine(MachineSpec(*spec))


def test_a_power_cycle_loses_memory() -> None:
    machine = Machine(MachineSpec((64 * MIB,), 1))
    machine.memory.write(MIB, b"gone")
    machine.reset()
    assert machine.memory.read(MIB, 4) == bytes(4)
