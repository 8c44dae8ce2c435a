"""File handlers: which files a kernel can preserve, one file each.

Linux 7.3 has one, for plain memfds. A release with the hugetlb proposal has a second, one with
guest_memfd three more: VMs, their memory on 4 KiB pages and on huge pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.handlers.guest_memfd import (
    GuestHugetlbHandler,
    GuestMemfdHandler,
    KvmVmHandler,
)
from kernelmodel.handlers.hugetlb_memfd import HugetlbMemfdHandler
from kernelmodel.handlers.memfd import MemfdHandler
from kernelmodel.luo.handler import FileHandler
from kernelmodel.luo_v4.merged import MergedHandler

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["HugetlbMemfdHandler", "MemfdHandler", "register_handlers"]


def register_handlers(kernel: Kernel) -> None:
    """The late initcalls of the handlers that this release has.

    Raises:
        NotSupported: live update is off.
    """
    release = kernel.release
    if kernel.luo_v4 is not None:
        if release.memfd is not None:
            memfd = MemfdHandler(kernel, release.memfd)
            kernel.luo_v4.register_file_handler(MergedHandler(memfd))
        return
    if release.memfd is not None:
        kernel.luo.register_file_handler(MemfdHandler(kernel, release.memfd))
    if release.kvm_vm is not None:
        kernel.luo.register_file_handler(KvmVmHandler(kernel, release.kvm_vm))
    if release.guest_memfd is not None:
        kernel.luo.register_file_handler(GuestMemfdHandler(kernel, release.guest_memfd))
    design = kernel.hugetlb_design
    if design is not None:
        huge: list[FileHandler] = []
        if release.hugemfd is not None:
            huge.append(HugetlbMemfdHandler(kernel, release.hugemfd, design))
        if release.guest_hugetlb is not None:
            huge.append(GuestHugetlbHandler(kernel, release.guest_hugetlb, design))
        for handler in huge:
            kernel.luo.register_file_handler(handler)
        design.register(huge)
