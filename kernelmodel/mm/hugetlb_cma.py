"""`hugetlb_cma=`: memory kept movable from boot on, so that gigantic pages can be had later.

Reproduces Linux 7.3's mm/hugetlb_cma.c, as seen on the running kernel. `hugetlb_cma=4G` reserves
that much, over the nodes in whole gigantic pages; `hugetlb_cma=0:2G,1:2G` by node. Gigantic pages
then come from these areas first; boot allocates none unless `hugetlb_cma_only=1`, which lets
boot take them from the areas, and nobody from elsewhere.

Unhappy paths: a size that is no multiple of a gigantic page reserves nothing, as does a node that
has no room, whose part the nodes after it may get; the kernel's words about it are in `warnings`.

Simplification: an area gives only what is free in it; the kernel would move pages out of the way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kernelmodel.errors import NoMemory
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hugetlb_cmdline import GIGANTIC_ORDER, memparse
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.mmzone import MigrateType
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.params import kstrtobool

__all__ = ["HugetlbCma"]

_GIGANTIC = 1 << GIGANTIC_ORDER + PAGE_SHIFT


class HugetlbCma:
    """What the command line asked for, and the areas that came of it."""

    __slots__ = ("_by_node", "_early", "_size", "areas", "only", "warnings")

    def __init__(self, params: Sequence[tuple[str, str]], nids: Sequence[int]) -> None:
        self._size = 0
        #: Of each node that exists and was named; None if the size is for all.
        self._by_node: dict[int, int] | None = None
        #: Nothing but the areas serves gigantic pages.
        self.only = False
        self.warnings: list[str] = []
        #: By node: first page frame and number of page frames.
        self.areas: dict[int, tuple[int, int]] = {}
        #: Page frames that boot took from an area, from its start on.
        self._early: dict[int, int] = {}
        for name, value in params:
            if name == "hugetlb_cma":
                self._parse(value, nids)
            elif name == "hugetlb_cma_only":
                said = kstrtobool(value)
                self.only = self.only if said is None else said

    def _parse(self, value: str, nids: Sequence[int]) -> None:
        if not re.match(r"[0-9]+:", value):
            self._size, self._by_node = memparse(value), None
            return
        self._by_node = {} if self._by_node is None else self._by_node
        for part in value.split(","):
            nid, _, size = part.partition(":")
            if not nid.isdecimal() or not size:
                break
            if int(nid) not in nids:
                self.warnings.append(f"hugetlb_cma: invalid node {nid} specified")
            else:
                self._by_node[int(nid)] = memparse(size)
            self._size += memparse(size)

    @property
    def asked_for(self) -> bool:
        """Whether the command line wants areas."""
        return self._size > 0

    def disable(self, why: str) -> None:
        """Reserve nothing after all."""
        self.warnings.append(f"hugetlb_cma: {why}")
        self._size, self._by_node, self.only = 0, None, False

    def reserve(self, memblock: Memblock) -> None:
        """Take the areas from memblock. C: hugetlb_cma_reserve()."""
        if not self._size:
            self.only = False
            return
        wanted = self._wanted(sorted({region.nid for region in memblock.memory}))
        left = self._size
        for nid, wish in wanted.items():
            size = min(wish, left)
            if not size:
                continue
            try:
                start = memblock.alloc_range(size, _GIGANTIC, nid=nid, exact_nid=True)
            except NoMemory:
                self.warnings.append(f"hugetlb_cma: reservation failed: err -12, node {nid}")
                continue
            left -= size
            self.areas[nid] = (start >> PAGE_SHIFT, size >> PAGE_SHIFT)
        if not self.areas:
            self.only = False

    def _wanted(self, nids: Sequence[int]) -> dict[int, int]:
        """How much each node shall give, as long as not all is reserved."""
        if self._by_node is None:
            if self._size % _GIGANTIC:
                self.warnings.append("hugetlb_cma: cma area must be a multiple of 1024 MiB")
                return {}
            per_node = -(-self._size // len(nids))
            return dict.fromkeys(nids, -(-per_node // _GIGANTIC) * _GIGANTIC)
        wanted: dict[int, int] = {}
        for nid, size in sorted(self._by_node.items()):
            if size % _GIGANTIC:
                self.warnings.append(
                    f"hugetlb_cma: cma area of node {nid} must be a multiple of 1024 MiB"
                )
            else:
                wanted[nid] = size
        return wanted

    def take_early(self, nid: int, n: int) -> list[tuple[int, int]]:
        """Up to `n` gigantic pages of an area before there is a page allocator.

        As runs (address, pages). C: hugetlb_cma_alloc_bootmem().
        """
        start, nr = self.areas.get(nid, (0, 0))
        used = self._early.get(nid, 0)
        n = min(n, nr - used >> GIGANTIC_ORDER)
        if not n:
            return []
        self._early[nid] = used + (n << GIGANTIC_ORDER)
        return [(start + used << PAGE_SHIFT, n)]

    def activate(self, allocator: PageAllocator) -> None:
        """Let movable pages in. core_initcall. C: cma_init_reserved_areas()."""
        for nid, (start, nr) in self.areas.items():
            used = self._early.get(nid, 0)
            allocator.set_cma(start, nr)
            if used < nr:
                allocator.free_range(start + used, nr - used)

    # Later.

    def nr_available(self, allocator: PageAllocator, order: int, nid: int) -> int:
        """Gigantic pages that a node's area could give."""
        start, nr = self.areas.get(nid, (0, 0))
        return sum(
            area.nr_contig(order, start, start + nr)
            for zone in allocator.zones(nid)
            for area in zone.areas[MigrateType.CMA :]
        )

    def take(self, allocator: PageAllocator, order: int, n: int, nid: int) -> list[tuple[int, int]]:
        """Up to `n` gigantic pages of a node's area, as runs. C: hugetlb_cma_alloc_folio()."""
        start, nr = self.areas.get(nid, (0, 0))
        runs: list[tuple[int, int]] = []
        for zone in allocator.zones(nid):
            for area in zone.areas[MigrateType.CMA :]:
                left = n - sum(count for _, count in runs)
                runs += area.take_contig(order, left, start, start + nr)
        return runs
