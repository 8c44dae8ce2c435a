"""The border between a process and the kernel: descriptors go in, errno comes out.

Everything that the model is asked from outside goes through a `Task`: the agent, the VMMs, the
gRPC services, scripts. Refusals are `KernelError`s.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kernelmodel import kexec
from kernelmodel.abi.luo import (
    LIVEUPDATE_CREATE_SESSION,
    LIVEUPDATE_RETRIEVE_SESSION,
    LIVEUPDATE_SESSION_FINISH,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_PRESERVE_FD,
    LIVEUPDATE_SESSION_RETRIEVE_FD,
)
from kernelmodel.errors import (
    IllegalSeek,
    InvalidArgument,
    NoEntry,
    NotTty,
)
from kernelmodel.fs import (
    ANON_INO,
    NR_OPEN,
    NULL_INO,
    VFS_IOCTLS,
    FdTable,
    File,
    Inode,
    NullInode,
    UserBuffer,
    check_fallocate,
    check_size,
    null_file,
    vfs_ioctl,
)
from kernelmodel.luo.ioctl import IncomingSession, LiveupdateDevice, OutgoingSession
from kernelmodel.mm.guest_memfd import (
    GuestHugetlbInode,
    GuestMemfdInode,
    KvmVmInode,
    guest_memfd_file,
    kvm_vm_file,
)
from kernelmodel.mm.memfd import HugetlbMemfdInode, add_seals, check_memfd_flags, memfd_create
from kernelmodel.mm.shmem import ShmemInode, tmpfs_file

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.releases import Release

__all__ = ["DEV_LIVEUPDATE", "DEV_NULL", "Task"]

DEV_LIVEUPDATE: Final = "/dev/liveupdate"
DEV_NULL: Final = "/dev/null"

# Arguments of LUO's ioctls, by the caller: size and descriptor or a reserved field come first.
_NAMED: Final = struct.Struct("<Ii64s")
_FD_TOKEN: Final = struct.Struct("<IiQ")
_FINISH: Final = struct.Struct("<II")
_NAME: Final = struct.Struct("<64s")
#: Tokens that the structure has room for.
_TOKENS: Final = range(1 << 64)
#: What the kernel answers with, behind the size.
_S32: Final = struct.Struct("<i")

#: What an unsigned int keeps of a number.
_U32: Final = (1 << 32) - 1

#: Inodes of files that consist of memory.
_MEMORY: Final = (HugetlbMemfdInode, ShmemInode, GuestMemfdInode, GuestHugetlbInode)


class Task:
    """A process: a descriptor table and the system calls it can make."""

    __slots__ = ("files", "kernel", "name")

    def __init__(self, kernel: Kernel, name: str, rlimit_nofile: int = NR_OPEN) -> None:
        self.kernel = kernel
        self.name = name
        self.files = FdTable(rlimit_nofile)

    # Descriptors.

    def open(self, path: str) -> int:
        """open(2) of a device."""
        fd = self.files.get_unused_fd()
        if path == DEV_NULL:
            return self.files.fd_install(fd, null_file(NULL_INO))
        if path != DEV_LIVEUPDATE:
            raise NoEntry("no such file", path=path)
        return self.files.fd_install(fd, self.kernel.live_update.open())

    def open_tmpfs(self, *, linked: bool = True) -> int:
        """open(2) of a fresh regular file on tmpfs, or with O_TMPFILE of one without a link."""
        fd = self.files.get_unused_fd()
        return self.files.fd_install(fd, tmpfs_file(self.kernel, nlink=int(linked)))

    def close(self, fd: int) -> None:
        """close(2)."""
        self.files.file_close_fd(fd).put()

    def dup(self, fd: int) -> int:
        """dup(2)."""
        return self.send_fd(fd, self)

    def send_fd(self, fd: int, other: Task) -> int:
        """Pass a descriptor to another process, as SCM_RIGHTS does; its number there."""
        file, files = self.files.fdt[fd], other.files
        number = files.get_unused_fd()
        files.fdt[number] = file.get()
        return number

    def exit(self) -> None:
        """exit(2): every descriptor is closed."""
        self.files.close_all()

    def ioctl(self, fd: int, cmd: int, arg: UserBuffer) -> int:
        """ioctl(2); `arg` is read and written like the caller's memory.

        `bytes` is memory that is mapped for reading only: an answer to it is EFAULT.
        """
        file, cmd = self.files.fdt[fd], cmd & _U32
        if cmd in VFS_IOCTLS:
            vfs_ioctl(file.inode, cmd, arg)
            return 0
        return file.f_op.ioctl(self, file, cmd, arg)

    # Live update, as a small library wraps it. Where the kernel is known to find nothing wrong with
    # the library's structure, none is made: what would take it apart is passed over.

    def create_session(self, device: int, name: str) -> int:
        """LIVEUPDATE_CREATE_SESSION; the session's descriptor."""
        file = self.files.fdt[device]
        if isinstance(file.f_op, LiveupdateDevice):
            return file.f_op.create(self, file, _NAME.pack(name.encode()))
        return self._asked(file, LIVEUPDATE_CREATE_SESSION, _NAMED, 0, name.encode())

    def retrieve_session(self, device: int, name: str) -> int:
        """LIVEUPDATE_RETRIEVE_SESSION; the session's descriptor."""
        file = self.files.fdt[device]
        if isinstance(file.f_op, LiveupdateDevice):
            return file.f_op.retrieve(self, file, _NAME.pack(name.encode()))
        return self._asked(file, LIVEUPDATE_RETRIEVE_SESSION, _NAMED, 0, name.encode())

    def preserve_fd(self, session: int, fd: int, token: int) -> None:
        """LIVEUPDATE_SESSION_PRESERVE_FD."""
        self.preserve_in(self.files.fdt[session], fd, token)

    def preserve_in(self, session: File, fd: int, token: int) -> None:
        """The same, in a session that another process lends for it."""
        if isinstance(session.f_op, OutgoingSession) and token in _TOKENS:
            session.f_op.preserve_fd(self, session, fd, token)
        else:
            self._asked(session, LIVEUPDATE_SESSION_PRESERVE_FD, _FD_TOKEN, fd, token)

    def retrieve_fd(self, session: int, token: int) -> int:
        """LIVEUPDATE_SESSION_RETRIEVE_FD; the file's descriptor."""
        return self.retrieve_from(self.files.fdt[session], token)

    def retrieve_from(self, session: File, token: int) -> int:
        """The same, from a session that another process lends for it."""
        if isinstance(session.f_op, IncomingSession) and token in _TOKENS:
            return session.f_op.retrieve_fd(self, session, token)
        return self._asked(session, LIVEUPDATE_SESSION_RETRIEVE_FD, _FD_TOKEN, 0, token)

    def finish_session(self, session: int, reserved: int = 0) -> None:
        """LIVEUPDATE_SESSION_FINISH."""
        file = self.files.fdt[session]
        if isinstance(file.f_op, IncomingSession):
            file.f_op.finish(self, file, reserved & _U32)
        else:
            self._asked(file, LIVEUPDATE_SESSION_FINISH, _FINISH, reserved & _U32)

    def session_name(self, session: int) -> str:
        """LIVEUPDATE_SESSION_GET_NAME."""
        arg = bytearray(_NAMED.pack(_NAMED.size, 0, b""))
        self.ioctl(session, LIVEUPDATE_SESSION_GET_NAME, arg)
        return bytes(arg[8:72]).split(b"\0", 1)[0].decode(errors="replace")

    def _asked(self, file: File, cmd: int, form: struct.Struct, *fields: int | bytes) -> int:
        """The ioctl on any other file, of another LUO too; the number behind the size in it."""
        arg = bytearray(form.pack(form.size, *fields))
        file.f_op.ioctl(self, file, cmd, arg)
        number: int = _S32.unpack_from(arg, 4)[0]
        return number

    # Files of memory.

    def memfd_create(self, flags: int = 0) -> int:
        """memfd_create(2); the name plays no part."""
        check_memfd_flags(flags)
        fd = self.files.get_unused_fd()
        return self.files.fd_install(fd, memfd_create(self.kernel, flags))

    def _shmem(self, fd: int) -> ShmemInode:
        inode = self.files.fget(fd).inode
        if not isinstance(inode, ShmemInode):
            raise InvalidArgument("not a file of memory", fd=fd)
        return inode

    def ftruncate(self, fd: int, size: int) -> None:
        """ftruncate(2)."""
        check_size(size)
        inode = self.files.fget(fd).inode
        if not isinstance(inode, _MEMORY):
            raise InvalidArgument("not a file of memory", fd=fd)
        inode.truncate(size)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). What is no regular file is ENODEV."""
        inode = self.files.fget(fd).inode
        mode &= _U32
        check_fallocate(mode, offset, length, is_file=isinstance(inode, _MEMORY))
        assert isinstance(inode, _MEMORY)
        inode.fallocate(mode, offset, length)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2); bytes written. Huge page files cannot be written to but by mapping."""
        inode = self._at(fd, offset, len(data))
        if isinstance(inode, NullInode):
            return len(data)
        return self._shmem(fd).write(offset, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        inode = self._at(fd, offset, size)
        if isinstance(inode, NullInode):
            return b""
        return self._shmem(fd).read(offset, size)

    def _at(self, fd: int, offset: int, size: int) -> Inode:
        """The object that a pread or pwrite is about. C: ksys_pread64(), rw_verify_area()."""
        check_size(offset)
        inode = self.files.fget(fd).inode
        if inode.ino == ANON_INO:
            raise IllegalSeek("a session has no positions", fd=fd)
        check_size(offset + size)
        return inode

    def lseek(self, fd: int, position: int) -> int:
        """lseek(2) with SEEK_SET; /dev/null stays where it is, at 0."""
        file = self._seekable(fd)
        if not isinstance(file.inode, NullInode):
            check_size(position)
            file.f_pos = position
        return file.f_pos

    def lseek_cur(self, fd: int) -> int:
        """lseek(2) by nothing from SEEK_CUR: the position."""
        return self._seekable(fd).f_pos

    def _seekable(self, fd: int) -> File:
        file = self.files.fget(fd)
        if not isinstance(file.inode, (NullInode, ShmemInode, HugetlbMemfdInode)):
            raise IllegalSeek("neither device nor session has a position", fd=fd)
        return file

    def add_seals(self, fd: int, seals: int) -> None:
        """fcntl(F_ADD_SEALS)."""
        file = self.files.fget(fd)
        if not isinstance(file.inode, ShmemInode | HugetlbMemfdInode):
            raise InvalidArgument("nothing that can be sealed", fd=fd)
        add_seals(file, file.inode, seals & _U32)

    def get_seals(self, fd: int) -> int:
        """fcntl(F_GET_SEALS)."""
        inode = self.files.fget(fd).inode
        if not isinstance(inode, ShmemInode | HugetlbMemfdInode) or inode.seals is None:
            raise InvalidArgument("nothing that can be sealed", fd=fd)
        return inode.seals

    # KVM.

    def kvm_create_vm(self, vm_type: int = 0) -> int:
        """KVM_CREATE_VM on /dev/kvm; the VM's descriptor."""
        fd = self.files.get_unused_fd()
        return self.files.fd_install(fd, kvm_vm_file(self.kernel, vm_type))

    def kvm_create_guest_memfd(self, vm: int, size: int, flags: int) -> int:
        """KVM_CREATE_GUEST_MEMFD on a VM; the descriptor of its memory."""
        inode = self.files.fget(vm).inode
        if not isinstance(inode, KvmVmInode):
            raise NotTty("not a VM", fd=vm)
        fd = self.files.get_unused_fd()
        return self.files.fd_install(fd, guest_memfd_file(self.kernel, inode.kvm, size, flags))

    # kexec.

    def kexec_file_load(self, release: Release, cmdline: str, flags: int = 0) -> None:
        """kexec_file_load(2)."""
        kexec.kexec_file_load(self.kernel, release, cmdline, flags)
