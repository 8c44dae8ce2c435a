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
    from kernelmodel.hugetlb_designs import HugetlbDesign
    from kernelmodel.kernel import Kernel
    from kernelmodel.luo_v4.core import LuoV4

__all__ = ["register_handlers"]


def register_handlers(kernel: Kernel) -> None:
    """The late initcalls of the handlers that this release has.

    Raises:
        NotSupported: live update is off.
    """
    release, design = kernel.release, kernel.hugetlb_design
    plain: list[FileHandler] = []
    if release.memfd is not None:
        plain.append(MemfdHandler(kernel, release.memfd))
    if release.kvm_vm is not None:
        plain.append(KvmVmHandler(kernel, release.kvm_vm))
    if release.guest_memfd is not None:
        plain.append(GuestMemfdHandler(kernel, release.guest_memfd))
    huge: list[FileHandler] = []
    if design is not None and release.hugemfd is not None:
        huge.append(HugetlbMemfdHandler(kernel, release.hugemfd, design))
    if design is not None and release.guest_hugetlb is not None:
        huge.append(GuestHugetlbHandler(kernel, release.guest_hugetlb, design))
    if kernel.luo_v4 is not None:
        _register_v4(kernel.luo_v4, plain, huge, design)
        return
    for handler in (*plain, *huge):
        kernel.luo.register_file_handler(handler)
    if design is not None:
        design.register(huge)


def _register_v4(
    luo: LuoV4, plain: list[FileHandler], huge: list[FileHandler], design: HugetlbDesign | None
) -> None:
    """The same under LUO v4. A design there says when files work, and who may share its state."""
    early = design is not None and design.at_preserve_fd
    wrapped = [MergedHandler(handler, at_preserve_fd=early) for handler in huge]
    if design is not None and wrapped:
        wrapped = wrapped if design.takes_guest_memfd else wrapped[:1]
        design.bind(wrapped)
    for handler in (*(MergedHandler(one, at_preserve_fd=early) for one in plain), *wrapped):
        luo.register_file_handler(handler)
