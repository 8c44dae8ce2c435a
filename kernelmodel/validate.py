"""Re-checks what the rest of the model takes for granted, from the outside.

`validate_kernel(kernel, tasks)` takes a running kernel and all its processes and holds everything
against everything else: every page frame has exactly one owner, and one that has a name (free, a
file's page cache, a huge page pool, KHO's tree, a session's block, a file's entry or table, taken
at boot, handed over and not restored); the keys of the outgoing tree are those that KHO's users
believe to have preserved; descriptors, references, sessions, block chains, FLB counts, frozen
inodes, pools and promises agree. `page_owners` lists page frames by owner, and
`validate_nothing_leaked` demands that closed sessions left nothing behind.

Nothing in the model or the fleet calls any of this, so it costs normal runs nothing; a call costs
as much as memory has fragments, a few milliseconds on a small host. Call it between two system
calls of a kernel that was not told to jump:

    host.task.preserve_fd(session, memfd, token)
    validate_kernel(host.kernel, [host.task])
    for first, end, owner in page_owners(host.kernel, [host.task]): ...

Unhappy path: `ModelBug`, naming the rule and the page frame. Faults that were injected into the
books themselves (a key that was dropped, an entry that was overwritten) are reported as what they
are. A design that loses pages on purpose after a failure (as the hugetlb proposal does) is reported
like any other leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

from kernelmodel.abi.kexec_handover import KEXEC_METADATA_NODE, KHO_PROP_SUBTREE_DATA
from kernelmodel.errors import ModelBug
from kernelmodel.fs import File, Inode
from kernelmodel.kernel import Kernel
from kernelmodel.luo.file import LuoFileSet
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.guest_memfd import GuestHugetlbInode, GuestMemfdInode
from kernelmodel.mm.hugetlb import validate_hugetlb
from kernelmodel.mm.hugetlbfs import HugetlbInode, validate_hugetlb_inode
from kernelmodel.mm.memblock import MemblockFlags, validate_memblock
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.page_alloc import validate_page_alloc
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.owners import preserved_by_owner
from kernelmodel.syscalls import Task
from kernelmodel.validate_luo import validate_luo

__all__ = ["page_owners", "validate_kernel", "validate_nothing_leaked"]

#: Page frames as (first, behind).
_Ranges = Iterable[tuple[int, int]]


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
    validate_luo(kernel, files)
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


def _validate_kho(kernel: Kernel) -> None:
    """The tree holds what its users believe to have preserved, and nothing else."""
    kho = kernel.kho
    runs = kho.outgoing_runs()
    found = sum(run.nr for run in runs)
    if found != kho.preserved_keys:
        raise ModelBug(f"{kho.preserved_keys} keys are set, the tree in memory has {found}")
    _disjoint("preserved entries", ((run.pfn, run.end_pfn) for run in runs))
    for run in runs:
        if not kernel.page_alloc.pfn_valid(run.pfn, run.end_pfn - run.pfn):
            raise ModelBug(f"preserved page frame {run.pfn:#x} does not exist")
    keys: dict[int, RangeSet] = {}
    for run in runs:
        low = run.pfn >> run.order
        keys.setdefault(run.order, RangeSet()).add(low, low + run.nr)
    for entry in preserved_by_owner(kernel):
        left, low = keys.setdefault(entry.order, RangeSet()), entry.pfn >> entry.order
        if left.gaps(low, low + entry.nr):
            raise ModelBug(
                f"{entry.owner}: {entry.pfn:#x}, {entry.nr} of order {entry.order}, "
                "has no key in the tree"
            )
        left.remove(low, low + entry.nr)
    for order, left in keys.items():
        for low, high in left:
            raise ModelBug(
                f"preserved page frame {low << order:#x}, {high - low} of order {order}, "
                "is nobody's: it has leaked, or its owner does not name it (kernelmodel.owners)"
            )


def _validate_huge_files(kernel: Kernel, files: list[File]) -> None:
    """The pools' used pages and promises are those of the open files."""
    inodes: dict[int, HugetlbInode] = {}
    for file in files:
        if isinstance(file.inode, HugetlbMemfdInode | GuestHugetlbInode):
            inodes[file.inode.ino] = file.inode.hugetlb
    used: Counter[int] = Counter()
    promised: Counter[int] = Counter()
    for inode in (*inodes.values(), *kernel.hugetlb.lost_files):
        validate_hugetlb_inode(inode)
        used[inode.hstate.order] += inode.folios.total
        promised[inode.hstate.order] += inode.resv.total - inode.folios.total
    for order, hstate in kernel.hugetlb.hstates.items():
        if hstate.nr_huge_pages - hstate.free_huge_pages != used[order]:
            raise ModelBug(f"order {order}: files hold {used[order]} of the pool's used pages")
        if hstate.resv_huge_pages != promised[order]:
            raise ModelBug(f"order {order}: {promised[order]} pages are promised to files")


def _validate_frames(kernel: Kernel, files: list[File]) -> None:
    """Every page frame has exactly one owner, and the allocator counts those that it manages."""
    owned = sorted(_owned(kernel, files))
    for (_, end, one, _), (start, high, other, _) in pairwise(owned):
        if start < end:
            raise ModelBug(
                f"page frames {start:#x}-{min(end, high):#x} are in both: {one}, {other}"
            )
    managed = sum(high - low for low, high, _, counted in owned if counted)
    if kernel.page_alloc.managed_pages() != managed:
        raise ModelBug(
            f"{kernel.page_alloc.managed_pages()} pages managed, {managed} accounted for"
        )
    everything = RangeSet((low, high) for low, high, _, _ in owned)
    for region in kernel.memblock.memory:
        # a page that the border of a region cuts is never freed to anybody
        start, end = -(-region.base >> PAGE_SHIFT), region.end >> PAGE_SHIFT
        for low, high in everything.gaps(start, end):
            raise ModelBug(f"page frames {low:#x}-{high:#x} are nobody's")


def _owned(kernel: Kernel, files: list[File]) -> Iterator[tuple[int, int, str, bool]]:
    """(first pfn, pfn behind, owner, whether the allocator manages it), in no order."""
    for owner, ranges in _managed(kernel, files):
        yield from ((low, high, owner, True) for low, high in ranges)
    tags = kernel.kho.tags
    # a corrupted handover has entries that overlap
    waiting = RangeSet([*((low, high) for low, high, _ in tags), *tags.untagged])
    for owner, ranges in (
        ("handed over, not restored", waiting),
        ("taken at boot", _static(kernel)),
    ):
        yield from ((low, high, owner, False) for low, high in ranges)


def _managed(kernel: Kernel, files: list[File]) -> Iterator[tuple[str, _Ranges]]:
    """What the allocator was given at some time, free or in use, by owner."""
    yield "free", kernel.page_alloc.free_ranges()
    for inode in {file.inode.ino: file.inode for file in files}.values():
        yield f"page cache of inode {inode.ino}", _page_cache(inode)
    for order, hstate in kernel.hugetlb.hstates.items():
        for nid, node in hstate.nodes.items():
            pages = [(low << order, high << order) for low, high in node.owned]
            yield f"huge pages of order {order}, node {nid}", pages
    yield "struct pages of huge pages", kernel.hugetlb.vmemmap.extra
    for level, pa in kernel.kho.outgoing_nodes():
        pfn = pa >> PAGE_SHIFT
        yield f"KHO: node of level {level}", [(pfn, pfn + 1)]
    for entry in preserved_by_owner(kernel):
        if entry.own:
            yield entry.owner, [(entry.pfn, entry.end_pfn)]
    yield "restored and lost", kernel.kho.leaked


def _page_cache(inode: Inode) -> Iterator[tuple[int, int]]:
    if isinstance(inode, ShmemInode):
        for _, pfn, nr_pages, _ in inode.extents(0, 1 << 64):
            yield pfn, pfn + nr_pages
    elif isinstance(inode, GuestMemfdInode):
        for low, high, delta in inode.pages:
            yield low + delta, high + delta


def _static(kernel: Kernel) -> RangeSet:
    """What boot took for good: all that memblock held at its end but what went on from there."""
    moved_on = int(MemblockFlags.RSRV_HUGETLB | MemblockFlags.RSRV_NOINIT)
    static = RangeSet()
    for region in kernel.memblock.reserved:
        if not region.flags & moved_on:
            for ram in kernel.memblock.memory:
                low, high = max(region.base, ram.base), min(region.end, ram.end)
                static.add(low >> PAGE_SHIFT, -(-high >> PAGE_SHIFT))
    for low, high in kernel.hugetlb.vmemmap.released:
        static.remove(low, high)
    for start, nr_pages in kernel.hugetlb.cma.areas.values():
        static.remove(start, start + nr_pages)
    if kernel.kho.incoming is None:
        for area in kernel.kho.scratch:
            static.remove(area.addr >> PAGE_SHIFT, area.addr + area.size >> PAGE_SHIFT)
    return static


def _disjoint(what: str, ranges: Iterable[tuple[int, int]]) -> None:
    found = RangeSet()
    for start, end in ranges:
        if found.overlaps(start, end):
            raise ModelBug(f"{what}: page frames {start:#x}-{end:#x} are there twice")
        found.add(start, end)


def page_owners(kernel: Kernel, tasks: Iterable[Task]) -> list[tuple[int, int, str]]:
    """Every page frame's owner, as ascending (first pfn, pfn behind, name).

    For looking at a kernel that `validate_kernel` accepts; costs as much as that.
    """
    files = _files(kernel, list(tasks))
    return [(low, high, owner) for low, high, owner, _ in sorted(_owned(kernel, files))]


def validate_nothing_leaked(kernel: Kernel, tasks: Iterable[Task], lost_pages: int = 0) -> None:
    """After all sessions are closed, retrieved ones included: nothing of them is left.

    What a kernel never gives back is the FDT, the metadata and the table of FLBs of the one
    before it. `lost_pages` are those that were lost besides: of sessions that nobody retrieved,
    or to a retrieve that failed before its folio table was read.

    Raises:
        ModelBug: something has leaked, or `validate_kernel` finds a fault.
    """
    validate_kernel(kernel, tasks)
    for entry in preserved_by_owner(kernel):
        if not entry.owner.startswith(("KHO: ", "LUO: header", "LUO: table of FLBs")):
            raise ModelBug(f"{entry.owner}: page frame {entry.pfn:#x} is still preserved")
    for flb in kernel.luo.flbs.registered:
        if flb.outgoing_count:
            raise ModelBug(f"FLB {flb.name} is still used")
    tags = kernel.kho.tags
    kept = [pa >> PAGE_SHIFT for pa in _kept_for_good(kernel)]
    lost = sum(high - low for low, high, _ in tags)
    lost -= sum(low <= pfn < high for low, high, _ in tags for pfn in kept)
    lost += tags.untagged.total + kernel.kho.leaked.total
    if lost != lost_pages:
        raise ModelBug(f"{lost} pages are lost, not {lost_pages}")


def _kept_for_good(kernel: Kernel) -> Iterator[int]:
    """What was handed over and is nobody's to restore."""
    incoming = kernel.kho.incoming
    if incoming is not None:
        yield incoming.fdt_pa
        metadata = incoming.fdt.root.subnode(KEXEC_METADATA_NODE)
        if metadata is not None:
            yield metadata.u64(KHO_PROP_SUBTREE_DATA) or 0
        yield kernel.luo.flbs.incoming_pa
