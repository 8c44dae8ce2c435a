"""VMs: states, memory, and the fingerprint that tells whether it is still theirs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernelmodel.errors import KernelError, ModelBug
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.shmem import PG_DIRTY, ShmemInode
from kernelmodel.sim.trace import decode
from node.api import Backing, HugepagePool, VmSpec
from node.host import Host
from node.host_state import HostStateError
from node.vm import _NEXT, Vm, VmState, memory_extents
from tests.node.update_hosts import GIB, HOST, KIB, MIB, fault, make_host, update

RUNNING, PAUSED, STOPPED = VmState.RUNNING, VmState.PAUSED, VmState.STOPPED
SMALL = [
    VmSpec("plain", HOST, 64 * KIB, Backing.MEMFD, 1),
    VmSpec("huge", HOST, 8 * MIB, Backing.HUGETLB_2M, 1),
    VmSpec("giant", HOST, 2 * GIB, Backing.HUGETLB_1G, 1),
]
NAMES = [vm.name for vm in SMALL]


def pause(host: Host) -> None:
    host.pause_vm("huge")


def pause_and_resume(host: Host) -> None:
    host.pause_vm("huge")
    host.resume_vm("huge")


def live_update(host: Host) -> None:
    host.pause_vm("huge")
    update(host)


def panic(host: Host) -> None:
    host.inject(fault("next-kernel-panics"))
    update(host)


def cold_reboot_while_paused(host: Host) -> None:
    host.pause_vm("huge")
    host.cold_reboot(host.release)
    host.restart_vm("huge")


LIVES: list[tuple[Callable[[Host], None], list[VmState]]] = [
    (pause, [PAUSED]),
    (pause_and_resume, [PAUSED, RUNNING]),
    (live_update, [PAUSED, STOPPED, PAUSED]),
    (panic, [PAUSED, STOPPED, RUNNING]),
    (cold_reboot_while_paused, [PAUSED, STOPPED, RUNNING]),
    (lambda host: host.vm("huge").stop(), [STOPPED]),
]


@pytest.mark.parametrize(("live", "states"), LIVES)
def test_the_states_that_a_vm_goes_through(
    live: Callable[[Host], None], states: list[VmState], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[VmState] = []
    advance = Vm.advance

    def noted(vm: Vm, to: VmState) -> None:
        advance(vm, to)
        seen.append(vm.state)

    host = make_host(vms=[SMALL[1]])
    monkeypatch.setattr(Vm, "advance", noted)
    live(host)
    assert seen == states
    has_memory = states[-1] is not STOPPED
    assert (host.vm("huge").task is not None) == has_memory


def test_every_edge_between_states_is_taken_by_some_life() -> None:
    taken = {(STOPPED, RUNNING)}  # every VM's first
    for _, states in LIVES:
        taken |= set(zip([RUNNING, *states], states, strict=False))
    assert taken == {(state, to) for state, reached in _NEXT.items() for to in reached}
    assert set(_NEXT) == set(VmState)


def test_a_way_that_does_not_exist_is_our_mistake() -> None:
    vm = make_host().vm("huge")
    with pytest.raises(ModelBug, match="huge: running -> running"):
        vm.advance(RUNNING)
    vm.stop()
    with pytest.raises(ModelBug, match="huge has no VMM"):
        _ = vm.file


@pytest.mark.parametrize(
    ("before", "call", "reason"),
    [
        ("", "resume_vm", "VM_NOT_PAUSED"),
        ("", "restart_vm", "VM_NOT_STOPPED"),
        ("pause_vm", "pause_vm", "VM_NOT_RUNNING"),
        ("pause_vm", "restart_vm", "VM_NOT_STOPPED"),
    ],
)
def test_what_a_vm_refuses(before: str, call: str, reason: str) -> None:
    host = make_host()
    if before:
        getattr(host, before)("huge")
    with pytest.raises(HostStateError) as refused:
        getattr(host, call)("huge")
    assert refused.value.reason == reason


def test_vms_are_spread_over_the_nodes() -> None:
    vms = [VmSpec(f"vm{nr}", HOST, 8 * MIB, Backing.HUGETLB_2M, 1) for nr in range(4)]
    host = make_host(vms=vms, node_bytes=(8 * GIB, 8 * GIB))
    nodes = []
    for vm in host.vms.values():
        ((pfn, _), *_) = memory_extents(vm.file) or []
        nodes.append(int(pfn << PAGE_SHIFT >= 9 * GIB))  # node 1 begins above the PCI hole
    assert nodes == [0, 1, 0, 1]


@pytest.mark.parametrize("vm", NAMES)
def test_extents_cover_the_memory_once_in_file_order(vm: str) -> None:
    there = make_host(vms=SMALL).vm(vm)
    extents = memory_extents(there.file)
    assert extents is not None
    assert sum(nr_pages for _, nr_pages in extents) == there.spec.memory_bytes // PAGE_SIZE
    frames = [pfn for pfn, _ in extents]
    assert len(set(frames)) == len(frames)


@pytest.mark.parametrize("vm", NAMES)
def test_a_fingerprint_is_that_of_the_bytes(vm: str) -> None:
    host = make_host(vms=SMALL)
    memory, there = host.machine.memory, host.vm(vm)
    first = there.read_fingerprint(memory)
    assert there.read_fingerprint(memory) == first
    ((pfn, _), *_) = memory_extents(there.file) or []
    address = (pfn << PAGE_SHIFT) + 4095
    byte = memory.read(address, 1)
    memory.write(address, bytes([byte[0] ^ 1]))
    assert there.read_fingerprint(memory) != first


@pytest.mark.parametrize("vm", NAMES)
def test_a_guest_that_runs_changes_some_of_its_memory_and_not_all(vm: str) -> None:
    host = make_host(vms=SMALL)
    memory, there = host.machine.memory, host.vm(vm)

    def pages() -> list[bytes]:
        """One page of each folio."""
        step = there.spec.backing.page_bytes // PAGE_SIZE
        return [
            memory.read(at << PAGE_SHIFT, 64)
            for pfn, nr_pages in memory_extents(there.file) or []
            for at in range(pfn, pfn + nr_pages, step)
        ]

    before, changed = pages(), set()
    for _ in range(32):
        there.run()
        after = pages()
        changed |= {
            at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new
        }
        assert before != after
        assert any(old == new for old, new in zip(before, after, strict=True))
        before = after
    assert len(changed) > len(before) // 2


def test_events_tell_of_a_vm_that_was_started_again_and_what_it_holds() -> None:
    host = make_host(record_events=True)
    before = host.vm("huge").read_fingerprint(host.machine.memory)
    host.cold_reboot(host.release)
    host.trace.take_events()
    host.restart_vm("huge")
    (event,) = decode(host.trace.take_events())
    now = host.vm("huge").read_fingerprint(host.machine.memory)
    assert (event.name, event.fields) == (
        "vm",
        {"name": "huge", "state": "running", "fingerprint": now},
    )
    assert now != before


def test_two_vms_never_hold_the_same() -> None:
    vms = [VmSpec(f"vm{nr}", HOST, 8 * MIB, Backing.HUGETLB_2M, 1) for nr in range(2)]
    host = make_host(vms=vms)
    one, other = (vm.read_fingerprint(host.machine.memory) for vm in host.vms.values())
    assert one != other


def test_memory_with_a_hole_has_no_fingerprint() -> None:
    host = make_host(vms=SMALL)
    for name in ("plain", "huge"):
        vm = host.vm(name)
        inode = vm.file.inode
        if isinstance(inode, ShmemInode):
            inode.pages.clear(3, 4)
        elif isinstance(inode, HugetlbMemfdInode):
            inode.hugetlb.folios.take(3, 4)
        assert memory_extents(vm.file) is None
        assert vm.read_fingerprint(host.machine.memory) == b""


def test_a_page_that_is_not_up_to_date_counts_as_missing() -> None:
    vm = make_host(vms=SMALL).vm("plain")
    inode = vm.file.inode
    assert isinstance(inode, ShmemInode)
    ((_, pfn, _, _),) = inode.extents(5, 6)
    inode.add_to_page_cache(5, pfn, 1, PG_DIRTY)
    assert memory_extents(vm.file) is None


def test_a_vm_that_stops_gives_its_memory_back() -> None:
    host, empty = make_host(), make_host(vms=())
    for vm in host.vms.values():
        vm.stop()
        vm.stop()  # once more does nothing
    assert host.gauges().hugetlb_pages == empty.gauges().hugetlb_pages
    for nid in (0, 1):
        free = empty.kernel.page_alloc.nr_free_pages(nid)
        assert host.kernel.page_alloc.nr_free_pages(nid) == free


#: VM, pools, what the kernel says
TOO_BIG = [
    (VmSpec("v", HOST, 1 * GIB, Backing.HUGETLB_2M, 1), 256, "ENOMEM"),
    (VmSpec("v", HOST, 8 * MIB, Backing.HUGETLB_2M, 1), 0, "ENOMEM"),
    (VmSpec("v", HOST, 64 * GIB, Backing.MEMFD, 1), 256, "ENOMEM"),
]


@pytest.mark.parametrize(("spec", "pages", "said"), TOO_BIG)
def test_a_vm_that_does_not_fit_leaves_nothing_behind(spec: VmSpec, pages: int, said: str) -> None:
    pools = (HugepagePool(2 * MIB, pages),) if pages else (HugepagePool(GIB, 1),)
    host = make_host(vms=(), pools=pools)
    before = host.gauges(), host.kernel.page_alloc.nr_free_pages(0)
    vm = Vm(spec, 0)
    with pytest.raises(KernelError) as refused:
        vm.start(host.kernel)
    assert refused.value.name == said
    assert (host.gauges(), host.kernel.page_alloc.nr_free_pages(0)) == before
    assert vm.state is STOPPED
    assert vm.task is None


def test_memory_that_is_no_memory_is_our_mistake() -> None:
    host = make_host()
    host.create_session("s")
    agent = host.agent
    assert agent is not None
    with pytest.raises(ModelBug, match="neither a memfd nor a hugetlb memfd"):
        memory_extents(agent.task.files.fget(agent.device))
