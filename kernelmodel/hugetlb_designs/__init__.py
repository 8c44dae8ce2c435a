"""Ways of preserving hugetlb's shared state, one file each. None is in Linux 7.3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.hugetlb_designs.flb_counts import incoming_counts

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["incoming_hugetlb_pages"]


def incoming_hugetlb_pages(kernel: Kernel) -> dict[int, int]:
    """Huge pages by order that a handover will bring, read before anything is allocated."""
    return incoming_counts(kernel) if kernel.release.hugetlb is not None else {}
