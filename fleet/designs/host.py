"""A host with VMs on huge pages, updated under one design: the steps, without the measuring.

Everything is the real model: kernels boot from bytes, VMs hold memory, agents make system calls.
Pausing VMs is on the clock, since pools may be frozen meanwhile; what VMMs do to resume is not,
and neither is the time that an agent lets pass.

Happy path: `DesignHost`, then `load`, `preserve`, `settle`, `freeze`, `jump`, `retrieve`, `finish`.

Unhappy paths: a VM that the kernel refuses to preserve is in `refused` with the errno, one that it
refuses to give back in `lost`, and the others go on; what refuses the whole update is raised. A
kernel that panics while booting raises KernelPanic, and one that offers no live update what
opening the device does; the host is of no use then.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.designs.agents import DesignAgent, agent_of
from fleet.designs.spec import HostSpec, VmSpec
from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import KernelError, NoMemory
from kernelmodel.hugetlb_designs import HugetlbDesign
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import PAGE_SHIFT, GuestContent
from kernelmodel.mm.guest_memfd import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GuestHugetlbInode,
)
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB, HugetlbMemfdInode
from kernelmodel.releases import CATALOGUE, Release
from kernelmodel.sim.clock import Clock, Phase
from kernelmodel.sim.cost import CostModel
from kernelmodel.syscalls import Task

__all__ = ["DesignHost", "DesignVm", "NoLiveUpdate", "release_of"]

_MEMORY, _VM = 1, 2
_VCPUS = 8
_SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED | GUEST_MEMFD_FLAG_HUGETLB


def release_of(design: str) -> Release:
    """The release of the catalogue that carries a design and has guest_memfd."""
    return next(
        release
        for release in reversed(CATALOGUE.values())
        if release.hugetlb_design == design and release.guest_hugetlb is not None
    )


@dataclass(slots=True)
class DesignVm:
    """A VM: its VMM while it runs, and what its memory held when it was last looked at."""

    spec: VmSpec
    task: Task | None = None
    fd: int = -1
    vm_fd: int = -1
    digest: bytes = b""

    def start(self, kernel: Kernel) -> None:
        """Memory, filled. Raises: NoMemory."""
        self.task = Task(kernel, self.spec.name)
        size = self.spec.pages << self.spec.order + PAGE_SHIFT
        log2 = self.spec.order + PAGE_SHIFT
        if self.spec.guest_memfd:
            self.vm_fd = self.task.kvm_create_vm()
            flags = _SHARED | log2 << MFD_HUGE_SHIFT
            self.fd = self.task.kvm_create_guest_memfd(self.vm_fd, size, flags)
        else:
            self.fd = self.task.memfd_create(MFD_HUGETLB | log2 << MFD_HUGE_SHIFT)
            self.task.ftruncate(self.fd, size)
            self.inode.hugetlb.reserve(0, self.spec.pages, self.spec.nid)
        if self.inode.hugetlb.populate(0, self.spec.pages, self.spec.nid) < self.spec.pages:
            raise NoMemory("no huge pages for a VM", vm=self.spec.name)
        self.inode.guest_write(0, self.spec.pages, GuestContent(self.spec.name, 1), 0)
        self.digest = self.look(kernel)

    @property
    def inode(self) -> HugetlbMemfdInode | GuestHugetlbInode:
        """The file of its memory."""
        assert self.task is not None, "it runs"
        inode = self.task.files.fget(self.fd).inode
        assert isinstance(inode, HugetlbMemfdInode | GuestHugetlbInode)
        return inode

    def look(self, kernel: Kernel) -> bytes:
        """A fingerprint of its memory."""
        order = self.spec.order
        runs = [(pfn, nr << order) for _, pfn, nr in self.inode.hugetlb.folios.runs()]
        return kernel.memory.content_digest(runs)


class NoLiveUpdate(Exception):
    """A host on which not even the first kernel offers live update; what it says of that."""


class DesignHost:
    """One host that runs the release with `design`. Raises: NoLiveUpdate, NoMemory."""

    def __init__(self, spec: HostSpec, design: str, cost: CostModel) -> None:
        self.spec = spec
        self.release = release_of(design)
        machine = Machine(MachineSpec(spec.node_bytes(), spec.cpus))
        self.clock = Clock(cost, spec.cpus, spec.seed, ("designs",))
        firmware = machine.cold_firmware(spec.cmdline())
        self.kernel = boot(machine, self.release, firmware, self.clock)
        if not self.kernel.live_update.enabled:
            raise NoLiveUpdate("; ".join(self.kernel.messages))
        self.agent: DesignAgent = agent_of(self.kernel)
        self.vms = {vm.name: DesignVm(vm) for vm in spec.vm_specs()}
        for vm in self.vms.values():
            vm.start(self.kernel)
        self.clock.restart()
        self.clock.on_phase = self._phase_ended
        #: Phases in the order in which they ended.
        self.phases: list[Phase] = []
        #: VMs that were not preserved, and those that did not come back: errno by name.
        self.refused: dict[str, str] = {}
        self.lost: dict[str, str] = {}

    def _phase_ended(self, phase: Phase) -> None:
        self.phases.append(phase)

    @property
    def design(self) -> HugetlbDesign:
        """The kernel's."""
        design = self.kernel.hugetlb_design
        assert design is not None, "the release carries one"
        return design

    # Outgoing.

    def load(self) -> None:
        """kexec_file_load."""
        with self.clock.phase("load"):
            kexec.kexec_file_load(self.kernel, self.release, self.spec.cmdline())

    def preserve(self) -> None:
        """Every VM that runs, each VMM on a lane of its own."""
        with self.clock.phase("preserve"):
            for name, vm in self.vms.items():
                if vm.task is not None:
                    with self.clock.lane(f"vmm:{name}"):
                        self.preserve_vm(vm)

    def preserve_vm(self, vm: DesignVm) -> None:
        """A session with the VM's memory; refused, the VM goes on without."""
        name, task = vm.spec.name, vm.task
        assert task is not None, "it runs"
        self.agent.create(name)
        try:
            if vm.spec.guest_memfd:
                self.agent.preserve(name, task, vm.vm_fd, _VM)
            self.agent.preserve(name, task, vm.fd, _MEMORY)
        except KernelError as error:
            self.agent.close(name)
            self.refused[name] = error.name

    def settle(self) -> None:
        """PREPARE, where there is one. Raises what it raises."""
        if self.kernel.luo_v4 is not None:
            with self.clock.phase("prepare"):
                self.agent.settle()

    def pause(self) -> None:
        """Every VM, before the blackout."""
        with self.clock.phase("pause"):
            for name, vm in self.vms.items():
                if vm.task is not None:
                    with self.clock.lane(f"vmm:{name}"):
                        self.clock.charge("vm_pause", _VCPUS)

    def give_up(self) -> None:
        """Cancel."""
        with self.clock.phase("cancel"):
            self.agent.give_up()

    def freeze(self) -> kexec.Kimage:
        """reboot(2) up to the point of no return. Raises what it raises."""
        with self.clock.phase("freeze"):
            return kexec.kernel_kexec(self.kernel)

    def jump(self, image: kexec.Kimage) -> None:
        """Into the next kernel, up to its agent. Raises: KernelPanic; as opening the device."""
        with self.clock.phase("kexec"):
            given = kexec.jump(self.kernel, image)
        for vm in self.vms.values():
            vm.task = None
        self.kernel = boot(self.kernel.machine, *given, self.clock)
        with self.clock.phase("userspace"):
            self.clock.charge("userspace_init")
            self.clock.charge("agent_start")
            self.agent = agent_of(self.kernel)

    # Incoming.

    def retrieve(self, without: frozenset[str] = frozenset()) -> None:
        """Every VM that was preserved, but those `without`, each VMM on a lane of its own."""
        with self.clock.phase("retrieve"):
            for name, vm in self.vms.items():
                if name not in {**self.refused, **self.lost} and name not in without:
                    with self.clock.lane(f"vmm:{name}"):
                        self.retrieve_vm(vm)

    def retrieve_vm(self, vm: DesignVm) -> None:
        """Session, VM and memory; what came back changed is `EFAULT`."""
        name = vm.spec.name
        task = Task(self.kernel, name)
        try:
            self.agent.retrieve_session(name)
            # the VM first: LUO v4 gives a file out once, and memory brings its VM along
            vm_fd = self.agent.retrieve(name, _VM, task) if vm.spec.guest_memfd else -1
            fd = self.agent.retrieve(name, _MEMORY, task)
        except KernelError as error:
            self.lost[name] = error.name
            task.exit()
            return
        vm.task, vm.fd, vm.vm_fd = task, fd, vm_fd
        if vm.look(self.kernel) != vm.digest:
            self.lost[name] = "EFAULT"

    def finish(self) -> None:
        """Sessions that were retrieved, then the system where there is such a thing."""
        with self.clock.phase("finish"):
            for name in list(self.agent.sessions):
                with self.clock.lane(f"vmm:{name}"):
                    self.agent.finish(name)
            self.agent.finish_all()

    def update(self) -> None:
        """All of it. Raises: KernelError, KernelPanic."""
        self.load()
        self.preserve()
        self.settle()
        self.pause()
        self.jump(self.freeze())
        self.retrieve()
        self.finish()

    # What there is.

    def asked(self) -> dict[int, int]:
        """Pages that the command line asks for, by order."""
        pages = self.spec.pool_pages()
        return {size.bit_length() - 1 - PAGE_SHIFT: n for size, n in pages.items()}

    def unclaimed(self) -> dict[int, int]:
        """Pages of the previous kernel that nobody has taken back, by order."""
        found = dict.fromkeys(self.kernel.hugetlb.hstates, 0)
        for low, high, order in self.kernel.kho.tags:
            if order in found:
                found[order] += high - low >> order
        return found

    def pools(self) -> dict[int, int]:
        """Pages of each pool, by order."""
        return {order: h.nr_huge_pages for order, h in self.kernel.hugetlb.hstates.items()}

    def node_pages(self) -> dict[tuple[int, int], int]:
        """Pages by (order, node)."""
        return {
            (order, nid): node.nr_huge_pages
            for order, hstate in self.kernel.hugetlb.hstates.items()
            for nid, node in hstate.nodes.items()
        }
