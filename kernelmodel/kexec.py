"""Loading the next kernel and jumping into it.

Happy path: `kexec_file_load` chooses a place for every segment, inside KHO's scratch when KHO is
on, and keeps the image; `reboot` lets LUO freeze and serialise, `jump` shuts devices down, copies
the segments to their places and enters the new kernel, which knows memory and `Firmware`. A second
load replaces the first; KEXEC_FILE_UNLOAD drops it, unless KEXEC_FILE_ON_CRASH means the other.

Unhappy paths: segments that fit no scratch area are EADDRNOTAVAIL, an image that is no
relocatable kernel ENOEXEC, a reboot without an image EINVAL; a load that fails leaves the image
that was there. A freeze that fails returns its error from the reboot, and the old kernel goes on.

What the next kernel is told of scratch is fixed when it is loaded; what is preserved, it reads
from memory after the jump.

Simplification, *no crashkernel=*: no memory is ever kept for a crash kernel, so that loading one
is EADDRNOTAVAIL, as it is on a kernel that was booted without that parameter.

C: kernel/kexec_file.c, kernel/kexec_core.c, arch/x86/kernel/kexec-bzimage64.c, 7.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from kernelmodel.errors import AddressNotAvailable, InvalidArgument, KernelPanic, NoExec
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Firmware, Machine
from kernelmodel.memory import MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.releases import Release

__all__ = [
    "KernelImageContent",
    "KexecFileFlags",
    "Kimage",
    "Segment",
    "jump",
    "kernel_kexec",
    "kexec_file_load",
]

#: What a kernel takes, less the room that is left for `elfcorehdr=` even where none is added.
_COMMAND_LINE_MAX: Final = 2047 - 30
_MAGIC: Final = b"HdrS"
#: Offsets in the first page of a bzImage's setup header. C: struct setup_header.
_MAGIC_AT: Final = 0x202
_VERSION_AT: Final = 0x400
#: Behind it, what the code of this kernel does, in our own words: length, digest, description.
_CODE_AT: Final = 0x600
_DIGEST_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class KernelImageContent:
    """A kernel or initrd in memory: a header page that names it, then code nobody reads.

    `code` stands for the code of a kernel: what distinguishes its behaviour.
    """

    name: str
    code: bytes = b""

    def page(self, index: int) -> bytes:
        """The header on page 0; other pages repeat their number."""
        if index:
            return index.to_bytes(8, "little") * (PAGE_SIZE // 8)
        return _header_page(self.name, self.code)

    def key(self) -> bytes:
        """What the image is."""
        return b"image\0" + self.name.encode() + b"\0" + self.code


@lru_cache(maxsize=64)  # kernels are few
def _header_page(name: str, code: bytes) -> bytes:
    page = bytearray(PAGE_SIZE)
    page[_MAGIC_AT : _MAGIC_AT + 4] = _MAGIC
    text = name.encode() + b"\0"
    page[_VERSION_AT : _VERSION_AT + len(text)] = text
    code = _sealed(code)
    page[_CODE_AT : _CODE_AT + len(code)] = code
    assert len(page) == PAGE_SIZE
    return bytes(page)


@lru_cache(maxsize=64)
def _sealed(code: bytes) -> bytes:
    digest = blake2b(code, digest_size=_DIGEST_SIZE).digest()
    return len(code).to_bytes(2, "little") + digest + code


class KexecFileFlags(IntFlag):
    """C: KEXEC_FILE_* of include/uapi/linux/kexec.h. The last three change nothing here."""

    UNLOAD = 0x1
    ON_CRASH = 0x2
    NO_INITRAMFS = 0x4
    DEBUG = 0x8
    NO_CMA = 0x10
    FORCE_DTB = 0x20


# Plain integers: arithmetic on IntFlag members costs microseconds.
_KNOWN_FLAGS: Final = sum(KexecFileFlags)
_UNLOAD: Final = int(KexecFileFlags.UNLOAD)
_ON_CRASH: Final = int(KexecFileFlags.ON_CRASH)
_NO_INITRAMFS: Final = int(KexecFileFlags.NO_INITRAMFS)


class Segment(NamedTuple):
    """Where a piece of the image goes: [pa, pa + size)."""

    what: str
    pa: int
    size: int


@dataclass(frozen=True, slots=True)
class Kimage:
    """A loaded image. C: struct kimage.

    `scratch` is the array that the next kernel will find in the segment of that name.
    """

    release: Release
    cmdline: str
    segments: tuple[Segment, ...]
    scratch: bytes = b""

    def segment(self, what: str) -> Segment | None:
        """The segment of that name."""
        for segment in self.segments:
            if segment.what == what:
                return segment
        return None


def kexec_file_load(kernel: Kernel, release: Release, cmdline: str, flags: int = 0) -> None:
    """kexec_file_load(2). C: kimage_file_alloc_init(), bzImage64_load().

    Raises:
        InvalidArgument: unknown flags; the command line is longer than a kernel takes.
        NoExec: not a kernel that can be loaded.
        AddressNotAvailable: no room in scratch.
    """
    if flags & ~_KNOWN_FLAGS:
        raise InvalidArgument("unknown flags", flags=flags)
    if flags & _UNLOAD:
        if not flags & _ON_CRASH:
            kernel.kexec_image = None
        return
    if not release.relocatable:
        raise NoExec("not a relocatable kernel", release=release.name)
    config = kernel.config
    kernel.charge("kexec_file_load", (config.kernel_bytes + config.initrd_bytes) // MIB)
    kernel.fail_function("kexec_file_load")
    holes = _holes(kernel, flags)
    placed: list[Segment] = []
    array = b"".join(area.pack() for area in kernel.kho.scratch)
    if kernel.kho.enabled and not flags & _ON_CRASH:
        _place(holes, placed, "scratch", len(array), 64 << 10, 0)
    if len(cmdline.encode()) + 1 > _COMMAND_LINE_MAX:
        raise InvalidArgument("command line is too long", length=len(cmdline))
    _place(holes, placed, "purgatory", 5 * PAGE_SIZE, PAGE_SIZE, 0x3000)
    _place(holes, placed, "boot_params", 2 * PAGE_SIZE, PAGE_SIZE, 0x3000)
    _place(holes, placed, "kernel", config.kernel_bytes, 2 * MIB, 16 * MIB)
    if not flags & _NO_INITRAMFS:
        _place(holes, placed, "initrd", config.initrd_bytes, PAGE_SIZE, 16 * MIB)
    kernel.kexec_image = Kimage(release, cmdline, tuple(placed), array)


def _holes(kernel: Kernel, flags: int) -> list[tuple[int, int]]:
    """Where segments may go as (start, end), in the order in which it is tried."""
    if flags & _ON_CRASH:
        return []
    if kernel.kho.enabled:
        return [(area.addr, area.addr + area.size) for area in kernel.kho.scratch]
    return [(ram.base, ram.end) for ram in reversed(kernel.firmware.memory_map)]


def _place(
    holes: list[tuple[int, int]], placed: list[Segment], what: str, size: int, align: int, low: int
) -> None:
    """Find a hole and add the segment. C: kexec_locate_mem_hole(), kho_locate_mem_hole()."""
    size = -(-size // PAGE_SIZE) * PAGE_SIZE
    for start, end in holes:
        floor = max(start, low)
        at = end - size & -align
        while at >= floor:
            for other in placed:
                if other.pa < at + size and at < other.pa + other.size:
                    at = other.pa - size & -align
                    break
            else:
                placed.append(Segment(what, at, size))
                return
    raise AddressNotAvailable("segment fits no scratch area", segment=what, size=size)


def kernel_kexec(kernel: Kernel) -> Kimage:
    """reboot(LINUX_REBOOT_CMD_KEXEC) up to the point of no return. C: kernel_kexec().

    Raises:
        InvalidArgument: nothing is loaded. Others: what a file's freeze said; nothing changed.
    """
    if kernel.kexec_image is None:
        raise InvalidArgument("no image is loaded")
    kernel.live_update.reboot()
    return kernel.kexec_image


def jump(kernel: Kernel, image: Kimage) -> tuple[Release, Firmware]:
    """Shut down, copy the segments, enter the new kernel; what it is given.

    C: kernel_restart_prepare(), machine_kexec(), purgatory. The release is read back from the
    bytes at the entry point: whatever lies there is what runs.

    Raises:
        KernelPanic: what lies at the entry point is no kernel.
    """
    memory, clock = kernel.memory, kernel.clock
    clock.charge("kernel_restart_prepare")
    for segment in image.segments:
        pfn, nr_pages = segment.pa >> PAGE_SHIFT, segment.size >> PAGE_SHIFT
        if segment.what == "kernel":
            release = image.release
            memory.fill(pfn, nr_pages, KernelImageContent(release.name, release.pack()))
        elif segment.what == "initrd":
            memory.fill(pfn, nr_pages, KernelImageContent(f"initrd of {image.release.name}"))
        else:
            memory.zero(pfn, nr_pages)
    scratch, entry = image.segment("scratch"), image.segment("kernel")
    initrd = image.segment("initrd")
    handover = scratch is not None and bool(kernel.kho.fdt_pa)
    if scratch is not None and handover:
        memory.write(scratch.pa, image.scratch)
    clock.charge("machine_kexec")
    if scratch is None:  # with KHO the purgatory skips its checksum
        clock.charge("purgatory_sha256", sum(s.size for s in image.segments) // MIB)
    clock.charge("decompress_kernel", kernel.config.kernel_bytes // MIB)
    assert entry is not None
    firmware = Firmware(
        image.cmdline,
        kernel.firmware.memory_map,
        fdt=(kernel.kho.fdt_pa, PAGE_SIZE) if handover else None,
        scratch=(scratch.pa, len(image.scratch)) if scratch is not None and handover else None,
        kernel=(entry.pa, entry.size),
        initrd=(initrd.pa, initrd.size) if initrd is not None else None,
    )
    return release_at(kernel.machine, entry.pa), firmware


def release_at(machine: Machine, pa: int) -> Release:
    """The kernel whose image lies at `pa`.

    Raises:
        KernelPanic: no kernel that this machine could run.
    """
    page = machine.memory.read(pa, PAGE_SIZE)
    start = _CODE_AT + 2 + _DIGEST_SIZE
    code = page[start : start + int.from_bytes(page[_CODE_AT : _CODE_AT + 2], "little")]
    intact = bool(code) and page[_CODE_AT:].startswith(_sealed(code))
    if page[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC or not intact:
        raise KernelPanic("triple fault: no kernel at the entry point")
    return Release.unpack(code)
