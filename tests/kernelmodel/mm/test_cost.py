"""A host's memory management is small, however much memory the host has."""

from __future__ import annotations

import tracemalloc

from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.page_alloc import PageAllocator, validate_page_alloc

GIB = 1 << 30


def boot() -> tuple[Memblock, PageAllocator, HugetlbState]:
    """512 GiB on two nodes, most of it huge pages of both sizes."""
    memblock = Memblock()
    memblock.add(4096, 3 * GIB - 4096, 0)
    memblock.add(4 * GIB, 252 * GIB, 0)
    memblock.add(256 * GIB, 257 * GIB, 1)
    memblock.reserve(0, 64 << 20)
    hugetlb = HugetlbState("hugepagesz=1G hugepages=200 hugepagesz=2M hugepages=100000", (0, 1))
    hugetlb.bootmem_alloc(memblock)
    for nid in (0, 1):
        memblock.alloc_range(4 * GIB, 4096, nid=nid)
    pages = PageAllocator((r.base >> 12, r.size >> 12, r.nid) for r in memblock.memory)
    for base, end, _ in memblock.free_ranges():
        pages.free_range(base >> 12, (end - base) >> 12)
    pages.setup_lowmem_reserve()
    hugetlb.init(pages)
    return memblock, pages, hugetlb


def test_a_booted_host_of_512_gib_takes_less_than_32_kib() -> None:
    boot()  # What is made once for all hosts is made here.
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        booted = boot()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 32 << 10
    _, pages, hugetlb = booted
    assert [hstate.free_huge_pages for hstate in hugetlb.hstates.values()] == [200, 100_000]
    validate_page_alloc(pages)
    validate_hugetlb(hugetlb)
