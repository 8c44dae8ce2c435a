"""Re-checks what the rest of the model takes for granted, from the outside.

`validate_kernel` takes a running kernel and its processes and accounts for every page frame: each
is in exactly one place (free, page cache, a huge page pool, KHO's own, reserved at boot, or still
waiting to be restored), and the counters say the same. It costs as much as there are fragments;
tests call it after every step, nothing else calls it.

Unhappy path: `ModelBug`, naming the rule and the page frame. A design that leaks pages on purpose
after a failure (as the hugetlb proposal does) is reported like any other leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from kernelmodel.errors import ModelBug
from kernelmodel.fs import File
from kernelmodel.kernel import Kernel
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.luo.file import LuoFileSet
from kernelmodel.luo.handler import FileHandler
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hugetlb import validate_hugetlb
from kernelmodel.mm.hugetlbfs import HugetlbInode, validate_hugetlb_inode
from kernelmodel.mm.memblock import MemblockFlags, validate_memblock
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.page_alloc import validate_page_alloc
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.syscalls import Task

__all__ = ["validate_kernel"]


def validate_kernel(kernel: Kernel, tasks: Iterable[Task]) -> None:
    """Everything at once; `tasks` are all processes that run on this kernel.

    Raises:
        ModelBug: something does not hold.
    """
    tasks = list(tasks)
    files = _files(kernel, tasks)
    validate_memblock(kernel.memblock)
    validate_page_alloc(kernel.page_alloc)
    validate_hugetlb(kernel.hugetlb)
    _validate_references(kernel, tasks, files)
    _validate_luo(kernel)
    _validate_kho(kernel)
    _validate_huge_files(kernel, files)
    _validate_frames(kernel, files)


def _outgoing(kernel: Kernel) -> Iterator[LuoFileSet]:
    return (session.file_set for session in kernel.luo.sessions.outgoing)


def _incoming(kernel: Kernel) -> Iterator[LuoFileSet]:
    return (session.file_set for session in kernel.luo.sessions.incoming)


def _held_by_luo(kernel: Kernel) -> Iterator[File]:
    for file_set in (*_outgoing(kernel), *_incoming(kernel)):
        for luo_file in file_set.files:
            if luo_file.file is not None:
                yield luo_file.file
    if kernel.luo_v4 is not None:
        yield from kernel.luo_v4.held_files()


def _files(kernel: Kernel, tasks: list[Task]) -> list[File]:
    """Every open file, once."""
    found = [file for task in tasks for file in task.files]
    return list({id(file): file for file in (*found, *_held_by_luo(kernel))}.values())


def _validate_references(kernel: Kernel, tasks: list[Task], files: list[File]) -> None:
    holders = Counter(id(file) for task in tasks for file in task.files)
    holders.update(id(file) for file in _held_by_luo(kernel))
    for file in files:
        if file.f_count != holders[id(file)]:
            raise ModelBug(f"a file counts {file.f_count} references, {holders[id(file)]} exist")


def _validate_luo(kernel: Kernel) -> None:
    luo = kernel.luo
    preserved: list[tuple[FileHandler, int]] = []
    users: Counter[int] = Counter()
    for file_set in _outgoing(kernel):
        _validate_capacity("files", len(file_set.files), file_set.block_set)
        for luo_file in file_set.files:
            assert luo_file.file is not None, "outgoing files hold a reference"
            preserved.append((luo_file.handler, luo_file.handler.get_id(luo_file.file)))
            users.update(id(flb) for flb in luo_file.handler.flbs)
            if not _frozen(luo_file.file):
                raise ModelBug("a preserved file is not frozen")
    for file_set in _incoming(kernel):
        preserved.extend(
            (luo_file.handler, luo_file.handler.get_id(luo_file.file))
            for luo_file in file_set.files
            if luo_file.file is not None
        )
    if len(preserved) != len(set(preserved)) or set(preserved) != luo.preserved_ids:
        raise ModelBug("the preserved objects are not those of the sessions")
    for flb in luo.flbs.registered:
        if flb.outgoing_count != users[id(flb)]:
            raise ModelBug(f"FLB {flb.name} counts {flb.outgoing_count}, has {users[id(flb)]}")
    # a create that is refused as a duplicate leaves the block that it made room with
    sessions = luo.sessions
    _validate_capacity("sessions", len(sessions.outgoing), sessions.outgoing_blocks, extra=1)


def _validate_capacity(what: str, nr_entries: int, blocks: KhoBlockSet, extra: int = 0) -> None:
    needed = -(-nr_entries // blocks.capacity)
    if not needed <= len(blocks.blocks) <= needed + extra:
        raise ModelBug(f"{nr_entries} {what} in {len(blocks.blocks)} blocks")


def _frozen(file: File) -> bool:
    inode = file.inode
    if isinstance(inode, HugetlbMemfdInode):
        return inode.hugetlb.frozen
    return isinstance(inode, ShmemInode) and inode.frozen


def _validate_kho(kernel: Kernel) -> None:
    kho = kernel.kho
    runs = kho.outgoing_runs()
    if sum(run.nr for run in runs) != kho.preserved_keys:
        raise ModelBug(f"{kho.preserved_keys} keys counted in the tree")
    _disjoint("preserved entries", ((run.pfn, run.end_pfn) for run in runs))
    for run in runs:
        if not kernel.page_alloc.pfn_valid(run.pfn, run.end_pfn - run.pfn):
            raise ModelBug(f"preserved page frame {run.pfn:#x} does not exist")


def _validate_huge_files(kernel: Kernel, files: list[File]) -> None:
    """The pools' used pages and promises are those of the open files."""
    inodes: dict[int, HugetlbInode] = {}
    for file in files:
        if isinstance(file.inode, HugetlbMemfdInode):
            inodes[file.inode.ino] = file.inode.hugetlb
    used: Counter[int] = Counter()
    promised: Counter[int] = Counter()
    for inode in inodes.values():
        validate_hugetlb_inode(inode)
        used[inode.hstate.order] += inode.folios.total
        promised[inode.hstate.order] += inode.resv.total - inode.folios.total
    for order, hstate in kernel.hugetlb.hstates.items():
        if hstate.nr_huge_pages - hstate.free_huge_pages != used[order]:
            raise ModelBug(f"order {order}: files hold {used[order]} of the pool's used pages")
        if hstate.resv_huge_pages != promised[order]:
            raise ModelBug(f"order {order}: {promised[order]} pages are promised to files")


def _validate_frames(kernel: Kernel, files: list[File]) -> None:
    cached = _disjoint("page cache", _page_cache(files))
    pools = _disjoint("huge page pools", _pools(kernel))
    users = _union("page cache and pools", cached, pools)
    nodes = _disjoint(
        "radix nodes",
        ((pa >> PAGE_SHIFT, (pa >> PAGE_SHIFT) + 1) for _, pa in kernel.kho.outgoing_nodes()),
    )
    # what is preserved and nobody's memory is KHO's and LUO's own: blocks, tables, blobs
    own = RangeSet((run.pfn, run.end_pfn) for run in kernel.kho.outgoing_runs())
    for low, high in users:
        own.remove(low, high)
    taken = _union("pages in use", users, _union("KHO's pages", nodes, own))
    waiting = RangeSet((low, high) for low, high, _ in kernel.kho.tags)
    static = _static(kernel)
    free = kernel.page_alloc.free_ranges()
    managed = _union("free and used", free, taken)
    if kernel.page_alloc.managed_pages() != managed.total:
        raise ModelBug(
            f"{kernel.page_alloc.managed_pages()} pages managed, {managed.total} accounted for"
        )
    everything = _union("managed and reserved", managed, _union("reserved", static, waiting))
    ram = RangeSet()
    for region in kernel.memblock.memory:
        ram.add(region.base >> PAGE_SHIFT, region.end >> PAGE_SHIFT)
    for start, end in ram:
        lost = next(everything.gaps(start, end), None)
        if lost is not None:
            raise ModelBug(f"page frames {lost[0]:#x}-{lost[1]:#x} are nobody's")


def _page_cache(files: list[File]) -> Iterator[tuple[int, int]]:
    inodes = {file.inode.ino: file.inode for file in files}
    for inode in inodes.values():
        if isinstance(inode, ShmemInode):
            for low, high, (delta, _) in inode.pages:
                yield low + delta, high + delta


def _pools(kernel: Kernel) -> Iterator[tuple[int, int]]:
    for order, hstate in kernel.hugetlb.hstates.items():
        for node in hstate.nodes.values():
            for low, high in node.owned:
                yield low << order, high << order


def _static(kernel: Kernel) -> RangeSet:
    """What boot took for good: all that memblock held at its end but what went on from there."""
    moved_on = int(MemblockFlags.RSRV_HUGETLB | MemblockFlags.RSRV_NOINIT)
    static = RangeSet()
    for region in kernel.memblock.reserved:
        if not region.flags & moved_on:
            for ram in kernel.memblock.memory:
                low, high = max(region.base, ram.base), min(region.end, ram.end)
                static.add(low >> PAGE_SHIFT, -(-high >> PAGE_SHIFT))
    if kernel.kho.incoming is None:
        for area in kernel.kho.scratch:
            static.remove(area.addr >> PAGE_SHIFT, area.addr + area.size >> PAGE_SHIFT)
    return static


def _disjoint(what: str, ranges: Iterable[tuple[int, int]]) -> RangeSet:
    found = RangeSet()
    for start, end in ranges:
        if found.overlaps(start, end):
            raise ModelBug(f"{what}: page frames {start:#x}-{end:#x} are there twice")
        found.add(start, end)
    return found


def _union(what: str, one: RangeSet, other: RangeSet) -> RangeSet:
    found = one.copy()
    for start, end in other:
        clash = next(found.within(start, end), None)
        if clash is not None:
            raise ModelBug(f"{what}: page frames {clash[0]:#x}-{clash[1]:#x} are in both")
        found.add(start, end)
    return found
