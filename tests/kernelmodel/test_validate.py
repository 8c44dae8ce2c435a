"""The checks find what they are for: each broken rule is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernelmodel.errors import ModelBug
from kernelmodel.kernel import Kernel
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.syscalls import Task
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot


class Host:
    """A kernel with a plain and a huge file preserved in a session."""

    def __init__(self) -> None:
        cmdline = f"{CMDLINE} hugepagesz=2M hugepages=8"
        self.agent = Agent(power_on(cmdline, "7.3.4+hugetlb"))
        self.kernel: Kernel = self.agent.kernel
        self.session = self.agent.session("s")
        self.plain = self.agent.memfd(3 * 4096, b"text")
        self.huge = self.agent.task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
        self.agent.task.ftruncate(self.huge, 4 << 20)
        for token, fd in enumerate((self.plain, self.huge)):
            self.agent.task.preserve_fd(self.session, fd, token)

    def check(self) -> None:
        validate_kernel(self.kernel, [self.agent.task])

    @property
    def shmem(self) -> ShmemInode:
        inode = self.agent.task.files.fget(self.plain).inode
        assert isinstance(inode, ShmemInode)
        return inode

    @property
    def hugetlb(self) -> HugetlbMemfdInode:
        inode = self.agent.task.files.fget(self.huge).inode
        assert isinstance(inode, HugetlbMemfdInode)
        return inode


def lose_a_page(host: Host) -> None:
    host.kernel.page_alloc.alloc_pages(0)


def free_a_page_in_use(host: Host) -> None:
    ((_, pfn, _, _),) = host.shmem.extents(0, 1)
    host.kernel.page_alloc.free_pages(pfn, 0)


def cache_a_page_twice(host: Host) -> None:
    ((_, pfn, _, flags),) = host.shmem.extents(0, 1)
    host.shmem.add_to_page_cache(9, pfn, 1, flags)


def preserve_what_does_not_exist(host: Host) -> None:
    host.kernel.kho.preserve_folios(1 << 30, 0)


def preserve_what_is_free(host: Host) -> None:
    (low, _), *_ = host.kernel.page_alloc.free_ranges()
    host.kernel.kho.preserve_folios(low, 0)


def miscount_keys(host: Host) -> None:
    host.kernel.kho.preserved_keys += 1


def miscount_an_flb(host: Host) -> None:
    host.kernel.luo.flbs.registered[0].outgoing_count += 1


def forget_a_preserved_object(host: Host) -> None:
    host.kernel.luo.preserved_ids.pop()


def thaw_a_file(host: Host) -> None:
    host.hugetlb.hugetlb.frozen = False


def leave_a_block(host: Host) -> None:
    host.kernel.luo.sessions.outgoing[0].file_set.block_set.grow(200)


def leave_two_session_blocks(host: Host) -> None:
    host.kernel.luo.sessions.outgoing_blocks.grow(150)


def count_a_reference_too_many(host: Host) -> None:
    host.agent.task.files.fget(host.plain).get()


def promise_a_page_to_nobody(host: Host) -> None:
    host.kernel.hugetlb.hstate(9).reserve(1)


def use_a_huge_page_for_nobody(host: Host) -> None:
    host.kernel.hugetlb.hstate(9).alloc_folios(1, 0)


def count_managed_pages_twice(host: Host) -> None:
    host.kernel.page_alloc.adjust_managed(5000, 1)


@pytest.mark.parametrize(
    ("breakage", "why"),
    [
        (lose_a_page, "accounted for"),
        (free_a_page_in_use, "are in both"),
        (cache_a_page_twice, "there twice"),
        (preserve_what_does_not_exist, "does not exist"),
        (preserve_what_is_free, "are in both"),
        (miscount_keys, "keys counted"),
        (miscount_an_flb, "FLB hugetlb-v1 counts"),
        (forget_a_preserved_object, "preserved objects"),
        (thaw_a_file, "not frozen"),
        (leave_a_block, "2 files in 4 blocks"),
        (leave_two_session_blocks, "1 sessions in 3 blocks"),
        (count_a_reference_too_many, "references"),
        (promise_a_page_to_nobody, "promised to files"),
        (use_a_huge_page_for_nobody, "files hold"),
        (count_managed_pages_twice, "accounted for"),
    ],
)
def test_a_broken_rule_is_found(breakage: Callable[[Host], None], why: str) -> None:
    host = Host()
    host.check()
    breakage(host)
    with pytest.raises(ModelBug, match=why):
        host.check()


def test_a_page_that_left_every_list_is_found_though_the_counts_agree() -> None:
    host = Host()
    pfn = host.kernel.page_alloc.alloc_pages(0)
    (zone,) = (z for z in host.kernel.page_alloc.zones() if z.start_pfn <= pfn < z.end_pfn)
    zone.managed -= 1
    with pytest.raises(ModelBug, match=f"{pfn:#x}.*nobody's"):
        host.check()


def test_closing_everything_leaves_only_what_boot_took() -> None:
    """All that a session ever took is given back, but for nodes of the radix tree."""
    fresh = power_on(f"{CMDLINE} hugepagesz=2M hugepages=8", "7.3.4+hugetlb")
    host = Host()
    host.agent.task.exit()
    validate_kernel(host.kernel, [])
    assert host.kernel.kho.preserved_keys == fresh.kho.preserved_keys
    nodes = len(host.kernel.kho.outgoing_nodes()) - len(fresh.kho.outgoing_nodes())
    free = fresh.page_alloc.nr_free_pages() - host.kernel.page_alloc.nr_free_pages()
    assert free == nodes
    assert host.kernel.hugetlb.hstate(9).free_huge_pages == 8


def test_tasks_that_are_not_named_make_their_files_nobodys() -> None:
    host = Host()
    other = Task(host.kernel, "other")
    other.pwrite(other.memfd_create(), b"x", 0)
    with pytest.raises(ModelBug):
        host.check()
    validate_kernel(host.kernel, [host.agent.task, other])


def test_a_rebooted_kernel_is_consistent_before_and_after_the_first_open() -> None:
    host = Host()
    fresh = reboot(host.kernel)
    validate_kernel(fresh, [])
    agent = Agent(fresh)
    validate_kernel(fresh, [agent.task])
    agent.task.close(agent.retrieve("s"))
    validate_kernel(fresh, [agent.task])
