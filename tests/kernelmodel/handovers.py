"""Images to try things on: the real one, and those that a modelled host leaves."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.image.frames import Image, SparseFrames
from kernelmodel.image.load import load_image
from kernelmodel.image.write import handover_of
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.releases import CATALOGUE
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task

IMAGES = Path(__file__).parents[1] / "conformance" / "images"
REAL = IMAGES / "img1.kho.gz"
#: Also of a real 7.3.4: chains of two blocks, 55 sessions and 70 files in one; seals, holes,
#: positions behind the end.
CHAINS = IMAGES / "chains.kho.gz"
CONFIG = KernelConfig(kernel_bytes=32 * MIB, initrd_bytes=8 * MIB)


def real_description(name: str = "img1") -> dict[str, Any]:
    description: dict[str, Any] = json.loads((IMAGES / f"{name}.json").read_text())
    return description


def pages_of(image: Image) -> dict[int, bytes]:
    """All frames of a small image."""
    frames = image.frames
    held = [pfn for low, high in frames.held(0, 1 << 40) for pfn in range(low, high)]
    return {pfn: frames.frame(pfn) or b"" for pfn in held}


def real_pages() -> tuple[dict[int, bytes], int]:
    image = load_image(REAL)
    return pages_of(image), image.fdt_pa


def image_of(pages: dict[int, bytes], fdt_pa: int) -> Image:
    return Image(SparseFrames(pages), fdt_pa)


def poke(pages: dict[int, bytes], pa: int, data: bytes) -> None:
    """Change bytes within one page."""
    page = bytearray(pages[pa >> PAGE_SHIFT])
    page[pa % PAGE_SIZE : pa % PAGE_SIZE + len(data)] = data
    pages[pa >> PAGE_SHIFT] = bytes(page)


def tree_root(pages: dict[int, bytes], fdt_pa: int) -> int:
    """The page that the FDT names beside the blobs."""
    fdt = pages[fdt_pa >> PAGE_SHIFT]
    blobs = (b"luo-v5", b"\1\0\0\0007.3")
    (root,) = [
        pfn << PAGE_SHIFT
        for pfn, page in pages.items()
        if struct.pack("<Q", pfn << PAGE_SHIFT) in fdt and not page.startswith(blobs)
    ]
    return root


@dataclass
class Modelled:
    """A modelled host between freeze and jump."""

    kernel: Kernel
    content: bytes  # of file 1 in session "plain"

    def image(self) -> Image:
        handover = handover_of(self.kernel)
        pages = {
            pfn: bytes(handover.memory.page(pfn))
            for first, end in handover.extents()
            for pfn in range(first, end)
        }
        return image_of(pages, handover.fdt_pa)


def modelled_host(release: str = "7.3.4+hugetlb", guest_huge_pages: int = 2) -> Modelled:
    """A host with two sessions, plain and huge files in them, frozen."""
    cmdline = "kho=on liveupdate=on kho_scratch=32M,128M,32M hugepagesz=2M hugepages=8"
    machine = Machine(MachineSpec((GIB,), 2))
    clock = Clock(CostModel.load(), 2, 0)
    kernel = boot(machine, CATALOGUE[release], machine.cold_firmware(cmdline), clock, config=CONFIG)
    task = Task(kernel, "agent")
    device = task.open(DEV_LIVEUPDATE)
    session = task.create_session(device, "plain")
    content = bytes(range(256)) * 70  # four pages and a half
    plain = task.memfd_create(MFD_ALLOW_SEALING)
    task.ftruncate(plain, len(content))
    task.pwrite(plain, content, 0)
    task.add_seals(plain, 2)
    task.preserve_fd(session, plain, 1)
    task.lseek(plain, 77)
    task.preserve_fd(session, task.memfd_create(), 2)
    if release.endswith("+hugetlb"):
        huge = task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
        task.ftruncate(huge, guest_huge_pages * 2 * MIB)
        inode = task.files.fget(huge).inode
        assert isinstance(inode, HugetlbMemfdInode)
        inode.hugetlb.populate(0, 1)
        inode.guest_write(0, 1, GuestContent("guest", 1), 0)
        task.preserve_fd(task.create_session(device, "huge"), huge, 9)
    kexec.kexec_file_load(kernel, kernel.release, cmdline)
    kexec.kernel_kexec(kernel)
    return Modelled(kernel, content)
