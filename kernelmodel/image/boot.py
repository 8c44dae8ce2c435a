"""Booting a modelled host from an image, and retrieving everything that is in it.

An image has neither a memory map nor scratch nor a kernel to boot, so a `BootPlan` makes them up:
memory that holds every frame of the image and some gigabytes more, scratch that is clear of all
of them, and in it the scratch array, a kernel and an initrd, where a loader could have put them.
The image's frames are memory content like any other and are read when the kernel reads them.

What comes of it is what would come of it on a host: the kernel may panic, the device may answer
EIO, a file may not come back. A plan that makes no sense is `CannotBoot`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from kernelmodel.abi.kexec_handover import KhoScratch
from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo import LIVEUPDATE_RETRIEVE_SESSION
from kernelmodel.boot import boot
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.image.fnv import FNV_BASIS, fnv1a, fnv1a_zeroes
from kernelmodel.image.frames import Frames, Image, SpanFrames
from kernelmodel.inspect.handover import preserved_frames
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.luo.liveupdate_test import TEST_FLB_NAMES
from kernelmodel.luo.session import LuoSession
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, MemoryRange, PhysicalMemory
from kernelmodel.mm.guest_memfd import GuestHugetlbInode, GuestMemfdInode
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.ranges import RangeSet
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.releases import CATALOGUE, known_releases
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task

__all__ = ["BootPlan", "CannotBoot", "boot_image", "plan_boot"]

_CPUS: Final = 2
_KERNEL_BYTES: Final = 32 * MIB
_INITRD_BYTES: Final = 8 * MIB
_ALIGN: Final = 4 * MIB
#: Early boot needs a 64th of memory for struct pages, and this much for the rest.
_SCRATCH_BASE: Final = 256 * MIB
_STRUCT_PAGE_PART: Final = 48
#: Frames above are not there for the kernel, which is what they would be on a machine.
_TOP_MAX: Final = 16 << 40
_BIOS_HOLE: Final = (640 * KIB, MIB)
_SIZES: Final = {"9": "2M", "18": "1G"}
_BATCH: Final = 16


class CannotBoot(ValueError):
    """The options make no sense; the message has a line for each reason."""


@dataclass(frozen=True, slots=True)
class BootPlan:
    """What a booting kernel finds beside the image. Addresses and sizes in bytes."""

    release: str
    cmdline: str
    config: KernelConfig
    memory_map: tuple[MemoryRange, ...]
    scratch: tuple[KhoScratch, ...]
    array_pa: int
    kernel_pa: int
    initrd_pa: int


@dataclass(frozen=True, slots=True)
class _ImageContent:
    """Frames of an image, `first` being page 0."""

    frames: Frames
    first: int

    def page(self, index: int) -> bytes:
        return self.frames.frame(self.first + index) or bytes(PAGE_SIZE)

    def key(self) -> bytes:
        return b"image\0" + self.first.to_bytes(8, "little")


def plan_boot(
    image: Image,
    said: dict[str, Any],
    *,
    release: str = "",
    memory_map: tuple[MemoryRange, ...] = (),
    scratch: tuple[KhoScratch, ...] = (),
) -> BootPlan:
    """A plan for an image of which `said` is what inspecting it gave.

    Raises:
        CannotBoot: scratch or memory do not fit the image.
    """
    if release and release not in CATALOGUE:
        raise CannotBoot(f"there is no release {release!r}; known are {known_releases()}")
    busy = _busy(image)
    if not memory_map:
        memory_map = _default_map(busy, scratch)
    ram = RangeSet((part.base, part.end) for part in memory_map)
    if not scratch:
        scratch = (_default_scratch(ram, busy),)
    wrong = [why for area in scratch if (why := _why_wrong(area, ram, busy))]
    if wrong:
        raise CannotBoot("\n".join(wrong))
    places = []
    taken = RangeSet()
    for what, size, align in (
        ("the scratch array", KhoScratch.SIZE * len(scratch), PAGE_SIZE),
        ("a kernel", _KERNEL_BYTES, 2 * MIB),
        ("an initrd", _INITRD_BYTES, PAGE_SIZE),
    ):
        places.append(_place(scratch, taken, what, size, align))
    flbs = {name for name, _ in said["flbs"]}
    return BootPlan(
        release=release or ("7.3.4+hugetlb" if _has_proposal(said) else "7.3.4"),
        cmdline=_cmdline(said),
        config=KernelConfig(
            liveupdate_test=not flbs.isdisjoint(TEST_FLB_NAMES),
            kernel_bytes=_KERNEL_BYTES,
            initrd_bytes=_INITRD_BYTES,
        ),
        memory_map=memory_map,
        scratch=scratch,
        array_pa=places[0],
        kernel_pa=places[1],
        initrd_pa=places[2],
    )


def _has_proposal(said: dict[str, Any]) -> bool:
    return any(name == "hugetlb-v1" for name, _ in said["flbs"]) or any(
        file["compatible"] == "huge-memfd-v1"
        for session in said["sessions"]
        for file in session["files"]
    )


def _cmdline(said: dict[str, Any]) -> str:
    """Huge pages as many as are preserved: none beyond them is allocated."""
    words = ["kho=on", "liveupdate=on"]
    for order, count in said.get("hugetlb", {}).items():
        if order in _SIZES:
            words += [f"hugepagesz={_SIZES[order]}", f"hugepages={min(count, 1 << 32)}"]
    return " ".join(words)


def _busy(image: Image) -> RangeSet:
    """What scratch must be clear of, in bytes: what is preserved, and all frames of a sparse image.

    A dump of memory has all frames, and those that nobody preserved are free.
    """
    preserved, nodes = preserved_frames(image)
    busy = RangeSet((first << PAGE_SHIFT, end << PAGE_SHIFT) for first, end in preserved)
    for pfn in nodes:
        busy.add(pfn << PAGE_SHIFT, pfn + 1 << PAGE_SHIFT)
    if not isinstance(image.frames, SpanFrames):
        for first, end in image.frames.held(0, _TOP_MAX >> PAGE_SHIFT):
            busy.add(first << PAGE_SHIFT, end << PAGE_SHIFT)
    busy.remove(_TOP_MAX, 1 << 64)
    return busy


def _default_map(busy: RangeSet, scratch: tuple[KhoScratch, ...]) -> tuple[MemoryRange, ...]:
    """Memory up to behind the last frame, with room for scratch above it; one node."""
    ends = [end for _, end in busy] + [area.addr + area.size for area in scratch]
    top = -(-max([*ends, GIB]) // GIB) * GIB
    top += -(-_scratch_size(top + 2 * GIB) // GIB) * GIB
    low, high = _BIOS_HOLE
    if busy.overlaps(low, high):
        return (MemoryRange(0, top, 0),)
    return (MemoryRange(0, low, 0), MemoryRange(high, top - high, 0))


def _scratch_size(memory_bytes: int) -> int:
    return _SCRATCH_BASE + -(-memory_bytes // _STRUCT_PAGE_PART // _ALIGN) * _ALIGN


def _default_scratch(ram: RangeSet, busy: RangeSet) -> KhoScratch:
    """The highest place that is clear of the image."""
    size = _scratch_size(ram.total)
    free = ram.copy()
    free.remove(0, MIB)
    for first, end in busy:
        free.remove(first, end)
    for first, end in reversed(free):
        at = (end - size) & -_ALIGN
        if at >= first:
            return KhoScratch(at, size)
    raise CannotBoot(
        f"memory has no {size // MIB} MiB for scratch that are clear of the image's frames; "
        "give more memory, or smaller scratch where there is room"
    )


def _why_wrong(area: KhoScratch, ram: RangeSet, busy: RangeSet) -> str:
    name = f"scratch {area.addr:#x}+{area.size:#x}"
    end = area.addr + area.size
    if area.size == 0 or area.addr % PAGE_SIZE or area.size % PAGE_SIZE:
        return f"{name} is not made of whole pages"
    if not ram.contains(area.addr, end):
        return f"{name} is not in memory"
    for first, stop in busy.within(area.addr, end):
        return f"{name} is not clear of the image, which has {first:#x}–{stop - 1:#x}"
    return ""


def _place(
    scratch: tuple[KhoScratch, ...], taken: RangeSet, what: str, size: int, align: int
) -> int:
    for area in scratch:
        for low, high in taken.gaps(area.addr, area.addr + area.size):
            at = low + align - 1 & -align
            if at + size <= high:
                taken.add(at, at + size)
                return at
    raise CannotBoot(f"scratch has no room for {what} of {-(-size // KIB)} KiB")


def boot_image(image: Image, plan: BootPlan) -> dict[str, Any]:
    """Boot and retrieve; what came of it, ready for JSON."""
    machine = Machine(MachineSpec((GIB,), _CPUS))
    machine.memory = PhysicalMemory(plan.memory_map)
    for part in plan.memory_map:
        pfn, nr_pages = part.base >> PAGE_SHIFT, part.size >> PAGE_SHIFT
        for low, high in image.frames.held(pfn, nr_pages):
            machine.memory.fill(low, high - low, _ImageContent(image.frames, low))
    array = b"".join(area.pack() for area in plan.scratch)
    machine.memory.write(plan.array_pa, array)
    firmware = Firmware(
        plan.cmdline,
        plan.memory_map,
        fdt=(image.fdt_pa, PAGE_SIZE),
        scratch=(plan.array_pa, len(array)),
        kernel=(plan.kernel_pa, _KERNEL_BYTES),
        initrd=(plan.initrd_pa, _INITRD_BYTES),
    )
    said: dict[str, Any] = {
        "release": plan.release,
        "cmdline": plan.cmdline,
        "memory": [[part.base, part.size] for part in plan.memory_map],
        "scratch": [[area.addr, area.size] for area in plan.scratch],
        "outcome": "up",
        "sessions": [],
        "messages": [],
    }
    clock = Clock(CostModel.load(), _CPUS, 0, ("image",))
    try:
        kernel = boot(machine, CATALOGUE[plan.release], firmware, clock, config=plan.config)
        said["messages"] = kernel.messages
        said["liveupdate_num"] = kernel.luo.liveupdate_num
        _retrieve_all(kernel, said)
    except KernelPanic as panic:
        said["outcome"] = f"panic: {panic}"
    return said


def _retrieve_all(kernel: Kernel, said: dict[str, Any]) -> None:
    task = Task(kernel, "inspect")
    try:
        device = task.open(DEV_LIVEUPDATE)
    except KernelError as error:
        said["outcome"] = f"up, but {DEV_LIVEUPDATE} says {error.name}"
        return
    for session in list(kernel.luo.sessions.incoming):
        entry: dict[str, Any] = {"name": cstring(session.name).decode(errors="replace")}
        said["sessions"].append(entry)
        try:
            arg = bytearray(struct.pack("<Ii64s", 72, 0, session.name))
            task.ioctl(device, LIVEUPDATE_RETRIEVE_SESSION, arg)
            fd = int.from_bytes(arg[4:8], "little", signed=True)
            entry["files"] = []
            entry["files"].extend(_files(kernel, task, session, fd))
            task.finish_session(fd)
        except KernelError as error:
            entry["error"] = error.name


def _files(kernel: Kernel, task: Task, session: LuoSession, fd: int) -> Iterator[dict[str, Any]]:
    for luo_file in list(session.file_set.files):
        said: dict[str, Any] = {"compatible": luo_file.handler.compatible, "token": luo_file.token}
        try:
            file = task.files.fget(task.retrieve_fd(fd, luo_file.token))
        except KernelError as error:
            yield {**said, "error": error.name}
            continue
        inode, seals = file.inode, None
        if isinstance(inode, ShmemInode):
            runs = [(at, pfn, nr) for at, pfn, nr, _ in inode.extents(0, inode.nr_size_pages)]
            seals = inode.seals
        elif isinstance(inode, GuestMemfdInode):
            runs = inode.extents(0, inode.size >> PAGE_SHIFT)
        elif isinstance(inode, HugetlbMemfdInode | GuestHugetlbInode):
            order = inode.hugetlb.hstate.order
            runs = [(at << order, pfn, nr << order) for at, pfn, nr in inode.hugetlb.folios.runs()]
        else:  # a VM, which has no content
            yield said
            continue
        size = inode.size
        said |= {"pos": file.f_pos, "size": size}
        if seals is not None:
            said["seals"] = seals
        yield {**said, "fnv1a": f"{_hash(kernel.memory, runs, size):016x}"}


def _hash(memory: PhysicalMemory, runs: Iterable[tuple[int, int, int]], size: int) -> int:
    """The hash of a file whose pages are `runs` (page, frame, pages), ascending."""
    digest, at = FNV_BASIS, 0
    for index, pfn, nr_pages in runs:
        nr = min(nr_pages, -(-size // PAGE_SIZE) - index)
        for frame, frames, content, _ in memory.segments(pfn, nr) if nr > 0 else ():
            page = index + frame - pfn
            if content is None and frames > 1:
                continue  # nothing was ever written there
            digest = fnv1a_zeroes(digest, (page << PAGE_SHIFT) - at)
            for start in range(0, frames, _BATCH):
                nr_read = min(_BATCH, frames - start)
                data = memory.read(frame + start << PAGE_SHIFT, nr_read << PAGE_SHIFT)
                at = page + start << PAGE_SHIFT
                digest = fnv1a(digest, data[: size - at])
                at += len(data)
    return fnv1a_zeroes(digest, max(0, size - at))
