"""A host by hand: its operations, what each refuses and leaves behind."""

from __future__ import annotations

import pytest

from kernelmodel.errors import Busy, Exists, InvalidArgument, ModelBug
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.sim.trace import decode
from node.api import FaultSpec, HugepagePool
from node.host import Host, kernel_cmdline
from node.host_state import HostState, HostStateError
from node.vm import MEMORY_TOKEN, VmState, memory_extents
from tests.node.update_hosts import (
    GIB,
    HOST,
    MIB,
    NEW,
    SECOND,
    VMS,
    fault,
    make_host,
)

MINUTE = 60 * SECOND
UP, LOADED, REBOOTING = HostState.UP, HostState.KEXEC_LOADED, HostState.REBOOTING
PANICKED, COLD = HostState.PANICKED, HostState.COLD_BOOTING


def kexec(host: Host) -> None:
    """Load and go; sessions stay as they are."""
    host.kexec_load(NEW)
    host.jump(host.freeze(), MINUTE)


def test_a_live_update_by_hand() -> None:
    host = make_host()
    for vm in VMS:
        host.preserve_vm(vm.name)
        host.pause_vm(vm.name)
    assert [(s.name, s.outgoing, s.tokens) for s in host.sessions()] == [
        (vm.name, True, (MEMORY_TOKEN,)) for vm in VMS
    ]
    kexec(host)
    assert [(s.name, s.outgoing, s.retrieved) for s in host.sessions()] == [
        (vm.name, False, False) for vm in VMS
    ]
    for vm in VMS:
        host.retrieve_session(vm.name)
        assert host.retrieve_fd(vm.name, MEMORY_TOKEN, vm.name)
        host.resume_vm(vm.name)
        host.finish_session(vm.name)
        host.close_session(vm.name)
    assert host.sessions() == []
    assert host.gauges().vms["running"] == 3
    assert (host.release, host.liveupdate_num) == (NEW, 1)


def test_a_guest_that_nobody_paused_runs_to_the_very_end() -> None:
    host = make_host()
    host.preserve_vm("huge")
    before = host.vm("huge").fingerprint
    kexec(host)
    host.retrieve_session("huge")
    assert host.retrieve_fd("huge", MEMORY_TOKEN, "huge")
    assert host.vm("huge").fingerprint != before


def test_a_vm_that_nobody_preserved_is_gone() -> None:
    host = make_host()
    kexec(host)
    with pytest.raises(HostStateError, match="no open session"):
        host.retrieve_fd("huge", MEMORY_TOKEN, "huge")
    assert host.vm("huge").state is VmState.STOPPED
    host.restart_vm("huge")
    assert host.vm("huge").state is VmState.RUNNING


def test_the_memory_of_another_vm_is_not_ones_own() -> None:
    host = make_host(vms=[VMS[1], VMS[2]])
    for vm in ("huge", "giant"):
        host.preserve_vm(vm)
    kexec(host)
    host.retrieve_session("huge")
    assert not host.retrieve_fd("huge", MEMORY_TOKEN, "giant")


def test_a_refused_call_leaves_everything_as_it_was() -> None:
    host = make_host()
    host.preserve_vm("huge")
    host.create_session("s")
    with pytest.raises(Exists):
        host.create_session("s")
    with pytest.raises(HostStateError, match="h has no VM 'other'"):
        host.preserve_vm("other")
    with pytest.raises(HostStateError, match="VM 'other'"):
        host.inject(FaultSpec(HOST, "drop-preserved-page", vm="other"))
    with pytest.raises(InvalidArgument, match="no image is loaded"):
        host.freeze()
    with pytest.raises(HostStateError, match=r"no release '5\.10' among .*7\.3\.4"):
        host.cold_reboot("5.10")
    assert [session.name for session in host.sessions()] == ["huge", "s"]
    assert host.state is UP
    kexec(host)
    host.retrieve_session("huge")
    with pytest.raises(HostStateError, match="giant has no memory"):
        host.preserve_fd("huge", 2, "giant")


def test_closing_an_outgoing_session_frees_the_vm_for_another() -> None:
    host = make_host()
    host.preserve_vm("huge")
    host.close_session("huge")
    host.preserve_vm("huge")
    assert len(host.sessions()) == 1


def test_a_preserved_vm_cannot_be_preserved_twice() -> None:
    host = make_host()
    host.preserve_vm("huge")
    host.create_session("again")
    with pytest.raises(Busy):
        host.preserve_fd("again", MEMORY_TOKEN, "huge")


def test_a_failed_freeze_changes_nothing() -> None:
    host = make_host(fault("freeze-fails", times=2))
    host.preserve_vm("huge")
    host.kexec_load(NEW)
    for _ in range(2):
        with pytest.raises(Busy, match="injected"):
            host.freeze()
        assert host.state is LOADED
        assert [session.name for session in host.sessions()] == ["huge"]
    host.jump(host.freeze(), MINUTE)
    host.retrieve_session("huge")
    assert host.retrieve_fd("huge", MEMORY_TOKEN, "huge")


def test_a_cold_reboot_forgets_what_was_in_memory() -> None:
    host = make_host()
    ((pfn, _), *_) = memory_extents(host.vm("giant").file) or []
    assert any(host.machine.memory.read(pfn << PAGE_SHIFT, PAGE_SIZE))
    host.cold_reboot(NEW)
    assert not any(host.machine.memory.read(pfn << PAGE_SHIFT, PAGE_SIZE))


def test_phases_are_taken_once() -> None:
    host = make_host()
    assert host.take_phases() == []
    kexec(host)
    names = [phase.name for phase in host.take_phases()]
    assert names == [
        "freeze",
        "kexec",
        "kho",
        "hugetlb",
        "memmap",
        "init",
        "memmap",
        "init",
        "userspace",
    ]
    assert host.take_phases() == []


def test_a_loaded_command_line_is_what_the_next_kernel_boots_with() -> None:
    host = make_host()
    host.kexec_load(NEW, "kho=on liveupdate=on quiet")
    host.jump(host.freeze(), MINUTE)
    assert host.debugfs("proc/cmdline") == "kho=on liveupdate=on quiet\n"
    host.kexec_load(NEW)
    host.jump(host.freeze(), MINUTE)
    assert host.debugfs("proc/cmdline") == "kho=on liveupdate=on quiet\n"
    host.cold_reboot(NEW)
    assert host.debugfs("proc/cmdline") == kernel_cmdline(host.spec) + "\n"


def test_the_command_line_of_a_host() -> None:
    host = make_host(
        pools=(HugepagePool(2 * MIB, 3), HugepagePool(GIB, 2)), cmdline=" a  b=c ", vms=()
    )
    assert kernel_cmdline(host.spec) == (
        "kho=on liveupdate=on hugepagesz=2M hugepages=3 hugepagesz=1G hugepages=2 a b=c"
    )


def test_vms_that_do_not_fit_their_host_are_our_mistake() -> None:
    with pytest.raises(ModelBug, match="h has no memory for its VM giant: ENOMEM"):
        make_host(pools=(HugepagePool(2 * MIB, 256), HugepagePool(GIB, 1)))


def test_time_begins_when_the_host_runs() -> None:
    host = make_host(record_events=True)
    assert host.clock.now_ns == 0
    assert {event.now_ns for event in decode(host.trace.take_events())} == {0}


def test_a_session_is_called_what_the_kernel_keeps_of_its_name() -> None:
    host = make_host()
    host.create_session("kept\0not kept")
    assert [session.name for session in host.sessions()] == ["kept"]
    with pytest.raises(Exists):
        host.create_session("kept")
    host.preserve_fd("kept", MEMORY_TOKEN, VMS[0].name)
    kexec(host)
    host.retrieve_session("kept\0as well")
    host.finish_session("kept")
    host.close_session("kept\0not kept")
    assert host.sessions() == []
