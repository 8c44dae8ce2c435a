"""Ways of preserving hugetlb's shared state, one file each. None is in Linux 7.3.

`base` says what a design may do and when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kernelmodel.hugetlb_designs.base import HugetlbDesign
from kernelmodel.hugetlb_designs.files_then_subsystem import FilesThenSubsystem
from kernelmodel.hugetlb_designs.flb_counts import FlbCounts
from kernelmodel.hugetlb_designs.frozen_pool import FrozenPool
from kernelmodel.hugetlb_designs.global_state import GlobalState
from kernelmodel.hugetlb_designs.handler_subsystem import HandlerSubsystem
from kernelmodel.hugetlb_designs.ours import Ours
from kernelmodel.hugetlb_designs.subsystem_prepare import SubsystemPrepare

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["DESIGNS", "HugetlbDesign", "make_design"]

#: Every design by name; each is made of a kernel and the compatible string of its shared state.
DESIGNS: dict[str, Callable[[Kernel, str], HugetlbDesign]] = {
    SubsystemPrepare.name: SubsystemPrepare,
    GlobalState.name: GlobalState,
    FrozenPool.name: FrozenPool,
    FilesThenSubsystem.name: FilesThenSubsystem,
    HandlerSubsystem.name: HandlerSubsystem,
    FlbCounts.name: FlbCounts,
    Ours.name: Ours,
}


def make_design(kernel: Kernel) -> HugetlbDesign | None:
    """The design that this kernel's release carries, if it carries one."""
    release = kernel.release
    if release.hugetlb is None or release.hugetlb_design is None:
        return None
    return DESIGNS[release.hugetlb_design](kernel, release.hugetlb)
