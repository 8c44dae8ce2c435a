"""Everything at once: policies, mounts, cgroups, HVO, resizing, in any order; the books agree."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernelmodel.errors import KernelError, NoMemory, NoSpace
from kernelmodel.fs import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, File
from kernelmodel.memory import MIB
from kernelmodel.mm import hugetlb_sysfs
from kernelmodel.mm.hugetlb import validate_hugetlb
from kernelmodel.mm.hugetlb_cgroup import HugetlbCgroup
from kernelmodel.mm.hugetlbfs import (
    HugetlbInode,
    HugetlbMapping,
    HugetlbPrivateMapping,
)
from kernelmodel.mm.hugetlbfs_mount import HugetlbfsMount
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.mempolicy import MemPolicy, Mode, Placement
from tests.kernelmodel.kernels import CMDLINE, power_on

HUGE = 2 * MIB
PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
INDEX = st.integers(0, 7)
NODES = st.sampled_from([(0,), (1,), (0, 1)])


class HugetlbMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        cmdline = f"{CMDLINE} hugepages=12 hugetlb_free_vmemmap=on"
        self.kernel = power_on(cmdline, node_bytes=(160 * MIB, 96 * MIB))
        self.state = self.kernel.hugetlb
        self.hstate = self.state.hstate(9)
        parent = HugetlbCgroup("all")
        self.groups = [HugetlbCgroup("one", parent), HugetlbCgroup("two", parent)]
        self.parent = parent
        self.place = Placement()
        self.mounts = [
            HugetlbfsMount(self.kernel, options) for options in ("size=10M", "min_size=4M", "")
        ]
        self.files: list[File] = []
        self.maps: list[HugetlbMapping | HugetlbPrivateMapping] = []
        self.inodes: dict[int, HugetlbInode] = {}

    def books(self, index: int) -> HugetlbInode:
        inode = self.files[index % len(self.files)].inode
        assert isinstance(inode, HugetlbMemfdInode)
        return inode.hugetlb

    @rule(mode=st.sampled_from(Mode), nodes=NODES, nid=st.integers(0, 1), group=st.integers(0, 2))
    def become(self, mode: Mode, nodes: tuple[int, ...], nid: int, group: int) -> None:
        """Another task acts from now on."""
        named = () if mode in {Mode.DEFAULT, Mode.LOCAL} else nodes
        cgroup = self.groups[group] if group < 2 else None
        self.place = Placement(nid, MemPolicy(mode, named), cgroup=cgroup)

    @rule(which=st.integers(0, 2))
    def create(self, which: int) -> None:
        mount = self.mounts[which]
        name = f"f{len(self.inodes)}"
        file = mount.create(name)
        self.files.append(file)
        self.inodes[len(self.inodes)] = self.books(-1)
        mount.unlink(name)

    @precondition(lambda self: self.files)
    @rule(index=INDEX, start=st.integers(0, 4), nr=st.integers(1, 5), noreserve=st.booleans())
    def map_file(self, index: int, start: int, nr: int, noreserve: bool) -> None:
        before = self.hstate.resv_huge_pages, self.hstate.nr_huge_pages
        try:
            mapping = self.books(index).mmap(start, nr, self.place, noreserve=noreserve)
        except NoMemory:
            assert (self.hstate.resv_huge_pages, self.hstate.nr_huge_pages) == before
        else:
            self.maps.append(mapping)

    @rule(nr=st.integers(1, 5), noreserve=st.booleans())
    def map_private(self, nr: int, noreserve: bool) -> None:
        before = self.hstate.resv_huge_pages, self.hstate.nr_huge_pages
        try:
            mapping = HugetlbPrivateMapping(self.hstate, nr, self.place, noreserve=noreserve)
        except NoMemory:
            assert (self.hstate.resv_huge_pages, self.hstate.nr_huge_pages) == before
        else:
            self.maps.append(mapping)

    @precondition(lambda self: self.maps)
    @rule(index=INDEX, page=st.integers(0, 4), nr=st.integers(1, 5))
    def touch(self, index: int, page: int, nr: int) -> None:
        mapping = self.maps[index % len(self.maps)]
        if page < mapping.nr:
            mapping.touch(page, min(nr, mapping.nr - page), self.place)

    @precondition(lambda self: self.maps)
    @rule(index=INDEX)
    def unmap(self, index: int) -> None:
        self.maps.pop(index % len(self.maps)).munmap()

    @precondition(lambda self: self.files)
    @rule(index=INDEX, size=st.integers(0, 6))
    def truncate(self, index: int, size: int) -> None:
        self.books(index).ftruncate(size * HUGE)

    @precondition(lambda self: self.files)
    @rule(index=INDEX, mode=st.sampled_from([0, 1, PUNCH]), at=st.integers(0, 4))
    def fallocate(self, index: int, mode: int, at: int) -> None:
        try:
            self.books(index).fallocate(mode, at * HUGE, 2 * HUGE, self.place)
        except NoSpace:
            assert mode != PUNCH

    @precondition(lambda self: self.files)
    @rule(index=INDEX)
    def close(self, index: int) -> None:
        self.files.pop(index % len(self.files)).put()

    @rule(what=st.sampled_from(["nr_hugepages", "nr_hugepages_mempolicy"]), n=st.integers(0, 20))
    def resize(self, what: str, n: int) -> None:
        path = f"/sys/kernel/mm/hugepages/hugepages-2048kB/{what}"
        hugetlb_sysfs.write(self.state, path, str(n), self.place)

    @rule(n=st.integers(0, 5))
    def overcommit(self, n: int) -> None:
        hugetlb_sysfs.write(self.state, "/proc/sys/vm/nr_overcommit_hugepages", str(n))

    @rule(on=st.booleans())
    def hvo(self, on: bool) -> None:
        hugetlb_sysfs.write(self.state, "/proc/sys/vm/hugetlb_optimize_vmemmap", str(int(on)))

    @rule(which=st.integers(0, 1), name=st.sampled_from(["max", "rsvd.max"]), n=st.integers(0, 9))
    def limit(self, which: int, name: str, n: int) -> None:
        self.groups[which].write(name, 9, str(n * HUGE) if n else "max")

    @invariant()
    def pools_agree(self) -> None:
        validate_hugetlb(self.state)

    @invariant()
    def used_pages_are_somebodys(self) -> None:
        held: Counter[str] = Counter()
        for inode in self.inodes.values():
            held["files"] += inode.folios.total
        for mapping in self.maps:
            if isinstance(mapping, HugetlbPrivateMapping):
                held["private"] += mapping.folios.total
        assert sum(held.values()) == self.hstate.nr_huge_pages - self.hstate.free_huge_pages
        assert self.parent.usage(9) <= sum(held.values())
        assert self.parent.usage(9) == sum(group.usage(9) for group in self.groups)

    @invariant()
    def struct_pages_are_accounted_for(self) -> None:
        frames = self.kernel.hugetlb.vmemmap
        optimized = sum(node.optimized.total for node in self.hstate.nodes.values())
        moved = frames.moved.total >> 9
        # a folio that ever gave its frames up has one extra while in a pool so, eight otherwise
        assert frames.extra.total == optimized + (moved - optimized) * 8
        assert frames.released.total == moved * 8

    def teardown(self) -> None:
        for mapping in self.maps:
            mapping.munmap()
        for file in self.files:
            file.put()
        for mount in self.mounts:
            try:
                mount.umount()
            except KernelError as error:
                raise AssertionError("nothing holds the mount") from error
        assert self.hstate.free_huge_pages == self.hstate.nr_huge_pages
        assert self.hstate.resv_huge_pages == 0
        for rsvd in (False, True):
            assert self.parent.usage(9, rsvd=rsvd) == 0


TestHugetlbMachine = HugetlbMachine.TestCase
TestHugetlbMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)
