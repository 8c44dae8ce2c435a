"""The model answers scripts of huge page operations as the running 7.3.4 kernel did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelmodel.errors import BadFileDescriptor, KernelError
from kernelmodel.mm.hugetlb import HugetlbState, validate_hugetlb
from kernelmodel.mm.hugetlbfs import (
    HugetlbInode,
    HugetlbMapping,
    HugetlbPrivateMapping,
    validate_hugetlb_inode,
)
from kernelmodel.mm.memblock import Memblock
from kernelmodel.mm.page_alloc import PageAllocator, validate_page_alloc

RECORDINGS = Path(__file__).parent / "hugetlb"
ORDERS = {"2M": 9, "1G": 18}


class Player:
    """One boot with one process, which runs a script line by line."""

    def __init__(self, params: str) -> None:
        memory, _, cmdline = params.partition(" ")
        size = int(memory.removeprefix("memory=").removesuffix("G")) << 30
        memblock = Memblock()
        memblock.add(1 << 20, min(size, 3 << 30) - (1 << 20))
        if size > 3 << 30:
            memblock.add(4 << 30, size - (3 << 30))
        self.hugetlb = HugetlbState(cmdline)
        self.hugetlb.bootmem_alloc(memblock)
        self.pages = PageAllocator(
            (region.base >> 12, region.size >> 12, region.nid) for region in memblock.memory
        )
        for base, end, _ in memblock.free_ranges():
            self.pages.free_range(base >> 12, (end - base) >> 12)
        self.hugetlb.init(self.pages)
        self.files: dict[str, HugetlbInode] = {}
        self.maps: dict[str, HugetlbMapping | HugetlbPrivateMapping] = {}

    def run(self, op: str, args: list[str]) -> str:
        try:
            return f"ok{getattr(self, op)(*args) or ''}"
        except KernelError as refused:
            return refused.name

    def pool(self, size: str, n: str) -> None:
        self.hugetlb.hstate(ORDERS[size]).set_max_huge_pages(int(n))

    def overcommit(self, size: str, n: str) -> None:
        self.hugetlb.hstate(ORDERS[size]).nr_overcommit_huge_pages = int(n)

    def hstat(self, size: str) -> str:
        files = self.hugetlb.hstate(ORDERS[size]).sysfs()
        names = {
            "total": "nr_hugepages",
            "free": "free_hugepages",
            "rsvd": "resv_hugepages",
            "surp": "surplus_hugepages",
            "over": "nr_overcommit_hugepages",
        }
        return "".join(f" {short}={files[name].strip()}" for short, name in names.items())

    def hmem(self, var: str, size: str, length: str, extra: str = "0") -> None:
        self.files[var] = HugetlbInode(self.hugetlb.hstate(ORDERS[size]))
        self.truncate(var, length, extra)

    def fd(self, var: str) -> HugetlbInode:
        if var not in self.files:
            raise BadFileDescriptor(var)
        return self.files[var]

    def truncate(self, var: str, length: str, extra: str = "0") -> None:
        inode = self.fd(var)
        inode.ftruncate(int(length) * inode.page_size + int(extra))

    def fallocate(self, var: str, mode: str, offset: str, length: str) -> None:
        inode = self.fd(var)
        inode.fallocate(int(mode), int(offset) * inode.page_size, int(length) * inode.page_size)

    def close(self, var: str) -> None:
        self.fd(var).put()
        del self.files[var]

    def map(self, var: str, file: str, offset: str, length: str, flag: str = "") -> None:
        self.maps[var] = self.fd(file).mmap(int(offset), int(length), noreserve=flag == "n")

    def pmap(self, var: str, size: str, length: str, flag: str = "") -> None:
        hstate = self.hugetlb.hstate(ORDERS[size])
        self.maps[var] = HugetlbPrivateMapping(hstate, int(length), noreserve=flag == "n")

    def touch(self, var: str, page: str, count: str) -> str:
        done = self.maps[var].touch(int(page), int(count))
        return f" pages={done}" + (" SIGBUS" if done < int(count) else "")

    def unmap(self, var: str) -> None:
        self.maps.pop(var).munmap()

    def validate(self) -> None:
        validate_hugetlb(self.hugetlb)
        validate_page_alloc(self.pages)
        for inode in self.files.values():
            validate_hugetlb_inode(inode)


def play(script: str) -> Iterator[str]:
    lines = script.splitlines()
    player = Player(lines[0].removeprefix("#! "))
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        op, *args = line.split()
        if op in ("touch", "unmap") and args[0] not in player.maps:
            answer = "EFAULT"
        else:
            answer = player.run(op, args)
        player.validate()
        yield f"T {number} {op} {answer}"
    yield "T end 1"


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.scn")), ids=lambda path: path.stem)
def test_a_hugetlb_recording_is_reproduced_line_by_line(path: Path) -> None:
    recorded = path.with_suffix(".trace").read_text().splitlines()
    assert list(play(path.read_text())) == recorded
