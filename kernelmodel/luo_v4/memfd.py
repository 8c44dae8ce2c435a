"""Preserving plain memfds under LUO v4.

Happy path: PRESERVE_FD only takes a reference, so the file may still change in every way. PREPARE
does what 7.3 does at its PRESERVE_FD: freeze the inode's layout, pin and fill all pages, write the
folio table, preserve folios and table. FREEZE notes the last position; CANCEL undoes it all;
RESTORE_FD makes a memfd of it, and FINISH frees what nobody reclaimed.

Unhappy paths: those of the merged handler, at PREPARE. Two preserved descriptors of one memfd: the
second one's prepare is EBUSY, and with it the session's. A retrieve that failed has used up what
was preserved: another one is EIO.

Ours: the mechanics, the format and so the costs are the merged handler's, on purpose, so that two
designs differ in what they do and not in how memfds are written down; and that EBUSY.

C: mm/memfd_luo.c, proposal v4 of Sep 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.errors import Busy, IoError
from kernelmodel.fs import File
from kernelmodel.handlers.memfd import MemfdHandler
from kernelmodel.luo import handler as merged
from kernelmodel.luo_v4.handler import FileHandler, LuoFile
from kernelmodel.mm.shmem import ShmemInode

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["MemfdV4Handler"]

#: What a file keeps to itself once somebody tried to retrieve it.
_TRIED = "tried"


class MemfdV4Handler(FileHandler):
    """C: memfd_luo_file_ops of the proposal."""

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(compatible)
        self._merged = MemfdHandler(kernel, compatible)

    def can_preserve(self, file: File) -> bool:
        """A tmpfs file without a link, as memfds are."""
        return self._merged.can_preserve(file)

    def prepare(self, luo_file: LuoFile) -> int:
        """Freeze, pin, write, preserve. Raises: Busy, and as the merged handler's preserve."""
        assert luo_file.file is not None, "an outgoing file has one"
        inode = luo_file.file.inode
        if isinstance(inode, ShmemInode) and inode.frozen:
            raise Busy("prepared already through another descriptor", token=luo_file.token)
        same = merged.LuoFile(self._merged, luo_file.token, luo_file.file)
        self._merged.preserve(same)
        luo_file.private = same.private
        return same.data

    def freeze(self, luo_file: LuoFile) -> int:
        """The position as it is now."""
        self._merged.freeze(self._same(luo_file))
        return luo_file.data

    def cancel(self, luo_file: LuoFile) -> None:
        """Thaw, unpin, free the table."""
        self._merged.unpreserve(self._same(luo_file))
        luo_file.private = None

    def retrieve(self, luo_file: LuoFile) -> File:
        """A memfd with the preserved folios. Raises: IoError after a failure; the merged one's."""
        if luo_file.private is not None:
            raise IoError("an earlier attempt failed", token=luo_file.token)
        luo_file.private = _TRIED
        return self._merged.retrieve(self._same(luo_file))

    def finish(self, luo_file: LuoFile, *, reclaimed: bool) -> None:
        """Free what nobody asked for; a retrieve that failed has left nothing to free."""
        if luo_file.private is None:
            self._merged.finish(self._same(luo_file))

    def _same(self, luo_file: LuoFile) -> merged.LuoFile:
        """The file as the merged handler knows it."""
        return merged.LuoFile(
            self._merged, luo_file.token, luo_file.file, luo_file.data, luo_file.private
        )
