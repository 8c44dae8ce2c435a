"""A file handler of the merged LUO at work under LUO v4.

The two differ in when a handler is asked and not in what is to be done with a file, so one handler
serves both, with the same bytes and the same costs: two designs then differ in themselves, and not
in how a file is written down.

| LUO v4 | asks the merged handler to |
|---|---|
| PRESERVE_FD | `can_preserve`; with `at_preserve_fd` also `preserve` |
| PREPARE | `preserve`, unless that was done |
| FREEZE | `freeze` |
| CANCEL | `unfreeze` a frozen file; `unpreserve`, unless `at_preserve_fd` |
| UNPRESERVE_FD, session closed | `unpreserve`, with `at_preserve_fd` |
| RESTORE_FD | `retrieve` |
| FINISH | `finish`, which sees from the file's status whether it was retrieved |

PRESERVE_FD takes a reference and nothing more as v4 has it: the file may still change in every
way. `at_preserve_fd` is the extension of 7 Oct 2025, heavy work long before PREPARE.

Unhappy paths: one object preserved twice is EBUSY where the work is done, at PREPARE as v4 has it,
which fails with it. A retrieve that failed has used up what was preserved: another one is EIO.

Ours: all of it. `memfd_luo_ops` of the proposal had a format of its own.

C: mm/memfd_luo.c, proposal v4 of Sep 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelmodel.abi.luo_v4 import LiveupdateState
from kernelmodel.errors import Busy, IoError, KernelError
from kernelmodel.fs import File
from kernelmodel.luo import handler as merged
from kernelmodel.luo_v4.handler import FileHandler, LuoFile
from kernelmodel.owners import KeepsPages, Preserved, page_at

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.luo_v4.core import LuoV4
    from kernelmodel.luo_v4.file import LuoFiles

__all__ = ["MergedFileSet", "MergedHandler"]


@dataclass(slots=True)
class _MergedFile(merged.LuoFile):
    """The file as the merged handler knows it; what it preserved is known by it."""

    def preserved_pages(self, kernel: Kernel) -> Iterator[Preserved]:
        yield from page_at(kernel, "entry", self.data)
        if isinstance(self.private, KeepsPages):
            yield from self.private.preserved_pages(kernel)


class MergedFileSet:
    """The files of a session of v4, as a merged handler asks for its file's companions."""

    __slots__ = ("_files",)

    def __init__(self, files: LuoFiles) -> None:
        self._files = files

    @classmethod
    def of(cls, luo: LuoV4, luo_file: merged.LuoFile) -> MergedFileSet:
        """Those of the session that has this file."""
        sessions = (session.files for session in luo.sessions.sessions)
        return next(
            cls(files)
            for files in sessions
            if any(one.private is luo_file for one in files.files.values())
        )

    @property
    def files(self) -> list[merged.LuoFile]:
        """Those that merged handlers take care of, as they know them."""
        known = (one.private for one in self._files.files.values())
        return [file for file in known if isinstance(file, _MergedFile)]

    def retrieve_file(self, token: int) -> File:
        """The file, retrieved if it was not yet; the caller's reference.

        Raises: NoEntry: unknown token. Others: the handler's.
        """
        known = self._files.files.get(token)
        if known is not None and known.file is not None:
            return known.file.get()
        return self._files.restore(token)


class MergedHandler(FileHandler):
    """Any handler of the merged LUO, under its compatible string."""

    def __init__(self, handler: merged.FileHandler, *, at_preserve_fd: bool = False) -> None:
        super().__init__(handler.compatible)
        self.merged = handler
        self.at_preserve_fd = at_preserve_fd
        self._ids: set[int] = set()

    def can_preserve(self, file: File) -> bool:
        """Whether this handler takes the file."""
        return self.merged.can_preserve(file)

    # Outgoing.

    def preserve(self, luo_file: LuoFile) -> None:
        """Raises: with `at_preserve_fd`, as `prepare`."""
        if self.at_preserve_fd:
            self._preserve(luo_file)

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo it."""
        if self.at_preserve_fd:
            self._unpreserve(luo_file)

    def prepare(self, luo_file: LuoFile) -> int:
        """Raises: Busy: preserved already through another descriptor. Others: the handler's."""
        if not self.at_preserve_fd:
            self._preserve(luo_file)
        return _file_of(luo_file).data

    def freeze(self, luo_file: LuoFile) -> int:
        """Raises what the handler raises."""
        self.merged.freeze(_file_of(luo_file))
        return _file_of(luo_file).data

    def cancel(self, luo_file: LuoFile) -> None:
        """Undo both."""
        if luo_file.state is LiveupdateState.FROZEN:
            self.merged.unfreeze(_file_of(luo_file))
        if not self.at_preserve_fd:
            self._unpreserve(luo_file)

    def _preserve(self, luo_file: LuoFile) -> None:
        assert luo_file.file is not None, "an outgoing file has one"
        identity = self.merged.get_id(luo_file.file)
        if identity in self._ids:
            raise Busy("preserved already through another descriptor", token=luo_file.token)
        file = _MergedFile(self.merged, luo_file.token, luo_file.file)
        self.merged.preserve(file)
        self._ids.add(identity)
        luo_file.private = file

    def _unpreserve(self, luo_file: LuoFile) -> None:
        file = _file_of(luo_file)
        assert file.file is not None, "an outgoing file has one"
        self.merged.unpreserve(file)
        self._ids.discard(self.merged.get_id(file.file))
        luo_file.private = None

    # Incoming.

    def retrieve(self, luo_file: LuoFile) -> File:
        """Raises: IoError: an earlier attempt failed. Others: the handler's."""
        file = self._incoming(luo_file)
        if file.retrieve_status:
            raise IoError("an earlier attempt failed", token=luo_file.token)
        try:
            retrieved = self.merged.retrieve(file)
        except KernelError as error:
            file.retrieve_status = -error.errno
            raise
        file.retrieve_status = 1
        return retrieved

    def finish(self, luo_file: LuoFile, *, reclaimed: bool) -> None:
        """What was not retrieved is freed; a retrieve that failed has left nothing to free."""
        file = self._incoming(luo_file)
        file.file = luo_file.file
        self.merged.finish(file)

    def _incoming(self, luo_file: LuoFile) -> _MergedFile:
        if luo_file.private is None:
            luo_file.private = _MergedFile(self.merged, luo_file.token, data=luo_file.data)
        return _file_of(luo_file)


def _file_of(luo_file: LuoFile) -> _MergedFile:
    file = luo_file.private
    assert isinstance(file, _MergedFile), "made when the file was preserved or first looked at"
    return file
