"""What a booting kernel can learn of the previous one before LUO is up.

v4 has none of this: its data getter works from the early initcalls on, and hugetlb takes its pages
before that. Proposals that need the count earlier read the same bytes through these.

They only read: nothing is restored, and a handover that LUO will panic over panics here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.luo_v4.fdt import LuoFdtIn
from kernelmodel.luo_v4.global_state import FH_STATES_SUBSYSTEM, read_fh_states

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["global_state_early", "subsystem_early"]


def subsystem_early(kernel: Kernel, name: str) -> int | None:
    """A subsystem's u64; None if nothing came over for it. Raises: KernelPanic."""
    incoming = LuoFdtIn.load(kernel)
    return None if incoming is None else incoming.subsystem(name)


def global_state_early(kernel: Kernel, compatible: str) -> int | None:
    """The u64 of a file handler's global state; None if there is none. Raises: KernelPanic."""
    pa = subsystem_early(kernel, FH_STATES_SUBSYSTEM)
    return None if pa is None else read_fh_states(kernel, pa).get(compatible)
