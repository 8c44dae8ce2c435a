"""The steps of one host update and the books of what they cost.

`node.live_update` decides which step comes next; here is what each does to the host and to the
times of its VMs, and how the times add up in the end.

Time: the host's blackout runs from the last VM's pause to the end of the last VM's retrieve; its
phases add up to it exactly, and a phase in which nothing was to be done is absent. A VM's downtime
adds its wait for the others' pause and its wait for its own resume, and whatever earlier attempts
cost it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kernelmodel.errors import KernelError, ModelBug
from kernelmodel.sim.clock import Phase
from node.api import (
    BLACKOUT_PHASES,
    MIN_UPDATE_NS,
    HostOutcome,
    UpdateCommand,
    UpdateResult,
    VmOutcome,
    VmResult,
)
from node.host import Host
from node.host_state import HostState
from node.vm import MEMORY_TOKEN

__all__ = ["Update", "VmTimes"]


class VmTimes:
    """What an update costs one VM, as it becomes known: what is not is what the class says."""

    paused_ns: int | None = None  # its pause in the attempt that went through
    failed_freeze_ns: int = 0  # downtime of attempts that did not
    resumed_ns: int | None = None
    killed_ns: int | None = None  # when a reset took it while it ran
    restarted_ns: int | None = None
    outcome: VmOutcome = VmOutcome.PRESERVED
    reason: str = ""

    def __init__(self, lane: str, *, held: bool) -> None:
        self.lane = lane  # of the VM's steps: its VMM
        self.held = held  # it stood still before the update: what follows is no downtime of its own


#: Each lane that takes a step, and its VM.
_Lanes = Iterable[tuple[str, str]]


@dataclass(slots=True)
class Update:
    """One update under way."""

    host: Host
    command: UpdateCommand
    old_release: str
    vms: dict[str, VmTimes] = field(default_factory=dict)
    lanes: list[tuple[str, str]] = field(default_factory=list)  # of all these VMs
    phases: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    blackout_start_ns: int | None = None
    blackout_end_ns: int | None = None
    preserved_from_ns: int | None = None
    preserved_until_ns: int | None = None
    preserved_pages: dict[str, int] = field(default_factory=dict)

    def down(self) -> list[str]:
        """VMs that this update has stopped and that are not back."""
        return [
            name
            for name, times in self.vms.items()
            if times.paused_ns is not None and times.resumed_ns is None
        ]

    # Steps.

    def in_lanes(self, phase: str, lanes: _Lanes, step: Callable[[str], object]) -> Phase:
        """Let VMs take a step, each on a lane of its own; failures are the step's business."""
        clock = self.host.clock
        with clock.phase(phase) as done:
            clock.fork(lanes, step)
        return done

    def load(self) -> None:
        """kexec_file_load, before anything is disturbed."""
        try:
            with self.host.clock.phase("kexec_file_load") as phase:
                self.host.kexec_load(self.command.release)
        finally:  # it takes its time even when it fails
            self.outside["kexec_file_load"] = phase.duration_ns

    def preserve(self) -> None:
        """Every VM into a session of its own. Raises KernelError, nothing preserved."""
        if not self.vms:
            return
        done: list[str] = []

        def step(name: str) -> None:
            self.host.preserve_vm(name)
            done.append(name)

        try:
            phase = self.in_lanes("preserve", self.lanes, step)
        except KernelError:
            for name in reversed(done):
                self.host.close_session(name)
            raise
        self.outside["preserve"] = phase.duration_ns
        self.preserved_from_ns = phase.end_ns

    def unpreserve(self) -> None:
        """Close the sessions of this update: VMs go on as before."""
        for name in reversed(self.vms):
            self.host.close_session(name)
        if self.vms:
            self.preserved_until_ns = self.host.clock.now_ns

    def pause(self) -> None:
        """Pause all; the blackout begins when the last one stands."""
        lanes = [(times.lane, name) for name, times in self.vms.items() if not times.held]
        phase = self.in_lanes("pause", lanes, self.host.pause_vm)
        self.blackout_start_ns = end_ns = phase.end_ns
        for times in self.vms.values():
            times.paused_ns = end_ns if times.held else phase.lane_end_ns(times.lane)

    def resume(self, names: list[str]) -> None:
        """Let VMs run, but for those that stood still before."""
        vms = self.vms
        lanes = [(vms[name].lane, name) for name in names if not vms[name].held]
        phase = self.in_lanes("resume", lanes, self.host.resume_vm)
        for name in names:
            times = vms[name]
            times.resumed_ns = phase.end_ns if times.held else phase.lane_end_ns(times.lane)

    def freeze_failed(self) -> None:
        """Undo the pause of a failed attempt; its cost stays with the VMs."""
        self.resume(list(self.vms))
        for times in self.vms.values():
            assert times.paused_ns is not None
            assert times.resumed_ns is not None
            if not times.held:
                times.failed_freeze_ns += times.resumed_ns - times.paused_ns
            times.paused_ns = times.resumed_ns = None
        self.blackout_start_ns = None
        self.host.take_phases()

    def retrieve(self) -> None:
        """Sessions and memory back; who does not come back intact is lost."""
        if self.host.agent is None:
            for name in self.vms:
                self.lose(name, self.host.agent_error)
        elif self.vms:
            self.in_lanes("retrieve", self.lanes, self._retrieve_vm)
        self.blackout_end_ns = self.host.clock.now_ns

    def _retrieve_vm(self, name: str) -> None:
        try:
            self.host.retrieve_session(name)
            intact = self.host.retrieve_fd(name, MEMORY_TOKEN, name)
        except KernelError as error:
            self.lose(name, f"retrieve failed with {error.name}")
            return
        if not intact:
            self.lose(name, "memory came back changed")
            self.host.vm(name).stop()

    def why_lost(self, lost: list[str]) -> str:
        """Each reason once, with its VMs, and what the kernel made of its handover."""
        reasons: dict[str, list[str]] = {}
        for name in lost:
            reasons.setdefault(self.vms[name].reason, []).append(name)
        told = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        told += [line for line in self.host.kernel.messages if line.startswith(("KHO:", "luo:"))]
        return "; ".join(told)

    def lose(self, name: str, why: str) -> None:
        """A VM's memory is gone."""
        self.vms[name].outcome = VmOutcome.LOST
        self.vms[name].reason = why
        self.host.emit("vm_lost", name=name, why=why)

    def count_preserved(self, names: list[str]) -> None:
        """Pages that came back with these VMs, by page size."""
        pages = self.preserved_pages
        for vm in map(self.host.vms.__getitem__, names):
            label = vm.spec.backing.page_label
            pages[label] = pages.get(label, 0) + vm.nr_pages

    def with_outcome(self, outcome: VmOutcome) -> list[str]:
        """The VMs whose outcome it is, as far as is known."""
        return [name for name, times in self.vms.items() if times.outcome is outcome]

    def finish(self) -> None:
        """Finish every retrieved session and close it; pools settle."""
        agent = self.host.agent
        lanes = [(self.vms[name].lane, name) for name in (agent.incoming if agent else ())]
        if not lanes:
            return

        def step(name: str) -> None:
            try:
                self.host.finish_session(name)
                self.host.close_session(name)
            except KernelError:  # it is recorded, and the session stays until the next jump
                return

        phase = self.in_lanes("finish", lanes, step)
        self.outside["finish"] = phase.duration_ns
        self.preserved_until_ns = phase.end_ns

    def restart(self, names: list[str]) -> None:
        """Start stopped VMs afresh, as far as there is memory for them."""
        failed: dict[str, str] = {}

        def step(name: str) -> None:
            try:
                self.host.restart_vm(name)
            except KernelError as error:
                failed[name] = error.name

        phase = self.in_lanes("restart", [(self.vms[name].lane, name) for name in names], step)
        for name in names:
            times = self.vms[name]
            if name in failed:
                times.outcome = VmOutcome.LOST
                times.reason = f"{times.reason}; cannot start again: {failed[name]}"
            else:
                times.restarted_ns = phase.lane_end_ns(times.lane)

    def cold_reboot(self, release: str, why: str) -> None:
        """Reset and restart every VM; one that was lost before stays lost."""
        self.note_phases()
        down, lost = self.down(), self.with_outcome(VmOutcome.LOST)
        for name, times in self.vms.items():
            if name not in down:
                times.killed_ns = self.host.clock.now_ns
            if name not in lost:
                times.outcome, times.reason = VmOutcome.RESTARTED, why
        self.host.cold_reboot(release)
        if self.host.state is not HostState.UP:
            for name in self.vms:
                self.lose(name, "the host does not come up")
        else:
            anyway = self.command.policy.restart_lost_vms
            self.restart([name for name in self.vms if anyway or name not in lost])
        if self.preserved_from_ns is not None:
            self.preserved_until_ns = self.host.clock.now_ns
        self.preserved_pages = {}

    def note_phases(self) -> None:
        """Take over the phases of the blackout that have ended."""
        start_ns, phases = self.blackout_start_ns, self.phases
        for phase in self.host.take_phases():
            name, ns = phase.name, phase.duration_ns
            if (
                ns  # without gigantic pages there is no phase of theirs
                and name in BLACKOUT_PHASES
                and start_ns is not None
                and phase.start_ns >= start_ns
            ):
                phases[name] = phases.get(name, 0) + ns

    # The result.

    def vm_result(self, name: str, blackout_ns: int) -> VmResult:
        """Downtime of one VM, in phases that add up to it, of a blackout so far of that length."""
        times = self.vms[name]
        outcome, reason = times.outcome, times.reason
        if outcome is VmOutcome.LOST:
            return VmResult(name, outcome, reason, None, {})
        if times.held and outcome is VmOutcome.PRESERVED:
            return VmResult(name, outcome, reason, 0, {})
        phases = {"failed_freeze": times.failed_freeze_ns} if times.failed_freeze_ns else {}
        if times.paused_ns is not None:
            start_ns = self.blackout_start_ns
            assert start_ns is not None
            phases["pause_wait"] = start_ns - times.paused_ns
            phases |= self.phases
            known_ns = start_ns + blackout_ns
            if times.resumed_ns is not None:
                phases["resume_wait"] = times.resumed_ns - known_ns
            elif times.restarted_ns is not None:
                phases["restart"] = times.restarted_ns - known_ns
        if times.killed_ns is not None and times.restarted_ns is not None:
            phases["restart"] = times.restarted_ns - times.killed_ns
        spans = phases.values()
        if spans and min(spans) < 0:
            raise ModelBug(f"{self.host.name}: {name} has a phase that ends before it starts")
        return VmResult(name, outcome, reason, sum(spans), phases)

    def result(self, outcome: HostOutcome, reason: str, detail: str) -> UpdateResult:
        """Close the books."""
        host, start_ns = self.host, self.command.start_ns
        if host.clock.now_ns < start_ns + MIN_UPDATE_NS:
            host.clock.advance_to(start_ns + MIN_UPDATE_NS)  # the agent's report takes a moment
        host.take_phases()
        blackout_ns = sum(self.phases.values())
        vms = tuple([self.vm_result(name, blackout_ns) for name in self.vms])
        self._check_sums(blackout_ns)
        host.emit("update_done", outcome=outcome, reason=reason, release=host.release)
        append, now_ns = host.trace.append, host.clock.now_ns
        for vm in vms:
            fields: dict[str, int | str] = {"name": vm.name, "outcome": vm.outcome}
            fields["downtime"] = -1 if vm.downtime_ns is None else vm.downtime_ns
            append(now_ns, "vm_done", fields)
        return UpdateResult(
            host=host.name,
            seq=self.command.seq,
            outcome=outcome,
            reason=reason,
            detail=detail,
            release=host.release,
            start_ns=start_ns,
            end_ns=host.clock.now_ns,
            blackout_start_ns=self.blackout_start_ns,
            blackout_end_ns=self.blackout_end_ns,
            preserved_from_ns=self.preserved_from_ns,
            preserved_until_ns=self.preserved_until_ns,
            preserved_pages=self.preserved_pages,
            phases_ns=self.phases,
            outside_ns=self.outside,
            freeze_attempts=self.attempts,
            vms=vms,
            gauges=host.gauges(),
            digest=host.trace.hexdigest(),
            events=host.trace.take_events(),
        )

    def _check_sums(self, phases_ns: int) -> None:
        if self.blackout_start_ns is None or self.blackout_end_ns is None:
            return
        blackout = self.blackout_end_ns - self.blackout_start_ns
        if phases_ns != blackout:
            raise ModelBug(f"{self.host.name}: phases {self.phases} are not {blackout}")
