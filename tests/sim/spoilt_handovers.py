"""Handovers that were spoilt by chance, and kernels that boot from them.

An image is one of a few handovers of small hosts and a list of numbers, each the seed of one change
made to it: `plain:17.204` is the handover `plain` after the changes 17 and 204. The changes flip
bits, put absurd or misleading values where something stands, take pages away or exchange them, set
and clear keys, tamper with firmware data, or are corruptions of the catalogue.

`boot_and_use` boots a kernel from an image and does with it what an agent would: it retrieves
everything, lets go of some, and with some images preserves again and goes through one more kexec.
What may come of it is any outcome that a kernel has; anything else is a finding.

    python -m tests.sim.spoilt_handovers IMAGE…      what comes of these images
"""

from __future__ import annotations

import random
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from kernelmodel import kexec
from kernelmodel.abi.layout import cstring
from kernelmodel.abi.luo import LIVEUPDATE_RETRIEVE_SESSION
from kernelmodel.boot import boot
from kernelmodel.corruptions.handed_over import HandedOver
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import MIB, PAGE_SHIFT, PAGE_SIZE, Content, GuestContent, PhysicalMemory
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from kernelmodel.validate import validate_kernel
from tests.sim.spoiling import spoil

CONFIG = KernelConfig(
    kexec_handover_debug=True, liveupdate_test=True, kernel_bytes=2 * MIB, initrd_bytes=MIB
)
SPEC = MachineSpec((128 * MIB,), 2)
CMDLINE = "kho=on liveupdate=on kho_scratch=8M,16M,4M hugepagesz=2M hugepages=3"


@dataclass(frozen=True, slots=True)
class Sound:
    """A handover as a kernel left it: what is in memory, and what firmware hands over."""

    release: Release
    pages: dict[int, bytes]
    runs: tuple[tuple[int, int, Content, int], ...]
    firmware: Firmware
    handed_over: HandedOver
    #: Tokens of the files in each session.
    sessions: dict[str, list[int]]
    #: Frames of everything but files' content, and of that.
    metadata: tuple[int, ...]
    content: tuple[int, ...]

    def memory(self) -> PhysicalMemory:
        """The memory, anew."""
        memory = PhysicalMemory(SPEC.memory_map())
        for pfn, nr_pages, content, first in self.runs:
            memory.fill(pfn, nr_pages, content, first)
        for pfn, page in self.pages.items():
            memory.write(pfn * PAGE_SIZE, page)
        return memory


def _power_on(release: str) -> Kernel:
    machine = Machine(SPEC)
    firmware = machine.cold_firmware(CMDLINE)
    return boot(machine, CATALOGUE[release], firmware, _clock(), config=CONFIG)


@cache
def _costs() -> CostModel:
    return CostModel.load()


def _clock() -> Clock:
    return Clock(_costs(), SPEC.cpus, 0)


def _memfd(task: Task, size: int, content: bytes = b"") -> int:
    fd = task.memfd_create(MFD_ALLOW_SEALING)
    task.ftruncate(fd, size)
    task.pwrite(fd, content, 0)
    return fd


def _fill(task: Task, kind: str) -> None:
    device = task.open(DEV_LIVEUPDATE)
    for nr in range(53 if kind == "long" else 2):
        session = task.create_session(device, f"session-{nr}")
        nr_files = 66 if kind == "long" and nr == 1 else 3 if nr < 2 else 0
        for token in range(nr_files):
            size = (0, 5000, 20000)[token % 3] if token < 6 else 0
            fd = _memfd(task, size, bytes([nr + 1, token + 1]) * (size // 2))
            task.preserve_fd(session, fd, token)
            task.lseek(fd, 77 * token)
    if kind in _RELEASES:
        huge = task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
        task.ftruncate(huge, 4 * MIB)
        inode = task.files.fget(huge).inode
        assert isinstance(inode, HugetlbMemfdInode)
        inode.hugetlb.populate(0, 2)
        inode.guest_write(0, 2, GuestContent("guest", 1), 0)
        task.preserve_fd(task.create_session(device, "huge"), huge, 9)


#: Kinds with a file on huge pages, and the release whose proposal hands it over.
_RELEASES = {
    "huge": "7.3.4+hugetlb",
    "frozen": "7.3.4+frozen-pool",
    "ours": "7.3.4+ours",
}


@cache
def sound(kind: str) -> Sound:
    """`plain`: two sessions; `long`: chains of two blocks; others: with a hugetlb proposal."""
    kernel = _power_on(_RELEASES.get(kind, "7.3.4"))
    _fill(Task(kernel, "agent"), kind)
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
    release, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    memory = kernel.memory
    assert firmware.fdt is not None
    assert firmware.scratch is not None
    handed = HandedOver(memory, firmware.fdt[0], firmware.scratch, firmware.memory_map)
    folios = {
        handed.folio_pfn(memfd, index)
        for memfd in handed.memfds()
        for index in range(memfd.ser.nr_folios)
    }
    preserved = {pfn for pfn, order in handed.preserved() if order == 0}
    nodes = {node.pa >> PAGE_SHIFT for node in handed.nodes()}
    return Sound(
        release,
        {pfn: bytes(page) for pfn, page in memory._pages.items()},
        tuple((pfn, nr, held, at) for pfn, nr, held, at in memory._pieces if held is not None),
        firmware,
        handed,
        {
            cstring(session.ser.name).decode(): [f.ser.token for f in handed.files(session)]
            for session in handed.sessions()
        },
        tuple(sorted(preserved - folios | nodes | {handed.scratch[0] >> PAGE_SHIFT})),
        tuple(sorted(folios)),
    )


#: The long chains take five times as long as the others.
KINDS = ("plain",) * 20 + ("huge",) * 4 + ("long", "frozen", "ours")


@dataclass(frozen=True, slots=True)
class SpoiltImage:
    """Which handover, and the seeds of the changes made to it."""

    kind: str
    changes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{'.'.join(map(str, self.changes))}"

    @classmethod
    def parse(cls, text: str) -> SpoiltImage:
        """What `str` of an image gave."""
        kind, _, changes = text.partition(":")
        return cls(kind, tuple(int(change) for change in changes.split(".") if change))


def boot_and_use(image: SpoiltImage) -> list[str]:
    """What came of it, in words that do not depend on addresses.

    Raises nothing that is an outcome of a kernel's: whatever it raises is a finding.
    """
    given = sound(image.kind)
    machine = Machine(SPEC)
    machine.memory = given.memory()
    firmware = given.firmware
    for change in image.changes:
        firmware = spoil(random.Random(change), given, machine.memory, firmware)
    said: list[str] = []
    rng = random.Random(sum(image.changes))
    kernel = None
    try:
        kernel = boot(machine, given.release, firmware, _clock(), config=CONFIG)
        said.append("up, revived" if kernel.kho.incoming is not None else "up, as after power-on")
        task = Task(kernel, "agent")
        if rng.random() < 0.2:
            _check(kernel, task)
        said += _use(kernel, task, rng, preserves=(further := rng.random() < 0.4))
        _check(kernel, task)
        if not further:
            return [*said, *_warnings(kernel)]
        said.append("again")
        kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
        release, again = kexec.jump(kernel, kexec.kernel_kexec(kernel))
        kernel = boot(machine, release, again, kernel.clock, config=CONFIG)
        task = Task(kernel, "agent")
        said += _use(kernel, task, rng, preserves=False)
        _check(kernel, task)
    except KernelPanic as panic:
        said.append(f"panic: {_without_numbers(str(panic))}")
    except KernelError as refused:
        said.append(refused.name)
    return [*said, *_warnings(kernel)]


def _check(kernel: Kernel, task: Task) -> None:
    """Every invariant, unless the handover made the kernel write into somebody else's page."""
    if not kernel.overran:
        validate_kernel(kernel, [task])


def _warnings(kernel: Kernel | None) -> list[str]:
    messages = kernel.messages if kernel is not None else []
    return sorted({_without_numbers(message) for message in messages})


#: What a spoilt word says, too: names are read from memory.
_NUMBER = re.compile(r"'[^']*'|0x[0-9a-f]+|[0-9]+")


def _without_numbers(text: str) -> str:
    return _NUMBER.sub("…", text)


def _use(kernel: Kernel, task: Task, rng: random.Random, *, preserves: bool) -> Iterator[str]:
    """Retrieve everything, look at it, let go of some, preserve again."""
    try:
        device = task.open(DEV_LIVEUPDATE)
    except KernelError as refused:
        yield f"open {refused.name}"
        return
    fds: list[int] = []
    for session in list(kernel.luo.sessions.incoming):
        arg = bytearray(struct.pack("<Ii64s", 72, 0, session.name))
        try:
            task.ioctl(device, LIVEUPDATE_RETRIEVE_SESSION, arg)
        except KernelError as refused:
            yield f"session {refused.name}"
            continue
        fd = int.from_bytes(arg[4:8], "little", signed=True)
        for luo_file in list(session.file_set.files):
            if rng.random() < 0.9:
                yield _retrieve(task, fd, luo_file.token, fds)
        ending = rng.randrange(4)
        if ending < 3:
            yield f"end {_said(lambda: task.finish_session(fd) if ending else task.close(fd))}"  # noqa: B023
    if preserves:
        yield from _preserve_again(task, device, fds, rng)


def _retrieve(task: Task, session: int, token: int, fds: list[int]) -> str:
    try:
        fd = task.retrieve_fd(session, token)
    except KernelError as refused:
        return refused.name
    fds.append(fd)
    inode = task.files.fget(fd).inode
    size = getattr(inode, "size", 0)
    if not isinstance(inode, HugetlbMemfdInode):
        task.pread(fd, PAGE_SIZE, 0)
        task.pread(fd, 3 * PAGE_SIZE, min(max(0, size - PAGE_SIZE), (1 << 63) - 1))
        task.get_seals(fd)
    return f"file of 2^{size.bit_length()}"


def _preserve_again(task: Task, device: int, fds: list[int], rng: random.Random) -> Iterator[str]:
    session = task.create_session(device, "again")
    for fd in fds[:20]:
        yield f"write {_said(lambda: task.pwrite(fd, b'again', rng.randrange(9000)))}"  # noqa: B023
        if rng.random() < 0.2:
            yield f"cut {_said(lambda: task.ftruncate(fd, 4096))}"  # noqa: B023
        yield f"preserve {_said(lambda: task.preserve_fd(session, fd, fd))}"  # noqa: B023
        if rng.random() < 0.2:
            task.close(fd)
    fresh = _memfd(task, 9000, b"fresh" * 1000)
    yield f"fresh {_said(lambda: task.preserve_fd(session, fresh, 1 << 40))}"


def _said(call: object) -> str:
    assert callable(call)
    try:
        call()
    except KernelError as refused:
        return refused.name
    return "ok"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, *boot_and_use(SpoiltImage.parse(name)), sep="\n  ")
