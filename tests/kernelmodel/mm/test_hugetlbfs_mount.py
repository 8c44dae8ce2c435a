"""Mounts of hugetlbfs: limits, assurances, inodes. Numbers are those that a running 7.3.4 gave."""

from __future__ import annotations

import pytest

from kernelmodel.errors import Busy, Exists, InvalidArgument, NoEntry, NoMemory, NoSpace
from kernelmodel.fs import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, File
from kernelmodel.kernel import Kernel
from kernelmodel.memory import MIB
from kernelmodel.mm.hugetlb import validate_hugetlb
from kernelmodel.mm.hugetlbfs import HugetlbInode
from kernelmodel.mm.hugetlbfs_mount import HugetlbfsMount
from kernelmodel.mm.memfd import HugetlbMemfdInode
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on

HUGE = 2 * MIB
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def start(pages: int = 16) -> Kernel:
    return power_on(f"{CMDLINE} hugepages={pages}")


def counters(kernel: Kernel) -> tuple[int, int, int, int]:
    """As HugePages_Total, Free, Rsvd, Surp."""
    hstate = kernel.hugetlb.hstate(9)
    validate_hugetlb(kernel.hugetlb)
    return (
        hstate.nr_huge_pages,
        hstate.free_huge_pages,
        hstate.resv_huge_pages,
        hstate.surplus_huge_pages,
    )


def books(file: File) -> HugetlbInode:
    assert isinstance(file.inode, HugetlbMemfdInode)
    return file.inode.hugetlb


def free_blocks(mount: HugetlbfsMount) -> int:
    return mount.statfs().f_bfree


def test_a_limited_mount_counts_promises_and_pages() -> None:
    kernel = start()
    mount = HugetlbfsMount(kernel, "size=8M,pagesize=2M")
    x, y = mount.create("x"), mount.create("y")
    with pytest.raises(NoMemory):
        books(x).mmap(0, 5)
    mapping = books(x).mmap(0, 4)
    assert (free_blocks(mount), counters(kernel)) == (0, (16, 16, 4, 0))
    assert mapping.touch(0, 4) == 4
    with pytest.raises(NoMemory):
        books(y).mmap(0, 1)
    other = books(y).mmap(0, 1, noreserve=True)
    assert other.touch(0, 1) == 0  # SIGBUS
    with pytest.raises(NoSpace):
        books(y).fallocate(0, 0, HUGE)
    mount.unlink("x")
    x.put()
    assert free_blocks(mount) == 0  # the mapping keeps it
    mapping.munmap()
    assert (free_blocks(mount), counters(kernel)) == (4, (16, 16, 0, 0))
    books(y).fallocate(0, 0, 3 * HUGE)
    with pytest.raises(NoSpace):
        books(y).fallocate(0, 0, 5 * HUGE)
    assert free_blocks(mount) == 0  # what there was stays
    books(y).fallocate(PUNCH, 0, 2 * HUGE)
    assert (free_blocks(mount), counters(kernel)) == (2, (16, 14, 0, 0))


def test_a_mount_keeps_what_it_was_assured_of() -> None:
    kernel = start()
    mount = HugetlbfsMount(kernel, "size=20M,min_size=8M")
    assert (free_blocks(mount), counters(kernel)) == (10, (16, 16, 4, 0))
    file = mount.create("x")
    inode = books(file)
    inode.ftruncate(8 * HUGE)
    one = inode.mmap(0, 3)
    assert counters(kernel) == (16, 16, 4, 0)  # out of its own
    assert one.touch(0, 3) == 3
    assert (free_blocks(mount), counters(kernel)) == (7, (16, 13, 1, 0))
    two = inode.mmap(0, 6)
    assert counters(kernel) == (16, 13, 3, 0)
    assert two.touch(0, 6) == 6
    assert (free_blocks(mount), counters(kernel)) == (4, (16, 10, 0, 0))
    inode.ftruncate(2 * HUGE)
    assert (free_blocks(mount), counters(kernel)) == (8, (16, 14, 2, 0))
    inode.ftruncate(0)
    assert (free_blocks(mount), counters(kernel)) == (10, (16, 16, 4, 0))
    three = inode.mmap(0, 10)
    assert (free_blocks(mount), counters(kernel)) == (0, (16, 16, 10, 0))
    three.munmap()
    inode.ftruncate(0)
    assert counters(kernel) == (16, 16, 4, 0)
    four = inode.mmap(0, 5, noreserve=True)
    assert four.touch(0, 5) == 5
    assert (free_blocks(mount), counters(kernel)) == (5, (16, 11, 0, 0))
    inode.fallocate(PUNCH, 0, HUGE)
    assert counters(kernel) == (16, 12, 0, 0)
    inode.fallocate(PUNCH, HUGE, HUGE)
    assert (free_blocks(mount), counters(kernel)) == (7, (16, 13, 1, 0))
    for mapping in (one, two, four):
        mapping.munmap()
    with pytest.raises(Busy):
        mount.umount()
    file.put()
    assert counters(kernel) == (16, 13, 1, 0)  # it has a name
    mount.umount()
    assert counters(kernel) == (16, 16, 0, 0)


def test_assurances_out_of_surplus_pages_are_more_than_the_pool_has_once_those_go() -> None:
    kernel = start(2)
    hstate = kernel.hugetlb.hstate(9)
    hstate.nr_overcommit_huge_pages = 6
    mount = HugetlbfsMount(kernel, "min_size=10M")
    assert counters(kernel) == (5, 5, 5, 3)
    file = mount.create("x")
    mapping = books(file).mmap(0, 5)
    assert mapping.touch(0, 5) == 5
    assert counters(kernel) == (5, 0, 0, 3)
    books(file).ftruncate(0)
    assert counters(kernel) == (2, 2, 5, 0)
    mapping.munmap()
    anybody = HugetlbInode(hstate)
    assert anybody.populate(0, 3) == 3  # available: 2 - 5 has no sign, so 2, and one more surplus
    anybody.put()
    file.put()
    mount.umount()
    assert counters(kernel) == (2, 2, 0, 0)


def test_a_promise_that_the_pool_refuses_leaves_the_mount_as_it_was() -> None:
    kernel = start(2)
    with pytest.raises(NoMemory):
        HugetlbfsMount(kernel, "min_size=6M")
    mount = HugetlbfsMount(kernel, "size=20M,min_size=2M")
    file = mount.create("x")
    with pytest.raises(NoMemory):
        books(file).mmap(0, 4)
    assert (free_blocks(mount), counters(kernel)) == (10, (2, 2, 1, 0))
    books(file).mmap(0, 2)
    assert (free_blocks(mount), counters(kernel)) == (8, (2, 2, 2, 0))


def test_a_fault_that_the_pool_refuses_leaves_a_page_counted() -> None:
    """So does 7.3.4; a mount with both limits then keeps its promises for ever."""
    kernel = start(4)
    hoard = HugetlbInode(kernel.hugetlb.hstate(9))
    mount = HugetlbfsMount(kernel, "size=8M,min_size=2M")
    file = mount.create("x")
    mapping = books(file).mmap(0, 4, noreserve=True)
    assert mapping.touch(0, 1) == 1
    assert hoard.populate(0, 3) == 3
    assert mapping.touch(0, 2) == 1  # SIGBUS
    assert (free_blocks(mount), counters(kernel)) == (2, (4, 0, 0, 0))
    hoard.put()
    mapping.munmap()
    file.put()
    mount.unlink("x")
    assert (free_blocks(mount), counters(kernel)) == (3, (4, 4, 0, 0))
    mount.umount()
    assert counters(kernel) == (4, 4, 0, 0)


def test_without_size_a_mount_takes_promises_back_from_any_page() -> None:
    kernel = start()
    mount = HugetlbfsMount(kernel, "min_size=4M")
    file = mount.create("x")
    assert books(file).mmap(0, 6, noreserve=True).touch(0, 6) == 6
    assert counters(kernel) == (16, 10, 0, 0)
    books(file).fallocate(PUNCH, 0, HUGE)
    assert counters(kernel) == (16, 11, 1, 0)  # with size= it would be 0: 5 pages are left
    books(file).fallocate(PUNCH, HUGE, 2 * HUGE)
    assert counters(kernel) == (16, 13, 2, 0)


def test_inodes_run_out_and_come_back() -> None:
    mount = HugetlbfsMount(start(), "nr_inodes=3,size=8M")
    a = mount.create("a")
    mount.create("b")
    assert mount.statfs().f_ffree == 0
    with pytest.raises(NoSpace):
        mount.create("c")
    with pytest.raises(Exists):
        mount.create("a")
    mount.unlink("a")
    with pytest.raises(NoSpace):
        mount.create("c")  # still open
    a.put()
    mount.create("c")
    with pytest.raises(NoEntry):
        mount.open("a")
    with pytest.raises(NoSpace):
        HugetlbfsMount(start(), "nr_inodes=1").create("a")


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ("pagesize=3M", InvalidArgument),
        ("pagesize=4K", InvalidArgument),
        ("size=4M,min_size=8M", InvalidArgument),
        ("size=garbage", InvalidArgument),
        ("bogus=1", InvalidArgument),
        ("nr_inodes=many", InvalidArgument),
        ("min_size=200M", NoMemory),
        ("nr_inodes=0", NoMemory),
    ],
)
def test_wrong_options_are_refused(options: str, refused: type[Exception]) -> None:
    kernel = start()
    with pytest.raises(refused):
        HugetlbfsMount(kernel, options)
    assert counters(kernel) == (16, 16, 0, 0)


@pytest.mark.parametrize(
    ("options", "size", "blocks"),
    [
        ("", HUGE, 0),
        ("nr_inodes=3", HUGE, 0),
        ("mode=0777,uid=5", HUGE, 0),
        ("pagesize=1G", 1024 * MIB, 0),
        ("size=50%", HUGE, 8),
        ("min_size=50%", HUGE, -1),
        ("size=3M", HUGE, 1),
        ("size=1M", HUGE, 0),
    ],
)
def test_statfs_shows_limits(options: str, size: int, blocks: int) -> None:
    shown = HugetlbfsMount(start(), options).statfs()
    assert (shown.f_bsize, shown.f_blocks, shown.f_bfree) == (size, blocks, blocks)


def test_a_file_with_a_mount_is_not_preserved() -> None:
    agent = Agent(power_on(f"{CMDLINE} hugepages=4", "7.3.4+hugetlb"))
    mount = HugetlbfsMount(agent.kernel)
    fd = agent.task.files.install_new(lambda: mount.create("x"))
    with pytest.raises(NoEntry):
        agent.task.preserve_fd(agent.session("s"), fd, 1)
