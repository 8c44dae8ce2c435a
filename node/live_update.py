"""One host update: the steps in order, what is tried again, and what is fallen back to.

Happy path: load the next kernel, preserve every VM, pause them, freeze and jump, retrieve, resume,
finish. Loading, preserving and finishing lie outside the blackout.

Unhappy paths, by `UpdatePolicy`: a freeze that fails resumes the VMs and is tried again after a
delay, and then given up (or turned into a cold reboot); a next kernel that panics or hangs is
reset into a cold boot, with every VM restarted, and so is one that dies of what it was handed; a
VM whose memory does not come back, or comes back changed, is lost, and started afresh if the
policy says so.

A VM that stood still before the update is taken along and stands still after it; one that has no
memory is left alone.
"""

from __future__ import annotations

from kernelmodel.errors import KernelError
from node.api import HostOutcome, UpdateCommand, UpdateResult, VmOutcome
from node.host import Host
from node.host_state import HostPanicked, HostState, HostStateError
from node.update_steps import Update, VmTimes
from node.vm import VmState

__all__ = ["update_host"]


def update_host(host: Host, command: UpdateCommand) -> UpdateResult:
    """Carry out one command.

    The host must be UP and must not have reached `start_ns` yet; anything that goes wrong on
    the host is in the result, never an exception.
    """
    if host.clock.now_ns < command.start_ns:
        host.clock.advance_to(command.start_ns)
    host.take_phases()
    update = Update(host, command, host.release)
    for name, vm in host.vms.items():
        if vm.state is not VmState.STOPPED:
            update.vms[name] = VmTimes(vm.vmm, held=vm.state is VmState.PAUSED)
            update.lanes.append((vm.vmm, name))
    host.emit("update", release=command.release, seq=command.seq)
    if host.state not in (HostState.UP, HostState.KEXEC_LOADED):
        return update.result(HostOutcome.FAILED, "not-ready", f"host is {host.state}")
    if host.agent is None:
        detail = f"{host.release} has no agent: {host.agent_error}"
        return update.result(HostOutcome.FAILED, "not-ready", detail)
    try:
        return _run(update)
    except HostPanicked as panic:
        del host.phases[-1:]  # the phase it died in never came to its end
        return _boot_failed(update, str(panic))
    except HostStateError as error:  # somebody scripted this host into a corner
        return update.result(HostOutcome.FAILED, "not-ready", str(error))


def _run(update: Update) -> UpdateResult:
    host, command = update.host, update.command
    try:
        update.load()
    except KernelError as error:
        return update.result(HostOutcome.FAILED, "kexec-load-failed", str(error))
    try:
        update.preserve()
    except KernelError as error:
        return update.result(HostOutcome.FAILED, "preserve-failed", str(error))
    policy = command.policy
    while True:
        update.attempts += 1
        update.pause()
        try:
            image = host.freeze()
            break
        except KernelError as error:
            update.freeze_failed()
            if update.attempts <= policy.freeze_retries:
                host.clock.advance_to(host.clock.now_ns + policy.freeze_retry_delay_ns)
                continue
            return _freeze_gave_up(update, error)
    host.jump(image, policy.boot_timeout_ns)
    if host.state is HostState.PANICKED:
        return _boot_failed(update, host.panic_message)
    update.retrieve()
    kept = update.with_outcome(VmOutcome.PRESERVED)
    lost = update.with_outcome(VmOutcome.LOST) if len(kept) < len(update.vms) else []
    update.count_preserved(kept)
    update.note_phases()
    update.resume(kept)
    update.finish()
    if lost and policy.restart_lost_vms:
        update.restart(lost)
    if lost:
        return update.result(HostOutcome.UPDATED, "vm-lost", update.why_lost(lost))
    if update.attempts > 1:
        detail = f"after {update.attempts} freezes"
        return update.result(HostOutcome.UPDATED, "freeze-retried", detail)
    return update.result(HostOutcome.UPDATED, "", "")


def _freeze_gave_up(update: Update, error: KernelError) -> UpdateResult:
    """Retries are used up: stay on the old kernel, or give up the VMs' memory."""
    if update.command.policy.on_freeze_failure == "cold-reboot":
        update.cold_reboot(update.command.release, "freeze-failed")
        up = update.host.state is HostState.UP
        outcome = HostOutcome.UPDATED if up else HostOutcome.FAILED
        return update.result(outcome, "freeze-failed", f"cold reboot: {error}")
    update.unpreserve()
    detail = f"{update.attempts} freezes failed: {error}"
    return update.result(HostOutcome.FAILED, "freeze-failed", detail)


def _boot_failed(update: Update, message: str) -> UpdateResult:
    """The next kernel did not come up, or died of what it was handed: reset."""
    host, policy = update.host, update.command.policy
    reason = "boot-timeout" if host.hung else "panic"
    to_new = policy.on_panic == "cold-reboot-new"
    update.cold_reboot(update.command.release if to_new else update.old_release, reason)
    outcome = HostOutcome.UPDATED if to_new else HostOutcome.ROLLED_BACK
    if host.state is not HostState.UP:
        outcome = HostOutcome.FAILED
    return update.result(outcome, reason, message)
