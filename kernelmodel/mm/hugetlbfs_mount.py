"""A mounted hugetlbfs: files of huge pages with names, and the limits of the mount.

Reproduces Linux 7.3's fs/hugetlbfs/inode.c, as seen on the running kernel. Options are `pagesize=`
(a size that the kernel has; else the default one), `size=` and `min_size=` (bytes, or per cent of
the pool as it is; rounded down to huge pages), `nr_inodes=`; `uid=`, `gid=` and `mode=` are taken
and play no part. The root directory is an inode, too.

Happy path: `HugetlbfsMount(kernel, options)`, `create`, `open`, `unlink`; `umount` when no file is
open. A file lives until it has neither name nor descriptor nor mapping.

Unhappy paths: a wrong option is EINVAL; `min_size` that the pool cannot promise, or no inode for
the root, ENOMEM; a file too many ENOSPC; a mount with open files EBUSY.

Simplification: one directory; directories below it count as inodes and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernelmodel.errors import Busy, Exists, InvalidArgument, NoEntry, NoMemory, NoSpace
from kernelmodel.fs import File
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hugetlb_cmdline import memparse
from kernelmodel.mm.hugetlb_subpool import HugepageSubpool
from kernelmodel.mm.hugetlbfs import HugetlbInode
from kernelmodel.mm.memfd import HugetlbFileOperations, HugetlbMemfdInode
from kernelmodel.mm.shmem import F_SEAL_SEAL

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["HugetlbfsMount", "Statfs"]

_IGNORED: Final = ("uid", "gid", "mode")


@dataclass(frozen=True, slots=True)
class Statfs:
    """C: struct statfs. Blocks are huge pages; -1 is no limit, all zero a mount without any."""

    f_bsize: int
    f_blocks: int
    f_bfree: int
    f_files: int
    f_ffree: int


class HugetlbfsMount:
    """C: struct hugetlbfs_sb_info."""

    __slots__ = ("_inodes", "files", "hstate", "kernel", "nr_inodes", "subpool")

    def __init__(self, kernel: Kernel, options: str = "") -> None:
        """Mount with comma-separated options.

        Raises:
            InvalidArgument: a wrong option. NoMemory: see above.
        """
        self.kernel = kernel
        values = _parse(options)
        self.hstate = self._hstate(values.get("pagesize"))
        most = self._pages(values.get("size"))
        least = self._pages(values.get("min_size"))
        if most is not None and least is not None and least > most:
            raise InvalidArgument("min_size is larger than size", size=most, min_size=least)
        #: How many inodes there may be; None is any number.
        self.nr_inodes = memparse(values["nr_inodes"]) if "nr_inodes" in values else None
        if self.nr_inodes == 0:
            raise NoMemory("no inode for the root directory")
        self.subpool: HugepageSubpool | None = None
        if most is not None or least is not None:
            self.subpool = HugepageSubpool(self.hstate, most, least)
        self._inodes = 1
        #: What has a name.
        self.files: dict[str, HugetlbMemfdInode] = {}

    def _hstate(self, pagesize: str | None) -> Hstate:
        hugetlb = self.kernel.hugetlb
        if pagesize is None:
            return hugetlb.hstates[hugetlb.default_order]
        size = memparse(pagesize)
        for order, hstate in hugetlb.hstates.items():
            if 1 << order + PAGE_SHIFT == size:
                return hstate
        raise InvalidArgument("unsupported page size", pagesize=pagesize)

    def _pages(self, text: str | None) -> int | None:
        """Huge pages of `size=` or `min_size=`. C: hugetlbfs_size_to_hpages()."""
        if text is None:
            return None
        if not text[:1].isdigit():
            raise InvalidArgument("bad size", text=text)
        if text.endswith("%"):
            return self.hstate.max_huge_pages * memparse(text) // 100
        return memparse(text) >> self.hstate.order + PAGE_SHIFT

    # Names.

    def add_inode(self) -> None:
        """A file or directory comes to be. Raises: NoSpace."""
        if self.nr_inodes is not None and self._inodes >= self.nr_inodes:
            raise NoSpace("no inode is left", nr_inodes=self.nr_inodes)
        self._inodes += 1

    def remove_inode(self) -> None:
        """A file or directory is gone. C: hugetlbfs_destroy_inode()."""
        self._inodes -= 1

    def create(self, name: str) -> File:
        """open(2) with O_CREAT | O_EXCL. Raises: Exists, NoSpace."""
        if name in self.files:
            raise Exists("file exists", name=name)
        self.add_inode()
        hugetlb = HugetlbInode(self.hstate, self.subpool, self.remove_inode)
        inode = HugetlbMemfdInode(self.kernel, hugetlb, F_SEAL_SEAL, mount=self)
        inode.nlink = 1  # the name holds the reference that the inode is born with
        self.files[name] = inode
        return self._file(inode)

    def open(self, name: str) -> File:
        """open(2). Raises: NoEntry."""
        if name not in self.files:
            raise NoEntry("no such file", name=name)
        return self._file(self.files[name])

    @staticmethod
    def _file(inode: HugetlbMemfdInode) -> File:
        inode.hugetlb.get()
        return File(inode, HugetlbFileOperations())

    def unlink(self, name: str) -> None:
        """unlink(2). Raises: NoEntry."""
        if name not in self.files:
            raise NoEntry("no such file", name=name)
        inode = self.files.pop(name)
        inode.nlink = 0
        inode.hugetlb.put()

    # The whole.

    def statfs(self) -> Statfs:
        """statfs(2)."""
        size = 1 << self.hstate.order + PAGE_SHIFT
        if self.subpool is None:
            return Statfs(size, 0, 0, 0, 0)
        most, used = self.subpool.max_hpages, self.subpool.used_hpages
        blocks, free = (-1, -1) if most is None else (most, most - used)
        files, left = -1, -1
        if self.nr_inodes is not None:
            files, left = self.nr_inodes, self.nr_inodes - self._inodes
        return Statfs(size, blocks, free, files, left)

    def umount(self) -> None:
        """umount(2): files that have nothing but a name go with the mount.

        Raises:
            Busy: a file is open or mapped.
        """
        if self._inodes > 1 + len(self.files) or any(
            inode.hugetlb.refs > 1 for inode in self.files.values()
        ):
            raise Busy("files are in use")
        for name in list(self.files):
            self.unlink(name)
        if self.subpool is not None:
            self.subpool.close()


def _parse(options: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name not in (*_IGNORED, "pagesize", "size", "min_size", "nr_inodes") or not value:
            raise InvalidArgument("unknown option", option=option)
        if name == "nr_inodes" and not re.match(r"[0-9]", value):
            raise InvalidArgument("no number", option=option)
        values[name] = value
    return values
