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

from typing import TYPE_CHECKING

from kernelmodel.abi.layout import to_cstring
from kernelmodel.abi.luo import LIVEUPDATE_HNDL_COMPAT_LENGTH, LuoFileSer
from kernelmodel.errors import Busy, Exists, InvalidArgument, KernelError, NoEntry
from kernelmodel.fs import File
from kernelmodel.kho.block import KhoBlockSet
from kernelmodel.luo.flb import stored_error
from kernelmodel.luo.handler import LuoFile

if TYPE_CHECKING:
    from kernelmodel.luo.core import Luo
    from kernelmodel.syscalls import Task

__all__ = ["LuoFileSet"]

_pack_file, _unpack_file = LuoFileSer.FORMAT.pack, LuoFileSer.FORMAT.unpack


class LuoFileSet:
    """C: struct luo_file_set."""

    __slots__ = ("block_set", "files", "kernel", "luo")

    def __init__(self, luo: Luo) -> None:
        self.luo = luo
        self.kernel = luo.kernel
        self.files: list[LuoFile] = []
        self.block_set = KhoBlockSet(luo.kernel.kho, LuoFileSer.SIZE)

    def preserve_file(self, task: Task, token: int, fd: int) -> LuoFile:
        """Preserve the file behind a descriptor. C: luo_preserve_file().

        Raises:
            Exists: the token is used in this session. NoSpace, NoMemory: no block for it.
            BadFileDescriptor. NoEntry: no handler takes it. Busy: the object is preserved
            already, in whatever session. Others: the handler's.
        """
        files = self.files
        for other in files:
            if other.token == token:
                raise Exists("token is used", token=token)
        self.kernel.charge("luo_preserve_file")
        try:
            self.block_set.grow(len(files) + 1)
            file = task.files.fdt[fd].get()
            try:
                luo_file = self._preserve(file, token)
            except KernelError:
                file.put()
                raise
        except KernelError:
            self.block_set.shrink(len(files))
            raise
        files.append(luo_file)
        return luo_file

    def _preserve(self, file: File, token: int) -> LuoFile:
        """The part that needs the file; it undoes its own steps if a later one fails."""
        luo, fail = self.luo, self.kernel.fail_function
        handler = luo.handler_for(file)
        identity = (handler, handler.get_id(file))
        if identity in luo.preserved_ids:
            raise Busy("object is preserved already", token=token)
        fail("should_failslab", site="xa_insert")
        luo.preserved_ids.add(identity)
        try:
            luo.flbs.file_preserve(handler)
            try:
                fail("should_failslab", site="luo_preserve_file")
                luo_file = LuoFile(handler, token, file, identity=identity)
                handler.preserve(luo_file)
            except KernelError:
                luo.flbs.file_unpreserve(handler)
                raise
        except KernelError:
            luo.preserved_ids.discard(identity)
            raise
        return luo_file

    def unpreserve_files(self) -> None:
        """Let go of all files, last preserved first. C: luo_file_unpreserve_files()."""
        while self.files:
            luo_file = self.files[-1]
            file = luo_file.file
            assert file is not None, "outgoing files hold a reference"
            luo_file.handler.unpreserve(luo_file)
            self.luo.flbs.file_unpreserve(luo_file.handler)
            self.luo.preserved_ids.discard(luo_file.identity)
            self.files.pop()
            self.block_set.shrink(len(self.files))
            file.put()
        self.block_set.destroy()

    def freeze(self) -> tuple[int, int]:
        """Freeze all files and write them down; the block that they are in, and how many.

        C: luo_file_freeze(), which fills a struct luo_file_set_ser. Raises what a handler's freeze
        raises, everything undone.
        """
        if not self.files:
            return 0, 0
        kernel = self.kernel
        entries: list[bytes] = []
        try:
            for luo_file in self.files:
                handler = luo_file.handler
                kernel.fail_function("luo_file_freeze", token=luo_file.token)
                kernel.charge("luo_file_freeze")
                handler.freeze(luo_file)
                compatible = to_cstring(handler.compatible, LIVEUPDATE_HNDL_COMPAT_LENGTH)
                entries.append(_pack_file(compatible, luo_file.data, luo_file.token))
        except KernelError:
            self._unfreeze(len(entries))
            raise
        self.block_set.write_entries(entries)
        return self.block_set.head_pa, len(entries)

    def _unfreeze(self, nr_files: int) -> None:
        for luo_file in self.files[:nr_files]:
            luo_file.handler.unfreeze(luo_file)
        self.block_set.clear()

    def unfreeze(self) -> None:
        """Undo a freeze that succeeded. C: luo_file_unfreeze()."""
        if self.files:
            self._unfreeze(len(self.files))

    def deserialize(self, files_pa: int, count: int) -> None:
        """Read the entries of the previous kernel, a struct luo_file_set_ser.

        C: luo_file_deserialize().

        Raises:
            NoEntry: no handler for a file. InvalidArgument, NoSpace: the chain is broken, or
                holds another number of entries than the session says. NoMemory.
        """
        kernel = self.kernel
        if files_pa == 0:
            if count:
                kernel.warn_on("a session counts files but has no block")
            return
        self.block_set.restore(files_pa)
        try:
            for raw in self.block_set.entries():
                compatible, data, token = _unpack_file(raw)
                handler = self.luo.handler_named(compatible)
                kernel.charge("luo_deserialize_file")
                kernel.fail_function("should_failslab", site="luo_file_deserialize")
                self.files.append(LuoFile(handler, token, data=data))
            if len(self.files) != count:
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
        for luo_file in self.files:
            if luo_file.token == token:
                break
        else:
            raise NoEntry("no such token", token=token)
        if luo_file.retrieve_status < 0:
            raise stored_error(luo_file.retrieve_status)
        if luo_file.file is not None:
            return luo_file.file.get()
        handler, preserved_ids = luo_file.handler, self.luo.preserved_ids
        self.kernel.charge("luo_retrieve_file")
        try:
            self.kernel.fail_function("luo_retrieve_file", token=token)
            file = handler.retrieve(luo_file)
        except KernelError as error:
            luo_file.retrieve_status = -error.errno
            raise
        luo_file.file = file.get()
        luo_file.retrieve_status = 1
        luo_file.identity = identity = (handler, handler.get_id(file))
        if identity in preserved_ids:
            self.kernel.warn_on("a retrieved object is preserved already")
        preserved_ids.add(identity)
        return file

    def finish(self) -> None:
        """Let go of all files, retrieved or not. C: luo_file_finish().

        Raises:
            Busy: a handler cannot finish yet; nothing was done.
        """
        files, luo = self.files, self.luo
        for luo_file in files:
            if not luo_file.handler.can_finish(luo_file):
                raise Busy("a file cannot finish yet")
        while files:
            luo_file = files[-1]
            self.kernel.charge("luo_file_finish")
            luo_file.handler.finish(luo_file)
            luo.flbs.file_finish(luo_file.handler)
            if luo_file.file is not None:
                luo.preserved_ids.discard(luo_file.identity)
                luo_file.file.put()
            del files[-1]
            self.block_set.shrink(len(files))
        if self.block_set.blocks:
            self.block_set.destroy()
