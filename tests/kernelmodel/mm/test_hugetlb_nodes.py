"""Two nodes: where pages come from under a policy, and what the files of each node say.

Numbers are those that a running 7.3.4 with two nodes of 512 MiB gave.
"""

from __future__ import annotations

import pytest

from kernelmodel.errors import AccessDenied, InvalidArgument, NoEntry, NoMemory
from kernelmodel.mm import hugetlb_sysfs
from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.hugetlbfs import HugetlbInode, HugetlbPrivateMapping
from kernelmodel.mm.mempolicy import MemPolicy, Mode, Placement
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.ranges import RangeSet

NODE_PAGES = 1 << 17
SYSFS = "/sys/kernel/mm/hugepages/hugepages-2048kB"
NODE = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB"


def boot(cmdline: str) -> HugetlbState:
    pages = PageAllocator([(nid * NODE_PAGES, NODE_PAGES, nid) for nid in (0, 1)])
    for nid in (0, 1):
        pages.free_range(nid * NODE_PAGES, NODE_PAGES)
    state = HugetlbState(cmdline, (0, 1))
    state.init(pages)
    return state


def by_node(state: HugetlbState) -> tuple[int, int]:
    validate_hugetlb(state)
    counts = [int(hugetlb_sysfs.read(state, f"{NODE.format(nid)}/nr_hugepages")) for nid in (0, 1)]
    return counts[0], counts[1]


def counters(state: HugetlbState) -> tuple[int, int, int, int]:
    """As HugePages_Total, Free, Rsvd, Surp of meminfo."""
    lines = state.meminfo().splitlines()[:4]
    total, free, rsvd, surplus = (int(line.split()[1]) for line in lines)
    return total, free, rsvd, surplus


def policy(mode: Mode, *nodes: int) -> Placement:
    return Placement(0, MemPolicy(mode, nodes))


BIND_1 = policy(Mode.BIND, 1)


def nodes_of(state: HugetlbState, mapping: HugetlbPrivateMapping) -> list[int]:
    pages = state.hstate(9).allocator
    return [
        pages.pfn_to_nid(pfn + (n << 9))
        for _, pfn, count in mapping.folios.runs()
        for n in range(count)
    ]


def touched(state: HugetlbState, place: Placement, n: int) -> list[int]:
    """The nodes of `n` pages of a mapping made, touched and given back under a policy."""
    mapping = HugetlbPrivateMapping(state.hstate(9), n, place)
    assert mapping.touch(0, n, place) == n
    nodes = nodes_of(state, mapping)
    mapping.munmap()
    return nodes


def test_writes_to_each_file_change_the_nodes_that_they_are_about() -> None:
    state = boot("hugepages=8")
    assert by_node(state) == (4, 4)
    for path, place, n, after in (
        (f"{SYSFS}/nr_hugepages", None, 13, (7, 6)),
        (f"{NODE.format(1)}/nr_hugepages", None, 10, (7, 10)),
        (f"{SYSFS}/nr_hugepages", None, 9, (3, 6)),
        (f"{SYSFS}/nr_hugepages_mempolicy", BIND_1, 14, (3, 11)),
        (f"{SYSFS}/nr_hugepages_mempolicy", BIND_1, 6, (3, 3)),
        (f"{SYSFS}/nr_hugepages_mempolicy", policy(Mode.PREFERRED, 1), 8, (3, 5)),
        (f"{SYSFS}/nr_hugepages_mempolicy", policy(Mode.LOCAL), 10, (5, 5)),
        (f"{SYSFS}/nr_hugepages_mempolicy", policy(Mode.INTERLEAVE, 1), 13, (5, 8)),
        ("/proc/sys/vm/nr_hugepages", None, 13, (5, 8)),
    ):
        hugetlb_sysfs.write(state, path, f"{n}\n", place)
        assert by_node(state) == after
        assert hugetlb_sysfs.read(state, f"{SYSFS}/nr_hugepages_mempolicy") == f"{sum(after)}\n"


@pytest.mark.parametrize(
    ("place", "nodes"),
    [
        (Placement(), [0, 0, 0, 0, 1, 1]),
        (Placement(1), [1, 1, 1, 1, 0, 0]),
        (policy(Mode.INTERLEAVE, 0, 1), [0, 1, 0, 1, 0, 1]),
        (policy(Mode.PREFERRED, 1), [1, 1, 1, 1, 0, 0]),
        (policy(Mode.PREFERRED_MANY, 1), [1, 1, 1, 1, 0, 0]),
        (policy(Mode.LOCAL), [0, 0, 0, 0, 1, 1]),
    ],
)
def test_a_policy_says_in_which_order_nodes_serve(place: Placement, nodes: list[int]) -> None:
    state = boot("hugepages=8")
    assert touched(state, place, 6) == nodes
    assert counters(state) == (8, 8, 0, 0)


def test_interleaving_goes_by_page_index() -> None:
    state = boot("hugepages=8")
    place = policy(Mode.INTERLEAVE, 0, 1)
    mapping = HugetlbPrivateMapping(state.hstate(9), 6, place)
    assert mapping.touch(3, 3, place) == 3
    assert nodes_of(state, mapping) == [1, 0, 1]


def test_a_bound_task_is_promised_what_its_nodes_have() -> None:
    state = boot("hugepages=8")
    state.hstate(9).nr_overcommit_huge_pages = 3
    with pytest.raises(NoMemory):  # 8 pages are free, 4 of them on node 1
        HugetlbPrivateMapping(state.hstate(9), 6, BIND_1)
    assert counters(state) == (8, 8, 0, 0)
    one = HugetlbPrivateMapping(state.hstate(9), 3, BIND_1)
    assert one.touch(0, 3, BIND_1) == 3
    bind_0 = policy(Mode.BIND, 0)
    two = HugetlbPrivateMapping(state.hstate(9), 3, bind_0)
    assert two.touch(0, 3, bind_0) == 3
    assert nodes_of(state, one) + nodes_of(state, two) == [1, 1, 1, 0, 0, 0]
    with pytest.raises(NoMemory):
        HugetlbPrivateMapping(state.hstate(9), 2, bind_0)
    assert counters(state) == (8, 2, 0, 0)


def test_a_promise_is_no_help_on_nodes_that_are_empty() -> None:
    """mbind after mmap: the pool keeps its promise, on the other node."""
    state = boot("hugepages=8")
    mapping = HugetlbPrivateMapping(state.hstate(9), 6)
    assert mapping.touch(0, 6, BIND_1) == 4  # SIGBUS
    assert counters(state) == (8, 4, 2, 0)
    state.hstate(9).nr_overcommit_huge_pages = 3
    assert mapping.touch(4, 2, BIND_1) == 2
    assert counters(state) == (10, 4, 0, 2)
    mapping.munmap()
    assert counters(state) == (8, 8, 0, 0)


def test_surplus_pages_for_promises_come_from_the_tasks_own_node() -> None:
    state = boot("")
    state.hstate(9).nr_overcommit_huge_pages = 4
    for place in (Placement(), policy(Mode.INTERLEAVE, 1)):
        mapping = HugetlbPrivateMapping(state.hstate(9), 4, place)
        assert by_node(state) == (4, 0)
        mapping.munmap()
    place = policy(Mode.INTERLEAVE, 1)
    mapping = HugetlbPrivateMapping(state.hstate(9), 4, place, noreserve=True)
    assert mapping.touch(0, 4, place) == 4
    assert nodes_of(state, mapping) == [1, 1, 1, 1]


def test_a_nodes_own_file_leaves_the_persistent_pages_of_others_alone() -> None:
    state = boot("hugepages=8")
    mapping = HugetlbPrivateMapping(state.hstate(9), 4)
    assert mapping.touch(0, 4) == 4  # all of node 0
    hugetlb_sysfs.write(state, f"{NODE.format(0)}/nr_hugepages", "1")
    assert (by_node(state), counters(state)) == ((4, 4), (8, 4, 0, 3))
    hugetlb_sysfs.write(state, f"{NODE.format(1)}/nr_hugepages", "1")
    assert (by_node(state), counters(state)) == ((4, 1), (5, 1, 0, 3))
    hugetlb_sysfs.write(state, f"{NODE.format(0)}/nr_hugepages", "3")
    assert (by_node(state), counters(state)) == ((4, 1), (5, 1, 0, 1))


def test_surplus_can_stay_on_a_node_whose_pages_are_gone() -> None:
    state = boot("")
    state.hstate(9).nr_overcommit_huge_pages = 3
    mapping = HugetlbPrivateMapping(state.hstate(9), 3)  # on node 0, promised
    hugetlb_sysfs.write(state, f"{SYSFS}/nr_hugepages_mempolicy", "15", BIND_1)
    assert (by_node(state), counters(state)) == ((3, 15), (18, 18, 3, 3))
    hugetlb_sysfs.write(state, f"{SYSFS}/nr_hugepages", "4")
    assert (by_node(state), counters(state)) == ((0, 7), (7, 7, 3, 3))
    mapping.munmap()
    validate_hugetlb(state)


def test_a_cpuset_is_heeded_by_promises_and_pages() -> None:
    state = boot("hugepages=8")
    inside = Placement(0, mems_allowed=frozenset({1}))
    with pytest.raises(NoMemory):
        HugetlbPrivateMapping(state.hstate(9), 5, inside)
    assert touched(state, inside, 4) == [1, 1, 1, 1]


def test_a_file_is_filled_by_policy_without_losing_a_page() -> None:
    state = boot("hugepages=64")
    inode = HugetlbInode(state.hstate(9))
    assert inode.populate(0, 40, policy(Mode.INTERLEAVE, 0, 1)) == 40
    frames = RangeSet()
    for _, pfn, count in inode.folios.runs():
        frames.add(pfn, pfn + (count << 9))
    assert frames.total == 40 << 9
    assert [node.nr_free for node in state.hstate(9).nodes.values()] == [12, 12]
    inode.put()
    assert counters(state) == (64, 64, 0, 0)


# The files as text.


def test_there_are_the_files_that_the_kernel_has() -> None:
    found = hugetlb_sysfs.files(boot("hugepages=3"))
    below = {path.removeprefix(SYSFS + "/") for path in found if path.startswith(SYSFS)}
    assert below == {
        "free_hugepages",
        "nr_hugepages",
        "nr_hugepages_mempolicy",
        "nr_overcommit_hugepages",
        "resv_hugepages",
        "surplus_hugepages",
    }
    node = NODE.format(1).replace("2048", "1048576")
    below = {path.removeprefix(node + "/") for path in found if path.startswith(node)}
    assert below == {
        "demote",
        "demote_size",
        "free_hugepages",
        "nr_hugepages",
        "surplus_hugepages",
    }
    assert "/proc/sys/vm/nr_overcommit_hugepages" in found


def test_text_adds_up() -> None:
    state = boot("hugepages=8")
    HugetlbPrivateMapping(state.hstate(9), 5).touch(0, 3)
    assert state.meminfo() == (
        "HugePages_Total:       8\n"
        "HugePages_Free:        5\n"
        "HugePages_Rsvd:        2\n"
        "HugePages_Surp:        0\n"
        "Hugepagesize:       2048 kB\n"
        "Hugetlb:           16384 kB\n"
    )
    assert hugetlb_sysfs.node_meminfo(state, 1) == (
        "Node 1 HugePages_Total:     4\n"
        "Node 1 HugePages_Free:      4\n"
        "Node 1 HugePages_Surp:      0\n"
    )
    for name in ("nr_hugepages", "free_hugepages", "surplus_hugepages"):
        nodes = [int(hugetlb_sysfs.read(state, f"{NODE.format(n)}/{name}")) for n in (0, 1)]
        assert sum(nodes) == int(hugetlb_sysfs.read(state, f"{SYSFS}/{name}"))


@pytest.mark.parametrize(
    ("path", "text", "refused"),
    [
        (f"{SYSFS}/nr_hugepages", "abc", InvalidArgument),
        (f"{SYSFS}/nr_hugepages", "5x", InvalidArgument),
        (f"{SYSFS}/nr_hugepages", "-1", InvalidArgument),
        (f"{SYSFS}/nr_hugepages", "0x5", InvalidArgument),
        (f"{SYSFS}/free_hugepages", "3", AccessDenied),
        (f"{SYSFS}/demote", "1", NoEntry),
        (f"{NODE.format(2)}/nr_hugepages", "1", NoEntry),
        (SYSFS.replace("2048", "4") + "/nr_hugepages", "1", NoEntry),
        ("/proc/sys/vm/swappiness", "1", NoEntry),
    ],
)
def test_what_cannot_be_written_is_refused(path: str, text: str, refused: type[Exception]) -> None:
    state = boot("hugepages=8")
    with pytest.raises(refused):
        hugetlb_sysfs.write(state, path, text)
    assert counters(state) == (8, 8, 0, 0)


def test_a_number_below_sys_is_decimal() -> None:
    state = boot("")
    hugetlb_sysfs.write(state, f"{SYSFS}/nr_hugepages", "010")
    assert hugetlb_sysfs.read(state, f"{SYSFS}/nr_hugepages") == "10\n"
    with pytest.raises(AccessDenied):
        hugetlb_sysfs.read(state, f"{SYSFS.replace('2048', '1048576')}/demote")
