"""What the operations of a script do: the system calls of a small C program.

A `Program` is one process; its methods are called like the operations. `HugeProgram` has those of
scripts about huge pages, where lengths of files count huge pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from kernelmodel.errors import BadAddress, KernelError, NoDevice, NoEntry, kernel_error
from kernelmodel.fs import check_mmap
from kernelmodel.image.fnv import FNV_BASIS, fnv1a, fnv1a_zeroes
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from kernelmodel.mm import hugetlb_sysfs
from kernelmodel.mm.hugetlbfs import HugetlbInode, HugetlbMapping, HugetlbPrivateMapping
from kernelmodel.mm.memfd import (
    MFD_ALLOW_SEALING,
    MFD_EXEC,
    MFD_HUGE_SHIFT,
    MFD_HUGETLB,
    MFD_NOEXEC_SEAL,
    HugetlbMemfdInode,
)
from kernelmodel.mm.shmem import PG_UPTODATE, ShmemInode
from kernelmodel.script import FAILING, HUGE_PAGE_ORDERS, Step, number
from kernelmodel.script_failures import ScriptFailures
from kernelmodel.syscalls import DEV_LIVEUPDATE, DEV_NULL, Task
from kernelmodel.xorshift import xorshift

__all__ = ["HugeProgram", "Program"]

_NAMES: Final = {"@empty": "", "@full": "A" * 64, "@max": "B" * 63}
_RAW_BYTES: Final = 4096
#: In what `write` writes.
_ESCAPES: Final = {r"\s": " ", r"\t": "\t", r"\n": "\n"}
_U64: Final = (1 << 64) - 1
#: Letters of `memfd`.
_MEMFD_FLAGS: Final = {
    "s": MFD_ALLOW_SEALING,
    "h": MFD_HUGETLB,
    "n": MFD_NOEXEC_SEAL,
    "x": MFD_EXEC,
}
#: Sizes of scratch areas.
_SCRATCH_LEN: Final = "/sys/kernel/debug/kho/out/scratch_len"
#: Descriptors that a first process may have.
_RLIMIT_NOFILE: Final = 1024
#: Bytes of a file that are hashed at a time.
_PIECE: Final = 1 << 16


class Program:
    """One process that runs operations; its methods are called like them."""

    def __init__(self, kernel: Kernel) -> None:
        self.task = Task(kernel, "script", _RLIMIT_NOFILE)
        self.variables: dict[str, int] = {}
        self.maps: dict[str, HugetlbMapping | HugetlbPrivateMapping] = {}
        self.failures = ScriptFailures()

    def run(self, step: Step) -> str:
        """Run one operation; what the trace says of it."""
        method: Callable[..., str | None] = getattr(self, f"_op_{step.op}")
        try:
            extra = method(*step.args)
        except KernelError as refused:
            return refused.name
        return f"ok {extra}" if extra else "ok"

    def fd(self, variable: str) -> int:
        """The descriptor that a variable names, -1 if none."""
        return self.variables.get(variable, -1)

    def _op_open(self, v: str) -> None:
        self.variables[v] = self.task.open(DEV_LIVEUPDATE)

    def _op_null(self, v: str) -> None:
        self.variables[v] = self.task.open(DEV_NULL)

    def _op_tmpfile(self, v: str, flags: str = "") -> None:
        self.variables[v] = self.task.open_tmpfs(linked="u" not in flags)

    def _op_close(self, v: str) -> None:
        self.task.close(self.fd(v))
        self.variables[v] = -1

    def _op_dup(self, v: str, w: str) -> None:
        self.variables[w] = self.task.dup(self.fd(v))

    def _op_create(self, d: str, v: str, name: str) -> None:
        self.variables[v] = self.task.create_session(self.fd(d), _session_name(name))

    def _op_retrieve(self, d: str, v: str, name: str) -> None:
        self.variables[v] = self.task.retrieve_session(self.fd(d), _session_name(name))

    def _op_memfd(self, v: str, size: str, flags: str = "") -> None:
        fd = self.task.memfd_create(sum(_MEMFD_FLAGS.get(flag, 0) for flag in set(flags)))
        self.variables[v] = fd
        self.task.ftruncate(fd, number(size))

    def _op_fill(self, v: str, offset: str, length: str, seed: str) -> None:
        data = xorshift(number(seed), number(length))
        for at in range(0, len(data), PAGE_SIZE):
            self.task.pwrite(self.fd(v), data[at : at + PAGE_SIZE], number(offset) + at)

    def _op_seek(self, v: str, position: str) -> None:
        self.task.lseek(self.fd(v), number(position))

    def _op_truncate(self, v: str, size: str) -> None:
        self.task.ftruncate(self.fd(v), number(size))

    def _op_fallocate(self, v: str, mode: str, offset: str, length: str) -> None:
        self.task.fallocate(self.fd(v), number(mode), number(offset), number(length))

    def _op_seal(self, v: str, seals: str) -> None:
        self.task.add_seals(self.fd(v), number(seals))

    def _op_stat(self, v: str) -> str:
        file = self.task.files.fget(self.fd(v))
        size, digest = 0, FNV_BASIS
        if isinstance(file.inode, ShmemInode):
            size, digest = file.inode.size, _fnv_of(file.inode)
        elif isinstance(file.inode, HugetlbMemfdInode):
            size, digest = file.inode.size, _fnv_of_huge(file.inode)
        seals = _or_minus_one(lambda: self.task.get_seals(self.fd(v)))
        position = _or_minus_one(lambda: self.task.lseek_cur(self.fd(v)))
        return f"size={size} pos={position} seals={seals} hash={digest:016x}"

    def _op_preserve(self, s: str, v: str, token: str) -> None:
        self.task.preserve_fd(self.fd(s), self.fd(v), number(token))

    def _op_fetch(self, s: str, v: str, token: str) -> None:
        self.variables[v] = self.task.retrieve_fd(self.fd(s), number(token))

    def _op_finish(self, s: str, reserved: str = "0") -> None:
        self.task.finish_session(self.fd(s), number(reserved))

    def _op_name(self, s: str) -> str:
        return f"name={self.task.session_name(self.fd(s))}"

    def _op_same(self, v: str, w: str) -> str:
        one, other = (self.task.files.fget(self.fd(x)) for x in (v, w))
        return str(int(one.inode.ino == other.inode.ino))

    def _op_raw(self, v: str, cmd: str, size: str, *pokes: str) -> None:
        self._op_rawin(v, str(_RAW_BYTES), cmd, size, *pokes)

    def _op_rawin(self, v: str, room: str, cmd: str, size: str, *pokes: str) -> None:
        """An ioctl on so many bytes before memory that is not there; `r`: not to be written to."""
        digits = room.removesuffix("r")
        arg = bytearray(number(digits))
        head = (number(size) & 0xFFFFFFFF).to_bytes(4, "little")
        arg[:4] = head[: len(arg)]
        for at, byte in zip(pokes[::2], pokes[1::2], strict=False):
            if number(at) < len(arg):
                arg[number(at)] = number(byte) & 0xFF
        self.task.ioctl(self.fd(v), number(cmd), bytes(arg) if digits != room else arg)

    def _op_read(self, path: str) -> str:
        kho = self.task.kernel.kho
        if path == _SCRATCH_LEN and kho.enabled:
            return " ".join(f"{area.size:#x}" for area in kho.scratch)
        return hugetlb_sysfs.read(self.task.kernel.hugetlb, path).rstrip("\n")

    def _op_write(self, path: str, text: str = "") -> str:
        for escaped, plain in _ESCAPES.items():
            text = text.replace(escaped, plain)
        return str(hugetlb_sysfs.write(self.task.kernel.hugetlb, path, text))

    def _op_fail(self, function: str, call: str, error: str) -> None:
        self.failures.add(FAILING[function], number(call), error)
        self.task.kernel.fail_function = self.maybe_fail

    def maybe_fail(self, hook: str, **context: object) -> None:
        """Raise what is due at this call of a kernel function, or of one that allocates in it."""
        if error := self.failures.call(str(context.get("site", hook))):
            raise kernel_error(error, "made to fail", **context)

    def page_size(self, v: str) -> int:
        """Bytes in what lengths of a file count. C: st_blksize."""
        return self.task.files.fget(self.fd(v)).inode.block_bytes

    def _op_pool(self, size: str, n: str, node: str = "") -> None:
        hstate = self.task.kernel.hugetlb.hstate(HUGE_PAGE_ORDERS[size])
        hstate.set_max_huge_pages(number(n), self.node(node))

    def node(self, word: str) -> int | None:
        """The node that a word names, None if there is no word. Raises: NoEntry."""
        if not word:
            return None
        if number(word) not in self.task.kernel.page_alloc.nodes:
            raise NoEntry("no such node", node=word)
        return number(word)

    def _op_overcommit(self, size: str, n: str) -> None:
        self.task.kernel.hugetlb.hstate(HUGE_PAGE_ORDERS[size]).nr_overcommit_huge_pages = number(n)

    def _op_hstat(self, size: str, node: str = "") -> str:
        files = self.task.kernel.hugetlb.hstate(HUGE_PAGE_ORDERS[size]).sysfs(self.node(node))
        names = {
            "total": "nr_hugepages",
            "free": "free_hugepages",
            "rsvd": "resv_hugepages",
            "surp": "surplus_hugepages",
            "over": "nr_overcommit_hugepages",
        }
        return " ".join(
            f"{short}={files[name].strip()}" for short, name in names.items() if name in files
        )

    def _op_hmem(self, v: str, size: str, length: str, extra: str = "0") -> None:
        log2 = HUGE_PAGE_ORDERS[size] + PAGE_SHIFT
        self.variables[v] = self.task.memfd_create(MFD_HUGETLB | log2 << MFD_HUGE_SHIFT)
        self.set_length(v, length, extra)

    def set_length(self, v: str, length: str, extra: str = "0") -> None:
        """Truncate a file to so many of its huge pages and some bytes."""
        size = number(length) * self.page_size(v) + number(extra)
        self.task.ftruncate(self.fd(v), size & _U64)

    def _op_map(self, m: str, v: str, offset: str, length: str, flag: str = "") -> None:
        inode, page = self.task.files.fget(self.fd(v)).inode, self.page_size(v)
        start, size = _wrapped(offset, page), _wrapped(length, page)
        check_mmap(start, size)
        if not isinstance(inode, HugetlbMemfdInode):  # files of small pages: not modelled
            raise NoDevice("no huge pages to map")
        self.maps[m] = inode.mmap(start // page, size // page, noreserve=flag == "n")

    def _op_pmap(self, m: str, size: str, length: str, flag: str = "") -> None:
        hstate = self.task.kernel.hugetlb.hstate(HUGE_PAGE_ORDERS[size])
        page = PAGE_SIZE << hstate.order
        check_mmap(0, nr_bytes := _wrapped(length, page))
        self.maps[m] = HugetlbPrivateMapping(hstate, nr_bytes // page, noreserve=flag == "n")

    def mapping(self, m: str) -> HugetlbMapping | HugetlbPrivateMapping:
        """A mapping that is there. Raises: BadAddress."""
        if m not in self.maps:
            raise BadAddress("no such mapping")
        return self.maps[m]

    def _op_touch(self, m: str, page: str, count: str) -> str:
        mapping, first = self.mapping(m), number(page)
        if isinstance(mapping, HugetlbPrivateMapping):
            done = mapping.touch(first, number(count))
        else:
            holes = mapping.inode.folios.gaps(mapping.start + first, 1 << 64)
            done = mapping.touch(first, number(count))
            self.store(mapping.inode, mapping.start + first, done, holes)
        return f"pages={done}" + (" SIGBUS" if done < number(count) else "")

    def store(self, inode: HugetlbInode, first: int, nr: int, new: list[tuple[int, int]]) -> None:
        """Write the byte 1 to each of these pages, of which some are as good as new."""
        memory, order = self.task.kernel.memory, inode.hstate.order
        for low, high in new:
            for _, pfn, count in inode.folios.within(low, min(high, first + nr)):
                memory.zero(pfn, count << order)
        for _, pfn, count in inode.folios.within(first, first + nr):
            for page in range(pfn, pfn + (count << order), 1 << order):
                memory.write(page << PAGE_SHIFT, b"\x01")

    def _op_unmap(self, m: str) -> None:
        self.mapping(m).munmap()
        del self.maps[m]


class HugeProgram(Program):
    """The operations of huge page scripts; lengths of files count huge pages of the file's size."""

    def _op_truncate(self, v: str, length: str, extra: str = "0") -> None:
        self.set_length(v, length, extra)

    def _op_fallocate(self, v: str, mode: str, offset: str, length: str) -> None:
        page = self.page_size(v)
        start, size = _wrapped(offset, page), _wrapped(length, page)
        self.task.fallocate(self.fd(v), number(mode), start, size)


def _session_name(word: str) -> str:
    return _NAMES.get(word, word)


def _wrapped(pages: str, page_size: int) -> int:
    """Bytes in so many pages, as the program reckons them."""
    return number(pages) * page_size & _U64


_T = TypeVar("_T")


def _or_minus_one(call: Callable[[], _T]) -> _T | int:
    try:
        return call()
    except KernelError:
        return -1


def _fnv_of(inode: ShmemInode) -> int:
    """The hash of a file's content; holes cost nothing."""
    extents = [
        (index << PAGE_SHIFT, pfn, nr_pages)
        for index, pfn, nr_pages, flags in inode.extents(0, inode.nr_size_pages)
        if flags & PG_UPTODATE  # a page that is not reads as zero
    ]
    return _fnv(inode.kernel.memory, inode.size, extents)


def _fnv_of_huge(inode: HugetlbMemfdInode) -> int:
    page, order = inode.hugetlb.page_size, inode.hugetlb.hstate.order
    folios = inode.hugetlb.folios.within(0, -(-inode.size // page))
    extents = [(index * page, pfn, count << order) for index, pfn, count in folios]
    return _fnv(inode.kernel.memory, inode.size, extents)


def _fnv(memory: PhysicalMemory, size: int, extents: list[tuple[int, int, int]]) -> int:
    """The hash of a file of `size` bytes with frames at `extents` (offset, frame, frames)."""
    digest, done = FNV_BASIS, 0
    for offset, pfn, nr_pages in extents:
        for frame, frames in _written(memory, pfn, nr_pages):
            start = offset + (frame - pfn << PAGE_SHIFT)
            end = min(size, start + (frames << PAGE_SHIFT))
            digest, done = fnv1a_zeroes(digest, start - done), end
            for at in range(start, end, _PIECE):
                pa = (frame << PAGE_SHIFT) + at - start
                digest = fnv1a(digest, memory.read(pa, min(_PIECE, end - at)))
    return fnv1a_zeroes(digest, size - done)


def _written(memory: PhysicalMemory, pfn: int, nr_pages: int) -> Iterator[tuple[int, int]]:
    """Runs (frame, frames) of what is not known to be zero."""
    low = high = pfn
    for frame, frames, content, _ in memory.segments(pfn, nr_pages):
        if content is None and frames > 1:  # plain bytes come one by one
            continue
        if frame != high:
            if low < high:
                yield low, high - low
            low = frame
        high = frame + frames
    if low < high:
        yield low, high - low
