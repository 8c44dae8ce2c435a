"""Allocations that fail, one after the other, and what a kernel looks like before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kernelmodel.errors import KernelError, NoMemory
from kernelmodel.kernel import Kernel
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.owners import preserved_by_owner
from kernelmodel.syscalls import Task
from kernelmodel.validate import page_owners, validate_kernel

#: Named functions that stand for an allocation, or fail as one would.
ALLOCATING = frozenset(
    {
        "should_failslab",
        "kho_alloc_preserve",
        "kho_preserve_vmalloc",
        "memfd_luo_preserve",
        "shmem_inode_acct_blocks",
    }
)

#: Nodes that setting one key can take.
_NODES_OF_A_PATH = 5


class Failing:
    """Makes a kernel's allocation number `at` fail, counted from 0; `sites` are their names."""

    def __init__(self, kernel: Kernel) -> None:
        self.at = -1
        self.sites: list[str] = []
        failing = self

        class Allocator(PageAllocator):
            """The kernel's own, asked before it answers."""

            __slots__ = ()

            def alloc_pages(self, order: int, nid: int = 0, **how: Any) -> int:
                failing.allocate("alloc_pages")
                return super().alloc_pages(order, nid, **how)

            def alloc_upto(
                self, order: int, n: int, nid: int = 0, **how: Any
            ) -> tuple[list[tuple[int, int]], int]:
                try:
                    failing.allocate("alloc_upto")
                except NoMemory:
                    return [], n
                return super().alloc_upto(order, n, nid, **how)

        kernel.page_alloc.__class__ = Allocator
        kernel.fail_function = self._called

    def _called(self, function: str, **context: object) -> None:
        if function in ALLOCATING:
            self.allocate(str(context.get("site", function)))

    def allocate(self, site: str) -> None:
        """Count one. Raises: NoMemory, if it is its turn."""
        self.sites.append(site)
        if len(self.sites) == self.at + 1:
            raise NoMemory("injected", site=site)

    def arm(self, at: int) -> None:
        """From now on, the allocation number `at` fails; -1 for none."""
        self.at = at
        self.sites = []


def state_of(kernel: Kernel, tasks: Iterable[Task]) -> object:
    """All that a refused call must leave as it was.

    Not the tree's nodes and not which pages are free, for nodes stay once they are there; nor the
    holes of a file, which preserving may have filled before it was refused.
    """
    tasks = list(tasks)
    luo = kernel.luo
    inodes = [file.inode for task in tasks for file in task.files]
    return (
        sorted(
            owner
            for owner in page_owners(kernel, tasks)
            if owner[2] != "free" and not owner[2].startswith(("KHO: node", "page cache"))
        ),
        sorted(preserved_by_owner(kernel), key=lambda p: (p.pfn, p.order)),
        [(flb.name, flb.outgoing_count, flb.outgoing_data) for flb in luo.flbs.registered],
        len(luo.preserved_ids),
        [[file.f_count for file in task.files] for task in tasks],
        [(i.size, i.frozen, i.pinned, i.seals) for i in inodes if isinstance(i, ShmemInode)],
        [(s.name, s.retrieved, len(s.file_set.files)) for s in luo.sessions.outgoing],
        [(s.name, s.retrieved, len(s.file_set.files)) for s in luo.sessions.incoming],
        sum(high - low for low, high, _ in kernel.kho.tags),
    )


def fail_each(
    kernel: Kernel, tasks: Iterable[Task], operation: Callable[[], object]
) -> Iterator[tuple[str, KernelError]]:
    """Make each allocation of an operation fail in its turn, until it succeeds.

    Yields the site and the error of each attempt. After each the kernel must be valid and as it
    was before.
    """
    tasks = list(tasks)
    failing = Failing(kernel)
    before = state_of(kernel, tasks)
    at = 0
    seen: set[tuple[str, ...]] = set()
    while True:
        failing.arm(at)
        try:
            operation()
        except KernelError as error:
            sites = tuple(failing.sites)
            failing.arm(-1)
            validate_kernel(kernel, tasks)
            assert state_of(kernel, tasks) == before, sites
            if sites in seen:
                at += 1
                continue
            seen.add(sites)
            yield sites[-1], error
            # nodes of the tree stay, so the next attempt may have to allocate fewer
            at = max(0, at - _NODES_OF_A_PATH)
            continue
        assert len(failing.sites) <= at, "an allocation failed and nobody noticed"
        failing.arm(-1)
        validate_kernel(kernel, tasks)
        return
