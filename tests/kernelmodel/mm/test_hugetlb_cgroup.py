"""The hugetlb controller: who pays for pages and promises, and what a limit does."""

from __future__ import annotations

import pytest

from kernelmodel.errors import Busy, InvalidArgument, NoEntry, NoMemory, NoSpace
from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.hugetlb_cgroup import HugetlbCgroup, size_name
from kernelmodel.mm.hugetlbfs import HugetlbInode, HugetlbPrivateMapping
from kernelmodel.mm.mempolicy import Placement
from kernelmodel.mm.page_alloc import PageAllocator

HUGE = 2 << 20
PUNCH = 3


def pool(pages: int = 16) -> HugetlbState:
    allocator = PageAllocator([(0, 1 << 17, 0)])
    allocator.free_range(0, 1 << 17)
    state = HugetlbState(f"hugepages={pages}")
    state.init(allocator)
    return state


class Groups:
    """A parent with two children, tasks in each."""

    def __init__(self) -> None:
        self.state = pool()
        self.hstate = self.state.hstate(9)
        self.parent = HugetlbCgroup("vms")
        self.one, self.two = (HugetlbCgroup(name, self.parent) for name in ("one", "two"))
        self.all = (self.parent, self.one, self.two)
        self.in_one, self.in_two = (Placement(cgroup=group) for group in (self.one, self.two))

    def used(self) -> list[int]:
        validate_hugetlb(self.state)
        return [group.usage(9) for group in self.all]

    def promised(self) -> list[int]:
        return [group.usage(9, rsvd=True) for group in self.all]


def test_promises_and_pages_are_charged_and_given_back() -> None:
    groups = Groups()
    inode = HugetlbInode(groups.hstate)
    mapping = inode.mmap(0, 6, groups.in_one)
    assert (groups.promised(), groups.used()) == ([6, 6, 0], [0, 0, 0])
    assert mapping.touch(0, 2, groups.in_one) == 2
    assert mapping.touch(2, 2, groups.in_two) == 2
    assert (groups.promised(), groups.used()) == ([6, 6, 0], [4, 2, 2])
    inode.fallocate(PUNCH, 0, HUGE)
    assert (groups.promised(), groups.used()) == ([5, 5, 0], [3, 1, 2])
    inode.ftruncate(3 * HUGE)
    assert (groups.promised(), groups.used()) == ([2, 2, 0], [2, 1, 1])
    mapping.munmap()
    inode.put()
    assert (groups.promised(), groups.used()) == ([0, 0, 0], [0, 0, 0])


def test_a_page_without_a_promise_is_charged_as_both() -> None:
    groups = Groups()
    inode = HugetlbInode(groups.hstate)
    assert inode.populate(0, 3, groups.in_two) == 3
    assert (groups.promised(), groups.used()) == ([3, 0, 3], [3, 0, 3])
    inode.put()
    assert (groups.promised(), groups.used()) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("limited", ["one", "parent"])
def test_a_limit_of_promises_refuses_the_mapping(limited: str) -> None:
    groups = Groups()
    getattr(groups, limited).write("rsvd.max", 9, str(4 * HUGE + 5))
    with pytest.raises(NoMemory):
        HugetlbInode(groups.hstate).mmap(0, 5, groups.in_one)
    with pytest.raises(NoMemory):
        HugetlbPrivateMapping(groups.hstate, 5, groups.in_one)
    assert (groups.promised(), groups.hstate.resv_huge_pages) == ([0, 0, 0], 0)
    assert [group.read("events", 9) for group in groups.all] == ["max 2\n", "max 2\n", "max 0\n"]
    assert groups.parent.read("events.local", 9) == "max 0\n"  # whoever's limit it was
    assert groups.one.read("events.local", 9) == "max 2\n"
    HugetlbPrivateMapping(groups.hstate, 4, groups.in_one).munmap()
    assert groups.promised() == [0, 0, 0]


def test_a_limit_of_pages_is_a_sigbus_or_enospc_and_promises_stay() -> None:
    groups = Groups()
    groups.one.write("max", 9, str(3 * HUGE))
    inode = HugetlbInode(groups.hstate)
    mapping = inode.mmap(0, 6, groups.in_one)
    assert mapping.touch(0, 6, groups.in_one) == 3  # SIGBUS
    assert (groups.used(), groups.hstate.resv_huge_pages) == ([3, 3, 0], 3)
    with pytest.raises(NoSpace):
        inode.fallocate(0, 0, 6 * HUGE, groups.in_one)
    assert groups.one.read("events", 9) == "max 2\n"
    assert mapping.touch(0, 6, groups.in_two) == 6  # others may
    assert groups.used() == [6, 3, 3]
    mapping.munmap()
    inode.put()
    assert (groups.used(), groups.promised()) == ([0, 0, 0], [0, 0, 0])


def test_a_pool_that_is_empty_leaves_no_charge() -> None:
    groups = Groups()
    hoard = HugetlbInode(groups.hstate)
    hoard.populate(0, 14)
    with pytest.raises(NoMemory):
        HugetlbInode(groups.hstate).mmap(0, 3, groups.in_one)
    assert HugetlbInode(groups.hstate).populate(0, 3, groups.in_one) == 2
    assert (groups.promised(), groups.used()) == ([2, 2, 0], [2, 2, 0])


def test_a_private_mapping_gives_all_its_charges_back() -> None:
    groups = Groups()
    mapping = HugetlbPrivateMapping(groups.hstate, 5, groups.in_one)
    assert mapping.touch(1, 2, groups.in_one) == 2
    assert (groups.promised(), groups.used()) == ([5, 5, 0], [2, 2, 0])
    mapping.munmap()
    assert (groups.promised(), groups.used()) == ([0, 0, 0], [0, 0, 0])


def test_the_files_read_as_bytes() -> None:
    groups = Groups()
    inode = HugetlbInode(groups.hstate)
    inode.mmap(0, 3, groups.in_one).touch(0, 2, groups.in_one)
    assert [size_name(order) for order in (4, 9, 13, 18)] == ["64KB", "2MB", "32MB", "1GB"]
    assert groups.one.read("current", 9) == f"{2 * HUGE}\n"
    assert groups.one.read("rsvd.current", 9) == f"{3 * HUGE}\n"
    assert groups.one.read("max", 9) == "max\n"
    groups.one.write("max", 9, f"{5 * HUGE + 1}\n")
    assert groups.one.read("max", 9) == f"{5 * HUGE}\n"
    groups.one.write("max", 9, "max")
    assert groups.one.read("max", 9) == "max\n"
    assert groups.one.read("current", 18) == "0\n"
    for name in ("min", "rsvd.min", "other.max"):
        with pytest.raises(NoEntry):
            groups.one.read(name, 9)
        with pytest.raises(NoEntry):
            groups.one.write(name, 9, "0")
    for name in ("current", "rsvd.current", "events", "events.local"):
        with pytest.raises(InvalidArgument):
            groups.one.write(name, 9, "0")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("\n", "0"),
        ("", "max"),  # nothing is written
        (" 4M \n", "4194304"),
        ("4m", "4194304"),
        ("010", "0"),
        ("0x400000", "4194304"),
        ("4194303", "2097152"),
        ("4E", "4611686018427387904"),
        ("9223372036850581504", "9223372036850581504"),
        ("9223372036852678656", "max"),
        ("99999999999999999999999", "max"),
        ("16E", "max"),
        (" max\n", "max"),
        *((text, None) for text in ("MAX", "+4M", "08", "4Mb", "4 M", "1.5G", "K", "-1", "4M\n5")),
    ],
)
def test_a_limit_is_read_as_the_kernel_reads_it(text: str, limit: str | None) -> None:
    group = HugetlbCgroup("vms")
    if limit is None:
        with pytest.raises(InvalidArgument):
            group.write("max", 9, text)
        limit = "max"
    else:
        group.write("max", 9, text)
    assert group.read("max", 9) == f"{limit}\n"


def test_a_limit_below_what_is_charged_is_refused_and_the_old_one_stays() -> None:
    groups = Groups()
    inode = HugetlbInode(groups.hstate)
    mapping = inode.mmap(0, 5, groups.in_one)
    mapping.touch(0, 3, groups.in_one)
    groups.one.write("max", 9, "6M")
    for name, text in (("max", "4M"), ("rsvd.max", "8M")):
        with pytest.raises(Busy):
            groups.one.write(name, 9, text)
    assert [groups.one.read(name, 9) for name in ("max", "rsvd.max")] == ["6291456\n", "max\n"]
    assert mapping.touch(0, 5, groups.in_one) == 3


def test_a_page_that_the_pool_refuses_first_is_no_event_of_the_limit() -> None:
    groups = Groups()
    HugetlbInode(groups.hstate).populate(0, 15)
    groups.one.write("max", 9, "4M")
    assert HugetlbInode(groups.hstate).populate(0, 4, groups.in_one) == 1
    assert groups.one.read("events", 9) == "max 0\n"
