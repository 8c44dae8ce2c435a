"""The states of a host: every edge between them, and what a host says that is dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import Mock, patch

import pytest

from kernelmodel.errors import KernelPanic, ModelBug
from kernelmodel.handlers.folio_table import PreservedFolios
from kernelmodel.sim.trace import decode
from node import host as host_module
from node.host import Host
from node.host_state import NEXT, HostPanicked, HostState, HostStateError
from node.vm import MEMORY_TOKEN, VmState
from tests.node.update_hosts import (
    NEW,
    OLD,
    SECOND,
    fault,
    make_host,
)

MINUTE = 60 * SECOND
UP, LOADED, REBOOTING = HostState.UP, HostState.KEXEC_LOADED, HostState.REBOOTING
PANICKED, COLD = HostState.PANICKED, HostState.COLD_BOOTING


def kexec(host: Host, release: str = NEW, timeout_ns: int = 2 * MINUTE) -> None:
    """Load and go; sessions stay as they are."""
    host.kexec_load(release)
    host.jump(host.freeze(), timeout_ns)


def with_a_trap(host: Host, vm: str = "huge") -> None:
    """Over the jump, with a file of that VM which kills the kernel that retrieves it."""
    host.preserve_vm(vm)
    (session,) = host.kernel.luo.sessions.outgoing
    (luo_file,) = session.file_set.files
    assert isinstance(luo_file.private, PreservedFolios)
    host.machine.memory.write_u64(luo_file.data + 16, 1 << 40)  # nr_folios
    kexec(host)
    host.retrieve_session(vm)


def spring(host: Host, vm: str = "huge") -> None:
    with pytest.raises(HostPanicked, match="h panicked in retrieve_fd: unable to handle page"):
        host.retrieve_fd(vm, MEMORY_TOKEN, vm)


# The states, edge by edge.


def load(host: Host) -> None:
    host.kexec_load(NEW)


def load_twice(host: Host) -> None:
    host.kexec_load(NEW)
    host.kexec_load(OLD)


def boot_cold(host: Host) -> None:
    host.cold_reboot(NEW)


def load_and_boot_cold(host: Host) -> None:
    host.kexec_load(NEW)
    host.cold_reboot(NEW)


def die(host: Host) -> None:
    host.inject(fault("next-kernel-panics"))
    kexec(host)


def die_and_recover(host: Host) -> None:
    die(host)
    host.cold_reboot(OLD)


def die_cold(host: Host) -> None:
    with patch.object(host_module, "boot", Mock(side_effect=KernelPanic("dead"))):
        host.cold_reboot(OLD)


def die_while_up(host: Host) -> None:
    with_a_trap(host)
    spring(host)


def die_while_loaded(host: Host) -> None:
    with_a_trap(host)
    host.kexec_load(OLD)
    spring(host)


LIVES: list[tuple[Callable[[Host], None], list[HostState]]] = [
    (load, [LOADED]),
    (load_twice, [LOADED, LOADED]),
    (kexec, [LOADED, REBOOTING, UP]),
    (boot_cold, [COLD, UP]),
    (load_and_boot_cold, [LOADED, COLD, UP]),
    (die, [LOADED, REBOOTING, PANICKED]),
    (die_and_recover, [LOADED, REBOOTING, PANICKED, COLD, UP]),
    (die_cold, [COLD, PANICKED]),
    (die_while_up, [LOADED, REBOOTING, UP, PANICKED]),
    (die_while_loaded, [LOADED, REBOOTING, UP, LOADED, PANICKED]),
]


def states_of(host: Host) -> list[HostState]:
    events = decode(host.trace.take_events())
    return [HostState(str(event.fields["state"])) for event in events if event.name == "host"]


@pytest.mark.parametrize(
    ("live", "states"), LIVES, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_states_that_a_host_goes_through(
    live: Callable[[Host], None], states: list[HostState]
) -> None:
    host = make_host(record_events=True)
    live(host)
    assert states_of(host) == [UP, *states]
    assert host.state is states[-1]
    assert bool(host.release) == (host.state is not PANICKED)
    assert bool(host.panic_message) == (PANICKED in states)


def test_every_edge_between_states_is_taken_by_some_life() -> None:
    taken = {(COLD, UP)}
    for _, states in LIVES:
        taken |= set(zip([UP, *states], states, strict=False))
    assert taken == {(state, to) for state, reached in NEXT.items() for to in reached}


def test_every_state_has_its_row_and_every_state_but_one_can_panic() -> None:
    assert set(NEXT) == set(HostState)
    assert {state for state, reached in NEXT.items() if PANICKED not in reached} == {PANICKED}


def test_a_way_that_does_not_exist_is_our_mistake() -> None:
    host = make_host()
    with pytest.raises(ModelBug, match="h: up -> rebooting: why"):
        host._advance(REBOOTING, "why")
    with pytest.raises(ModelBug, match="h: up -> up"):
        host._advance(UP, "why")


def test_a_vm_whose_preserving_kills_the_kernel_is_told_of_the_panic() -> None:
    host = make_host()
    tree = host.kernel.kho.outgoing_tree
    assert tree is not None
    beyond = (1 << 45).to_bytes(8, "little")  # behind all memory
    host.machine.memory.write(tree.root_pa, beyond * 512)
    with pytest.raises(HostPanicked, match="h panicked in preserve_fd: unable to handle page"):
        host.preserve_vm("huge")
    assert host.state is PANICKED


# What a dead host says, and one without an agent.


def calls(host: Host) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "kexec_load", lambda: host.kexec_load(NEW)
    yield "freeze", host.freeze
    yield "debugfs", lambda: host.debugfs("dmesg")
    yield "restart_vm", lambda: host.restart_vm("huge")
    yield "create_session", lambda: host.create_session("s")
    yield "preserve_vm", lambda: host.preserve_vm("huge")
    yield "close_session", lambda: host.close_session("s")
    yield "retrieve_session", lambda: host.retrieve_session("s")
    yield "retrieve_fd", lambda: host.retrieve_fd("s", 1, "huge")
    yield "finish_session", lambda: host.finish_session("s")
    yield "pause_vm", lambda: host.pause_vm("huge")
    yield "resume_vm", lambda: host.resume_vm("huge")


REASONS = {
    "kexec_load": "HOST_DOWN",
    "freeze": "HOST_DOWN",
    "debugfs": "HOST_DOWN",
    "restart_vm": "HOST_DOWN",
    "pause_vm": "VM_NOT_RUNNING",
    "resume_vm": "VM_NOT_PAUSED",
}


def test_a_dead_host_refuses_everything_but_a_cold_reboot() -> None:
    host = make_host()
    die(host)
    for what, call in calls(host):
        with pytest.raises(HostStateError) as refused:
            call()
        assert refused.value.reason == REASONS.get(what, "NO_AGENT")
    assert host.release == ""
    assert host.liveupdate_num == 0
    assert host.sessions() == []
    assert host.gauges().vms == {"running": 0, "paused": 0, "stopped": 3}
    host.cold_reboot(NEW)
    assert (host.state, host.release) == (UP, NEW)


def test_a_host_without_an_agent_refuses_what_the_agent_does() -> None:
    host = make_host(release="6.16")
    assert host.agent is None
    assert host.agent_error == "cannot open /dev/liveupdate: ENOENT"
    with pytest.raises(HostStateError, match="no agent has /dev/liveupdate open"):
        host.create_session("s")
    with pytest.raises(HostStateError, match="no agent has /dev/liveupdate open"):
        host.kexec_load(NEW)
    host.pause_vm("huge")
    host.resume_vm("huge")


def test_a_panic_stops_the_vms_and_tells_the_trace() -> None:
    host = make_host(record_events=True)
    die_while_up(host)
    assert {vm.state for vm in host.vms.values()} == {VmState.STOPPED}
    events = list(decode(host.trace.take_events()))
    (fatal,) = [event for event in events if "panic" in event.fields]
    assert fatal.name == "retrieve_fd"
    assert "behind the folio table" in host.panic_message
    assert not host.hung
