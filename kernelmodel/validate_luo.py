"""LUO's lists held against each other: sessions, descriptors, files, blocks, FLBs, frozen inodes.

Part of `kernelmodel.validate`, which says when it is called and what it raises.
"""

from __future__ import annotations

from collections import Counter

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.abi.kexec_handover import KhoBlockHeaderSer
from kernelmodel.abi.luo import LuoSer
from kernelmodel.abi.memfd import MemfdLuoSer
from kernelmodel.errors import ModelBug
from kernelmodel.fs import File
from kernelmodel.handlers.folio_table import PreservedFolios
from kernelmodel.kernel import Kernel
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.luo.file import LuoFileSet
from kernelmodel.luo.handler import FileHandler, LuoFile
from kernelmodel.luo.ioctl import LiveupdateDevice
from kernelmodel.luo.session import LuoSession
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.shmem import PG_DIRTY, PG_UPTODATE, ShmemInode

__all__ = ["validate_luo"]


def validate_luo(kernel: Kernel, files: list[File]) -> None:
    """`files` are all open files, of processes and of LUO, each once. Raises: ModelBug."""
    sessions = kernel.luo.sessions
    _validate_descriptors(kernel, files)
    _validate_ids(kernel)
    _validate_flbs(kernel)
    # a create that is refused as a duplicate leaves the block that it made room with
    _validate_blocks(kernel, "sessions", len(sessions.outgoing), sessions.outgoing_blocks, extra=1)
    for session in sessions.outgoing:
        file_set = session.file_set
        _validate_blocks(kernel, "files", len(file_set.files), file_set.block_set)
        _validate_tokens(file_set)
        for luo_file in file_set.files:
            _validate_outgoing(kernel, luo_file)
    for session in sessions.incoming:
        _validate_incoming(session.file_set)
    preserved = {id(f.file) for s in sessions.outgoing for f in s.file_set.files}
    inodes = {id(file.inode) for file in files if id(file) in preserved}
    for file in files:
        if _frozen(file) and id(file.inode) not in inodes and kernel.luo_v4 is None:
            raise ModelBug("a file is frozen that no session holds")


def _validate_descriptors(kernel: Kernel, files: list[File]) -> None:
    luo = kernel.luo
    openers = sum(isinstance(file.f_op, LiveupdateDevice) for file in files)
    if openers != int(luo.in_use):
        raise ModelBug(f"the device is open {openers} times")
    held = Counter(id(file.private) for file in files if isinstance(file.private, LuoSession))
    for session in luo.sessions.outgoing:
        if session.retrieved or held.pop(id(session), 0) != 1:
            raise ModelBug(f"outgoing {session!r} has not one descriptor's file")
    for session in luo.sessions.incoming:
        # one whose finish failed as it was closed stays, retrieved and out of reach
        if held.pop(id(session), 0) > int(session.retrieved):
            raise ModelBug(f"incoming {session!r} is open and not retrieved")
    if held:
        raise ModelBug("a descriptor's session is in no list")


def _validate_ids(kernel: Kernel) -> None:
    preserved: list[tuple[FileHandler, int]] = [
        (luo_file.handler, luo_file.handler.get_id(luo_file.file))
        for sessions in (kernel.luo.sessions.outgoing, kernel.luo.sessions.incoming)
        for session in sessions
        for luo_file in session.file_set.files
        if luo_file.file is not None
    ]
    if len(preserved) != len(set(preserved)) or set(preserved) != kernel.luo.preserved_ids:
        raise ModelBug("the preserved objects are not those of the sessions")


def _validate_flbs(kernel: Kernel) -> None:
    flbs = kernel.luo.flbs
    users = Counter(
        id(flb)
        for session in kernel.luo.sessions.outgoing
        for luo_file in session.file_set.files
        for flb in luo_file.handler.flbs
    )
    links = Counter(id(flb) for handler in kernel.luo.handlers for flb in handler.flbs)
    if {id(flb): flb.users for flb in flbs.registered} != dict(links):
        raise ModelBug("the FLBs are not those of the handlers")
    for flb in flbs.registered:
        if flb.outgoing_count != users[id(flb)] + flb.outgoing_gets:
            raise ModelBug(f"FLB {flb.name} counts {flb.outgoing_count}, has {users[id(flb)]}")
        if flb.outgoing_count == 0 and (flb.outgoing_data or flb.outgoing_obj is not None):
            raise ModelBug(f"FLB {flb.name} has data and no users")
    if kernel.luo.luo_ser_pa and kernel.luo.enabled:
        ser = LuoSer.unpack(kernel.memory.read(kernel.luo.luo_ser_pa, LuoSer.SIZE))
        if ser.flbs_pa != flbs.outgoing_pa:
            raise ModelBug("LUO's header names another table of FLBs")
        if ser.sessions_pa and not kernel.luo.sessions.serialized:
            raise ModelBug("sessions are handed over before they are serialised")


def _validate_blocks(
    kernel: Kernel, what: str, nr_entries: int, blocks: KhoBlockSet, extra: int = 0
) -> None:
    needed = -(-nr_entries // blocks.capacity)
    if not needed <= len(blocks.blocks) <= needed + extra:
        raise ModelBug(f"{nr_entries} {what} in {len(blocks.blocks)} blocks")
    for block, following in zip(blocks.blocks, [*blocks.blocks[1:], 0], strict=False):
        header = KhoBlockHeaderSer.unpack(kernel.memory.read(block, KhoBlockHeaderSer.SIZE))
        if header.next != following or header.count > blocks.capacity:
            raise ModelBug(f"block {block:#x} of {what} is linked wrongly")


def _validate_tokens(file_set: LuoFileSet) -> None:
    tokens = [luo_file.token for luo_file in file_set.files]
    if len(tokens) != len(set(tokens)):
        raise ModelBug("a token is used twice")


def _validate_outgoing(kernel: Kernel, luo_file: LuoFile) -> None:
    file = luo_file.file
    if file is None or luo_file.retrieve_status:
        raise ModelBug(f"token {luo_file.token} is preserved without a file")
    if not _frozen(file) and isinstance(file.inode, ShmemInode | HugetlbMemfdInode):
        raise ModelBug("a preserved file is not frozen")
    if isinstance(file.inode, ShmemInode) and isinstance(luo_file.private, PreservedFolios):
        _validate_memfd(kernel, luo_file, file.inode, luo_file.private)


def _validate_memfd(
    kernel: Kernel, luo_file: LuoFile, inode: ShmemInode, preserved: PreservedFolios
) -> None:
    """The entry in memory, the handler's books and the page cache say the same."""
    ser = MemfdLuoSer.unpack(kernel.memory.read(luo_file.data, MemfdLuoSer.SIZE))
    if (ser.size, ser.nr_folios) != (inode.size, preserved.nr_folios):
        raise ModelBug(f"token {luo_file.token}: the entry speaks of another file")
    mapped = inode.extents(0, inode.nr_size_pages)
    if any(flags != PG_DIRTY | PG_UPTODATE for *_, flags in mapped):
        raise ModelBug(f"token {luo_file.token}: a preserved page is not up to date")
    if [(index, pfn, nr) for index, pfn, nr, _ in mapped] != [
        (run.index, run.pfn, run.nr) for run in single_folio_runs(preserved.runs)
    ]:
        raise ModelBug(f"token {luo_file.token}: other pages are preserved than are mapped")
    if inode.nr_size_pages and not inode.pinned:
        raise ModelBug(f"token {luo_file.token}: preserved pages are not pinned")


def _validate_incoming(file_set: LuoFileSet) -> None:
    for luo_file in file_set.files:
        if (luo_file.retrieve_status > 0) != (luo_file.file is not None):
            raise ModelBug(f"token {luo_file.token} is retrieved and has no file, or has one")
    blocks = file_set.block_set
    if len(file_set.files) > len(blocks.blocks) * blocks.capacity:
        raise ModelBug(f"{len(file_set.files)} files came in {len(blocks.blocks)} blocks")


def _frozen(file: File) -> bool:
    inode = file.inode
    if isinstance(inode, HugetlbMemfdInode):
        return inode.hugetlb.frozen
    return isinstance(inode, ShmemInode) and inode.frozen
