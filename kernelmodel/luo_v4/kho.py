"""KHO as LUO v4 found it: it is finalised before the jump, and the finalising can be undone.

`finalize` is what PREPARE ends with, `abort` what CANCEL begins with. In between nothing more can
be preserved (EBUSY). The tree that firmware is pointed to is written by `finalize` alone: a kernel
that jumps without it hands over a page of zeroes, and the next kernel boots as if there had been
no KHO, with scratch of its own.

Simplifications, and what a test could notice: what is written is the format of 7.3 (radix tree,
metadata), so that releases can be compared byte by byte; preserved pages are in the radix tree as
soon as they are preserved, where that KHO wrote its list at `finalize`; and unpreserving works at
any time. Ours: EBUSY, ENOENT for a second finalize or abort being no error, and that a failed
freeze aborts (see `kernelmodel.luo_v4.core`).

C: kernel/kexec_handover.c of 6.18 (kho_finalize(), kho_abort()).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.errors import Busy
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.memory import PAGE_SIZE

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["FinalizedKho"]


class FinalizedKho(Kho):
    """KHO with the two steps that 7.3 no longer has."""

    __slots__ = ("finalized",)

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.finalized = False

    def finalize(self) -> None:
        """Write the FDT and preserve no more. C: kho_finalize().

        Raises what a fault injected into it raises; KHO is as it was then.
        """
        self.kernel.fail_function("kho_finalize")
        self.finalized = True
        self._fdt.step()

    def abort(self) -> None:
        """Take the FDT back; preserving is possible again. C: kho_abort().

        Raises what a fault injected into it raises; KHO is as it was then.
        """
        self.kernel.fail_function("kho_abort")
        self.finalized = False
        self.kernel.memory.write(self.fdt_pa, bytes(PAGE_SIZE))

    def _write_fdt(self, packed: bytes) -> None:
        if self.finalized:
            super()._write_fdt(packed)

    def preserve_folios(self, pfn: int, order: int, nr: int = 1) -> None:
        """As KHO's own. Raises: Busy once finalised, and as KHO's own."""
        if self.finalized:
            raise Busy("KHO is finalised", pfn=pfn)
        super().preserve_folios(pfn, order, nr)

    def add_subtree(self, name: str, pa: int, size: int) -> None:
        """As KHO's own. Raises: Busy once finalised, and as KHO's own."""
        if self.finalized:
            raise Busy("KHO is finalised", name=name)
        super().add_subtree(name, pa, size)
