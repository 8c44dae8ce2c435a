"""One host: a machine, the kernel that runs on it now, its VMs and its agent.

Every operation of a host is a method here, each a step that an agent could take. A live update
(`node.live_update`) is a sequence of them; gRPC offers them one by one. What the kernel refuses is
a `KernelError`, what the host's state does not allow a `HostStateError`.

The kernel is replaced at the jump: the old one's object is dropped, and the new one is booted from
the machine's memory and the firmware record. VMs keep nothing of their memory but its fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar, TypeVarTuple

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import KernelError, KernelPanic, ModelBug
from kernelmodel.kernel import Kernel, KernelConfig, no_failures
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import GIB
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock, Phase
from kernelmodel.sim.cost import CostModel
from kernelmodel.sim.trace import Trace
from node import faults, views
from node.agent import Agent
from node.api import FaultSpec, HostGauges, HostSpec, VmSpec
from node.host_state import NEXT, HostPanicked, HostState, HostStateError
from node.kept_image import KeptImage
from node.views import SessionView
from node.vm import MEMORY_TOKEN, Vm, VmState

__all__ = ["Host", "kernel_cmdline"]

_Fields = Mapping[str, int | str]
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_HUGEPAGESZ: Final = {2 << 20: "2M", 1 << 30: "1G"}


def kernel_cmdline(spec: HostSpec) -> str:
    """The command line that a host boots with."""
    words = ["kho=on", "liveupdate=on"]
    for pool in spec.hugepages:
        words += [f"hugepagesz={_HUGEPAGESZ[pool.page_bytes]}", f"hugepages={pool.count}"]
    return " ".join([*words, *spec.cmdline.split()])


class Host:
    """One host. Deterministic: a function of its inventory, the seed and what it was told."""

    def __init__(
        self,
        spec: HostSpec,
        vms: Iterable[VmSpec],
        *,
        seed: int,
        cost: CostModel,
        fault_specs: Iterable[FaultSpec] = (),
        record_events: bool = False,
        config: KernelConfig | None = None,
        releases: Mapping[str, Release] = CATALOGUE,
    ) -> None:
        self.spec, self.releases = spec, releases
        self.config = config or KernelConfig()
        self.machine = Machine(MachineSpec(spec.node_bytes, spec.cpus))
        self.clock = Clock(cost, spec.cpus, seed, ("host", spec.name))
        self.trace = Trace(f"host/{spec.name}", record_events)
        self.faults = faults.Faults(fault_specs)
        self.state = HostState.COLD_BOOTING
        self.vms = {vm.name: Vm(vm, i % len(spec.node_bytes)) for i, vm in enumerate(vms)}
        self.phases: list[Phase] = []
        self.kept_image = KeptImage()
        self.agent: Agent | None = None
        self.loaded: Release | None = None
        self.panic_message = ""
        self.last_release = spec.release  # of those that were up
        self.hung = False  # whether it was the watchdog that ended the last boot that failed
        #: Why there is no agent, if there is none: what the kernel said to it, and in words.
        self.agent_errno = self.agent_error = ""
        self._cmdline = kernel_cmdline(spec)
        self._kernel: Kernel | None = None
        self._power_on(self.known_release(spec.release))
        for vm in self.vms.values():
            try:
                vm.start(self.kernel)
            except KernelError as error:
                why = f"{spec.name} has no memory for its VM {vm.spec.name}: {error}"
                raise ModelBug(why) from error
        self._start_agent()
        # All of this was long ago: the simulation begins with a host that runs.
        self.clock.restart()
        self.clock.on_phase = self.phases.append
        self._advance(HostState.UP, "powered on")
        for vm in self.vms.values():
            seen = vm.read_fingerprint(self.machine.memory)
            self.emit("vm", name=vm.spec.name, state=vm.state, fingerprint=seen)

    # Bookkeeping.

    @property
    def name(self) -> str:
        """The host's name."""
        return self.spec.name

    @property
    def kernel(self) -> Kernel:
        """The kernel that runs. Raises: HostStateError if none does."""
        if self._kernel is None:
            raise HostStateError("HOST_DOWN", f"{self.name} is {self.state}; ColdReboot leads on")
        return self._kernel

    @property
    def liveupdate_num(self) -> int:
        """Live updates since the last cold boot, as the running kernel counts them."""
        return self._kernel.luo.liveupdate_num if self._kernel is not None else 0

    @property
    def release(self) -> str:
        """The running release, empty while there is none."""
        return self._kernel.release.name if self._kernel is not None else ""

    def known_release(self, name: str) -> Release:
        """A release that can be loaded here. Raises: HostStateError."""
        if name not in self.releases:
            known = ", ".join(self.releases)
            raise HostStateError("NO_SUCH_RELEASE", f"no release {name!r} among {known}")
        return self.releases[name]

    def _advance(self, to: HostState, why: str) -> None:
        if to not in NEXT[self.state]:
            raise ModelBug(f"{self.name}: {self.state} -> {to}: {why}")
        self.state = to
        if to is HostState.UP:
            self.last_release = self.release
            if self.agent is None:  # now that no watchdog can say that it never came to that
                self.emit("agent", errno=self.agent_errno)
        self.emit("host", state=to, release=self.release, why=why)

    def emit(self, event: str, **fields: int | str | bytes | bool) -> None:
        """Record something that happened to this host, now."""
        self.trace.append(self.clock.now_ns, event, fields)

    def take_phases(self) -> list[Phase]:
        """Phases since the last call, each recorded as an event now."""
        taken, self.phases[:] = self.phases[:], []
        for phase in taken:
            self.emit("phase", name=phase.name, start=phase.start_ns, ns=phase.duration_ns)
        return taken

    def vm(self, name: str) -> Vm:
        """A VM of this host. Raises: HostStateError."""
        if name not in self.vms:
            raise HostStateError("NO_SUCH_VM", f"{self.name} has no VM {name!r}")
        return self.vms[name]

    def _the_agent(self) -> Agent:
        if self.agent is None:
            why = self.agent_error if self.release else f"the host is {self.state}"
            message = f"{self.name}: no agent has /dev/liveupdate open: {why}"
            raise HostStateError("NO_AGENT", f"{message}; ColdReboot leads on")
        return self.agent

    def _session(self, name: str, *, incoming: bool = False) -> tuple[Agent, int]:
        agent = self.agent or self._the_agent()
        fd = agent.session(name, incoming=incoming)
        if not fd:
            why = views.instead(self.sessions(), name)
            raise HostStateError("NO_SUCH_SESSION", f"{self.name}: no open session {name!r}; {why}")
        return agent, fd

    # VMs.

    def pause_vm(self, name: str) -> None:
        """Stop the vCPUs and remember what memory holds."""
        vm = self.vm(name)
        if vm.state is not VmState.RUNNING:
            raise HostStateError("VM_NOT_RUNNING", f"{name} is {vm.state}")
        vm.run()
        self.clock.charge("vm_pause", vm.spec.vcpus)
        seen = vm.fingerprint = vm.read_fingerprint(self.machine.memory)
        vm.advance(VmState.PAUSED)
        self.emit("vm", name=name, state=vm.state, fingerprint=seen)

    def resume_vm(self, name: str) -> None:
        """Let the vCPUs run."""
        vm = self.vm(name)
        if vm.state is not VmState.PAUSED:
            raise HostStateError("VM_NOT_PAUSED", f"{name} is {vm.state}")
        self.clock.charge("vm_resume", vm.spec.vcpus)
        vm.advance(VmState.RUNNING)
        self.trace.append(self.clock.now_ns, "vm", {"name": name, "state": vm.state})

    def restart_vm(self, name: str) -> None:
        """Start a stopped VM afresh. Raises: KernelError if there is no memory for it."""
        vm = self.vm(name)
        if vm.state is not VmState.STOPPED:
            raise HostStateError("VM_NOT_STOPPED", f"{name} is {vm.state}")
        vm.start(self.kernel)
        self.clock.charge("vm_boot")
        seen = vm.read_fingerprint(self.machine.memory)
        self.emit("vm", name=name, state=vm.state, fingerprint=seen)

    # Sessions.

    def create_session(self, name: str) -> None:
        """CREATE_SESSION on /dev/liveupdate."""
        agent = self.agent or self._the_agent()
        self._ask("create_session", {"session": name}, agent.create, name)

    def preserve_fd(self, session: str, token: int, vm: str) -> None:
        """PRESERVE_FD of a VM's memory."""
        (agent, fd), machine = self._session(session), self.vm(vm)
        if machine.task is None:
            raise HostStateError("VM_STOPPED", f"{vm} has no memory")
        fields: _Fields = {"session": session, "token": token, "vm": vm}
        self._ask("preserve_fd", fields, agent.preserve, fd, machine.task, machine.fd, token)

    def preserve_vm(self, name: str) -> None:
        """What a VMM does for its VM: a session of its name, its memory in it."""
        self.create_session(name)
        try:
            self.preserve_fd(name, MEMORY_TOKEN, name)
        except (KernelError, HostStateError):
            if self.agent is not None:  # else all sessions died with the kernel
                self.close_session(name)
            raise

    def close_session(self, name: str) -> None:
        """close(2): an outgoing session lets go of its files, an incoming one finishes."""
        agent, _ = self._session(name)
        self._ask("close_session", {"session": name}, agent.close, name)

    def retrieve_session(self, name: str) -> None:
        """RETRIEVE_SESSION on /dev/liveupdate."""
        agent = self.agent or self._the_agent()
        self._ask("retrieve_session", {"session": name}, agent.retrieve, name)

    def retrieve_fd(self, session: str, token: int, name: str) -> bool:
        """RETRIEVE_FD by a VMM that starts for it. Whether memory is what it was when paused."""
        (agent, fd), vm = self._session(session, incoming=True), self.vm(name)
        if vm.state is not VmState.STOPPED:
            raise HostStateError("VM_NOT_STOPPED", f"{name} is {vm.state}")
        task = vm.start_vmm(self.kernel)
        fields: _Fields = {"session": session, "token": token, "vm": name}
        vm.fd = self._ask("retrieve_fd", fields, agent.fetch, fd, token, task)
        vm.task = task
        vm.advance(VmState.PAUSED)
        self.clock.charge("vmm_rebuild", vm.spec.vcpus)
        intact = vm.read_fingerprint(self.machine.memory) == vm.fingerprint != b""
        self.trace.append(self.clock.now_ns, "retrieved", {"vm": name, "intact": intact})
        return intact

    def finish_session(self, name: str) -> None:
        """FINISH."""
        agent, fd = self._session(name, incoming=True)
        self._ask("finish_session", {"session": name}, agent.task.finish_session, fd)

    def _ask(self, what: str, fields: _Fields, call: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """Record a call and what the kernel said to it, or that it died of it."""
        try:
            answer = call(*args)
        except KernelError as error:
            self.emit(what, errno=error.name, **fields)
            raise
        except KernelPanic as panic:
            self.emit(what, panic=str(panic), **fields)
            self.drop_kernel()
            self.panic_message, self.hung = str(panic), False
            self._advance(HostState.PANICKED, str(panic))
            raise HostPanicked("PANICKED", f"{self.name} panicked in {what}: {panic}") from panic
        self.trace.append(self.clock.now_ns, what, fields)
        return answer

    def sessions(self) -> list[SessionView]:
        """All sessions that this kernel knows."""
        return views.sessions(self._kernel) if self._kernel is not None else []

    # Kernels.

    def kexec_load(self, release: str, cmdline: str = "") -> None:
        """kexec_file_load(2), with the running kernel's command line unless another is given."""
        kernel, target = self.kernel, self.known_release(release)
        kernel.fail_function = self.faults.hook()
        call, words = self._the_agent().task.kexec_file_load, cmdline or self._cmdline
        self._ask("kexec_file_load", {"release": release}, call, target, words)
        self.loaded = target
        self._advance(HostState.KEXEC_LOADED, f"loaded {release}")

    def freeze(self) -> kexec.Kimage:
        """reboot(2) up to the point of no return. Raises: KernelError, and nothing has changed."""
        kernel = self.kernel
        kernel.fail_function = self.faults.hook()
        try:
            with self.clock.phase("freeze"):
                return self._ask("freeze", {}, kexec.kernel_kexec, kernel)
        finally:
            kernel.fail_function = no_failures

    def jump(self, image: kexec.Kimage, boot_timeout_ns: int) -> None:
        """From the jump to the next kernel's agent. The host is UP after it, or PANICKED.

        `boot_timeout_ns` is the watchdog's, from the jump on.
        """
        for vm in self.vms.values():
            if vm.state is VmState.RUNNING:  # nobody paused it: its guest runs to the very end
                vm.run()
                vm.fingerprint = vm.read_fingerprint(self.machine.memory)
        faults.strike_memory(self.faults, self.kernel)
        self.kept_image.take(self.kernel)
        self.emit("jump", release=image.release.name, handover=self.kernel.kho.handover_digest())
        self._advance(HostState.REBOOTING, "kexec")
        slow = self.faults.strike("slow-boot")
        slowdown = self.clock.slow("boot", max(1, round(slow.factor * 1000))) if slow else None
        start_ns = self.clock.now_ns
        try:
            with self.clock.phase("kexec"):
                release, firmware = kexec.jump(self.kernel, image)
            self.drop_kernel()
            fail = self.faults.hook()
            self._kernel = boot(
                self.machine, release, firmware, self.clock, config=self.config, fail_function=fail
            )
            self._kernel.fail_function = no_failures
            with self.clock.phase("userspace"):
                self.clock.charge("userspace_init")
                self._start_agent()
        except KernelPanic as panic:
            del self.phases[-1:]  # the phase it died in never came to its end
            self._die(panic, start_ns, boot_timeout_ns)
            return
        finally:
            if slowdown is not None:
                slowdown.lift()
        if self.clock.now_ns - start_ns > boot_timeout_ns:
            self._die(faults.BootHang("watchdog: no agent in time"), start_ns, boot_timeout_ns)
            return
        self._cmdline = firmware.cmdline
        self._advance(HostState.UP, "kexec done")

    def _die(self, panic: KernelPanic, start_ns: int, boot_timeout_ns: int) -> None:
        """The booting kernel is gone. A hang is noticed when the watchdog's time is up."""
        self.drop_kernel()
        deadline = start_ns + boot_timeout_ns
        self.hung = isinstance(panic, faults.BootHang) or self.clock.now_ns > deadline
        if self.hung:
            self.clock.advance_to(max(deadline, self.clock.now_ns))
            self.clock.cut(deadline)
        self.phases[:] = [phase for phase in self.phases if phase.end_ns <= self.clock.now_ns]
        self.panic_message = str(panic)
        self._advance(HostState.PANICKED, str(panic))

    def cold_reboot(self, release: str) -> None:
        """A reset through firmware: nothing in memory survives, VMs are stopped."""
        target = self.known_release(release)
        self._advance(HostState.COLD_BOOTING, f"cold reboot into {release}")
        self.drop_kernel()
        with self.clock.phase("firmware"):
            self.clock.charge("watchdog_reset")
            self.clock.charge("firmware_post")
            self.clock.charge("cold_boot_memory_init", sum(self.spec.node_bytes) // GIB)
        self._cmdline = kernel_cmdline(self.spec)
        try:
            self._power_on(target)
        except KernelPanic as panic:
            self.drop_kernel()
            self.panic_message, self.hung = str(panic), False
            self._advance(HostState.PANICKED, str(panic))
            return
        with self.clock.phase("userspace"):
            self.clock.charge("userspace_init")
            self._start_agent()
        self._advance(HostState.UP, "cold boot done")

    def _power_on(self, release: Release) -> None:
        self.machine.reset()
        firmware = self.machine.cold_firmware(self._cmdline)
        self._kernel = boot(self.machine, release, firmware, self.clock, config=self.config)

    def _start_agent(self) -> None:
        self.clock.charge("agent_start")
        try:
            self.agent = Agent(self.kernel)
        except KernelError as error:
            self.agent, self.agent_errno = None, error.name
            self.agent_error = f"cannot open /dev/liveupdate: {error.name}"
            self.kernel.printk(f"luod: cannot open /dev/liveupdate: {error}")

    def drop_kernel(self) -> None:
        """Whatever runs is gone, and nobody can ask it anything any more."""
        if self._kernel is not None:
            self._kernel.take_apart()
        self._kernel = self.agent = self.loaded = None
        for vm in self.vms.values():
            vm.forget()

    # Faults.

    def inject(self, fault: FaultSpec) -> None:
        """Arm a fault."""
        if wrong := faults.why_wrong(fault):
            known = fault.kind in faults.FAULT_KINDS
            raise HostStateError("BAD_FAULT" if known else "NO_SUCH_FAULT", wrong)
        if fault.vm:
            self.vm(fault.vm)
        self.faults.add(fault)
        self.emit("inject", kind=fault.kind, times=fault.times)

    # Looking.

    def gauges(self) -> HostGauges:
        """The host's own counters."""
        return views.gauges(self._kernel, self.vms.values())

    def debugfs(self, path: str) -> str:
        """A file that the running kernel would show, as text. Raises: HostStateError."""
        files = views.debugfs(self.kernel)
        if path not in files:
            raise HostStateError("NO_SUCH_FILE", f"no file {path!r}; there are: {', '.join(files)}")
        return files[path]()
