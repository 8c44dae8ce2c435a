"""A list of folios by number, for each page size, in preserved memory: what several designs write.

`PoolList` is one on its way out. `early_counts` and `take_lists` are the other side: the first
reads how many folios are listed while nothing can be restored yet, the second reads the lists and
frees them. `Marks` says which folios files have preserved, while the kernel runs.

Unhappy paths: no memory for a list is ENOMEM, a fifth page size ENOSPC, and nothing stays. A list
that cannot be restored panics: hugetlb cannot know what its pages are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kernelmodel.abi.hugetlb import HUGETLB_SER_MAX_HSTATES
from kernelmodel.abi.hugetlb_pool import (
    PFN_PRESERVED,
    PFN_SER_SIZE,
    HugetlbPoolHstateSer,
    HugetlbPoolSer,
    PfnList,
    PfnRun,
    parse_pfn_list,
)
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import KernelError, KernelPanic, NoSpace
from kernelmodel.kho.vmalloc import preserve_vmalloc, restore_vmalloc, unpreserve_vmalloc
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.mm.vmalloc import VmallocArea, vfree, vmalloc
from kernelmodel.owners import Preserved

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["Marks", "PoolList", "early_counts", "listed", "pool_folios", "take_lists"]

#: Folio numbers (pfn >> order) by order.
Marks = dict[int, RangeSet]


def pool_folios(kernel: Kernel) -> Marks:
    """Every folio of every pool."""
    found: Marks = {}
    for order, hstate in kernel.hugetlb.hstates.items():
        folios = RangeSet()
        for node in hstate.nodes.values():
            for low, high in node.owned:
                folios.add(low, high)
        if folios:
            found[order] = folios
    return found


def listed(marked: Marks, others: Marks) -> dict[int, list[PfnRun]]:
    """The lists: `marked` folios are preserved by files, `others` are the pool's."""
    lists: dict[int, list[PfnRun]] = {}
    for order in sorted(marked.keys() | others.keys()):
        pieces = [(low, high, PFN_PRESERVED) for low, high in marked.get(order, ())]
        pieces += [(low, high, 0) for low, high in others.get(order, ())]
        lists[order] = [
            PfnRun(low << order, high - low, 1 << order, flags)
            for low, high, flags in sorted(pieces)
        ]
    return lists


class _List:
    """The list of one page size: its pages, and how they were preserved."""

    __slots__ = ("area", "nr_preserved", "runs", "ser")

    def __init__(self, kernel: Kernel, runs: list[PfnRun]) -> None:
        self.area = vmalloc(kernel.page_alloc, sum(run.nr for run in runs) * PFN_SER_SIZE)
        kernel.charge("vmalloc", self.area.nr_pages)
        try:
            self.ser: KhoVmalloc = preserve_vmalloc(kernel.kho, self.area)
        except KernelError:
            vfree(kernel.page_alloc, self.area)
            raise
        self.write(kernel, runs)

    def write(self, kernel: Kernel, runs: list[PfnRun]) -> None:
        """Put these entries into the pages, which are enough for them."""
        self.runs = runs
        self.nr_preserved = sum(run.nr for run in runs if run.flags & PFN_PRESERVED)
        kernel.charge("hugetlb_luo_folio_ser", sum(run.nr for run in runs))
        content, page = PfnList(tuple(runs)), 0
        for pfn, nr_pages in self.area.extents:
            kernel.memory.fill(pfn, nr_pages, content, page)
            page += nr_pages

    def free(self, kernel: Kernel) -> None:
        """Take the keys back and free the pages."""
        unpreserve_vmalloc(kernel.kho, self.ser, self.area)
        vfree(kernel.page_alloc, self.area)


class PoolList:
    """Lists of several sizes under one `HugetlbPoolSer`."""

    __slots__ = ("_lists", "kernel", "next", "pa")

    def __init__(self, kernel: Kernel, lists: dict[int, list[PfnRun]]) -> None:
        """Write them all. Raises: NoMemory, NoSpace; nothing stays."""
        self.kernel = kernel
        if len(lists) > HUGETLB_SER_MAX_HSTATES:
            raise NoSpace("too many huge page sizes", sizes=len(lists))
        self._lists: dict[int, _List] = {}
        self.next = 0
        self.pa = kernel.kho.alloc_preserve(HugetlbPoolSer.SIZE)
        try:
            for order, runs in lists.items():
                self._lists[order] = _List(kernel, runs)
        except KernelError:
            self.free()
            raise
        self._commit()

    def rewrite(self, lists: dict[int, list[PfnRun]]) -> None:
        """Other entries, no more than there were of each size. It allocates nothing."""
        for order, written in self._lists.items():
            written.write(self.kernel, lists.get(order, []))
        self._commit()

    def link(self, pa: int) -> None:
        """Point to a next structure; 0 for none."""
        self.next = pa
        self._commit()

    def _commit(self) -> None:
        ser = HugetlbPoolSer(
            tuple(
                HugetlbPoolHstateSer(
                    sum(run.nr for run in written.runs),
                    written.nr_preserved,
                    written.ser.first,
                    written.ser.total_pages,
                    written.ser.flags,
                    written.ser.order,
                    order,
                )
                for order, written in self._lists.items()
            ),
            self.next,
        )
        self.kernel.memory.write(self.pa, ser.pack())

    def free(self) -> None:
        """Take everything back."""
        for written in self._lists.values():
            written.free(self.kernel)
        self._lists.clear()
        self.kernel.kho.unpreserve_free(self.pa)

    @property
    def nbytes(self) -> int:
        """Bytes that were written, whatever pages they take."""
        entries = sum(run.nr for written in self._lists.values() for run in written.runs)
        return HugetlbPoolSer.SIZE + entries * PFN_SER_SIZE

    def preserved_pages(self) -> Iterator[Preserved]:
        """The structure, the lists and the chunks that describe them."""
        yield Preserved("page sizes", self.pa >> PAGE_SHIFT)
        for order, written in self._lists.items():
            for pfn, nr_pages in written.area.extents:
                yield Preserved(f"list of order {order}", pfn, 0, nr_pages)
            chunk = written.ser.first
            while chunk:
                yield Preserved(f"chunk of the list of order {order}", chunk >> PAGE_SHIFT)
                chunk = self.kernel.memory.u64(chunk)


def _read(kernel: Kernel, pa: int) -> HugetlbPoolSer:
    return HugetlbPoolSer.unpack(kernel.memory.read(pa, HugetlbPoolSer.SIZE))


def early_counts(kernel: Kernel, pa: int) -> dict[int, int]:
    """How many folios of each size are listed; it only reads."""
    counts: dict[int, int] = {}
    for ser in _read(kernel, pa).hstates if pa else ():
        if ser.nr_folios and ser.order in kernel.hugetlb.hstates:
            counts[ser.order] = counts.get(ser.order, 0) + ser.nr_folios
    return counts


def take_lists(kernel: Kernel, pa: int) -> tuple[Marks, Marks, int]:
    """Read what a `PoolList` left and free it.

    Returns (folios that files preserved, the pool's others, address of the next structure).

    Raises:
        KernelPanic: a list cannot be restored, or is shorter than it is said to be.
    """
    marked: Marks = {}
    others: Marks = {}
    ser = _read(kernel, pa)
    for hstate in ser.hstates:
        area = restore_vmalloc(kernel.kho, hstate.vmalloc)
        if area is None or hstate.nr_folios * PFN_SER_SIZE > area.nr_pages * PAGE_SIZE:
            raise KernelPanic(f"hugetlb: no list of {hstate.nr_folios} folios")
        for run in _runs(kernel, area, hstate):
            into = marked if run.flags & PFN_PRESERVED else others
            low = run.pfn >> hstate.order
            into.setdefault(hstate.order, RangeSet()).add(low, low + run.nr)
        vfree(kernel.page_alloc, area)
    kernel.kho.restore_free(pa)
    return marked, others, ser.next


def _runs(kernel: Kernel, area: VmallocArea, hstate: HugetlbPoolHstateSer) -> Iterable[PfnRun]:
    kernel.charge("hugetlb_luo_folio_ser", hstate.nr_folios)
    step = 1 << hstate.order
    return parse_pfn_list(kernel.memory, list(area.extents), hstate.nr_folios, step)
