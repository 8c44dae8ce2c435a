"""Damage done to a host's memory at the very jump, and what its VMs really hold.

Guest memory is read as bytes just before the damage and again after the update, past everything
that the host believes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

from kernelmodel import kexec
from kernelmodel.handlers.folio_table import PreservedFolios
from kernelmodel.kernel import Kernel
from kernelmodel.luo.handler import LuoFile
from kernelmodel.machine import Firmware
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.releases import Release
from node.api import Backing, HostOutcome, UpdatePolicy, UpdateResult, VmOutcome, VmSpec
from node.host import Host
from node.host_state import HostState
from node.vm import Vm, memory_extents
from tests.node.update_hosts import GIB, HOST, KIB, MIB, POLICY, make_host, update

#: Small enough to be damaged place by place: 16, 4 and 2 folios.
SMALL_VMS = (
    VmSpec("plain", HOST, 64 * KIB, Backing.MEMFD, 1),
    VmSpec("huge", HOST, 8 * MIB, Backing.HUGETLB_2M, 1),
    VmSpec("giant", HOST, 2 * GIB, Backing.HUGETLB_1G, 1),
)

Damage = Callable[[Kernel], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes [pa, pa + size) that the next kernel reads, and what they are."""

    what: str
    pa: int
    size: int


def update_with(damage: Damage, policy: UpdatePolicy = POLICY) -> Verdict:
    """Update a fresh host whose memory `damage` changes after the old kernel's last act."""
    host = make_host(vms=SMALL_VMS)
    before: dict[str, list[bytes]] = {}
    real_jump = kexec.jump

    def jump(kernel: Kernel, image: kexec.Kimage) -> tuple[Release, Firmware]:
        entered = real_jump(kernel, image)
        before.update({name: guest_bytes(host, vm) for name, vm in host.vms.items()})
        damage(kernel)
        return entered

    with patch.object(kexec, "jump", jump):
        return Verdict(host, update(host, policy=policy), before)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an update reported, and what it should be compared with."""

    host: Host
    result: UpdateResult
    before: dict[str, list[bytes]]

    @property
    def lost(self) -> set[str]:
        """The VMs that are reported lost."""
        return {vm.name for vm in self.result.vms if vm.outcome is VmOutcome.LOST}

    @property
    def kernel_died(self) -> bool:
        """Whether the next kernel was given up."""
        return self.result.outcome is HostOutcome.ROLLED_BACK

    def check(self) -> None:
        """Nobody is called fine but those whose bytes are, and nobody else owns those bytes."""
        taken: set[int] = set()
        for vm in self.result.vms:
            if vm.outcome is not VmOutcome.PRESERVED:
                continue
            there = self.host.vm(vm.name)
            assert guest_bytes(self.host, there) == self.before[vm.name]
            for pfn, nr_pages in memory_extents(there.file) or []:
                assert not self.host.kernel.page_alloc.is_free(pfn, nr_pages)
                frames = set(range(pfn, pfn + nr_pages, there.spec.backing.page_bytes // PAGE_SIZE))
                assert not frames & taken
                taken |= frames
        assert self.host.state is HostState.UP
        if self.kernel_died:
            assert {vm.outcome for vm in self.result.vms} <= {VmOutcome.RESTARTED, VmOutcome.LOST}


def guest_bytes(host: Host, vm: Vm) -> list[bytes]:
    """The bytes of the first, middle and last page of each folio of a VM, in the guest's order."""
    folio_pages = vm.spec.backing.page_bytes // PAGE_SIZE
    extents = memory_extents(vm.file)
    assert extents is not None
    return [
        host.machine.memory.read(head + page << PAGE_SHIFT, PAGE_SIZE)
        for pfn, nr_pages in extents
        for head in range(pfn, pfn + nr_pages, folio_pages)
        for page in dict.fromkeys((0, folio_pages // 2, folio_pages - 1))
    ]


def flip(pa: int, bit: int) -> Damage:
    """One bit of memory, counted from `pa`."""

    def damage(kernel: Kernel) -> None:
        at = pa + bit // 8
        kernel.memory.write(at, bytes([kernel.memory.read(at, 1)[0] ^ 1 << bit % 8]))

    return damage


def preserved_files(kernel: Kernel) -> Iterator[tuple[str, LuoFile, PreservedFolios]]:
    """The VMs' memory files among the outgoing sessions."""
    for session in kernel.luo.sessions.outgoing:
        for luo_file in session.file_set.files:
            assert isinstance(luo_file.private, PreservedFolios)
            yield session.name.rstrip(b"\0").decode(), luo_file, luo_file.private


def places(kernel: Kernel) -> Iterator[Place]:
    """All that is handed over besides guest memory and the radix tree."""
    luo, kho = kernel.luo, kernel.kho
    yield Place("fdt", kho.fdt_pa, int.from_bytes(kernel.memory.read(kho.fdt_pa + 4, 4), "big"))
    yield Place("luo_ser", luo.luo_ser_pa, 32)
    sessions = luo.sessions.outgoing
    yield Place("session block", luo.sessions.outgoing_blocks.head_pa, 16 + 80 * len(sessions))
    yield Place("flb page", luo.flbs.outgoing_pa, 16 + 64)
    yield Place("hugetlb_ser", luo.flbs.registered[0].outgoing_data, 37)
    for session in sessions:
        name = session.name.rstrip(b"\0").decode()
        yield Place(f"file block of {name}", session.file_set.block_set.head_pa, 16 + 64)
    for name, luo_file, folios in preserved_files(kernel):
        yield Place(f"file of {name}", luo_file.data, 48 if name == "plain" else 41)
        yield Place(f"vmalloc chunk of {name}", folios.vmalloc.first, 24)
        assert folios.table is not None
        table_pa = folios.table.extents[0][0] << PAGE_SHIFT
        yield Place(f"folio table of {name}", table_pa, 16 * folios.nr_folios)


def the_places() -> list[Place]:
    """The places of the host of `update_with`, which is the same every time."""
    found: list[Place] = []
    update_with(lambda kernel: found.extend(places(kernel)))
    return found
