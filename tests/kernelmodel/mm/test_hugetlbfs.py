"""Huge page files give each page once, keep each promise, and return both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernelmodel.errors import (
    BadAddress,
    InvalidArgument,
    KernelError,
    ModelBug,
    NoMemory,
    NoSpace,
    NotPermitted,
    NotSupported,
)
from kernelmodel.fs import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.hugetlbfs import (
    HugetlbInode,
    HugetlbPrivateMapping,
    validate_hugetlb_inode,
)
from kernelmodel.mm.page_alloc import PageAllocator

HUGE = 2 << 20
PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def pool(n: int) -> tuple[HugetlbState, Hstate]:
    pages = PageAllocator([(1 << 20, 1 << 18, 0)])
    pages.free_range(1 << 20, 1 << 18)
    hugetlb = HugetlbState(f"hugepages={n}")
    hugetlb.init(pages)
    return hugetlb, hugetlb.hstate(9)


def counters(hstate: Hstate) -> tuple[int, int, int, int]:
    return (
        hstate.nr_huge_pages,
        hstate.free_huge_pages,
        hstate.resv_huge_pages,
        hstate.surplus_huge_pages,
    )


REFUSALS: list[tuple[str, Callable[[HugetlbInode], object], type[KernelError]]] = [
    ("odd size", lambda inode: inode.ftruncate(HUGE + 1), InvalidArgument),
    ("empty range", lambda inode: inode.fallocate(0, 0, 0), InvalidArgument),
    ("range before the file", lambda inode: inode.fallocate(0, -HUGE, HUGE), InvalidArgument),
    ("hole of other size", lambda inode: inode.fallocate(2, 0, HUGE), NotSupported),
    ("zero range", lambda inode: inode.fallocate(16, 0, HUGE), NotSupported),
    ("more than the pool", lambda inode: inode.fallocate(0, 0, 6 * HUGE), NoSpace),
    ("promise of more", lambda inode: inode.mmap(0, 6), NoMemory),
    ("empty mapping", lambda inode: inode.mmap(0, 0), InvalidArgument),
    ("beyond the mapping", lambda inode: inode.mmap(0, 2).touch(1, 2), BadAddress),
]


@pytest.mark.parametrize(
    ("call", "error"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_refusals(call: Callable[[HugetlbInode], object], error: type[KernelError]) -> None:
    hugetlb, hstate = pool(5)
    with pytest.raises(error):
        call(HugetlbInode(hstate))
    validate_hugetlb(hugetlb)


def test_pages_allocated_before_the_pool_ran_dry_stay() -> None:
    _, hstate = pool(5)
    inode = HugetlbInode(hstate)
    with pytest.raises(NoSpace):
        inode.fallocate(0, 0, 6 * HUGE)
    assert (inode.size, inode.folios.total, counters(hstate)) == (0, 5, (5, 0, 0, 0))


def test_a_frozen_file_keeps_its_layout_and_its_pages_stay_writable() -> None:
    _, hstate = pool(5)
    inode = HugetlbInode(hstate)
    mapping = inode.mmap(0, 2)
    mapping.touch(0, 2)
    inode.frozen = True
    with pytest.raises(NotPermitted):
        inode.ftruncate(HUGE)
    with pytest.raises(NotPermitted):
        inode.fallocate(PUNCH, 0, HUGE)
    inode.ftruncate(2 * HUGE)
    assert mapping.touch(0, 2) == 2


def test_allocation_works_by_bytes_and_rounds_outward_but_holes_inward() -> None:
    _, hstate = pool(5)
    inode = HugetlbInode(hstate)
    inode.fallocate(0, HUGE - 1, HUGE + 2)
    assert (inode.folios.total, inode.size) == (3, 2 * HUGE + 1)
    inode.fallocate(PUNCH, 1, 2 * HUGE)
    assert [(index, n) for index, _, n in inode.folios.runs()] == [(0, 1), (2, 1)]


def test_a_hole_keeps_promises_without_a_page() -> None:
    _, hstate = pool(5)
    inode = HugetlbInode(hstate)
    inode.mmap(0, 4).touch(1, 1)
    inode.fallocate(PUNCH, 0, 4 * HUGE)
    assert counters(hstate) == (5, 5, 3, 0)
    inode.ftruncate(0)
    assert counters(hstate) == (5, 5, 0, 0)


def test_a_mapping_keeps_its_file_alive() -> None:
    _, hstate = pool(5)
    inode = HugetlbInode(hstate)
    mapping = inode.mmap(0, 3)
    mapping.touch(0, 1)
    inode.put()
    assert counters(hstate) == (5, 4, 2, 0)
    mapping.munmap()
    assert counters(hstate) == (5, 5, 0, 0)
    with pytest.raises(ModelBug):
        inode.put()


def test_touching_beyond_a_truncated_file_is_a_sigbus() -> None:
    _, hstate = pool(5)
    inode = HugetlbInode(hstate)
    mapping = inode.mmap(0, 4)
    inode.ftruncate(2 * HUGE)
    assert mapping.touch(0, 4) == 2
    assert mapping.touch(3, 1) == 0


def test_pages_from_a_handover_are_in_use_at_once() -> None:
    _, hstate = pool(5)
    pfn = hstate.allocator.alloc_pages(9)
    inode = HugetlbInode(hstate)
    hstate.add_preserved([(pfn, 1)])
    inode.add_folios(7, [(pfn, 1)])
    assert list(inode.folios.runs()) == [(7, pfn, 1)]
    assert counters(hstate) == (6, 5, 0, 0)
    inode.put()
    assert counters(hstate) == (6, 6, 0, 0)


def test_a_large_file_is_one_run() -> None:
    pages = PageAllocator([(1 << 20, 1 << 25, 0)])
    pages.free_range(1 << 20, 1 << 25)
    hugetlb = HugetlbState("hugepages=60000")
    hugetlb.init(pages)
    inode = HugetlbInode(hugetlb.hstate(9))
    inode.mmap(0, 32768).touch(0, 32768)
    assert list(inode.folios.runs()) == [(0, 1 << 20, 32768)]


PAGES = 12


class FilesMachine(RuleBasedStateMachine):
    """Two files and private mappings against single pages, each treated on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hugetlb, self.hstate = pool(10)
        self.hstate.nr_overcommit_huge_pages = 3
        self.files = [HugetlbInode(self.hstate), HugetlbInode(self.hstate)]
        self.promised: list[set[int]] = [set(), set()]
        self.present: list[set[int]] = [set(), set()]
        self.private: list[tuple[HugetlbPrivateMapping, bool, set[int]]] = []
        self.total = self.free = 10
        self.resv = self.surplus = 0

    def acct(self, n: int) -> bool:
        needed = max(0, self.resv + n - self.free)
        if needed > 3 - self.surplus:
            return False
        self.total, self.free, self.surplus = (
            self.total + needed,
            self.free + needed,
            self.surplus + needed,
        )
        self.resv += n
        return True

    def uncommit(self, n: int) -> None:
        self.resv -= n
        gone = min(n, self.surplus, self.free)
        self.total, self.free, self.surplus = (
            self.total - gone,
            self.free - gone,
            self.surplus - gone,
        )

    def take_page(self, *, promised: bool) -> bool:
        if promised:
            self.free, self.resv = self.free - 1, self.resv - 1
        elif self.free > self.resv:
            self.free -= 1
        elif self.surplus < 3:
            self.total, self.surplus = self.total + 1, self.surplus + 1
        else:
            return False
        return True

    def drop_page(self) -> None:
        if self.surplus:
            self.total, self.surplus = self.total - 1, self.surplus - 1
        else:
            self.free += 1

    def fault(self, at: int, index: int) -> bool:
        if index not in self.present[at]:
            if not self.take_page(promised=index in self.promised[at]):
                return False
            self.present[at].add(index)
            self.promised[at].add(index)
        return True

    @rule(at=st.integers(0, 1), start=st.integers(0, PAGES - 1), nr=st.integers(1, PAGES))
    def map_and_unmap(self, at: int, start: int, nr: int) -> None:
        new = set(range(start, start + nr)) - self.promised[at]
        if self.acct(len(new)):
            self.files[at].mmap(start, nr).munmap()
            self.promised[at] |= new
        else:
            with pytest.raises(NoMemory):
                self.files[at].mmap(start, nr)

    @rule(at=st.integers(0, 1), start=st.integers(0, PAGES - 1), nr=st.integers(1, PAGES))
    def touch(self, at: int, start: int, nr: int) -> None:
        mapping = self.files[at].mmap(start, nr, noreserve=True)
        done = 0
        while done < nr and self.fault(at, start + done):
            done += 1
        assert mapping.touch(0, nr) == done
        mapping.munmap()

    @rule(at=st.integers(0, 1), start=st.integers(0, PAGES - 1), nr=st.integers(1, PAGES))
    def punch(self, at: int, start: int, nr: int) -> None:
        self.files[at].fallocate(PUNCH, start * HUGE, nr * HUGE)
        for index in self.present[at] & set(range(start, start + nr)):
            self.drop_page()
            self.present[at].remove(index)
            self.promised[at].remove(index)

    @rule(at=st.integers(0, 1), size=st.integers(0, PAGES))
    def truncate(self, at: int, size: int) -> None:
        self.files[at].ftruncate(size * HUGE)
        dropped = {index for index in self.present[at] if index >= size}
        gone = {index for index in self.promised[at] if index >= size}
        for _ in dropped:
            self.drop_page()
        self.present[at] -= dropped
        self.promised[at] -= gone
        self.uncommit(len(gone) - len(dropped))

    @rule(nr=st.integers(1, 5), noreserve=st.booleans())
    def private_map(self, nr: int, noreserve: bool) -> None:
        if noreserve or self.acct(nr):
            mapping = HugetlbPrivateMapping(self.hstate, nr, noreserve=noreserve)
            self.private.append((mapping, noreserve, set()))
        else:
            with pytest.raises(NoMemory):
                HugetlbPrivateMapping(self.hstate, nr)

    @precondition(lambda self: self.private)
    @rule(data=st.data())
    def private_touch(self, data: st.DataObject) -> None:
        mapping, noreserve, pages = data.draw(st.sampled_from(self.private))
        start = data.draw(st.integers(0, mapping.nr - 1))
        done = 0
        for index in range(start, mapping.nr):
            if index not in pages:
                if not self.take_page(promised=not noreserve):
                    break
                pages.add(index)
            done += 1
        assert mapping.touch(start, mapping.nr - start) == done

    @precondition(lambda self: self.private)
    @rule(data=st.data())
    def private_unmap(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.private) - 1))
        mapping, noreserve, pages = self.private.pop(at)
        mapping.munmap()
        for _ in pages:
            self.drop_page()
        if not noreserve:
            self.uncommit(mapping.nr - len(pages))

    @invariant()
    def the_books_agree(self) -> None:
        validate_hugetlb(self.hugetlb)
        assert counters(self.hstate) == (self.total, self.free, self.resv, self.surplus)
        for inode, promised, present in zip(self.files, self.promised, self.present, strict=True):
            validate_hugetlb_inode(inode)
            assert [p for low, high in inode.resv for p in range(low, high)] == sorted(promised)
            held = {index + k for index, _, n in inode.folios.runs() for k in range(n)}
            assert held == present


FilesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestFiles = FilesMachine.TestCase
