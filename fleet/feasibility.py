"""Whether what a scenario asks for can be done at all, before anything starts.

Memory: a VM's size is whole pages, hugetlb VMs fit their pool and plain ones
what the booted kernel leaves beside pools, scratch areas and its own (`fleet.host_memory`).
Crossings: the next kernel must understand what this one hands over, and a kernel without the
proposal refuses hugetlb memfds. What goes wrong by chance or by an injected fault is not looked
for here; that is what the simulation is for.
"""

from __future__ import annotations

from collections.abc import Iterable

from fleet.bad_input import Faults, Place
from fleet.host_memory import HostMemory, memfd_need, try_boot
from fleet.inventory import Inventory
from fleet.units import plural, show_size
from kernelmodel.releases import CATALOGUE, Release
from node.api import Backing, HostSpec, VmSpec

__all__ = ["check_crossings", "check_memory"]

#: LUO's memfd handler counts folios in 32 bits and answers EFBIG beyond.
_MOST_MEMFD_PAGES = (1 << 32) - 1


def check_memory(inventory: Inventory, faults: Faults) -> None:
    """Find VMs that no pool can hold, and hosts that cannot hold their VMs."""
    on_host: dict[str, list[VmSpec]] = {name: [] for name in inventory.hosts}
    for vm in inventory.vms.values():
        if vm.host in on_host:  # else the host's own row cannot be used, and said so
            if vm.host not in inventory.alike:
                _check_vm(vm, inventory, faults)
            on_host[vm.host].append(vm)
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
    pool = _pool(host, page)
    if pages > pool:
        what = f"VM {vm.name} needs {pages} {plural(pages, 'page')} of {vm.backing.page_label}"
        has = f"the pool of host {host.name} has {pool}" if pool else f"host {host.name} has none"
        right = "a larger pool, a smaller VM, or another host"
        faults.add(place, f"{what}, {has}", right, alike="VMs larger than their pool")


def _pool(host: HostSpec, page_bytes: int) -> int:
    return sum(pool.count for pool in host.hugepages if pool.page_bytes == page_bytes)


def _check_host(host: HostSpec, vms: list[VmSpec], place: Place, faults: Faults) -> None:
    """Find whether the VMs of a host fit it together."""
    memory = try_boot(host)
    who = f"host {host.name}"
    if memory.trouble:
        right = "smaller pools, more memory, or another kho_scratch="
        faults.add(place, f"{who}: {memory.trouble}", right, alike="hosts that cannot be updated")
    for pool in memory.missing:
        size = show_size(pool.page_bytes)
        wanted = _pool(host, pool.page_bytes)
        what = f"{who}: its kernel gets {wanted - pool.count} of {wanted} pages of {size}"
        right = f"at most {wanted - pool.count}, or smaller pools of another size"
        faults.add(place, f"{what} beside {_taken(memory)}", right, alike="pools too large")
    for backing in (Backing.HUGETLB_2M, Backing.HUGETLB_1G):
        needs = [-(-vm.memory_bytes // backing.page_bytes) for vm in vms if vm.backing is backing]
        there = _pool(host, backing.page_bytes)
        # One VM larger than the pool has been named already.
        if sum(needs) > there and all(need <= there for need in needs):
            pages = f"{sum(needs)} {plural(sum(needs), 'page')} of {backing.page_label}"
            what = f"{who}: its VMs need {pages}"
            right = f"a pool of {sum(needs)}, or fewer VMs"
            faults.add(place, f"{what}, the pool has {there}", right, alike="pools too small")
    plain = [vm.memory_bytes for vm in vms if vm.backing is Backing.MEMFD]
    need = sum(map(memfd_need, plain))
    if plain and need > memory.left and not memory.trouble and not memory.missing:
        what = (
            f"{who}: its {len(plain)} plain memfd VMs need {show_size(need)} with their tables, "
            f"{show_size(memory.left)} are left beside {_taken(memory)}"
        )
        right = "fewer or smaller VMs, or smaller pools"
        faults.add(place, what, right, alike="hosts too full")


def _taken(memory: HostMemory) -> str:
    parts = {
        "hugepage pools": memory.pools,
        "KHO scratch": memory.scratch,
        "struct pages": memory.struct_pages,
        "the kernel": memory.kernel,
    }
    listed = ", ".join(f"{show_size(size)} for {what}" for what, size in parts.items() if size)
    return f"{listed} of {show_size(memory.total)}"


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
