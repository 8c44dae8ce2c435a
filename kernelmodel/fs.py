"""Open files, as far as descriptors need them. C: include/linux/fs.h, fs/file.c, 7.3.

Simplification, *ioctls that every file answers*: of those of the VFS there are the four about
descriptors, and those that all files of the model answer alike. What depends on the file (FIBMAP,
FIONREAD, FIOQSIZE, FICLONERANGE, …) is unknown here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from kernelmodel.errors import (
    BadAddress,
    BadFileDescriptor,
    FileTooBig,
    InvalidArgument,
    KernelError,
    ModelBug,
    NoDevice,
    NoMemory,
    NotSupported,
    NotTty,
    Overflow,
    TooManyFiles,
)

if TYPE_CHECKING:
    from kernelmodel.syscalls import Task

__all__ = [
    "ANON_INO",
    "FALLOC_FL_KEEP_SIZE",
    "FALLOC_FL_PUNCH_HOLE",
    "MAX_LFS_FILESIZE",
    "NR_OPEN",
    "NULL_INO",
    "VFS_IOCTLS",
    "FdTable",
    "File",
    "FileOperations",
    "Inode",
    "NullInode",
    "PlainFileOperations",
    "UserBuffer",
    "check_fallocate",
    "check_mmap",
    "check_size",
    "null_file",
    "vfs_ioctl",
]


#: A process's memory as a system call sees it; `bytes` is mapped for reading only.
UserBuffer = bytes | bytearray
#: The largest size of a file, and the largest offset.
MAX_LFS_FILESIZE: Final = (1 << 63) - 1
#: Inodes that there is one of: that of /dev/null, and that of all sessions.
NULL_INO: Final = -1
ANON_INO: Final = -2
#: Descriptors that a process may have where nothing lowers it (fs.nr_open).
NR_OPEN: Final = 1 << 20

# Requests that any descriptor answers, whatever it stands for.
_FIONBIO: Final = 0x5421
_FIONCLEX: Final = 0x5450
_FIOCLEX: Final = 0x5451
_FIOASYNC: Final = 0x5452
_FIGETBSZ: Final = 2
# FICLONE takes a descriptor: an address is none that is open.
_REFUSALS: Final[dict[int, type[KernelError]]] = {
    0x40049409: BadFileDescriptor,  # FICLONE
    0xC0045877: NotSupported,  # FIFREEZE
    0xC0045878: InvalidArgument,  # FITHAW: nothing is frozen
    0xC020660B: NotSupported,  # FS_IOC_FIEMAP
    0x80811501: NotTty,  # FS_IOC_GETFSSYSFSPATH
}
VFS_IOCTLS: Final = frozenset({_FIOCLEX, _FIONCLEX, _FIONBIO, _FIOASYNC, _FIGETBSZ, *_REFUSALS})
#: Bytes that a process can map at once. What is nearly all of its 128 TiB has no room between the
#: program and its stack, which lie where chance put them, within 1 TiB.
_MMAP_MAX: Final = 127 << 40

# Modes of fallocate. C: include/uapi/linux/falloc.h. KEEP_SIZE goes with some of the others, of
# which there can be one.
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
_FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
_FALLOC_FL_ZERO_RANGE: Final = 0x10
_FALLOC_FL_INSERT_RANGE: Final = 0x20
_FALLOC_FL_UNSHARE_RANGE: Final = 0x40
_FALLOC_FL_WRITE_ZEROES: Final = 0x80
_FALLOC_MODES: Final = frozenset(
    {
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        _FALLOC_FL_COLLAPSE_RANGE,
        _FALLOC_FL_ZERO_RANGE,
        _FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        _FALLOC_FL_INSERT_RANGE,
        _FALLOC_FL_UNSHARE_RANGE,
        _FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE,
        _FALLOC_FL_WRITE_ZEROES,
    }
)


class Inode:
    """What two descriptors of the same object share; identity is the object's own."""

    __slots__ = ("ino", "nlink")

    @property
    def block_bytes(self) -> int:
        """Bytes in a block. C: i_blkbits."""
        return 4096

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

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
        """A system call's ioctl; `arg` is the caller's buffer and is written to."""
        ...


class PlainFileOperations:
    """A file without ioctls that nothing happens to at release."""

    def release(self, file: File) -> None:
        """Nothing to do."""

    def ioctl(self, task: Task, file: File, cmd: int, arg: UserBuffer) -> int:
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
        #: What the kind of file keeps here. C: void *private_data.
        self.private: Any = private
        self.writable = writable

    def get(self) -> File:
        """Take a reference. C: get_file()."""
        if self.f_count <= 0:
            raise ModelBug("reference to a file that is gone")
        self.f_count += 1
        return self

    def put(self) -> None:
        """Drop a reference; the last one releases. C: fput()."""
        self.f_count = left = self.f_count - 1
        if not left:
            self.f_op.release(self)
        elif left < 0:
            raise ModelBug("reference dropped twice")


def null_file(ino: int) -> File:
    """An open /dev/null."""
    return File(NullInode(ino, nlink=1), PlainFileOperations())


def vfs_ioctl(inode: Inode, cmd: int, arg: UserBuffer) -> None:
    """One of `VFS_IOCTLS`, which every file answers alike.

    Nothing here looks at close-on-exec or O_NONBLOCK, and no file sends signals, so there is
    nothing to keep. C: do_vfs_ioctl().

    Raises:
        BadAddress: no room for the number. NotTty: signals are asked for. And as `_REFUSALS`.
    """
    if cmd in (_FIOCLEX, _FIONCLEX):
        return
    if cmd in _REFUSALS:
        raise _REFUSALS[cmd]("not of a file in memory", cmd=cmd)
    if len(arg) < 4:
        raise BadAddress("no room for a number")
    if cmd == _FIGETBSZ:
        if not isinstance(arg, bytearray):
            raise BadAddress("the answer cannot be written")
        struct.pack_into("<I", arg, 0, inode.block_bytes)
        return
    (on,) = struct.unpack_from("<I", arg)
    if cmd == _FIOASYNC and on:
        raise NotTty("no file that sends signals")


class _Fdt(dict[int, File]):
    """Open files by number; to ask for one that is not there is EBADF. C: struct fdtable."""

    def __missing__(self, fd: int) -> File:
        raise BadFileDescriptor("not open", fd=fd)


class FdTable:
    """One process's descriptors. C: struct files_struct."""

    __slots__ = ("_next_fd", "fdt", "limit")

    def __init__(self, limit: int = NR_OPEN) -> None:
        self.fdt = _Fdt()
        #: No number below is free.
        self._next_fd = 0
        #: RLIMIT_NOFILE.
        self.limit = limit

    def get_unused_fd(self) -> int:
        """The lowest free number; nothing is there before `fd_install`. C: get_unused_fd_flags().

        Raises:
            TooManyFiles: no number is left.
        """
        files, fd = self.fdt, self._next_fd
        while fd in files:
            fd += 1
        if fd >= self.limit:
            raise TooManyFiles("no descriptor is left", limit=self.limit)
        self._next_fd = fd
        return fd

    def fd_install(self, fd: int, file: File) -> int:
        """Put a file at an unused number; the table takes over the reference. C: fd_install()."""
        self.fdt[fd] = file
        return fd

    def install_new(self, make: Callable[[], File]) -> int:
        """Put a file at the lowest free number, which is made once it is clear that there is one.

        Raises: TooManyFiles, and what making it raises.
        """
        fd = self.get_unused_fd()
        return self.fd_install(fd, make())

    def fget(self, fd: int) -> File:
        """The file behind a descriptor, without a reference of its own.

        Raises:
            BadFileDescriptor: nothing is open there.
        """
        return self.fdt[fd]

    def file_close_fd(self, fd: int) -> File:
        """Take a file out of the table, with its reference. C: file_close_fd().

        Raises:
            BadFileDescriptor: nothing is open there.
        """
        file = self.fdt[fd]
        del self.fdt[fd]
        if fd < self._next_fd:  # noqa: PLR1730 # every descriptor that is passed on is closed
            self._next_fd = fd
        return file

    def close(self, fd: int) -> None:
        """Take it out and drop the reference. C: close_fd()."""
        self.file_close_fd(fd).put()

    def close_all(self) -> None:
        """What exit does, in the order of numbers."""
        for fd in sorted(self.fdt):
            self.close(fd)

    def __len__(self) -> int:
        return len(self.fdt)

    def __iter__(self) -> Iterator[File]:
        """The file of every descriptor, by number."""
        return iter([self.fdt[fd] for fd in sorted(self.fdt)])


def check_size(size: int) -> None:
    """Refuse a length or offset that off_t cannot hold."""
    if not 0 <= size < 1 << 63:
        raise InvalidArgument("negative length or offset", size=size)


def check_mmap(offset: int, length: int) -> None:
    """What mmap(2) refuses whatever the file; bytes. C: do_mmap(), file_mmap_ok().

    Raises:
        InvalidArgument: nothing is mapped. NoMemory: no address space is so large.
        Overflow: the range reaches beyond every file.
    """
    if not length:
        raise InvalidArgument("empty mapping")
    if length > _MMAP_MAX:
        raise NoMemory("larger than the address space", length=length)
    if offset + length > MAX_LFS_FILESIZE:
        raise Overflow("mapping ends beyond every file", end=offset + length)


def check_fallocate(mode: int, offset: int, length: int, *, is_file: bool) -> None:
    """What fallocate(2) refuses whatever the file. C: vfs_fallocate().

    Raises:
        InvalidArgument: an empty range, or a negative number. NotSupported: no such mode.
        NoDevice: not a regular file. FileTooBig: the range reaches beyond every file.
    """
    check_size(offset)
    check_size(length)
    if not length:
        raise InvalidArgument("empty range")
    if mode not in _FALLOC_MODES:
        raise NotSupported("no such mode", mode=mode)
    if not is_file:
        raise NoDevice("not a regular file")
    if offset + length > MAX_LFS_FILESIZE:
        raise FileTooBig("range ends beyond every file", end=offset + length)
