"""Pools of huge pages: filled at boot, resized, promised, handed over."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kernelmodel.errors import InvalidArgument, ModelBug, NoMemory
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hstate_pool import Runs
from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.memblock import Memblock, validate_memblock
from kernelmodel.mm.page_alloc import PageAllocator, validate_page_alloc

GIB = 1 << 30


def boot(
    cmdline: str,
    *,
    nodes: tuple[int, ...] = (8, 8),
    preserved: dict[int, int] | None = None,
    avoid: tuple[tuple[int, int], ...] = (),
) -> tuple[HugetlbState, PageAllocator]:
    """A machine whose nodes have so many GiB, the first from 4 GiB on."""
    memblock = Memblock()
    base = 4 * GIB
    for nid, gib in enumerate(nodes):
        memblock.add(base, gib * GIB, nid)
        base += gib * GIB
    hugetlb = HugetlbState(cmdline, range(len(nodes)))
    hugetlb.subtract_preserved(preserved or {})
    hugetlb.bootmem_alloc(memblock, avoid)
    validate_memblock(memblock)
    pages = PageAllocator((r.base >> 12, r.size >> 12, r.nid) for r in memblock.memory)
    for low, high, _ in memblock.free_ranges():
        pages.free_range(low >> 12, (high - low) >> 12)
    hugetlb.init(pages)
    validate_hugetlb(hugetlb)
    validate_page_alloc(pages)
    return hugetlb, pages


def by_node(hstate: Hstate) -> list[int]:
    return [node.nr_huge_pages for node in hstate.nodes.values()]


def counters(hstate: Hstate) -> tuple[int, int, int, int]:
    return (
        hstate.nr_huge_pages,
        hstate.free_huge_pages,
        hstate.resv_huge_pages,
        hstate.surplus_huge_pages,
    )


BOOTS = [
    # command line, GiB of the nodes, pages on each, warnings
    ("hugepagesz=1G hugepages=20", (8, 8), [8, 8], 1),
    ("hugepagesz=1G hugepages=1:20", (8, 8), [0, 8], 1),
    ("hugepagesz=1G hugepages=6", (2, 8), [2, 4], 0),
    ("hugepagesz=1G hugepages=7", (8, 8), [4, 3], 0),
    ("hugepagesz=1G hugepages=9", (2, 2, 8), [2, 2, 5], 0),
    ("hugepagesz=1G hugepages=0:1,1:3", (8, 8), [1, 3], 0),
]


@pytest.mark.parametrize(("cmdline", "nodes", "got", "warnings"), BOOTS)
def test_gigantic_pages_are_spread_over_nodes(
    cmdline: str, nodes: tuple[int, ...], got: list[int], warnings: int
) -> None:
    hugetlb, pages = boot(cmdline, nodes=nodes)
    hstate = hugetlb.hstate(18)
    assert by_node(hstate) == got
    assert hstate.free_huge_pages == hstate.max_huge_pages == sum(got)
    assert len(hugetlb.warnings) == warnings
    assert pages.managed_pages() == sum(nodes) << 18


@pytest.mark.parametrize("size", ["2M", "1G"])
def test_pages_by_node_stay_on_their_node(size: str) -> None:
    hugetlb, _ = boot(f"hugepagesz={size} hugepages=0:2,1:3")
    assert by_node(next(iter(hugetlb.hstates.values()))) == [2, 3]


def test_small_huge_pages_fill_up_from_the_other_node() -> None:
    hugetlb, pages = boot("hugepages=3000", nodes=(2, 8))
    assert by_node(hugetlb.hstate(9)) == [1024, 1976]
    assert pages.nr_free_pages(0) == 0


def test_gigantic_pages_keep_out_of_real_scratch() -> None:
    scratch = ((6 * GIB + 4096, 6 * GIB + 8192),)
    hugetlb, _ = boot("hugepagesz=1G hugepages=0:8", avoid=scratch)
    assert hugetlb.hstate(18).nr_huge_pages == 7
    assert 6 not in hugetlb.hstate(18).nodes[0].owned


def test_an_unknown_size_is_refused() -> None:
    hugetlb, _ = boot("")
    with pytest.raises(InvalidArgument):
        hugetlb.hstate(12)


def test_preserved_pages_are_not_allocated_again_and_come_back() -> None:
    hugetlb, pages = boot("hugepagesz=1G hugepages=6", preserved={18: 2})
    hstate = hugetlb.hstate(18)
    assert counters(hstate) == (4, 4, 0, 0)
    # What a handover brings back was never in this kernel's page allocator.
    pfn = pages.alloc_contig(18, 2, 0)[0][0][0]
    hstate.add_preserved([(pfn, 2)])
    assert counters(hstate) == (6, 4, 0, 0)
    hstate.free_folios([(pfn, 2)])
    assert counters(hstate) == (6, 6, 0, 0)
    validate_hugetlb(hugetlb)


def test_more_preserved_than_asked_for_allocates_nothing_and_warns() -> None:
    hugetlb, _ = boot("hugepagesz=1G hugepages=2", preserved={18: 5})
    assert counters(hugetlb.hstate(18)) == (0, 0, 0, 0)
    assert len(hugetlb.warnings) == 1


def test_counts_by_node_give_way_to_preserved_pages() -> None:
    hugetlb, _ = boot("hugepagesz=1G hugepages=0:4", preserved={18: 2})
    assert by_node(hugetlb.hstate(18)) == [1, 1]
    assert len(hugetlb.warnings) == 1


def test_a_user_gets_its_own_node_first() -> None:
    hugetlb, pages = boot("hugepages=100")
    hstate = hugetlb.hstate(9)
    runs, _ = hstate.alloc_upto(60, 1)
    assert [(pages.pfn_to_nid(pfn), n) for pfn, n in runs] == [(1, 50), (0, 10)]


def test_overcommit_gives_what_the_pool_lacks_as_far_as_it_goes() -> None:
    hugetlb, _ = boot("hugepages=100")
    hstate = hugetlb.hstate(9)
    hstate.nr_overcommit_huge_pages = 5
    runs, missing = hstate.alloc_upto(106, 0)
    assert missing == 1
    assert counters(hstate) == (105, 0, 0, 5)
    hstate.free_folios(runs)
    assert counters(hstate) == (100, 100, 0, 0)


def test_promises_of_which_one_node_has_too_few_folios_stay_made() -> None:
    hugetlb, _ = boot("hugepages=10")
    hstate = hugetlb.hstate(9)
    hstate.reserve(8)
    runs, missing = hstate.alloc_upto(8, [0], reserved=True)
    assert (sum(n for _, n in runs), missing) == (5, 3)
    assert counters(hstate) == (10, 5, 3, 0)


def test_promised_folios_are_for_those_who_hold_the_promise() -> None:
    hugetlb, _ = boot("hugepages=10")
    hstate = hugetlb.hstate(9)
    hstate.reserve(8)
    runs, missing = hstate.alloc_upto(3, 0)
    assert missing == 1
    hstate.free_folios(runs)
    with pytest.raises(NoMemory):
        hstate.reserve(3)
    assert hstate.alloc_upto(8, 0, reserved=True)[1] == 0
    assert counters(hstate) == (10, 2, 0, 0)


def test_more_promises_than_were_made_are_a_bug() -> None:
    hstate = boot("hugepages=10")[0].hstate(9)
    with pytest.raises(ModelBug):
        hstate.unreserve(1)
    with pytest.raises(ModelBug):
        hstate.alloc_upto(1, 0, reserved=True)


def test_a_folio_cannot_be_freed_twice_nor_by_a_stranger() -> None:
    hugetlb, pages = boot("hugepages=10")
    hstate = hugetlb.hstate(9)
    runs, _ = hstate.alloc_upto(2, 0)
    hstate.free_folios(runs)
    with pytest.raises(ModelBug, match="double free"):
        hstate.free_folios(runs)
    with pytest.raises(ModelBug, match="do not belong"):
        hstate.free_folios([(pages.alloc_pages(9), 1)])


def test_a_pool_shrunk_below_its_use_keeps_the_rest_as_surplus() -> None:
    hstate = boot("hugepages=10")[0].hstate(9)
    runs, _ = hstate.alloc_upto(6, 0)
    hstate.set_max_huge_pages(2)
    assert counters(hstate) == (6, 0, 0, 4)
    hstate.free_folios(runs)
    assert counters(hstate) == (2, 2, 0, 0)


def test_one_node_can_be_resized_alone() -> None:
    hstate = boot("hugepages=10")[0].hstate(9)
    hstate.set_max_huge_pages(9, nid=1)
    assert by_node(hstate) == [5, 9]
    hstate.set_max_huge_pages(0, nid=0)
    assert by_node(hstate) == [0, 9]
    assert hstate.sysfs(nid=1) == {
        "nr_hugepages": "9\n",
        "free_hugepages": "9\n",
        "surplus_hugepages": "0\n",
    }


def test_a_pool_grows_as_far_as_there_is_memory() -> None:
    hugetlb, _ = boot("hugepagesz=1G hugepages=0", nodes=(3, 2))
    hstate = hugetlb.hstate(18)
    hstate.set_max_huge_pages(100)
    assert by_node(hstate) == [3, 2]
    hstate.set_max_huge_pages(0)
    assert hstate.allocator.nr_free_pages() == 5 << 18
    validate_hugetlb(hugetlb)


def test_meminfo_speaks_of_the_default_size() -> None:
    hugetlb, _ = boot("hugepagesz=1G hugepages=2 hugepages=9 hugepagesz=2M hugepages=10")
    assert hugetlb.meminfo() == (
        "HugePages_Total:      10\n"
        "HugePages_Free:       10\n"
        "HugePages_Rsvd:        0\n"
        "HugePages_Surp:        0\n"
        "Hugepagesize:       2048 kB\n"
        "Hugetlb:         2117632 kB\n"
    )


class PoolMachine(RuleBasedStateMachine):
    """Against plain counters: total, free, promised, surplus and overcommit."""

    def __init__(self) -> None:
        super().__init__()
        self.hugetlb, self.pages = boot("hugepages=20", nodes=(1,))
        self.hstate = self.hugetlb.hstate(9)
        self.total = self.free = 20
        self.resv = self.surplus = self.over = 0
        self.held: Runs = []

    @rule(n=st.integers(0, 12))
    def overcommit(self, n: int) -> None:
        self.hstate.nr_overcommit_huge_pages = self.over = n

    @rule(n=st.integers(0, 30))
    def resize(self, n: int) -> None:
        self.hstate.set_max_huge_pages(n)
        turned = min(self.surplus, max(0, n - (self.total - self.surplus)))
        self.surplus -= turned
        persistent = self.total - self.surplus
        if n > persistent:
            self.total += n - persistent
            self.free += n - persistent
            return
        free = self.free if self.free <= persistent else max(0, self.free - self.surplus)
        gone = max(0, persistent - max(n, self.resv + persistent - free))
        self.total -= gone
        self.free -= gone
        self.surplus += persistent - gone - n

    @rule(n=st.integers(1, 25))
    def alloc(self, n: int) -> None:
        for _ in range(n):
            if self.free > self.resv:
                self.free -= 1
            elif self.surplus < self.over:
                self.total += 1
                self.surplus += 1
            else:
                n -= 1
        runs, _ = self.hstate.alloc_upto(n, 0)
        assert sum(count for _, count in runs) == n
        self.held += [(pfn + (at << 9), 1) for pfn, count in runs for at in range(count)]

    @rule(n=st.integers(1, 25))
    def release(self, n: int) -> None:
        for _ in range(min(n, len(self.held))):
            self.hstate.free_folios([self.held.pop()])
            if self.surplus:
                self.surplus -= 1
                self.total -= 1
            else:
                self.free += 1

    @rule(n=st.integers(1, 25))
    def reserve(self, n: int) -> None:
        needed = max(0, self.resv + n - self.free)
        if needed > max(0, self.over - self.surplus):
            with pytest.raises(NoMemory):
                self.hstate.reserve(n)
            return
        self.hstate.reserve(n)
        self.resv += n
        self.total += needed
        self.free += needed
        self.surplus += needed

    @rule(n=st.integers(1, 25))
    def unreserve(self, n: int) -> None:
        n = min(n, self.resv)
        self.hstate.unreserve(n)
        self.resv -= n
        gone = min(n, self.surplus, self.free)
        self.total -= gone
        self.free -= gone
        self.surplus -= gone

    @invariant()
    def counters_agree(self) -> None:
        validate_hugetlb(self.hugetlb)
        validate_page_alloc(self.pages)
        assert counters(self.hstate) == (self.total, self.free, self.resv, self.surplus)
        assert self.pages.nr_free_pages() == (1 << 18) - (self.total << 9)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestPool = PoolMachine.TestCase
