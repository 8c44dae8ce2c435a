"""Whether what a scenario asks for can be done at all, before anything starts.

Memory: every VM has a host, its size is whole pages, hugetlb VMs fit their pool and plain ones
what is left beside pools, scratch areas, struct pages and the kernel (`fleet.host_memory`).
Crossings: the next kernel must understand what this one hands over, and a kernel without the
proposal refuses hugetlb memfds. What goes wrong by chance or by an injected fault is not looked
for here; that is what the simulation is for.
"""

from __future__ import annotations

from collections.abc import Iterable

from fleet.bad_input import Faults, Place, did_you_mean
from fleet.host_memory import HostMemory, estimate, memfd_need
from fleet.inventory import Inventory
from fleet.units import show_size
from kernelmodel.kernel import KernelConfig
from kernelmodel.machine import GIB
from kernelmodel.releases import CATALOGUE, Release
from node.api import Backing, HostSpec, VmSpec

__all__ = ["check_crossings", "check_memory"]

#: Beyond this a spelling hint costs more than it gives: it compares with every name.
_HINTS_UP_TO = 5_000
#: LUO's memfd handler counts folios in 32 bits and answers EFBIG beyond.
_MOST_MEMFD_PAGES = (1 << 32) - 1


def check_memory(inventory: Inventory, faults: Faults) -> None:
    """Find VMs without a host, and hosts that cannot hold their VMs."""
    on_host: dict[str, list[VmSpec]] = {name: [] for name in inventory.hosts}
    names = list(inventory.host_places) if len(inventory.host_places) <= _HINTS_UP_TO else []
    for vm in inventory.vms.values():
        if vm.host in on_host:
            if vm.host not in inventory.alike:
                _check_vm(vm, inventory, faults)
            on_host[vm.host].append(vm)
        elif inventory.host_places and vm.host not in inventory.host_places:
            right = did_you_mean(vm.host, names, noun="hosts") if names else "a host of the fleet"
            what = f'VM {vm.name}: there is no host "{vm.host}"'
            faults.add(inventory.vm_places[vm.name], what, right, alike="VMs without a host")
    for name, vms in on_host.items():
        if name not in inventory.alike:
            _check_host(inventory.hosts[name], vms, inventory.host_places[name], faults)


def _check_vm(vm: VmSpec, inventory: Inventory, faults: Faults) -> None:
    """Find what is wrong with one VM whatever else is on its host."""
    place = inventory.vm_places[vm.name]
    host = inventory.hosts[vm.host]
    page = vm.backing.page_bytes
    pages = -(-vm.memory_bytes // page)
    if vm.memory_bytes % page:
        label = vm.backing.page_label
        what = f"VM {vm.name}: {show_size(vm.memory_bytes)} is not a multiple of its {label} pages"
        faults.add(place, what, f"{show_size(pages * page)}, say", alike="VMs of broken pages")
    if vm.backing is Backing.MEMFD:
        if pages > _MOST_MEMFD_PAGES:
            what = f"VM {vm.name}: LUO refuses a memfd of more than {_MOST_MEMFD_PAGES} pages"
            faults.add(place, what, "larger pages, or a smaller VM")
        return
    pool = _pool(host, vm.backing)
    if pages > pool:
        what = f"VM {vm.name} needs {pages} pages of {vm.backing.page_label}"
        has = f"the pool of host {host.name} has {pool}" if pool else f"host {host.name} has none"
        right = "a larger pool, a smaller VM, or another host"
        faults.add(place, f"{what}, {has}", right, alike="VMs larger than their pool")


def _pool(host: HostSpec, backing: Backing) -> int:
    return sum(pool.count for pool in host.hugepages if pool.page_bytes == backing.page_bytes)


def _check_host(host: HostSpec, vms: list[VmSpec], place: Place, faults: Faults) -> None:
    """Find whether the VMs of a host fit it together."""
    memory = estimate(host)
    if memory.left < 0:
        what = f"host {host.name}: hugepage pools of {show_size(memory.pools)} do not fit"
        if not memory.pools:
            what = f"host {host.name}: there is no room for VMs"
        right = f"pools of {show_size(_most_pools(memory))} at most, or another kho_scratch="
        if not _most_pools(memory):
            right = "more memory, or another kho_scratch="
        what = f"{what} in {show_size(memory.total)} beside {_taken(memory)}"
        faults.add(place, what, right, alike="hosts too small")
    _check_scratch(host, memory, place, faults)
    gigantic = _pool(host, Backing.HUGETLB_1G)
    if gigantic > memory.gigantic:
        what = f"host {host.name}: {gigantic} pages of 1GiB do not fit"
        right = f"at most {memory.gigantic}: so many whole gigabytes its memory has"
        faults.add(place, what, right, alike="too many 1GiB pages")
    for backing in (Backing.HUGETLB_2M, Backing.HUGETLB_1G):
        needs = [-(-vm.memory_bytes // backing.page_bytes) for vm in vms if vm.backing is backing]
        pool = _pool(host, backing)
        # One VM larger than the pool has been named already.
        if sum(needs) > pool and all(need <= pool for need in needs):
            what = f"host {host.name}: its VMs need {sum(needs)} pages of {backing.page_label}"
            right = f"a pool of {sum(needs)}, or fewer VMs"
            faults.add(place, f"{what}, the pool has {pool}", right, alike="pools too small")
    plain = [vm.memory_bytes for vm in vms if vm.backing is Backing.MEMFD]
    need = sum(map(memfd_need, plain))
    if plain and need > memory.left >= 0:
        what = (
            f"host {host.name}: its {len(plain)} plain memfd VMs need {show_size(need)} with their "
            f"tables, {show_size(memory.left)} are left of {show_size(memory.total)} beside "
            f"{show_size(memory.pools)} for hugepage pools, {_taken(memory)}"
        )
        right = "fewer or smaller VMs, or smaller pools"
        faults.add(place, what, right, alike="hosts too full")


def _check_scratch(host: HostSpec, memory: HostMemory, place: Place, faults: Faults) -> None:
    """Find scratch areas into which kexec_file_load() could not put the next kernel."""
    image = KernelConfig()
    segments = (image.kernel_bytes, image.initrd_bytes)
    largest, second, *_ = sorted(memory.scratch_areas, reverse=True)
    if largest < sum(segments) and (largest < max(segments) or second < min(segments)):
        sizes = " and ".join(map(show_size, segments))
        what = f"host {host.name}: the next kernel and its initrd ({sizes}) fit no KHO scratch area"
        faults.add(place, what, "a larger kho_scratch=", alike="scratch too small")


def _most_pools(memory: HostMemory) -> int:
    return max(memory.left + memory.pools, 0) // GIB * GIB


def _taken(memory: HostMemory) -> str:
    parts = {
        "KHO scratch": memory.scratch,
        "struct pages": memory.struct_pages,
        "the kernel": memory.reserve,
    }
    return ", ".join(f"{show_size(size)} for {what}" for what, size in parts.items() if size)


def check_crossings(inventory: Inventory, target: str, target_place: Place, faults: Faults) -> None:
    """Find hosts whose kernel cannot hand over to the target, or not all that they hold."""
    if target not in CATALOGUE:
        return
    to = CATALOGUE[target]
    by_release: dict[str, list[HostSpec]] = {}
    for host in inventory.hosts.values():
        by_release.setdefault(host.release, []).append(host)
    vms: dict[str, list[VmSpec]] = {}
    for vm in inventory.vms.values():
        if vm.host in inventory.hosts:
            vms.setdefault(inventory.hosts[vm.host].release, []).append(vm)
    for name, hosts in by_release.items():
        at = CATALOGUE[name]
        file, line = inventory.host_places[hosts[0].name]
        who = f"{len(hosts)} hosts run" if len(hosts) > 1 else f"host {hosts[0].name} runs"
        source = f"{name}, which {who} ({file}:{line})"
        if why := _cannot_cross(at, to):
            right = _targets(at, vms.get(name, []))
            faults.add(target_place, f"{target} cannot take over from {source}: {why}", right)
        elif huge := [vm for vm in vms.get(name, []) if vm.backing is not Backing.MEMFD]:
            count = f"{len(huge)} VMs" if len(huge) > 1 else "the VM"
            what = f"{count} on hugetlb memfds ({huge[0].name}, on {huge[0].host})"
            if at.hugemfd is None:
                right = "a release with a proposal for hugetlb, or VMs on plain memfds"
                place = inventory.vm_places[huge[0].name]
                faults.add(place, f"{name} refuses to preserve {what}", right)
            elif (at.hugemfd, at.hugetlb) != (to.hugemfd, to.hugetlb):
                right = _targets(at, huge)
                what = f"{target} cannot take back {what}, preserved by {source}"
                faults.add(target_place, what, right)


def _cannot_cross(at: Release, to: Release) -> str:
    """Why one kernel cannot hand over to another, "" if it can."""
    if at.kho is None or at.luo is None:
        return f"{at.name} has no live update orchestrator"
    if to.kho is None or to.luo is None:
        return f"{to.name} has no live update orchestrator"
    for ours, theirs in ((at.kho, to.kho), (at.luo, to.luo), (at.memfd, to.memfd)):
        if ours != theirs:
            return f"it hands over {ours}, the target reads {theirs}"
    return ""


def _targets(at: Release, vms: Iterable[VmSpec]) -> str:
    """The releases that could take over from this one."""
    huge = any(vm.backing is not Backing.MEMFD for vm in vms)
    known = [
        to.name
        for to in CATALOGUE.values()
        if not _cannot_cross(at, to) and (not huge or at.hugemfd == to.hugemfd)
    ]
    return f"possible: {', '.join(known)}" if known else f"{at.name} cannot be updated live"
