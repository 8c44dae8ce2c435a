"""What memfds and guest_memfds on huge pages have in common: contents go by huge pages.

The books of such a file (`HugetlbInode`) know page frames and nothing of what is in them; here is
what its first faults and its guest do to memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.memory import Content
from kernelmodel.mm.hugetlbfs import HugetlbInode

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["HugetlbFile"]


class HugetlbFile:
    """An inode on huge pages; its books are `hugetlb`."""

    __slots__ = ()

    kernel: Kernel
    hugetlb: HugetlbInode

    def clear(self, first: int, last: int) -> None:
        """Zero the huge pages of [first, last), as a first fault does."""
        order = self.hugetlb.hstate.order
        for _, pfn, count in self.hugetlb.folios.within(first, last):
            self.kernel.memory.zero(pfn, count << order)

    def guest_write(self, first: int, nr: int, content: Content, content_page: int) -> None:
        """Stores through a mapping to huge pages [first, first + nr), which are there.

        `content_page` counts 4 KiB pages, as content does.
        """
        order = self.hugetlb.hstate.order
        for index, pfn, count in self.hugetlb.folios.within(first, first + nr):
            at = content_page + (index - first << order)
            self.kernel.memory.fill(pfn, count << order, content, at)
