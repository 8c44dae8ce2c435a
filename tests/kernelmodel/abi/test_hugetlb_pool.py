"""Lists of folios by number: runs are a cheaper way of holding the same bytes."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.abi.hugetlb_pool import (
    PFN_PRESERVED,
    HugetlbPoolHstateSer,
    HugetlbPoolSer,
    HugetlbSizeSer,
    HugetlbSizesSer,
    PfnList,
    PfnRun,
    parse_pfn_list,
)
from kernelmodel.memory import MIB, PAGE_SIZE, MemoryRange, PhysicalMemory

ORDER = 9
STEP = 1 << ORDER


@st.composite
def lists(draw: st.DrawFn) -> list[PfnRun]:
    """Ascending runs, none of which goes on as the one before it did."""
    runs: list[PfnRun] = []
    at = draw(st.integers(0, 5))
    for _ in range(draw(st.integers(1, 6))):
        nr = draw(st.integers(1, 700))
        flags = draw(st.sampled_from([0, PFN_PRESERVED]))
        if runs and runs[-1].flags == flags:
            at += 1
        runs.append(PfnRun(at << ORDER, nr, STEP, flags))
        at += nr + draw(st.integers(0, 3))
    return [
        run
        for before, run in zip([None, *runs], runs, strict=False)
        if before is None or before.flags != run.flags or before.pfn + before.nr * STEP != run.pfn
    ]


@settings(max_examples=60, deadline=None)
@given(lists())
def test_runs_and_bytes_say_the_same(runs: list[PfnRun]) -> None:
    nr = sum(run.nr for run in runs)
    pages = -(-nr * 8 // PAGE_SIZE)
    memory = PhysicalMemory((MemoryRange(0, MIB, 0),))
    memory.fill(16, pages, PfnList(tuple(runs)))
    raw = memory.read(16 * PAGE_SIZE, nr * 8)
    words = [run.pfn + at * STEP | run.flags << 52 for run in runs for at in range(run.nr)]
    assert list(struct.unpack(f"<{nr}Q", raw)) == words
    assert not any(memory.read(16 * PAGE_SIZE + nr * 8, pages * PAGE_SIZE - nr * 8))
    assert parse_pfn_list(memory, [(16, pages)], nr, STEP) == runs
    memory.write(32 * PAGE_SIZE, raw)
    assert parse_pfn_list(memory, [(32, pages)], nr, STEP) == runs
    half = pages // 2
    parts = [(16, half), (16 + half, pages - half)] if half else [(16, pages)]
    assert parse_pfn_list(memory, parts, nr, STEP) == runs


def test_structures_have_their_sizes_and_come_back() -> None:
    size = HugetlbPoolHstateSer(10, 4, 1 << 20, 3, 1, 0, 18)
    pool = HugetlbPoolSer((size, size), 5 << 12)
    assert (HugetlbPoolHstateSer.SIZE, HugetlbPoolSer.SIZE, len(pool.pack())) == (33, 141, 141)
    assert HugetlbPoolSer.unpack(pool.pack()) == pool
    assert len(HugetlbPoolSer.unpack(bytes(132) + b"\xff" + bytes(8)).hstates) == 4
    assert (size.vmalloc.first, size.vmalloc.total_pages) == (1 << 20, 3)
    sizes = HugetlbSizesSer((HugetlbSizeSer(9, 5, 90, 95), HugetlbSizeSer(18, 0, 2, 2)))
    assert len(sizes.pack()) == 27
    assert HugetlbSizesSer.unpack(sizes.pack().ljust(HugetlbSizesSer.SIZE, b"\0")) == sizes
    assert len(HugetlbSizesSer.unpack(b"\xff" + bytes(52)).sizes) == 4
