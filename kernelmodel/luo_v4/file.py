"""The files of one session: preserved, prepared, frozen; in the next kernel read back and restored.

Happy path: PRESERVE_FD finds a handler and takes a reference, nothing more. PREPARE lets each
handler do the work, in the order in which the files came, and writes {compatible, data, token} of
all into one contiguous array; FREEZE asks each once more. The next kernel reads the array, gives
out files by token, and lets go of all of them at FINISH, of those that nobody retrieved too.

Unhappy paths: more files than a block of the largest order holds is E2BIG at PREPARE. A file that
fails to prepare or to freeze cancels all files of its session that had come that far; nothing is
left preserved. A handler that this kernel lacks, or a token that comes twice, panics. What a
handler's `retrieve` raises is the caller's, who may try again.

Ours: a file that was retrieved and failed is not marked (7.3 would), and the order in which
PRESERVE_FD looks: descriptor, handler, token.

C: kernel/liveupdate/luo_file.c, proposal v4 of Sep 2025.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from kernelmodel.abi.layout import cstring, to_cstring
from kernelmodel.abi.luo_v4 import LIVEUPDATE_HNDL_COMPAT_LENGTH, LiveupdateState, LuoFileSer
from kernelmodel.errors import AddressInUse, Exists, KernelError, KernelPanic, NoEntry
from kernelmodel.fs import File
from kernelmodel.luo_v4.array import NO_ARRAY, SerArray, alloc_array, take_array
from kernelmodel.luo_v4.handler import LuoFile

if TYPE_CHECKING:
    from kernelmodel.luo_v4.core import LuoV4
    from kernelmodel.syscalls import Task

__all__ = ["LuoFiles"]


class LuoFiles:
    """All files of a session by token, in the order in which they were preserved."""

    __slots__ = ("array", "files", "luo")

    def __init__(self, luo: LuoV4) -> None:
        self.luo = luo
        self.files: dict[int, LuoFile] = {}
        self.array: SerArray = NO_ARRAY

    def _find(self, token: int) -> LuoFile:
        found = self.files.get(token)
        if found is None:
            raise NoEntry("no such token", token=token)
        return found

    def preserve(self, task: Task, fd: int, token: int) -> None:
        """C: luo_preserve_file().

        Raises:
            BadFileDescriptor. NoEntry: no handler takes it. Exists: the token is used in this
            session. NoMemory. Others: what the extensions' callbacks raise.
        """
        luo = self.luo
        file = task.files.fget(fd)
        handler = luo.handler_for(file)
        if token in self.files:
            raise Exists("token is used", token=token)
        luo.kernel.charge("luo_preserve_file")
        luo.kernel.fail_function("should_failslab", site="luo_preserve_file")
        with ExitStack() as undo:
            luo_file = LuoFile(handler, token, file.get())
            undo.callback(file.put)
            luo.global_states.file_preserve(handler)
            undo.callback(luo.global_states.file_unpreserve, handler)
            luo.handler_subsystems.file_preserve(handler)
            undo.callback(luo.handler_subsystems.file_unpreserve, handler)
            handler.preserve(luo_file)
            undo.pop_all()
        handler.nr_files += 1
        self.files[token] = luo_file

    def unpreserve(self, token: int) -> None:
        """C: luo_unpreserve_file(). Raises: NoEntry."""
        self._drop(self._find(token))

    def unpreserve_all(self) -> None:
        """The session goes; its files are neither prepared nor incoming."""
        for luo_file in list(self.files.values()):
            self._drop(luo_file)

    def _drop(self, luo_file: LuoFile) -> None:
        handler = luo_file.handler
        handler.unpreserve(luo_file)
        self.luo.handler_subsystems.file_unpreserve(handler)
        self.luo.global_states.file_unpreserve(handler)
        self._forget(luo_file)

    def _forget(self, luo_file: LuoFile) -> None:
        luo_file.handler.nr_files -= 1
        del self.files[luo_file.token]
        if luo_file.file is not None:
            luo_file.file.put()

    # Outgoing events.

    def prepare(self) -> None:
        """C: luo_file_prepare().

        Raises:
            TooBig: too many files for one array. NoMemory. Others: what a handler raised.
        """
        kernel = self.luo.kernel
        self.array = alloc_array(kernel, len(self.files) * LuoFileSer.SIZE)
        try:
            for luo_file in self.files.values():
                kernel.fail_function("luo_file_prepare", token=luo_file.token)
                luo_file.data = luo_file.handler.prepare(luo_file)
                luo_file.state = LiveupdateState.PREPARED
        except KernelError:
            self.cancel()
            raise
        self._write()

    def freeze(self) -> None:
        """C: luo_file_freeze(). Raises what a handler raised."""
        kernel = self.luo.kernel
        try:
            for luo_file in self.files.values():
                kernel.fail_function("luo_file_freeze", token=luo_file.token)
                kernel.charge("luo_file_freeze")
                luo_file.data = luo_file.handler.freeze(luo_file)
                luo_file.state = LiveupdateState.FROZEN
        except KernelError:
            self.cancel()
            raise
        self._write()

    def _write(self) -> None:
        self.array.write(
            self.luo.kernel,
            (
                LuoFileSer(
                    to_cstring(luo_file.handler.compatible, LIVEUPDATE_HNDL_COMPAT_LENGTH),
                    luo_file.data,
                    luo_file.token,
                )
                for luo_file in self.files.values()
            ),
        )

    def cancel(self) -> None:
        """Take back what was prepared or frozen; the files stay. C: luo_file_cancel()."""
        for luo_file in self.files.values():
            if luo_file.state in {LiveupdateState.PREPARED, LiveupdateState.FROZEN}:
                luo_file.handler.cancel(luo_file)
                luo_file.data = 0
                luo_file.state = LiveupdateState.NORMAL
        self.array.free(self.luo.kernel)
        self.array = NO_ARRAY

    # Incoming.

    def deserialize(self, pa: int, pgcnt: int, count: int) -> None:
        """C: luo_file_deserialize().

        Raises:
            KernelPanic: no array, no handler for a file, or a token twice.
        """
        luo = self.luo
        for entry in take_array(luo.kernel, LuoFileSer, pa, pgcnt, count):
            luo.kernel.charge("luo_deserialize_file")
            compatible = cstring(entry.compatible)
            handler = luo.handler_named(compatible)
            if handler is None:
                said = compatible.decode("ascii", "replace")
                raise KernelPanic(f"luo: no handler for an incoming file: {said!r}")
            if entry.token in self.files:
                raise KernelPanic(f"luo: token {entry.token:#x} comes twice")
            self.files[entry.token] = LuoFile(
                handler, entry.token, None, LiveupdateState.UPDATED, entry.data
            )
            handler.nr_files += 1
            luo.global_states.file_deserialize(handler)

    def restore(self, token: int) -> File:
        """The file, made again; the caller's reference. C: luo_retrieve_file().

        Raises:
            NoEntry: unknown token. AddressInUse: retrieved already. Others: the handler's.
        """
        luo_file = self._find(token)
        if luo_file.file is not None:
            raise AddressInUse("retrieved already", token=token)
        self.luo.kernel.charge("luo_retrieve_file")
        self.luo.kernel.fail_function("luo_retrieve_file", token=token)
        file = luo_file.handler.retrieve(luo_file)
        luo_file.file = file.get()
        return file

    def finish(self) -> None:
        """Let go of all files, in order. C: luo_file_finish()."""
        for luo_file in list(self.files.values()):
            self.luo.kernel.charge("luo_file_finish")
            luo_file.handler.finish(luo_file, reclaimed=luo_file.file is not None)
            self.luo.global_states.file_finish(luo_file.handler)
            self._forget(luo_file)
