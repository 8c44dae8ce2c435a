"""Hosts that are scripted into corners: whatever is asked, a host answers or refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from kernelmodel.errors import KernelError
from kernelmodel.sim.trace import decode
from kernelmodel.validate import validate_kernel
from node.api import HugepagePool, UpdateResult
from node.faults import FAULT_KINDS
from node.host import Host
from node.host_state import HostState, HostStateError
from node.vm import VmState
from tests.node.tampering import SMALL_VMS
from tests.node.update_hosts import GIB, MIB, NEW, OLD, SECOND, fault, make_host, update

VMS = [vm.name for vm in SMALL_VMS]
RELEASES = [OLD, OLD, NEW, NEW]
#: Faults that do not damage memory: a retrieve that fails leaks pages on purpose.
KINDS = sorted(set(FAULT_KINDS) - {"drop-preserved-page", "corrupt-folio-entry"})
POOLS = (HugepagePool(2 * MIB, 16), HugepagePool(GIB, 4))


def carry_over(host: Host, chance: random.Random) -> None:
    """What an agent does for a live update, but for a VM that it may forget, and no finish."""
    for name in VMS:
        if chance.random() < 0.8:
            host.preserve_vm(name)
    host.kexec_load(chance.choice(RELEASES))
    host.jump(host.freeze(), 120 * SECOND)
    for session in host.sessions():
        host.retrieve_session(session.name)
        if chance.random() < 0.8:
            host.retrieve_fd(session.name, 1, session.name)


#: Everything that can be done to a host, by name; `r` chooses whom and what.
STEPS: dict[str, Callable[[Host, random.Random], object]] = {
    "pause": lambda host, r: host.pause_vm(r.choice(VMS)),
    "resume": lambda host, r: host.resume_vm(r.choice(VMS)),
    "restart": lambda host, r: host.restart_vm(r.choice(VMS)),
    "stop": lambda host, r: host.vm(r.choice(VMS)).stop(),
    "create": lambda host, r: host.create_session(r.choice([*VMS, "s"])),
    "preserve fd": lambda host, r: host.preserve_fd(
        r.choice([*VMS, "s"]), r.choice([1, 1, 2]), r.choice(VMS)
    ),
    "preserve VM": lambda host, r: host.preserve_vm(r.choice(VMS)),
    "close": lambda host, r: host.close_session(r.choice([*VMS, "s"])),
    "retrieve session": lambda host, r: host.retrieve_session(r.choice([*VMS, "s"])),
    "retrieve fd": lambda host, r: host.retrieve_fd(
        r.choice([*VMS, "s"]), r.choice([1, 1, 2]), r.choice(VMS)
    ),
    "finish": lambda host, r: host.finish_session(r.choice([*VMS, "s"])),
    "load": lambda host, r: host.kexec_load(r.choice(RELEASES)),
    "reboot": lambda host, _: host.jump(host.freeze(), 120 * SECOND),
    "cold reboot": lambda host, r: host.cold_reboot(r.choice(RELEASES)),
    "carry over": carry_over,
    "update": lambda host, r: update(host, r.choice(RELEASES)),
    "inject": lambda host, r: host.inject(fault(r.choice(KINDS), factor=2.0)),
}


def play(seed: int) -> tuple[Host, set[str]]:
    """A host after forty steps, and what became of its updates; refusals are part of the play."""
    host = make_host(vms=SMALL_VMS, pools=POOLS, record_events=True)
    chance, reasons = random.Random(seed), set[str]()
    for _ in range(40):
        step = STEPS[chance.choice(list(STEPS))]
        with suppress(KernelError, HostStateError):
            answer = step(host, chance)
            if isinstance(answer, UpdateResult):
                reasons.add(answer.reason)
        check(host)
    return host, reasons


def check(host: Host) -> None:
    """What holds of a host at any time."""
    states = [vm.state for vm in host.vms.values()]
    gauges = host.gauges()
    assert sum(gauges.vms.values()) == len(states)
    assert bool(gauges.release) == (host.state is not HostState.PANICKED)
    for vm in host.vms.values():
        assert (vm.task is not None) == (vm.state is not VmState.STOPPED)
    if gauges.release:
        tasks = [host.agent.task] if host.agent is not None else []
        validate_kernel(host.kernel, tasks + [vm.task for vm in host.vms.values() if vm.task])
    for pool in gauges.hugetlb_pages.values():
        assert min(pool.values()) >= 0
    assert (host.loaded is not None) == (host.state is HostState.KEXEC_LOADED)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_asked_of_a_host_it_answers_or_refuses(seed: int) -> None:
    play(seed)


def test_a_script_that_is_played_again_gives_the_same_host() -> None:
    for seed in range(5):
        assert play(seed)[0].trace.hexdigest() == play(seed)[0].trace.hexdigest()


def test_the_scripts_get_everywhere() -> None:
    seen: set[str] = set()
    for seed in range(40):
        host, reasons = play(seed)
        seen |= {f"update: {reason}" for reason in reasons}
        for event in decode(host.trace.take_events()):
            seen |= {event.name, str(event.fields.get("state", ""))}
    assert {"retrieved", "finish_session", "jump", "panicked", "preserve_fd"} <= seen
    assert {"update: ", "update: not-ready", "update: preserve-failed", "update: panic"} <= seen
