"""Open files, as far as descriptors need them. C: include/linux/fs.h, fs/file.c, 7.3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from kernelmodel.errors import BadFileDescriptor, InvalidArgument, ModelBug, NotTty

if TYPE_CHECKING:
    from kernelmodel.syscalls import Task

__all__ = [
    "FdTable",
    "File",
    "FileOperations",
    "Inode",
    "NullInode",
    "PlainFileOperations",
    "check_size",
    "null_file",
]


class Inode:
    """What two descriptors of the same object share; identity is the object's own."""

    __slots__ = ("ino", "nlink")

    def __init__(self, ino: int, nlink: int = 0) -> None:
        self.ino = ino
        self.nlink = nlink


class NullInode(Inode):
    """/dev/null: takes every write, holds nothing."""


class FileOperations(Protocol):
    """What a kind of file does. C: struct file_operations."""

    def release(self, file: File) -> None:
        """The last reference is gone."""
        ...

    def ioctl(self, task: Task, file: File, cmd: int, arg: bytearray) -> int:
        """A system call's ioctl; `arg` is the caller's buffer and is written to."""
        ...


class PlainFileOperations:
    """A file without ioctls that nothing happens to at release."""

    def release(self, file: File) -> None:
        """Nothing to do."""

    def ioctl(self, task: Task, file: File, cmd: int, arg: bytearray) -> int:
        """ENOTTY."""
        raise NotTty("no such ioctl", cmd=cmd)


class File:
    """An open file description. C: struct file."""

    __slots__ = ("f_count", "f_op", "f_pos", "inode", "private", "writable")

    def __init__(
        self,
        inode: Inode,
        f_op: FileOperations,
        private: object = None,
        *,
        writable: bool = True,
    ) -> None:
        self.inode = inode
        self.f_op = f_op
        self.f_pos = 0
        self.f_count = 1
        self.private = private
        self.writable = writable

    def get(self) -> File:
        """Take a reference. C: get_file()."""
        if self.f_count <= 0:
            raise ModelBug("reference to a file that is gone")
        self.f_count += 1
        return self

    def put(self) -> None:
        """Drop a reference; the last one releases. C: fput()."""
        self.f_count -= 1
        if self.f_count == 0:
            self.f_op.release(self)
        elif self.f_count < 0:
            raise ModelBug("reference dropped twice")


def null_file(ino: int) -> File:
    """An open /dev/null."""
    return File(NullInode(ino, nlink=1), PlainFileOperations())


class FdTable:
    """One process's descriptors. C: struct files_struct."""

    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: dict[int, File] = {}

    def install(self, file: File) -> int:
        """Put a file at the lowest free number; the table takes over the reference."""
        fd = 0
        while fd in self._files:
            fd += 1
        self._files[fd] = file
        return fd

    def fget(self, fd: int) -> File:
        """The file behind a descriptor, without a reference of its own.

        Raises:
            BadFileDescriptor: nothing is open there.
        """
        file = self._files.get(fd)
        if file is None:
            raise BadFileDescriptor("not open", fd=fd)
        return file

    def close(self, fd: int) -> None:
        """C: close_fd()."""
        file = self.fget(fd)
        del self._files[fd]
        file.put()

    def close_all(self) -> None:
        """What exit does, in the order of numbers."""
        for fd in sorted(self._files):
            self.close(fd)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[File]:
        """The file of every descriptor, by number."""
        return iter([self._files[fd] for fd in sorted(self._files)])


def check_size(size: int) -> None:
    """Refuse a length or offset that off_t cannot hold."""
    if not 0 <= size < 1 << 63:
        raise InvalidArgument("negative length or offset", size=size)
