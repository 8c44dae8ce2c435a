"""The checks find what they are for: each broken rule is named."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from kernelmodel.errors import ModelBug
from kernelmodel.kernel import Kernel
from kernelmodel.luo.handler import LuoFile
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.syscalls import Task
from kernelmodel.validate import page_owners, validate_kernel, validate_nothing_leaked
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
    def luo_files(self) -> list[LuoFile]:
        return self.kernel.luo.sessions.outgoing[0].file_set.files

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


def forget_a_key(host: Host) -> None:
    ((_, pfn, _, _),) = host.shmem.extents(0, 1)
    host.kernel.kho.unpreserve_folios(pfn, 0)


def preserve_for_nobody(host: Host) -> None:
    host.kernel.kho.alloc_preserve(4096)


def map_another_page(host: Host) -> None:
    ((index, pfn, _, flags),) = host.shmem.extents(0, 1)
    host.shmem.pages.put(index, index + 1, (pfn + 1 - index, flags))


def say_another_size(host: Host) -> None:
    (luo_file, _) = host.luo_files
    host.kernel.memory.write_u64(luo_file.data + 8, 1)


def unpin_a_file(host: Host) -> None:
    host.shmem.pinned = False


def leave_a_page_out_of_date(host: Host) -> None:
    low, high, (delta, _) = next(iter(host.shmem.pages))
    host.shmem.pages.put(low, high, (delta, 0))


def unlink_a_block(host: Host) -> None:
    (block,) = host.kernel.luo.sessions.outgoing_blocks.blocks
    host.kernel.memory.write_u64(block, block)


def use_a_token_twice(host: Host) -> None:
    one, two = host.luo_files
    one.token = two.token


def retrieve_an_outgoing_file(host: Host) -> None:
    host.luo_files[0].retrieve_status = 1


def lose_a_session(host: Host) -> None:
    host.kernel.luo.sessions.outgoing.clear()


def forget_a_session_without_files(host: Host) -> None:
    host.agent.session("empty")
    host.kernel.luo.sessions.outgoing.pop()


def retrieve_an_outgoing_session(host: Host) -> None:
    host.kernel.luo.sessions.outgoing[0].retrieved = True


def forget_who_has_the_device(host: Host) -> None:
    host.kernel.luo.in_use = False


def freeze_a_file_for_nobody(host: Host) -> None:
    inode = host.agent.task.files.fget(host.agent.memfd(4096)).inode
    assert isinstance(inode, ShmemInode)
    inode.frozen = True


def hand_over_another_flb_table(host: Host) -> None:
    host.kernel.memory.write_u64(host.kernel.luo.luo_ser_pa + 24, 4096)


def hand_over_sessions_too_early(host: Host) -> None:
    host.kernel.memory.write_u64(host.kernel.luo.luo_ser_pa + 16, 4096)


def link_an_flb_to_nobody(host: Host) -> None:
    host.kernel.luo.flbs.registered[0].users += 1


def leave_data_in_an_flb(host: Host) -> None:
    (flb,) = host.kernel.luo.flbs.registered
    host.agent.task.close(host.session)
    flb.outgoing_data = 4096


def clear_a_bitmap(host: Host) -> None:
    *_, (_, pa) = host.kernel.kho.outgoing_nodes()
    host.kernel.memory.clear_page(pa >> PAGE_SHIFT)


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
    host.kernel.hugetlb.hstate(9).alloc_upto(1, 0)


def count_managed_pages_twice(host: Host) -> None:
    host.kernel.page_alloc.adjust_managed(5000, 1)


@pytest.mark.parametrize(
    ("breakage", "why"),
    [
        (lose_a_page, "accounted for"),
        (free_a_page_in_use, "are in both"),
        (cache_a_page_twice, "are in both: page cache"),
        (preserve_what_does_not_exist, "does not exist"),
        (preserve_what_is_free, "has leaked"),
        (preserve_for_nobody, "has leaked"),
        (forget_a_key, "token 0: folios: .* no key"),
        (map_another_page, "other pages are preserved"),
        (say_another_size, "speaks of another file"),
        (unpin_a_file, "not pinned"),
        (leave_a_page_out_of_date, "not up to date"),
        (unlink_a_block, "linked wrongly"),
        (use_a_token_twice, "used twice"),
        (retrieve_an_outgoing_file, "without a file"),
        (lose_a_session, "2 references, 1 exist"),
        (forget_a_session_without_files, "in no list"),
        (retrieve_an_outgoing_session, "not one descriptor"),
        (forget_who_has_the_device, "open 1 times"),
        (freeze_a_file_for_nobody, "no session holds"),
        (hand_over_another_flb_table, "another table of FLBs"),
        (clear_a_bitmap, "keys are set, the tree in memory has"),
        (hand_over_sessions_too_early, "before they are serialised"),
        (link_an_flb_to_nobody, "not those of the handlers"),
        (leave_data_in_an_flb, "data and no users"),
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
    with pytest.raises(ModelBug, match="is still preserved"):
        validate_nothing_leaked(host.kernel, [host.agent.task])
    host.agent.task.exit()
    validate_nothing_leaked(host.kernel, [])
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
    with pytest.raises(ModelBug, match="pages are lost, not 0"):
        validate_nothing_leaked(fresh, [agent.task])
    agent.task.close(agent.retrieve("s"))
    validate_nothing_leaked(fresh, [agent.task])
    # three pages of the kernel before are never given back, and a fourth was not among them
    with pytest.raises(ModelBug, match="0 pages are lost, not 1"):
        validate_nothing_leaked(fresh, [agent.task], lost_pages=1)


def test_every_page_frame_has_an_owner_with_a_name() -> None:
    host = Host()
    fresh = reboot(host.kernel)
    agent = Agent(fresh)
    agent.task.preserve_fd(agent.session("next"), agent.memfd(3 * 4096), 7)
    owned = page_owners(fresh, [agent.task])
    for (_, end, one), (start, _, other) in pairwise(owned):
        assert end <= start, (one, other)
    ram = sum(region.size for region in fresh.memblock.memory)
    assert sum(end - start for start, end, _ in owned) == ram // 4096
    names = {name for _, _, name in owned}
    assert names >= {
        "free",
        "taken at boot",
        "handed over, not restored",
        "KHO: FDT",
        "KHO: subtree kexec-metadata",
        "LUO: header",
        "LUO: table of FLBs",
        "LUO: block of sessions",
        "session next: block of files",
        "session next, token 7: entry",
        "session next, token 7: folio table",
        "session next, token 7: chunk of the folio table",
        "huge pages of order 9, node 0",
    }
