"""Scripts of live-update operations, run on a modelled host: what a real kernel is compared with.

One operation a line; a line `kexec` ends a boot, and what follows runs in the next kernel. Every
operation is the system calls that a small C program would make, and prints `T LINE op ok[ extra]`
or `T LINE op ERRNO`; each boot ends with `T end BOOT`. A script whose first line is `#! PARAMS`
(memory size and kernel parameters) exercises huge page accounting; lengths are huge pages there.

Happy path: `Script.parse` a text, then `play` yields the trace's lines.

Unhappy paths: a text that is no such script is a `ScriptError` with all its faults; a kernel that
panics, at boot or later, ends the trace there, as does a reboot that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import BadAddress, InvalidArgument, KernelError, KernelPanic
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.machine import Firmware, Machine, MachineSpec
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.hugetlbfs import HugetlbInode, HugetlbMapping, HugetlbPrivateMapping
from kernelmodel.mm.memfd import (
    MFD_ALLOW_SEALING,
    MFD_HUGE_SHIFT,
    MFD_HUGETLB,
    HugetlbMemfdInode,
)
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import DEV_LIVEUPDATE, DEV_NULL, Task

__all__ = ["Host", "Script", "ScriptError", "play"]

#: As the kernel that the recordings were taken from was built and started.
CMDLINE: Final = "liveupdate=on kho_scratch=32M,128M,32M"
CONFIG: Final = KernelConfig(
    kexec_handover_debug=True,
    liveupdate_test=True,
    kernel_bytes=32 * MIB,
    initrd_bytes=8 * MIB,
)
_RELEASE: Final = "7.3.4"
_MEMORY: Final = 2 * GIB
_CPUS: Final = 2

_NAMES: Final = {"@empty": "", "@full": "A" * 64, "@max": "B" * 63}
_RAW_BYTES: Final = 4096
_FNV_BASIS: Final = 1469598103934665603
_FNV_PRIME: Final = 1099511628211
_MASK: Final = (1 << 64) - 1
_ORDERS: Final = {"2M": 9, "1G": 18}

#: Arguments of each operation: v a variable, i an integer, s a size, w a word; `?` from here on
#: optional, `*` any number of the last one.
_OPERATIONS: Final = {
    "open": "v",
    "null": "v",
    "tmpfile": "v",
    "close": "v",
    "dup": "vv",
    "create": "vvw",
    "retrieve": "vvw",
    "memfd": "vi?w",
    "fill": "viii",
    "seek": "vi",
    "truncate": "vi?i",
    "fallocate": "viii",
    "seal": "vi",
    "stat": "v",
    "preserve": "vvi",
    "fetch": "vvi",
    "finish": "v?i",
    "name": "v",
    "same": "vv",
    "raw": "vii?*",
    "pool": "si",
    "overcommit": "si",
    "hstat": "s",
    "hmem": "vsi?i",
    "map": "wvii?w",
    "pmap": "wsi?w",
    "touch": "wii",
    "unmap": "w",
}
_ONLY_HUGE: Final = {"pool", "overcommit", "hstat", "hmem", "map", "pmap", "touch", "unmap"}


class ScriptError(ValueError):
    """A text that is no script; `faults` are (line, what is wrong)."""

    def __init__(self, faults: list[tuple[int, str]]) -> None:
        super().__init__("\n".join(f"line {line}: {what}" for line, what in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a script and the line it stands on."""

    line: int
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A script, cut at its `kexec` lines: `boots[k]` are the operations of boot k + 1."""

    boots: tuple[tuple[Step, ...], ...]
    memory_bytes: int = _MEMORY
    cmdline: str = CMDLINE
    huge: bool = False

    @classmethod
    def parse(cls, text: str) -> Script:
        """Read a script.

        Raises:
            ScriptError: with every fault in it.
        """
        lines = text.splitlines()
        faults: list[tuple[int, str]] = []
        memory, cmdline, huge = _MEMORY, CMDLINE, False
        if lines and lines[0].startswith("#!"):
            huge = True
            word, _, cmdline = lines[0].removeprefix("#!").strip().partition(" ")
            gib = word.removeprefix("memory=").removesuffix("G")
            if word == f"memory={gib}G" and gib.isdecimal() and int(gib):
                memory = int(gib) * GIB
            else:
                faults.append((1, f"{word!r} is no memory size; memory=4G is"))
        boots: list[list[Step]] = [[]]
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if words == ["kexec"]:
                boots.append([])
                continue
            why = _fault(words, huge=huge)
            if why:
                faults.append((number, why))
            else:
                boots[-1].append(Step(number, words[0], tuple(words[1:])))
        if faults:
            raise ScriptError(faults)
        return cls(tuple(tuple(steps) for steps in boots), memory, cmdline, huge)


def _fault(words: list[str], *, huge: bool) -> str:
    op, *args = words
    if op not in _OPERATIONS or (op in _ONLY_HUGE and not huge):
        return f"{op!r} is no operation"
    required, _, optional = _OPERATIONS[op].partition("?")
    kinds = required + optional
    if "*" in kinds:
        kinds = kinds[:-1] + "i" * max(0, len(args) - len(required))
    if not len(required) <= len(args) <= len(kinds):
        most = "" if len(kinds) == len(required) else f" to {len(kinds)}"
        return f"{op} takes {len(required)}{most} arguments, not {len(args)}"
    for kind, arg in zip(kinds, args, strict=False):
        if kind == "i" and _number(arg) is None:
            return f"{arg!r} is no number"
        if kind == "s" and arg not in _ORDERS:
            return f"{arg!r} is no huge page size; 2M and 1G are"
    return ""


def _number(text: str) -> int | None:
    try:
        return int(text, 16) if text[:2] in {"0x", "0X"} else int(text)
    except ValueError:
        return None


def _int(text: str) -> int:
    value = _number(text)
    assert value is not None, "checked when the script was read"
    return value


def play(script: Script, release: str = _RELEASE) -> Iterator[str]:
    """The trace of a script, line by line, on a host of its own that runs `release`."""
    host = Host(script, CATALOGUE[release])
    try:
        kernel = host.power_on()
        for boot_index in range(len(script.boots)):
            yield from host.run_boot(kernel, boot_index)
            if boot_index + 1 < len(script.boots):
                kernel = host.boot(*host.kexec(kernel))
    except (KernelPanic, KernelError):
        return


class Host:
    """The machine that a script runs on. Its memory is all that goes from boot to boot."""

    def __init__(self, script: Script, release: Release, machine: Machine | None = None) -> None:
        self.script = script
        self.release = release
        self.machine = machine or Machine(MachineSpec((script.memory_bytes,), _CPUS))
        self.clock = Clock(CostModel.load(), _CPUS, 0, ("conform",))
        #: The process of the boot that runs.
        self.task: Task | None = None

    def power_on(self) -> Kernel:
        """Boot for the first time."""
        return self.boot(self.release, self.machine.cold_firmware(self.script.cmdline))

    def boot(self, release: Release, firmware: Firmware) -> Kernel:
        """Boot with what a kernel is given. Raises: KernelPanic."""
        return boot(self.machine, release, firmware, self.clock, config=CONFIG)

    def run_boot(self, kernel: Kernel, index: int) -> Iterator[str]:
        """Everything that boot `index` + 1 prints."""
        if index + 1 < len(self.script.boots):
            kexec.kexec_file_load(kernel, self.release, self.script.cmdline)
        program = (_HugeProgram if self.script.huge else _Program)(kernel)
        self.task = program.task
        for step in self.script.boots[index]:
            yield f"T {step.line} {step.op} {program.run(step)}"
        yield f"T end {index + 1}"

    def kexec(self, kernel: Kernel) -> tuple[Release, Firmware]:
        """Jump; what the next kernel is given. Raises what refuses the reboot."""
        return kexec.jump(kernel, kexec.kernel_kexec(kernel))


class _Program:
    """One process that runs operations; its methods are called like them."""

    def __init__(self, kernel: Kernel) -> None:
        self.task = Task(kernel, "script")
        self.variables: dict[str, int] = {}

    def run(self, step: Step) -> str:
        """Run one operation; what the trace says of it."""
        method: Callable[..., str | None] = getattr(self, f"op_{step.op}")
        try:
            extra = method(*step.args)
        except KernelError as refused:
            return refused.name
        return f"ok {extra}" if extra else "ok"

    def fd(self, variable: str) -> int:
        """The descriptor that a variable names, -1 if none."""
        return self.variables.get(variable, -1)

    def op_open(self, v: str) -> None:
        self.variables[v] = self.task.open(DEV_LIVEUPDATE)

    def op_null(self, v: str) -> None:
        self.variables[v] = self.task.open(DEV_NULL)

    def op_tmpfile(self, v: str) -> None:
        self.variables[v] = self.task.open_tmpfs()

    def op_close(self, v: str) -> None:
        self.task.close(self.fd(v))
        self.variables[v] = -1

    def op_dup(self, v: str, w: str) -> None:
        self.variables[w] = self.task.dup(self.fd(v))

    def op_create(self, d: str, v: str, name: str) -> None:
        self.variables[v] = self.task.create_session(self.fd(d), _session_name(name))

    def op_retrieve(self, d: str, v: str, name: str) -> None:
        self.variables[v] = self.task.retrieve_session(self.fd(d), _session_name(name))

    def op_memfd(self, v: str, size: str, flags: str = "") -> None:
        fd = self.task.memfd_create(
            (MFD_ALLOW_SEALING if "s" in flags else 0) | (MFD_HUGETLB if "h" in flags else 0)
        )
        self.variables[v] = fd
        self.task.ftruncate(fd, _int(size))

    def op_fill(self, v: str, offset: str, length: str, seed: str) -> None:
        data = _xorshift(_int(seed), _int(length))
        for at in range(0, len(data), PAGE_SIZE):
            self.task.pwrite(self.fd(v), data[at : at + PAGE_SIZE], _int(offset) + at)

    def op_seek(self, v: str, position: str) -> None:
        self.task.lseek(self.fd(v), _int(position))

    def op_truncate(self, v: str, size: str) -> None:
        self.task.ftruncate(self.fd(v), _int(size))

    def op_fallocate(self, v: str, mode: str, offset: str, length: str) -> None:
        self.task.fallocate(self.fd(v), _int(mode), _int(offset), _int(length))

    def op_seal(self, v: str, seals: str) -> None:
        self.task.add_seals(self.fd(v), _int(seals))

    def op_stat(self, v: str) -> str:
        file = self.task.files.fget(self.fd(v))
        size, digest = 0, _FNV_BASIS
        if isinstance(file.inode, ShmemInode):
            size, digest = file.inode.size, _fnv_of(file.inode)
        seals = _or_minus_one(lambda: self.task.get_seals(self.fd(v)))
        position = _or_minus_one(lambda: self.task.lseek_cur(self.fd(v)))
        return f"size={size} pos={position} seals={seals} hash={digest:016x}"

    def op_preserve(self, s: str, v: str, token: str) -> None:
        self.task.preserve_fd(self.fd(s), self.fd(v), _int(token))

    def op_fetch(self, s: str, v: str, token: str) -> None:
        self.variables[v] = self.task.retrieve_fd(self.fd(s), _int(token))

    def op_finish(self, s: str, reserved: str = "0") -> None:
        self.task.finish_session(self.fd(s), _int(reserved))

    def op_name(self, s: str) -> str:
        return f"name={self.task.session_name(self.fd(s))}"

    def op_same(self, v: str, w: str) -> str:
        one, other = (self.task.files.fget(self.fd(x)) for x in (v, w))
        return str(int(one.inode is other.inode))

    def op_raw(self, v: str, cmd: str, size: str, *pokes: str) -> None:
        arg = bytearray(_RAW_BYTES)
        arg[:4] = (_int(size) & 0xFFFFFFFF).to_bytes(4, "little")
        for at, byte in zip(pokes[::2], pokes[1::2], strict=False):
            arg[_int(at) % _RAW_BYTES] = _int(byte) & 0xFF
        self.task.ioctl(self.fd(v), _int(cmd), arg)


class _HugeProgram(_Program):
    """The operations of huge page scripts; lengths count huge pages of the file's size."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.maps: dict[str, HugetlbMapping | HugetlbPrivateMapping] = {}

    def inode(self, v: str) -> HugetlbInode:
        """The huge page file that a variable names."""
        inode = self.task.files.fget(self.fd(v)).inode
        if not isinstance(inode, HugetlbMemfdInode):
            raise InvalidArgument("not on huge pages")
        return inode.hugetlb

    def op_pool(self, size: str, n: str) -> None:
        self.task.kernel.hugetlb.hstate(_ORDERS[size]).set_max_huge_pages(_int(n))

    def op_overcommit(self, size: str, n: str) -> None:
        self.task.kernel.hugetlb.hstate(_ORDERS[size]).nr_overcommit_huge_pages = _int(n)

    def op_hstat(self, size: str) -> str:
        files = self.task.kernel.hugetlb.hstate(_ORDERS[size]).sysfs()
        names = {
            "total": "nr_hugepages",
            "free": "free_hugepages",
            "rsvd": "resv_hugepages",
            "surp": "surplus_hugepages",
            "over": "nr_overcommit_hugepages",
        }
        return " ".join(f"{short}={files[name].strip()}" for short, name in names.items())

    def op_hmem(self, v: str, size: str, length: str, extra: str = "0") -> None:
        log2 = _ORDERS[size] + PAGE_SHIFT
        self.variables[v] = self.task.memfd_create(MFD_HUGETLB | log2 << MFD_HUGE_SHIFT)
        self.op_truncate(v, length, extra)

    def op_truncate(self, v: str, length: str, extra: str = "0") -> None:
        size = _int(length) * self.inode(v).page_size + _int(extra)
        self.task.ftruncate(self.fd(v), size)

    def op_fallocate(self, v: str, mode: str, offset: str, length: str) -> None:
        page = self.inode(v).page_size
        self.task.fallocate(self.fd(v), _int(mode), _int(offset) * page, _int(length) * page)

    def op_map(self, m: str, v: str, offset: str, length: str, flag: str = "") -> None:
        inode = self.inode(v)
        self.maps[m] = inode.mmap(_int(offset), _int(length), noreserve=flag == "n")

    def op_pmap(self, m: str, size: str, length: str, flag: str = "") -> None:
        hstate = self.task.kernel.hugetlb.hstate(_ORDERS[size])
        self.maps[m] = HugetlbPrivateMapping(hstate, _int(length), noreserve=flag == "n")

    def mapping(self, m: str) -> HugetlbMapping | HugetlbPrivateMapping:
        """A mapping that is there. Raises: BadAddress."""
        if m not in self.maps:
            raise BadAddress("no such mapping")
        return self.maps[m]

    def op_touch(self, m: str, page: str, count: str) -> str:
        done = self.mapping(m).touch(_int(page), _int(count))
        return f"pages={done}" + (" SIGBUS" if done < _int(count) else "")

    def op_unmap(self, m: str) -> None:
        self.mapping(m).munmap()
        del self.maps[m]


def _session_name(word: str) -> str:
    return _NAMES.get(word, word)


_T = TypeVar("_T")


def _or_minus_one(call: Callable[[], _T]) -> _T | int:
    try:
        return call()
    except KernelError:
        return -1


@lru_cache(maxsize=256)
def _xorshift(seed: int, length: int) -> bytes:
    """`length` bytes of the stream that `fill` writes."""
    x = (seed * 2654435761 + 88172645463325252) & _MASK
    out = bytearray()
    while len(out) < length:
        x ^= x << 13 & _MASK
        x ^= x >> 7
        x ^= x << 17 & _MASK
        out += x.to_bytes(8, "little")
    return bytes(out[:length])


def _fnv_of(inode: ShmemInode) -> int:
    """The hash of a file's content; holes cost nothing."""
    digest = _FNV_BASIS
    at = 0
    for index, _, nr_pages, _ in inode.extents(0, inode.nr_size_pages):
        digest = _fnv_zeroes(digest, (index << PAGE_SHIFT) - at)
        for page in range(index, index + nr_pages):
            digest = _fnv(digest, inode.read(page << PAGE_SHIFT, PAGE_SIZE))
        at = min(inode.size, index + nr_pages << PAGE_SHIFT)
    return _fnv_zeroes(digest, inode.size - at)


def _fnv_zeroes(digest: int, nr_bytes: int) -> int:
    return digest * pow(_FNV_PRIME, nr_bytes, 1 << 64) & _MASK


@lru_cache(maxsize=1024)
def _fnv(digest: int, data: bytes) -> int:
    if not any(data):
        return _fnv_zeroes(digest, len(data))
    for byte in data:
        digest = (digest ^ byte) * _FNV_PRIME & _MASK
    return digest
