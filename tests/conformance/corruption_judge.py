"""What an agent and an operator see of a kernel that boots from a corrupted handover."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from kernelmodel import kexec
from kernelmodel.abi.luo import LIVEUPDATE_RETRIEVE_SESSION
from kernelmodel.boot import boot
from kernelmodel.corruptions.catalogue import corrupt
from kernelmodel.corruptions.corruption import Corruption
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Machine
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from kernelmodel.validate import validate_kernel
from tests.sim.spoilt_handovers import CMDLINE, CONFIG, SPEC, sound


@dataclass(frozen=True)
class Seen:
    """One boot, seen from outside and, for memory, from inside.

    `files` are (session, token) → an errno's name or (size, position, seals, hash of content);
    a session that cannot be retrieved stands there without a token. `panic` is how the kernel
    ended, "" if it did not; `again` the answers when everything was asked a second time.
    """

    panic: str = ""
    open: str = "ok"
    number: int = 0
    files: dict[tuple[str, int | None], object] = field(default_factory=dict)
    again: dict[tuple[str, int | None], object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: Pages that stay reserved or in use for nobody once all sessions are finished.
    lost_pages: int = 0
    #: What this kernel tells the next one.
    kexec_count: int = 0


def look(kind: str, corruption: Corruption | None) -> Seen:
    """Boot from a handover with a corruption, retrieve and finish everything, kexec once more.

    Raises:
        NotThere: this handover has nothing to corrupt so.
    """
    given = sound(kind)
    machine = Machine(SPEC)
    machine.memory = given.memory()
    firmware = given.firmware
    if corruption is not None:
        firmware = corrupt(corruption, machine.memory, firmware)
    clock = Clock(CostModel.load(), SPEC.cpus, 0)
    try:
        kernel = boot(machine, given.release, firmware, clock, config=CONFIG)
    except KernelPanic as panic:
        return Seen(panic=str(panic))
    seen = Seen()
    task = Task(kernel, "agent")
    try:
        device = task.open(DEV_LIVEUPDATE)
    except KernelPanic as panic:
        return Seen(panic=str(panic))
    except KernelError as refused:
        seen = replace(seen, open=refused.name)
    else:
        try:
            fds = _retrieve(kind, task, device, seen.files)
            for session, token in list(seen.files):
                if token is not None and session in fds:
                    seen.again[session, token] = _fetch(task, fds[session], token)
            for fd in fds.values():
                task.finish_session(fd)
        except KernelPanic as panic:
            return replace(seen, panic=str(panic))
    validate_kernel(kernel, [task])
    seen = replace(
        seen,
        number=kernel.luo.liveupdate_num,
        warnings=tuple(text for text in kernel.messages if text.startswith("WARNING")),
        lost_pages=_lost(kernel),
    )
    kexec.kexec_file_load(kernel, kernel.release, CMDLINE)
    after = boot(machine, *kexec.jump(kernel, kexec.kernel_kexec(kernel)), clock, config=CONFIG)
    metadata = after.kho.kexec_metadata()
    assert metadata is not None
    return replace(seen, kexec_count=metadata.kexec_count)


def _lost(kernel: Kernel) -> int:
    waiting = sum(last - first for first, last, _ in kernel.kho.tags)
    return waiting + kernel.kho.tags.untagged.total + kernel.kho.leaked.total


def _retrieve(
    kind: str, task: Task, device: int, files: dict[tuple[str, int | None], object]
) -> dict[str, int]:
    """Ask for all that was handed over; descriptors of the sessions that there are."""
    fds: dict[str, int] = {}
    for session, tokens in sound(kind).sessions.items():
        arg = bytearray(struct.pack("<Ii64s", 72, 0, session.encode()))
        try:
            task.ioctl(device, LIVEUPDATE_RETRIEVE_SESSION, arg)
        except KernelError as refused:
            files[session, None] = refused.name
            continue
        fds[session] = int.from_bytes(arg[4:8], "little", signed=True)
        for token in tokens:
            files[session, token] = _fetch(task, fds[session], token)
    return fds


def _fetch(task: Task, session: int, token: int) -> object:
    try:
        fd = task.retrieve_fd(session, token)
    except KernelError as refused:
        return refused.name
    inode = task.files.fget(fd).inode
    if isinstance(inode, HugetlbMemfdInode):
        return inode.size, task.lseek_cur(fd), None, hash(inode.read(0, 3 * PAGE_SIZE))
    content = task.pread(fd, 16 * PAGE_SIZE, 0)
    size = getattr(inode, "size", None)
    return size, task.lseek_cur(fd), task.get_seals(fd), hash(content)
