"""One booted kernel: the owner of everything that dies at the jump.

Nothing in it outlives a kexec but what it wrote to physical memory. Kernels share no state, so a
process can hold as many hosts as it has memory for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from kernelmodel.hugetlb_designs import HugetlbDesign, make_design
from kernelmodel.kho.kexec_handover import Kho
from kernelmodel.kho.reserve_mem import ReserveMem
from kernelmodel.luo.core import Luo
from kernelmodel.luo_v4.core import LuoV4
from kernelmodel.luo_v4.kho import FinalizedKho
from kernelmodel.machine import Firmware, Machine
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hugetlb import HugetlbState
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.page_alloc import PageAllocator
from kernelmodel.params import KernelParams
from kernelmodel.releases import Release
from kernelmodel.sim.clock import Clock

if TYPE_CHECKING:
    from kernelmodel.kexec import Kimage

__all__ = ["FailFunction", "Kernel", "KernelConfig", "no_failures"]

#: Called at named kernel functions; raises the KernelError or KernelPanic to be injected there.
#: C: the kernel's own fault injection, CONFIG_FAIL_FUNCTION.
FailFunction = Callable[..., None]


def no_failures(function: str, **context: object) -> None:
    """Injects nothing."""


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """Build options that change behaviour."""

    kexec_handover_debug: bool = False  # CONFIG_KEXEC_HANDOVER_DEBUG
    liveupdate_test: bool = False  # CONFIG_LIVEUPDATE_TEST
    kernel_bytes: int = 64 << 20  # the bzImage header's init_size
    initrd_bytes: int = 96 << 20
    #: Sizes of huge pages as orders of 4 KiB, the default one first; those of x86-64.
    hugepage_orders: tuple[int, ...] = (9, 18)


class Kernel:
    """One kernel from its entry point to its last jump."""

    __slots__ = (
        "_ino",
        "charge",
        "charge_each",
        "clock",
        "config",
        "fail_function",
        "firmware",
        "hugetlb",
        "hugetlb_design",
        "kexec_image",
        "kho",
        "luo",
        "luo_v4",
        "machine",
        "memblock",
        "memory",
        "messages",
        "overran",
        "page_alloc",
        "params",
        "release",
        "reserve_mem",
        "tainted",
    )

    def __init__(
        self,
        machine: Machine,
        release: Release,
        firmware: Firmware,
        clock: Clock,
        *,
        config: KernelConfig,
        fail_function: FailFunction,
    ) -> None:
        self.machine = machine
        #: The machine's, which is another one only after a reset, and then this kernel is gone.
        self.memory = machine.memory
        self.release = release
        self.firmware = firmware
        self.clock = clock
        self.charge = clock.charge
        self.charge_each = clock.charge_each
        self.config = config
        self.fail_function = fail_function
        self.params = KernelParams(firmware.cmdline)
        #: What printk wrote, oldest first.
        self.messages: list[str] = []
        self.tainted = False
        #: Whether a handover had it write into a page that was not its own: what that page held for
        #: somebody else is gone, and no invariant of its memory can be relied on.
        self.overran = False
        self._ino = 0
        self.memblock = Memblock()
        ram = [(r.base >> PAGE_SHIFT, r.size >> PAGE_SHIFT, r.nid) for r in firmware.memory_map]
        self.page_alloc = PageAllocator(ram)
        nids = list(self.page_alloc.nodes)
        self.hugetlb = HugetlbState(firmware.cmdline, nids, config.hugepage_orders)
        self.kexec_image: Kimage | None = None
        self.kho = Kho(self)
        self.reserve_mem = ReserveMem(self)
        #: The merged LUO; off for good on a release that runs the other one.
        self.luo = Luo(self)
        self.luo_v4: LuoV4 | None = None
        if release.luo_design == "v4":
            self.kho = kho = FinalizedKho(self)
            self.luo_v4 = LuoV4(self, kho)
        #: How this release preserves hugetlb's shared state, if it does.
        self.hugetlb_design: HugetlbDesign | None = make_design(self)

    @property
    def is_kdump(self) -> bool:
        """Whether it runs to save what a crashed kernel left. C: is_kdump_kernel()."""
        return bool(self.params.get("elfcorehdr"))

    @property
    def injects_failures(self) -> bool:
        """Whether any call of `fail_function` may fail."""
        return self.fail_function is not no_failures

    @property
    def live_update(self) -> Luo | LuoV4:
        """The LUO that this release runs."""
        return self.luo_v4 or self.luo

    def printk(self, message: str) -> None:
        """Log a line."""
        self.messages.append(message)

    def warn_on(self, message: str) -> None:
        """Log a warning, taint, go on. C: WARN_ON()."""
        self.messages.append(f"WARNING: {message}")
        self.tainted = True

    def new_ino(self) -> int:
        """A fresh inode number."""
        self._ino += 1
        return self._ino

    def get_zeroed_page(self) -> int:
        """Address of a zeroed page. C: get_zeroed_page(). Raises: NoMemory."""
        pfn = self.page_alloc.alloc_pages(0)
        self.memory.clear_page(pfn)
        return pfn << PAGE_SHIFT

    def take_apart(self) -> None:
        """End of a kernel that is gone: it forgets everything.

        It is a web of references, which otherwise the garbage collector alone would free, at a
        price. And whoever asks it for something that did not cross in memory gets no answer.
        """
        parts: tuple[Any, ...] = (
            self.hugetlb_design,
            self.kho,
            self.luo,
            self.luo_v4,
            self.reserve_mem,
            self,
        )
        for part in parts:
            kind: Any = type(part)
            there: Callable[[str], bool] = partial(hasattr, part)
            deque(map(delattr, repeat(part), filter(there, _slots_of(kind))), maxlen=0)
            getattr(part, "__dict__", {}).clear()

    def free_page(self, pa: int) -> None:
        """Give such a page back. C: free_page()."""
        self.page_alloc.free_pages(pa >> PAGE_SHIFT, 0)


@lru_cache(maxsize=64)
def _slots_of(kind: type) -> tuple[str, ...]:
    """Names of all slots of a class and of those that it is derived from."""
    return tuple(name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
