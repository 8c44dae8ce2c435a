"""The files of one session.

Happy path: preserve checks token and file, lets the handler do its heavy work and appends; freeze
writes one entry per file into the session's block chain, first preserved first; the next kernel
reads the entries back, retrieves each file when asked, and finishes them last preserved first.

Unhappy paths: every step of preserve is undone in reverse if a later one fails. A freeze that
fails unfreezes the files before it and empties the blocks. A retrieve that failed fails for ever
with the same error: memory whose state is unknown is not handed out. One file without a handler
spoils the whole device, for the entry cannot be given back safely.

C: kernel/liveupdate/luo_file.c, 7.3.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from kernelmodel.abi.layout import cstring, to_cstring
from kernelmodel.abi.luo import LIVEUPDATE_HNDL_COMPAT_LENGTH, LuoFileSer, LuoFileSetSer
from kernelmodel.errors import Busy, Exists, InvalidArgument, KernelError, NoEntry
from kernelmodel.fs import File
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.luo.flb import stored_error
from kernelmodel.luo.handler import FileHandler, LuoFile

if TYPE_CHECKING:
    from kernelmodel.luo.core import Luo
    from kernelmodel.syscalls import Task

__all__ = ["LuoFileSet"]


class LuoFileSet:
    """C: struct luo_file_set."""

    __slots__ = ("block_set", "files", "luo")

    def __init__(self, luo: Luo) -> None:
        self.luo = luo
        self.files: list[LuoFile] = []
        self.block_set = KhoBlockSet(luo.kernel.kho, LuoFileSer.SIZE)

    def _find(self, token: int) -> LuoFile | None:
        return next((luo_file for luo_file in self.files if luo_file.token == token), None)

    def preserve_file(self, task: Task, token: int, fd: int) -> LuoFile:
        """Preserve the file behind a descriptor. C: luo_preserve_file().

        Raises:
            Exists: the token is used in this session. NoSpace, NoMemory: no block for it.
            BadFileDescriptor. NoEntry: no handler takes it. Busy: the object is preserved
            already, in whatever session. Others: the handler's.
        """
        if self._find(token) is not None:
            raise Exists("token is used", token=token)
        self.luo.kernel.charge("luo_preserve_file")
        fail = self.luo.kernel.fail_function
        with ExitStack() as undo:
            undo.callback(lambda: self.block_set.shrink(len(self.files)))
            self.block_set.grow(len(self.files) + 1)
            file = task.files.fget(fd).get()
            undo.callback(file.put)
            handler = self.luo.handler_for(file)
            identity = (handler, handler.get_id(file))
            if identity in self.luo.preserved_ids:
                raise Busy("object is preserved already", token=token)
            fail("should_failslab", site="xa_insert")
            self.luo.preserved_ids.add(identity)
            undo.callback(self.luo.preserved_ids.discard, identity)
            self.luo.flbs.file_preserve(handler)
            undo.callback(self.luo.flbs.file_unpreserve, handler)
            fail("should_failslab", site="luo_preserve_file")
            luo_file = LuoFile(handler, token, file)
            handler.preserve(luo_file)
            undo.pop_all()
        self.files.append(luo_file)
        return luo_file

    def unpreserve_files(self) -> None:
        """Let go of all files, last preserved first. C: luo_file_unpreserve_files()."""
        while self.files:
            luo_file = self.files[-1]
            file = _file_of(luo_file)
            luo_file.handler.unpreserve(luo_file)
            self.luo.flbs.file_unpreserve(luo_file.handler)
            self._forget(luo_file.handler, file)
            self.files.pop()
            self.block_set.shrink(len(self.files))
            file.put()
        self.block_set.destroy()

    def _forget(self, handler: FileHandler, file: File) -> None:
        self.luo.preserved_ids.discard((handler, handler.get_id(file)))

    def freeze(self) -> LuoFileSetSer:
        """Freeze all files and write them down; what the session entry says of them.

        C: luo_file_freeze(). Raises what a handler's freeze raises, everything undone.
        """
        for index, luo_file in enumerate(self.files):
            entry_pa = self.block_set.reserve_entry(index)
            try:
                self.luo.kernel.fail_function("luo_file_freeze", token=luo_file.token)
                self.luo.kernel.charge("luo_file_freeze")
                luo_file.handler.freeze(luo_file)
            except KernelError:
                self._unfreeze(index)
                raise
            compatible = to_cstring(luo_file.handler.compatible, LIVEUPDATE_HNDL_COMPAT_LENGTH)
            entry = LuoFileSer(compatible, luo_file.data, luo_file.token)
            self.luo.kernel.memory.write(entry_pa, entry.pack())
        return LuoFileSetSer(self.block_set.head_pa if self.files else 0, len(self.files))

    def _unfreeze(self, nr_files: int) -> None:
        for luo_file in self.files[:nr_files]:
            luo_file.handler.unfreeze(luo_file)
        self.block_set.clear()

    def unfreeze(self) -> None:
        """Undo a freeze that succeeded. C: luo_file_unfreeze()."""
        if self.files:
            self._unfreeze(len(self.files))

    def deserialize(self, ser: LuoFileSetSer) -> None:
        """Read the entries of the previous kernel. C: luo_file_deserialize().

        Raises:
            NoEntry: no handler for a file. InvalidArgument, NoSpace: the chain is broken, or
                holds another number of entries than the session says. NoMemory.
        """
        if ser.files == 0:
            if ser.count:
                self.luo.kernel.warn_on("a session counts files but has no block")
            return
        self.block_set.restore(ser.files)
        try:
            for raw in self.block_set.entries():
                entry = LuoFileSer.unpack(raw)
                handler = self.luo.handler_named(cstring(entry.compatible))
                self.luo.kernel.charge("luo_deserialize_file")
                self.luo.kernel.fail_function("should_failslab", site="luo_file_deserialize")
                self.files.append(LuoFile(handler, entry.token, data=entry.data))
            if len(self.files) != ser.count:
                raise InvalidArgument("wrong number of files", found=len(self.files))
        except KernelError:
            self.files.clear()
            self.block_set.destroy()
            raise

    def retrieve_file(self, token: int) -> File:
        """The file, made again at the first call; a reference of the caller's own.

        C: luo_retrieve_file().

        Raises:
            NoEntry: unknown token. Others: what the handler said, the first time and ever after.
        """
        luo_file = self._find(token)
        if luo_file is None:
            raise NoEntry("no such token", token=token)
        if luo_file.retrieve_status < 0:
            raise stored_error(luo_file.retrieve_status)
        if luo_file.file is not None:
            return luo_file.file.get()
        self.luo.kernel.charge("luo_retrieve_file")
        try:
            self.luo.kernel.fail_function("luo_retrieve_file", token=token)
            file = luo_file.handler.retrieve(luo_file)
        except KernelError as error:
            luo_file.retrieve_status = -error.errno
            raise
        luo_file.file = file.get()
        luo_file.retrieve_status = 1
        identity = (luo_file.handler, luo_file.handler.get_id(file))
        if identity in self.luo.preserved_ids:
            self.luo.kernel.warn_on("a retrieved object is preserved already")
        self.luo.preserved_ids.add(identity)
        return file

    def finish(self) -> None:
        """Let go of all files, retrieved or not. C: luo_file_finish().

        Raises:
            Busy: a handler cannot finish yet; nothing was done.
        """
        if not all(luo_file.handler.can_finish(luo_file) for luo_file in self.files):
            raise Busy("a file cannot finish yet")
        while self.files:
            luo_file = self.files[-1]
            self.luo.kernel.charge("luo_file_finish")
            luo_file.handler.finish(luo_file)
            self.luo.flbs.file_finish(luo_file.handler)
            if luo_file.file is not None:
                self._forget(luo_file.handler, luo_file.file)
                luo_file.file.put()
            self.files.pop()
            self.block_set.shrink(len(self.files))
        self.block_set.destroy()


def _file_of(luo_file: LuoFile) -> File:
    assert luo_file.file is not None, "outgoing files hold a reference"
    return luo_file.file
